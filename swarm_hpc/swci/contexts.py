"""Commands about contexts: which SN a session talks to, and the variables that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swarm_hpc.errors import ConfigError
from swarm_hpc.records import NetworkStatus
from swarm_hpc.swci.grammar import Subject
from swarm_hpc.swci.result import Result, facts, said, table
from swarm_hpc.swci.session import GENERIC_TASK_WAIT, RUN_TASK_WAIT, Context, Session, check_address

SUBJECT = Subject("Contexts")

API_PORT: Final = 30304
VARIABLES: Final = {
    RUN_TASK_WAIT: "WAIT FOR TASKRUNNER's limit for RUN_SWARM tasks, in minutes",
    GENERIC_TASK_WAIT: "WAIT FOR TASKRUNNER's limit for other tasks, in minutes",
}
BOTH_WAITS: Final = "SWCI_TASK_MAX_WAIT_TIME"
"""HPE 2.2's one variable for both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextView:
    """A context as programs see it; of the SN, where it was asked."""

    name: str
    address: str
    is_current: bool
    site: str = ""
    node: str = ""
    version: str = ""


@SUBJECT.command("CREATE CONTEXT {context} WITH IP {ip} [{port}]")
async def create_context(session: Session, context: str, ip: str, port: int = API_PORT) -> Result:
    """Name an SN by its address; it has to answer. The session's first context becomes the current one."""
    return await _create(session, context, address_of(ip, port))


@SUBJECT.command("CREATE CONTEXT {context} WITH SERVICE {service}")
async def create_service_context(session: Session, context: str, service: str) -> Result:
    """Name an SN by the FQDN[:port] of its service (port 443 if not given); it has to answer."""
    return await _create(session, context, service)


async def _create(session: Session, name: str, address: str) -> Result:
    async with session.probe(address) as client:
        status = await client.status()
    context = session.add_context(name, address)
    return said("API Server is UP!", f"CONTEXT CREATED : {name}", data=_view(session, context, status))


@SUBJECT.command("SWITCH CONTEXT {context}")
async def switch_context(session: Session, context: str) -> Result:
    """Make a context the current one: the commands that follow ask its SN."""
    found = session.context(context)
    session.current = found.name
    return said(f"DEFAULT CONTEXT SET TO : {found.name}", data=_view(session, found))


@SUBJECT.command("GET CONTEXT INFO [{context}]")
async def get_context_info(session: Session, context: str | None = None) -> Result:
    """Show where a context's SN is, and of which site; the current context's if none is named."""
    found = session.context(context)
    view = _view(session, found, await session.client_of(found).status())
    lines = facts(
        [
            ("CONTEXT", view.name),
            ("API_SERVER", view.address),
            ("CURRENT", "YES" if view.is_current else "NO"),
            ("SITE", view.site),
            ("NODE", view.node),
        ]
    )
    return said(*lines, data=view)


@SUBJECT.command("GET CONTEXT VERSION")
async def get_context_version(session: Session) -> Result:
    """Show the version that the current context's SN runs."""
    version = (await session.sn.status()).version
    return said(f"API_SERVER_VERSION : {version}", data={"version": version})


@SUBJECT.command("LIST CONTEXTS")
async def list_contexts(session: Session) -> Result:
    """List this session's contexts."""
    views = tuple(_view(session, one) for one in session.contexts.values())
    rows = [(one.name, one.address, "YES" if one.is_current else "NO") for one in views]
    return said(*table(("Name", "APIServer", "Current"), rows), data=views)


@SUBJECT.command("LIST CONTEXT ENV [{context}]")
async def list_context_env(session: Session, context: str | None = None) -> Result:
    """List the variables of a context; the current one's if none is named."""
    env = session.context(context).env
    return said(*(f"{name}={value}" for name, value in env.items()), data=dict(env))


@SUBJECT.command("GET CONTEXT ENV [{context}] {variable}")
async def get_context_env(session: Session, variable: str, context: str | None = None) -> Result:
    """Show a variable of a context; the current one's if none is named."""
    env = session.context(context).env
    name = _known(variable)[0]
    return said(f"{name}={env[name]}", data={name: env[name]})


@SUBJECT.command("SET CONTEXT ENV [{context}] {variable} {value}")
async def set_context_env(session: Session, variable: str, value: str, context: str | None = None) -> Result:
    """Set a variable of a context; the current one's if none is named."""
    env = session.context(context).env
    try:
        minutes = float(value)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 1e6:
        raise ConfigError(f"{variable}: {value!r} is no number of minutes")
    changed = {name: value for name in _known(variable)}
    env.update(changed)
    return said(*(f"{name}={value}" for name in changed), data=changed)


def address_of(ip: str, port: int) -> str:
    """host:port of the two. ConfigError."""
    if not 1 <= port <= 65535:
        raise ConfigError(f"port: {port} is not a port number (1-65535)")
    host = f"[{ip}]" if ":" in ip and not ip.startswith("[") else ip
    return check_address(f"{host}:{port}")


def _known(variable: str) -> tuple[str, ...]:
    """The variables that this name stands for. ConfigError: one that would have no effect is no use."""
    name = variable.upper()
    if name == BOTH_WAITS:
        return tuple(VARIABLES)
    if name not in VARIABLES:
        told = "; ".join(f"{one} is {text}" for one, text in VARIABLES.items())
        raise ConfigError(f"{variable!r} is no variable of a context: {told}")
    return (name,)


def _view(session: Session, context: Context, status: NetworkStatus | None = None) -> ContextView:
    is_current = context.name == session.current
    if status is None:
        return ContextView(name=context.name, address=context.address, is_current=is_current)
    return ContextView(
        name=context.name,
        address=context.address,
        is_current=is_current,
        site=status.site,
        node=status.node,
        version=status.version,
    )
