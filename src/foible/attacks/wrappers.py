"""Attacks around attacks: averaged over random draws, or drawn towards benign data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.attacks.base import Attack, clean_look
from foible.attacks.contrast import priced
from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.problem import Closest, Goal, Objective, View
from foible.core.randomness import Draw, Rng
from foible.core.rows import Rows
from foible.parts.density import Density
from foible.parts.residual import Reconstructed, Residual
from foible.parts.searches.carlini import CarliniL2
from foible.parts.searches.ead import ElasticDescent
from foible.parts.transforms import Transform


def _times(draw: Draw, count: int) -> Draw:
    """Return the draw of `count` copies of its rows, each copy with numbers of its own."""
    if count == 1:
        return draw
    step = draw.step.cpu()
    copies = torch.arange(count).repeat_interleave(len(step))
    return Draw(draw.rng, draw.ids.repeat(count), step.repeat(count) * count + copies)


def _outside(rows: Rows) -> Draw:
    """Return the draw of a look outside of the search: from the seed that the session set."""
    return Rng(torch.initial_seed()).split(13).at(rows.id, 0)


def _expected(scores: Tensor, count: int) -> Tensor:
    """Return the logarithm of the mean probabilities (B, K) of scores (count * B, K)."""
    if count == 1:
        return scores
    each = F.log_softmax(scores, 1).view(count, -1, scores.shape[1])
    return torch.logsumexp(each, 0) - math.log(count)


class _Drawn(View):
    """Several draws of one view's points: z and x_adv are repeated, only the scores are drawn."""

    def __init__(self, view: View, samples: int, transform: Transform | None) -> None:
        def many(part: Tensor) -> Tensor:
            return part if samples == 1 else torch.cat([part] * samples)

        z = None if view.z is None else many(view.z)
        super().__init__(view.oracle, view.rows.repeat(samples), many(view.x_adv), z)
        self.of, self.samples, self.transform = view, samples, transform

    @property
    def scores(self) -> Tensor:
        """Logits (samples * B, K): one forward a draw, and one backward each time they get one."""
        if self._scores is None:
            x = self.x_adv
            if self.transform is not None:
                draw = self.of.draw or _outside(self.of.rows)
                x = self.transform(x, _times(draw, self.samples))
            self._scores = self.oracle.scores(x, self.rows)
            if self._scores.requires_grad and self.samples > 1:
                # The oracle counts one backward a row; the other draws cost theirs as well.
                # The hook does not know this view, or the two would hold each other's graph.
                others, meter = self.rows.index[len(self.of.rows) :], self.oracle.meter
                self._scores.register_hook(lambda grad: meter.count(others, backward=True))
        return self._scores


@dataclass(frozen=True)
class Averaged:
    """The mean of an objective over draws of a transform and of the model's own randomness.

    The mean is of the objective, not of the scores. What it has drawn also gives the view's
    scores, the logarithm of the mean probabilities, so that the verdict costs nothing more.
    """

    inner: Objective
    samples: int = 20
    transform: Transform | None = None

    @property
    def draws(self) -> int:
        """How many forwards one look costs."""
        return self.samples

    def for_restart(self, restart: int, classes: int) -> Averaged:
        """Pass a restart's aim on."""
        aim = getattr(self.inner, "for_restart", None)
        return self if aim is None else replace(self, inner=aim(restart, classes))

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        drawn = _Drawn(view, self.samples, self.transform)
        value = self.inner(drawn)
        if view._scores is None and drawn._scores is not None:
            view._scores = _expected(drawn._scores, self.samples)
        return value if self.samples == 1 else value.view(self.samples, -1).mean(0)


@dataclass(frozen=True)
class Settled(Goal):
    """A goal that is judged on the mean probabilities of several draws.

    Where only labels are given, on the commonest label of the draws.
    """

    goal: Goal
    samples: int = 20
    transform: Transform | None = None

    def __call__(self, view: View) -> Tensor:
        """Return (B,) bool; draws afresh where the view has not been looked at yet."""
        if view._scores is None and view._labels is None:
            rows, draw = view.rows, view.draw or _outside(view.rows)
            votes = [self._look(view.oracle, rows.at(view.x_adv), draw, k)
                     for k in range(self.samples)]  # fmt: skip
            view._labels, view._scores = _settle(votes)
        return self.goal(view)

    def clean_look(self, oracle: Oracle, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the labels (B,) and expected scores (B, K) of clean inputs, over fresh draws."""
        draw = _outside(rows).split(1)
        looks = []
        for k in range(self.samples):
            changed = rows.x if self.transform is None else self.transform(rows.x, draw.split(k))
            looks.append(clean_look(oracle, rows.at(changed)))
        return _settle(looks)

    def _look(self, oracle: Oracle, rows: Rows, draw: Draw, k: int) -> tuple[Tensor, Tensor | None]:
        x = rows.x if self.transform is None else self.transform(rows.x, draw.split(k))
        if oracle.access == Access.LABELS:
            return oracle.labels(x, rows), None
        scores = oracle.scores(x, rows)
        return scores.argmax(1), scores


def _settle(looks: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Return the labels (B,) and the scores (B, K) that several looks come to."""
    if len(looks) == 1:
        return looks[0]
    if looks[0][1] is None:
        return torch.stack([labels for labels, _ in looks]).mode(0).values, None
    scores = _expected(torch.cat([s for _, s in looks if s is not None]), len(looks))
    return scores.argmax(1), scores


def eot(attack: Attack, samples: int = 20, transform: Transform | None = None) -> Attack:
    """Return an attack with its loss averaged over random draws: expectation over transformation.

    Athalye et al. 2018 (A11). attack: any attack. samples: draws a look, 10 to 30 in the paper's
    experiments; each costs one forward and, where a gradient is asked, one backward. transform:
    called with (x, draw), from `foible.parts.transforms` or your own; None averages over the
    model's own randomness alone. The loss is averaged, not the logits.

    The verdict is that of the mean probabilities of the draws (the commonest label, where only
    labels are given), and the final one takes fresh draws: a success that does not hold in them
    is not counted. Samples of one and a transform that is constant give the attack itself, bit
    for bit. A sample that leaves at its first success (stop="success") has one chance to hold,
    so that "never" is the stronger setting here.

    Raises InputError for samples below 1, for an averaged attack, and for a cap on queries that
    leaves no room for a single look.

    >>> import foible
    >>> from foible.parts.transforms import ShiftRotate
    >>> attack = eot(foible.attacks.bim(foible.Linf(0.1)), 4, ShiftRotate(10.0, 1.0))
    >>> x, y = foible.zoo.sample()
    >>> int(attack(foible.zoo.load("standard"), x[:2], y[:2]).backwards[0])
    40
    """
    if samples < 1:
        raise InputError(f"samples={samples}: an expectation needs one draw at least")
    if isinstance(attack.objective, Averaged):
        raise InputError("the attack is averaged over draws already: raise its samples instead")
    if attack.cap is not None and attack.cap < 3 * samples:
        raise InputError(
            f"queries={attack.cap}: {samples} draws need {3 * samples} queries at least, for the "
            "clean label, one point and the verification"
        )
    return replace(
        attack, name="eot", objective=Averaged(attack.objective, samples, transform),
        goal=Settled(attack.goal, samples, transform),
    )  # fmt: skip


def with_density(
    attack: Attack, data: Tensor, weight: float = 1.0, bandwidth: float = 10.0,
    kernel: str = "laplace",
) -> Attack:  # fmt: skip
    """Return an attack that is also drawn to where benign data are dense.

    Biggio et al. 2013 (A8): the objective gains `weight` times a kernel density estimate, so that
    the attack ends among inputs that look like those of the class it imitates, and not merely
    across the boundary. data: (N, *shape) inputs of that class. bandwidth: of the kernel, in units
    of the input; the paper takes weight 500 and bandwidth 10 on MNIST. kernel: "laplace"
    (exp of minus the L1 distance) or "rbf". Every evaluation costs N distances, no model call.

    What is best among a sample's points of equal verdict is judged with the density as well.
    Such an attack holds data, so that a plan cannot store it.

    Raises InputError for a kernel that is not known, a bandwidth that is not positive, empty data,
    and, when it runs, data of another shape than the inputs.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> near = with_density(foible.attacks.bim(foible.L2(2.0)), x[y == 7], 100.0, 20.0)
    >>> result = near(foible.zoo.load("standard"), x[y == 5][:4], y[y == 5][:4])
    """
    objective = attack.objective
    if isinstance(objective, Averaged):  # the density has nothing to average
        inner = Density(objective.inner, data, weight, bandwidth, kernel)
        return replace(attack, objective=replace(objective, inner=inner))
    return replace(attack, objective=Density(objective, data, weight, bandwidth, kernel))


def autoencoder_penalty(attack: Attack, autoencoder: nn.Module, weight: float = 1.0) -> Attack:
    """Return an attack that also pays for what an autoencoder does not give back of its inputs.

    Dhurandhar et al. 2018 (S10): weight * |x_adv - AE(x_adv)|_2^2, so that adversarials stay near
    what the autoencoder was trained on. autoencoder: maps inputs, as the attacked model takes
    them, to their own shape, e.g. `foible.zoo.load("autoencoder")`; in evaluation mode. weight:
    in units of the objective for an attack with a budget, whose objective it lowers; of the
    squared L2 length for `cw`, of the L1 length for `ead` (of its elastic net with rule="en"),
    beside which it is made small.

    The autoencoder calls no model. Beside a size its gradient counts as one backward a step; in
    an objective it comes with the model's own. Such an attack holds a net, so that a plan cannot
    store it.

    Raises InputError where the term has no place: attacks that see labels only, and minimum-norm
    attacks other than `cw` in L2, `ead` and `contrastive`, which read the boundary off the
    objective's sign.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> judge = foible.zoo.load("autoencoder")
    >>> real = autoencoder_penalty(foible.attacks.pgd(foible.Linf(0.1), 5), judge)
    >>> result = real(foible.zoo.load("standard"), x[:4], y[:4])
    """
    objective = attack.objective
    if isinstance(attack.prefer, Closest):
        if type(attack.search) not in (CarliniL2, ElasticDescent):
            raise InputError(
                f"{attack.name} reads the boundary off the objective's sign, and so a term in it "
                "would move the boundary: take cw(L2()), ead(L1()) or an attack with a budget"
            )
        return priced(attack, autoencoder, weight)
    if attack.searching == Access.LABELS:
        raise InputError(
            f"{attack.name} sees labels only and asks no objective: the term has no place in it"
        )
    term = Residual(autoencoder, weight)
    if isinstance(objective, Averaged):  # the term has nothing to average
        inner = Reconstructed(objective.inner, term)
        return replace(attack, objective=replace(objective, inner=inner))
    return replace(attack, objective=Reconstructed(objective, term))
