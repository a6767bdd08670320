"""Trains a small network on the digits in DATA_DIR and writes its test accuracy to SCRATCH_DIR/result.json.

An ordinary PyTorch script: the lines marked `swarm` are all that swarm learning adds.
"""

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from swarm_hpc.ml.pytorch import SwarmCallback  # swarm

BATCH_SIZE = 64
BATCHES_PER_EPOCH = 30  # the same at every site, so that none is ready before the others


def load(path: Path) -> TensorDataset:
    with np.load(path) as file:
        return TensorDataset(torch.from_numpy(file["x"]), torch.from_numpy(file["y"]))


def evaluate(model: nn.Module, data: TensorDataset) -> tuple[float, float]:
    """Mean loss and accuracy."""
    x, y = data.tensors
    model.eval()
    with torch.no_grad():
        output = model(x)
    model.train()
    return nn.functional.cross_entropy(output, y).item(), (output.argmax(1) == y).float().mean().item()


def main() -> None:
    data_dir, scratch_dir = Path(os.environ["DATA_DIR"]), Path(os.environ["SCRATCH_DIR"])
    max_epochs = int(os.environ.get("MAX_EPOCHS", "10"))
    torch.manual_seed(int(os.environ.get("SEED", "0")))

    train, test = load(data_dir / "train.npz"), load(data_dir / "test.npz")
    loader = DataLoader(train, BATCH_SIZE, sampler=RandomSampler(train, num_samples=BATCHES_PER_EPOCH * BATCH_SIZE))
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.002)
    loss_function = nn.CrossEntropyLoss()

    swarm = SwarmCallback(model=model, optimizer=optimizer, sync_frequency=10, total_epochs=max_epochs)  # swarm
    swarm.on_train_begin()  # swarm
    num_batches = swarm.num_batches
    for epoch in range(swarm.epoch, max_epochs):  # swarm: after a requeue, from where it was
        for x, y in islice(loader, BATCHES_PER_EPOCH - swarm.batch):
            optimizer.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()
            num_batches += 1
            swarm.on_batch_end(loss=loss)  # swarm
        test_loss, accuracy = evaluate(model, test)
        print(f"epoch {epoch + 1}/{max_epochs}: loss {test_loss:.4f}, accuracy {accuracy:.4f}", flush=True)
        swarm.on_epoch_end(epoch, loss=test_loss, metric=accuracy)  # swarm
    swarm.on_train_end()  # swarm

    test_loss, accuracy = evaluate(model, test)
    scratch_dir.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), scratch_dir / "model.pt")
    result = {"metric": "accuracy", "value": accuracy, "loss": test_loss, "batches": num_batches}
    (scratch_dir / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
