"""ABCI's wire: CometBFT's four connections on a private Unix socket, length-prefixed messages, answers in order.

After a failure in the application the server is over: it says nothing more, and `fault` has the reason.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from google.protobuf.message import DecodeError

from swarm_hpc.errors import SwarmError
from swarm_hpc.sn import abci_pb2 as abci
from swarm_hpc.sn.abci import Application

log = logging.getLogger(__name__)

_MAX_BYTES: Final = 64 << 20


class AbciServer:
    """Serves one application from `with` to its end."""

    def __init__(self, path: Path, application: Application) -> None:
        path.unlink(missing_ok=True)
        self._application = application
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._fault: Exception | None = None
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                outer._serve(self)

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self._server = Server(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="abci", daemon=True)

    @property
    def fault(self) -> Exception | None:
        """Why the application failed; None while all is well."""
        return self._fault

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._cut()
        self._server.server_close()

    def _serve(self, handler: socketserver.StreamRequestHandler) -> None:
        connection = handler.request
        with self._lock:
            self._connections.add(connection)
        try:
            while self._fault is None and (message := _read(handler)) is not None:
                handler.wfile.write(_framed(self._answer(message)))
        except (OSError, DecodeError, ValueError) as exc:
            log.debug("an ABCI connection ended: %s", exc)
        except Exception as exc:  # noqa: BLE001 - the outermost loop; consensus.py starts everything anew
            self._failed(exc)
        finally:
            with self._lock:
                self._connections.discard(connection)
            self._application.release()

    def _answer(self, message: bytes) -> abci.Response:
        request = abci.Request.FromString(message)
        name = request.WhichOneof("value")
        answer = abci.Response()
        try:
            method = getattr(self._application, name or "", None)
            if method is None:
                raise SwarmError(f"CometBFT asks for {name!r}, which this application does not know")
            getattr(answer, name).CopyFrom(method(getattr(request, name)))
        except (OSError, ValueError) as exc:
            raise SwarmError(f"{name}: {exc}") from exc
        return answer

    def _failed(self, exc: Exception) -> None:
        if self._fault is None:
            self._fault = exc
            log.warning("the ABCI application stops: %s: %s", type(exc).__name__, exc)
            log.debug("the reason", exc_info=exc)
        self._cut()

    def _cut(self) -> None:
        with self._lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue


def _read(handler: socketserver.StreamRequestHandler) -> bytes | None:
    """The next message; None at the end of the connection. Lengths are uvarints (protobuf, base-128)."""
    size = shift = 0
    while True:
        byte = handler.rfile.read(1)
        if not byte:
            return None
        size |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            break
        shift += 7
        if shift > 35:
            raise ValueError("no length of a message")
    if size > _MAX_BYTES:
        raise ValueError(f"a message of {size} bytes")
    message = handler.rfile.read(size)
    return message if len(message) == size else None


def _framed(answer: abci.Response) -> bytes:
    body: bytes = answer.SerializeToString()
    size, prefix = len(body), bytearray()
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + body
