"""A training program that goes on where it was when its job comes back: numpy only, with the callback's own machinery.

Every step goes into the file steps, one line each. It trains until the file LAST_ROUND names a round that was merged.
"""

import json
import os
import time
from pathlib import Path

import numpy as np

from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.ml.callback import Scores, Training
from swarm_hpc.ml.saving import Store
from swarm_hpc.ml.settings import check, socket_path, state_dir
from swarm_hpc.records import Platform

scratch = Path(os.environ["SCRATCH_DIR"])
last_round = Path(os.environ["LAST_ROUND"])


class Model:
    """One tensor, and a momentum that is not merged."""

    platform = Platform.PYTORCH
    in_arena = False

    def __init__(self):
        self.w, self.momentum = np.zeros(1000, np.float32), 0.0

    def describe(self):
        return (TensorSpec("w", "F32", self.w.shape),), {}

    def write(self, arena):
        arena.array("w")[:] = self.w

    def read(self, arena):
        self.w[:] = arena.array("w")

    def release(self):
        pass

    def validate(self):
        return Scores()

    def save(self, folder):
        np.savez(folder / "model.npz", w=self.w, momentum=self.momentum)

    def load(self, folder):
        with np.load(folder / "model.npz") as file:
            self.w, self.momentum = file["w"], float(file["momentum"])


model = Model()
arguments = {"sync_frequency": 2, "save_every_s": int(os.environ.get("SAVE_EVERY_S", "0"))}
training = Training(check(arguments), model, socket_path(), store=Store(state_dir()))
training.begin()
while not training.over and not (last_round.exists() and training.round >= int(last_round.read_text())):
    time.sleep(0.1)
    model.momentum += 1
    model.w += np.float32(0.5) * (np.float32(os.environ["TARGET"]) - model.w)
    with (scratch / "steps").open("a") as file:
        file.write(f"{training.num_batches + 1}\n")
    training.batch_end(Scores(loss=float(np.square(model.w).mean())))
training.end()
result = {"value": float(model.w.mean()), "momentum": model.momentum, "steps": training.num_batches}
(scratch / "result.json").write_text(json.dumps(result))
