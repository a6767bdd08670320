"""A training program of a swarm test: numpy only, one tensor that is drawn to a different value at each site.

It trains until the file LAST_ROUND names a round that has been merged.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import FinishMode, Platform, Progress
from swarm_hpc.sl.channel import LeaveAsked, MlChannel, OpenRequest

size = int(os.environ.get("SIZE", "1000"))
step_s = float(os.environ.get("STEP_S", "0.2"))
platform = Platform(os.environ.get("PLATFORM", "pytorch"))
target = float(os.environ["TARGET"])
last_round = Path(os.environ["LAST_ROUND"])


def is_last(number: int) -> bool:
    return last_round.exists() and number >= int(last_round.read_text())


def train(channel: MlChannel) -> float:
    session = channel.open(OpenRequest(platform=platform, tensors=(TensorSpec("w", "F32", (size,)),)))
    w = session.arena.array("w")
    if not session.resume:
        w[:] = 0
    over = False
    while not over:
        time.sleep(step_s)
        loss = float(np.square(w - target).mean())
        w += np.float32(0.5) * (np.float32(target) - w)
        channel.progress(Progress(epoch=1, loss=loss))
        synced = channel.sync(loss=loss)
        over = synced.training_over or is_last(synced.round)
    channel.finish(FinishMode.SNAPSHOT)
    return float(w.mean())


with MlChannel.connect(os.environ["SWARM_SL_SOCKET"]) as channel:
    try:
        metric = train(channel)
    except LeaveAsked:
        channel.saved()  # it keeps nothing
        sys.exit(os.EX_TEMPFAIL)
(Path(os.environ["SCRATCH_DIR"]) / "result.json").write_text(json.dumps({"value": metric}))
