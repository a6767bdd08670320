"""What a container costs: its start, from a SIF file and from a sandbox, and the hand-off across its border.

    python benchmarks/bench_container.py [--image sl-pytorch] [--repeats 5] [--json]

Start: seconds until a command has ended, on the host and in containers made by the command line that jobs use. Cold:
the page cache was emptied before (root only; left out otherwise). Hand-off: an SL on the host gets 100 MB of parameters
from its program and gives them back; seconds both ways, and the bytes that the program moved by system calls meanwhile,
which a hand-off through a file could not do without. The peer in the same run is the same program on the host.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from machine import describe, write_results
from rich.console import Console
from rich.table import Table

from swarm_hpc.config import (
    ContainerConfig,
    ContainerKind,
    ExperimentConfig,
    LocalConfig,
    ProgramConfig,
    RoundConfig,
    SlPlace,
)
from swarm_hpc.errors import ConfigError, ImageNotFound
from swarm_hpc.local.folder import RunFolder
from swarm_hpc.local.swarm import Swarm
from swarm_hpc.records import Platform
from swarm_hpc.slurm import container
from swarm_hpc.slurm.apptainer import run
from swarm_hpc.slurm.container import Container, Host
from swarm_hpc.slurm.images import Image

COMMANDS = {
    "true": ["true"],
    "python3": ["python3", "-c", "pass"],
    "import torch": ["python3", "-c", "import torch"],
}
NUM_PARAMETERS = 25_000_000
CACHES = Path("/proc/sys/vm/drop_caches")


def seconds_of(command: Sequence[str], *, cold: bool) -> float:
    if cold:
        os.sync()
        CACHES.write_text("3")
    begun = time.monotonic()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=300)
    return time.monotonic() - begun


def lines_of(host: Host, images: Sequence[Image], folder: Path) -> dict[str, list[str]]:
    """What stands before a command to start it, by where it runs."""
    lines: dict[str, list[str]] = {"host": []}
    for image in images:
        made = Container(image=image.path, home=folder, tmp=folder, cwd=Path("/"))
        lines["sandbox" if image.is_sandbox else "SIF"] = container.command_line(host, made)
    return lines


def measure_starts(lines: dict[str, list[str]], repeats: int) -> list[dict]:
    """All of them in turn, so that whatever else the machine does meets all alike."""
    taken: dict[tuple[str, str, bool], list[float]] = {}
    for cold in (True, False) if os.access(CACHES, os.W_OK) else (False,):
        for _ in range(1 if cold else repeats):
            for where, line in lines.items():
                for name, words in COMMANDS.items():
                    words = [sys.executable if where == "host" and word == "python3" else word for word in words]
                    taken.setdefault((where, name, cold), []).append(seconds_of([*line, *words], cold=cold))
    return [
        {"where": where, "command": name, "cold": cold, "seconds": round(statistics.median(values), 3)}
        for (where, name, cold), values in taken.items()
    ]


def measure_handoff(root: Path, config: ContainerConfig, repeats: int) -> dict:
    """Rounds of one site that has no peers."""
    settings = LocalConfig(
        experiment=ExperimentConfig(name="bench", metric="none", platform=Platform.PYTORCH, prepare=[], train=[]),
        sites=1,
        container=config,
        round=RoundConfig(contract="bench", min_peers=1, quorum_wait_s=0),
    )
    folder = RunFolder.create(root)
    scratch = folder.scratch("alpha", "swarm")
    scratch.mkdir(parents=True)
    program = shutil.copy(Path(__file__).parent / "programs" / "handoff.py", root)
    env = {"NUM_PARAMETERS": str(NUM_PARAMETERS), "NUM_ROUNDS": str(repeats + 1), "SCRATCH_DIR": str(scratch)}
    python = sys.executable if config.kind is ContainerKind.NONE else container.PYTHON
    with Swarm(settings, folder, ["alpha"]) as swarm:
        swarm.make_certificates()
        swarm.start_sn()
        log = str(folder.log("ml"))
        swarm.start_sl("alpha", ProgramConfig(command=[python, str(program)], cwd=str(scratch), env=env, log=log))
        swarm.wait(["alpha"], timeout_s=300)
    found = json.loads((scratch / "handoff.json").read_text())
    assert found["is_memory"], "the arena is no shared memory"
    return {
        "where": "host" if config.kind is ContainerKind.NONE else f"container, SL {config.sl}",
        "megabytes": NUM_PARAMETERS * 4 / 1e6,
        "seconds": round(statistics.median(found["seconds"][1:]), 4),  # the first one touches new memory
        "bytes_through_files_per_round": found["through_files"] // (repeats + 1),
    }


def show(starts: list[dict], handoffs: list[dict]) -> None:
    table = Table(title="Start to end (median seconds)")
    for column in ("where", *(f"{name}, {how}" for name in COMMANDS for how in ("cold", "warm"))):
        table.add_column(column, justify="right")
    for where in dict.fromkeys(row["where"] for row in starts):
        mine = {(row["command"], row["cold"]): row["seconds"] for row in starts if row["where"] == where}
        table.add_row(where, *(str(mine.get((name, cold), "-")) for name in COMMANDS for cold in (True, False)))
    console = Console(width=120)
    console.print(table)
    for row in handoffs:
        console.print(
            f"hand-off of {row['megabytes']:.0f} MB both ways, {row['where']}: {row['seconds']:.3f} s, "
            f"{row['bytes_through_files_per_round']} bytes by system calls"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="sl-pytorch", help="name or path of the SIF file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    options = parser.parse_args()
    config = ContainerConfig(kind=ContainerKind.APPTAINER, image=options.image, sl=SlPlace.HOST)
    try:
        host = container.look_at_host(config, os.environ)
        sif = container.find_checked(config, options.image, host, os.environ)
    except (ConfigError, ImageNotFound) as exc:
        print(f"not measured: {exc}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="bench-container-") as name:
        folder = Path(name)
        print("unpacking a sandbox", file=sys.stderr, flush=True)
        sandbox = Image("sandbox", folder / "sandbox", is_sandbox=True)
        build = ["build", "--sandbox", str(sandbox.path), str(sif.path)]
        if host.is_root:
            subprocess.run(["unshare", "-r", str(host.apptainer), "--quiet", *build], check=True, timeout=600)
        else:
            run(host.apptainer, *build, timeout_s=600)
        print("starting containers", file=sys.stderr, flush=True)
        starts = measure_starts(lines_of(host, [sif, sandbox], folder), options.repeats)
        print("handing parameters over", file=sys.stderr, flush=True)
        kinds = [ContainerConfig(), config, ContainerConfig(kind=config.kind, image=options.image)]
        handoffs = [measure_handoff(folder / f"run{at}", kind, options.repeats) for at, kind in enumerate(kinds)]
    results = {"machine": describe(), "image": sif.name, "starts": starts, "handoffs": handoffs}
    write_results("container", results)
    if options.json:
        print(json.dumps(results))
    else:
        show(starts, handoffs)


if __name__ == "__main__":
    main()
