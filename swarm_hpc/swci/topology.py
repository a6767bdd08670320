"""A picture of the network's nodes, for HPE's plotTopology. matplotlib is used here alone, and comes with an extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swarm_hpc.errors import ConfigError

ROWS = ("SN", "SWOP", "SL")


def draw(nodes: Sequence[Mapping[str, str]], colours: Mapping[str, str], attributes: Sequence[str], file: Path) -> None:
    """Write a PNG: a row each of SNs, SWOPs and SLs, lines to each node's parent. ConfigError without matplotlib.

    `nodes` are rows of LIST NODES by their headings; `attributes` the headings that are written beside a node.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError(
            "plotTopology needs matplotlib, which is not installed: pip install 'swarm-hpc[ui]'; listNodes has the "
            "same as text"
        ) from exc
    places = _places(nodes)
    figure = Figure(figsize=(2 + 2 * max((len(row) for row in _rows(nodes).values()), default=1), 6))
    axes: Any = figure.subplots()
    axes.set_axis_off()
    by_uuid = {node["UUID"]: places[at] for at, node in enumerate(nodes)}
    for at, node in enumerate(nodes):
        x, y = places[at]
        if node["ParentUUID"] in by_uuid:
            up = by_uuid[node["ParentUUID"]]
            axes.plot([x, up[0]], [y, up[1]], color="#888888", linewidth=1, zorder=1)
        axes.scatter([x], [y], s=900, color=colours[_row_of(node)], edgecolors="#333333", zorder=2)
        text = "\n".join([node["Type"], node["HostIP"], *(node[name] for name in attributes)])
        axes.annotate(text, (x, y), ha="center", va="center", fontsize=7, zorder=3)
    figure.savefig(file, format="png", dpi=120)


def _row_of(node: Mapping[str, str]) -> str:
    return node["Type"] if node["Type"] in ROWS else "SN"


def _rows(nodes: Sequence[Mapping[str, str]]) -> dict[str, list[int]]:
    """Numbers of the nodes in each row."""
    return {name: [at for at, node in enumerate(nodes) if _row_of(node) == name] for name in ROWS}


def _places(nodes: Sequence[Mapping[str, str]]) -> dict[int, tuple[float, float]]:
    return {
        at: ((column + 0.5) / len(row), float(-number))
        for number, row in enumerate(_rows(nodes).values())
        for column, at in enumerate(row)
    }
