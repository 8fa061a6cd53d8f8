"""The attack: one class, of which every recipe is a setting."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, KindError, ModelError
from foible.core.explainer import Explainer
from foible.core.oracle import Oracle
from foible.core.problem import Closest, Fooled, Goal, Objective, Problem, View
from foible.core.progress import tick
from foible.core.rows import Rows, take
from foible.core.search import Search
from foible.core.solver import independent_verdict, solve
from foible.core.threat import Threat
from foible.explain.base import check_bounds, check_inputs
from foible.models import as_model
from foible.parts.objectives import CrossEntropy

STOPS = ("never", "success")


@dataclass(frozen=True)
class Result:
    """What an attack found; every tensor has the batch as first dimension.

    x: (B, *shape) the best input found, the clean one where the goal held from the start.
    success: (B,) bool, re-verified by an independent forward. distance: (B,) float64, in the
    threat's unit. forwards, backwards: (B,) int64, verification included. status: (B,) words:
    "wrong" (the goal held before the attack: success True, distance 0), "fooled", "survived".
    label: (B,) the class of x. clean_label: (B,) the class of the clean input. stop: as given.

    z: (B, ...) the parameters behind x, where the threat is a renderer's (`Spatial`).

    Of a minimum-norm attack that found nothing, x is the clean input and distance inf.
    """

    x: Tensor
    success: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    status: list[str]
    label: Tensor
    clean_label: Tensor
    stop: str
    z: Tensor | None = field(default=None, kw_only=True)

    @property
    def attacked(self) -> Tensor:
        """Return (B,) bool: the goal did not hold from the start, so rates count these."""
        return torch.tensor([s != "wrong" for s in self.status], dtype=torch.bool)

    @property
    def success_rate(self) -> float | None:
        """Return the share of attacked samples that fell; None where none was attacked."""
        chosen = self.attacked
        return float(self.success[chosen].float().mean()) if bool(chosen.any()) else None

    @property
    def robust_accuracy(self) -> float | None:
        """Return the share of all samples whose goal was not reached; None for no samples."""
        return float((~self.success).float().mean()) if len(self.success) else None


@dataclass(frozen=True)
class Attack:
    """A threat, a search and an objective; call it with (model, x, y).

    name: the recipe's. direction: an explainer in place of the objective's gradient.
    stop: "never" runs all steps and keeps the strongest point; "success" drops a sample once
    it is fooled. restarts: fresh random starts. prepare: fills rows before the search.
    reach: "least_likely" attacks towards the class of the smallest clean score. cap: the most
    forwards a sample may cost, the clean and the verifying one included. source: a model that is
    searched in place of the attacked one, which then only judges what was found (transfer).
    """

    name: str
    threat: Threat
    search: Search
    objective: Objective = field(default_factory=CrossEntropy)
    direction: Explainer | None = None
    stop: str = "never"
    restarts: int = 1
    goal: Goal = field(default_factory=Fooled)
    prefer: Callable[[View], Tensor] | None = None
    prepare: Callable[[Oracle, Rows, int], Rows] | None = None
    reach: str | None = None
    cap: int | None = None
    source: Any = None

    def __post_init__(self) -> None:
        if self.cap is not None and self.cap < 3:
            raise InputError(
                f"queries={self.cap}: a sample needs three at least, for its clean label, one "
                "point and the verification"
            )
        if self.stop not in STOPS:
            raise InputError(f"stop is {self.stop!r}: choose {' or '.join(map(repr, STOPS))}")
        if self.restarts < 1 or self.search.steps < 1:
            raise InputError(
                f"restarts={self.restarts}, steps={self.search.steps}: both must be at least 1"
            )
        if self.direction is not None and not self.direction.signed:
            raise InputError(
                f"{type(self.direction).__name__} gives an unsigned map, which names features but "
                "no direction: choose a signed explainer, e.g. foible.explain.saliency()"
            )

    @property
    def access(self) -> Access:
        """What the attack asks of the model; labels where another one is searched."""
        return self.searching if self.source is None else Access.LABELS

    @property
    def searching(self) -> Access:
        """What the attack asks of the model that it searches."""
        asked = [self.search.access]
        if self.direction is not None:
            asked = [self.direction.access, Access.SCORES]
        # An objective may look deeper than the search, e.g. at a map of a layer.
        asked += [getattr(part, "access", Access.LABELS) for part in (self.prepare, self.objective)]
        return max(asked)

    def within(self, threat: Threat) -> Attack:
        """Return the same attack within another threat."""
        return replace(self, threat=threat)

    def __call__(
        self,
        model: Any,
        x: Tensor,
        y: Tensor,
        *,
        target: Tensor | None = None,
        seed: int = 0,
        ids: Tensor | None = None,
    ) -> Result:
        """Attack every sample.

        model: an `nn.Module` or a wrapped model; it is left exactly as it was. x: (B, *shape)
        float inside the model's bounds. y: (B,) int64 true labels. target: (B,) labels to reach
        instead of merely leaving y. seed: fixes all randomness, together with each sample's
        id (its position, unless `ids` (B,) says otherwise).

        Raises InputError or KindError before any attack step for inputs that cannot be used,
        ModelError for NaN scores or gradients.
        """
        held = as_model(model)
        check_batch(x, y, target, held.bounds)
        x = x.detach()
        oracle = Oracle(held, len(x), self.access)
        if self.source is None:
            self._affordable(oracle)
        threat = self.threat.inside(held.bounds)
        rows = self.rows(threat, x, y, target, ids)
        with oracle.session(seed):
            if self.source is None:
                return self._run(oracle, threat, rows, seed)
            searched = Oracle(as_model(self.source), len(x), self.searching)
            if tuple(searched.bounds) != tuple(held.bounds):
                raise InputError(
                    f"the source's bounds are {tuple(searched.bounds)} and the attacked model's "
                    f"{tuple(held.bounds)}: hold both with the same ones"
                )
            with searched.session(seed):
                return self._run(oracle, threat, rows, seed, searched)

    def _affordable(self, oracle: Oracle) -> None:
        """Refuse a cap that not even the clean label, one point and the verification fit in."""
        looks = oracle.meter.looks
        if self.cap is not None and self.cap < 3 * looks * getattr(self.objective, "draws", 1):
            raise InputError(
                f"queries={self.cap}: one look at this model costs {looks} forwards of its net, "
                "and a sample needs three looks at least: raise queries"
            )

    def rows(
        self, threat: Threat, x: Tensor, y: Tensor, target: Tensor | None, ids: Tensor | None
    ) -> Rows:
        """Return the samples as rows; threat: bound to the model's box."""
        index = torch.arange(len(x), device=x.device)
        return Rows(
            index,
            index if ids is None else ids.to(index),
            x,
            y.to(index),
            None if target is None else target.to(index),
            threat.radii(len(x), x),
        )

    def problem(self, oracle: Oracle, threat: Threat) -> Problem:
        """Return the problem that this attack poses."""
        return Problem(
            oracle, threat, self.objective, self.goal, self.stop, self.prefer,
            direction=self.direction, cap=self.cap, draws=getattr(self.objective, "draws", 1),
        )  # fmt: skip

    def _run(
        self,
        oracle: Oracle,
        threat: Threat,
        rows: Rows,
        seed: int,
        searched: Oracle | None = None,
    ) -> Result:
        # A goal that is judged over draws takes its own clean look, and successes may not hold.
        look = getattr(self.goal, "clean_look", None)
        start, clean = (look or clean_look)(oracle, rows)
        if threat.parametric:
            rows.extra["z"] = threat.clean(rows)
        if searched is not None:
            clean = clean_look(searched, rows)[1]
        rows = replace(rows, scores=clean)
        if self.reach == "least_likely" and rows.target is None:
            assert clean is not None
            rows = replace(rows, target=clean.argmin(1))
        view = View(oracle, rows, rows.x)
        view._labels = start
        fooled = self.goal(view)
        left = (~fooled).nonzero().squeeze(1)
        tick(int(fooled.sum()))
        chosen = rows.take(left)
        problem = self.problem(searched or oracle, threat)
        best_x, success, label = rows.x.clone(), fooled.clone(), start.clone()
        if len(left):
            if self.prepare is not None:
                chosen = self.prepare(problem.oracle, chosen, seed)
            found, held, _ = self.search_all(problem, chosen, seed)
            verdict, labels = independent_verdict(problem, chosen, found, oracle)
            if searched is None:
                if look is None:
                    _agree(held, verdict, len(left))
                verdict = verdict & held
            if threat.parametric:
                rows.extra["z"][left] = chosen.extra["z"]
            best_x[left], success[left], label[left] = found, verdict, labels
        distance = threat.distance(rows, best_x)
        if self.prefer is not None and isinstance(self.prefer, Closest):
            distance = distance.masked_fill(~success, float("inf"))
        status = [
            "wrong" if w else "fooled" if s else "survived"
            for w, s in zip(fooled.tolist(), success.tolist(), strict=True)
        ]
        spent = [oracle.meter] + ([searched.meter] if searched is not None else [])
        return Result(
            best_x, success, distance, sum_of(m.forwards for m in spent),
            sum_of(m.backwards for m in spent), status, label, start, self.stop,
            z=rows.extra["z"] if threat.parametric else None,
        )  # fmt: skip

    def search_all(self, problem: Problem, rows: Rows, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Run all restarts; return x (B, *shape), success (B,) and its rank (B,) of the best.

        A later restart runs on the rows that are not done, and replaces a point only by a better
        one. An objective with `for_restart(number, classes)` gives each restart its own aim.
        """
        aim = getattr(problem.objective, "for_restart", None)
        x, success, value = rows.x, torch.zeros_like(rows.index, dtype=torch.bool), None
        for restart in range(self.restarts):
            left = (~problem.done(success)).nonzero().squeeze(1)
            if len(left) == 0:
                break
            if aim is not None:
                problem = replace(problem, objective=aim(restart, problem.oracle.classes))
            again = solve(problem, take(rows, left), self.search, seed=seed, restart=restart)
            if value is None:
                x, success, value = again.x, again.success, again.value
                if again.z is not None:
                    rows.extra["z"] = again.z
                continue
            better = (again.success & ~success[left]) | (
                (again.success == success[left]) & (again.value > value[left])
            )
            to = left[better]
            x[to], success[to], value[to] = (
                again.x[better],
                again.success[better],
                again.value[better],
            )
            if again.z is not None:
                rows.extra["z"][to] = again.z[better]
        assert value is not None
        return x, success, value


def _agree(held: Tensor, verdict: Tensor, n: int) -> None:
    """Refuse results that an independent forward contradicts on more than rounding explains."""
    lost = int((held & ~verdict).sum())
    if lost > max(2, n // 50):
        raise ModelError(
            f"{lost} of {int(held.sum())} successes did not hold in a second forward: the model is "
            "random or depends on its batch. Average it over draws, or make it deterministic"
        )


def needs_eps(threat: Threat) -> Threat:
    """Return the threat; refuse a ball without a radius, which only minimum-norm attacks take."""
    if getattr(threat, "eps", 0) is None:
        raise InputError(
            f"{type(threat).__name__}() has no eps, and a budget attack needs one: "
            f"e.g. {type(threat).__name__}(0.1)"
        )
    return threat


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """Add tensors of one shape."""
    return torch.stack(list(parts)).sum(0)


def clean_look(oracle: Oracle, rows: Rows) -> tuple[Tensor, Tensor | None]:
    """Return the clean labels (B,) and, where the access allows it, the clean scores (B, K)."""
    if oracle.access >= Access.SCORES:
        scores = clean_scores(oracle, rows)
        return scores.argmax(1), scores
    labels = []
    for part in torch.arange(len(rows), device=rows.x.device).split(oracle.chunk(rows.x)):
        labels.append(oracle.labels(rows.x[part], rows.take(part)))
        check_labels(rows, oracle.classes)
    return torch.cat(labels), None


def clean_scores(oracle: Oracle, rows: Rows) -> Tensor:
    """Return the logits (B, K) of the clean inputs, one forward a row.

    Raises InputError after the first chunk where labels do not fit the model's classes.
    """
    scores = []
    with torch.no_grad():
        for part in torch.arange(len(rows), device=rows.x.device).split(oracle.chunk(rows.x)):
            scores.append(oracle.scores(rows.x[part], rows.take(part)))
            check_labels(rows, oracle.classes)
    return torch.cat(scores)


def check_batch(x: Any, y: Any, target: Any, bounds: tuple[float, float]) -> None:
    """Refuse inputs that no attack can use, before the model is called."""
    check_inputs(x)
    if len(x) == 0:
        raise InputError("x is empty: an attack on no samples measures nothing")
    for name, labels in (("y", y), ("target", target)):
        if labels is None and name == "target":
            continue
        if not isinstance(labels, Tensor):
            raise KindError(f"{name} is {type(labels).__name__}: pass an int64 tensor (B,)")
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise InputError(
                f"{name} has dtype {labels.dtype}: labels are class numbers, int64; one-hot rows "
                "become labels by .argmax(1)"
            )
        if labels.shape != (len(x),):
            raise InputError(
                f"{name} has shape {tuple(labels.shape)} for {len(x)} samples: give one class "
                "number a sample, (B,)"
            )
        if int(labels.min()) < 0:
            raise InputError(f"{name} holds {int(labels.min())}: classes are counted from 0")
    check_bounds(x, bounds)


def check_labels(rows: Rows, classes: int) -> None:
    """Refuse labels that the model does not have."""
    if classes < 2:
        raise InputError(
            f"the model gives {classes} score an input: with one class nothing can be fooled. For "
            'a binary net with a single logit use foible.wrap(net, outputs="logit")'
        )
    for name, labels in (("y", rows.y), ("target", rows.target)):
        if labels is not None and int(labels.max()) >= classes:
            raise InputError(
                f"{name} holds class {int(labels.max())} and the model has classes "
                f"0..{classes - 1}: check the label encoding"
            )
