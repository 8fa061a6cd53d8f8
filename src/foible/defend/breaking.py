"""Each defence that is known to be broken, beside the attack that breaks it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from foible.attacks import eot, fgsm, pgd
from foible.attacks.base import Attack, Result
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.threat import Threat
from foible.defend.inputs.base import Change
from foible.defend.inputs.squeezing import Squeezers
from foible.defend.inputs.voting import Vote
from foible.models import TorchModel, as_model, bpda


@dataclass(frozen=True)
class Broken:
    """What is left of a defence: under the attack it looks strong against, and under its breaker.

    naive, adaptive: results of the same samples, threat and seed, both judged by the defended
    model itself.
    """

    naive: Result
    adaptive: Result

    @property
    def gap(self) -> float:
        """Return how much accuracy the naive attack left that the adaptive one did not."""
        left, right = (r.robust_accuracy for r in (self.naive, self.adaptive))
        assert left is not None and right is not None
        return left - right

    def __str__(self) -> str:
        first, second = (r.robust_accuracy for r in (self.naive, self.adaptive))
        return f"{first:.1%} left by the naive attack, {second:.1%} by the adaptive one"


@dataclass(frozen=True)
class Breaker:
    """A defence, why it is none, and the attack that shows it; made by `breaker`.

    name: of the defence. why: it breaks; paper: who broke it. look: what the naive figure is:
    "through" (PGD on the defended model), "one step" (FGSM on it), "before" (PGD on the model that
    is defended, shown to the whole) or "barely" (the same, ended where it first succeeds). steps:
    of each attack. draws: over which an attack on a random model averages.
    """

    name: str
    why: str
    paper: str
    look: str = "through"
    steps: int = 40
    draws: int = 30

    def naive(self, threat: Threat) -> Attack:
        """Return the attack that the defence looks strong against."""
        if self.look == "one step":
            return fgsm(threat)
        return pgd(threat, self.steps, stop="success" if self.look == "barely" else "never")

    def attack(self, threat: Threat) -> Attack:
        """Return the attack that breaks the defence within a threat that has an eps.

        It is for `model(defended)`, whose gradients mean something.
        """
        if self.name in RANDOM:
            return eot(pgd(threat, self.steps, objective="margin"), self.draws)
        return pgd(threat, self.steps, objective="margin", restarts=2)

    def model(self, defended: Any) -> TorchModel:
        """Return the model to search: the defended one with gradients that are worth following.

        Where a change passes none, it passes that of the identity (BPDA: the scores stay what they
        are, bit for bit), and a vote becomes the mean probability over its region. Verdicts are to
        be the defended model's own; calling the breaker sees to that.

        Raises KindError for what holds no torch module.
        """
        held = as_model(defended)
        if isinstance(held, Vote):
            held = held.soft(self.draws)
        if not isinstance(held, TorchModel):
            raise KindError(
                f"{type(defended).__name__} holds no torch module to see through: attack it by its "
                "scores or labels, e.g. with foible.attacks.square"
            )
        blind = [
            m for m in held.net.modules()
            if isinstance(m, Change) and not isinstance(m, Squeezers) and not m.passes
        ]  # fmt: skip
        return bpda(held, at=blind) if blind else held

    def __call__(self, model: Any, x: Tensor, y: Tensor, threat: Threat, seed: int = 0) -> Broken:
        """Attack a defended model both ways.

        model: as `foible.defend` made it, or a net that was trained so. x: (B, *shape) float, y:
        (B,) int64. threat: with eps, in the input's units.
        """
        defended, searched = as_model(model), self.model(model)
        attack, naive = self.attack(threat), self._static(defended, threat)
        if isinstance(defended, Vote):  # whose stand-in only the vote itself may judge
            attack = replace(attack, source=searched)
            searched = defended
        elif any(isinstance(m, Change) and m.random for m in searched.net.modules()):
            if self.name not in RANDOM:  # a random one stands behind it
                attack = eot(replace(attack, restarts=1), self.draws)
            # One draw a step, as if it were not random; the verdict is that of the other's.
            naive = replace(eot(naive, 1), goal=attack.goal)
        return Broken(naive(defended, x, y, seed=seed), attack(searched, x, y, seed=seed))

    def _static(self, defended: Any, threat: Threat) -> Attack:
        """Return the naive attack, searched on the bare model where that is what it is."""
        attack, inner = self.naive(threat), bare(defended)
        if inner is not None and (
            self.look in ("before", "barely") or defended.access < Access.GRADIENTS
        ):
            while inner.access < Access.GRADIENTS and (behind := bare(inner)) is not None:
                inner = behind
            attack = replace(attack, source=inner)
        return attack


RANDOM = ("randomize",)
_TABLE = (
    Breaker(
        "fgsm", "one step is what it was trained on: more steps find what the net hides from one",
        "Tramer et al. 2018; Madry et al. 2018", "one step",
    ),
    Breaker(
        "ensemble_training", "it knows transferred steps: white-box PGD and translation-invariant "
        "transfer (`foible.attacks.ti_dim`) get through", "Dong et al. 2019", "one step",
    ),
    Breaker(
        "gradient_penalty", "a small gradient slows one step down, and many small ones add up",
        "none that we know of: our own measurement", "one step",
    ),
    Breaker(
        "distillation", "its logits are so large that the cross-entropy has no gradient in "
        "float32: the difference of two logits has one", "Carlini and Wagner 2017",
    ),
    Breaker(
        "kernel_smoothing", "a linear change of the weights: the net has a gradient as any other",
        "none that we know of: our own measurement", "one step",
    ),
    Breaker(
        "infodrop", "it changes what a net looks at, not how far its answer holds",
        "none that we know of: our own measurement", "one step",
    ),
    Breaker(
        "guided_denoiser", "it cleans what was crafted without it: PGD goes through the denoiser",
        "Athalye and Carlini 2018", "before",
    ),
    Breaker(
        "randomize", "one draw's gradient is noise: the mean over draws is not",
        "Athalye et al. 2018",
    ),
    Breaker(
        "squeeze", "rounding has the gradient zero, and nearly is the identity",
        "He et al. 2017; Athalye et al. 2018",
    ),
    Breaker(
        "jpeg", "compression has no gradient, and nearly is the identity", "Athalye et al. 2018",
    ),
    Breaker(
        "total_variation", "smoothing is differentiable, or nearly the identity",
        "Athalye et al. 2018", "before",
    ),
    Breaker(
        "region_vote", "the mean probability over the region has a gradient, and where it is well "
        "past the boundary the vote is too", "He et al. 2018", "barely",
    ),
)  # fmt: skip
_NAMED = {one.name: one for one in _TABLE}


def breakers() -> tuple[Breaker, ...]:
    """Return every known breaker.

    >>> [b.name for b in breakers()][:3]
    ['fgsm', 'ensemble_training', 'gradient_penalty']
    """
    return _TABLE


def breaker(name: str, steps: int = 40, draws: int = 30) -> Breaker:
    """Return the attack that breaks a defence, beside the one that it looks strong against.

    Called with (model, x, y, threat), it attacks both ways and gives `.naive` and `.adaptive`,
    results as any attack's, and `.gap` in accuracy. `.attack(threat)` and `.model(defended)` are
    the adaptive attack's two halves. Survey 2.2 and 4.3; A11, Athalye et al. 2018, and the papers
    that each names.

    name: of the defence, as the function of `foible.defend` that makes it; "fgsm" for training on
    FGSM. Certificates and training on PGD or TRADES have none. steps: of each attack. draws: that
    the attack averages over where a model is random, 30 in Athalye et al. 2018.

    Raises InputError for a name without a breaker.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> rounded = foible.defend.squeeze(foible.zoo.load("standard"), bits=2)
    >>> found = breaker("squeeze", steps=5)(rounded, x[:8], y[:8], foible.Linf(0.25))
    >>> found.adaptive.robust_accuracy < found.naive.robust_accuracy
    True
    """
    if name not in _NAMED:
        raise InputError(f"no breaker is known for {name!r}: choose from {', '.join(_NAMED)}")
    return replace(_NAMED[name], steps=steps, draws=draws)


def defence_of(model: Any) -> str:
    """Return the name of what breaks a model, "" where it is no defence of ours.

    A defended model, or a module that was trained so, says it in its attribute `defence`.

    >>> import foible
    >>> defence_of(foible.defend.jpeg(foible.zoo.load("standard")))
    'jpeg'
    """
    for one in (model, getattr(model, "net", None)):
        name = getattr(one, "defence", None)
        if isinstance(name, str) and name in _NAMED:
            return name
    return ""


def bare(model: Any) -> TorchModel | None:
    """Return the model that a defence stands in front of; None where there is none."""
    for one in (model, getattr(model, "net", None)):
        held = getattr(one, "held", None)
        if isinstance(held, TorchModel):
            return held
    return None
