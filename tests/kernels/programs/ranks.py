"""One rank of a test's job: `ranks.py WHAT FOLDER NUM_RANKS TIMEOUT_S`. Reports by files in the folder."""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

from swarm_hpc.errors import MergeError, RankLost, SwarmError
from swarm_hpc.kernels.mpi import Ranks
from swarm_hpc.kernels.plan import TensorSpec, parse, place
from swarm_hpc.kernels.sharded import ShardedMerge
from swarm_hpc.records import Merge, MergeMethod


def merge(ranks: Ranks, folder: Path) -> None:
    """Every case of cases.json: rank r's blob is NAME.r, its result NAME.out.r."""
    for case in json.loads((folder / "cases.json").read_text()):
        blob = memoryview(bytearray((folder / f"{case['blobs']}.{ranks.rank}").read_bytes()))
        merger = ShardedMerge(ranks, parse(blob), block_bytes=case["block_bytes"])
        for _ in range(case.get("times", 1)):
            try:
                merger.merge(Merge.parse(case["merge"]), case["weights"], blob)
            except MergeError as exc:
                (folder / f"{case['name']}.error.{ranks.rank}").write_text(str(exc))
        (folder / f"{case['name']}.out.{ranks.rank}").write_bytes(blob)


def memory(ranks: Ranks, folder: Path) -> None:
    """By how much the peak grows in each method, in models."""
    layout = place([TensorSpec("w", "F32", (16 << 20,)), TensorSpec("h", "BF16", (8 << 20,))])
    blob = memoryview(bytearray(layout.size_bytes))
    np.frombuffer(blob[len(layout.header) :], np.uint8)[:] = ranks.rank
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    merger = ShardedMerge(ranks, layout)
    for method in MergeMethod:
        merger.merge(Merge(method=method), [1.0] * ranks.size, blob)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    (folder / f"memory.{ranks.rank}").write_text(str((layout.size_bytes + peak - before) / layout.size_bytes))


def lost(ranks: Ranks, folder: Path) -> None:
    """Rank 1 stops for good, as if its machine were gone, while the others wait for it in a merge."""
    layout = place([TensorSpec("w", "F32", (1000,))])
    blob = memoryview(bytearray(layout.size_bytes))
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        ShardedMerge(ranks, layout).merge(Merge(), [1.0] * ranks.size, blob)
    except RankLost as exc:
        (folder / f"lost.{ranks.rank}").write_text(str(exc))
        # whoever is first ends the job, so: not before all others have said it as well
        await_files(folder, "lost.*", ranks.size - 1)
        ranks.abort(exc.exit_code)


def await_files(folder: Path, pattern: str, number: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < number and time.monotonic() < deadline:
        time.sleep(0.02)


def messages(ranks: Ranks, folder: Path) -> None:
    """Each rank sends to the next, a short and a long one, and writes down what it has got."""
    for text in (b"short", b"l" * 3_000_000):
        ranks.send((ranks.rank + 1) % ranks.size, text)
    found: list[tuple[int, bytes]] = []
    deadline = time.monotonic() + 60
    while len(found) < 2 and time.monotonic() < deadline:
        found += ranks.receive()
    summary = [[source, data[:5].decode(), len(data)] for source, data in found]
    (folder / f"messages.{ranks.rank}").write_text(json.dumps(summary))


def main() -> None:
    what, folder, num_ranks, timeout_s = sys.argv[1:]
    try:
        ranks = Ranks.start(int(num_ranks), float(timeout_s))
    except SwarmError as exc:
        sys.stderr.write(str(exc))
        sys.exit(exc.exit_code)
    {"merge": merge, "memory": memory, "lost": lost, "messages": messages}[what](ranks, Path(folder))
    ranks.close()


if __name__ == "__main__":
    main()
