"""The trust checks: what must hold before a number may be believed, each with advice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible import attacks
from foible.audit.cells import Context, Measured
from foible.audit.trust import SIGNS, black_box, masking, planted
from foible.core.access import Access
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.rows import Rows
from foible.parts.objectives import CrossEntropy, Margin

# In place of names: the check reads whatever attacks the plan has.
EVERY_ATTACK = ("*",)


@dataclass(frozen=True)
class Check:
    """title: what must hold. work: (context) -> (passed or None, value, measured, expected).

    advice: what to do where it fails. spoils: the cells whose numbers it spoils. after: cells
    that it reads.
    """

    name: str
    title: str
    work: Callable[[Context], tuple[bool | None, float | None, str, str]]
    advice: str
    spoils: tuple[str, ...] = ("clean", "*")
    after: tuple[str, ...] = ()
    cost: float = 0.3

    @property
    def says(self) -> dict[str, Any]:
        """What the report says of the check, whatever it measures."""
        return {"title": self.title, "advice": self.advice, "spoils": list(self.spoils)}

    def __call__(self, context: Context) -> Measured:
        """Run the check; None means that it does not apply."""
        passed, value, measured, expected = self.work(context)
        status = "not measured" if passed is None else "ok" if passed else "failed"
        detail = {**self.says, "measured": measured, "expected": expected}
        forwards, backwards = context.spent
        return Measured(value, len(context.x), None, forwards, backwards, status, detail)


Verdict = tuple[bool | None, float | None, str, str]


def _scores(context: Context, n: int) -> Tensor:
    context.spend(len(context.x[:n]))
    with context.model.session(context.seed), torch.no_grad():
        return context.model.scores(context.x[:n])


def eval_mode(context: Context) -> Verdict:
    """Say whether the model came in training mode; the audit uses evaluation mode anyway."""
    note = (
        "training mode; audited in evaluation mode" if context.was_training else "evaluation mode"
    )
    return True, float(context.was_training), note, "evaluation mode during every call"


def logits(context: Context) -> Verdict:
    """Fail where declared logits look like probabilities."""
    if context.model.outputs != "logits":
        return None, None, f"outputs are declared {context.model.outputs!r}", "logits"
    scores = _scores(context, 256)
    alike = (
        bool((scores >= 0).all())
        and bool((scores <= 1 + 1e-5).all())
        and bool(((scores.sum(1) - 1).abs() < 1e-3).all())
    )
    total = float(scores.sum(1).mean())
    return not alike, total, f"scores sum to {total:.4g} a sample", "not probabilities"


def above_chance(context: Context) -> Verdict:
    """Fail where accuracy is at chance, as with a forgotten normalisation.

    The mean over classes is judged: one answer for all inputs is right on the largest class.
    """
    found = context.result("clean")
    if found is None or found[0]["value"] is None:
        return None, None, "no clean accuracy", "above chance"
    rates = [float(rate) for rate in found[0]["detail"]["per_class"] if rate is not None]
    value, chance = sum(rates) / len(rates), 1 / len(rates)
    bar = chance + 3 * (chance * (1 - chance) / len(context.x)) ** 0.5
    measured = f"accuracy {found[0]['value']:.3f}, mean over classes {value:.3f}"
    return value > bar, value, measured, f"above chance, {bar:.3f}"


def in_range(context: Context) -> Verdict:
    """Fail where the data fill only a small part of the declared bounds."""
    low, high = context.model.bounds
    if high - low > 1e30:
        return None, None, "no bounds", "data that fill the bounds"
    bottom, top = float(context.x.min()), float(context.x.max())
    used = (top - bottom) / (high - low)
    return used >= 0.5, used, f"data in [{bottom:.3g}, {top:.3g}]", f"most of [{low:g}, {high:g}]"


def deterministic(context: Context) -> Verdict:
    """Fail where two forwards of the same inputs differ."""
    held, x = context.model, context.x[:64]
    with held.session(context.seed), torch.no_grad():
        first, second = held.scores(x), held.scores(x)
    context.spend(2 * len(x))
    gap = float((first - second).abs().max())
    scale = float(first.abs().max().clamp_min(1e-12))
    return gap <= 1e-5 * scale, gap, f"largest difference {gap:.3g}", "no difference"


def _zero_gradients(context: Context, objective: Any) -> float:
    x, y = context.x[:256], context.y[:256]
    oracle = Oracle(context.model, len(x), Access.GRADIENTS)
    index = torch.arange(len(x), device=x.device)
    rows = Rows(index, index, x, y)
    with oracle.session(context.seed):
        _, grad = Field(oracle, objective, len(x)).gradient(x, rows)
    context.spend(len(x), len(x))
    return float((grad.flatten(1).abs().amax(1) == 0).double().mean())


def gradients(context: Context) -> Verdict:
    """Fail where the margin's gradient is zero on more than 2 % of inputs, or there is none."""
    if context.model.access < Access.GRADIENTS:
        given = context.model.access.name.lower()
        return False, 1.0, f"none: the model gives {given} alone", "at most 2 % and 10 % zero"
    margin = _zero_gradients(context, Margin())
    loss = _zero_gradients(context, CrossEntropy())
    return (
        margin <= 0.02 and loss <= 0.1,
        max(margin, loss),
        f"zero on {margin:.1%} (margin), {loss:.1%} (cross-entropy)",
        "at most 2 % and 10 %",
    )


def _value(context: Context, name: str) -> float | None:
    found = context.result(name)
    return None if found is None else found[0]["value"]


def iterative(context: Context) -> Verdict:
    """Fail where PGD leaves more accuracy than one step."""
    one, many = _value(context, "fgsm-linf"), _value(context, "pgd-linf")
    if one is None or many is None:
        return None, None, "FGSM or PGD was not measured", "PGD <= FGSM"
    return many <= one + 0.005, many - one, f"PGD {many:.3f}, FGSM {one:.3f}", "PGD <= FGSM"


def beats_random(context: Context) -> Verdict:
    """Fail where random noise is as strong as PGD although PGD is far from perfect."""
    noise, many = _value(context, "random-linf"), _value(context, "pgd-linf")
    if noise is None or many is None:
        return None, None, "random noise or PGD was not measured", "PGD <= random noise"
    return many <= noise, noise - many, f"PGD {many:.3f}, noise {noise:.3f}", "PGD <= noise"


def _pgd(context: Context, eps: float, steps: int, n: int) -> float:
    attack = attacks.pgd(context.ball("linf", eps), steps, stop="success")
    result = attack(context.model, context.x[:n], context.y[:n], seed=context.seed)
    context.spend(int(result.forwards.sum()), int(result.backwards.sum()))
    rate = result.robust_accuracy
    assert rate is not None
    return rate


def larger_eps(context: Context) -> Verdict:
    """Fail where twice the eps leaves more accuracy."""
    eps = context.plan.radius("linf", context.x[0].numel())
    small, large = (_pgd(context, e, 20, 200) for e in (eps / 2, eps))
    return large <= small + 0.01, large - small, f"{small:.3f}, then {large:.3f}", "falling"


def huge_eps(context: Context) -> Verdict:
    """Fail where even an attack without limits leaves accuracy: gradients are hidden."""
    low, high = context.model.bounds
    if high - low > 1e30:
        return None, None, "no bounds", "zero"
    left = _pgd(context, high - low, 40, 200)
    return left <= 0.01, left, f"{left:.3f} at eps {high - low:g}", "at most 0.010"


def more_steps(context: Context) -> Verdict:
    """Fail where 100 steps break clearly more than 40: the attack has not converged."""
    eps = context.plan.radius("linf", context.x[0].numel())
    few, many = (_pgd(context, eps, steps, 200) for steps in (40, 100))
    return (
        few - many <= 0.02,
        few - many,
        f"40 steps {few:.3f}, 100 steps {many:.3f}",
        "within 0.02",
    )


def verified(context: Context) -> Verdict:
    """Fail where stored adversarials do not fool a fresh forward at another batch size."""
    found = context.result("pgd-linf")
    if found is None:
        return None, None, "PGD was not measured", "every success holds"
    held, x = context.model, found[1]["x"]
    with held.session(context.seed), torch.no_grad():
        labels = torch.cat([held.scores(part).argmax(1) for part in x.split(37)])
    context.spend(len(x))
    lost = int((found[1]["success"] & (labels == context.y.cpu())).sum())
    total = int(found[1]["success"].sum())
    return lost <= total // 200, float(lost), f"{lost} of {total} did not hold", "none"


def worst_case(context: Context) -> Verdict:
    """Fail where the union of all attacks is clearly stronger than each alone."""
    names = [t["name"] for t in context.plan.attacks if t["norm"] == "linf"]
    results = [r for r in (context.result(n) for n in names) if r is not None]
    if len(results) < 2:
        return None, None, "fewer than two attacks", "one attack is nearly the worst case"
    broken = torch.stack([r[1]["success"] for r in results])
    union = float((~broken.any(0)).double().mean())
    best = min(float(r[0]["value"]) for r in results)
    return best - union <= 0.02, best - union, f"best {best:.3f}, union {union:.3f}", "within 0.02"


_BLIND = (
    'Use objective="margin" or "dlr" (no scale of the logits changes them), more steps and '
    "restarts. Where a layer rounds or quantises, attack foible.models.bpda(net, at=...), which "
    "passes gradients through it; where the model is random, foible.attacks.eot(attack). Then "
    "attack without gradients: foible.attacks.square."
)
_RANDOM = (
    "The model is random at test time: one forward judges luck. Attack the mean over draws with "
    "foible.attacks.eot(attack, samples=20) or autoattack(threat, 'rand')."
)

CHECKS: tuple[Check, ...] = (
    Check("check-eval-mode", "The model is in evaluation mode", eval_mode,
          "Call net.eval() before you ship it: dropout and batch norm differ in training.",
          ()),
    Check("check-logits", "Scores are logits, not probabilities", logits,
          'Wrap the model with outputs="probabilities" (--outputs probabilities): a second softmax '
          "flattens the loss and hides gradients."),
    Check("check-accuracy", "Accuracy is above chance", above_chance,
          "Check preprocessing first: give mean and std (--mean, --std) as in training; then the "
          "order of classes and channels.", after=("clean",)),
    Check("check-range", "The data fill the model's bounds", in_range,
          "Declare the bounds of your data (--bounds), e.g. 0 255 for raw pixels: eps and the box "
          "are in these units."),
    Check("check-determinism", "The same input gives the same scores", deterministic,
          _RANDOM, ("*",)),
    Check("check-gradients", "Gradients are there", gradients, _BLIND, ("*",)),
    Check("check-iterative", "Many steps are at least as strong as one", iterative, _BLIND,
          ("fgsm-linf", "pgd-linf"), ("fgsm-linf", "pgd-linf")),
    Check("check-random", "PGD beats random noise", beats_random, _BLIND,
          ("pgd-linf",), ("random-linf", "pgd-linf")),
    Check("check-larger-eps", "A larger eps is at least as strong", larger_eps, _BLIND,
          ("pgd-linf", "curve-linf"), cost=2),
    Check("check-huge-eps", "An unlimited attack leaves nothing", huge_eps, _BLIND, ("*",), cost=1),
    Check("check-more-steps", "More steps change little", more_steps,
          "Raise steps (100 or more) and restarts: the attack had not converged.",
          ("pgd-linf", "pgd-margin-linf"), cost=4),
    Check("check-verified", "Successes hold in a second forward", verified,
          "The model depends on its batch or on rounding: use evaluation mode, or float64.",
          ("pgd-linf",), ("pgd-linf",)),
    Check("check-planted", "A planted adversarial is found", planted, _BLIND, ("*",), cost=0.5),
    Check("check-black-box", "A black box breaks nothing that PGD left", black_box, _BLIND,
          ("pgd-linf", "pgd-margin-linf", "strongest-linf"), ("pgd-linf",), cost=2),
    Check("check-masking", "No sign of masked gradients", masking, _BLIND, ("*",),
          ("fgsm-linf", "pgd-linf", *SIGNS)),
    Check("check-worst-case", "One attack is nearly the worst case over all", worst_case,
          "No single attack is strong enough here: quote the worst case over attacks, and add "
          "restarts and objectives (preset full).", ("pgd-linf", "pgd-margin-linf"), EVERY_ATTACK),
)  # fmt: skip
