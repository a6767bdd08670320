"""TLS handshakes that check the peer's name before any application byte, for asyncio and for blocking sockets.

`NodeContext` is what a server or client holds; each connection goes on in the newest loaded context. A failure is a
`Refused`, an SSLError (so that asyncio and aiohttp treat it as one) that carries one of our own errors.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

from swarm_hpc.errors import (
    CertificateExpired,
    CertificateMissing,
    CertificateUntrusted,
    IdentityError,
    NotAuthorized,
)
from swarm_hpc.identity.bundle import TrustBundle
from swarm_hpc.records import NodeName

Authorize = Callable[[NodeName], None]
"""Raises NotAuthorized for a peer that must not connect; called inside the handshake."""

HTTP: Final = "http/1.1"
P2P: Final = "swarm-p2p"
"""ALPN: what a connection is for. A server takes either, a client asks for one of them."""

_DER: Final = 2  # _ssl.ENCODING_DER
_AGAIN: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
_EXPIRED, _NOT_YET_VALID = 10, 9
_NO_ISSUER: Final = frozenset({18, 19, 20, 21})  # self-signed, or the issuer is not in the store
_ALERT: Final = re.compile(r"ALERT_(\w+)")
_REFUSING_ALERTS: Final = frozenset(
    {
        "UNKNOWN_CA",
        "BAD_CERTIFICATE",
        "UNSUPPORTED_CERTIFICATE",
        "CERTIFICATE_REVOKED",
        "CERTIFICATE_EXPIRED",
        "CERTIFICATE_UNKNOWN",
        "CERTIFICATE_REQUIRED",
        "ACCESS_DENIED",
        "DECRYPT_ERROR",
        "HANDSHAKE_FAILURE",
        "PROTOCOL_VERSION",
    }
)
"""Alerts (RFC 8446, 6.2) that a repetition would meet again. Others, such as internal_error, may pass."""


class Refused(ssl.SSLError):
    """One side did not accept the other's certificate. `error` says so in our own words."""

    def __init__(self, error: IdentityError) -> None:
        super().__init__(ssl.SSL_ERROR_SSL, str(error))
        self.error = error

    def __str__(self) -> str:
        return str(self.error)


def refusal(exc: BaseException | None) -> IdentityError | None:
    """Our own error inside whatever asyncio, aiohttp or http.client made of a Refused."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        if isinstance(exc, Refused):
            return exc.error
        seen.add(id(exc))
        exc = exc.__cause__ or exc.__context__
    return None


class NodeContext(ssl.SSLContext):
    """A context for a server's or client's whole life: each connection takes the newest certificate from `newest`.

    It holds no certificate and trusts nobody itself, so that any use other than wrap_bio and wrap_socket fails closed.
    """

    def __init__(
        self,
        protocol: int,
        newest: Callable[[], ssl.SSLContext],
        bundle: TrustBundle,
        ours: NodeName | None,
        authorize: Authorize,
    ) -> None:
        self.check_hostname = False
        self.verify_mode = ssl.CERT_REQUIRED
        self.minimum_version = ssl.TLSVersion.TLSv1_3
        self.refused: IdentityError | None = None
        """Why the last handshake failed. A server asks for one NodeContext per connection."""
        self._newest, self._bundle, self._ours, self._authorize = newest, bundle, ours, authorize

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As SSLContext.wrap_bio, in the newest context."""
        name = server_hostname.decode() if isinstance(server_hostname, bytes) else server_hostname
        tls = self._newest().wrap_bio(incoming, outgoing, server_side, name)
        assert isinstance(tls, CheckedObject)
        tls.owner = self
        return tls

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """As SSLContext.wrap_socket, in the newest context; `sock` must be connected."""
        name = server_hostname.decode() if isinstance(server_hostname, bytes) else server_hostname
        tls = self._newest().wrap_socket(
            sock,
            server_side,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=suppress_ragged_eofs,
            server_hostname=name,
        )
        assert isinstance(tls, CheckedSocket)
        tls.owner = self
        if do_handshake_on_connect:
            try:
                tls.do_handshake()
            except BaseException:
                tls.close()
                raise
        return tls

    def check(self, tls: CheckedObject | CheckedSocket) -> NodeName:
        """The peer of a handshake that OpenSSL has accepted; Refused for a name that is not its CA's or not wanted."""
        try:
            name = self._bundle.name_of(verified_chain(tls))
            self._authorize(name)
        except IdentityError as exc:
            self.refused = exc
            raise Refused(exc) from exc
        return name

    def failed(self, exc: ssl.SSLError) -> ssl.SSLError:
        """A failed handshake, or a first read that met an alert, as Refused where it is a refusal."""
        error = _translated(exc, self._ours)
        if error is None:
            return exc
        self.refused = error
        return Refused(error)


class CheckedObject(ssl.SSLObject):
    """asyncio's side: the handshake is over only when the peer's name has been accepted."""

    owner: NodeContext | None = None
    peer: NodeName | None = None
    _heard = False
    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """As SSLObject.do_handshake, then the check; Refused instead of SSLError where a certificate is the reason."""
        owner = _owner(self)
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except _AGAIN:
            raise
        except ssl.SSLError as exc:
            self._failure = owner.failed(exc)
            if self.server_side and _alert(exc) is None:
                # asyncio drops what is still to be sent when a handshake fails, and with it the alert that tells the
                # client why. It does send when the handshake wants to read; the client then closes the connection.
                raise ssl.SSLWantReadError(str(self._failure)) from exc
            raise self._failure from exc
        self.peer = owner.check(self)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """As SSLObject.read. With TLS 1.3 a client learns of the server's refusal only here."""
        try:
            got = super().read(len, buffer)
        except _AGAIN:
            raise
        except ssl.SSLError as exc:
            if self._heard:
                raise
            raise _owner(self).failed(exc) from exc
        self._heard = True
        return got


class CheckedSocket(ssl.SSLSocket):
    """The blocking side of the same."""

    owner: NodeContext | None = None
    peer: NodeName | None = None
    _heard = False

    def do_handshake(self, block: bool = False) -> None:
        """As SSLSocket.do_handshake, then the check."""
        owner = _owner(self)
        try:
            super().do_handshake(block)
        except _AGAIN:
            raise
        except ssl.SSLError as exc:
            raise owner.failed(exc) from exc
        self.peer = owner.check(self)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """As SSLSocket.read. With TLS 1.3 a client learns of the server's refusal only here."""
        try:
            got = super().read(len, buffer)
        except _AGAIN:
            raise
        except ssl.SSLError as exc:
            if self._heard:
                raise
            raise _owner(self).failed(exc) from exc
        self._heard = True
        return got


def loaded(
    protocol: int, cert_and_key: str, bundle: TrustBundle, *, strict: bool, alpn: Sequence[str]
) -> ssl.SSLContext:
    """A context that shows the certificate in the PEM file `cert_and_key` and verifies peers against the bundle."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the SPIFFE ID is the name
    context.verify_mode = ssl.CERT_REQUIRED
    # A site's CA may be an intermediate of a company CA that the bundle does not hold.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if strict:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_TICKET  # a resumed session would outlive its certificate
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    context.set_alpn_protocols(alpn)
    context.load_cert_chain(cert_and_key)
    context.load_verify_locations(cadata=bundle.authorities_der())
    context.sslobject_class = CheckedObject
    context.sslsocket_class = CheckedSocket
    return context


def verified_chain(tls: ssl.SSLObject | ssl.SSLSocket) -> list[bytes]:
    """The chain that OpenSSL verified, as DER, leaf first and trust anchor last."""
    if hasattr(tls, "get_verified_chain"):
        chain: list[bytes] = tls.get_verified_chain()
        return chain
    private: Any = tls  # before Python 3.13 there is only this way
    return [cert.public_bytes(_DER) for cert in private._sslobj.get_verified_chain()]


def _owner(tls: CheckedObject | CheckedSocket) -> NodeContext:
    if tls.owner is None:
        raise ssl.SSLError(ssl.SSL_ERROR_SSL, "not made by a NodeContext: nobody would check the peer")
    return tls.owner


def _alert(exc: ssl.SSLError) -> str | None:
    """The alert that the peer sent, such as UNKNOWN_CA."""
    found = _ALERT.search(exc.reason or "")
    return found[1] if found else None


def _translated(exc: ssl.SSLError, ours: NodeName | None) -> IdentityError | None:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _unverified(exc)
    if exc.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return CertificateMissing("the peer showed no certificate")
    if exc.reason == "UNSUPPORTED_PROTOCOL":
        return NotAuthorized("the peer does not speak TLS 1.3")
    alert = _alert(exc)
    if alert is None or alert not in _REFUSING_ALERTS:
        return None
    words = alert.lower().replace("_", " ")
    if alert == "CERTIFICATE_EXPIRED":
        return CertificateExpired(f"the peer refused this node's certificate ({ours}, {words}): renew it")
    site = ours.site if ours is not None else "this site"
    kind = CertificateUntrusted if alert == "UNKNOWN_CA" else NotAuthorized
    return kind(
        f"the peer refused this node's certificate ({ours}, {words}): is {site}'s CA in that site's trust bundle?"
    )


def _unverified(exc: ssl.SSLCertVerificationError) -> IdentityError:
    message = exc.verify_message
    if exc.verify_code in (_EXPIRED, _NOT_YET_VALID):
        return CertificateExpired(f"the certificate, or a CA above it: {message}; check the clocks, then renew it")
    if exc.verify_code in _NO_ISSUER:
        return CertificateUntrusted(f"no CA of the trust bundle signed the certificate ({message})")
    return CertificateUntrusted(
        f"the certificate: {message} (strict_x509=false accepts certificates that break RFC 5280)"
    )
