"""Cells of the page of explanations: methods side by side, scores, randomisation, drift."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible import attacks, explain
from foible.audit.cells import (
    Cell,
    Context,
    Measured,
    as_seen,
    correct,
    examples,
    noise_points,
    residual,
    titled,
)
from foible.core.errors import FoibleError, InputError, ModelError
from foible.explain.evaluate import agreement
from foible.models import TorchModel
from foible.parts.statistics import mean_interval

GALLERY = (
    "saliency", "smoothgrad", "integrated_gradients", "deep_lift", "guided_backprop",
    "grad_cam", "occlusion", "lime", "kernel_shap", "lemna", "meaningful_perturbation",
    "random_map",
)  # fmt: skip


@contextmanager
def counting(context: Context) -> Iterator[TorchModel]:
    """Add to the cell's cost every sample through the net: explanations return maps, not costs."""

    def count(_: Any, given: tuple[Any, ...]) -> None:
        x = given[0]
        context.spend(len(x))
        if torch.is_grad_enabled() and x.requires_grad:
            # Of a second derivative that does not reach x the hook gets None.
            x.register_hook(lambda grad: context.spend(0, 0 if grad is None else len(grad)))

    handle = context.model.net.register_forward_pre_hook(count)
    try:
        yield context.model
    finally:
        handle.remove()


def measured(
    context: Context, found: list[float | None] | None, n: int, detail: dict[str, Any],
    tensors: dict[str, Tensor] | None = None,
) -> Measured:  # fmt: skip
    """Return what a cell measured, [value, low, high] or None, with what it cost."""
    value, low, high = found or (None, None, None)
    interval = None if low is None else (low, high)
    forwards, backwards = context.spent
    return Measured(value, n, interval, forwards, backwards, "ok", detail, tensors or {})


@dataclass(frozen=True)
class GalleryWork:
    """Every method's map of the same inputs, before and after the attack, for the true class."""

    methods: tuple[str, ...] = GALLERY
    rows: int = 3

    def __call__(self, context: Context) -> Measured:
        """A method that does not fit the model is named with the reason, and costs no other."""
        picked = examples(context, self.rows)
        if picked is None:
            return Measured(None, 0, status="not measured")
        chosen, x_adv, attack = picked
        x, y = context.x[chosen], context.y[chosen]
        shown, skipped, clean, adversarial = [], [], [], []
        for name in self.methods:
            try:
                explainer = getattr(explain, name)()
                with counting(context) as model:
                    maps = [explainer(model, at, y, seed=context.seed) for at in (x, x_adv)]
            except (FoibleError, ImportError) as error:
                skipped.append({"name": titled(name), "reason": str(error)})
                continue
            missed = residual(explainer, context, x, y, maps[0])
            shown.append({"name": name, "title": titled(name), "residual": missed})
            clean.append(maps[0])
            adversarial.append(maps[1])
        rows = as_seen(context, chosen, x_adv)
        detail = {"methods": shown, "skipped": skipped, "rows": rows, "attack": attack["title"]}
        tensors = {
            "clean": x, "adversarial": x_adv, "clean_maps": torch.stack(clean, 1),
            "adversarial_maps": torch.stack(adversarial, 1),
        }  # fmt: skip
        return measured(context, None, len(chosen), detail, tensors)


@dataclass(frozen=True)
class ScoreWork:
    """Deletion and insertion of one method's maps, beside the same maps shuffled."""

    method: str
    samples: int = 64

    def __call__(self, context: Context) -> Measured:
        """Score the maps of the predicted class on the first samples that are right."""
        chosen = correct(context, self.samples)
        x, y = context.x[chosen], context.y[chosen]
        detail: dict[str, Any] = {"method": self.method, "title": titled(self.method)}
        if len(x) == 0:
            return Measured(None, 0, status="not measured", detail=detail)
        explainer = getattr(explain, self.method)()
        with counting(context) as model:
            maps = explainer(model, x, y, seed=context.seed)
            measures = (explain.deletion(), explain.insertion())
            scores = [measure(model, x, maps, y, seed=context.seed) for measure in measures]
        for score in scores:
            assert score.curve is not None and score.control_curve is not None
            points: list[Any] = [mean_interval(c) or [None] * 3 for c in score.curve.T]
            detail[score.measure] = {
                "definition": score.definition, "better": score.better, "mean": score.mean,
                "chance": score.chance, "gain": score.gain, "shares": list(score.shares),
                "curve": [p[0] for p in points], "low": [p[1] for p in points],
                "high": [p[2] for p in points],
                "control": score.control_curve.mean(0).tolist(),
            }  # fmt: skip
        detail["residual"] = residual(explainer, context, x, y, maps)
        return measured(context, detail["deletion"]["mean"], len(x), detail)


@dataclass(frozen=True)
class SanityWork:
    """Maps of one method while the net loses its layers, from the last to the first."""

    method: str = "smoothgrad"
    samples: int = 16

    def __call__(self, context: Context) -> Measured:
        """Run the randomisation test on the first samples."""
        x, y = context.x[: self.samples], context.y[: self.samples]
        k = min(100, max(1, x[0].numel() // 5))
        explainer = getattr(explain, self.method)()
        with counting(context) as model:  # the copies that lose their layers count as well
            found = explain.randomisation(explainer, model, x, y, k=k, seed=context.seed)
        rank: list[Any] = [mean_interval(layer) for layer in found.rank]
        detail = {
            "method": self.method, "title": titled(self.method), "layers": list(found.layers),
            "rank": rank, "topk": [mean_interval(layer) for layer in found.topk], "k": k,
        }  # fmt: skip
        tensors = {"x": x[:1], "maps": found.maps[:, 0].contiguous()}
        return measured(context, rank[-1], len(x), detail, tensors)


@dataclass(frozen=True)
class DriftWork:
    """How much of a map stays as eps grows: under noise, an attack on the label, one on the map."""

    method: str = "saliency"
    samples: int = 32
    steps: int = 20
    map_steps: int = 12
    shares: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0)

    def __call__(self, context: Context) -> Measured:
        """Compare the true class's maps at shares of the planned Linf eps, where it is predicted.

        The attack on the map keeps the label, so samples that are wrong at first have none to keep.
        """
        explainer = getattr(explain, self.method)()
        chosen = correct(context, self.samples)
        x, y = context.x[chosen], context.y[chosen]
        k = min(100, max(1, context.x[0].numel() // 5))
        top = context.ball("linf").eps
        assert isinstance(top, float)
        detail: dict[str, Any] = {
            "method": self.method, "title": titled(self.method), "k": k,
            "eps": [share * top for share in self.shares], "steps": self.steps,
            "map_steps": self.map_steps,
        }  # fmt: skip
        if len(x) == 0:
            return Measured(None, 0, status="not measured", detail=detail)
        moved: dict[str, Callable[[float], Tensor]] = {
            "random noise": lambda eps: noise_points(context, x, eps),
            "attack on the label": lambda eps: self._label(context, x, y, eps),
            "attack on the map": lambda eps: self._map(context, (x, y, k), explainer, eps),
        }
        lines: dict[str, list[Any]] = {}
        with counting(context) as model:
            clean = explainer(model, x, y, seed=context.seed)
            for name, move in moved.items():
                points = []
                try:
                    for share in self.shares:
                        there = explainer(model, move(share * top), y, seed=context.seed)
                        points.append(mean_interval(agreement(clean, there, k)["topk"]))
                    if name == "attack on the map" and torch.equal(clean, there):
                        # A line at 100 % would say that the maps are stable.
                        raise ModelError("no map moved: it has no slope that a search can follow")
                except (FoibleError, RuntimeError) as error:
                    # Some layers have no second derivative; the other lines are told all the same.
                    if name != "attack on the map":
                        raise
                    detail["left_out"] = f"{name}: {error}"
                    continue
                lines[name] = points
        detail["lines"] = lines
        return measured(context, list(lines.values())[-1][-1], len(x), detail)

    def _label(self, context: Context, x: Tensor, y: Tensor, eps: float) -> Tensor:
        made = attacks.pgd(context.ball("linf", eps), self.steps)
        return made(context.model, x, y, seed=context.seed).x

    def _map(
        self, context: Context, given: tuple[Tensor, Tensor, int], explainer: Any, eps: float
    ) -> Tensor:
        x, y, k = given
        ball = context.ball("linf", eps)
        try:
            made = attacks.fragile(ball, explainer, "top", k, self.map_steps)
            return made(context.model, x, y, seed=context.seed).x
        except InputError:  # no ReLU to soften: the net itself is smooth
            made = attacks.fragile(ball, explainer, "top", k, self.map_steps, beta=None)
            return made(context.model, x, y, seed=context.seed).x


@dataclass(frozen=True)
class CounterWork:
    """The nearest input of another class, and the part of an input that is enough for its own."""

    rows: int = 4
    steps: int = 60
    searches: int = 5

    def __call__(self, context: Context) -> Measured:
        """Search both for the first samples that are right, one a class."""
        with counting(context) as model, model.session(context.seed), torch.no_grad():
            label = model.scores(context.x[:64]).argmax(1)
        first: dict[int, int] = {}
        for i in (label == context.y[:64]).nonzero().squeeze(1).tolist():
            first.setdefault(int(label[i]), i)
        chosen = list(first.values())[: self.rows]
        if not chosen:
            return Measured(None, 0, status="not measured")
        x, y = context.x[chosen], context.y[chosen]
        away = attacks.counterfactual(None, self.steps, self.searches)
        enough = attacks.contrastive("positive", steps=self.steps, searches=self.searches)
        with counting(context) as model:
            other = away(model, x, y, seed=context.seed)
            part = enough(model, x, y, seed=context.seed)
        size = (x - context.model.bounds[0]).flatten(1).abs() > 1e-6
        kept = (part.x - context.model.bounds[0]).flatten(1).abs() > 1e-6
        rows = [
            {
                "id": i, "true": int(y[r]), "label": int(other.label[r]),
                "found": bool(other.success[r]), "distance": float(other.distance[r]),
                "enough": bool(part.success[r]),
                "kept": float(kept[r].sum() / size[r].sum().clamp_min(1)),
            }
            for r, i in enumerate(chosen)
        ]  # fmt: skip
        detail = {"rows": rows, "found": int(other.success.sum())}
        tensors = {"x": x, "other": other.x, "part": part.x}
        return measured(context, None, len(chosen), detail, tensors)


def explanation_cells(methods: tuple[str, ...], after: tuple[str, ...]) -> list[Cell]:
    """Return the cells of the page; methods: whose maps are scored."""
    if not methods:
        return []
    drift = DriftWork()
    out = [Cell("explanation", "explain-gallery", {"methods": GALLERY}, GalleryWork(), after, 8.0)]
    for name in dict.fromkeys((*methods, "random_map")):
        out.append(Cell("explanation", f"explain-score-{name}", {}, ScoreWork(name), (), 1.5))
    out.append(Cell("explanation", "explain-counter", {}, CounterWork(), (), 2.0))
    out.append(Cell("explanation", "explain-sanity", {}, SanityWork(), (), 1.0))
    out.append(Cell("explanation", f"explain-drift-{drift.method}", {}, drift, (), 3.0))
    return out
