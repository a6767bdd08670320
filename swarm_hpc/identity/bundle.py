"""The trust bundle: whose CA may vouch for which site, and the name that a verified certificate chain stands for.

Pure: certificates in, names out. handshake.py asks it inside each TLS handshake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from swarm_hpc.durable import write
from swarm_hpc.errors import CertificateMissing, CertificateUntrusted, ConfigError, WrongSite
from swarm_hpc.records import LABEL, NodeName

TRUST_DOMAIN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,254}")
"""What a trust domain may be called (SPIFFE ID, section 2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The CAs of all sites, each tied to its own site's names (protocol.md 1).

    A site's CA may stand under a company CA, but must not be one that also vouches for another site's CA: two sites
    with one CA, or with one CA above the other's, are a ConfigError.
    """

    trust_domain: str
    authorities: Mapping[str, bytes]
    """Site -> its CA certificate(s), PEM."""
    _site_of: dict[bytes, str] = field(init=False, repr=False, compare=False, default_factory=dict)
    _site_of_key: dict[bytes, str] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise ConfigError(f"trust domain {self.trust_domain!r}: use lower-case letters, digits, '.', '_', '-'")
        found: list[tuple[str, x509.Certificate]] = []
        for site, pem in self.authorities.items():
            if not LABEL.fullmatch(site):
                raise ConfigError(f"site {site!r}: use letters, digits, '.', '_', '-', at most 63")
            for ca in certificates(pem, f"the CA of site {site}"):
                key = _key(ca)
                if (other := self._site_of_key.setdefault(key, site)) != site:
                    raise ConfigError(f"sites {other} and {site} have the same CA: each site needs its own")
                self._site_of[ca.public_bytes(Encoding.DER)] = site
                found.append((site, ca))
        _check_independent(found)

    @classmethod
    def load(cls, path: Path) -> TrustBundle:
        """The bundle in a JSON file; CertificateMissing or ConfigError names the file and the remedy."""
        remedy = "make it with `swarm-hpc certs bundle SITE=CA.pem ... --out FILE`"
        try:
            text = path.read_bytes()
        except OSError as exc:
            raise CertificateMissing(f"trust bundle {path}: {exc.strerror}; {remedy}") from exc
        try:
            values = json.loads(text)
            sites = {site: entry["ca"].encode() for site, entry in values["sites"].items()}
            trust_domain = str(values["trust_domain"])
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise CertificateMissing(f"trust bundle {path}: holds no trust bundle; {remedy}") from exc
        try:
            return cls(trust_domain=trust_domain, authorities=sites)
        except (ConfigError, CertificateMissing) as exc:
            raise type(exc)(f"trust bundle {path}: {exc}") from exc

    def save(self, path: Path) -> None:
        """Write the JSON file beside `path`, then rename it there."""
        sites = {site: {"ca": pem.decode()} for site, pem in sorted(self.authorities.items())}
        write(path, json.dumps({"trust_domain": self.trust_domain, "sites": sites}, indent=1).encode() + b"\n")

    def site_of(self, ca_der: bytes) -> str | None:
        """The site that this very CA certificate belongs to; None if it is nobody's."""
        return self._site_of.get(ca_der)

    def authorities_der(self) -> bytes:
        """All CA certificates in one, as `SSLContext.load_verify_locations(cadata=...)` takes them."""
        return b"".join(self._site_of)

    def fingerprint(self, site: str) -> str:
        """SHA-256 of the site's first CA certificate, 64 hex digits; CertificateUntrusted for an unknown site."""
        if site not in self.authorities:
            raise CertificateUntrusted(f"the trust bundle has no CA for site {site}")
        return fingerprint(certificates(self.authorities[site], site)[0])

    def name_of(self, chain: Sequence[bytes]) -> NodeName:
        """The node that a verified chain (DER, leaf first, trust anchor last) stands for.

        Verification alone is not enough: all sites' CAs lie in one store, so B's CA could sign a name of site A.
        CertificateUntrusted: no usable name, or no CA of the bundle. WrongSite: the CA is another site's.
        """
        anchor = self.site_of(chain[-1]) if len(chain) > 1 else None
        if anchor is None:
            raise CertificateUntrusted("the certificate chain does not end in a CA of the trust bundle")
        between = [x509.load_der_x509_certificate(der) for der in chain[1:-1]]
        if not all(map(is_authority, between)):
            raise CertificateUntrusted("the certificate was signed by one that is no CA")
        # By key: a company CA may have given a site's CA a second certificate, which lies in no bundle.
        sites = {anchor} | {self._site_of_key[key] for key in map(_key, between) if key in self._site_of_key}
        if sites != {anchor}:
            raise WrongSite(f"the certificate chain runs through CAs of several sites: {', '.join(sorted(sites))}")
        return self._checked(x509.load_der_x509_certificate(chain[0]), anchor)

    def _checked(self, leaf: x509.Certificate, anchor: str) -> NodeName:
        uris, dns = alternative_names(leaf)
        if not uris:
            return _from_dns(dns, anchor)
        name = self._from_uri(uris)
        if name.site != anchor:
            raise WrongSite(f"{uris[0]} was signed by the CA of site {anchor}, which vouches for its own names only")
        return name

    def _from_uri(self, uris: Sequence[str]) -> NodeName:
        if len(uris) != 1:
            raise CertificateUntrusted(f"the certificate has {len(uris)} URI names; a node has exactly one")
        scheme, _, rest = uris[0].partition("://")
        domain, _, path = rest.partition("/")
        if scheme != "spiffe" or domain != self.trust_domain:
            raise CertificateUntrusted(f"{uris[0]} lies outside the trust domain spiffe://{self.trust_domain}")
        try:
            return NodeName.parse(path)
        except ValueError as exc:
            raise CertificateUntrusted(f"{uris[0]} names no node: {exc}") from exc


def spiffe_id(trust_domain: str, name: NodeName) -> str:
    """A node's name as the URI that its certificate carries."""
    return f"spiffe://{trust_domain}/{name}"


def alternative_names(cert: x509.Certificate) -> tuple[list[str], list[str]]:
    """The URI and the DNS names of a certificate; CertificateUntrusted if they cannot be read."""
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    except ValueError as exc:
        raise CertificateUntrusted(f"the certificate's names cannot be read: {exc}") from exc
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris, names.get_values_for_type(x509.DNSName)


def is_authority(cert: x509.Certificate) -> bool:
    """Whether the certificate says that it is a CA's. OpenSSL takes some for a CA's that do not (no strict_x509)."""
    try:
        return cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _key(cert: x509.Certificate) -> bytes:
    return cert.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_independent(authorities: Sequence[tuple[str, x509.Certificate]]) -> None:
    """No site's CA may have signed another site's: it could vouch for whatever lies below that as its own."""
    for above, upper in authorities:
        for below, lower in authorities:
            if above != below and lower.issuer == upper.subject and _has_signed(upper, lower):
                raise ConfigError(
                    f"the CA of site {above} has signed the CA of site {below}: give {above} a CA of its own below that"
                )


def _has_signed(upper: x509.Certificate, lower: x509.Certificate) -> bool:
    try:
        lower.verify_directly_issued_by(upper)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _from_dns(names: Sequence[str], site: str) -> NodeName:
    """`sl-1.alpha.example` signed by site alpha's CA is alpha/sl/1 (HPE's certificates have such names)."""
    found: set[NodeName] = set()
    for dns in names:
        kind, _, label = dns.split(".")[0].partition("-")
        try:
            found.add(NodeName.parse(f"{site}/{kind.lower()}/{label}"))
        except ValueError:
            continue  # a certificate may carry host names as well
    if len(found) != 1:
        raise CertificateUntrusted(
            f"the certificate names {len(found)} nodes ({', '.join(names) or 'no alternative names'}): it needs one"
            " URI name spiffe://<trust domain>/<site>/<kind>/<name>, or one DNS name whose first label is <kind>-<name>"
        )
    return found.pop()


def certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    """All certificates of a PEM text; CertificateMissing names `what` when there is none."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as exc:
        raise CertificateMissing(f"{what}: holds no PEM certificate") from exc


def fingerprint(cert: x509.Certificate) -> str:
    """SHA-256 of the certificate, 64 hex digits."""
    return cert.fingerprint(SHA256()).hex()
