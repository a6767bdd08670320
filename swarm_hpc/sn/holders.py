"""Which blobs the rounds on the ledger name, and the sites whose SNs should have them. No ledger, no network here."""

from __future__ import annotations

from dataclasses import dataclass, field

from swarm_hpc.records import Event, NodeName, Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A blob as one training contract knows it."""

    blob: str
    contract: str
    round: int
    homes: tuple[str, ...]
    """Sites whose SN was given the blob before the ledger heard of it."""
    copies: tuple[str, ...] = ()
    """Sites whose SN may have fetched it since."""
    everywhere: bool = False
    """Every site in the contract fetches it sooner or later: a merged blob."""


@dataclass(slots=True)
class _Named:
    """What one round names. Dicts for their order."""

    homes: dict[str, dict[str, None]] = field(default_factory=dict)
    leaders: dict[str, None] = field(default_factory=dict)
    merged: str = ""


class Holders:
    """Filled from events and rounds, in any order, as often as one likes. A blob that a node replaced stays."""

    def __init__(self) -> None:
        self._contracts: dict[str, dict[int, _Named]] = {}
        self._where: dict[str, dict[tuple[str, int], None]] = {}

    def learn(self, event: Event) -> None:
        """Note what CheckedIn, Claimed, Shared, Published and ContractReset say; others say nothing of blobs."""
        match event.name, event.facts:
            case "CheckedIn", {"round": int(number), "node": str(node), "blob": str(blob)}:
                self._put(event.contract, number, node, blob)
            case "Claimed", {"round": int(number), "node": str(node)}:
                self._led(event.contract, number, node)
            case "Shared", {"round": int(number), "node": str(node), "blobs": str(blobs)}:
                for blob in blobs.split():
                    self._put(event.contract, number, node, blob)
            case "Published", {"round": int(number), "node": str(node), "merged": str(merged)}:
                self._merged(event.contract, number, node, merged)
            case "ContractReset", {"archive": str(archive)}:
                self.rename(event.contract, archive)

    def learn_round(self, round_: Round) -> None:
        """Note what the round names."""
        for check_in in round_.check_ins:
            self._put(round_.contract, round_.number, check_in.node, check_in.blob)
        if round_.leader:
            self._led(round_.contract, round_.number, round_.leader)
        if round_.merged:
            self._merged(round_.contract, round_.number, round_.leader, round_.merged)

    def rename(self, contract: str, archive: str) -> None:
        """What was known of the contract is known of `archive` from now on."""
        for number, named in self._contracts.pop(contract, {}).items():
            self._contracts.setdefault(archive, {})[number] = named
            for blob in named.homes:
                where = self._where[blob]
                where[archive, number] = where.pop((contract, number))

    def of(self, blob: str) -> tuple[Holding, ...]:
        """Where the blob should be, once per contract that names it: for the latest of its rounds."""
        latest = dict(sorted(self._where.get(blob, ())))
        return tuple(self._holding(blob, contract, number) for contract, number in latest.items())

    def forget(self, contract: str, before: int) -> None:
        """Drop the contract's rounds lower than `before`."""
        rounds = self._contracts.get(contract, {})
        for number in [number for number in rounds if number < before]:
            for blob in rounds.pop(number).homes:
                where = self._where[blob]
                del where[contract, number]
                if not where:
                    del self._where[blob]

    def _holding(self, blob: str, contract: str, number: int) -> Holding:
        named = self._contracts[contract][number]
        homes = tuple(named.homes[blob])
        return Holding(
            blob=blob,
            contract=contract,
            round=number,
            homes=homes,
            copies=tuple(site for site in named.leaders if site not in homes),
            everywhere=blob == named.merged,
        )

    def _round(self, contract: str, number: int) -> _Named:
        return self._contracts.setdefault(contract, {}).setdefault(number, _Named())

    def _put(self, contract: str, number: int, node: str, blob: str) -> None:
        self._round(contract, number).homes.setdefault(blob, {})[_site(node)] = None
        self._where.setdefault(blob, {})[contract, number] = None

    def _led(self, contract: str, number: int, node: str) -> None:
        self._round(contract, number).leaders[_site(node)] = None

    def _merged(self, contract: str, number: int, node: str, merged: str) -> None:
        self._put(contract, number, node, merged)
        self._round(contract, number).merged = merged


def _site(node: str) -> str:
    return NodeName.parse(node).site
