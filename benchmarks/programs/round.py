"""The training program of bench_round.py and bench_links.py: one float32 tensor, a few rounds, what each one cost."""

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


def counted() -> dict[str, float]:
    """The host's clock (s); bytes that DEVICE has sent and received; how long the host's cores have been busy (s)."""
    devices = Path("/proc/self/net/dev").read_text().splitlines()
    words = next(line.partition(":")[2].split() for line in devices if line.strip().startswith(os.environ["DEVICE"]))
    total = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _, _, irq, softirq, *_ = map(int, total.split()[1:])
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return {"at": time.monotonic(), "received": int(words[0]), "sent": int(words[8]), "busy": busy}


target = np.float32(os.environ["TARGET"])
own = np.zeros(num_parameters, np.float32)
rounds = []
with MlChannel.connect(os.environ["SWARM_SL_SOCKET"]) as channel:
    tensors = (TensorSpec("w", "F32", (num_parameters,)),)
    shared = channel.open(OpenRequest(platform=Platform.PYTORCH, tensors=tensors)).arena.array("w")
    for number in range(num_rounds):
        # "training": no two sites have the same parameters, and no two rounds the same differences
        own += target * np.float32(1 + number / 64)
        begun = time.monotonic()
        shared[:] = own
        handed = time.monotonic()
        synced = channel.sync(loss=0.0)
        answered = time.monotonic()
        own[:] = shared
        ended = time.monotonic()
        handoff_s = handed - begun + ended - answered
        rounds.append({"round": synced.round, "handoff": handoff_s, "sync": answered - handed} | synced.seconds)
        if "DEVICE" in os.environ:
            rounds[-1] |= counted()
    channel.finish(FinishMode.ACTIVE)
(Path(os.environ["SCRATCH_DIR"]) / "rounds.json").write_text(json.dumps(rounds))
