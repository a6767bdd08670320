"""Commands about the network itself: its nodes, its sites, its ledger."""

from __future__ import annotations

from dataclasses import dataclass

from swarm_hpc.records import Kind, NetworkStatus, NodeName, NodeStatus, SiteList
from swarm_hpc.swci.grammar import Label, Subject
from swarm_hpc.swci.result import Result, facts, moment, said, table
from swarm_hpc.swci.session import Session

SUBJECT = Subject("Network")

HEADING = ("Type", "HostIP", "Port", "ContainerName", "UUID", "ParentUUID", "i-am-alive")


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRow:
    """A node as LIST NODES shows it. The UUID of an SN is its site's account on the ledger, as an SN registers none."""

    type: str
    """SENTINEL, SN, SWOP or SL."""
    host: str
    port: str
    name: str
    uuid: str
    parent_uuid: str
    """UUID of the SN of its site; empty for an SN."""
    alive_at: int
    """When it was last heard of (s since 1970); 0: not by the SN that was asked."""
    active: bool


@SUBJECT.command("LIST NODES")
async def list_nodes(session: Session) -> Result:
    """List the network's SN, SWOP and SL nodes."""
    status = await session.sn.status()
    rows = tuple(_rows(status, int(session.now())))
    lines = [(one.type, one.host, one.port, one.name, one.uuid, one.parent_uuid, moment(one.alive_at)) for one in rows]
    return said(*table(HEADING, lines), data=rows)


@SUBJECT.command("LIST SITES", ours=True)
async def list_sites(session: Session) -> Result:
    """List the member sites, and those that ask to be one."""
    return _sites(await session.sn.sites())


@SUBJECT.command("ADMIT SITE {site}", ours=True)
async def admit_site(session: Session, site: Label) -> Result:
    """Vote, for the site of the current context's SN, to admit a site that asks."""
    return _sites(await session.sn.admit(site))


@SUBJECT.command("REMOVE SITE {site}", ours=True)
async def remove_site(session: Session, site: Label) -> Result:
    """Vote, for the site of the current context's SN, to remove a site."""
    return _sites(await session.sn.remove(site))


@SUBJECT.command("GET NETWORK STATUS", ours=True)
async def get_network_status(session: Session) -> Result:
    """Show the ledger, and how many sites, nodes and contracts there are."""
    status = await session.sn.status()
    consensus = status.consensus
    lines = facts(
        [
            ("SITE", status.site),
            ("NODE", status.node),
            ("VERSION", status.version),
            ("LEDGER", status.ledger.kind),
            ("HEIGHT", status.ledger.height),
            ("SITES", sum(one.active for one in status.sites)),
            ("ACTIVE_NODES", sum(one.node.active for one in status.nodes)),
            ("CONTRACTS", len(status.contracts)),
            ("HALTED", consensus.halted if consensus else ""),
        ]
    )
    return said(*lines, data=status)


def _sites(found: SiteList) -> Result:
    rows = [
        (one.name, "MEMBER" if one.active else "REMOVED", one.endpoint, moment(one.joined_at)) for one in found.sites
    ]
    rows += [(one.site, "ASKS", one.endpoint, "") for one in found.applications]
    return said(*table(("Site", "State", "Endpoint", "Joined"), rows), data=found)


def _rows(status: NetworkStatus, now: int) -> list[NodeRow]:
    members = sorted((site for site in status.sites if site.active), key=lambda site: (site.joined_at, site.name))
    rows = []
    for at, site in enumerate(members):
        host, port = _split(site.endpoint)
        is_asked = site.name == status.site
        rows.append(
            NodeRow(
                type="SN" if at else "SENTINEL",
                host=host,
                port=port,
                name=status.node if is_asked else f"{site.name}/sn",
                uuid=site.account,
                parent_uuid="",
                alive_at=now if is_asked else 0,
                active=not site.lost,
            )
        )
    parents = {site.name: site.account for site in status.sites}
    return rows + [_row(one, parents, now) for one in status.nodes]


def _row(one: NodeStatus, parents: dict[str, str], now: int) -> NodeRow:
    name, node = NodeName.parse(one.node.name), one.node
    host, port = _split(node.endpoint)
    heard = one.last_seen_s
    return NodeRow(
        type="SN" if name.kind is Kind.SN else name.kind.upper(),
        host=host,
        port=port,
        name=node.name,
        uuid=node.instance,
        parent_uuid=parents.get(name.site, ""),
        alive_at=0 if heard is None else now - round(heard),
        active=node.active,
    )


def _split(endpoint: str) -> tuple[str, str]:
    host, _, port = endpoint.rpartition(":")
    return (host, port) if host else (endpoint, "")
