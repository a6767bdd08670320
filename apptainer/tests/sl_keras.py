"""`apptainer test sl-keras.sif`: trains with Keras, without a swarm, and merges."""

import os
from importlib.util import find_spec

os.environ["SWARM_LOOPBACK"] = "TRUE"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from merging import check_merges, check_mpi

from swarm_hpc.ml.keras import SwarmCallback


def main() -> None:
    assert find_spec("torch") is None, "this image is to be without torch"
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int32)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss=loss)
    swarm = SwarmCallback(sync_frequency=2, total_epochs=10)
    losses = model.fit(x, y, batch_size=32, epochs=10, verbose=0, callbacks=[swarm]).history["loss"]
    assert losses[-1] < losses[0] / 2, losses
    print(f"keras {keras.__version__} on {keras.backend.backend()}: loss {losses[0]:.3f} to {losses[-1]:.3f}")
    check_merges()
    check_mpi()


if __name__ == "__main__":
    main()
