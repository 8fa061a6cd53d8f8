"""Meaningful perturbation: the smallest region whose removal (or presence) decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.problem import Goal, Problem, View
from foible.core.progress import listening
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.solver import solve
from foible.core.threat import Box
from foible.explain.base import Explanation
from foible.explain.removal import Baseline, check_baseline, filling, plain
from foible.parts.objectives import Logit, Probability
from foible.parts.searches import Adam
from foible.parts.threats import Masking
from foible.parts.threats.masking import roughness, upsampled
from foible.parts.transforms import Jitter, images

GAMES = ("delete", "preserve")


@dataclass(frozen=True)
class Told:
    """How far what is told falls (or, of a kept region, stays) less the price of the mask.

    inner: what is told, a probability or the like. It is read on the image and the null image
    shifted together by `jitter`, under a mask that stays where it is, as in the paper: a mask
    that hangs on single pixels is worth nothing then.
    """

    inner: Callable[[View], Tensor]
    threat: Masking
    area: float
    smooth: float
    jitter: Jitter

    def __call__(self, view: View) -> Tensor:
        """Return (B,): one forward."""
        rows, z = view.rows, view.z
        assert z is not None and view.draw is not None
        if self.jitter.reach:
            x, null = (self.jitter(t, view.draw) for t in (rows.x, rows.extra["null"]))
            rows = replace(rows, x=x, extra={**rows.extra, "null": null})
            view = View(view.oracle, rows, self.threat.render(rows, z), z)
        told = self.inner(view)
        price = self.area * z.flatten(1).mean(1) + self.smooth * roughness(z)
        return (told if self.threat.keep else -told) - price


@dataclass(frozen=True)
class Share:
    """A field with no scale of its own, as a share of its difference between x and null."""

    inner: Callable[[View], Tensor]

    def __call__(self, view: View) -> Tensor:
        """Return (B,): 1 at x where the field falls from x to null."""
        ends = view.rows.extra["ends"].to(view.x_adv)
        return (self.inner(view) - ends[:, 1]) / (ends[:, 0] - ends[:, 1]).abs().clamp_min(1e-6)


@dataclass(frozen=True)
class Endless(Goal):
    """No goal: a mask is searched to the end, and nothing is asked of the model for a verdict."""

    def __call__(self, view: View) -> Tensor:
        """Return (B,) False."""
        return torch.zeros(len(view.rows), dtype=torch.bool, device=view.x_adv.device)


def latest(view: View) -> Tensor:
    """Prefer the last point: values under different shifts cannot be ranked."""
    assert view.draw is not None
    return view.draw.step.to(view.x_adv.device, torch.float64)


@dataclass(frozen=True)
class MeaningfulPerturbation(Explanation):
    """The mask that Adam finds for each image (Fong and Vedaldi 2017), read at every pixel.

    game: "delete" looks for the smallest region without which the class is lost, "preserve" for
    the smallest that is enough for it. null: what is seen in place of a deleted region, "noise" or
    a `Baseline`. area, smooth: the prices of the mask's mean and of its roughness, in units of
    probability. cell: the side in pixels of a cell of the mask's grid, None for a 28th of the
    image's (8 of 224, as in the paper) and at least 2. jitter: how far the image is shifted, as a
    share of a cell. rate, last: the first and the last move of a cell.

    The map is the chosen region, in [0, 1], so it has no sign. For a user what is told is the
    class's probability; any other field counts as a share of its difference between x and null.

    Departures: the paper takes 300 steps of one rate, and adds up what we average: its prices of
    1e-4 and 1e-2 for each of 784 cells are 0.08 and 8 here, which leave far larger masks on the
    bundled images. The rate falls instead, and a third of the steps end at the same masks.
    """

    game: str = "delete"
    null: Baseline = "blur"
    steps: int = 100
    area: float = 0.3
    smooth: float = 0.5
    cell: int | None = None
    jitter: float = 0.5
    rate: float = 0.1
    last: float = 0.01
    signed = False
    differentiable = False
    verb = "delete"

    def __post_init__(self) -> None:
        if self.game not in GAMES:
            raise InputError(f"game={self.game!r}: choose {' or '.join(map(repr, GAMES))}")
        if self.null == "segment":
            raise InputError('null=\'segment\': a mask has no segments; take "blur" or "mean"')
        if self.null != "noise":
            check_baseline(self.null)
        if self.steps < 1 or (self.cell is not None and self.cell < 1):
            raise InputError(f"steps={self.steps}, cell={self.cell}: both at least 1")
        prices, moves = (self.area, self.smooth, self.jitter), (self.rate, self.last)
        if not (all(v >= 0 for v in prices) and all(v > 0 for v in moves)):
            raise InputError(
                f"area={self.area}, smooth={self.smooth}, jitter={self.jitter}, rate={self.rate}, "
                f"last={self.last}: prices and jitter are not negative, moves are above 0"
            )

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """`steps` + 11 forwards, ten of them for the start, and `steps` backwards."""
        side = min(images(rows.x, "meaningful perturbation"))
        cell = self.cell or max(2, round(side / 28))
        threat = Masking(cell=cell, keep=self.game == "preserve").inside(field.oracle.bounds)
        null = self._null(field, rows, draw)
        rows = replace(rows, x=rows.x.detach(), extra={**rows.extra, "null": null})
        rows = circled(field, threat, rows)
        rows.extra["z"] = threat.clean(rows)
        inner = Probability() if isinstance(field.score, Logit) else Share(field.score)
        told = Told(inner, threat, self.area, self.smooth, Jitter(round(self.jitter * cell)))
        problem = Problem(field.oracle, threat, told, Endless(), prefer=latest)
        seed = draw.rng.seed * 1_000_003 + draw.rng.stream
        with listening(lambda done: None):  # a mask that is found ends no row of an outer run
            found = solve(problem, rows, Adam(self.steps, self.rate, self.last), seed=seed).z
        assert found is not None
        return upsampled(found, rows.x).expand_as(rows.x).clone()

    def _null(self, field: Field, rows: Rows, draw: Draw) -> Tensor:
        """Return the null images, of x's shape and in the model's box."""
        box, x = Box(*field.oracle.bounds), rows.x.detach()
        if self.null != "noise":
            return filling(self.null, rows).expand_as(x).clamp(box.low, box.high)
        return noisy(box, draw.split(17).normal(rows.shape, x.dtype))


def noisy(box: Box, normal: Tensor) -> Tensor:
    """Return images of noise in the middle of the box, from standard normal values."""
    middle = (box.low + box.high) / 2 if math.isfinite(box.high - box.low) else 0.0
    return (middle + 0.2 * box.width * normal).clamp(box.low, box.high)


def circled(field: Field, threat: Masking, rows: Rows) -> Rows:
    """Add the "start" (B, 1, h, w): the smallest disc that does 99 % of what the whole grid does.

    Of nothing, eight discs in the middle and everything: ten forwards. "ends" (B, 2) are the
    field at x and at the null image.
    """
    blank = threat.full(rows, 0.0)
    down, right = ((2 * torch.arange(n, device=blank.device) + 1 - n) / n for n in blank.shape[2:])
    away = torch.hypot(down[:, None], right[None, :])  # 1 at the middle of a side
    sizes = [0.0, *(1.5 * k / 8 for k in range(1, 9)), 9.0]
    discs = torch.stack([(away < size).to(blank) for size in sizes])
    told = torch.stack(
        [field.values(threat.render(rows, d.expand_as(blank)), rows) for d in discs], 1
    ).double()
    done = (told - told[:, :1]).abs() >= 0.99 * (told[:, -1:] - told[:, :1]).abs()
    done[:, 0] = False  # nothing does nothing
    start = discs[done.to(torch.int8).argmax(1)][:, None]
    ends = told[:, [-1, 0]] if threat.keep else told[:, [0, -1]]
    return replace(rows, extra={**rows.extra, "start": start, "ends": ends})


def meaningful_perturbation(
    game: str = "delete",
    null: Any = "blur",
    steps: int = 100,
    area: float = 0.3,
    smooth: float = 0.5,
    cell: int | None = None,
    jitter: float = 0.5,
) -> MeaningfulPerturbation:
    """Return the mask that deletes, or preserves, a class (B14, Fong and Vedaldi 2017).

    game: "delete" or "preserve". null: what a deleted region shows, "blur", "mean", "noise", a
    number, or a tensor that broadcasts to one input. A larger `area` makes smaller masks, a larger
    `smooth` smoother ones; cell and jitter: see `MeaningfulPerturbation`.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net = foible.zoo.load("standard")
    >>> m = foible.explain.meaningful_perturbation(null=0.0, steps=30)(net, x[:4], y[:4])
    >>> before, after = (net(i).softmax(1)[range(4), y[:4]] for i in (x[:4], x[:4] * (1 - m)))
    >>> bool((after < before).all()), bool((m >= 0).all() and (m <= 1).all())
    (True, True)
    """
    return MeaningfulPerturbation(game, plain(null), steps, area, smooth, cell, jitter)
