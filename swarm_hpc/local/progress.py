"""How far a local swarm is, on stderr: a live table on a terminal, else a short line when something has changed."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from swarm_hpc.records import ContractState, Kind, NetworkStatus, NodeName, NodeStatus, TrainingContract

LOOK_S: Final = 1.0
LINE_PERIOD_S: Final = 10.0
"""A line at least this often, so that nobody wonders whether anything happens."""
LINE_CHARS: Final = 100
_OF_ROUND: Final = re.compile(r"^\S+ round \d+: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One look at the swarm. `status` is None when the SN did not answer."""

    status: NetworkStatus | None
    ended: frozenset[str] = frozenset()
    """Sites whose SL has ended."""
    num_alone_done: int = 0
    num_alone: int = 0

    @property
    def round(self) -> int:
        """Number of the newest round, over all contracts; 0 before the first."""
        return max(map(_newest_round, self.status.contracts), default=0) if self.status else 0

    @property
    def halted(self) -> str:
        """That the ledger stands still, and for whom it waits; empty while it does not."""
        consensus = self.status.consensus if self.status else None
        if consensus is None or not consensus.halted:
            return ""
        missing = ", ".join(one.site for one in consensus.validators if one.power and not one.connected)
        return f"the ledger stands still without {missing}" if missing else consensus.halted


def _newest_round(contract: TrainingContract) -> int:
    return contract.round - (contract.state is ContractState.COMPLETED)


class ProgressView:
    """Shows what it is told; draws nothing by itself. Use it in `with`."""

    period_s: Final = LOOK_S
    """How often `show` is worth calling."""

    def __init__(
        self,
        sites: Sequence[str],
        run_dir: Path,
        *,
        metric: str = "metric",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sites = tuple(sites)
        self._run_dir = run_dir
        self._metric = metric
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._clock = clock
        self._started = clock()
        self._step = ""
        self._round = 0
        self._shown: object = None
        self._shown_at = 0.0

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
        first, self._step = not self._step, step
        text = f"{step}, in {self._run_dir}" if first else step
        if self._console.is_terminal:
            self._live.update(f"{escape(text)} ...", refresh=True)
        else:
            self._print(text)

    def show(self, watched: Watched) -> None:
        """How far each site is."""
        if self._console.is_terminal:
            self._live.update(self.table(watched), refresh=True)
            return
        states = Counter(self._state(site, watched) for site in self._sites)
        # a reason that lasts is worth a line; between two quick rounds everybody waits for a moment
        reason = watched.halted or (self._reason(watched) if watched.round == self._round else "")
        self._round = watched.round
        gist = (states, watched.num_alone_done, bool(reason))
        if gist != self._shown or self._clock() - self._shown_at >= LINE_PERIOD_S:
            self._shown, self._shown_at = gist, self._clock()
            self._print(self.line(watched, states, reason))

    def table(self, watched: Watched) -> Table:
        """One row per site; no row is ever folded, so that nothing jumps about."""
        title = f"{self._elapsed()}  {self._step}, round {watched.round}{_baselines(watched)}"
        table = Table(title=escape(title), title_justify="left", caption_justify="left", expand=True)
        table.add_column("site", no_wrap=True)
        table.add_column("state", ratio=1)
        for column in ("epoch", "loss", escape(self._metric)):
            table.add_column(column, justify="right", no_wrap=True, min_width=5)
        for site in self._sites:
            name, state, *figures = self._row(site, watched)
            # the one column that gives way when the terminal is narrow: cut short, not folded
            table.add_row(name, Text(state, no_wrap=True, overflow="ellipsis"), *figures)
        halted = f"[bold red]{escape(watched.halted)}[/]\n" if watched.halted else ""
        table.caption = halted + escape(f"logs: {self._run_dir / 'logs'}")
        return table

    def line(self, watched: Watched, states: Counter[str], reason: str) -> str:
        """The same on one line: how many sites do what, and what one of them waits for."""
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        text = f"round {watched.round}: {counts}{_baselines(watched)}{reason and f'; {reason}'}"
        return text if len(text) <= LINE_CHARS else f"{text[: LINE_CHARS - 3]}..."

    def _print(self, text: str) -> None:
        self._console.print(f"{self._elapsed()}  {text}", markup=False, soft_wrap=True)

    def _elapsed(self) -> str:
        return f"{self._clock() - self._started:4.0f} s"

    def _reason(self, watched: Watched) -> str:
        """What the first site that waits says."""
        for site in self._sites:
            node = _sl_of(site, watched.status)
            if node is not None and node.progress.waiting and self._state(site, watched) == "training":
                return f"{site}: {_OF_ROUND.sub('', node.progress.waiting)}"
        return ""

    def _state(self, site: str, watched: Watched) -> str:
        """One word for what a site does."""
        node = _sl_of(site, watched.status)
        if site in watched.ended:
            return "finished"
        if watched.status is None:
            return "unknown (the SN does not answer)"
        contracts = watched.status.contracts
        if contracts and all(contract.state is ContractState.COMPLETED for contract in contracts):
            return "finished"
        if node is None:
            return "starting"
        if not node.node.active:
            return "away"
        return "training" if node.progress.contract or node.progress.waiting else "starting"

    def _row(self, site: str, watched: Watched) -> tuple[str, str, str, str, str]:
        state, node = self._state(site, watched), _sl_of(site, watched.status)
        if node is None:
            return site, state, "", "", ""
        progress = node.progress
        if state == "training" and progress.waiting:
            state = _OF_ROUND.sub("", progress.waiting)
        epoch = f"{progress.epoch}/{progress.total_epochs}" if progress.total_epochs else ""
        return site, state, epoch, _figure(progress.loss), _figure(progress.metric)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _baselines(watched: Watched) -> str:
    return f"; baselines {watched.num_alone_done} of {watched.num_alone}" if watched.num_alone else ""


def _sl_of(site: str, status: NetworkStatus | None) -> NodeStatus | None:
    for node in status.nodes if status else ():
        name = NodeName.parse(node.node.name)
        if name.site == site and name.kind is Kind.SL:
            return node
    return None
