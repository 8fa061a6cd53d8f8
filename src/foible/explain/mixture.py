"""A mixture of linear regressions with a fused lasso, fitted by EM to many samples at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.randomness import Draw
from foible.explain.fused import fused_least_squares

_STARTS, _TRIAL = 3, 8  # of each row, and the steps after which the likeliest goes on alone


@dataclass(frozen=True)
class Mixture:
    """K linear regressions of one target, a row each: all float64.

    weight: (R, K, D); offset, share, sigma: (R, K), y ~ sum_k share_k N(offset_k + x weight_k,
    sigma_k^2). likelihood: (R,), the penalised log-likelihood; steps: (R,) int64, of the EM.
    """

    weight: Tensor
    offset: Tensor
    share: Tensor
    sigma: Tensor
    likelihood: Tensor
    steps: Tensor

    def take(self, which: Tensor) -> Mixture:
        """Select rows by position."""
        return Mixture(**{name: value[which] for name, value in vars(self).items()})

    def log_parts(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log share_k + log N(y; ...) (R, K, n) of samples x (R, n, D), y (R, n)."""
        from_plane = y[:, None] - self.values(x)
        density = -0.5 * (from_plane / self.sigma[:, :, None]).square()
        size = self.share.clamp_min(1e-300).log() - self.sigma.log() - 0.5 * math.log(2 * math.pi)
        return density + size[:, :, None]

    def values(self, x: Tensor) -> Tensor:
        """Return what each regression says (R, K, n) of x (R, n, D)."""
        return self.weight @ x.mT + self.offset[:, :, None]


@dataclass(frozen=True)
class Fit:
    """How a mixture is fitted.

    components: K. fused: the penalty; the log-likelihood loses
    fused sqrt(n log D) sum_k TV(weight_k) / sigma_k, which has no unit: y times ten gives the
    weights times ten (Staedler et al. 2010 scale the lasso of a mixture so). limit: instead of
    it, TV(weight_k) <= limit for every k, as the paper writes it; then the log-likelihood itself
    never falls. ridge: loses ridge |weight_k|^2 / (2 sigma_k^2), which keeps a component that owns
    few samples defined. steps, rise: the EM ends after so many, or when a step gains less than rise
    a sample.
    """

    components: int = 3
    fused: float = 0.1
    limit: float | None = None
    ridge: float = 1e-3
    steps: int = 200
    rise: float = 1e-6

    def penalty(self, n: int, size: int) -> float:
        """Return the factor of sum_k TV(weight_k) / sigma_k."""
        if self.limit is not None or size < 2:
            return 0.0
        return self.fused * math.sqrt(n * math.log(size))


def fit_mixture(x: Tensor, y: Tensor, fit: Fit, draw: Draw) -> Mixture:
    """Fit a mixture to every row's samples: x (R, n, D) and y (R, n) float64.

    Generalised EM: responsibilities; shares, weights and offsets; then sigmas. Each is a maximum
    in its own variables, so the penalised log-likelihood never falls. Of several starts the one
    that is likeliest after a few steps goes on (Biernacki et al. 2003). A row that has settled
    leaves, whatever the others need.
    """
    # A plane through every sample of its own would have an infinite likelihood.
    floor = (1e-6 * y.var(1).clamp_min(1e-300)).sqrt()
    tried = []
    for owned in _splits(x, y, fit.components, draw):
        now = _first(x, y, owned, fit, floor)
        tried.append(_run(now, x, y, fit, floor, min(_TRIAL, fit.steps)))
    best = torch.stack([t.likelihood for t in tried]).argmax(0)
    found = tried[0]
    for number, other in enumerate(tried[1:], 1):
        which = (best == number).nonzero().squeeze(1)
        found = _put(found, which, other.take(which))
    return _run(found, x, y, fit, floor, max(0, fit.steps - _TRIAL))


def _run(now: Mixture, x: Tensor, y: Tensor, fit: Fit, floor: Tensor, steps: int) -> Mixture:
    """Return the mixtures after at most `steps` steps, each until it gains too little."""
    found, going = now, torch.arange(len(x), device=x.device)
    for _ in range(steps):
        whole = len(going) == len(x)
        some = (x, y, floor) if whole else (x[going], y[going], floor[going])
        after = em_step(now, some[0], some[1], fit, some[2])
        found = _put(found, going, after)
        stay = (after.likelihood - now.likelihood > fit.rise * x.shape[1]).nonzero().squeeze(1)
        going, now = going[stay], after.take(stay)
        if len(going) == 0:
            break
    return found


def em_step(now: Mixture, x: Tensor, y: Tensor, fit: Fit, floor: Tensor) -> Mixture:
    """Return the mixture after one step of the generalised EM; floor: (R,) the least sigma."""
    owned = torch.softmax(now.log_parts(x, y), 1)
    weight, offset = _planes(x, y, owned, fit, now)
    after = replace(now, weight=weight, offset=offset, share=owned.mean(2), steps=now.steps + 1)
    after = replace(after, sigma=_sigmas(after, x, y, owned, fit).maximum(floor[:, None]))
    return replace(after, likelihood=likelihood(after, x, y, fit))


def likelihood(now: Mixture, x: Tensor, y: Tensor, fit: Fit) -> Tensor:
    """Return the penalised log-likelihood (R,), which the EM raises."""
    total = torch.logsumexp(now.log_parts(x, y), 1).sum(1)
    lost = fit.penalty(*x.shape[1:]) * _variation(now.weight) / now.sigma
    lost = lost + 0.5 * fit.ridge * now.weight.square().sum(2) / now.sigma.square()
    return total - lost.sum(1)


def _planes(
    x: Tensor, y: Tensor, owned: Tensor, fit: Fit, now: Mixture | None = None
) -> tuple[Tensor, Tensor]:
    """Return weights (R, K, D) and offsets (R, K) of all weighted fused regressions.

    now: the mixture, whose sigmas scale the penalty; without it there is none.
    """
    rows, n, size = x.shape
    mass = owned.sum(2).clamp_min(1e-12)
    middle = (owned @ x) / mass[:, :, None]
    level = (owned @ y[:, :, None]).squeeze(2) / mass
    gram = torch.stack([(x * owned[:, k, :, None]).mT @ x for k in range(owned.shape[1])], 1)
    gram = gram - mass[:, :, None, None] * middle[:, :, :, None] * middle[:, :, None, :]
    cross = (owned * y[:, None]) @ x - (mass * level)[:, :, None] * middle
    gram = gram + fit.ridge * torch.eye(size).to(x)
    bound = None
    if fit.limit is not None:
        bound = torch.full_like(mass, fit.limit).flatten()
    elif now is not None and fit.penalty(n, size) > 0:
        bound = (fit.penalty(n, size) * now.sigma).flatten()
    weight = fused_least_squares(
        gram.flatten(0, 1), cross.flatten(0, 1), bound,
        None if now is None else now.weight.flatten(0, 1), limited=fit.limit is not None,
    )  # fmt: skip
    weight = weight.view(rows, -1, size)
    return weight, level - (middle * weight).sum(2)


def _sigmas(now: Mixture, x: Tensor, y: Tensor, owned: Tensor, fit: Fit) -> Tensor:
    """Return the sigmas (R, K) that are best for the planes as they are.

    In r = 1 / sigma the objective is mass log r - r^2 a / 2 - r t, and concave.
    """
    mass = owned.sum(2).clamp_min(1e-12)
    a = (owned * (y[:, None] - now.values(x)).square()).sum(2)
    a = a + fit.ridge * now.weight.square().sum(2)
    t = fit.penalty(*x.shape[1:]) * _variation(now.weight)
    return (t + (t.square() + 4 * mass * a).sqrt()) / (2 * mass)


def _splits(x: Tensor, y: Tensor, count: int, draw: Draw) -> list[Tensor]:
    """Return responsibilities (R, K, n) to begin with, one for every start.

    The first splits the samples by how far they lie above one plane through all of them; the
    others by a random direction of the features.
    """
    rows, n, size = x.shape
    if count == 1:
        return [torch.ones(rows, 1, n).to(x)]
    ones = torch.ones(rows, 1, n).to(x)
    weight, offset = _planes(x, y, ones, Fit(1, 0.0))
    by = [y - (weight @ x.mT).squeeze(1) - offset]
    for number in range(1, _STARTS):
        way = draw.split(number).normal((size,), torch.float64).to(x.device)
        by.append((x @ way[:, :, None]).squeeze(2))
    ranks = [score.argsort(1).argsort(1) for score in by]
    groups = [F.one_hot(rank * count // n, count).to(x).mT for rank in ranks]
    return [0.8 * group + 0.2 / count for group in groups]


def _first(x: Tensor, y: Tensor, owned: Tensor, fit: Fit, floor: Tensor) -> Mixture:
    """Return the mixtures that responsibilities make, their weights not penalised yet."""
    weight, offset = _planes(x, y, owned, fit)
    blank = torch.zeros_like(offset)
    now = Mixture(weight, offset, owned.mean(2), blank, blank[:, 0], blank[:, 0].long())
    now = replace(now, sigma=_sigmas(now, x, y, owned, fit).maximum(floor[:, None]))
    return replace(now, likelihood=likelihood(now, x, y, fit))


def _put(found: Mixture, at: Tensor, new: Mixture) -> Mixture:
    pairs = zip(vars(found).items(), vars(new).values(), strict=True)
    return Mixture(**{name: old.index_copy(0, at, value) for (name, old), value in pairs})


def _variation(weight: Tensor) -> Tensor:
    return (weight[:, :, 1:] - weight[:, :, :-1]).abs().sum(2)
