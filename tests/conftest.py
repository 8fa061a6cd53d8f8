"""What tests of attacks and explanations share: linear models, small nets, a counting wrapper."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foible.core.access import Access
from foible.models import TorchModel, wrap

# One thread, in the tests and in every program that they start: tests must not depend on what
# else the machine does, and two threads that wait for each other are slow on a busy one.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts the suite in the background has it ignore Ctrl-C, which tests send for real.
signal.signal(signal.SIGINT, signal.default_int_handler)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def rand(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def filled(net: nn.Module, seed: int, scale: float = 1.0) -> nn.Module:
    """Give a net weights from a seed of its own, leaving the global random state alone."""
    g = generator(seed)
    with torch.no_grad():
        for p in net.parameters():
            fan = max(1, p[0].numel()) if p.dim() > 1 else 10
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * scale / fan**0.5)
    return net


def linear(weight: Tensor, bias: Tensor) -> nn.Module:
    """Scores W x + b of flattened inputs."""
    layer = nn.Linear(weight.shape[1], len(weight)).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return nn.Sequential(nn.Flatten(), layer)


@dataclass
class LinearCase:
    """A linear model, samples that it classifies rightly, and targets that are not their labels."""

    weight: Tensor
    bias: Tensor
    x: Tensor
    y: Tensor
    target: Tensor
    bounds: tuple[float, float]

    @property
    def model(self) -> TorchModel:
        return wrap(linear(self.weight, self.bias), bounds=self.bounds)


def linear_case(
    classes: int,
    rows: int,
    seed: int,
    *,
    features: int = 12,
    wide: bool = True,
    dtype: torch.dtype = torch.float64,
) -> LinearCase:
    """wide: a box that is never reached; else [0, 1], which cuts most perturbations."""
    weight = randn(classes, features, seed=seed, dtype=dtype)
    x = rand(rows, features, seed=seed + 1, dtype=dtype)
    if not wide:  # near the box's ends, so that it binds
        x = torch.where(x < 0.5, 0.3 * x, 1 - 0.3 * (1 - x))
    # Centred scores, so that every class is some row's label.
    bias = -(weight @ x.mean(0)) + 0.2 * randn(classes, seed=seed + 2, dtype=dtype)
    y = (x @ weight.T + bias).argmax(1)
    shift = torch.randint(1, classes, (rows,), generator=generator(seed + 3))
    bounds = (-1000.0, 1000.0) if wide else (0.0, 1.0)
    return LinearCase(weight, bias, x, y, (y + shift) % classes, bounds)


@dataclass
class Counter:
    """A model that counts the samples of every forward and backward, on its own."""

    inner: TorchModel
    forwards: int = 0
    backwards: int = 0
    sizes: list[int] = field(default_factory=list)
    level: Access = Access.INTERNALS
    at_most: int | None = None
    broken_at: int | None = None
    error: type[BaseException] = RuntimeError

    @property
    def bounds(self) -> tuple[float, float]:
        return self.inner.bounds

    @property
    def access(self) -> Access:
        return self.level

    def session(self, seed: int = 0, *, freeze: bool = True) -> Any:
        return self.inner.session(seed, freeze=freeze)

    def chunk(self, x: Tensor) -> int:
        return self.inner.chunk(x) if self.at_most is None else self.at_most

    def watch(self, x: Tensor, layer: str | None, edit: Any = None) -> Any:
        return self.inner.watch(x, layer, edit)

    @property
    def net(self) -> nn.Module:
        return self.inner.net

    def layers(self, x: Tensor) -> Any:
        return self.inner.layers(x)

    def copied(self) -> Any:
        other = replace(self, inner=self.inner.copied())
        other._count = self._count  # backwards of the copy are those of the model
        return other

    def scores(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        self.sizes.append(len(x))
        if self.broken_at is not None and len(self.sizes) >= self.broken_at:
            raise self.error("the model broke")
        scores = self.inner.scores(x)
        if isinstance(scores, Tensor) and scores.requires_grad:
            # On the scores, not on x: a backward may end at a layer.
            scores = scores.clone()
            scores.register_hook(self._count)
        return scores

    def _count(self, grad: Tensor) -> None:
        self.backwards += len(grad)


class SmallNet(nn.Module):
    """A net with what attacks trip over: in-place ReLU, batch norm, dropout, a reused module."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)
        self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3 * 6 * 6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = self.act(self.again(x))
        x = self.act(self.again(x))
        return self.head(self.drop(x.flatten(1)))


class PooledNet(nn.Module):
    """What CAM is for: maps, their mean over positions, one linear layer."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 5, 3)
        self.norm, self.act = nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.head = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.again(self.act(self.norm(self.conv(x)))))
        return self.head(x.mean((2, 3)))


class PlainNet(nn.Module):
    """What layer-wise relevance is for: a module for every layer, each used once but the ReLU."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.act, self.again = nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)
        self.pool, self.drop = nn.MaxPool2d(2), nn.Dropout(0.5)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = self.pool(self.act(self.again(x)))
        return self.head(self.drop(x.flatten(1)))


@pytest.fixture
def net() -> nn.Module:
    """A SmallNet in training mode, as a careless user leaves it."""
    return filled(SmallNet(), 5, 2.0).train()


@pytest.fixture
def images() -> Tensor:
    return rand(9, 1, 6, 6, seed=6)


@pytest.fixture
def mlp() -> nn.Module:
    """A ReLU net on tables of 10 features, in float64."""
    body = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    return filled(body, 36, 2.0).double()


@pytest.fixture
def table() -> Tensor:
    return rand(11, 10, seed=4, dtype=torch.float64)


@pytest.fixture(autouse=True)
def global_random_state_is_left_alone() -> Iterator[None]:
    """No test may pass because another one seeded the global generator."""
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)


def predicted(model: Any, x: Tensor) -> Tensor:
    """Labels in evaluation mode, by hand."""
    held = model if isinstance(model, TorchModel) else wrap(model, bounds=(-1e9, 1e9))
    with held.session(), torch.no_grad():
        return held.scores(x).argmax(1)


def softened(scale: float = 0.15) -> nn.Module:
    """A net whose samples fall at very different steps, so that compaction has work to do."""
    body = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3))
    return filled(body, 3, 2.0 + scale).double()


@pytest.fixture
def case() -> tuple[TorchModel, Tensor, Tensor]:
    model = wrap(softened())
    x = rand(23, 10, seed=4, dtype=torch.float64)
    with torch.no_grad():
        model.net[2].bias -= model(x).mean(0)
        y = model(x).argmax(1)
    return model, x, y
