"""How far a local swarm is, on stderr: a live table on a terminal, else a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from swarm_hpc.records import Kind, NetworkStatus, NodeName, NodeStatus

LIVE_PERIOD_S: Final = 1.0
LINE_PERIOD_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One look at the swarm. `status` is None when the SN did not answer."""

    status: NetworkStatus | None
    ended: frozenset[str] = frozenset()
    """Sites whose SL has ended."""
    num_alone_done: int = 0


class ProgressView:
    """Shows what it is told; draws nothing by itself. Use it in `with`."""

    def __init__(self, sites: Sequence[str], run_dir: Path, stream: TextIO | None = None) -> None:
        self._sites = tuple(sites)
        self._run_dir = run_dir
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._step = ""

    @property
    def period_s(self) -> float:
        """How often `show` is worth calling."""
        return LIVE_PERIOD_S if self._console.is_terminal else LINE_PERIOD_S

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, step: str) -> None:
        """A new step of the run."""
        self._step = step
        if self._console.is_terminal:
            self._live.update(f"{step} ... ({self._run_dir})", refresh=True)
        else:
            self._console.print(f"{step} ({self._run_dir})")

    def show(self, watched: Watched) -> None:
        """How far each site is."""
        if self._console.is_terminal:
            self._live.update(self.table(watched), refresh=True)
        else:
            self._console.print(self.line(watched))

    def table(self, watched: Watched) -> Table:
        """One row per site."""
        table = Table(title=f"{self._step}, round {current_round(watched.status)}", title_justify="left")
        for column in ("site", "state", "epoch", "loss", "metric"):
            table.add_column(column, justify="left" if column in ("site", "state") else "right")
        for site in self._sites:
            table.add_row(*self._row(site, watched))
        table.caption = f"{watched.num_alone_done} baselines done; logs in {self._run_dir / 'logs'}"
        return table

    def line(self, watched: Watched) -> str:
        """The same on one line."""
        parts = []
        for site in self._sites:
            name, state, *figures = self._row(site, watched)
            parts.append(" ".join([name, state, *(figure for figure in figures if figure)]))
        return f"round {current_round(watched.status)}; {'; '.join(parts)}; baselines {watched.num_alone_done}"

    def _row(self, site: str, watched: Watched) -> tuple[str, str, str, str, str]:
        node = _sl_of(site, watched.status)
        if site in watched.ended:
            state = "finished"
        elif node is None:
            state = "starting" if watched.status else "SN does not answer"
        elif not node.node.active:
            state = "away"
        else:
            state = node.progress.waiting or "training"
        if node is None:
            return site, state, "", "", ""
        progress = node.progress
        epoch = f"{progress.epoch}/{progress.total_epochs}" if progress.total_epochs else ""
        metric = "" if progress.metric is None else f"{progress.metric_name} {progress.metric:.3f}".strip()
        return site, state, epoch, "" if progress.loss is None else f"{progress.loss:.3f}", metric


def current_round(status: NetworkStatus | None) -> int:
    """Number of the round now under way, over all contracts; 0 before the first."""
    return max((contract.round for contract in status.contracts), default=0) if status else 0


def _sl_of(site: str, status: NetworkStatus | None) -> NodeStatus | None:
    for node in status.nodes if status else ():
        name = NodeName.parse(node.node.name)
        if name.site == site and name.kind is Kind.SL:
            return node
    return None
