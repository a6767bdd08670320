"""Who has how much say in the consensus: a pure rule that every site's ABCI application applies to the same blocks.

The Registry contract says who is a member and who has announced itself; the commits say who was there. No clock here:
time is the block's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, Self

from swarm_hpc.config import PowerRule
from swarm_hpc.records import SiteRecord

UNIT: Final = 10
"""Voting power of a site that has no more than the others."""
_SENIOR: Final[Mapping[int, Sequence[int]]] = {2: (3, 1), 3: (2, 1, 1)}
"""Shares by number of sites: with these the senior one alone, or with any other one, is more than 2/3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What the founder chose; part of the network's genesis, so the same at all sites."""

    power: PowerRule
    jail_after_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """Whether a validator (address: the first 20 bytes of SHA-256 of its key) voted in the last block's commit."""

    address: bytes
    present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the rule remembers from one block to the next. Keys are Ed25519 public keys in hex."""

    powers: Mapping[str, int]
    """The validator set that the blocks so far have decided."""
    missing_since: Mapping[str, int] = field(default_factory=dict)
    """Key -> block time (s) of the first of the commits in a row that it did not vote in."""
    jailed: Mapping[str, int] = field(default_factory=dict)
    """Site -> how often it had announced itself when it lost its power; it needs to do so once more."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Site -> the key that it has power with: with another one it has to announce itself first."""

    def as_json(self) -> str:
        """The same standing has the same text."""
        values = {"powers": self.powers, "missing_since": self.missing_since, "jailed": self.jailed, "keys": self.keys}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `as_json` wrote."""
        return cls(**json.loads(text))

    def updates(self, later: Standing) -> dict[str, int]:
        """What CometBFT has to be told between two standings: key -> new power, 0 for one that is no validator now."""
        gone = {key: 0 for key in self.powers if key not in later.powers}
        return gone | {key: power for key, power in later.powers.items() if self.powers.get(key) != power}


def address_of(key: str) -> bytes:
    """A validator's address in CometBFT, from its key in hex."""
    return sha256(bytes.fromhex(key)).digest()[:20]


def step(standing: Standing, sites: Sequence[SiteRecord], votes: Iterable[Vote], time_s: int, rule: Rule) -> Standing:
    """The standing after one more block.

    `sites` are those of the Registry after this block, in order of admission; `votes` those of the last commit,
    `time_s` the block's time. A validator that voted in no commit for `jail_after_s` loses its power, unless nobody
    would be left.
    """
    attended = _attended(standing, votes, time_s)
    jailed = _jailed(attended, sites, time_s, rule)
    eligible = [site for site in sites if _has_say(site, jailed)]
    if not eligible:
        return attended
    given = shares(len(eligible), rule.power)
    powers = {site.consensus_key: share * UNIT for site, share in zip(eligible, given, strict=True)}
    missing = {key: since for key, since in attended.missing_since.items() if key in powers}
    return replace(
        attended,
        powers=powers,
        missing_since=missing,
        jailed=jailed,
        keys={site.name: site.consensus_key for site in eligible},
    )


def shares(num_sites: int, rule: PowerRule) -> Sequence[int]:
    """Shares of the sites with a say, in order of admission: below four, the senior one of them carries more."""
    if rule is PowerRule.SENIOR and num_sites in _SENIOR:
        return _SENIOR[num_sites]
    return (1,) * num_sites


def has_quorum(present: int, total: int) -> bool:
    """Whether this much voting power makes blocks: more than 2/3 (CometBFT)."""
    return 3 * present > 2 * total


def _attended(standing: Standing, votes: Iterable[Vote], time_s: int) -> Standing:
    here = {vote.address: vote.present for vote in votes}
    missing = {}
    for key in standing.powers:
        # Who is no validator in that commit yet was not asked.
        if here.get(address_of(key), True):
            continue
        missing[key] = standing.missing_since.get(key, time_s)
    return replace(standing, missing_since=missing)


def _jailed(standing: Standing, sites: Sequence[SiteRecord], time_s: int, rule: Rule) -> dict[str, int]:
    kept = {site.name: site.announced for site in sites if not site.active}
    for site in sites:
        if site.active and standing.jailed.get(site.name, -1) >= site.announced:
            kept[site.name] = standing.jailed[site.name]
        elif site.active and standing.keys.get(site.name, site.consensus_key) != site.consensus_key:
            kept[site.name] = site.announced
    late = {key for key, since in standing.missing_since.items() if time_s - since >= rule.jail_after_s}
    absent = [site for site in sites if _has_say(site, kept) and site.consensus_key in late]
    if len(absent) < sum(_has_say(site, kept) for site in sites):
        kept.update((site.name, site.announced) for site in absent)
    return kept


def _has_say(site: SiteRecord, jailed: Mapping[str, int]) -> bool:
    return bool(site.active and site.consensus_key and site.announced > jailed.get(site.name, 0))
