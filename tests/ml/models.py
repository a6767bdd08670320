"""A PyTorch model with what is easily got wrong."""

import torch
from torch import nn


class Tied(nn.Module):
    """A tied weight, BatchNorm, a 0-d and an empty buffer."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.decode = nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight
        self.register_buffer("scale", torch.tensor(2.5, dtype=torch.float64))
        self.register_buffer("nothing", torch.empty(0, 3))

    def forward(self, x):
        return self.decode(self.norm(self.encode(x))) * self.scale.float()
