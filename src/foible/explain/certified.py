"""Sparsified SmoothGrad, and how much of its top features no small change can move."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError, KindError
from foible.core.explainer import Field
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.gradient import Noisy

_PIECE = 128  # draws that one stream of noise gives; the noise of 2,000 draws is never held at once


@dataclass(frozen=True)
class SparsifiedSmoothGrad(Noisy):
    """How often a feature is among the largest |gradients| at a noisy copy (Levine et al. 2019).

    Each of `samples` copies marks the `share` of its features with the largest |gradient|; the map
    is the mean of the marks, in [0, 1]. sigma: the noise's deviation in the input's own units, not
    a share of its range, because a certificate's radius is in these units too. Copies may leave
    the box: the certificate needs noise that is Gaussian.

    Departures: features that tie with the last marked one are marked too, and a gradient of 0
    never is. So a mark does not depend on the order in which a sort leaves equals.
    """

    samples: int = 2000
    sigma: float = 0.2
    share: float = 0.1
    signed = False
    differentiable = False
    verb = "delete"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1 or self.sigma == 0:
            raise InputError(
                f"share={self.share}, sigma={self.sigma}: the share of features that a copy marks "
                "lies in (0, 1], and without noise there is nothing to count"
            )

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """`samples` forwards and backwards."""
        keep = max(1, round(self.share * rows.x[0].numel()))
        maps = []
        for group in field.groups(rows, self.samples):
            some, total = rows.take(group), torch.zeros_like(rows.x[group], dtype=torch.float64)
            for number, start in enumerate(range(0, self.samples, _PIECE)):
                piece = replace(self, samples=min(_PIECE, self.samples - start))
                noise = draw.take(group).split(number)
                for grads in piece._gradients(field, some, noise, create_graph=False):
                    total += marks(grads.flatten(0, 1), keep).view_as(grads).sum(0)
            maps.append(total / self.samples)
        return torch.cat(maps).to(rows.x.dtype)

    def _noise(self, field: Field, rows: Rows, draw: Draw) -> Tensor:
        return draw.normal((self.samples, *rows.shape), rows.x.dtype) * self.sigma


def marks(grads: Tensor, keep: int) -> Tensor:
    """Return (B, *shape) bool: the `keep` largest |grads| of each row, ties too, zeros never.

    >>> marks(torch.tensor([[3.0, -5.0, 3.0, 0.0]]), 2).tolist()
    [[True, True, True, False]]
    """
    flat = grads.flatten(1).abs()
    least = flat.topk(keep, 1, sorted=False).values.amin(1, keepdim=True)
    return ((flat >= least) & (flat > 0)).view_as(grads)


@dataclass(frozen=True)
class Certificate:
    """What is certain of the top features of sparsified SmoothGrad, of each of B samples.

    map: (B, *shape) in [0, 1], the mean v~ over `samples` noisy copies; sigma: of their noise;
    p: the probability, for each sample, that what is certified of it holds.

    Why it holds. A mark is a number in [0, 1] of a point, so its mean v_i under N(x, sigma^2)
    moves slowly: for |x' - x|_2 <= rho, Phi^-1(v_i) moves by at most rho / sigma (Cohen et al.
    2019; Salman et al. 2019). By Hoeffding and a union over n features, all |v~_i - v_i| are below
    err = sqrt(ln(2 n / (1 - p)) / (2 samples)) with probability p. So v_i(x') > v_j(x') whenever

        Phi^-1(v~_i - err) - Phi^-1(v~_j + err) > 2 rho / sigma.

    Let t be the largest rank whose feature beats the one of rank 2k - t + 1 in this way. Then each
    of the first t features is certain to beat all ranks from 2k - t + 1 on. Were fewer than t of
    the top k still in the top k at x', one of the first t would be out, and all that are in would
    be before it: their outsiders come from ranks k + 1 to 2k - t, which are k - t, one too few.
    So the overlap is t at least. It says how many stay, and not which ones.

    The map at x' is the true mean there, of the same class: one of finitely many draws adds an
    error of its own.
    """

    map: Tensor
    samples: int
    sigma: float
    p: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.p < 1 or self.samples < 1 or not self.sigma > 0:
            raise InputError(
                f"p={self.p}, samples={self.samples}, sigma={self.sigma}: p lies between 0 and 1, "
                "there is one sample at least, and noise"
            )

    @property
    def err(self) -> float:
        """How far, at most, any feature's mean over the samples is from its true mean."""
        n = torch.tensor(self.map.shape[1:].numel(), dtype=torch.float64)
        return float(((2 * n / (1 - self.p)).log() / (2 * self.samples)).sqrt())

    def radii(self, k: int) -> Tensor:
        """Return (B, k) float64: entry t - 1 is the radius within which t of the top k stay.

        L2, in the input's units, falling along the row; below 0 where not even the map at x itself
        is certain, inf where there are too few features for anything else.
        """
        flat = self.map.flatten(1).double()
        n = flat.shape[1]
        if not 1 <= k <= n:
            raise InputError(f"k={k} of {n} features: choose 1 to {n}")
        ranked = flat.sort(1, descending=True).values
        # Phi^-1 is -inf at 0 and inf at 1: a mean within err of an end is certain of nothing.
        low = torch.special.ndtri((ranked[:, :k] - self.err).clamp(0, 1))
        high = torch.special.ndtri((ranked + self.err).clamp(0, 1))
        rival = 2 * k - 1 - torch.arange(k, device=flat.device)
        gap: Tensor = low - high[:, rival.clamp_max(n - 1)]
        return (self.sigma / 2 * gap).masked_fill(rival >= n, float("inf"))

    def overlap(self, k: int, radius: float | Tensor) -> Tensor:
        """Return (B,) float64 in [0, 1]: the certain share of the top k within an L2 radius.

        radius: one number or one a sample, in the input's own units.
        """
        given = torch.as_tensor(radius, dtype=torch.float64, device=self.map.device)
        fits = given.dim() == 0 or given.shape == (len(self.map),)
        if not bool((given >= 0).all()) or not fits:
            raise InputError(f"radius={radius}: one number, or one a sample (B,), from 0 up")
        return (self.radii(k) > given.reshape(-1, 1)).double().mean(1)


def sparsified_smoothgrad(
    samples: int = 2000, sigma: float = 0.2, share: float = 0.1
) -> SparsifiedSmoothGrad:
    """Return sparsified SmoothGrad (X5, Levine et al. 2019), the map that `certify` is about.

    samples: noisy copies. sigma: the noise, in the input's own units. share: of the features that
    a copy marks, the paper's tau. It is not signed: it names features and no direction.

    >>> net = torch.nn.Linear(4, 2)  # its gradient is everywhere the same
    >>> sorted(sparsified_smoothgrad(20, share=0.5)(net, torch.rand(1, 4), 1)[0].tolist())
    [0.0, 0.0, 1.0, 1.0]
    """
    return SparsifiedSmoothGrad(samples, sigma, share)


def certify(
    explainer: SparsifiedSmoothGrad,
    model: Any,
    x: Tensor,
    target: Tensor | int | None = None,
    *,
    p: float = 0.95,
    seed: int = 0,
) -> Certificate:
    """Return how much of the map's top features survives every change of x (X5).

    Levine et al. 2019, "Certifiably Robust Interpretation in Deep Learning". model, x, target, seed
    as of any explainer: (B, *shape) inputs, classes (B,), one for all, or None for the predicted
    ones at x. p: the probability, for each sample, that its certificate holds, over the noise.
    Costs `samples` forwards and backwards a sample; `Certificate` has the argument.

    The class is fixed: the certificate says nothing of the prediction, which a change may move.

    Raises KindError for another explainer, InputError for a p outside of (0, 1).

    >>> net = torch.nn.Linear(20, 2).double()
    >>> x = torch.rand(3, 20).double()
    >>> found = certify(sparsified_smoothgrad(500), net, x, 1)
    >>> found.overlap(2, 0.1).tolist(), found.overlap(2, 10.0).tolist()
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    """
    if not isinstance(explainer, SparsifiedSmoothGrad):
        raise KindError(
            f"{type(explainer).__name__} has no certificate: pass "
            "foible.explain.sparsified_smoothgrad()"
        )
    found = Certificate(
        torch.zeros(0, 1), explainer.samples, explainer.sigma, p
    )  # p is looked at first
    return replace(found, map=explainer(model, x, target, seed=seed))
