"""The training program of bench_container.py: hands one tensor over and back, and says what went through files."""

import json
import os
import time
from pathlib import Path

import numpy as np

from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import FinishMode, Platform
from swarm_hpc.sl.channel import MlChannel, OpenRequest

num_parameters = int(os.environ["NUM_PARAMETERS"])
num_rounds = int(os.environ["NUM_ROUNDS"])


def through_files() -> int:
    """Bytes that this process has read and written by system calls so far: a mapped memory needs none."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"]) + int(counts["wchar"])


own = np.ones(num_parameters, np.float32)
seconds = []
with MlChannel.connect(os.environ["SWARM_SL_SOCKET"]) as channel:
    arena = channel.open(
        OpenRequest(platform=Platform.PYTORCH, tensors=(TensorSpec("w", "F32", (num_parameters,)),))
    ).arena
    shared = arena.array("w")
    before = through_files()
    for number in range(num_rounds):
        own += number
        begun = time.monotonic()
        shared[:] = own
        handed = time.monotonic()
        channel.sync()
        answered = time.monotonic()
        own[:] = shared
        seconds.append(handed - begun + time.monotonic() - answered)
    moved = through_files() - before
    is_memory = "memfd:" in str(Path(f"/proc/self/fd/{arena.fd}").readlink())
    channel.finish(FinishMode.INACTIVE)
result = {"seconds": seconds, "through_files": moved, "is_memory": is_memory}
(Path(os.environ["SCRATCH_DIR"]) / "handoff.json").write_text(json.dumps(result))
