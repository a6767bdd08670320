"""Trains a small network to tell which patients in DATA_DIR have a thyroid disease; writes the test AUC to
SCRATCH_DIR/result.json.

An ordinary Keras script: the lines marked `swarm` are all that swarm learning adds.
"""

import json
import os
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from swarm_hpc.ml.keras import SwarmCallback  # swarm

BATCH_SIZE = 64
BATCHES_PER_EPOCH = 60  # the same at every site, so that none is ready before the others


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as file:
        return file["x"], file["y"]


def build(num_features: int) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input([num_features]),
            keras.layers.Dense(64, activation="relu", kernel_regularizer=keras.regularizers.L2(0.002)),
            keras.layers.Dense(32, activation="relu", kernel_regularizer=keras.regularizers.L2(0.002)),
            keras.layers.Dense(1, activation="sigmoid", kernel_regularizer=keras.regularizers.L2(0.002)),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(0.003), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    data_dir, scratch_dir = Path(os.environ["DATA_DIR"]), Path(os.environ["SCRATCH_DIR"])
    max_epochs = int(os.environ.get("MAX_EPOCHS", "10"))
    seed = int(os.environ.get("SEED", "0"))
    keras.utils.set_random_seed(seed)

    x, y = load(data_dir / "train.npz")
    test_x, test_y = load(data_dir / "test.npz")
    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=seed).repeat().batch(BATCH_SIZE)
    model = build(x.shape[1])
    swarm = SwarmCallback(sync_frequency=20, total_epochs=max_epochs)  # swarm
    model.fit(
        batches,
        steps_per_epoch=BATCHES_PER_EPOCH,
        epochs=max_epochs,
        initial_epoch=swarm.epoch,  # swarm: after a requeue, from where it was
        verbose=2,
        callbacks=[swarm],  # swarm
    )

    probability = model.predict(test_x, batch_size=1024, verbose=0)[:, 0]
    loss = float(keras.losses.binary_crossentropy(test_y, probability))
    auc = float(roc_auc_score(test_y, probability))
    print(f"loss {loss:.4f}, AUC {auc:.4f}", flush=True)
    scratch_dir.mkdir(parents=True, exist_ok=True)
    model.save(scratch_dir / "model.keras")
    result = {"metric": "auc", "value": auc, "loss": loss, "batches": max_epochs * BATCHES_PER_EPOCH}
    (scratch_dir / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
