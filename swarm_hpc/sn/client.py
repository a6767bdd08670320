"""The only way other parts talk to an SN: one method per row of docs/protocol.md 2.1, and its blobs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

from swarm_hpc.config import ClientConfig, ConnectionConfig
from swarm_hpc.errors import LedgerHalted, ProtocolError
from swarm_hpc.identity import certs
from swarm_hpc.identity.certs import Identity
from swarm_hpc.records import (
    CheckIn,
    ContractSpec,
    DeclaredContract,
    Event,
    FinishMode,
    Kind,
    NetworkStatus,
    NodeRecord,
    NodeStatus,
    Platform,
    Progress,
    RecoveryStatus,
    Round,
    SeenVotes,
    SiteApplication,
    SiteList,
    Statement,
    TrainingContract,
    decode,
    encode,
)
from swarm_hpc.sn.client_tasks import MAX_WAIT_S, TaskClient
from swarm_hpc.transport import blobs
from swarm_hpc.transport.client import ApiClient, expect_kind

R = TypeVar("R")

log = logging.getLogger(__name__)

_HALT_PAUSE_S: Final = 1.0
_MARGIN_S: Final = 30.0
"""What an answer may take beyond the wait that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """A round and its contract, and the cursor to hand in as `after` to hear of the next change."""

    cursor: int
    round: Round
    contract: TrainingContract
    halted: str = ""
    """Why nothing can be written to the ledger at this time, so that the round cannot go on either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedView:
    """What the nodes that merge a round in shards have stated of one step, by node, and the round."""

    blobs: dict[str, str]
    view: RoundView


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events in order; `cursor` is what to hand in as `after` next time."""

    cursor: int
    events: tuple[Event, ...]


class SnClient(TaskClient):
    """Calls to one SN, over one pool of connections; closes with `async with`.

    Every method may be repeated with the effect of one call, and repeats by itself until connect_timeout_s while nobody
    answers (then NotReachable or TimedOut). What the SN refuses is raised at once as the error of errors.py it names.
    """

    def __init__(
        self,
        identity: Identity,
        address: str,
        *,
        connection: ConnectionConfig,
        site: str | None = None,
        halt_wait_s: float = 0.0,
    ) -> None:
        """`site` is the site whose SN must answer at `address`; None accepts the SN of any site of the bundle.

        A change that the ledger cannot take, because too few sites are up, is tried again for `halt_wait_s`.
        """
        self.address = address
        self.halted = ""
        """Why the ledger takes no changes at the moment, while one waits for it."""
        self._halt_wait_s = halt_wait_s
        self._identity = identity
        self._connection = connection
        self._expect = expect_kind(Kind.SN, site=site)
        self._api = ApiClient(identity, address, expect=self._expect, connection=connection)

    async def __aenter__(self) -> Self:
        await self._api.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._api.__aexit__(kind, error, traceback)

    async def status(self) -> NetworkStatus:
        """The whole network as this SN sees it."""
        return decode(NetworkStatus, await self._get("/v1/status"))

    # the network of `ledger=geth`

    async def network(self) -> tuple[str, list[Any]]:
        """The network file and its epochs, for a site that wants to join. NotFound where the ledger is not shared."""
        answer = await self._get("/v1/network")
        return decode(str, _field(answer, "network")), decode(list[Any], _field(answer, "epochs"))

    async def blocks(self, first: int) -> list[Any]:
        """Some final Ethereum blocks from that number on, as execution payloads; none beyond the newest."""
        return decode(list[Any], _field(await self._get("/v1/blocks", {"first": first}), "payloads"))

    async def recover(self, without: Sequence[str]) -> RecoveryStatus:
        """As this site's operator: agree to go on without those sites. Repeat it until nobody is missing."""
        return decode(RecoveryStatus, await self._post("/v1/recovery", without=list(without)))

    async def approvals(self, epoch: object) -> Any:
        """Tell another site of an epoch and its approvals; its own, if its operator has agreed to the same, or None."""
        return _field(await self._post("/v1/recovery/approvals", epoch=encode(epoch)), "epoch")

    async def seen_votes(self, consensus_key: str) -> SeenVotes:
        """What this SN's CometBFT has seen of the votes made with that key."""
        return decode(SeenVotes, await self._get("/v1/consensus/votes", {"key": consensus_key}))

    async def sites(self) -> SiteList:
        """The sites of the network, and those that ask to be members."""
        return decode(SiteList, await self._get("/v1/sites"))

    async def apply(self, asks: SiteApplication) -> SiteList:
        """Ask for this member's vote; repeat it until the site is in the list."""
        return decode(SiteList, await self._post("/v1/sites", application=encode(asks)))

    async def admit(self, site: str) -> SiteList:
        """Vote to admit a site that has asked."""
        return decode(SiteList, await self._post(f"/v1/sites/{quote(site, safe='')}/admit"))

    async def remove(self, site: str) -> SiteList:
        """Vote to remove a site."""
        return decode(SiteList, await self._post(f"/v1/sites/{quote(site, safe='')}/remove"))

    # nodes

    async def register(self, name: str, endpoint: str, instance: str) -> tuple[NodeRecord, float]:
        """Take the name, with an incarnation above all earlier ones; its record and the lease in seconds.

        `instance` is the random ID of the node's state folder: another instance while the lease runs is DuplicateNode.
        """
        answer = await self._post("/v1/nodes", name=name, endpoint=endpoint, instance=instance)
        return decode(NodeRecord, _field(answer, "node")), decode(float, _field(answer, "lease_s"))

    async def heartbeat(self, name: str, incarnation: int, progress: Progress) -> float:
        """Renew the lease and say how far the program is; the lease in seconds.

        NotFound: the lease was over and the node is away, register and join again. Fenced: another process took over.
        """
        answer = await self._post("/v1/nodes/heartbeat", name=name, incarnation=incarnation, progress=encode(progress))
        return decode(float, _field(answer, "lease_s"))

    async def leave(self, name: str, incarnation: int) -> None:
        """End the lease at once: the node is away, and rounds no longer wait for it."""
        await self._post("/v1/nodes/leave", name=name, incarnation=incarnation)

    async def nodes(self) -> tuple[NodeStatus, ...]:
        """All nodes that ever registered, with the progress of those that live."""
        return decode(tuple[NodeStatus, ...], await self._get("/v1/nodes"))

    # training contracts

    async def create_contract(self, spec: ContractSpec) -> TrainingContract:
        """Create the contract, or compare with the one that is there (ContractMismatch, ModelMismatch)."""
        return decode(TrainingContract, await self._post("/v1/contracts", spec=encode(spec)))

    async def contract(self, name: str) -> TrainingContract:
        """The contract of that name; NotFound."""
        return decode(TrainingContract, await self._get(_path(name)))

    async def contracts(self) -> tuple[TrainingContract, ...]:
        """All contracts, oldest first."""
        return decode(tuple[TrainingContract, ...], await self._get("/v1/contracts"))

    async def declare_contract(self, contract: str) -> None:
        """Set a name aside for a training contract; a repeat has no effect. For swci (NotAuthorized)."""
        await self._post(_path(contract, "declare"))

    async def declared_contracts(self) -> tuple[DeclaredContract, ...]:
        """Declared names that no node has taken part under yet, oldest first."""
        return decode(tuple[DeclaredContract, ...], await self._get("/v1/declared-contracts"))

    async def reset_contract(self, contract: str) -> str:
        """Make the name of a completed contract free for a new training; the name under which the old one stays.

        For swci. ContractBusy: it is not completed. NotFound. A repeat after the reset is NotFound, too.
        """
        return decode(str, _field(await self._post(_path(contract, "reset")), "archive"))

    async def join(
        self, contract: str, node: str, incarnation: int, platform: Platform, model: str
    ) -> TrainingContract:
        """Take part in the contract (again), with that platform and model (ContractMismatch, ModelMismatch)."""
        answer = await self._post(
            _path(contract, "join"), node=node, incarnation=incarnation, platform=platform, model=model
        )
        return decode(TrainingContract, answer)

    async def finish(self, contract: str, node: str, incarnation: int, mode: FinishMode) -> TrainingContract:
        """The node trains no more; `mode` says what it still contributes."""
        answer = await self._post(_path(contract, "finish"), node=node, incarnation=incarnation, mode=mode)
        return decode(TrainingContract, answer)

    # rounds

    async def check_in(self, contract: str, number: int, incarnation: int, check_in: CheckIn) -> Round:
        """State the hash of the node's parameters for this round; RoundClosed, TrainingOver."""
        answer = await self._post(
            _path(contract, "rounds", number, "check-in"), incarnation=incarnation, check_in=encode(check_in)
        )
        return decode(Round, answer)

    async def claim(self, contract: str, number: int, node: str, incarnation: int) -> Round:
        """Lead a closable round, or replace a lost leader; NotEnoughPeers, RoundClaimed."""
        answer = await self._post(_path(contract, "rounds", number, "claim"), node=node, incarnation=incarnation)
        return decode(Round, answer)

    async def drop(self, contract: str, number: int, node: str, incarnation: int, absent: str) -> Round:
        """Take the check-in of `absent`, whose blob cannot be had, out of the round; below min_peers it opens again.

        For the leader (NotLeader); RoundError while `absent` is not away on the ledger.
        """
        answer = await self._post(
            _path(contract, "rounds", number, "drop"), node=node, incarnation=incarnation, absent=absent
        )
        return decode(Round, answer)

    async def publish(self, contract: str, number: int, node: str, incarnation: int, merged: str) -> Round:
        """Name the merged blob, which the others fetch from now on: put it first. NotLeader."""
        answer = await self._post(
            _path(contract, "rounds", number, "publish"), node=node, incarnation=incarnation, merged=merged
        )
        return decode(Round, answer)

    async def round(self, contract: str, number: int, *, after: int = 0, wait_s: float = 0) -> RoundView:
        """The round, at once if the contract has an event after that cursor, else when it has one or a deadline of
        the round passes, or after `wait_s` (the SN caps it at 30)."""
        wait_s = min(wait_s, MAX_WAIT_S)
        answer = await self._get(_path(contract, "rounds", number), {"after": after, "wait_s": wait_s}, wait_s)
        return decode(RoundView, answer)

    async def share(self, contract: str, number: int, node: str, incarnation: int, statement: Statement) -> None:
        """Tell the others the blobs of one step of merging the round in shards: put them first. Fenced."""
        path = _path(contract, "rounds", number, "shards")
        await self._post(path, node=node, incarnation=incarnation, statement=encode(statement))

    async def shared(
        self, contract: str, number: int, of: str, step: int, *, place: int = 0, count: int = 1, wait_s: float = 0
    ) -> SharedView:
        """The blob `place` of each node that has stated this step for the check-ins `of`, as soon as `count` have, the
        round is no longer claimed, or after `wait_s` (the SN caps it at 30)."""
        wait_s = min(wait_s, MAX_WAIT_S)
        query: dict[str, str | float] = {"of": of, "step": step, "place": place, "count": count, "wait_s": wait_s}
        return decode(SharedView, await self._get(_path(contract, "rounds", number, "shards"), query, wait_s))

    async def rounds(self, contract: str, first: int = 1, last: int | None = None) -> tuple[Round, ...]:
        """Rounds `first` to `last` (inclusive), at most up to the current one, which may still be empty."""
        query = {"first": first} if last is None else {"first": first, "last": last}
        return decode(tuple[Round, ...], await self._get(_path(contract, "rounds"), query))

    async def events(self, after: int, *, contract: str | None = None, wait_s: float = 0) -> EventPage:
        """Events after that cursor (a page of them: ask on with the new cursor), waiting for one if there is none."""
        wait_s = min(wait_s, MAX_WAIT_S)
        query: dict[str, str | float] = {"after": after, "wait_s": wait_s}
        if contract is not None:
            query["contract"] = contract
        return decode(EventPage, await self._get("/v1/events", query, wait_s))

    # blobs

    async def upload(self, blob: str, data: memoryview | Path, contract: str) -> None:
        """Hand a blob of the contract to the SN; a no-op where it has it already. DiskFull, BlobCorrupt."""
        await blobs.upload(
            self._identity,
            self.address,
            blob,
            data,
            contract=contract,
            expect=self._expect,
            connection=self._connection,
        )

    async def adopt(self, blob: str, contract: str) -> None:
        """Let the SN take the file named `blob` out of the shared folder."""
        await self._api.call(
            "POST",
            f"/v1/blobs/{blob}/adopt",
            body={"contract": contract},
            timeout_s=self._connection.transfer_timeout_s,
        )

    async def download(
        self,
        blob: str,
        *,
        into: Path | blobs.Sink | None = None,
        buffers: Sequence[memoryview] = (),
        max_bytes: int | None = None,
    ) -> memoryview | None:
        """Fetch a blob into a file, a sink, or memory: new, or the buffer that has its size; verified. BlobNotFound.

        BlobCorrupt where new memory would have more than `max_bytes`.
        """
        return await blobs.download(
            self._identity,
            self.address,
            blob,
            expect=self._expect,
            connection=self._connection,
            into=into,
            buffers=buffers,
            max_bytes=max_bytes,
        )

    async def _get(self, path: str, query: Mapping[str, str | int | float] | None = None, wait_s: float = 0) -> Any:
        return await self._api.call("GET", path, query=query, timeout_s=wait_s + _MARGIN_S)

    async def _post(self, path: str, **fields: object) -> Any:
        deadline = time.monotonic() + self._halt_wait_s
        waits = False
        try:
            while True:
                try:
                    return await self._api.call("POST", path, body=fields, timeout_s=_MARGIN_S)
                except LedgerHalted as exc:
                    if time.monotonic() > deadline:
                        raise
                    if not waits:
                        log.warning("waiting: %s", exc)
                    waits, self.halted = True, str(exc)
                await asyncio.sleep(_HALT_PAUSE_S)
        finally:
            # Only by who waited: a heartbeat, which changes nothing, is answered meanwhile.
            if waits:
                self.halted = ""


def peer_client(identity: Identity, address: str, connect_timeout_s: float) -> SnClient:
    """A client for another site's SN, which may be down: given up after a short time."""
    return SnClient(identity, address, connection=ConnectionConfig(connect_timeout_s=connect_timeout_s))


def ask(config: ClientConfig, question: Callable[[SnClient], Awaitable[R]]) -> R:
    """What the configured SN answers to one question, for code that is not asynchronous. NotReachable, TimedOut."""

    async def put() -> R:
        async with SnClient(certs.load(config.identity), config.sn, connection=config.connection) as client:
            return await question(client)

    return asyncio.run(put())


def _path(contract: str, *rest: str | int) -> str:
    return "/".join(["/v1/contracts", quote(contract, safe=""), *map(str, rest)])


def _field(answer: object, name: str) -> object:
    if not isinstance(answer, dict) or name not in answer:
        raise ProtocolError(f"the SN's answer has no field {name!r}; do both sides run the same version of swarm_hpc?")
    return answer[name]
