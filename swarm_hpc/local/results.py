"""What came of a run: the table of sites, the figure, and summary.json. matplotlib only in `draw`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from swarm_hpc.config import TransferMode
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.records import LedgerStatus, MergeMethod, Round


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
    merge: MergeMethod
    transfer: TransferMode
    metric: str
    sites: tuple[Outcome, ...]
    pooled: float | None
    seconds: float
    ledger: LedgerStatus
    rounds: tuple[Round, ...]
    run_dir: Path

    def as_json(self) -> dict[str, Any]:
        """The object that `swarm-hpc local --json` prints and summary.json holds."""
        return {
            "experiment": self.experiment,
            "merge": str(self.merge),
            "metric": self.metric,
            "rounds": len(self.rounds),
            "sites": [{"site": one.site, "alone": one.alone, "swarm": one.swarm} for one in self.sites],
            "pooled": self.pooled,
            "seconds": self.seconds,
            "ledger": {"transactions": self.ledger.transactions, "blocks": self.ledger.blocks},
            "merged_hashes": [one.merged for one in self.rounds],
            "run_dir": str(self.run_dir),
        }


def save(summary: Summary) -> None:
    """Write summary.json and the figure into the run folder."""
    folder = RunFolder(summary.run_dir)
    folder.summary.write_text(json.dumps(summary.as_json(), indent=2) + "\n", encoding="utf-8")
    draw(summary, folder.plot)


def show(summary: Summary, console: Console) -> None:
    """Print the table, where everything lies, and what to try next."""
    table = Table(title=summary.title or summary.experiment, title_justify="left")
    table.add_column("site")
    for column in ("alone", "in the swarm", "pooled data"):
        table.add_column(f"{column}\n{summary.metric}", justify="right")
    for one in summary.sites:
        table.add_row(one.site, _figure(one.alone), f"[bold]{one.swarm:.3f}[/]", _figure(summary.pooled))
    console.print(table)
    ledger = summary.ledger
    console.print(
        f"{len(summary.rounds)} rounds merged by {summary.merge}, {ledger.transactions} transactions in {ledger.blocks}"
        f" blocks, {summary.seconds:g} s"
    )
    run_dir = summary.run_dir
    console.print(f"run folder  {run_dir}\nfigure      {RunFolder(run_dir).plot}", soft_wrap=True, highlight=False)
    rows = "\n".join(f"  {line}" for line in _next_steps(summary))
    console.print(f"try next\n{rows}", soft_wrap=True, highlight=False)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _next_steps(summary: Summary) -> Sequence[str]:
    merge = MergeMethod.GEOMEDIAN if summary.merge is not MergeMethod.GEOMEDIAN else MergeMethod.MEAN
    other = "thyroid" if summary.experiment != "thyroid" else "digits"
    chosen = f"swarm-hpc local experiment={summary.experiment}"
    steps = [f"swarm-hpc verify {summary.run_dir}", f"{chosen} merge={merge}"]
    if summary.transfer is not TransferMode.DIRECT:
        steps.append(f"{chosen} transfer=direct")
    return [*steps, f"swarm-hpc local experiment={other}"]


def draw(summary: Summary, file: Path) -> None:
    """The figure: bars per site (alone, in the swarm) with the pooled-data line, and the losses by round, as a PNG."""
    from matplotlib.figure import Figure

    losses = _losses(summary.rounds)
    figure = Figure(figsize=(10 if losses else 5.5, 4.2), layout="constrained", dpi=120)
    axes = figure.subplots(1, 2 if losses else 1, squeeze=False)[0]
    _draw_bars(axes[0], summary)
    if losses:
        for site, points in losses.items():
            axes[1].plot(*zip(*points, strict=True), marker=".", linewidth=1.2, label=site)
        axes[1].set(xlabel="round", ylabel="training loss at check-in", title="Loss by round")
        axes[1].grid(alpha=0.3)
        axes[1].legend(fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _draw_bars(axes: Any, summary: Summary) -> None:
    places = range(len(summary.sites))
    swarm = [one.swarm for one in summary.sites]
    alone = [one.alone for one in summary.sites if one.alone is not None]
    if len(alone) == len(swarm):
        bars = axes.bar([at - 0.2 for at in places], alone, 0.38, label="alone", color="#b8c4d6")
        axes.bar_label(bars, fmt="%.2f", fontsize="small")
    bars = axes.bar([at + (0.2 if alone else 0) for at in places], swarm, 0.38, label="in the swarm", color="#1f5fa8")
    axes.bar_label(bars, fmt="%.2f", fontsize="small")
    if summary.pooled is not None:
        axes.axhline(summary.pooled, color="#c0392b", linestyle="--", linewidth=1.2, label="pooled data")
    lowest = min([*alone, *swarm])
    axes.set_ylim(max(0.0, lowest - 0.15), max(1.0, *swarm))
    axes.set_xticks(list(places), [one.site for one in summary.sites], rotation=30 if len(places) > 6 else 0)
    axes.set(ylabel=summary.metric, title=f"{summary.experiment}, merged by {summary.merge}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False, fontsize="small")


def _losses(rounds: Sequence[Round]) -> dict[str, list[tuple[int, float]]]:
    """Per site, (round, mean loss of its nodes) where the ledger has losses."""
    found: dict[str, dict[int, list[float]]] = {}
    for one in rounds:
        for check_in in one.check_ins:
            if check_in.loss is not None:
                site = check_in.node.partition("/")[0]
                found.setdefault(site, {}).setdefault(one.number, []).append(check_in.loss)
    return {
        site: [(number, fmean(values)) for number, values in sorted(by_round.items())]
        for site, by_round in sorted(found.items())
    }
