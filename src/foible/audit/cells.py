"""Cells: one measurement each, independent of the others but for what `after` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from foible import attacks
from foible.audit.planning import Plan
from foible.core.errors import InputError
from foible.explain.base import Explanation
from foible.models import TorchModel
from foible.parts import threats
from foible.parts.statistics import mean_interval, wilson

BALLS: dict[str, Callable[[float], threats.Ball]] = {
    "linf": threats.Linf,
    "l2": threats.L2,
    "l1": threats.L1,
    "l0": threats.L0,
}
TITLES = {
    "random_noise": "Random noise of the same size",
    "fgsm": "FGSM, one step",
    "r_fgsm": "R+FGSM, random step and gradient step",
    "smoothgrad_attack": "One step along SmoothGrad",
    "mim": "MIM, momentum",
    "bim": "BIM, iterated FGSM",
    "least_likely": "Least-likely class, iterated",
    "pgd": "PGD",
    "strongest": "Strongest, the cascade of foible",
    "autoattack": "AutoAttack",
    "square": "Square, scores only",
    "hop_skip_jump": "HopSkipJump, labels only",
    "fab": "FAB",
    "apgd": "APGD",
    "apgd_targeted": "APGD, class by class",
    "fmn": "FMN, smallest change",
}


_NAMES = {
    "smoothgrad": "SmoothGrad", "vargrad": "VarGrad", "deep_lift": "DeepLIFT", "lime": "LIME",
    "guided_backprop": "Guided backpropagation",
    "grad_cam": "Grad-CAM", "cam": "CAM", "kernel_shap": "KernelSHAP", "lemna": "LEMNA",
    "gradient_x_input": "Gradient × input", "random_map": "Random map, the control",
    "masking_model": "Masking model", "meaningful_perturbation": "Meaningful perturbation",
}  # fmt: skip


def titled(name: str) -> str:
    """Return the field's own spelling of a method's name."""
    return _NAMES.get(name, name.replace("_", " ").capitalize())


@dataclass
class Measured:
    """What a cell measured; None is "not measured", never zero."""

    value: float | None
    n: int
    interval: Any = None
    forwards: int = 0
    backwards: int = 0
    status: str = "ok"
    detail: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Context:
    """What a cell may read: the model, the data, the plan, and finished cells of this model.

    spent: forwards and backwards of work that has no result of its own to count them.
    """

    model: TorchModel
    x: Tensor
    y: Tensor
    plan: Plan
    was_training: bool
    result: Callable[[str], tuple[dict[str, Any], dict[str, Tensor]] | None]

    spent: list[int] = field(default_factory=lambda: [0, 0])

    def spend(self, forwards: int, backwards: int = 0) -> None:
        """Add to the cell's cost."""
        self.spent[0] += forwards
        self.spent[1] += backwards

    @property
    def seed(self) -> int:
        """The plan's seed."""
        return self.plan.seed

    def ball(self, norm: str, eps: float | None = None) -> threats.Ball:
        """Return the threat of a norm at its planned or the given eps."""
        if norm not in BALLS:
            raise InputError(f"no norm is called {norm!r}: choose {', '.join(BALLS)}")
        size = self.plan.radius(norm, self.x[0].numel()) if eps is None else eps
        return BALLS[norm](size)


def correct(context: Context, n: int) -> Tensor:
    """Return the positions of the first n samples that the model gets right."""
    held, found, count = context.model, [], 0
    with held.session(context.seed), torch.no_grad():
        for part in torch.arange(len(context.x)).split(held.chunk(context.x)):
            part = part.to(context.x.device)
            found.append(part[held.scores(context.x[part]).argmax(1) == context.y[part]])
            count += len(found[-1])
            if count >= n:
                break
    return torch.cat(found)[:n]


@dataclass(frozen=True)
class Cell:
    """A kind, a name, the spec that with the model and data fixes its numbers, and its work.

    after: names of cells whose results it reads. cost: seconds on the bundled models, a guess
    that only the progress bar uses.
    """

    kind: str
    name: str
    part: Mapping[str, Any]
    work: Callable[[Context], Measured]
    after: tuple[str, ...] = ()
    cost: float = 1.0


def accuracy(hits: Tensor) -> tuple[float | None, tuple[float, float] | None]:
    """Return the rate of a (B,) bool and its interval."""
    n = len(hits)
    return (float(hits.double().mean()) if n else None), wilson(int(hits.sum()), n)


def clean(context: Context) -> Measured:
    """Measure accuracy and confidence on the inputs as they are."""
    held, x, y = context.model, context.x, context.y
    with held.session(context.seed), torch.no_grad():
        scores = torch.cat([held.scores(part) for part in x.split(held.chunk(x))])
    hits = scores.argmax(1) == y
    value, interval = accuracy(hits)
    per_class = [
        float(hits[y == c].double().mean()) if bool((y == c).any()) else None
        for c in range(scores.shape[1])
    ]
    detail = {"per_class": per_class, "confidence": float(scores.softmax(1).amax(1).mean())}
    return Measured(value, len(x), interval, len(x), 0, "ok", detail, {"scores": scores, "y": y})


@dataclass(frozen=True)
class AttackWork:
    """Run one attack of the plan on all samples."""

    table: Mapping[str, Any]

    def build(self, context: Context) -> attacks.Attack | attacks.Cascade:
        """Return the attack that the table describes."""
        options = {
            k: v for k, v in self.table.items() if k not in ("name", "recipe", "norm", "eps")
        }
        threat = context.ball(self.table["norm"], self.table.get("eps"))
        try:
            made: attacks.Attack | attacks.Cascade = getattr(attacks, self.table["recipe"])(
                threat, **options
            )
        except TypeError as error:
            raise InputError(
                f"the attack {self.table['name']!r} has an option that {self.table['recipe']} "
                f"does not know: {error}"
            ) from error
        return made

    def __call__(self, context: Context) -> Measured:
        """Attack, and count errors over all samples."""
        attack = self.build(context)
        result = attack(context.model, context.x, context.y, seed=context.seed)
        recipe = str(self.table["recipe"])
        said = {
            "norm": self.table["norm"],
            "title": self.table.get("title") or _title(recipe, self.table),
            "control": recipe == "random_noise",
        }
        return attacked(attack, result, context.y, said)


def attacked(
    attack: attacks.Attack | attacks.Cascade,
    result: attacks.Result | attacks.CascadeResult,
    y: Tensor,
    said: Mapping[str, Any],
) -> Measured:
    """Return what an attack's result measures; said: further details."""
    # A targeted attack may miss its target and still cost the label, and a sample that was
    # wrong before counts as an error under any attack.
    broken = result.success if attack.reach is None else result.label != y
    value, interval = accuracy(~broken)
    chosen = result.attacked
    fell = result.success[chosen]
    rate, rate_interval = accuracy(fell)
    distances = result.distance[result.success & chosen]
    eps = getattr(attack.threat, "eps", None)
    detail = {
        **said,
        "eps": eps,
        "stop": attack.stop,
        "steps": None if isinstance(attack, attacks.Cascade) else attack.search.steps,
        "success_rate": rate,
        "success_n": len(fell),
        "success_interval": rate_interval,
        "median_distance": float(distances.median()) if len(distances) else None,
        "statuses": {s: result.status.count(s) for s in ("wrong", "fooled", "survived")},
    }
    if isinstance(result, attacks.CascadeResult):
        detail["stages"] = [asdict(stage) for stage in result.stages]
        detail["advice"] = result.advice
    tensors = {
        "x": result.x, "success": broken, "distance": result.distance,
        "label": result.label, "calls": result.forwards + result.backwards,
    }  # fmt: skip
    return Measured(
        value, len(result.x), interval, int(result.forwards.sum()),
        int(result.backwards.sum()), "ok", detail, tensors,
    )  # fmt: skip


def _title(recipe: str, table: Mapping[str, Any]) -> str:
    title = TITLES.get(recipe, recipe)
    if "objective" in table:
        title += f" on the {str(table['objective']).replace('_', '-')}"
    if "steps" in table:
        title += f", {table['steps']} steps"
    if "queries" in table:
        title += f", {table['queries']} queries"
    return title


def residual(
    explainer: Explanation, context: Context, x: Tensor, y: Tensor, maps: Tensor
) -> dict[str, float] | None:
    """Return how far additive maps are from adding up, as a share; None where they need not."""
    if not explainer.additive:
        return None
    from foible.explain import completeness

    missed = completeness(explainer, context.model, x, y, maps)
    return {"median": float(missed.median()), "worst": float(missed.max())}


@dataclass(frozen=True)
class StabilityWork:
    """Compare an explainer's maps before and after an attack, beside noise of the same size."""

    explainer: str
    samples: int = 64

    def __call__(self, context: Context) -> Measured:
        """Explain the true label at x, at the attack's x and at a noisy x."""
        from foible import explain
        from foible.explain.evaluate import agreement

        found = context.result("pgd-linf")
        if found is None:
            return Measured(None, 0, status="not measured", detail={"explainer": self.explainer})
        explainer = getattr(explain, self.explainer)()
        right = (found[1]["success"].to(context.y.device) & (found[1]["distance"] > 0)).nonzero()
        chosen = right.squeeze(1)[: self.samples]
        x, y, x_adv = context.x[chosen], context.y[chosen], found[1]["x"][chosen]
        n, k = len(chosen), min(100, max(1, context.x[0].numel() // 5))
        detail: dict[str, Any] = {
            "explainer": self.explainer, "title": titled(self.explainer),
            "k": k, "eps": found[0]["detail"]["eps"],
        }  # fmt: skip
        if n == 0:
            return Measured(None, 0, status="not measured", detail=detail)
        # The maps of x serve both comparisons and the residual: they are made once.
        maps, bent, shaken = (
            explainer(context.model, at, y) for at in (x, x_adv, noise_points(context, x))
        )
        attacked, random = (agreement(maps, other, k) for other in (bent, shaken))
        for figure in ("topk", "rank"):
            detail[figure] = {
                "attack": mean_interval(attacked[figure]), "noise": mean_interval(random[figure]),
            }  # fmt: skip
        detail["residual"] = residual(explainer, context, x, y, maps)
        calls = 3 * n * explainer.looks
        mean = detail["topk"]["attack"]
        looks = 2 * n if explainer.additive else 0  # the residual's two ends
        return Measured(mean[0], n, mean[1:], calls + looks, calls, "ok", detail)


def noise_points(context: Context, x: Tensor, eps: float | None = None) -> Tensor:
    """Return x moved by random signs of the planned or given Linf size, inside the box."""
    from foible.core.randomness import Rng

    index = torch.arange(len(x), device=x.device)
    signs = Rng(context.seed).split(11).at(index).normal(tuple(x.shape[1:]), x.dtype).sign()
    low, high = context.model.bounds
    size = context.plan.radius("linf", x[0].numel()) if eps is None else eps
    return (x + size * signs).clamp(low, high)


def examples(context: Context, most: int) -> tuple[list[int], Tensor, dict[str, Any]] | None:
    """Pick samples that fell to PGD, one a class first: positions, x_adv, the attack's detail."""
    found = context.result("pgd-linf")
    if found is None:
        return None
    fooled = (found[1]["success"] & (found[1]["distance"] > 0)).nonzero().squeeze(1).tolist()
    first: dict[int, int] = {}
    for i in fooled:
        first.setdefault(int(context.y[i]), i)
    rest = [i for i in fooled if i not in first.values()]
    chosen = (list(first.values()) + rest)[:most]
    return (chosen, found[1]["x"][chosen], found[0]["detail"]) if chosen else None


def as_seen(context: Context, chosen: list[int], x_adv: Tensor) -> list[dict[str, Any]]:
    """Return what the model says of some samples, as they are and after an attack."""
    with context.model.session(context.seed), torch.no_grad():
        p_clean = context.model.scores(context.x[chosen]).softmax(1)
        p_adv = context.model.scores(x_adv).softmax(1)
    return [
        {
            "id": i, "true": int(context.y[i]),
            "label_clean": int(p_clean[r].argmax()),
            "confidence_clean": float(p_clean[r].max()),
            "label_adv": int(p_adv[r].argmax()), "confidence_adv": float(p_adv[r].max()),
        }
        for r, i in enumerate(chosen)
    ]  # fmt: skip


@dataclass(frozen=True)
class StripsWork:
    """Pick examples and their maps for the report."""

    rows: int = 8

    def __call__(self, context: Context) -> Measured:
        """Take the first fooled sample of each class, then any, and explain both versions."""
        from foible import explain

        picked = examples(context, self.rows)
        if picked is None:
            return Measured(None, 0, status="not measured")
        chosen, x_adv, attack = picked
        x, y = context.x[chosen], context.y[chosen]
        explainer = explain.smoothgrad()
        rows = as_seen(context, chosen, x_adv)
        maps = [explainer(context.model, at, y, seed=context.seed) for at in (x, x_adv)]
        detail = {"attack": attack["title"], "eps": attack["eps"], "rows": rows,
                  "explainer": "SmoothGrad"}  # fmt: skip
        tensors = {
            "clean": x, "adversarial": x_adv, "clean_map": maps[0], "adversarial_map": maps[1],
        }  # fmt: skip
        calls = 2 * len(chosen) * explainer.samples
        return Measured(None, len(chosen), None, calls, calls, "ok", detail, tensors)
