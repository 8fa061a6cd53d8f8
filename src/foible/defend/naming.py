"""Losses by name, for the command line and for plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from foible.attacks.gradient import fgsm, pgd
from foible.core.errors import InputError
from foible.core.threat import Threat
from foible.defend.losses import Loss, adversarial, fast, plain, trades


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


def _plain(c: Choice) -> Loss:
    return plain()


# name -> (how it is made, what it is). The first is the default of `foible harden`.
LOSSES: dict[str, tuple[Callable[[Choice], Loss], str]] = {
    "trades": (_trades, "TRADES: accuracy against a change of the prediction; --beta weighs them"),
    "pgd": (_pgd, "training on PGD adversarials only (Madry et al. 2018)"),
    "fast": (_fast, "one step from a random start, for the price of FGSM (Wong et al. 2020)"),
    "fgsm": (_fgsm, "half clean, half FGSM; known to hide its gradient at a large eps"),
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
