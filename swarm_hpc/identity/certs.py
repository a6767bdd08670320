"""Who this node is: certificate, key and trust bundle from files, verified in advance, and TLS contexts of them."""

from __future__ import annotations

import logging
import os
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from swarm_hpc.config import IdentityConfig
from swarm_hpc.errors import (
    CertificateExpired,
    CertificateMissing,
    CertificateUntrusted,
    ConfigError,
    KeyMismatch,
    NotAuthorized,
)
from swarm_hpc.identity.bundle import TrustBundle, alternative_names, certificates
from swarm_hpc.identity.handshake import (
    HTTP,
    P2P,
    Authorize,
    CheckedObject,
    CheckedSocket,
    NodeContext,
    Refused,
    loaded,
)
from swarm_hpc.records import Kind, NodeName

__all__ = ["Authorize", "Identity", "TrustBundle", "load", "peer_name"]

log = logging.getLogger(__name__)

_FLIGHTS: Final = 8
"""More than a TLS handshake has."""


class Identity:
    """Who we are. Ask it for a context; each connection made with that takes the newest certificate."""

    def __init__(self, name: NodeName, bundle: TrustBundle, expires_at: datetime, pair: ContextPair) -> None:
        self.name = name
        self.bundle = bundle
        self.expires_at = expires_at
        """When our own certificate ends (UTC)."""
        self._pair = pair

    def __repr__(self) -> str:
        return f"Identity({self.name}, expires_at={self.expires_at:%Y-%m-%dT%H:%M:%SZ})"

    def server_context(self, authorize: Authorize) -> NodeContext:
        """A context to accept connections with: TLS 1.3, either ALPN. Peers are checked inside the handshake."""
        return self._context(ssl.PROTOCOL_TLS_SERVER, lambda: self._pair.server, authorize)

    def client_context(self, authorize: Authorize, alpn: str = HTTP) -> NodeContext:
        """A context to connect with, for asyncio and for blocking sockets; `alpn` is HTTP or P2P.

        A server that does not know the protocol goes on without one: whoever asks for P2P looks at what was selected.
        """
        return self._context(ssl.PROTOCOL_TLS_CLIENT, lambda: self._pair.clients[alpn], authorize)

    def _context(self, protocol: int, newest: Callable[[], ssl.SSLContext], authorize: Authorize) -> NodeContext:
        return NodeContext(protocol, newest, self.bundle, self.name, authorize)


class ContextPair:
    """The loaded contexts of one certificate: new ones on rotation, since a context only ever gains authorities."""

    def __init__(self, cert_and_key: bytes, bundle: TrustBundle, *, strict: bool) -> None:
        # load_cert_chain wants a path; a memfd names no place on a disk, and holds the very bytes that were checked.
        fd = os.memfd_create("swarm-identity", os.MFD_CLOEXEC)
        try:
            os.write(fd, cert_and_key)
            path = f"/proc/self/fd/{fd}"
            self.server = loaded(ssl.PROTOCOL_TLS_SERVER, path, bundle, strict=strict, alpn=(HTTP, P2P))
            self.clients = {
                alpn: loaded(ssl.PROTOCOL_TLS_CLIENT, path, bundle, strict=strict, alpn=(alpn,)) for alpn in (HTTP, P2P)
            }
        finally:
            os.close(fd)


def load(config: IdentityConfig) -> Identity:
    """The identity in the configured files, verified as any peer with the same bundle would verify it.

    CertificateMissing, CertificateExpired, KeyMismatch, CertificateUntrusted, WrongSite: each names file and remedy.
    """
    bundle = TrustBundle.load(Path(config.bundle))
    if not bundle.authorities:
        raise CertificateMissing(f"trust bundle {config.bundle}: has no site; add them with `swarm-hpc certs bundle`")
    cert_pem, key_pem = _read(config.cert, "certificate"), _read(config.key, "private key")
    leaf = certificates(cert_pem, f"certificate {config.cert}")[0]
    _check_validity(leaf, config.cert)
    _check_key(leaf, key_pem, config)
    _warn_if_readable(config.key)
    try:
        pair = ContextPair(key_pem + b"\n" + cert_pem, bundle, strict=config.strict_x509)
    except ssl.SSLError as exc:
        raise CertificateUntrusted(f"certificate {config.cert}: {exc.reason or exc}; {_remedy(leaf)}") from exc
    name = _rehearse(pair, bundle, leaf, config)
    return Identity(name, bundle, leaf.not_valid_after_utc, pair)


def load_as(config: IdentityConfig, kind: Kind, who: str) -> Identity:
    """As `load`, for a node that has to be of that kind; errors call it `who`. ConfigError: it is of another one."""
    identity = load(config)
    if identity.name.kind is not kind:
        raise ConfigError(
            f"identity.cert: {config.cert} names {identity.name}, a node of kind {identity.name.kind}; {who} needs a "
            f"certificate of kind {kind}: `swarm-hpc certs issue {identity.name.site}/{kind}/NAME`"
        )
    return identity


def peer_name(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> NodeName:
    """The peer of a finished handshake; NotAuthorized if nobody checked it."""
    if isinstance(ssl_object, CheckedObject | CheckedSocket) and ssl_object.peer is not None:
        return ssl_object.peer
    raise NotAuthorized("the connection has no checked peer")


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise CertificateMissing(
            f"{what} {path}: {exc.strerror}; make it with `swarm-hpc certs issue SITE/KIND/NAME --ca DIR`"
        ) from exc


def _check_validity(leaf: x509.Certificate, path: str) -> None:
    now = datetime.now(UTC)
    if now > leaf.not_valid_after_utc:
        raise CertificateExpired(f"certificate {path}: expired on {leaf.not_valid_after_utc:%Y-%m-%d}; {_remedy(leaf)}")
    if now < leaf.not_valid_before_utc:
        raise CertificateExpired(
            f"certificate {path}: not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; check the clock here"
        )


def _check_key(leaf: x509.Certificate, key_pem: bytes, config: IdentityConfig) -> None:
    try:
        key = load_pem_private_key(key_pem, password=None)
    except TypeError as exc:
        raise CertificateMissing(
            f"private key {config.key}: is encrypted; decrypt it with `openssl pkey -in {config.key} -out FILE`"
        ) from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise CertificateMissing(f"private key {config.key}: holds no PEM private key; {_remedy(leaf)}") from exc
    ours, theirs = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (key.public_key(), leaf.public_key())
    )
    if ours != theirs:
        raise KeyMismatch(f"private key {config.key}: does not belong to certificate {config.cert}; {_remedy(leaf)}")


def _warn_if_readable(path: str) -> None:
    mode = stat.S_IMODE(Path(path).stat().st_mode)
    if mode & 0o077:
        log.warning("private key %s: others can read it (mode %o); run `chmod 600 %s`", path, mode, path)


def _rehearse(pair: ContextPair, bundle: TrustBundle, leaf: x509.Certificate, config: IdentityConfig) -> NodeName:
    """Shake hands with ourselves in memory: chain, purposes, strictness and name, exactly as a peer will check them."""
    names: list[NodeName] = []
    server = NodeContext(ssl.PROTOCOL_TLS_SERVER, lambda: pair.server, bundle, None, names.append)
    client = NodeContext(ssl.PROTOCOL_TLS_CLIENT, lambda: pair.clients[HTTP], bundle, None, names.append)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    try:
        for _ in range(_FLIGHTS):
            waiting = [side for side in waiting if not _finished(side)]
    except Refused as exc:
        raise type(exc.error)(f"certificate {config.cert}: {exc}; {_remedy(leaf)}") from exc
    except ssl.SSLError as exc:
        raise CertificateUntrusted(f"certificate {config.cert}: {exc.reason or exc}; {_remedy(leaf)}") from exc
    assert not waiting and names[0] == names[1], "a handshake in memory ends within a few flights"
    return names[0]


def _finished(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _remedy(leaf: x509.Certificate) -> str:
    uris, _ = alternative_names(leaf)
    name = "SITE/KIND/NAME"
    if len(uris) == 1 and uris[0].startswith("spiffe://"):
        name = uris[0].removeprefix("spiffe://").partition("/")[2] or name
    return f"make a new one with `swarm-hpc certs issue {name} --ca DIR`, where DIR holds that site's CA"
