"""Which sites and nodes take part: registration, heartbeats, and marking away whom nobody hears of any more.

leases.py decides who is alive; this file has the clock and writes the outcome on the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from swarm_hpc.errors import DuplicateNode, Fenced, NotFound, NotMember, SwarmError
from swarm_hpc.identity.certs import TrustBundle
from swarm_hpc.records import Event, NodeName, NodeRecord, NodeStatus, Progress
from swarm_hpc.sn.leases import Leases
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.sn.live import LiveLedger

log = logging.getLogger(__name__)


class Membership:
    """The nodes that live at this SN. Its leases are in memory: after a restart everybody active gets a fresh one."""

    def __init__(
        self,
        live: LiveLedger,
        *,
        lease_s: float,
        endpoint: str,
        bundle: TrustBundle,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`bundle` has the sites that are admitted on sight; `endpoint` is where those are reached: at this SN."""
        self.lease_s = lease_s
        self._live = live
        self._leases = Leases(lease_s=lease_s)
        self._endpoint = endpoint
        self._bundle = bundle
        self._clock = clock
        self._changing = asyncio.Lock()

    async def announce(self, endpoint: str) -> None:
        """Correct what the ledger says of the sites that live here: where this SN is reached, and their CAs."""
        self._endpoint = endpoint
        await self._live.write(self._correct_sites)

    async def mark_site_away(self, site: str) -> None:
        """Mark all nodes of another site away, which is lost."""
        nodes = await self._live.read(lambda ledger: ledger.nodes())
        for node in nodes:
            if node.active and NodeName.parse(node.name).site == site:
                await self._live.write(partial(_mark_away, name=node.name))
                log.info("%s is away with its site", node.name)

    async def hear(self, events: Sequence[Event]) -> None:
        """A node of ours that other sites have marked away has to register again."""
        for event in events:
            if event.name == "NodeActive" and not event.facts["active"]:
                self._leases.drop(str(event.facts["node"]))

    async def restart(self) -> None:
        """Give every active node that lives at this SN a fresh lease."""
        self._leases.restart(await self._live.read(_own_nodes), self._clock())

    async def register(self, name: NodeName, endpoint: str, instance: str) -> NodeRecord:
        """Register the node under the next incarnation; its site is admitted first where the ledger does not know it.

        DuplicateNode: another instance has the name, and its lease runs.
        """
        return await self._live.complete(self._register(name, endpoint, instance))

    async def heartbeat(self, name: str, incarnation: int, progress: Progress) -> None:
        """Renew the lease. Fenced: a later incarnation lives. NotFound: the node is away."""
        self._leases.renew(name, incarnation, self._clock(), progress)

    async def act(self, name: str, incarnation: int) -> None:
        """What a node does on the ledger is as good as a heartbeat; one that was marked away comes back by it.

        Fenced: a later incarnation has registered. NotFound: the node never has.
        """
        try:
            self._leases.renew(name, incarnation, self._clock())
        except NotFound:
            await self._live.complete(self._revive(name, incarnation))

    async def leave(self, name: str, incarnation: int) -> None:
        """Mark the node away. A repeat does nothing; Fenced as for `heartbeat`."""
        try:
            self._leases.renew(name, incarnation, self._clock())
        except NotFound:
            return
        await self._live.complete(self._end(name))

    async def end_expired(self) -> None:
        """Mark away every node whose lease is over. A failure is logged; the next call tries again."""
        for name in self._leases.expired(self._clock()):
            try:
                await self._live.complete(self._end(name, only_expired=True))
            except NotMember as exc:
                self._leases.drop(name)
                log.warning("%s is not heard of any more: %s", name, exc)
            except SwarmError:
                log.exception("%s is not heard of, but could not be marked away", name)

    def status(self, node: NodeRecord) -> NodeStatus:
        """The node with what its heartbeats said."""
        last_seen_s = self._leases.last_seen_s(node.name, self._clock())
        return NodeStatus(node=node, last_seen_s=last_seen_s, progress=self._leases.progress(node.name))

    async def _register(self, name: NodeName, endpoint: str, instance: str) -> NodeRecord:
        async with self._changing:
            earlier = await self._live.read(lambda ledger: _node_if_any(ledger, str(name)))
            if earlier and earlier.instance != instance:
                self._refuse_duplicate(earlier)
            record = await self._live.write(lambda ledger: self._enter(ledger, name, endpoint, instance))
            self._leases.grant(record.name, record.incarnation, self._clock())
        log.info("%s registered as incarnation %d", record.name, record.incarnation)
        return record

    def _refuse_duplicate(self, earlier: NodeRecord) -> None:
        left_s = self._leases.left_s(earlier.name, self._clock())
        if left_s <= 0:
            return
        place = f" at {earlier.endpoint}" if earlier.endpoint else ""
        seen_s = self.lease_s - left_s
        raise DuplicateNode(
            f"{earlier.name} runs already{place} (heard of {seen_s:.0f} s ago). Stop that one, or give this one "
            f"another name; if it is dead, its name is free in {left_s:.0f} s"
        )

    def _enter(self, ledger: Ledger, name: NodeName, endpoint: str, instance: str) -> NodeRecord:
        known = {site.name for site in ledger.sites()}
        # A site that was voted out stays known, and inactive: the ledger refuses its nodes.
        if name.site not in known:
            if ledger.is_shared:
                raise NotMember(f"{name}: site {name.site} is no member of the network; its own SN has to join it")
            ledger.vote(name.site, ledger.account, self._endpoint, self._bundle.fingerprint(name.site), True)
            log.info("site %s admitted", name.site)
        return ledger.register_node(str(name), endpoint, instance)

    def _correct_sites(self, ledger: Ledger) -> None:
        for site in ledger.sites():
            if site.active and site.account == ledger.account and site.name in self._bundle.authorities:
                fingerprint = self._bundle.fingerprint(site.name)
                if (site.endpoint, site.ca_fingerprint) != (self._endpoint, fingerprint):
                    ledger.vote(site.name, ledger.account, self._endpoint, fingerprint, True)

    async def _revive(self, name: str, incarnation: int) -> None:
        async with self._changing:
            record = await self._live.read(lambda ledger: ledger.node(name))
            if incarnation != record.incarnation:
                raise Fenced(f"{name}: incarnation {incarnation} is not {record.incarnation}, which registered last")
            if not record.active:
                await self._live.write(lambda ledger: ledger.set_node_active(name, True))
            self._leases.grant(name, incarnation, self._clock())
        log.info("%s is back", name)

    async def _end(self, name: str, *, only_expired: bool = False) -> None:
        async with self._changing:
            if only_expired and self._leases.alive(name, self._clock()):
                return
            await self._live.write(lambda ledger: _mark_away(ledger, name))
            self._leases.drop(name)
        log.info("%s is away", name)


def _own_nodes(ledger: Ledger) -> list[NodeRecord]:
    own = {site.name for site in ledger.sites() if site.account == ledger.account}
    return [node for node in ledger.nodes() if NodeName.parse(node.name).site in own]


def _node_if_any(ledger: Ledger, name: str) -> NodeRecord | None:
    try:
        return ledger.node(name)
    except NotFound:
        return None


def _mark_away(ledger: Ledger, name: str) -> None:
    for contract in ledger.contracts():
        if any(each.node == name and each.active for each in contract.participants):
            ledger.set_away(contract.spec.name, name)
    # Last: a node that is active on the ledger gets a lease when this SN restarts, so a cut-off end is repeated.
    ledger.set_node_active(name, False)
