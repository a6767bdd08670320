"""What an SN answers: the rows of docs/protocol.md 2.1, and who may ask for them.

Handlers decode, authorise, call the ledger and encode; what is right is decided by the ledger.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import Any, Final, TypeVar

from aiohttp import web

from swarm_hpc.errors import ContractMismatch, ModelMismatch, NotAuthorized, NotFound, NotReachable, ProtocolError
from swarm_hpc.records import (
    LABEL,
    CheckIn,
    ContractSpec,
    FinishMode,
    Kind,
    NetworkStatus,
    NodeName,
    Platform,
    Progress,
    Round,
    SiteApplication,
    Statement,
    TrainingContract,
    encode,
)
from swarm_hpc.sn.admission import Applications
from swarm_hpc.sn.epochs import parse as parse_epoch
from swarm_hpc.sn.ledger import Ledger
from swarm_hpc.sn.live import LiveLedger
from swarm_hpc.sn.membership import Membership
from swarm_hpc.sn.request import (
    ACTORS,
    READERS,
    acting,
    answer,
    named,
    take,
    waiting_time,
    whole,
    whole_number,
)
from swarm_hpc.sn.server_tasks import TaskApi
from swarm_hpc.sn.shared import SharedLedger
from swarm_hpc.sn.waits import Shares, wait_for_events, wait_for_round, wait_for_shares
from swarm_hpc.transport.line import split_address
from swarm_hpc.transport.server import allow, body

T = TypeVar("T")

_KEY: Final = re.compile("[0-9a-f]{64}")
MAX_WAITING_CHARS: Final = 1000
MAX_COUNT: Final = 1 << 53
"""Largest whole number that every reader of JSON takes for what it is."""
MAX_FIGURE: Final = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class SnApi:
    """The handlers of one SN."""

    name: NodeName
    live: LiveLedger
    membership: Membership
    applications: Applications
    shared: SharedLedger | None = None
    """With ledger=geth: this site's part in the network."""
    started_at: float
    """time.monotonic() when the SN started."""

    def add_routes(self, app: web.Application) -> None:
        """Serve the API."""
        TaskApi(live=self.live, membership=self.membership).add_routes(app)
        rounds = "/v1/contracts/{contract}/rounds"
        app.add_routes(
            [
                web.get("/v1/status", self.get_status),
                web.get("/v1/network", self.get_network),
                web.get("/v1/consensus/votes", self.get_votes),
                web.get("/v1/blocks", self.get_blocks),
                web.post("/v1/recovery", self.recover),
                web.post("/v1/recovery/approvals", self.hear_approvals),
                web.get("/v1/sites", self.get_sites),
                web.post("/v1/sites", self.apply),
                web.post("/v1/sites/{site}/admit", self.admit),
                web.post("/v1/sites/{site}/remove", self.remove),
                web.post("/v1/nodes", self.register),
                web.get("/v1/nodes", self.get_nodes),
                web.post("/v1/nodes/heartbeat", self.heartbeat),
                web.post("/v1/nodes/leave", self.leave),
                web.post("/v1/contracts", self.create_contract),
                web.get("/v1/contracts", self.get_contracts),
                web.get("/v1/contracts/{contract}", self.get_contract),
                web.get("/v1/declared-contracts", self.get_declared),
                web.post("/v1/contracts/{contract}/declare", self.declare),
                web.post("/v1/contracts/{contract}/reset", self.reset),
                web.post("/v1/contracts/{contract}/join", self.join),
                web.post("/v1/contracts/{contract}/finish", self.finish),
                web.get(rounds, self.get_rounds),
                web.get(rounds + "/{number}", self.get_round),
                web.post(rounds + "/{number}/check-in", self.check_in),
                web.post(rounds + "/{number}/claim", self.claim),
                web.post(rounds + "/{number}/drop", self.drop),
                web.post(rounds + "/{number}/publish", self.publish),
                web.post(rounds + "/{number}/shards", self.share),
                web.get(rounds + "/{number}/shards", self.get_shared),
                web.get("/v1/events", self.get_events),
            ]
        )

    async def get_status(self, request: web.Request) -> web.Response:
        """The whole network; NotReachable says what is wrong where the ledger's programs do not run here."""
        allow(request, *READERS)

        consensus = None
        if self.shared is not None:
            fault, consensus = await self.shared.fault(), await self.shared.status()
            if fault:  # to read the ledger would take longer than anybody waits
                raise NotReachable(f"site {self.name.site}: {'; '.join(consensus.warnings) or fault}")

        def ask(ledger: Ledger) -> NetworkStatus:
            return NetworkStatus(
                site=self.name.site,
                node=str(self.name),
                version=version("swarm-hpc"),
                uptime_s=time.monotonic() - self.started_at,
                ledger=ledger.status(),
                sites=ledger.sites(),
                nodes=tuple(map(self.membership.status, ledger.nodes())),
                contracts=ledger.contracts(),
                consensus=consensus,
            )

        return answer(await self.live.read(ask))

    # sites

    async def get_network(self, request: web.Request) -> web.Response:
        """The network file."""
        allow(request, Kind.SN, Kind.SWCI)
        if self.shared is None:
            raise NotFound("this SN keeps an embedded ledger, which no other site can join")
        return web.json_response({"network": self.shared.network.text(), "epochs": encode(self.shared.epochs)})

    async def get_blocks(self, request: web.Request) -> web.Response:
        """Final Ethereum blocks, for a site that cannot have them from CometBFT."""
        peer = allow(request, Kind.SN)
        if self.shared is None or not self.shared.is_member(peer.site):
            raise NotAuthorized(f"{peer}: site {peer.site} is no member of this network")
        return web.json_response({"payloads": await self.shared.blocks(whole_number(request, "first", 1))})

    async def recover(self, request: web.Request) -> web.Response:
        """This site's operator agrees to go on without some sites."""
        peer = allow(request, Kind.SWCI)
        if peer.site != self.name.site:
            raise NotAuthorized(f"{peer}: site {self.name.site} is spoken for by its own operator")
        if self.shared is None:
            raise NotFound("this SN keeps an embedded ledger, which depends on no other site")
        return answer(await self.shared.recovery.approve(take(await body(request), "without", list[str])))

    async def hear_approvals(self, request: web.Request) -> web.Response:
        """Another site's operator has agreed to a new epoch."""
        peer = allow(request, Kind.SN)
        if self.shared is None or not self.shared.is_member(peer.site):
            raise NotAuthorized(f"{peer}: site {peer.site} is no member of this network")
        found = await self.shared.recovery.hear(parse_epoch((await body(request)).get("epoch")))
        return web.json_response({"epoch": encode(found) if found is not None else None})

    async def get_votes(self, request: web.Request) -> web.Response:
        """What was seen here of a validator's votes."""
        allow(request, Kind.SN)
        if self.shared is None:
            raise NotFound("this SN keeps an embedded ledger, which has no votes")
        key = request.query.get("key", "")
        if not _KEY.fullmatch(key):
            raise ProtocolError("key: expected 64 hex digits")
        return answer(await self.shared.seen_votes(key))

    async def get_sites(self, request: web.Request) -> web.Response:
        """All sites, and who asks."""
        allow(request, *READERS)
        return answer(await self.applications.sites())

    async def apply(self, request: web.Request) -> web.Response:
        """A site asks for this one's vote."""
        peer = allow(request, Kind.SN)
        asks = take(await body(request), "application", SiteApplication)
        if asks.site != peer.site:
            raise NotAuthorized(f"{peer} may ask for site {peer.site} only, not for {asks.site}")
        if self.shared is None:
            raise NotFound("this SN keeps an embedded ledger, which no other site can join")
        split_address(asks.endpoint)
        return answer(await self.applications.apply(asks))

    async def admit(self, request: web.Request) -> web.Response:
        """This site's operator votes for a site."""
        return answer(await self.applications.admit(self._voted_by_operator(request)))

    async def remove(self, request: web.Request) -> web.Response:
        """This site's operator votes a site out."""
        return answer(await self.applications.remove(self._voted_by_operator(request)))

    def _voted_by_operator(self, request: web.Request) -> str:
        peer = allow(request, Kind.SWCI)
        if peer.site != self.name.site:
            raise NotAuthorized(f"{peer}: the votes of site {self.name.site} are its own operator's")
        site = request.match_info["site"]
        if not LABEL.fullmatch(site):
            raise NotFound(f"no site can be called {site[:80]!r}")
        return site

    # nodes

    async def register(self, request: web.Request) -> web.Response:
        """A new incarnation of a node."""
        said = await body(request)
        name = acting(request, said, "name")
        endpoint, instance = take(said, "endpoint", str), take(said, "instance", str)
        if endpoint:
            split_address(endpoint)  # its peers will try to connect there
        if not instance.isprintable():
            raise ProtocolError(f"instance: {instance[:80]!r} holds control characters")
        record = await self.membership.register(name, endpoint, instance)
        return web.json_response({"node": encode(record), "lease_s": self.membership.lease_s})

    async def get_nodes(self, request: web.Request) -> web.Response:
        """All nodes."""
        allow(request, *READERS)
        nodes = await self.live.read(lambda ledger: ledger.nodes())
        return answer(tuple(map(self.membership.status, nodes)))

    async def heartbeat(self, request: web.Request) -> web.Response:
        """Renews the lease."""
        said = await body(request)
        name = str(acting(request, said, "name"))
        progress = _shown(take(said, "progress", Progress))
        await self.membership.heartbeat(name, take(said, "incarnation", int), progress)
        return web.json_response({"lease_s": self.membership.lease_s})

    async def leave(self, request: web.Request) -> web.Response:
        """Ends the lease."""
        said = await body(request)
        await self.membership.leave(str(acting(request, said, "name")), take(said, "incarnation", int))
        return web.json_response({})

    # training contracts

    async def create_contract(self, request: web.Request) -> web.Response:
        """Creates it, or compares with the one that is there."""
        peer = allow(request, *ACTORS)
        spec = take(await body(request), "spec", ContractSpec)

        def act(ledger: Ledger) -> TrainingContract:
            if not any(site.name == peer.site and site.active for site in ledger.sites()):
                raise NotAuthorized(f"{peer}: site {peer.site} is no member of the network; register a node first")
            try:
                check_same(spec, ledger.contract(spec.name).spec)
            except NotFound:
                ledger.create_contract(spec)
            return ledger.contract(spec.name)

        return answer(await self.live.write(act))

    async def get_contracts(self, request: web.Request) -> web.Response:
        """All contracts."""
        allow(request, *READERS)
        return answer(await self.live.read(lambda ledger: ledger.contracts()))

    async def get_contract(self, request: web.Request) -> web.Response:
        """One contract."""
        allow(request, *READERS)
        name = _contract(request)
        return answer(await self.live.read(lambda ledger: ledger.contract(name)))

    async def get_declared(self, request: web.Request) -> web.Response:
        """Names that no node has taken part under yet."""
        allow(request, *READERS)
        return answer(await self.live.read(lambda ledger: ledger.declared_contracts()))

    async def declare(self, request: web.Request) -> web.Response:
        """An operator sets a name aside."""
        allow(request, Kind.SWCI)
        name = _contract(request)
        await self.live.write(lambda ledger: ledger.declare_contract(name))
        return web.json_response({})

    async def reset(self, request: web.Request) -> web.Response:
        """An operator gives the name of a completed contract to a new training."""
        allow(request, Kind.SWCI)
        name = _contract(request)

        def act(ledger: Ledger) -> str:
            archive = ledger.reset_contract(name)
            ledger.declare_contract(name)
            return archive

        return web.json_response({"archive": await self.live.write(act)})

    async def join(self, request: web.Request) -> web.Response:
        """Makes the node a participant."""
        name = _contract(request)
        said = await body(request)
        node, incarnation = await self._act(request, said)
        platform, model = take(said, "platform", Platform), take(said, "model", str)

        def act(ledger: Ledger) -> TrainingContract:
            try:
                ledger.join(name, node, incarnation, platform, model)
            except (ContractMismatch, ModelMismatch):
                there = ledger.contract(name).spec  # the ledger says that they differ; say how
                check_same(replace(there, platform=platform, model=model), there)
                raise
            return ledger.contract(name)

        return answer(await self.live.write(act))

    async def finish(self, request: web.Request) -> web.Response:
        """The node trains no more."""
        name = _contract(request)
        said = await body(request)
        node, incarnation = await self._act(request, said)
        mode = take(said, "mode", FinishMode)

        def act(ledger: Ledger) -> TrainingContract:
            ledger.finish(name, node, incarnation, mode)
            return ledger.contract(name)

        return answer(await self.live.write(act))

    # rounds

    async def check_in(self, request: web.Request) -> web.Response:
        """The node's parameters for the round are these."""
        said = await body(request)
        check_in = _recorded(take(said, "check_in", CheckIn))
        node, incarnation = await self._act(request, said | {"node": check_in.node})
        assert node == check_in.node
        return await self._change_round(
            request, lambda ledger, name, number: ledger.check_in(name, number, incarnation, check_in)
        )

    async def claim(self, request: web.Request) -> web.Response:
        """The node wants to lead the round."""
        node, incarnation = await self._act(request, await body(request))
        return await self._change_round(
            request, lambda ledger, name, number: ledger.claim(name, number, node, incarnation)
        )

    async def drop(self, request: web.Request) -> web.Response:
        """The leader cannot have the blob of a node that is away."""
        said = await body(request)
        node, incarnation = await self._act(request, said)
        absent = take(said, "absent", str)
        return await self._change_round(
            request, lambda ledger, name, number: ledger.drop(name, number, node, incarnation, absent)
        )

    async def publish(self, request: web.Request) -> web.Response:
        """The leader has merged."""
        said = await body(request)
        node, incarnation = await self._act(request, said)
        merged = take(said, "merged", str)
        return await self._change_round(
            request, lambda ledger, name, number: ledger.publish(name, number, node, incarnation, merged)
        )

    async def get_rounds(self, request: web.Request) -> web.Response:
        """Rounds from first to last."""
        allow(request, *READERS)
        name = _contract(request)
        first = whole_number(request, "first", 1)
        last = whole_number(request, "last", 0) or None
        return answer(await self.live.read(lambda ledger: ledger.rounds(name, first, last)))

    async def get_round(self, request: web.Request) -> web.Response:
        """One round, now or when it has changed."""
        allow(request, *READERS)
        name, number = _round(request)
        after, wait_s = whole_number(request, "after", 0), waiting_time(request)
        return answer(await wait_for_round(self.live, name, number, after=after, wait_s=wait_s))

    async def share(self, request: web.Request) -> web.Response:
        """A step of merging the round in shards."""
        name, number = _round(request)
        said = await body(request)
        node, incarnation = await self._act(request, said)
        statement = take(said, "statement", Statement)
        await self.live.write(lambda ledger: ledger.share(name, number, node, incarnation, statement))
        return web.json_response({})

    async def get_shared(self, request: web.Request) -> web.Response:
        """What the nodes have stated of a step, now or when enough have."""
        allow(request, *READERS)
        name, number = _round(request)
        shares = Shares(
            of=request.query.get("of", ""),
            step=whole_number(request, "step", 0),
            place=whole_number(request, "place", 0),
        )
        count, wait_s = whole_number(request, "count", 1), waiting_time(request)
        return answer(await wait_for_shares(self.live, name, number, shares, count=count, wait_s=wait_s))

    async def get_events(self, request: web.Request) -> web.Response:
        """Events, now or when there are any."""
        allow(request, *READERS)
        contract = request.query.get("contract")
        after, wait_s = whole_number(request, "after", 0), waiting_time(request)
        return answer(await wait_for_events(self.live, contract, after=after, wait_s=wait_s))

    async def _act(self, request: web.Request, said: dict[str, Any]) -> tuple[str, int]:
        """The node that the request acts for, which is alive by that, and its incarnation."""
        node, incarnation = str(acting(request, said, "node")), take(said, "incarnation", int)
        await self.membership.act(node, incarnation)
        return node, incarnation

    async def _change_round(self, request: web.Request, change: Callable[[Ledger, str, int], object]) -> web.Response:
        name, number = _round(request)

        def act(ledger: Ledger) -> Round:
            change(ledger, name, number)
            return ledger.round(name, number)

        return answer(await self.live.write(act))


def check_same(asked: ContractSpec, there: ContractSpec) -> None:
    """Refuse settings other than those the contract was created with; says which, and both values."""
    differences = [
        f"{key} is {getattr(there, key)} there and {getattr(asked, key)} here"
        for key in (field.name for field in fields(ContractSpec))
        if key != "model" and getattr(there, key) != getattr(asked, key)
    ]
    if differences:
        raise ContractMismatch(
            f"training contract {there.name} exists with other settings: {'; '.join(differences)}. "
            "Use those, or another contract name"
        )
    if asked.model != there.model:
        raise ModelMismatch(
            f"training contract {there.name} exists for another model: its layout is {there.model[:12]}..., "
            f"this one's {asked.model[:12]}.... Names, shapes and dtypes of all tensors must be the same"
        )


def _shown(progress: Progress) -> Progress:
    """What the SN keeps of a node's progress: it stays in memory and is told to everybody."""
    return replace(
        progress,
        contract=progress.contract[:63],
        metric_name=progress.metric_name[:63],
        waiting=progress.waiting[:MAX_WAITING_CHARS],
        loss=_figure(progress.loss),
        metric=_figure(progress.metric),
        **{key: min(max(getattr(progress, key), 0), MAX_COUNT) for key in ("epoch", "total_epochs", "batch")},
    )


def _recorded(check_in: CheckIn) -> CheckIn:
    """The check-in without figures that the ledger could not hold; ProtocolError for resources that nobody can use."""
    used = check_in.resources
    if not (0 <= used.cpu_s <= MAX_COUNT and 0 <= used.gpu_s <= MAX_COUNT):
        raise ProtocolError(f"check_in: resources: {used.cpu_s} s and {used.gpu_s} s are no times")
    return replace(check_in, loss=_figure(check_in.loss), metric=_figure(check_in.metric))


def _figure(value: float | None) -> float | None:
    """A loss or metric; None where a training that diverged has none worth the name."""
    return value if value is not None and abs(value) <= MAX_FIGURE else None


def _contract(request: web.Request) -> str:
    return named(request, "contract", "training contract")


def _round(request: web.Request) -> tuple[str, int]:
    return _contract(request), whole(request.match_info["number"], "the round's number")
