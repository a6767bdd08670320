"""The training program of bench_round.py: one float32 tensor, a few rounds, and what each of them cost."""

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

target = np.float32(os.environ["TARGET"])
own = np.zeros(num_parameters, np.float32)
rounds = []
with MlChannel.connect(os.environ["SWARM_SL_SOCKET"]) as channel:
    tensors = (TensorSpec("w", "F32", (num_parameters,)),)
    shared = channel.open(OpenRequest(platform=Platform.PYTORCH, tensors=tensors)).arena.array("w")
    for _ in range(num_rounds):
        own += target  # "training": no two sites have the same parameters
        begun = time.monotonic()
        shared[:] = own
        handed = time.monotonic()
        synced = channel.sync(loss=0.0)
        answered = time.monotonic()
        own[:] = shared
        ended = time.monotonic()
        handoff_s = handed - begun + ended - answered
        rounds.append({"round": synced.round, "handoff": handoff_s, "sync": answered - handed} | synced.seconds)
    channel.finish(FinishMode.ACTIVE)
(Path(os.environ["SCRATCH_DIR"]) / "rounds.json").write_text(json.dumps(rounds))
