"""A Python client of SWCI's web mode: a method per command, blocking, with this project's errors.

swci = Swci("login:30306", identity=certs.load(config))
swci.assign_task("build", "trainers", 4)
swci.wait_for_taskrunner("trainers")
"""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any, Final

from swarm_hpc.config import IdentityConfig
from swarm_hpc.errors import NotReachable, ProtocolError, SwarmError, TimedOut
from swarm_hpc.identity import certs
from swarm_hpc.identity.certs import Identity
from swarm_hpc.identity.handshake import refusal
from swarm_hpc.records import Kind, decode
from swarm_hpc.swci.commands import COMMANDS
from swarm_hpc.swci.methods import Methods
from swarm_hpc.transport import document
from swarm_hpc.transport.client import MAX_ANSWER_BYTES, expect_kind
from swarm_hpc.transport.line import Line
from swarm_hpc.transport.retry import CONNECT_ATTEMPT_S, Patience, at, problem

ANSWER_S: Final = 7600.0
"""A server with the default settings has ended every command by then."""
CONNECT_S: Final = 30.0
_BY_NAME: Final = {one.name: one for one in COMMANDS}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command gave: lines for people, and plain JSON values."""

    lines: tuple[str, ...]
    data: Any


class Swci(Methods):
    """Commands to one SWCI in web mode. Nothing needs closing: each command has a connection of its own.

    What the command is refused for is raised as the same error that SWCI had. NotReachable, TimedOut: whether the
    command was carried out is not known then, unless nobody was there to take it.
    """

    def __init__(
        self,
        address: str,
        *,
        identity: Identity | IdentityConfig,
        site: str | None = None,
        connect_timeout_s: float = CONNECT_S,
        answer_timeout_s: float = ANSWER_S,
    ) -> None:
        """`site` is the site whose SWCI has to answer; None accepts that of any site of the bundle.

        A connection is tried for `connect_timeout_s`; an answer may take `answer_timeout_s`.
        """
        self.wire = Wire(
            identity if isinstance(identity, Identity) else certs.load(identity),
            address,
            site=site,
            connect_timeout_s=connect_timeout_s,
            answer_timeout_s=answer_timeout_s,
        )

    def run(self, command: str) -> Answer:
        """Carry out a command as it is typed in the shell."""
        body = json.dumps({"command": command}).encode()
        return decode(Answer, self.wire.post("/v1/commands", body, "application/json"))

    def _do(self, method: str, **arguments: object) -> Any:
        return self.run(_BY_NAME[method].text(**arguments)).data


class Wire:
    """Requests to a SWCI in web mode, one connection each. A request is sent once: its caller may repeat it."""

    def __init__(
        self, identity: Identity, address: str, *, site: str | None, connect_timeout_s: float, answer_timeout_s: float
    ) -> None:
        self._line = Line(identity, address, expect_kind(Kind.SWCI, site=site))
        self._connect_s, self._answer_s = connect_timeout_s, answer_timeout_s

    def post(self, path: str, body: bytes, content_type: str) -> Any:
        """The answer's JSON value; a problem is raised by its name."""
        connection = self._connect()
        try:
            self._line.patient(self._answer_s)
            connection.request("POST", path, body, {"Content-Type": content_type, "Accept-Encoding": "identity"})
            answer = connection.getresponse()
            text = answer.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as exc:
            raise self._failure(exc) from exc
        finally:
            self._line.close()
        return self._value(answer, text)

    def _connect(self) -> http.client.HTTPConnection:
        """A new connection: tried again while nobody is there, which is known to have no effect."""
        patience = Patience(time.monotonic() + self._connect_s)
        while True:
            try:
                return self._line.open(CONNECT_ATTEMPT_S)
            except OSError as exc:
                self._line.close()
                error = self._failure(exc)
                pause_s = patience.pause_s(time.monotonic())
                if pause_s is None or not isinstance(error, NotReachable):
                    raise error from exc
            time.sleep(pause_s)

    def _failure(self, exc: BaseException) -> SwarmError:
        refused = refusal(exc)
        if refused is not None:
            return at(self._line.address, refused)
        if isinstance(exc, TimeoutError) and self._line.shaken:
            return TimedOut(f"{self._line.address}: no answer within {self._answer_s:g} s")
        return NotReachable(f"{self._line.address}: {exc or type(exc).__name__}")

    def _value(self, answer: http.client.HTTPResponse, text: bytes) -> Any:
        address = self._line.address
        if len(text) > MAX_ANSWER_BYTES:
            raise ProtocolError(f"{address}: an answer of more than {MAX_ANSWER_BYTES} bytes")
        if answer.status >= 300:
            error = problem(address, answer.status, answer.headers.get("Content-Type", ""), text)
            raise error or NotReachable(f"{address}: a proxy answered {answer.status} for it")
        try:
            return document.parse(text)
        except ValueError as exc:
            raise ProtocolError(f"{address} answered with no JSON: is it a SWCI in web mode?") from exc
