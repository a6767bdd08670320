"""Chains of certificates that a company CA, or an attacker, can make: which of them stand for a node."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from swarm_hpc.config import IdentityConfig
from swarm_hpc.errors import CertificateExpired, CertificateMissing, CertificateUntrusted, ConfigError, WrongSite
from swarm_hpc.identity import certs
from swarm_hpc.records import NodeName

ALPHA = "spiffe://swarm.test/alpha/sl/sl-1"


@dataclass
class Pair:
    """A certificate with its key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.cert.public_bytes(Encoding.PEM)


def make(
    name: str,
    signer: Pair | None = None,
    *,
    uri: str | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
    is_ca: bool | None = True,
    path_length: int | None = None,
    days: int = 30,
    constraints: x509.NameConstraints | None = None,
) -> Pair:
    """A certificate, self-signed without a signer; `is_ca` None leaves the basic constraints out."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signs = is_ca is not False
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.cert.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((signer.key if signer else key).public_key()), False
        )
        .add_extension(x509.KeyUsage(not signs, False, False, False, False, signs, signs, False, False), critical=True)
    )
    if is_ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(is_ca, path_length if is_ca else None), critical=True)
    if uri:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), False)
    if constraints:
        builder = builder.add_extension(constraints, critical=True)
    return Pair(builder.sign(signer.key if signer else key, SHA256()), key)


def leaf(signer: Pair, uri: str = ALPHA) -> Pair:
    return make("leaf", signer, uri=uri, is_ca=False)


@pytest.fixture
def load(tmp_path):
    """Loads an identity, which shakes hands with itself as a peer with the same bundle would."""

    def run(node: Pair, *between: Pair, strict: bool = True, **sites: Pair) -> certs.Identity:
        bundle = tmp_path / "bundle.json"
        entries = {site: {"ca": pair.pem.decode()} for site, pair in sites.items()}
        bundle.write_text(json.dumps({"trust_domain": "swarm.test", "sites": entries}))
        (tmp_path / "cert.pem").write_bytes(b"".join(pair.pem for pair in (node, *between)))
        key = tmp_path / "key.pem"
        key.write_bytes(node.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key.chmod(0o600)
        return certs.load(
            IdentityConfig(cert=str(tmp_path / "cert.pem"), key=str(key), bundle=str(bundle), strict_x509=strict)
        )

    return run


def test_sites_whose_cas_stand_under_one_company_ca_vouch_each_for_their_own(load):
    company = make("company")
    alpha, beta = make("alpha", company), make("beta", company)
    assert load(leaf(alpha), alpha=alpha, beta=beta).name == NodeName.parse("alpha/sl/sl-1")
    with pytest.raises(WrongSite, match="signed by the CA of site beta"):
        load(leaf(beta), beta, company, alpha=alpha, beta=beta)
    with pytest.raises(CertificateUntrusted):
        load(leaf(company), company, alpha=alpha, beta=beta)


def test_a_sites_own_ca_may_have_cas_below(load):
    alpha = make("alpha")
    below = make("department", alpha)
    assert load(leaf(below), below, alpha=alpha).name == NodeName.parse("alpha/sl/sl-1")


def test_the_ca_that_signed_another_sites_ca_cannot_be_a_sites_own(load):
    company = make("company")
    beta = make("beta", company)
    with pytest.raises(ConfigError, match="the CA of site alpha has signed the CA of site beta"):
        load(leaf(company), alpha=company, beta=beta)


def test_a_second_certificate_for_another_sites_ca_does_not_open_a_way_round(load):
    """Alpha trusts its company CA, which has certified beta's key under another name; that one is in no bundle."""
    company, beta = make("company"), make("beta")
    crossed = make("beta as well", company, key=beta.key)
    with pytest.raises(WrongSite, match="several sites: alpha, beta"):
        load(leaf(crossed), crossed, alpha=company, beta=beta)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("is_ca", [False, None])
def test_a_nodes_certificate_signs_no_other(load, strict, is_ca):
    """Without basic constraints, but with the usage to sign, OpenSSL takes a certificate for a CA's when not strict."""
    alpha = make("alpha")
    node = make("node", alpha, uri="spiffe://swarm.test/alpha/sl/sl-2", is_ca=is_ca)
    with pytest.raises(CertificateUntrusted):
        load(leaf(node), node, alpha=alpha, strict=strict)


def test_a_nodes_certificate_in_the_bundle_is_no_ca(load):
    alpha = make("alpha")
    node = leaf(alpha)
    with pytest.raises(CertificateUntrusted):
        load(node, alpha=node)


def test_an_expired_ca_vouches_for_nobody(load):
    alpha = make("alpha", days=-1)
    with pytest.raises(CertificateExpired):
        load(leaf(alpha), alpha=alpha)


def test_a_cas_path_length_holds(load):
    alpha = make("alpha", path_length=0)
    below = make("department", alpha)
    with pytest.raises(CertificateUntrusted, match=r"(?i)path.?length"):
        load(leaf(below), below, alpha=alpha)


def test_a_cas_name_constraints_hold(load):
    alpha = make("alpha")
    other = x509.NameConstraints([x509.UniformResourceIdentifier("elsewhere.test")], None)
    below = make("department", alpha, constraints=other)
    with pytest.raises(CertificateUntrusted):
        load(leaf(below), below, alpha=alpha)


def test_a_bundle_without_sites_is_named(load):
    with pytest.raises(CertificateMissing, match=r"bundle\.json: has no site"):
        load(leaf(make("alpha")))


def test_neither_repr_nor_errors_show_the_key(load, tmp_path):
    alpha = make("alpha")
    identity = load(leaf(alpha), alpha=alpha)
    file = tmp_path / "key.pem"
    secret = file.read_text().splitlines()[2]  # the first line is the same for all keys
    file.write_text(file.read_text().replace(secret, secret[:-8] + "!!!!!!!!"))
    files = IdentityConfig(
        cert=str(tmp_path / "cert.pem"), key=str(file), bundle=str(tmp_path / "bundle.json"), strict_x509=True
    )
    with pytest.raises(CertificateMissing, match="holds no PEM private key") as caught:
        certs.load(files)
    shown = [repr(identity), repr(vars(identity)), repr(files), str(caught.value), repr(caught.value.__cause__)]
    assert not any(secret[:16] in text for text in shown)
