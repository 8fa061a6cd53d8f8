"""Small data, a small net and losses that misbehave, for the tests of the trainer."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

import foible
from foible.defend import Batch, Loss
from foible.defend.losses import cross_entropy


def data(n: int = 96, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Blobs that a line parts."""
    rng = torch.Generator().manual_seed(5)
    y = torch.arange(n) % classes
    x = torch.rand(n, 4, generator=rng) * 0.4
    x[torch.arange(n), y] += 0.6
    return x, y


def net(dtype: torch.dtype = torch.float32, drop: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        made = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(drop), nn.Linear(8, 3))
    return made.to(dtype)


def attack(steps: int = 2) -> foible.attacks.Attack:
    return foible.attacks.pgd(foible.Linf(0.05), steps=steps)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def constant(optimiser, steps):
    return torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)


class Stopping(Loss):
    """Ctrl-C, a full disk or a NaN after some steps."""

    def __init__(self, after: int, value: float | None = None) -> None:
        self.after, self.value, self.steps = after, value, 0

    def __repr__(self) -> str:
        return "Stopping"

    def __call__(self, batch: Batch) -> Tensor:
        if self.steps == self.after:
            if self.value is None:
                raise KeyboardInterrupt
            return batch.scores(batch.x).sum(1) * self.value
        self.steps += 1
        return cross_entropy(batch.scores(batch.x), batch.y)


class Written(Loss):
    """A loss that writes each sample's value to a file, a line a step."""

    def __init__(self, inner: Loss, path: str) -> None:
        self.inner, self.path = inner, path

    def __repr__(self) -> str:
        return "Written"

    def __call__(self, batch: Batch) -> Tensor:
        value = self.inner(batch)
        rank = os.environ.get("RANK", "0")
        with Path(f"{self.path}.{rank}").open("a") as out:
            out.write(f"{float(value.mean().detach())!r}\n")
        return value
