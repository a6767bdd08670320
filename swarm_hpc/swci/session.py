"""The state of one SWCI session: its contexts, the current one, its folder, and whether a failure ends it.

A context is an SN under a name, with variables of its own. Contexts live and end with the session; all else that SWCI
shows or changes is the network's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from swarm_hpc.config import ConnectionConfig, SwciConfig
from swarm_hpc.errors import AlreadyExists, ConfigError, NotFound, ProtocolError
from swarm_hpc.identity.certs import Identity
from swarm_hpc.sn.client import SnClient
from swarm_hpc.swci.folder import Folder
from swarm_hpc.transport.line import split_address

RUN_TASK_WAIT: Final = "SWCI_RUN_TASK_MAX_WAIT_TIME"
GENERIC_TASK_WAIT: Final = "SWCI_GENERIC_TASK_MAX_WAIT_TIME"
DEFAULT: Final = "default"
"""Name of the context that the settings make."""
MAX_CONTEXTS: Final = 64
_MAX_NAME: Final = 63
_PROBE_S: Final = 5.0
"""How long one try of WAIT FOR IP takes at most to connect."""

Connect = Callable[[str, float], SnClient]
"""A client for the SN at an address, whose calls are repeated for so many seconds while nobody answers."""


@dataclass(slots=True)
class Context:
    """An SN by name."""

    name: str
    address: str
    env: dict[str, str] = field(default_factory=dict)
    client: SnClient | None = None
    """Made when it is first needed."""


class Session:
    """One user's session; `async with` closes its connections at the end."""

    def __init__(
        self,
        config: SwciConfig,
        connect: Connect,
        *,
        closed: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`closed`: its folder cannot be left, as in the web mode."""
        self.folder = Folder(config.usr_dir, closed=closed)
        self.contexts: dict[str, Context] = {}
        self.current = ""
        """Name of the current context; empty: there is none."""
        self.exit_on_failure = False
        self.is_over = False
        """EXIT was said."""
        self.sleep, self.now = sleep, now
        self._connect_s = config.connection.connect_timeout_s
        self._connect = connect
        self._env = {
            RUN_TASK_WAIT: f"{config.run_task_max_wait_min:g}",
            GENERIC_TASK_WAIT: f"{config.generic_task_max_wait_min:g}",
        }
        if config.sn:
            self.add_context(DEFAULT, config.sn)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for context in self.contexts.values():
            if context.client is not None:
                await context.client.__aexit__(None, None, None)
                context.client = None

    @property
    def sn(self) -> SnClient:
        """The current context's SN. ConfigError where there is none."""
        return self.client_of(self.context())

    def context(self, name: str | None = None) -> Context:
        """The context of that name, or the current one. NotFound, ConfigError."""
        if not self.contexts:
            raise ConfigError("there is no context: CREATE CONTEXT name WITH IP ip, or start swci with sn=host:port")
        if name is not None and name not in self.contexts:
            raise NotFound(f"no context is called {name!r}; there are {', '.join(self.contexts)}")
        return self.contexts[self.current if name is None else name]

    def add_context(self, name: str, address: str) -> Context:
        """A new context; it becomes the current one where it is the only one. The same again is a no-op.

        ConfigError for what is no name or no address; AlreadyExists where the name has another address.
        """
        if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
            raise ConfigError(
                f"{name[:_MAX_NAME]!r}: a context's name has 1-{_MAX_NAME} characters that can be printed"
            )
        check_address(address)
        if name in self.contexts:
            if self.contexts[name].address != address:
                raise AlreadyExists(f"context {name} is {self.contexts[name].address}; choose another name")
            return self.contexts[name]
        if len(self.contexts) >= MAX_CONTEXTS:
            raise ConfigError(f"a session has at most {MAX_CONTEXTS} contexts")
        self.contexts[name] = Context(name, address, dict(self._env))
        self.current = self.current or name
        return self.contexts[name]

    def client_of(self, context: Context) -> SnClient:
        """The context's client, which is kept."""
        if context.client is None:
            context.client = self._connect(context.address, self._connect_s)
        return context.client

    def probe(self, address: str) -> SnClient:
        """A client for a single try: use it with `async with`."""
        check_address(address)
        return self._connect(address, _PROBE_S)


def check_address(address: str) -> str:
    """The address itself; ConfigError where it is none."""
    try:
        split_address(address)
    except ProtocolError as exc:
        raise ConfigError(str(exc)) from exc
    return address


def connector(identity: Identity, connection: ConnectionConfig) -> Connect:
    """Connections with that identity."""

    def connect(address: str, connect_timeout_s: float) -> SnClient:
        settings = ConnectionConfig(
            connect_timeout_s=connect_timeout_s, transfer_timeout_s=connection.transfer_timeout_s
        )
        return SnClient(identity, address, connection=settings)

    return connect
