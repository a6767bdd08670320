"""What `swarm-hpc certs` does: makes a site's CA, node certificates and trust bundles as files, and describes them.

What it makes is EC P-256. A folder holds one CA: ca.pem and ca-key.pem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarm_hpc.durable import write
from swarm_hpc.errors import CertificateExpired, CertificateMissing, CertificateUntrusted, ConfigError, WrongSite
from swarm_hpc.identity.bundle import (
    TRUST_DOMAIN,
    TrustBundle,
    alternative_names,
    certificates,
    fingerprint,
    is_authority,
    spiffe_id,
)
from swarm_hpc.records import LABEL, NodeName

CA_DAYS: Final = 3650
NODE_DAYS: Final = 365
MAX_DAYS: Final = 36500
_CLOCK_SKEW: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRow:
    """What `swarm-hpc certs show` prints of one certificate; times are UTC."""

    subject: str
    names: tuple[str, ...]
    site: str
    """In a trust bundle: the site that the CA belongs to. Elsewhere the site in its SPIFFE ID, or empty."""
    issuer: str
    valid_from: datetime
    valid_to: datetime
    fingerprint: str
    """SHA-256, 64 hex digits."""


def create_ca(site: str, trust_domain: str, folder: Path, *, days: int = CA_DAYS) -> Path:
    """Make a site's CA in `folder`: ca.pem (returned) and ca-key.pem, mode 0600. ConfigError where one is already."""
    if not LABEL.fullmatch(site):
        raise ConfigError(f"site {site!r}: use letters, digits, '.', '_', '-', at most 63")
    if not TRUST_DOMAIN.fullmatch(trust_domain):
        raise ConfigError(f"trust domain {trust_domain!r}: use lower-case letters, digits, '.', '_', '-'")
    _check_days(days)
    cert_path, key_path = folder / "ca.pem", folder / "ca-key.pem"
    for path in (cert_path, key_path):
        if path.exists():
            raise ConfigError(
                f"{path}: exists already; a new CA makes the old one's certificates worthless: choose another folder"
            )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(site, f"{site} CA")
    builder = _builder(subject, subject, key.public_key(), days, None)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(sign_certificates=True), critical=True)
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}/{site}")]), critical=False
    )
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_key(key_path, key)
    write(cert_path, builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    return cert_path


def issue(
    ca_folder: Path,
    name: NodeName,
    folder: Path,
    *,
    days: int = NODE_DAYS,
    dns: Sequence[str] = (),
    trust_domain: str | None = None,
) -> tuple[Path, Path]:
    """Make a key and a certificate for a node: (folder/<kind>-<name>.pem, folder/<kind>-<name>-key.pem).

    A repeat makes a new pair in the place of the old one. WrongSite if the CA is another site's. `trust_domain` is
    needed only for a CA that was not made by `create_ca` and does not say its own.
    """
    _check_days(days)
    ca, ca_key = _load_ca(ca_folder)
    domain, site = _speaks_for(ca)
    if site and site != name.site:
        raise WrongSite(f"{ca_folder}: is the CA of site {site}; {name} needs the CA of site {name.site}")
    domain = domain or trust_domain or ""
    if not domain:
        raise ConfigError(f"{ca_folder}: the CA does not say its trust domain; name it with --trust-domain")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_subject(name.site, str(name)), ca.subject, key.public_key(), days, ca.not_valid_after_utc)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(sign_certificates=False), critical=True)
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(domain, name))]
    names.extend(_dns_name(one) for one in dns)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(_issuer_key(ca), critical=False)
    folder.mkdir(parents=True, exist_ok=True)
    cert_path, key_path = folder / f"{name.kind}-{name.name}.pem", folder / f"{name.kind}-{name.name}-key.pem"
    _write_key(key_path, key)
    write(cert_path, builder.sign(ca_key, SHA256()).public_bytes(Encoding.PEM))
    return cert_path, key_path


def write_bundle(cas: Mapping[str, Path], trust_domain: str, out: Path) -> TrustBundle:
    """Write the trust bundle of these CA files (site -> PEM file). WrongSite if a CA says that it is another site's."""
    pems: dict[str, bytes] = {}
    for site, path in cas.items():
        found = certificates(_read(path), str(path))
        for ca in found:
            _check_authority(ca, site, trust_domain, path)
        pems[site] = b"".join(ca.public_bytes(Encoding.PEM) for ca in found)
    bundle = TrustBundle(trust_domain=trust_domain, authorities=pems)
    out.parent.mkdir(parents=True, exist_ok=True)
    bundle.save(out)
    return bundle


def describe(path: Path) -> tuple[CertificateRow, ...]:
    """The certificates in a PEM file or a trust bundle, in order. CertificateMissing if it holds none."""
    data = _read(path)
    if data.lstrip().startswith(b"{"):
        bundle = TrustBundle.load(path)
        return tuple(
            _row(cert, site) for site, pem in bundle.authorities.items() for cert in certificates(pem, str(path))
        )
    if b"CERTIFICATE" not in data and b"PRIVATE KEY" in data:
        raise CertificateMissing(f"{path}: holds a private key; name the certificate that belongs to it")
    return tuple(_row(cert, _speaks_for(cert)[1]) for cert in certificates(data, str(path)))


def _row(cert: x509.Certificate, site: str) -> CertificateRow:
    uris, dns = alternative_names(cert)
    return CertificateRow(
        subject=cert.subject.rfc4514_string(),
        names=(*uris, *dns),
        site=site,
        issuer=cert.issuer.rfc4514_string(),
        valid_from=cert.not_valid_before_utc,
        valid_to=cert.not_valid_after_utc,
        fingerprint=fingerprint(cert),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CertificateMissing(f"{path}: {exc.strerror}") from exc


def _load_ca(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]:
    remedy = "make a CA with `swarm-hpc certs ca SITE --out DIR`"
    for path in (folder / "ca.pem", folder / "ca-key.pem"):
        if not path.is_file():
            raise CertificateMissing(f"{path}: no such file; {remedy}")
    ca = certificates(_read(folder / "ca.pem"), str(folder / "ca.pem"))[0]
    if ca.not_valid_after_utc <= datetime.now(UTC):
        raise CertificateExpired(
            f"{folder / 'ca.pem'}: the CA has expired on {ca.not_valid_after_utc:%Y-%m-%d}; make a new one with "
            "`swarm-hpc certs ca SITE --out DIR`, and a bundle with it for all sites"
        )
    try:
        key = load_pem_private_key(_read(folder / "ca-key.pem"), password=None)
    except (ValueError, TypeError) as exc:
        raise CertificateMissing(f"{folder / 'ca-key.pem'}: holds no unencrypted PEM private key; {remedy}") from exc
    if key.public_key() != ca.public_key():
        raise CertificateUntrusted(f"{folder / 'ca-key.pem'}: does not belong to {folder / 'ca.pem'}; {remedy}")
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise CertificateMissing(f"{folder / 'ca-key.pem'}: a CA key must be EC or RSA; {remedy}")
    return ca, key


def _check_days(days: int) -> None:
    if not 1 <= days <= MAX_DAYS:
        raise ConfigError(f"days: {days} must be from 1 to {MAX_DAYS}")


def _check_authority(ca: x509.Certificate, site: str, trust_domain: str, path: Path) -> None:
    domain, said = _speaks_for(ca)
    if said and said != site:
        raise WrongSite(f"{path}: is the CA of site {said}, not of {site}")
    if domain and domain != trust_domain:
        raise ConfigError(f"{path}: belongs to trust domain {domain}, not {trust_domain}; name it with --trust-domain")
    if not is_authority(ca):
        raise CertificateUntrusted(f"{path}: is no CA certificate ({ca.subject.rfc4514_string()}); name a ca.pem")


def _speaks_for(cert: x509.Certificate) -> tuple[str, str]:
    """(trust domain, site) of the certificate's SPIFFE ID; empty where it has none."""
    uris, _ = alternative_names(cert)
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        return "", ""
    domain, _, path = uris[0].removeprefix("spiffe://").partition("/")
    return domain, path.partition("/")[0]


def _subject(organisation: str, common_name: str) -> x509.Name:
    # A common name has at most 64 characters (RFC 5280, upper bounds); the URI name is the one that counts.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int, latest: datetime | None
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    until = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(min(until, latest) if latest else until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer_key(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The issuer's own identifier, which a company CA may have computed in another way than we would."""
    try:
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        public_key = ca.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey), "as its private key is"
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _dns_name(text: str) -> x509.DNSName:
    try:
        return x509.DNSName(text)
    except ValueError as exc:
        raise ConfigError(f"DNS name {text!r}: {exc}") from exc


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
