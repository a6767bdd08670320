"""Swarms whose programs hand over parameters, round after round, and write down what each round took."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from limited_links import INNER, Host

from swarm_hpc.config import (
    ExperimentConfig,
    LocalConfig,
    MergeConfig,
    ProgramConfig,
    RoundConfig,
    TransferConfig,
    TransferMode,
)
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.local.swarm import Swarm, fetch_rounds
from swarm_hpc.records import Platform

PROGRAM: Final = Path(__file__).parent / "programs" / "round.py"
CONTRACT: Final = "bench"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A swarm with one SL node per site and one SN."""

    sites: Sequence[str]
    num_parameters: int
    """Of float32."""
    num_rounds: int
    mode: TransferMode
    timeout_s: float
    merge: MergeConfig = field(default_factory=MergeConfig)
    hosts: Mapping[str, Host] = field(default_factory=dict)
    """Where a site's node runs, if not on this host itself; its traffic is then counted."""
    sn_host: str = ""
    """Address at which the SN listens; empty: loopback."""


def run(case: Case, root: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[int, str]]:
    """Rounds as each site's program saw them, and who led which round."""
    transfer = TransferConfig(mode=case.mode, port=0, keep_rounds=1)
    config = LocalConfig(
        experiment=ExperimentConfig(name="bench", metric="none", platform=Platform.PYTORCH, prepare=[], train=[]),
        sites=len(case.sites),
        lease_s=60.0,
        merge=case.merge,
        round=RoundConfig(contract=CONTRACT, min_peers=len(case.sites), quorum_wait_s=600, leader_timeout_s=600),
        transfer=transfer,
    )
    folder = RunFolder.create(root)
    with Swarm(config, folder, case.sites) as swarm:
        swarm.make_certificates()
        swarm.start_sn(host=case.sn_host)
        for number, site in enumerate(case.sites):
            scratch = folder.scratch(site, "swarm")
            scratch.mkdir(parents=True)
            env = {
                "NUM_PARAMETERS": str(case.num_parameters),
                "NUM_ROUNDS": str(case.num_rounds),
                "TARGET": str(number + 1),
                "SCRATCH_DIR": str(scratch),
            }
            there: dict[str, Any] = {}
            if (host := case.hosts.get(site)) is not None:
                env["DEVICE"] = INNER
                there = {"launcher": host.launcher, "transfer": replace(transfer, host=host.address)}
            log = str(folder.log(f"{site}-ml"))
            swarm.start_sl(site, ProgramConfig(command=[sys.executable, str(PROGRAM)], env=env, log=log), **there)
        swarm.wait(case.sites, case.timeout_s)
        leaders = {one.number: one.leader for one in fetch_rounds(swarm.client(), CONTRACT)}
    seen = {site: json.loads((folder.scratch(site, "swarm") / "rounds.json").read_text()) for site in case.sites}
    return seen, leaders
