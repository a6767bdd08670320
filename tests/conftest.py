"""Certificates for tests: real sites with their own CAs, real files, and forgeries of every kind."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from swarm_hpc.config import IdentityConfig
from swarm_hpc.errors import ConfigError
from swarm_hpc.identity import ca, certs
from swarm_hpc.identity.bundle import TrustBundle
from swarm_hpc.records import NodeName
from swarm_hpc.sn.programs import find_program
from tests.lab.apptainer import find_apptainer
from tests.lab.namespaces import find_namespaces
from tests.lab.slurm import Cluster, clusters, find_slurm
from tests.lab.unprivileged import Unprivileged, find_unprivileged, ordinary_user

TRUST_DOMAIN = "swarm.test"


@dataclass(frozen=True)
class LedgerPrograms:
    """The real geth and CometBFT."""

    geth: Path
    cometbft: Path


@cache
def find_ledger_programs() -> LedgerPrograms | str:
    """Both programs, or why they cannot be had."""
    try:
        return LedgerPrograms(*(find_program(name, "", os.environ) for name in ("geth", "cometbft")))
    except ConfigError as exc:
        return str(exc)


@cache
def find_mpiexec() -> list[str] | str:
    """How to start MPI ranks on this host, or why that cannot be."""
    # the launcher of the library that mpi4py has: another one would make every rank a job of its own
    beside = Path(sys.executable).parent / "mpiexec"
    if find_spec("mpi4py") is None or not beside.exists():
        return f"needs mpi4py and {beside}: run make setup, which installs the extra `mpi`"
    return [str(beside), "-genv", "FI_PROVIDER", "tcp", "-genv", "FI_TCP_IFACE", "lo"]


LONG = os.environ.get("SWARM_HPC_LONG_TESTS") == "1"
"""Whether some tests do as much as the project promises, instead of as much as CI can wait for."""

# What a mark stands for: a function that gives the reason where this machine cannot offer it.
NEEDS: dict[str, Callable[[], object | str]] = {
    "geth": find_ledger_programs,
    "slurm": find_slurm,
    "apptainer": find_apptainer,
    "mpi": find_mpiexec,
    "netns": find_namespaces,
}


def cannot_run(reason: str) -> NoReturn:
    """Skip the running test; in CI, where everything can be had, fail it: a test that never runs protects nothing."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `geth` or the like runs only where its mark's needs are met, whatever fixtures it asks for."""
    if item.get_closest_marker("gpu") and not Path("/dev/nvidiactl").exists():
        pytest.skip("this host has no NVIDIA GPU; CI has none either")
    for mark, look in NEEDS.items():
        if item.get_closest_marker(mark) and isinstance(reason := look(), str):
            cannot_run(reason)


@pytest.fixture(scope="session")
def ledger_programs() -> LedgerPrograms:
    """Paths of the real geth and CometBFT, for tests marked `geth`."""
    found = find_ledger_programs()
    if isinstance(found, str):
        cannot_run(found)
    return found


@pytest.fixture(scope="session")
def slurm_clusters() -> Iterator[dict[str, Cluster]]:
    """The real Slurm clusters of sites alpha and beta, for tests marked `slurm`. Leave no job behind."""
    with clusters("alpha", "beta") as up:
        yield up


@pytest.fixture(scope="session")
def apptainer() -> Path:
    """The real Apptainer, for tests marked `apptainer`."""
    found = find_apptainer()
    if isinstance(found, str):
        cannot_run(found)
    return found


@pytest.fixture
def unprivileged() -> Iterator[Unprivileged]:
    """An ordinary user: this process's, or another one where this is root's."""
    if reason := find_unprivileged():
        cannot_run(reason)
    with ordinary_user() as one:
        yield one


@pytest.fixture(scope="session")
def mpiexec() -> list[str]:
    """The first words of a command that starts MPI ranks on this host, on loopback; for tests marked `mpi`."""
    found = find_mpiexec()
    if isinstance(found, str):
        cannot_run(found)
    return found


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that runs in the test's process sets up logging for a process of its own: undo that."""
    root, ours = logging.getLogger(), logging.getLogger("swarm_hpc")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


class Sites:
    """Sites alpha and beta, each with a CA, in one trust bundle; gamma has a CA too, but is in no bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cas = {site: ca.create_ca(site, TRUST_DOMAIN, folder / site) for site in ("alpha", "beta", "gamma")}
        self.bundle_file = folder / "bundle.json"
        ca.write_bundle({site: self.cas[site] for site in ("alpha", "beta")}, TRUST_DOMAIN, self.bundle_file)

    def config(self, name: str, *, dns: Sequence[str] = (), bundle: Path | None = None) -> IdentityConfig:
        """Files of a node as `swarm-hpc certs` makes them."""
        node = NodeName.parse(name)
        cert, key = ca.issue(self.folder / node.site, node, self.folder / "nodes" / node.site, dns=dns)
        return IdentityConfig(cert=str(cert), key=str(key), bundle=str(bundle or self.bundle_file))

    def identity(self, name: str, *, bundle: Path | None = None) -> certs.Identity:
        return certs.load(self.config(name, bundle=bundle))

    def bundle_of(self, *sites: str) -> Path:
        """A trust bundle of these sites only."""
        out = self.folder / f"bundle-{'-'.join(sites)}.json"
        ca.write_bundle({site: self.cas[site] for site in sites}, TRUST_DOMAIN, out)
        return out

    def forged(
        self,
        signer: str,
        *,
        uris: Sequence[str] = (),
        dns: Sequence[str] = (),
        days: tuple[float, float] = (-1, 30),
        like_hpe: bool = False,
        bundle: Path | None = None,
    ) -> IdentityConfig:
        """A certificate that `swarm-hpc certs` would not make, really signed by that site's CA."""
        ca_cert = x509.load_pem_x509_certificate((self.folder / signer / "ca.pem").read_bytes())
        ca_key = load_pem_private_key((self.folder / signer / "ca-key.pem").read_bytes(), None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
            .issuer_name(ca_cert.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )
        names = [x509.UniformResourceIdentifier(uri) for uri in uris] + [x509.DNSName(one) for one in dns]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if like_hpe:  # gen-cert sets keyCertSign although CA is FALSE
            usage = x509.KeyUsage(
                digital_signature=True,
                key_encipherment=True,
                key_cert_sign=True,
                content_commitment=False,
                data_encipherment=False,
                key_agreement=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            )
            builder = builder.add_extension(usage, critical=False)
        number = len(list(self.folder.glob("forged-*.pem")))
        cert_file, key_file = self.folder / f"forged-{number}-cert.pem", self.folder / f"forged-{number}-key.pem"
        cert_file.write_bytes(builder.sign(ca_key, SHA256()).public_bytes(Encoding.PEM))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key_file.chmod(0o600)
        return IdentityConfig(cert=str(cert_file), key=str(key_file), bundle=str(bundle or self.bundle_file))

    def unchecked(self, config: IdentityConfig, name: str) -> certs.Identity:
        """An identity without the checks of `certs.load`: an attacker, or a node whose bundle differs, has none."""
        bundle = TrustBundle.load(Path(config.bundle))
        pem = Path(config.key).read_bytes() + Path(config.cert).read_bytes()
        pair = certs.ContextPair(pem, bundle, strict=config.strict_x509)
        return certs.Identity(NodeName.parse(name), bundle, datetime.now(UTC), pair)

    @staticmethod
    def lenient(config: IdentityConfig) -> IdentityConfig:
        return replace(config, strict_x509=False)


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    folder = tmp_path / "sites"
    folder.mkdir()
    return Sites(folder)
