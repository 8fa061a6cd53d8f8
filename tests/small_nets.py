"""Small nets, images and a training loop of a few steps, for the tests of defences."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.defend.batch import Batch
from foible.models import wrap


class Own(nn.Module):
    """A class of the user's, with a functional ReLU and a skip."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)))
        return self.head((h + self.second(h).relu()).flatten(1))


def seeded(make: Any, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def images(count: int = 4, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def state(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def train(net: nn.Module, loss: Any, steps: int = 3) -> nn.Module:
    net = loss.prepare(copy.deepcopy(net)).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.05)
    for step in range(steps):
        x, y = images(16, step), torch.arange(16) % 3
        batch = Batch(wrap(net), x, y, torch.arange(16), seed=step, progress=step / steps)
        optimiser.zero_grad()
        loss(batch).mean().backward()
        optimiser.step()
    return net
