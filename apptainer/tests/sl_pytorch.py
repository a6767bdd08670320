"""`apptainer test sl-pytorch.sif`: trains with PyTorch, without a swarm, and merges."""

import os

os.environ["SWARM_LOOPBACK"] = "TRUE"
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from merging import check_merges, check_mpi
from torch import nn

from swarm_hpc.ml.pytorch import SwarmCallback


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    y = (x.sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    swarm = SwarmCallback(model=model, sync_frequency=2, total_epochs=1)
    swarm.on_train_begin()
    losses = []
    for batch in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        swarm.on_batch_end(batch, loss)
    swarm.on_epoch_end(0)
    swarm.on_train_end()
    assert losses[-1] < losses[0] / 2, losses
    print(f"torch {torch.__version__}: loss {losses[0]:.3f} to {losses[-1]:.3f}")
    check_merges()
    check_mpi()


if __name__ == "__main__":
    main()
