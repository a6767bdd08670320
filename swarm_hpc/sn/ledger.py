"""The ledger of a network as its nodes use it: sites, nodes, training contracts, rounds and events.

Synchronous; an asyncio caller uses `asyncio.to_thread`. Every rule is in the contracts (docs/protocol.md 4): what they
refuse comes back as the exception they name. Tasks and taskrunners are in ledger_tasks.py.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3.providers.base import BaseProvider

from swarm_hpc.config import LedgerConfig, LedgerKind
from swarm_hpc.errors import ConfigError, LedgerError, ProtocolError
from swarm_hpc.records import (
    MAX_PEERS,
    CheckIn,
    ContractSpec,
    DeclaredContract,
    Event,
    FinishMode,
    LedgerStatus,
    NodeName,
    NodeRecord,
    Platform,
    Round,
    SiteRecord,
    Statement,
    TrainingContract,
)
from swarm_hpc.sn import views
from swarm_hpc.sn.chain import Chain
from swarm_hpc.sn.embedded import EmbeddedProvider
from swarm_hpc.sn.journal import Journal
from swarm_hpc.sn.ledger_tasks import TaskLedger

log = logging.getLogger(__name__)

JOURNAL = "ledger.sqlite"
KEY = "account.key"
SCHEMA = 6
LINKED = ("Training", "Tasks", "Shards")
"""The contracts that the Registry names."""
NODES_PER_PAGE = 64
"""Shards.PAGE"""
BLOCKS_PER_QUERY = 2000
NO_ACCOUNT = "0x" + "00" * 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Founder:
    """The site that founds a network: its name, its SN's address, its CA's fingerprint and its consensus keys."""

    site: str
    endpoint: str
    ca_fingerprint: str
    consensus_key: str = ""
    p2p_id: str = ""


class Ledger(TaskLedger):
    """One network's ledger, used through one account. Safe to use from several threads."""

    def __init__(
        self,
        provider: BaseProvider,
        account: LocalAccount,
        *,
        kind: str,
        found: Founder | None = None,
        registry: str | None = None,
    ):
        """Attach to the ledger behind the provider; with `found`, deploy what of it is not there yet.

        `registry` is where the Registry is, or will be; None looks for the chain's first contract.
        """
        self._chain = Chain(provider, account)
        self.kind = kind
        """The provider's: embedded, geth."""
        self._counted = (0, 0)
        self._unreadable: set[str] = set()
        if registry is None:
            registry = self._chain.first_contract()
        elif not self._chain.has_code(registry):
            registry = None
        if registry is None:
            if found is None:
                raise LedgerError(f"the {kind} ledger is empty, and this SN is not to found a network")
            views.label(found.site, "site")
            registry = self._chain.deploy("Registry", *_site_arguments(**asdict(found)))
        self._chain.attach("Registry", registry)
        self._attach_others(registry, found)

    def _attach_others(self, registry: str, found: Founder | None) -> None:
        schema = self._chain.call("Registry", "schema")
        if schema != SCHEMA:
            raise LedgerError(f"the ledger has schema {schema}, this program knows {SCHEMA}: update it")
        addresses = {name: self._chain.call("Registry", name.lower()) for name in LINKED}
        if NO_ACCOUNT in addresses.values():
            # New, or founding was interrupted: what was deployed without being linked is left behind.
            if found is None:
                raise LedgerError("the founding of the network was interrupted; start the founding SN again")
            addresses = {name: self._chain.deploy(name, registry) for name in LINKED}
            self._chain.send("Registry", "link", *addresses.values(), what="linking the contracts")
        for name, address in addresses.items():
            self._chain.attach(name, address)

    @classmethod
    def open(
        cls, config: LedgerConfig, data_dir: Path, *, found: Founder | None, clock: Callable[[], float] = time.time
    ) -> Self:
        """Open the embedded ledger in `data_dir`, or found one there when there is none and `found` says who.

        The same call again reopens it. LedgerError when another process has it open or its journal was altered.
        """
        data_dir.mkdir(parents=True, exist_ok=True)
        path = data_dir / JOURNAL
        if found is None and not path.exists():
            raise LedgerError(f"{path}: no such file, and this SN is not to found a network")
        with_journal = Journal(path, config.chain_id)
        try:
            account = load_account(data_dir / KEY)
            return cls(EmbeddedProvider(with_journal, clock=clock), account, kind=config.kind, found=found)
        except BaseException:
            with_journal.close()
            raise

    @classmethod
    def read(cls, data_dir: Path) -> Self:
        """Open an embedded ledger, or a copy of one, for reading, even while its SN runs: the state of this moment."""
        with Journal(data_dir / JOURNAL, None, read_only=True) as journal:
            # Nothing is ever signed: any account will do, and the copy needs no key.
            return cls(EmbeddedProvider(journal, read_only=True), Account.create(), kind="embedded")

    def close(self) -> None:
        """Release the ledger; a second time has no effect."""
        self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- the ledger itself ---

    @property
    def is_shared(self) -> bool:
        """Whether other SNs write on it, too: each for its own site."""
        return self.kind != LedgerKind.EMBEDDED

    @property
    def account(self) -> str:
        """Ethereum address that this SN's sites speak through."""
        return self._chain.account

    def now(self) -> int:
        """Ledger time, seconds since 1970: what the next transaction would be stamped with."""
        return self._chain.now()

    def halted(self) -> str:
        """Why nothing can be written now, and who is missing; empty while the ledger goes on."""
        return self._chain.halted()

    def status(self) -> LedgerStatus:
        """Height and size of the ledger."""
        height = self._chain.height()
        block, transactions = self._counted
        transactions += self._chain.num_transactions(block + 1, height)
        self._counted = (height, transactions)
        return LedgerStatus(
            kind=self.kind,
            chain_id=self._chain.chain_id,
            height=height,
            transactions=transactions,
            blocks=height,
            genesis=self._chain.block_hash(0),
        )

    def cursor(self) -> int:
        """The highest cursor so far: every later event has a higher one."""
        return (self._chain.height() + 1) * views.LOGS_PER_BLOCK - 1

    def events(self, after: int = 0, *, contract: str | None = None, limit: int = 1000) -> tuple[Event, ...]:
        """Up to `limit` events with a higher cursor, oldest first; with `contract` only those that concern it."""
        found: list[Event] = []
        first, height = max(1, after // views.LOGS_PER_BLOCK), self._chain.height()
        while first <= height and len(found) < limit:
            last = min(first + BLOCKS_PER_QUERY - 1, height)
            found += [one for one in map(views.event, self._chain.logs(first, last, contract)) if one.cursor > after]
            first = last + 1
        return tuple(found[:limit])

    def all_events(self, contract: str | None = None) -> Iterator[Event]:
        """Every event, oldest first; with `contract` only those that concern it."""
        cursor = 0
        while page := self.events(cursor, contract=contract):
            yield from page
            cursor = page[-1].cursor

    # --- sites and nodes ---

    def sites(self) -> tuple[SiteRecord, ...]:
        """All sites that were ever admitted, in the order of their admission."""
        return tuple(views.site(one) for one in self._pages("site_page"))

    def vote(
        self,
        site: str,
        account: str,
        endpoint: str,
        ca_fingerprint: str,
        admit: bool,
        *,
        consensus_key: str = "",
        p2p_id: str = "",
    ) -> None:
        """Vote, for every site of this account, to admit (or change) or to remove a site; more than half decide."""
        name, *rest = _site_arguments(site, endpoint, ca_fingerprint, consensus_key, p2p_id)
        what = f"vote to {'admit' if admit else 'remove'} {site}"
        self._chain.send("Registry", "vote", name, account, *rest, admit, what=what)

    def announce(self, endpoint: str) -> None:
        """Say, for every site of this account, that its SN is there and reached at `endpoint`.

        A site gets voting power in the consensus by the first time, and by the next one after it lost it.
        """
        self._chain.send("Registry", "announce", views.text(endpoint, 260, "endpoint"), what="announcing this SN")

    def report_lost(self, site: str) -> None:
        """Say that the SN of another site is gone; no-op where that is settled. More than half of the others decide.

        From then on `set_away` and `set_node_active(..., False)` are open to every member for that site's nodes.
        """
        self._chain.send("Registry", "report_lost", site, what=f"reporting that {site} is lost")

    def register_node(self, name: str, endpoint: str, instance: str) -> NodeRecord:
        """Make the node active and raise its incarnation, which fences off its earlier processes."""
        node = _node_name(name)
        endpoint, instance = views.text(endpoint, 260, "endpoint"), views.text(instance, 64, "instance")
        arguments = (node.site, str(node.kind), node.name, endpoint, instance)
        self._chain.send("Registry", "register_node", *arguments, what=f"registering {name}")
        return self.node(name)

    def set_node_active(self, name: str, active: bool) -> None:
        """Mark the node away (False) or present; no-op where it is so."""
        self._chain.send("Registry", "set_node_active", name, active, what=f"marking {name}")

    def node(self, name: str) -> NodeRecord:
        """The node's record; NotFound."""
        return views.node(self._chain.call("Registry", "node", name, what=name))

    def nodes(self) -> tuple[NodeRecord, ...]:
        """All nodes that were ever registered, in the order of their first registration."""
        return tuple(views.node(one) for one in self._pages("node_page"))

    def _pages(self, function: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        while page := self._chain.call("Registry", function, len(found) + 1):
            found += page
        return found

    # --- training contracts ---

    def create_contract(self, spec: ContractSpec) -> None:
        """Create a training contract; no-op when it is there with the same settings, else ContractMismatch."""
        views.label(spec.name, "contract")
        what = f"training contract {spec.name}"
        self._chain.send("Training", "create_contract", views.spec_arguments(spec), what=what)

    def declare_contract(self, name: str) -> None:
        """Set a name aside for a training contract; no-op where it is."""
        views.label(name, "contract")
        self._chain.send("Registry", "declare_contract", name, what=f"declaring training contract {name}")

    def declared_contracts(self) -> tuple[DeclaredContract, ...]:
        """Declared names that no contract has, oldest first."""
        taken = set(self._contract_names())
        declared = [views.declared(one) for one in self._pages("declared_page")]
        return tuple(one for one in declared if one.name not in taken)

    def reset_contract(self, name: str) -> str:
        """Make the name of a completed contract free for another training; the name under which the old one stays.

        ContractBusy, NotFound.
        """
        taken = set(self._contract_names())
        archive = next(one for one in (f"{name}.{at}" for at in itertools.count(1)) if one not in taken)
        views.label(archive, "name of the archived contract")
        what = f"resetting training contract {name}"
        self._chain.send("Training", "reset_contract", name, archive, what=what)
        return archive

    def contract(self, name: str) -> TrainingContract:
        """The training contract; NotFound. ProtocolError: a site with a later version has created it."""
        view = self._chain.call("Training", "contract_view", name, what=f"training contract {name}")
        try:
            return views.contract(view)
        except (ProtocolError, ValueError) as exc:
            raise ProtocolError(f"training contract {name}: this version cannot read it, update it: {exc}") from exc

    def contracts(self) -> tuple[TrainingContract, ...]:
        """All training contracts, oldest first, but for those that this version cannot read: a warning names them."""
        found = []
        for name in self._contract_names():
            try:
                found.append(self.contract(name))
            except ProtocolError as exc:
                if name not in self._unreadable:
                    self._unreadable.add(name)
                    log.warning("%s", exc)
        return tuple(found)

    def _contract_names(self) -> list[str]:
        numbers = range(1, self._chain.call("Training", "num_contracts") + 1)
        return [self._chain.call("Training", "contract_name", number) for number in numbers]

    def join(self, contract: str, node: str, incarnation: int, platform: Platform, model: str) -> None:
        """Take part, for the first time or again. ContractMismatch, ModelMismatch, TrainingOver, Fenced."""
        digest = views.hash_bytes(model, "model")
        what = f"{node} joining {contract}"
        self._chain.send("Training", "join", contract, node, incarnation, str(platform), digest, what=what)

    def set_away(self, contract: str, node: str) -> None:
        """Rounds no longer wait for this participant; no-op where it is away."""
        self._chain.send("Training", "set_away", contract, node, what=f"marking {node} away in {contract}")

    def finish(self, contract: str, node: str, incarnation: int, mode: FinishMode) -> None:
        """The participant trains no more; no-op where it has finished this way."""
        number = views.FINISH_MODES.index(FinishMode(mode))
        self._chain.send("Training", "finish", contract, node, incarnation, number, what=f"{node} finishing {contract}")

    # --- rounds ---

    def check_in(self, contract: str, number: int, incarnation: int, check_in: CheckIn) -> None:
        """State the hash of a node's parameters; the same again is a no-op. RoundClosed, TrainingOver, Fenced."""
        entry = views.entry_arguments(check_in)
        what = f"{check_in.node} checking in to round {number} of {contract}"
        self._chain.send("Training", "check_in", contract, number, check_in.node, incarnation, entry, what=what)

    def claim(self, contract: str, number: int, node: str, incarnation: int) -> None:
        """Lead the round, if it can close. NotEnoughPeers, RoundClaimed, RoundClosed, Fenced."""
        what = f"{node} claiming round {number} of {contract}"
        self._chain.send("Training", "claim", contract, number, node, incarnation, what=what)

    def publish(self, contract: str, number: int, node: str, incarnation: int, merged: str) -> None:
        """State the hash of the merged parameters, as the leader. NotLeader, Fenced."""
        digest = views.hash_bytes(merged, "merged")
        what = f"{node} publishing round {number} of {contract}"
        self._chain.send("Training", "publish", contract, number, node, incarnation, digest, what=what)

    def drop(self, contract: str, number: int, node: str, incarnation: int, absent: str) -> None:
        """State, as the leader, that the blob of `absent`, which is away, cannot be had: its check-in is removed.

        The round opens again where fewer than min_peers are left. No-op where `absent` is dropped already. NotLeader;
        RoundError while `absent` is not away; RoundClosed, Fenced.
        """
        absent = str(_node_name(absent))
        what = f"{node} dropping {absent} from round {number} of {contract}"
        self._chain.send("Training", "drop", contract, number, node, incarnation, absent, what=what)

    def round(self, contract: str, number: int) -> Round:
        """The round as it is now. The current one may have no check-ins; NotFound for a later one."""
        view = self._chain.call("Training", "round_view", contract, number, what=f"round {number} of {contract}")
        return views.round_(contract, view)

    def rounds(self, contract: str, first: int = 1, last: int | None = None) -> tuple[Round, ...]:
        """Rounds `first` to `last`, at most up to the current one, which may still be empty."""
        current = self.contract(contract).round
        return tuple(self.round(contract, number) for number in range(max(1, first), min(last or current, current) + 1))

    # --- shards of a round's merge ---

    def share(self, contract: str, number: int, node: str, incarnation: int, statement: Statement) -> None:
        """State the blobs of one step of merging a round in shards; the same again is a no-op. Fenced."""
        if len(statement.blobs) > MAX_PEERS:
            raise ConfigError(f"blobs: {len(statement.blobs)} are more than a round has peers, {MAX_PEERS}")
        blobs = [views.hash_bytes(blob, "blob") for blob in statement.blobs]
        of = views.hash_bytes(statement.of, "of")
        what = f"{node} sharing step {statement.step} of round {number} of {contract}"
        self._chain.send("Shards", "share", contract, number, node, incarnation, of, statement.step, blobs, what=what)

    def shared(self, contract: str, number: int, of: str, step: int, place: int) -> dict[str, str]:
        """By node that has stated this step of the round, for the check-ins that `of` stands for: its blob `place`."""
        found: dict[str, str] = {}
        digest = views.hash_bytes(of, "of")
        for first in range(1, self._chain.call("Shards", "num_nodes", contract) + 1, NODES_PER_PAGE):
            for one in self._chain.call("Shards", "page", contract, number, digest, step, place, first):
                found[one["node"]] = views.hash_text(one["blob"])
        return found


def _site_arguments(
    site: str, endpoint: str, ca_fingerprint: str, consensus_key: str, p2p_id: str
) -> tuple[object, ...]:
    """A site as Registry takes it."""
    views.label(site, "site")
    return (
        site,
        views.text(endpoint, 260, "endpoint"),
        views.text(ca_fingerprint, 95, "ca_fingerprint"),
        views.hash_bytes(consensus_key, "consensus_key"),
        views.text(p2p_id, 40, "p2p_id"),
    )


def load_account(path: Path) -> LocalAccount:
    """The account whose key is in the file (0600); made where there is none. The key never leaves the file."""
    if not path.exists():
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(fd)
        fresh.rename(path)
    try:
        account: LocalAccount = Account.from_key(path.read_text().strip())
    except (ValueError, OSError) as exc:
        # `from None`: the cause might quote the key.
        raise LedgerError(f"{path}: no usable account key ({type(exc).__name__}); restore it from a backup") from None
    return account


def _node_name(text: str) -> NodeName:
    try:
        return NodeName.parse(text)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
