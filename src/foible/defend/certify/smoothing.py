"""Randomized smoothing: the answer under noise, and the radius in which it cannot change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import InputError, ModelError
from foible.core.progress import tick
from foible.core.randomness import Rng
from foible.defend.inputs.base import Change, Defended, torch_model
from foible.defend.inputs.voting import Poll
from foible.explain.base import check_inputs
from foible.models import TorchModel
from foible.parts.statistics import binomial_lower, binomial_tail

_PIECE = 100  # draws that one stream of a sample's noise gives
ABSTAINED = -1


class Certified(NamedTuple):
    """What smoothing is sure of, for each of B samples.

    labels: (B,) int64, -1 where it abstains. radii: (B,) float64, L2, in the input's units: no
    change that is smaller moves the label; 0 where it abstains.
    """

    labels: Tensor
    radii: Tensor

    def accuracy(self, y: Tensor, radius: float = 0.0) -> float:
        """Return the share of samples that are right, and certainly so within an L2 radius."""
        return float(((self.labels == y) & (self.radii > radius)).double().mean())


class Gaussian(Change):
    """A point around each input: Gaussian noise of deviation sigma, not cut to the bounds."""

    random = True

    def __init__(self, sigma: float) -> None:
        super().__init__()
        if not sigma > 0:
            raise InputError(f"sigma={sigma}: above 0; without noise nothing is certain")
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Return inputs of x's shape."""
        return x + self.sigma * torch.randn_like(x)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"sigma={self.sigma}"


class Smoothed(Defended):
    """A model under Gaussian noise; made by `randomized_smoothing`.

    Called, or attacked, it gives the logarithm of the mean probability over `draws` noisy copies,
    fresh ones each time, through which a gradient passes. `predict` and `certify` take a majority.
    """

    def __init__(self, held: TorchModel, sigma: float, draws: int) -> None:
        poll = Poll(Gaussian(sigma), held, draws, soft=True)
        super().__init__(poll, "", Access.INTERNALS, draws)
        self.sigma, self.draws = sigma, draws

    def predict(
        self,
        x: Tensor,
        n: int = 1000,
        alpha: float = 0.001,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Return the labels (B,) int64, -1 where `n` draws do not tell (Cohen et al. 2019).

        alpha: with at most this probability a label is not the one that infinitely many draws
        would give. seed, ids: (B,) int64 sample ids, the positions if None; they fix the noise.
        """
        _check(x, n, alpha)
        found = []
        for part, counts in self._counts(x, n, seed, 0, ids):
            top = counts.topk(2, 1)
            first, both = top.values[:, 0], top.values.sum(1)
            # Two-sided: the chance of so uneven a split of the two likeliest, were they equal.
            half = torch.full_like(first, 0.5, dtype=torch.float64)
            sure = 2 * binomial_tail(first, both, half) <= alpha
            found.append(torch.where(sure, top.indices[:, 0], ABSTAINED))
            tick(len(part))
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=x.device)

    def certify(
        self,
        x: Tensor,
        n0: int = 100,
        n: int = 1000,
        alpha: float = 0.001,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
    ) -> Certified:
        """Return labels and the L2 radii in which they hold (CERTIFY, Cohen et al. 2019).

        n0: draws that choose the label. n: further draws, which bound its probability from below,
        exactly (Clopper and Pearson 1934): radius = sigma * Phi^-1(bound), 10,000 or more for
        large radii. alpha: with at most this probability, for each sample, the radius is too
        large. Costs n0 + n forwards of the net a sample. seed, ids: as in `predict`.

        Raises InputError for inputs that cannot be used, and for counts and alpha out of range;
        ModelError for a model that gives NaN.
        """
        _check(x, min(n, n0), alpha)
        chosen = [counts.argmax(1) for _, counts in self._counts(x, n0, seed, 0, ids)]
        guesses = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64)
        labels, radii = guesses.clone(), torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for part, counts in self._counts(x, n, seed, 1, ids):
            hits = counts.gather(1, guesses[part][:, None]).squeeze(1)
            bound = binomial_lower(hits, n, alpha)
            sure = bound > 0.5
            labels[part] = torch.where(sure, guesses[part], ABSTAINED)
            radii[part] = torch.where(sure, self.sigma * torch.special.ndtri(bound), 0.0)
            tick(len(part))
        return Certified(labels, radii)

    def _counts(
        self, x: Tensor, n: int, seed: int, stream: int, ids: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give, group by group, positions and how many of n draws fall to each class (b, K)."""
        index = torch.arange(len(x), device=x.device)
        if len(x) == 0:
            return
        ids = index if ids is None else ids.to(index)
        rng = Rng(seed).split(stream)
        piece = min(_PIECE, n)
        with self.session(seed), torch.no_grad():
            group = max(1, self.held.chunk(x) // piece)
            for part in index.split(group):
                counts = None
                for step, start in enumerate(range(0, n, piece)):
                    size = min(piece, n - start)
                    noise = rng.at(ids[part], step).normal((size, *x.shape[1:]), x.dtype)
                    many = (x[part][:, None] + self.sigma * noise).flatten(0, 1)
                    scores = self.held.scores(many)
                    if bool(scores.isnan().any()):
                        raise ModelError(
                            "the model gives NaN under noise: a vote of it certifies nothing. Look "
                            f"at inputs with noise of {self.sigma:g}"
                        )
                    hot = F.one_hot(scores.argmax(1), scores.shape[1]).view(len(part), size, -1)
                    counts = hot.sum(1) if counts is None else counts + hot.sum(1)
                assert counts is not None
                yield part, counts

    def _seen(self, x: Tensor) -> Tensor:
        return x


def _check(x: Tensor, n: int, alpha: float) -> None:
    check_inputs(x)
    if n < 1 or not 0 < alpha < 1:
        raise InputError(f"n={n}, alpha={alpha}: one draw at least, and a probability in (0, 1)")


def randomized_smoothing(model: nn.Module | Any, sigma: float, draws: int = 16) -> Smoothed:
    """Return the model smoothed by Gaussian noise, with a certificate (Cohen et al. 2019).

    The smoothed model's label is the one that most noisy copies of an input get. Where that is
    certain enough, no change smaller than a radius in L2 can move it: `.certify(x)` gives labels
    and radii, `.predict(x)` labels alone, and both abstain where the draws do not tell. model: a
    module or a wrapped model; bounds, preprocessing and outputs are kept, and noise is not cut to
    the bounds. sigma: of the noise, in the input's units; a larger one reaches further and costs
    accuracy. Train the model under the same noise first (`foible.defend.with_noise`), or it
    abstains on most inputs. draws: noisy copies of one look, where it is attacked or explained.

    Attacks and explainers see the mean probability of `draws` copies, and the gradient passes
    (Salman et al. 2019 attack it so); a look costs `draws` forwards. What holds is the
    certificate; an attack on so few draws only says what it found.

    Raises InputError for a sigma that is not positive and no draws, KindError for what holds no
    torch module.

    >>> net = nn.Linear(1, 2)
    >>> with torch.no_grad():
    ...     _ = net.weight.copy_(torch.tensor([[-1.0], [1.0]])), net.bias.zero_()
    >>> sure = randomized_smoothing(net, sigma=0.5).certify(torch.tensor([[0.3], [0.001]]), n=2000)
    >>> sure.labels.tolist(), bool(0.2 < sure.radii[0] < 0.3)
    ([1, -1], True)
    """
    if draws < 1:
        raise InputError(f"draws={draws}: one noisy copy at least")
    return Smoothed(torch_model(model, "randomized_smoothing"), sigma, draws)
