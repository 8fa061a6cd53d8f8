"""Answers of a net at many points around an input, as one: votes, or mean probabilities."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.attacks.base import check_batch
from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.progress import tick
from foible.defend.inputs.base import Change, Defended, spanned, torch_model
from foible.models import TorchModel


class Poll(nn.Module):
    """A net that is asked at `points` random points around each input.

    defence: draws one point an input. soft: whether the answer is the logarithm of the mean
    probability, through which a gradient passes, or of each class's share of the votes, through
    which none does.
    """

    def __init__(self, defence: Change, held: TorchModel, points: int, soft: bool) -> None:
        super().__init__()
        if points < 1:
            raise InputError(f"{points} points: one at least")
        self.defence, self.net, self.held = defence, held.net, held
        self.points, self.soft = points, soft

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) whose softmax is the answer."""
        if not self.soft:
            counts = self.votes(x.detach(), self.points)
            # Half a vote for each, so that no class is at minus infinity.
            return ((counts + 0.5) / (self.points + counts.shape[1] / 2)).log().to(x.dtype)
        parts = [F.log_softmax(self._asked(x, count), 1) for count in self._blocks(x, self.points)]
        each = torch.cat(parts).view(self.points, len(x), -1)
        return torch.logsumexp(each, 0) - math.log(self.points)

    def votes(self, x: Tensor, points: int) -> Tensor:
        """Return how many of `points` points go to each class, (B, K) int64."""
        counts: list[Tensor] = []
        with torch.no_grad():
            for count in self._blocks(x, points):
                scores = self._asked(x, count)
                hot = F.one_hot(scores.argmax(1), scores.shape[1])
                counts.append(hot.view(count, len(x), -1).sum(0))
        return torch.stack(counts).sum(0)

    def _asked(self, x: Tensor, count: int) -> Tensor:
        """Return logits (count * B, K), all inputs at one point after all at another."""
        return self.held.scores(self.defence(x.repeat(count, *[1] * (x.dim() - 1))))

    def _blocks(self, x: Tensor, points: int) -> list[int]:
        """Cut the points into numbers that, for all of x, fill about one forward of the net."""
        size = max(1, self.held.chunk(x) // max(1, len(x)))
        return [min(size, points - start) for start in range(0, points, size)]

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"points={self.points}, soft={self.soft}"


class Scatter(Change):
    """A point around each input: uniform in the Linf box of `radius`, cut to the bounds."""

    random = True

    def __init__(self, radius: float, bounds: tuple[float, float]) -> None:
        super().__init__()
        if not radius >= 0:
            raise InputError(f"radius={radius}: 0 or more, in the units of the input")
        self.radius, self.bounds = radius, bounds

    def forward(self, x: Tensor) -> Tensor:
        """Return inputs of x's shape."""
        return (x + self.radius * (2 * torch.rand_like(x) - 1)).clamp(*self.bounds)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"radius={self.radius}, bounds={self.bounds}"


class Vote(Defended):
    """A model that answers by majority vote; made by `region_vote`."""

    def soft(self, points: int = 30) -> Defended:
        """Return what an attacker climbs in place of the votes: mean probabilities, `points` each.

        Its largest class is the vote's where the net is sure at most points. A gradient passes.
        """
        poll = Poll(self._own(), self.held, points, soft=True)  # type: ignore[arg-type]
        return Defended(poll, "region_vote", Access.INTERNALS, points)

    def _seen(self, x: Tensor) -> Tensor:
        return x


def region_vote(model: nn.Module | Any, radius: float, votes: int = 1000) -> Vote:
    """Return the model with a majority vote over a region (N5, Cao and Gong 2017).

    The label is that of most of `votes` points drawn uniformly from the Linf box of `radius` about
    the input, cut to the bounds. model: a module or a wrapped model; bounds, preprocessing and
    outputs are kept. radius: in the input's units; `fit_radius` chooses it as the paper does (0.3
    on MNIST). votes: 1000 in DEEPSEC's code. The scores (B, K) are logarithms of the shares of
    the votes.

    One look costs `votes` forwards of the net, and meters and caps count them. No gradient passes
    through a vote, so that a gradient attack is refused. It helps against small changes that barely
    cross the boundary, and not against an attack that goes on behind it, as the wrapped net's
    own PGD at a larger eps, OptMargin (He et al. 2018) or `foible.defend.breaker("region_vote")`,
    which climbs the mean probabilities over the same region, `.soft()`.

    Two forwards draw different points: attacks that stop at the boundary of the vote, as
    `hop_skip_jump` does, are to be averaged by `foible.attacks.eot`.

    Raises InputError for a radius below 0 and no votes, KindError for what holds no torch module.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> model = region_vote(foible.zoo.load("standard"), 0.02, votes=10)
    >>> found = foible.attacks.random_noise(foible.Linf(0.1))(model, x[:2], y[:2])
    >>> found.forwards.tolist()  # a clean look, a point and a verification
    [30, 30]
    """
    held = torch_model(model, "region_vote")
    poll = Poll(Scatter(radius, held.bounds), held, votes, soft=False)
    return Vote(poll, "region_vote", Access.SCORES, votes)


def fit_radius(
    model: nn.Module | Any,
    x: Tensor,
    y: Tensor,
    votes: int = 200,
    step: float = 0.01,
    tolerance: float = 0.01,
    seed: int = 0,
) -> float:
    """Return the largest radius at which a vote over the region costs no accuracy (N5).

    As Cao and Gong 2017 fit it, in the steps of DEEPSEC's code: the radius grows by `step` until
    the accuracy of the vote on (x, y) falls by more than `tolerance` below the model's own, and
    the last one before is returned; 0.0 where not even the first step holds. x: (B, *shape), y:
    (B,) int64, data that were not trained on. votes: points a vote.

    Raises InputError for data that do not fit and for bounds without an end.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> fit_radius(foible.zoo.load("standard"), x[:50], y[:50], votes=5, step=0.2, tolerance=0.9)
    1.0
    """
    held = torch_model(model, "fit_radius")
    check_batch(x, y, None, held.bounds)
    if not step > 0 or not 0 <= tolerance < 1:
        raise InputError(f"step={step}, tolerance={tolerance}: above 0, and a share below 1")
    low, high = spanned(held.bounds, "fit_radius")
    right = _accuracy(held, x, y, seed)
    radius = 0.0
    for number in range(1, math.floor((high - low) / step + 1e-9) + 1):
        if _accuracy(region_vote(held, number * step, votes), x, y, seed) < right - tolerance:
            break
        radius = number * step
        tick(1)
    return radius


def _accuracy(model: TorchModel, x: Tensor, y: Tensor, seed: int) -> float:
    with model.session(seed), torch.no_grad():
        parts = [model.scores(part).argmax(1) for part in x.split(model.chunk(x))]
    return float((torch.cat(parts) == y).double().mean())
