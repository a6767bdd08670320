"""What came of a run: the table of sites, the figure, and summary.json. matplotlib only in `draw`."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from swarm_hpc.config import TransferMode
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.records import CheckIn, LedgerStatus, Merge, MergeMethod, Round

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A site's metric on the common test set: trained alone (None where that was not asked for), and in the swarm."""

    site: str
    alone: float | None
    swarm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Everything that a run is remembered by."""

    experiment: str
    title: str
    merge: Merge
    transfer: TransferMode
    metric: str
    sites: tuple[Outcome, ...]
    pooled: float | None
    seconds: float
    ledger: LedgerStatus
    rounds: tuple[Round, ...]
    run_dir: Path

    def as_json(self) -> dict[str, Any]:
        """The object that `swarm-hpc local --json` prints and summary.json holds; null for what is no finite number,
        which JSON has not."""
        return {
            "experiment": self.experiment,
            "merge": str(self.merge),
            "metric": self.metric,
            "rounds": len(self.rounds),
            "sites": [
                {"site": one.site, "alone": _finite(one.alone), "swarm": _finite(one.swarm)} for one in self.sites
            ],
            "pooled": _finite(self.pooled),
            "seconds": self.seconds,
            "ledger": {
                "kind": self.ledger.kind,
                "transactions": self.ledger.transactions,
                "blocks": self.ledger.blocks,
            },
            "merged_hashes": [one.merged for one in self.rounds],
            "run_dir": str(self.run_dir),
        }


def save(summary: Summary) -> None:
    """Write summary.json and, where there is matplotlib, the figure into the run folder."""
    folder = RunFolder(summary.run_dir)
    folder.summary.write_text(json.dumps(summary.as_json(), indent=2) + "\n", encoding="utf-8")
    draw(summary, folder.plot)


def show(summary: Summary, console: Console) -> None:
    """Print the table, where everything lies, and what to try next."""
    console.print(summary.title or summary.experiment, style="italic", highlight=False, soft_wrap=True)
    table = Table()
    table.add_column("site")
    for column in ("alone", "in the swarm", "pooled data"):
        table.add_column(f"{column}\n{summary.metric}", justify="right")
    for one in summary.sites:
        table.add_row(one.site, _figure(one.alone), Text(f"{one.swarm:.3f}", style="bold"), _figure(summary.pooled))
    console.print(table)
    ledger = summary.ledger
    console.print(
        f"{len(summary.rounds)} rounds merged by {summary.merge}, {ledger.transactions} transactions in {ledger.blocks}"
        f" blocks, {summary.seconds:g} s"
    )
    run_dir = summary.run_dir
    plot = RunFolder(run_dir).plot
    figure = plot if plot.exists() else "none"
    console.print(f"run folder  {run_dir}\nfigure      {figure}", soft_wrap=True, highlight=False)
    rows = "\n".join(f"  {line}" for line in _next_steps(summary))
    console.print(f"try next\n{rows}", soft_wrap=True, highlight=False)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _program() -> str:
    """The command as it can be typed here: by its path where the environment is not active."""
    beside = Path(sys.executable).with_name("swarm-hpc")
    return "swarm-hpc" if shutil.which("swarm-hpc") or not beside.exists() else os.path.relpath(beside)


def _next_steps(summary: Summary) -> Sequence[str]:
    merge = MergeMethod.GEOMEDIAN if summary.merge.method is not MergeMethod.GEOMEDIAN else MergeMethod.MEAN
    other = "thyroid" if summary.experiment != "thyroid" else "digits"
    program = _program()
    chosen = f"{program} local experiment={summary.experiment}"
    steps = [f"{program} verify {summary.run_dir}", f"{chosen} merge={merge}"]
    if summary.transfer is not TransferMode.DIRECT:
        steps.append(f"{chosen} transfer=direct")
    return [*steps, f"{program} local experiment={other}"]


def draw(summary: Summary, file: Path) -> None:
    """The figure, as a PNG: bars per site (alone, in the swarm, the pooled-data line); loss and metric by round.

    Without matplotlib, which is an extra, there is none, and a warning.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("no figure: that needs matplotlib, which is not installed: pip install 'swarm-hpc[ui]'")
        return
    curves = {
        "training loss": _by_round(summary.rounds, lambda check_in: check_in.loss),
        summary.metric: _by_round(summary.rounds, lambda check_in: check_in.metric),
    }
    curves = {name: lines for name, lines in curves.items() if lines}
    figure = Figure(figsize=(12 if curves else 6.5, 4.8), layout="constrained", dpi=120)
    figure.suptitle(f"{summary.experiment}: {len(summary.sites)} sites, merged by {summary.merge}")
    left, *right = figure.subfigures(1, 2 if curves else 1, squeeze=False)[0]
    _draw_bars(left.subplots(), summary)
    left.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    if curves:
        _draw_curves(right[0], curves, [one.site for one in summary.sites])
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _draw_bars(axes: Any, summary: Summary) -> None:
    places = range(len(summary.sites))
    small = "small" if len(places) <= 4 else "xx-small"
    # a bar that has no end is left out
    swarm = [one.swarm if math.isfinite(one.swarm) else math.nan for one in summary.sites]
    alone = [one.alone if math.isfinite(one.alone) else math.nan for one in summary.sites if one.alone is not None]
    if len(alone) == len(swarm):
        bars = axes.bar([at - 0.2 for at in places], alone, 0.38, label="alone", color="#b8c4d6")
        axes.bar_label(bars, fmt="%.3f", fontsize=small, padding=2)
    bars = axes.bar([at + (0.2 if alone else 0) for at in places], swarm, 0.38, label="in the swarm", color="#1f5fa8")
    axes.bar_label(bars, fmt="%.3f", fontsize=small, padding=2)
    pooled = _finite(summary.pooled)
    if pooled is not None:
        label = f"pooled data ({pooled:.3f})"
        # behind the bars, whose own figures it would cross out
        axes.axhline(pooled, color="#c0392b", linestyle="--", linewidth=1.2, label=label, zorder=0)
    axes.set_ylim(*_limits([*alone, *swarm, *([] if pooled is None else [pooled])]))
    axes.set_xticks(list(places), [one.site for one in summary.sites], rotation=30 if len(places) > 6 else 0)
    axes.set(ylabel=f"{summary.metric} on the held-out test set")
    axes.spines[["top", "right"]].set_visible(False)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """From a tenth well below the lowest value, to 1 and the room for a label; or wherever the values are."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    if min(finite) < 0 or max(finite) > 1:
        return min(0.0, *finite) * 1.1, max(0.0, *finite) * 1.1
    lower = max(0.0, math.floor((min(finite) - 0.05) * 10) / 10)
    return lower, 1 + 0.04 * (1 - lower)


def _draw_curves(
    figure: Any, curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], sites: Sequence[str]
) -> None:
    """One above the other, over the same rounds; the sites have the same colours in both."""
    rows = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, lines) in zip(rows, curves.items(), strict=True):
        for at, site in enumerate(sites):
            if site in lines:
                rounds, values = zip(*lines[site], strict=True)
                axes.plot(rounds, values, marker=".", linewidth=1.2, label=site, color=f"C{at % 10}")
        axes.set(ylabel=name)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set(xlabel="round")
    rows[-1].xaxis.get_major_locator().set_params(integer=True)
    handles, labels = rows[0].get_legend_handles_labels()
    columns = min(len(sites), 4)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")


def _by_round(
    rounds: Sequence[Round], value_of: Callable[[CheckIn], float | None]
) -> dict[str, list[tuple[int, float]]]:
    """Per site, (round, mean value of its nodes) where the ledger has values."""
    found: dict[str, dict[int, list[float]]] = {}
    for one in rounds:
        for check_in in one.check_ins:
            if (value := value_of(check_in)) is not None:
                site = check_in.node.partition("/")[0]
                found.setdefault(site, {}).setdefault(one.number, []).append(value)
    return {
        site: [(number, fmean(values)) for number, values in sorted(by_round.items())]
        for site, by_round in found.items()
    }
