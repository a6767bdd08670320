"""How the consensus does, as one site sees it: for `swarm-hpc status` and for whoever asks why nothing goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median_low
from typing import Final

from swarm_hpc.config import LedgerConfig
from swarm_hpc.errors import SwarmError
from swarm_hpc.records import ConsensusStatus, ValidatorStatus
from swarm_hpc.sn.consensus import Consensus
from swarm_hpc.sn.links import Links
from swarm_hpc.sn.powers import has_quorum

MAX_SKEW_S: Final = 10


def consensus_status(consensus: Consensus, links: Links, folder: Path, config: LedgerConfig) -> ConsensusStatus:
    """Validators with power and presence, how far behind this site is, and what its operator should know. Blocking."""
    powers = consensus.standing().powers
    seen, own = links.last_seen_s(), consensus.own_key
    validators = []
    for site in consensus.sites:
        if not site.active:
            continue
        last_seen_s = 0.0 if site.consensus_key == own else seen.get(site.name)
        power = powers.get(site.consensus_key, 0)
        validators.append(
            ValidatorStatus(site=site.name, power=power, connected=last_seen_s == 0.0, last_seen_s=last_seen_s)
        )
    try:
        behind = max([0, *(height - consensus.height for height in consensus.peer_heights())])
    except SwarmError:
        behind = 0
    halted = consensus.halted()
    return ConsensusStatus(
        network=consensus.network.id(),
        height=consensus.height,
        last_block_age_s=consensus.quiet_s(),
        behind=behind,
        validators=tuple(validators),
        halted=halted,
        warnings=tuple(_warnings(consensus, validators, folder, config, behind)),
    )


def _warnings(
    consensus: Consensus, validators: list[ValidatorStatus], folder: Path, config: LedgerConfig, behind: int
) -> list[str]:
    found = []
    here = [one.power for one in validators if one.connected]
    total = sum(one.power for one in validators)
    if here and has_quorum(sum(here), total) and not has_quorum(sum(here) - max(here), total):
        missing = [one.site for one in validators if one.power and not one.connected]
        if missing:
            found.append(f"quorum at risk: without {', '.join(missing)}, the loss of one more site can halt the ledger")
    if fault := consensus.fault():
        found.append(f"the ledger's programs do not run here: {fault}")
    skew_s = _own_skew_s(consensus)
    if abs(skew_s) > MAX_SKEW_S:
        found.append(f"the clock here differs by {skew_s:.0f} s from the other sites': check NTP")
    free = os.statvfs(folder)
    free_mib = free.f_bavail * free.f_frsize >> 20
    if free_mib < config.min_free_mib:
        found.append(
            f"{folder}: {free_mib} MiB are left on the disk, fewer than ledger.min_free_mib={config.min_free_mib}"
        )
    if behind > 10:
        found.append(f"this site is {behind} blocks behind")
    return found


def _own_skew_s(consensus: Consensus) -> float:
    own = next((site.name for site in consensus.sites if site.consensus_key == consensus.own_key), "")
    try:
        return clock_skew_s(consensus.vote_times(), own, time.time())
    except SwarmError:
        return 0.0


def clock_skew_s(vote_times: Mapping[str, float], own: str, now: float) -> float:
    """How far site `own`'s clock, which says `now`, is ahead of most sites', by when each voted; 0 where unknown.

    Who is behind cannot be seen on its own vote, whose time is never before the block's: then the clock itself.
    Among all votes, since a commit has few: one wrong clock must not make the others look wrong.
    """
    if not vote_times.keys() - {own}:
        return 0.0
    usual = median_low(vote_times.values())
    return min(0.0, now - usual) or max(0.0, vote_times.get(own, usual) - usual)
