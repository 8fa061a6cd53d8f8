"""Rationale regularisation: right for the reasons that a person gave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss, cross_entropy


@dataclass(frozen=True)
class Rationales(Loss):
    """The cross-entropy, and what the reasons given say of the net's own; see `rationales`."""

    weight: float = 0.05
    unsure: float = 1.0
    spread: float = 0.2
    sparse: float = 1e-5
    patch: int | None = None
    null: float = 0.0

    def __post_init__(self) -> None:
        prices = (self.weight, self.unsure, self.spread, self.sparse)
        if not all(price >= 0 and math.isfinite(price) for price in prices):
            raise InputError(
                f"weight={self.weight}, unsure={self.unsure}, spread={self.spread}, "
                f"sparse={self.sparse}: prices are finite and not negative"
            )
        if self.patch is not None and self.patch < 1:
            raise InputError(f"patch={self.patch}: at least one position, or None for gradients")

    @property
    def extras(self) -> int:
        """One: the rationale of each sample."""
        return 1

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        reason = fitted(batch.extras[0].to(batch.x), batch.x)
        given = ~reason.flatten(1).isnan().any(1)
        reason = torch.where(reason.isnan(), 1.0, reason)
        scores, maps = self.explained(batch, batch.x)
        outside = ((1 - reason)[:, None] * maps).abs().flatten(2).sum(2).mean(1)
        everything = maps.abs().flatten(2).sum(2).mean(1)
        loss = cross_entropy(scores, batch.y)
        price = outside + self.unsure * self.sure(batch, reason, scores)
        return loss + torch.where(given, self.weight * price, self.sparse * everything)

    def sure(self, batch: Batch, reason: Tensor, scores: Tensor) -> Tensor:
        """Return how sure (B,) the net still is where the rationale is taken away."""
        if self.unsure == 0:
            return torch.zeros_like(scores[:, 0])
        left = torch.lerp(batch.x, torch.full_like(batch.x, self.null), reason.expand_as(batch.x))
        if self.spread == 0:
            without, even = batch.scores(left), torch.zeros_like(scores[:, 0])
        else:
            without, maps = self.explained(batch, left)
            size = maps.abs().flatten(2)
            # The cosine between |s| and a constant.
            length = size.square().sum(2).clamp_min(torch.finfo(size.dtype).tiny).sqrt()
            even = (size.sum(2) / (length * size.shape[2] ** 0.5)).mean(1)
        own = batch.y[:, None]
        fall = scores.softmax(1).gather(1, own) - without.softmax(1).gather(1, own)
        return -fall.squeeze(1).abs() - self.spread * even

    def explained(self, batch: Batch, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B, K) and maps (B, M, *shape) of x, both on the parameters' graph."""
        if self.patch is not None:
            return self.omitted(batch, x)
        oracle, rows = batch.oracle(), batch.rows(x)
        leaf = x.detach().requires_grad_()
        scores = oracle.scores(leaf, rows)
        every = scores.log_softmax(1).sum(1)
        (grad,) = oracle.grad(every, (leaf,), rows, create_graph=True)
        return scores, grad[:, None]

    def omitted(self, batch: Batch, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fall of each class's probability without each patch, spread over the patch."""
        cells = patches(x, self.patch or 1)
        without = torch.where(cells, torch.full_like(x[:, None], self.null), x[:, None])
        scores = batch.scores(torch.cat([x[:, None], without], 1).flatten(0, 1))
        scores = scores.view(len(x), 1 + len(cells), -1)
        p = scores.softmax(2)
        fall = (p[:, :1] - p[:, 1:]).transpose(1, 2)  # (B, K, P)
        cells = cells.to(x)
        each = cells / cells.flatten(1).sum(1).view(-1, *[1] * (x.dim() - 1))
        return scores[:, 0], torch.einsum("bkp,p...->bk...", fall, each)


def fitted(reason: Tensor, x: Tensor) -> Tensor:
    """Return rationales shaped to broadcast over x (B, *shape).

    A mask with fewer dimensions is one of positions, the first ones of x: words (B, L) of
    embeddings (B, L, D). Images (B, C, H, W) take (B, 1, H, W), and (B, H, W) too.
    """
    if x.dim() == 4 and reason.dim() == 3 and reason.shape[1:] == x.shape[2:]:
        reason = reason[:, None]
    if reason.dim() < x.dim():
        reason = reason.reshape(*reason.shape, *[1] * (x.dim() - reason.dim()))
    fits = reason.dim() == x.dim() and len(reason) == len(x)
    if not fits or any(r not in (1, s) for r, s in zip(reason.shape[1:], x.shape[1:], strict=True)):
        raise InputError(
            f"rationales of shape {tuple(reason.shape)} do not fit inputs {tuple(x.shape)}: give a "
            "mask a sample, (B, 1, H, W) for images, (B, L) for embedded words (B, L, D)"
        )
    low, high = reason.nan_to_num(0.5).aminmax()
    if low < 0 or high > 1:
        raise InputError(
            f"rationales span [{float(low):g}, {float(high):g}]: 1 where the reason lies, 0 where "
            "it does not, NaN throughout where none is given"
        )
    return reason


def patches(x: Tensor, size: int) -> Tensor:
    """Return the cells of a grid over one input's positions as masks (P, *shape) bool.

    Positions are the last two dimensions of an image (C, H, W), the first one of anything else.
    """
    shape = tuple(x.shape[1:])
    dims = (1, 2) if len(shape) == 3 else (0,)
    at = torch.zeros(shape, dtype=torch.int64, device=x.device)
    counts = [-(-shape[d] // size) for d in dims]
    for d, count in zip(dims, counts, strict=True):
        along = torch.arange(shape[d], device=x.device) // size
        at = at * count + along.view([-1 if e == d else 1 for e in range(len(shape))])
    cells = [at == i for i, _ in enumerate(product(*map(range, counts)))]
    return torch.stack(cells)


def rationales(
    weight: float = 0.05,
    unsure: float = 1.0,
    spread: float = 0.2,
    sparse: float = 1e-5,
    patch: int | None = None,
    null: float = 0.0,
) -> Rationales:
    """Return rationale regularisation, CREX (R11, Du et al. 2019).

    The data are (x, y, r): r is 1 where a person sees the reason for the label and 0 elsewhere: a
    mask (N, 1, H, W) of an image, (N, L) of words whose embeddings are x (N, L, D); NaN
    throughout for a sample without one. The loss is
    CE + weight * (outside + unsure * sure) where there is a rationale, with

    - outside: the L1 norm of the net's own explanation outside of r, the mean over classes;
    - sure: -|p_y(x) - p_y(x without r)| - spread * cos(|explanation of x without r|, constant), so
      that the net loses its opinion, and points nowhere, where the reason is taken away;

    and CE + sparse * (L1 norm of the explanation) where there is none. A mask of ones throughout
    *is* a rationale: it says that nothing is beside the point.

    weight: the paper's lambda 1, 1e-4 to 0.05; above 0.25 training collapsed there. patch: None
    explains by the gradient of the sum of all classes' log-probabilities (Ross et al. 2017),
    for one double backward; a number leaves out squares of that side (words in rows of
    that length), for one forward each, and has a map a class, as in the paper, which leaves out
    phrases. The two have other scales: tune the weight. null: what is shown in place of what is
    left out, in the model's units. spread 0 saves the second explanation.

    Departures: in each sample's loss, not in the mean over those with a rationale; the fall of
    a patch is spread evenly over its positions.

    Raises InputError for prices that are negative, and for masks that do not fit x.

    >>> import foible, torch
    >>> x, y, r = torch.rand(4, 1, 6, 6), torch.arange(4) % 2, torch.ones(4, 1, 6, 6)
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))
    >>> batch = foible.defend.Batch(foible.wrap(net), x, y, torch.arange(4), (r,))
    >>> rationales()(batch).shape
    torch.Size([4])
    """
    return Rationales(weight, unsure, spread, sparse, patch, null)
