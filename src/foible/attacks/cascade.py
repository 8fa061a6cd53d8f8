"""A cascade: attacks one after another, each on the samples that are still standing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foible.attacks.base import Attack, Result, check_batch, clean_scores
from foible.core.access import Access
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.progress import tick
from foible.core.rows import Rows
from foible.core.solver import independent_verdict
from foible.core.threat import Threat
from foible.models import as_model
from foible.parts.objectives import Nearest

FEW = 0.04


@dataclass(frozen=True)
class StageReport:
    """What one stage did: samples tried and broken, forwards and backwards over all of them."""

    name: str
    tried: int
    broke: int
    forwards: int
    backwards: int

    @property
    def calls(self) -> int:
        """Forwards and backwards together."""
        return self.forwards + self.backwards


@dataclass(frozen=True)
class CascadeResult(Result):
    """A `Result` that knows which stage broke each sample.

    broken_by: B names, "" for samples that were wrong before or survived. stages: what each stage
    tried, broke and cost. advice: what it would take to break more, in a sentence.
    """

    broken_by: tuple[str, ...] = ()
    stages: tuple[StageReport, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class Stage:
    """An attack of a cascade. name: in the report; share: of the survivors that it tries, those
    that are closest to falling first (1.0: all of them).
    """

    name: str
    attack: Attack
    share: float = 1.0

    @property
    def cost(self) -> int:
        """Forwards and backwards that a sample costs at most: ranking and verdict included."""
        calls = 2 if self.attack.access >= Access.GRADIENTS else 1
        if self.attack.cap is not None:
            return self.attack.cap
        ranked = 2 + getattr(self.attack.prepare, "most", 10) if self.attack.prepare else 0
        return (calls * self.attack.search.steps + 1) * self.attack.restarts + ranked + 1


@dataclass(frozen=True)
class Cascade:
    """Stages within one threat; call it with (model, x, y), as an attack.

    Each stage stops at a sample's first success, and the next one tries survivors only. All share
    one clean forward, and every success is verified by an independent forward.
    plan: makes the stages for a model of K classes. budget: forwards and backwards a sample, over
    all that were right at first; None for no limit. A stage that would exceed what is left tries
    only the closest survivors that it can afford.
    """

    name: str
    threat: Threat
    plan: Callable[[Threat, int], tuple[Stage, ...]]
    budget: int | None = None
    stop: str = "success"
    reach: str | None = None

    @property
    def access(self) -> Access:
        """What the cascade asks of the model: the most that any stage asks."""
        return max(stage.attack.access for stage in self.plan(self.threat, 10))

    def within(self, threat: Threat) -> Cascade:
        """Return the same cascade within another threat."""
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
    ) -> CascadeResult:
        """Attack every sample; arguments and errors as for `Attack`."""
        held = as_model(model)
        check_batch(x, y, target, held.bounds)
        x = x.detach()
        oracle = Oracle(held, len(x), self.access)
        threat = self.threat.inside(held.bounds)
        index = torch.arange(len(x), device=x.device)
        rows = Rows(
            index, index if ids is None else ids.to(index), x, y.to(index),
            None if target is None else target.to(index), threat.radii(len(x), x),
        )  # fmt: skip
        with oracle.session(seed):
            return self._run(oracle, threat, rows, seed)

    def _run(self, oracle: Oracle, threat: Threat, rows: Rows, seed: int) -> CascadeResult:
        scores = clean_scores(oracle, rows)
        rows = replace(rows, scores=scores)
        stages = self.plan(self.threat, scores.shape[1])
        clean_label = scores.argmax(1)
        wrong = stages[0].attack.goal(View(oracle, rows, rows.x, scores=scores))
        run = _Run(oracle, threat, rows, wrong, self.budget, clean_label.clone())
        tick(int(wrong.sum()))
        reports = [run.stage(stage, seed) for stage in stages]
        status = [
            "wrong" if w else "fooled" if s else "survived"
            for w, s in zip(wrong.tolist(), run.success.tolist(), strict=True)
        ]
        kept = tuple(r for r in reports if r is not None)
        return CascadeResult(
            run.x, run.success, threat.distance(rows, run.x), oracle.meter.forwards,
            oracle.meter.backwards, status, run.label, clean_label, self.stop,
            broken_by=tuple(run.by), stages=kept,
            advice=_advice(kept, len(rows), int((~run.success).sum()), run.unaffordable),
        )  # fmt: skip


class _Run:
    """What the stages of one call share and fill."""

    def __init__(
        self,
        oracle: Oracle,
        threat: Threat,
        rows: Rows,
        wrong: Tensor,
        budget: int | None,
        label: Tensor,
    ) -> None:
        self.oracle, self.threat, self.rows, self.label = oracle, threat, rows, label
        self.x, self.success, self.by = rows.x.clone(), wrong.clone(), [""] * len(rows)
        # The largest margin that any stage reached: how close a survivor is to falling.
        self.close = torch.full((len(rows),), float("-inf"), dtype=torch.float64)
        right = int((~wrong).sum())
        self.limit = None if budget is None else budget * right
        self.unaffordable = 0

    @property
    def spent(self) -> int:
        return sum(self._meter())

    def _meter(self) -> tuple[int, int]:
        meter = self.oracle.meter
        return int(meter.forwards.sum()), int(meter.backwards.sum())

    def stage(self, stage: Stage, seed: int) -> StageReport | None:
        """Run one stage on the survivors that it should and can try."""
        left = (~self.success).nonzero().squeeze(1)
        left = left[torch.argsort(self.close[left], descending=True, stable=True)]
        # Few are cheap to try: a share of what is left never goes below this share of all.
        least = math.ceil(FEW * len(self.rows))
        count = max(math.ceil(len(left) * stage.share), min(len(left), least))
        if self.limit is not None:
            affordable = max(0, self.limit - self.spent) // stage.cost
            self.unaffordable += max(0, count - affordable)
            count = min(count, affordable)
        chosen = left[:count].sort().values
        if len(chosen) == 0:
            return None
        before = self._meter()
        attack = replace(stage.attack, stop="success", threat=self.threat)
        problem = attack.problem(self.oracle, self.threat)
        if problem.cap is not None:
            # What earlier stages spent is not this one's; the shared clean look is.
            meter = self.oracle.meter
            problem = replace(problem, before=meter.forwards - meter.looks)
        some = self.rows.take(chosen)
        if attack.prepare is not None:
            some = attack.prepare(self.oracle, some, seed)
            self._remember(some, chosen)
        found, held, value = attack.search_all(problem, some, seed)
        if isinstance(attack.objective, Nearest):
            self.close[chosen] = torch.maximum(self.close[chosen], value.double())
        hit = held.nonzero().squeeze(1)
        if len(hit):
            verdict, labels = independent_verdict(problem, some.take(hit), found[hit], self.oracle)
            hit, labels = hit[verdict], labels[verdict]
            where = chosen[hit]
            self.x[where], self.label[where], self.success[where] = found[hit], labels, True
            for place in where.tolist():
                self.by[place] = stage.name
        forwards, backwards = (now - then for now, then in zip(self._meter(), before, strict=True))
        return StageReport(stage.name, len(chosen), len(hit), forwards, backwards)

    def _remember(self, some: Rows, chosen: Tensor) -> None:
        """Keep what a stage prepared (the nearest classes), so that no later one pays again."""
        extra = dict(self.rows.extra)
        for name, part in some.extra.items():
            whole = extra.get(name)
            if whole is None:
                whole = part.new_zeros((len(self.rows), *part.shape[1:]))
            extra[name] = whole.index_copy(0, chosen, part)
        self.rows = replace(self.rows, extra=extra)


def _advice(stages: tuple[StageReport, ...], n: int, left: int, skipped: int) -> str:
    """Say what breaking more would take, from what the last stages' calls bought."""
    if left == 0:
        return "every sample is broken"
    calls = sum(s.calls for s in stages)
    last = stages[-1]
    text = f"{left} of {n} samples survive {calls / n:.0f} calls a sample. "
    if skipped:
        text += f"The budget left out {skipped} tries: raise it to run them. "
    if last.broke:
        return text + (
            f"The last stage, {last.name}, broke {last.broke} of {last.tried} for "
            f"{last.calls / last.broke:.0f} calls each: more calls will break more"
        )
    return text + (
        f"The last stage, {last.name}, broke none of {last.tried} for {last.calls} calls: if any "
        f"more falls, it costs more than that"
    )
