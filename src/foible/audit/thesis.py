"""The thesis in one minute: an explanation names the direction in which a prediction breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible import attacks, explain
from foible.audit.cells import Context, Measured, accuracy, correct
from foible.core.access import Access
from foible.core.explainer import Explainer
from foible.core.oracle import Oracle
from foible.core.rows import Rows
from foible.parts.statistics import spearman
from foible.parts.threats import Linf


@dataclass(frozen=True)
class Crossing:
    """The linear prediction of the smallest breaking eps: distance (B,), the class (B,) that is
    met first, and the map (B, *shape), the gradient of z_j - z_y; backwards: the calls made.
    """

    distance: Tensor
    rival: Tensor
    direction: Tensor
    backwards: int


def predict(context: Context, x: Tensor, y: Tensor) -> Crossing:
    """Predict min over j of (z_y - z_j) / |w_j - w_y|_1 from the saliency maps w at x."""
    held = context.model
    oracle = Oracle(held, len(x), Access.GRADIENTS)
    index = torch.arange(len(x), device=x.device)
    rows = Rows(index, index, x, y)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with oracle.session(context.seed):
        width = max(1, held.chunk(x) // 8)
        for part in index.split(width):
            some = rows.take(part)
            scores = oracle.scores(some.x, some)
            rivals = min(scores.shape[1], 20)
            # Far behind in score, a class is never the nearest; twenty are enough.
            top = scores.detach().topk(rivals, 1).indices
            classes = torch.cat([some.y[:, None], top], 1)
            scores, maps = oracle.jacobian(some.x, some, classes)
            z = scores.gather(1, classes)
            away = maps[:, 1:] - maps[:, :1]
            reach = away.flatten(2).abs().sum(2)
            eps = (z[:, :1] - z[:, 1:]) / reach
            # A class without a direction towards it, the label's own too, is never met.
            never = (reach == 0) | (classes[:, 1:] == some.y[:, None])
            eps = eps.masked_fill(never, float("inf"))
            best = eps.argmin(1)
            pick = torch.arange(len(part), device=x.device)
            parts.append((eps[pick, best], classes[pick, best + 1], away[pick, best]))
    joined = [torch.cat(column) for column in zip(*parts, strict=True)]
    return Crossing(joined[0], joined[1], joined[2], int(oracle.meter.backwards.sum()))


def _telling_eps(context: Context, x: Tensor, y: Tensor) -> float:
    """Return one and a half times the median smallest eps that breaks a sample.

    A step of one size for all models would show nothing on a weak or on a strong one.
    """
    low, high = context.model.bounds
    wide = high - low if high - low < 1e30 else float(x.max() - x.min())
    grid = [wide * 1.25 ** (i - 31) for i in range(32)]
    attack = attacks.pgd(Linf(grid[-1]), 10, objective="margin", stop="success")
    found = attacks.curve(attack, grid)(context.model, x, y, seed=context.seed)
    context.spend(int(found.forwards.sum()), int(found.backwards.sum()))
    return float(f"{min(1.5 * float(found.smallest.median()), wide):.2g}")


def follow(context: Context, n: int = 100) -> Measured:
    """Push and delete along each map, at a size that breaks most samples."""
    chosen = correct(context, n)
    x, y = context.x[chosen], context.y[chosen]
    if len(chosen) == 0:
        return Measured(None, 0, status="not measured")
    eps = _telling_eps(context, x[:64], y[:64])
    ball = Linf(eps)
    named: list[tuple[str, attacks.Attack]] = [
        ("random signs", attacks.random_noise(ball)),
        ("LIME", attacks.fgsm(ball, direction=explain.lime())),
        ("integrated gradients", attacks.fgsm(ball, explain.integrated_gradients())),
        ("saliency", attacks.fgsm(ball)),
        ("SmoothGrad", attacks.fgsm(ball, explain.smoothgrad(25))),
        ("PGD", attacks.pgd(ball, 40, stop="success")),
    ]
    rows = []
    for name, attack in named:
        result = attack(context.model, x, y, seed=context.seed)
        rate, interval = accuracy(~result.success)
        low, high = interval if interval else (None, None)
        rows.append({"direction": name, "accuracy": rate, "low": low, "high": high})
        context.spend(int(result.forwards.sum()), int(result.backwards.sum()))
    detail: dict[str, Any] = {"verb": "push", "eps": eps, "rows": rows}
    detail["delete"] = _delete(context, x, y)
    forwards, backwards = context.spent
    return Measured(eps, len(x), None, forwards, backwards, "ok", detail)


def _delete(context: Context, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Measure accuracy after deleting the k largest features of each map."""
    most = min(200, x[0].numel())
    grid = sorted({round(most * i / 10) for i in range(11)})
    maps: list[tuple[str, Explainer]] = [
        ("random", explain.random_map()),
        ("saliency", explain.saliency()),
        ("integrated gradients", explain.integrated_gradients()),
    ]
    rows = []
    for name, explainer in maps:
        attack = attacks.ig_deletion(explainer, baseline=_baseline(context), most=most)
        result = attack(context.model, x, y, seed=context.seed)
        context.spend(int(result.forwards.sum()), int(result.backwards.sum()))
        size = torch.where(result.success, result.distance, float("inf"))
        rows.append(
            {"direction": name, "accuracy": [float((size > k).double().mean()) for k in grid]}
        )
    return {"k": grid, "rows": rows}


def _baseline(context: Context) -> float:
    low, high = context.model.bounds
    return 0.0 if low <= 0 <= high else low


def distance(context: Context, n: int = 150) -> Measured:
    """Compare the predicted smallest eps with the measured one, and with confidence alone."""
    chosen = correct(context, n)
    x, y = context.x[chosen], context.y[chosen]
    if len(chosen) < 3:
        return Measured(None, 0, status="not measured")
    crossing = predict(context, x, y)
    foreseen = torch.isfinite(crossing.distance)
    top = float(crossing.distance[foreseen].quantile(0.9)) * 4 if bool(foreseen.any()) else 0.0
    if top <= 0:  # all scores are tied, or no map points anywhere
        return Measured(None, 0, status="not measured")
    grid = [top * 1.12 ** (i - 62) for i in range(63)]
    attack = attacks.pgd(Linf(grid[-1]), 20, objective="margin", stop="success")
    found = attacks.curve(attack, grid)(context.model, x, y, seed=context.seed)
    measured = found.smallest
    with context.model.session(context.seed), torch.no_grad():
        top_two = context.model.scores(x).topk(2, 1).values
    lead = (top_two[:, 0] - top_two[:, 1]).double()
    finite = torch.isfinite(measured) & (measured > 0) & foreseen
    if int(finite.sum()) < 3:
        return Measured(None, 0, status="not measured")
    rank = [
        float(spearman(a[finite].double().cpu().numpy(), measured[finite].cpu().numpy()))
        for a in (crossing.distance, lead)
    ]
    tensors = {"predicted": crossing.distance[finite].double(), "measured": measured[finite]}
    return Measured(
        rank[0], int(finite.sum()), None, int(found.forwards.sum()) + 2 * len(x),
        int(found.backwards.sum()) + crossing.backwards, "ok",
        {"confidence": rank[1], "n": int(finite.sum())}, tensors,
    )  # fmt: skip


def frames(context: Context, n: int = 100, count: int = 9) -> Measured:
    """Walk one example along the sign of its map and mark where the crossing was predicted."""
    chosen = correct(context, n)
    if len(chosen) == 0:
        return Measured(None, 0, status="not measured")
    x, y = context.x[chosen], context.y[chosen]
    crossing = predict(context, x, y)
    low, high = context.model.bounds
    # The typical example: the one whose predicted distance is the median.
    pick = int((crossing.distance - crossing.distance.median()).abs().argmin())
    one, label, step = x[pick : pick + 1], int(y[pick]), crossing.direction[pick : pick + 1].sign()
    predicted = float(crossing.distance[pick])
    if not 0 < predicted < float("inf") or not bool(step.any()):
        why = "the map is zero: there is no direction to walk in"
        return Measured(None, 0, status="not measured", detail={"why": why})
    fine = torch.linspace(0, 3 * predicted, 241, dtype=x.dtype, device=x.device)
    walk = (one + fine.reshape(-1, *([1] * (x.dim() - 1))) * step).clamp(low, high)
    with context.model.session(context.seed), torch.no_grad():
        scores = torch.cat([context.model.scores(p) for p in walk.split(64)]).softmax(1)
    labels = scores.argmax(1)
    crossed = (labels != label).nonzero().squeeze(1)
    measured = float(fine[crossed[0]]) if len(crossed) else None
    last = min(240, int(240 * min(1.0, max(1.5, 1.4 * (measured or 0) / predicted) / 3)))
    shown = torch.linspace(0, last, count).round().long()
    detail = {
        "t": fine[shown].tolist(), "label": labels[shown].tolist(),
        "confidence": scores[shown].amax(1).tolist(),
        "true_confidence": scores[shown, label].tolist(), "true": label,
        "predicted_crossing": predicted, "measured_crossing": measured,
        "rival": int(crossing.rival[pick]),
    }  # fmt: skip
    return Measured(
        predicted, 1, None, 241 + 2 * len(x), crossing.backwards, "ok", detail,
        {"frames": walk[shown], "map": -crossing.direction[pick : pick + 1]},
    )  # fmt: skip


def bent(context: Context, n: int = 16, steps: int = 120) -> Measured:
    """Order the maps of n examples to be another's, and show the one that bent most."""
    from foible.core.errors import InputError

    chosen = correct(context, n)
    x, y = context.x[chosen], context.y[chosen]
    other = _of_other_class(y)
    if len(chosen) < 2 or other is None:
        return Measured(None, 0, status="not measured")
    explainer = explain.saliency()
    clean_map = explainer(context.model, x, y)
    order = clean_map[other]
    eps = context.plan.radius("linf", x[0].numel())
    try:
        attack = attacks.bend(Linf(eps), explainer, steps, beta=30)
        result = attack(context.model, x, y, order, seed=context.seed)
    except InputError as error:
        # A net without ReLU modules has no softplus twin.
        return Measured(None, 0, status="not measured", detail={"why": str(error)})
    gain = torch.where(result.kept, result.similarity - result.before, -1.0)
    pick = int(gain.argmax())
    if not bool(result.kept[pick]):
        return Measured(None, 0, status="not measured")
    at = slice(pick, pick + 1)
    bent_map = explainer(context.model, result.x[at], y[at])
    with context.model.session(context.seed), torch.no_grad():
        before, after = (context.model.scores(v[at]).softmax(1) for v in (x, result.x))
    label = int(y[pick])
    detail = {
        "label": label, "confidence_before": float(before[0, label]),
        "confidence_after": float(after[0, label]), "eps": eps, "of": len(chosen),
        "similarity_before": float(result.before[pick]),
        "similarity_after": float(result.similarity[pick]), "explainer": "saliency",
        "kept": float(result.kept.double().mean()),
        "median_before": float(result.before.median()),
        "median_after": float(result.similarity.median()),
    }  # fmt: skip
    tensors = {
        "clean": x[at], "adversarial": result.x[at], "clean_map": clean_map[at],
        "bent_map": bent_map, "target_map": order[at],
    }  # fmt: skip
    calls = steps * 3 * len(chosen)
    return Measured(
        float(result.similarity.median()), len(chosen), None, calls, calls, "ok", detail, tensors
    )


def _of_other_class(y: Tensor) -> Tensor | None:
    """Return for each row the position of the next one of another class."""
    picks = []
    for i in range(len(y)):
        rest = [j % len(y) for j in range(i + 1, i + len(y)) if int(y[j % len(y)]) != int(y[i])]
        if not rest:
            return None
        picks.append(rest[0])
    return torch.tensor(picks)
