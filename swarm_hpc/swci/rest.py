"""Commands about the network, the session itself and its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swarm_hpc.errors import ConfigError, NotReachable, ProtocolError, TimedOut
from swarm_hpc.records import Kind, NetworkStatus, NodeName
from swarm_hpc.swci.contexts import API_PORT, address_of
from swarm_hpc.swci.grammar import Flag, Rest, Subject
from swarm_hpc.swci.result import Result, Tell, moment, said, table
from swarm_hpc.swci.session import Session
from swarm_hpc.transport.line import split_address

SUBJECT = Subject("The rest")

RETRIES: Final = 360
_PAUSE_S: Final = 5.0
_MAX_SLEEP_S: Final = 1e6
_MAX_RETRIES: Final = 100_000
_TYPES: Final = {Kind.SL: "SL", Kind.SWOP: "SWOP"}


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRow:
    """A line of LIST NODES."""

    type: str
    host: str
    port: str
    name: str
    uid: str
    parent: str
    """UID of its site's SN; empty for an SN."""
    last_seen: str
    """When it was last heard of; empty where the SN that was asked does not know."""


@SUBJECT.command("LIST NODES")
async def list_nodes(session: Session) -> Result:
    """List the sites' SNs, and the SWOP and SL nodes that are up."""
    rows = tuple(_node_rows(await session.sn.status(), session.now()))
    heading = ("Type", "Host", "Port", "ContainerName", "UUID", "ParentUUID", "i-am-alive")
    cells = [(one.type, one.host, one.port, one.name, one.uid, one.parent, one.last_seen) for one in rows]
    return said(*table(heading, cells), data=rows)


@SUBJECT.command("LIST SITES", ours=True)
async def list_sites(session: Session) -> Result:
    """List the sites of the network, and those that ask to be members."""
    found = await session.sn.sites()
    rows = [(one.name, one.endpoint, "MEMBER" if one.active else "LEFT", moment(one.joined_at)) for one in found.sites]
    rows += [(one.site, one.endpoint, "ASKS", "") for one in found.applications]
    return said(*table(("Site", "Endpoint", "State", "Joined"), rows), data=found)


@SUBJECT.command("WAIT FOR IP {ip} [{port} [{retries}]]")
async def wait_for_ip(session: Session, ip: str, port: int = API_PORT, retries: int = RETRIES, *, tell: Tell) -> Result:
    """Wait until an SN answers at the address: one try every 5 s, 360 tries if no number is given."""
    return await _wait_for(session, address_of(ip, port), retries, tell)


@SUBJECT.command("WAIT FOR SERVICE {service} [{retries}]")
async def wait_for_service(session: Session, service: str, retries: int = RETRIES, *, tell: Tell) -> Result:
    """Wait until an SN answers at FQDN[:port] (port 443 if not given): one try every 5 s, 360 if no number is given."""
    return await _wait_for(session, service, retries, tell)


@SUBJECT.command("EXIT ON FAILURE [{flag}]")
async def exit_on_failure(session: Session, flag: Flag = Flag.ON) -> Result:
    """Let the next command that fails end the session, or not; without a word it will."""
    session.exit_on_failure = flag is Flag.ON
    return said(f"EXIT ON FAILURE : {flag}", data={"exit_on_failure": session.exit_on_failure})


@SUBJECT.command("EXIT")
async def exit(session: Session) -> Result:
    """End the session."""
    session.is_over = True
    return Result()


@SUBJECT.command("SLEEP {seconds}")
async def sleep(session: Session, seconds: float) -> Result:
    """Do nothing for so many seconds."""
    if not 0 <= seconds <= _MAX_SLEEP_S:
        raise ConfigError(f"seconds: {seconds:g} is not between 0 and {_MAX_SLEEP_S:g}")
    await session.sleep(seconds)
    return Result()


@SUBJECT.command("CD {folder}")
async def cd(session: Session, folder: str) -> Result:
    """Go to a folder: files are looked for there."""
    session.folder.enter(folder)
    return said(str(session.folder.path), data=str(session.folder.path))


@SUBJECT.command("LS [{options}]")
async def ls(session: Session, options: Rest = Rest("")) -> Result:  # noqa: B008 - a str: it never changes
    """List the files of this folder, or of others; -l tells more, -a shows hidden ones."""
    names = session.folder.entries(options.split())
    return said(*names, data=names)


@SUBJECT.command("PWD")
async def pwd(session: Session) -> Result:
    """Show the folder where the session is."""
    return said(str(session.folder.path), data=str(session.folder.path))


async def _wait_for(session: Session, address: str, retries: int, tell: Tell) -> Result:
    if not 1 <= retries <= _MAX_RETRIES:
        raise ConfigError(f"retries: {retries} is not between 1 and {_MAX_RETRIES}")
    for left in reversed(range(retries)):
        try:
            async with session.probe(address) as client:
                status = await client.status()
            return said("API Server is UP!", data={"address": address, "site": status.site, "node": status.node})
        except (NotReachable, TimedOut) as exc:
            if not left:
                raise NotReachable(f"{address}: no SN answered in {retries} tries: {exc}") from exc
        tell("#", end="")
        await session.sleep(_PAUSE_S)
    raise AssertionError("there is at least one try")


def _node_rows(status: NetworkStatus, now: float) -> list[NodeRow]:
    sites = sorted((one for one in status.sites if one.active), key=lambda one: one.joined_at)
    uid = {one.name: status.node if one.name == status.site else one.name for one in sites}
    rows = []
    for number, site in enumerate(sites):
        host, port = _host_and_port(site.endpoint)
        kind = "SN" if number else "SENTINEL"  # HPE's word for the SN that founded the network
        own = moment(now) if site.name == status.site else ""
        rows.append(NodeRow(type=kind, host=host, port=port, name="", uid=uid[site.name], parent="", last_seen=own))
    for one in status.nodes:
        name = NodeName.parse(one.node.name)
        if name.kind not in _TYPES or not one.node.active:
            continue
        host, port = _host_and_port(one.node.endpoint)
        seen = "" if one.last_seen_s is None else moment(now - one.last_seen_s)
        parent = uid.get(name.site, "")
        rows.append(
            NodeRow(
                type=_TYPES[name.kind],
                host=host,
                port=port,
                name=name.name,
                uid=one.node.name,
                parent=parent,
                last_seen=seen,
            )
        )
    return rows


def _host_and_port(endpoint: str) -> tuple[str, str]:
    try:
        host, port = split_address(endpoint)
    except ProtocolError:  # a node without a server of its own, such as a SWOP
        return endpoint, ""
    return host, str(port)
