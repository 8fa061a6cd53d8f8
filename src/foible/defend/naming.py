"""Losses by name, for the command line and for plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from foible.attacks.gradient import fgsm, pgd
from foible.core.errors import InputError
from foible.core.threat import Threat
from foible.defend.losses import (
    Loss,
    adversarial,
    advprop,
    awp,
    fast,
    free,
    gradient_penalty,
    interval,
    plain,
    trades,
)
from foible.parts.threats import Linf
from foible.parts.threats.balls import Ball


@dataclass(frozen=True)
class Choice:
    """What a named loss is made of. steps: of its attack; beta: of TRADES; ramp: growth of eps."""

    threat: Threat
    steps: int = 10
    beta: float = 6.0
    ramp: float = 0.0


def _pgd(c: Choice) -> Loss:
    return adversarial(pgd(c.threat, c.steps), ramp=c.ramp)


def _trades(c: Choice) -> Loss:
    return trades(pgd(c.threat, c.steps), c.beta, c.ramp)


def _fgsm(c: Choice) -> Loss:
    return adversarial(fgsm(c.threat), clean=0.5, ramp=c.ramp)


def _fast(c: Choice) -> Loss:
    return fast(c.threat)


def _free(c: Choice) -> Loss:
    assert isinstance(c.threat, Ball)
    return free(c.threat)


def _awp(c: Choice) -> Loss:
    return awp(_trades(c))


def _interval(c: Choice) -> Loss:
    eps = getattr(c.threat, "eps", None)
    if not isinstance(c.threat, Linf) or not isinstance(eps, float):
        raise InputError("training on bounds is for Linf with one eps: --norm linf")
    return interval(eps)


def _penalty(c: Choice) -> Loss:
    return gradient_penalty()


def _advprop(c: Choice) -> Loss:
    return advprop(pgd(c.threat, min(5, c.steps)))


def _plain(c: Choice) -> Loss:
    return plain()


# name -> (how it is made, what it is). The first is the default of `foible harden`.
LOSSES: dict[str, tuple[Callable[[Choice], Loss], str]] = {
    "trades": (_trades, "TRADES: accuracy against a change of the prediction; --beta weighs them"),
    "pgd": (_pgd, "training on PGD adversarials only (Madry et al. 2018)"),
    "fast": (_fast, "one step from a random start, for the price of FGSM (Wong et al. 2020)"),
    "fgsm": (_fgsm, "half clean, half FGSM; known to hide its gradient at a large eps"),
    "free": (_free, "each batch four times, its change carried on (Shafahi et al. 2019)"),
    "awp": (_awp, "TRADES at weights that were moved against it (Wu et al. 2020); a third dearer"),
    "interval": (_interval, "worst cases by interval bounds, which certify (Gowal et al. 2018)"),
    "penalty": (_penalty, "a penalty on the input gradient; a little robustness for little"),
    "advprop": (_advprop, "adversarials under batch norms of their own: for accuracy, no defence"),
    "plain": (_plain, "ordinary training: the baseline"),
}


def named(name: str, choice: Choice) -> Loss:
    """Return a loss by its name.

    Raises InputError with the names that there are.

    >>> import foible
    >>> named("trades", Choice(foible.Linf(0.1), beta=1.0)).beta
    1.0
    """
    if name not in LOSSES:
        raise InputError(f"there is no loss {name!r}: choose {', '.join(LOSSES)}")
    return LOSSES[name][0](choice)
