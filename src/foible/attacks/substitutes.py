"""A substitute: a net of one's own, taught by the labels of a model that gives nothing else."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.attacks.base import check_batch
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.rows import Rows
from foible.models import TorchModel, as_model
from foible.parts.objectives import LogProbability


@dataclass(frozen=True)
class Teaching:
    """How a substitute is taught.

    epochs: over all labels so far, each round. rate: of Adam. batch: samples a step. period:
    rounds after which the step of the growth changes its sign. reservoir: at most so many new
    points a round, drawn evenly from the set (Papernot et al. 2016); None doubles the set.
    """

    epochs: int = 10
    rate: float = 1e-3
    batch: int = 64
    period: int = 3
    reservoir: int | None = None

    def __post_init__(self) -> None:
        least = min(self.epochs, self.batch, self.period, self.reservoir or 1)
        if least < 1 or self.rate <= 0:
            raise InputError(f"{self}: counts are at least 1, and the rate is above 0")


@dataclass(frozen=True)
class Substitute:
    """What `substitute` made.

    model: the taught net, held for attack. x: (N, *shape) the points that it was taught on, the
    seeds first; y: (N,) int64 the model's labels of them. queries: how many labels were asked, N.
    """

    model: TorchModel
    x: Tensor
    y: Tensor
    queries: int

    def agreement(self, model: Any, x: Tensor) -> float:
        """Return the share of x on which the substitute's label is the model's; len(x) queries."""
        held = as_model(model)
        with held.session():
            theirs = _labels(Oracle(held, len(x), Access.LABELS), x)
        with self.model.session():
            ours = _labels(Oracle(self.model, len(x), Access.LABELS), x)
        return float((ours == theirs).double().mean())


@dataclass
class _Pupil:
    """The net while it is taught, inside its session."""

    held: TorchModel
    teaching: Teaching
    generator: torch.Generator
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.leaves = [p for p in self.held.net.parameters() if p.requires_grad]
        if not self.leaves:
            raise InputError("the substitute has no parameter that could be taught")
        self.optimiser = torch.optim.Adam(self.leaves, self.teaching.rate)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Run the epochs of one round, in training mode."""
        self.held.net.train()
        pieces = max(1, round(len(x) / self.teaching.batch))
        for _ in range(self.teaching.epochs):
            order = torch.randperm(len(x), generator=self.generator).to(x.device)
            for part in order.tensor_split(pieces):
                rows = _rows(x[part], y[part])
                oracle = Oracle(self.held, len(part))
                loss = F.cross_entropy(oracle.scores(rows.x, rows), rows.y, reduction="none")
                grads = oracle.grad(loss / len(part), tuple(self.leaves), rows)
                for leaf, grad in zip(self.leaves, grads, strict=True):
                    leaf.grad = grad
                self.optimiser.step()
        self.optimiser.zero_grad()
        self.held.net.eval()

    def uphill(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sign of the gradient (N, *shape) of the label's probability."""
        oracle, parts = Oracle(self.held, len(x)), []
        for part in torch.arange(len(x)).split(max(1, self.held.chunk(x))):
            rows = _rows(x[part], y[part])

            def value(at: Tensor, rows: Rows = rows) -> Tensor:
                return LogProbability()(View(oracle, rows, at))

            parts.append(oracle.value_and_grad(value, rows.x, rows)[1].sign())
        return torch.cat(parts)


def substitute(
    model: Any,
    x: Tensor,
    net: nn.Module | None = None,
    rounds: int = 6,
    step: float = 0.1,
    teaching: Teaching | None = None,
    seed: int = 0,
) -> Substitute:
    """Teach a net to answer like a model of which only labels are to be had.

    Papernot et al. 2017 (A9). In each round the net learns all labels so far; then the set is
    doubled by x + step * sign(gradient of the probability that the net gives to x's label), cut
    to the bounds, whose labels are asked of the model: points where the net's answer changes
    fastest. With N seeds that is N * 2 ** (rounds - 1) labels, or with `Teaching.reservoir` k at
    most k more a round (Papernot et al. 2016, whose periodic step is here too: its sign changes
    every `period` rounds). Nothing but labels is used; attack the model by
    `foible.attacks.transfer(attack, found.model)`.

    model: any held model, a scikit-learn classifier by `foible.models.estimator` included. x: (N,
    *shape) seeds in its bounds, of every class; their true labels are not needed. net: an
    untrained module with one output a class, which is copied; None is a small net made for the
    shape, convolutions for images from 8 x 8 on and two layers of 200 else. rounds: of learning.
    step: in units of the input, 0.1 of [0, 1] in the paper. teaching: epochs, rate, batch, period,
    reservoir. seed: fixes all randomness.

    The net keeps its weights from round to round; the paper trains it afresh. Raises InputError
    for seeds that cannot be used, and for a net with too few outputs.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> found = substitute(foible.zoo.load("standard"), x[:20], rounds=2)
    >>> found.queries, found.model(x[:3]).shape
    (40, torch.Size([3, 10]))
    """
    held, teaching = as_model(model), teaching or Teaching()
    if rounds < 1 or not step > 0:
        raise InputError(f"rounds={rounds}, step={step}: at least 1, and above 0")
    if net is not None and not isinstance(net, nn.Module):
        raise KindError(f"net is {type(net).__name__}: pass an untrained torch.nn.Module")
    check_batch(x, torch.zeros(len(x), dtype=torch.int64), None, held.bounds)
    asked, generator = [x.detach()], torch.Generator().manual_seed(seed)
    with held.session(seed):
        oracle = Oracle(held, len(x), Access.LABELS)
        y = _labels(oracle, x)
        pupil_held = _own(net, x, oracle.classes, held.bounds, seed)
        with pupil_held.session(seed, freeze=False):
            pupil = _Pupil(pupil_held, teaching, generator)
            _check_outputs(pupil_held, x, oracle.classes)
            for number in range(rounds):
                x = torch.cat(asked)
                pupil.learn(x, y)
                if number + 1 == rounds:
                    break
                which = torch.arange(len(x))
                if teaching.reservoir is not None and len(x) > teaching.reservoir:
                    which = torch.randperm(len(x), generator=generator)[: teaching.reservoir]
                which = which.to(x.device)
                signed = step * (-1) ** (number // teaching.period)
                grown = x[which] + signed * pupil.uphill(x[which], y[which])
                asked.append(grown.clamp(*held.bounds))
                y = torch.cat([y, _labels(Oracle(held, len(grown), Access.LABELS), asked[-1])])
    return Substitute(pupil_held, x, y, len(x))


def _rows(x: Tensor, y: Tensor) -> Rows:
    index = torch.arange(len(x), device=x.device)
    return Rows(index, index, x, y)


def _labels(oracle: Oracle, x: Tensor) -> Tensor:
    """Ask for the labels (N,), in chunks."""
    rows = _rows(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
    parts = torch.arange(len(x), device=x.device).split(max(1, oracle.chunk(x)))
    return torch.cat([oracle.labels(x[part], rows.take(part)) for part in parts])


def _own(
    net: nn.Module | None, x: Tensor, classes: int, bounds: tuple[float, float], seed: int
) -> TorchModel:
    """Return a copy of the net, or a new one, with weights from the seed alone."""
    if net is None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            net = _convolutions(x, classes) if _is_image(x) else _layers(x, classes)
    else:
        net = copy.deepcopy(net)
    net = net.to(x.device, x.dtype)
    for parameter in net.parameters():
        parameter.grad = None
    return TorchModel(net, bounds, None, "logits")


def _is_image(x: Tensor) -> bool:
    return x.dim() == 4 and min(x.shape[2:]) >= 8


def _convolutions(x: Tensor, classes: int) -> nn.Module:
    # Strides in place of pooling: a quarter of the work.
    body = nn.Sequential(
        nn.Conv2d(x.shape[1], 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    size = 32 * (x.shape[2] // 4) * (x.shape[3] // 4)
    return nn.Sequential(*body, nn.Linear(size, 100), nn.ReLU(), nn.Linear(100, classes))


def _layers(x: Tensor, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(x[0].numel(), 200), nn.ReLU(),
        nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, classes),
    )  # fmt: skip


def _check_outputs(held: TorchModel, x: Tensor, classes: int) -> None:
    held.net.eval()
    with torch.no_grad():
        given = held.scores(x[:1])
    if given.dim() != 2 or given.shape[1] != classes:
        raise InputError(
            f"net gives {tuple(given.shape)} for one input and the model has {classes} classes: "
            "give it one output a class"
        )
