"""SL nodes as processes of this host, for a site without Slurm. They go on while SWOP is down."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from swarm_hpc import settings_file
from swarm_hpc.config import ContainerKind, SlConfig, SwopConfig
from swarm_hpc.processes import last_lines
from swarm_hpc.records import Kind
from swarm_hpc.slurm.endpoint import find_sn
from swarm_hpc.swop import attended
from swarm_hpc.swop.executor import Executor, Failure, Order, Standing
from swarm_hpc.swop.run_swarm import PYTHON

ML_LOG: Final = "ml.log"


class LocalExecutor(Executor):
    """Each order is `swarm-hpc sl` under an attendant; a handle is that one's process ID."""

    def __init__(self, config: SwopConfig) -> None:
        self._config = config

    def start(self, order: Order) -> str:
        """An `Executor`'s: at most once per slot."""
        folder = order.folder.absolute()
        command = order.program.command
        if order.container.kind is ContainerKind.NONE:
            command = [sys.executable if word == PYTHON else word for word in command]  # as jobs' tasks do
        program = replace(order.program, command=command, log=str(folder / ML_LOG))
        config = SlConfig(
            name=self.node_prefix(order.name, ""),
            sn=find_sn(self._config.site, timeout_s=0.0),
            state_dir=str(folder / "sl"),
            identity=order.identity,
            connection=self._config.connection,
            transfer=self._config.transfer,
            merge=self._config.merge,
            round=order.round,
            license=self._config.license,
            container=order.container,
            program=program,
        )
        words = settings_file.write(folder / "settings", "sl", "node", config)
        return attended.start(folder, [sys.executable, "-m", "swarm_hpc.cli", *words], env={}, cwd=folder)

    def poll(self, folder: Path, handle: str) -> Standing:
        """How it stands."""
        return attended.poll(folder)

    def cancel(self, folder: Path, tag: str, handle: str) -> None:
        """End it, or keep it from starting."""
        attended.cancel(folder)

    def tail(self, folder: Path, handle: str, num_lines: int) -> list[str]:
        """The program's last lines; else those of what has started it."""
        return last_lines(folder / ML_LOG, num_lines) or last_lines(folder / attended.LOG, num_lines)

    def failure(self, folder: Path, handle: str) -> Failure:
        """Why it has failed."""
        return attended.failure(folder / attended.LOG)

    def node_prefix(self, name: str, handle: str) -> str:
        """How the names of its SL nodes begin."""
        return f"{self._config.site.name}/{Kind.SL}/{name}"
