"""Attacks that follow a gradient, or an explanation in its place, inside a norm ball."""

from __future__ import annotations

from foible.attacks.base import Attack, needs_eps
from foible.core.errors import InputError
from foible.core.explainer import Explainer
from foible.core.problem import Objective
from foible.core.threat import Threat
from foible.explain import SmoothGrad
from foible.parts.objectives import Constant, Margin, objective
from foible.parts.searches import Ascent, RandomPoints


def fgsm(threat: Threat, direction: Explainer | None = None) -> Attack:
    """Return the fast gradient (sign) method: one full step from the clean input.

    Goodfellow et al. 2015 (A1, survey Eq. 7); in L2 and L1 the step follows the steepest
    direction of that ball. direction: an explainer to follow instead of the gradient.

    >>> import foible
    >>> foible.attacks.fgsm(foible.Linf(0.1)).search.steps
    1
    """
    return Attack("fgsm", needs_eps(threat), Ascent(steps=1), direction=direction)


def r_fgsm(threat: Threat, alpha: float = 0.5) -> Attack:
    """Return R+FGSM: a random sign step of alpha * eps, then a gradient step of the rest.

    Tramer et al. 2018 (A4). alpha: the random share of eps, 0.5 in the paper (their code takes
    0.05 of 0.3); 0 is FGSM.
    """
    if not 0 <= alpha < 1:
        raise InputError(f"alpha={alpha}: the random share of eps lies in [0, 1)")
    start = "sign" if alpha else "clean"
    return Attack("r_fgsm", needs_eps(threat), Ascent(steps=1, share=1 - alpha, start=start))


def pgd(
    threat: Threat,
    steps: int = 40,
    step: float | None = None,
    restarts: int = 1,
    objective: str | Objective = "cross_entropy",
    direction: Explainer | None = None,
    stop: str = "never",
) -> Attack:
    """Return projected gradient descent from a random start (Madry et al. 2018, survey Eq. 16).

    steps: gradient steps. step: absolute length of one; None is 2.5 eps / steps. restarts:
    random starts. objective: "cross_entropy", "margin", "dlr" or a callable. direction: an
    explainer to follow instead of the gradient. stop: "never" or "success".

    The strongest point on the way is returned, not the last. With cross-entropy and many classes
    the direction mixes classes, so that close to the smallest breaking eps the margin is stronger.
    """
    search = Ascent(steps, step, min(1.0, 2.5 / max(1, steps)), "random")
    return Attack(
        "pgd", needs_eps(threat), search, _named(objective), direction, stop, restarts
    )  # fmt: skip


def bim(
    threat: Threat,
    steps: int = 10,
    step: float | None = None,
    objective: str | Objective = "cross_entropy",
    direction: Explainer | None = None,
    stop: str = "never",
) -> Attack:
    """Return the basic iterative method (A3, Kurakin et al. 2017): PGD from the clean input.

    step: absolute; None is 1.25 eps / steps, the paper's total path (1 / 255 a step for
    1.25 eps steps) at any number of steps.
    """
    search = Ascent(steps, step, min(1.0, 1.25 / max(1, steps)))
    return Attack("bim", needs_eps(threat), search, _named(objective), direction, stop)


def least_likely(threat: Threat, steps: int = 10, step: float | None = None) -> Attack:
    """Return the iterative least-likely class method (A3, Kurakin et al. 2017).

    Targeted at the class of the smallest clean score. step: as in `bim`.
    """
    search = Ascent(steps, step, min(1.0, 1.25 / max(1, steps)))
    return Attack("least_likely", needs_eps(threat), search, reach="least_likely")


def mim(
    threat: Threat,
    steps: int = 10,
    step: float | None = None,
    decay: float = 1.0,
    objective: str | Objective = "cross_entropy",
    stop: str = "never",
) -> Attack:
    """Return the momentum iterative method (Dong et al. 2018): BIM on accumulated gradients.

    decay: of the momentum, 1.0 in the paper; step: None is eps / steps, as there.
    """
    search = Ascent(steps, step, 1 / max(1, steps), momentum=decay)
    return Attack("mim", needs_eps(threat), search, _named(objective), stop=stop)


def smoothgrad_attack(
    threat: Threat, samples: int = 25, sigma: float = 0.15, steps: int = 1, stop: str = "never"
) -> Attack:
    """Return the attack along the SmoothGrad map of the loss (A5, survey 3.1.1).

    It is FGSM on the Gaussian-smoothed loss (steps 1), or PGD from the clean input on it.
    Costs `samples` backwards a step. sigma 0 is FGSM bit for bit.
    """
    search = Ascent(steps, None, 1.0 if steps == 1 else min(1.0, 2.5 / steps))
    return Attack(
        "smoothgrad_attack", needs_eps(threat), search, direction=SmoothGrad(samples, sigma),
        stop=stop,
    )  # fmt: skip


def random_noise(threat: Threat, points: int = 1, corners: bool = True) -> Attack:
    """Return the control: `points` random points of the ball, the strongest kept.

    corners: points of the largest size (random signs in Linf); else uniform in the ball.
    Looks at scores only; an attack that does not beat it has found nothing.
    """
    search = RandomPoints(points, corners)
    quick = Constant() if points == 1 else Margin()
    return Attack("random_noise", needs_eps(threat), search, quick)


def _named(chosen: str | Objective) -> Objective:
    return objective(chosen)
