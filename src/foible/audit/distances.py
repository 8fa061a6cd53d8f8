"""Accuracy against eps from the smallest perturbations found, and who found them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible import attacks
from foible.audit.cells import Context, Measured, accuracy
from foible.parts.statistics import quantiles

POINTS = 16


@dataclass(frozen=True)
class CurveWork:
    """Measure every sample's smallest perturbation in one norm: the whole curve in one run.

    steps: of FMN, the minimum-norm attack. read: planned attacks of the norm; what they broke
    counts at its own distance, so that no point of the curve is above any attack's figure on
    these samples. most: samples at most, spread evenly over the data.
    """

    norm: str
    steps: int = 60
    read: tuple[str, ...] = ()
    most: int | None = None

    def __call__(self, context: Context) -> Measured:
        """Take the least distance over attacks, and the random control beside it."""
        size, count = context.x[0].numel(), len(context.x)
        some = min(count, self.most or count)
        chosen = torch.arange(some) * count // some
        x, y = (whole[chosen.to(whole.device)] for whole in (context.x, context.y))
        top = context.plan.radius(self.norm, size) * 1.5
        eps = [float(f"{top * (i + 1) / POINTS:.6g}") for i in range(POINTS)]
        free = attacks.fmn(context.ball(self.norm).without_radius(), self.steps)
        found = free(context.model, x, y, seed=context.seed)
        forwards, backwards = int(found.forwards.sum()), int(found.backwards.sum())
        least = found.distance.cpu()
        owner = ["" if s == "wrong" else "fmn" for s in found.status]
        for name in self.read:
            least, owner = self._merge(context, name, chosen, least, owner)
        detail, control = self._points(eps, least, owner), []
        for e in eps:
            noise = attacks.random_noise(context.ball(self.norm, e))
            random = noise(context.model, x, y, seed=context.seed)
            control.append(random.robust_accuracy)
            forwards += int(random.forwards.sum())
        right = least[torch.tensor([o != "" for o in owner])]
        share = Counter(o for o, d in zip(owner, least.tolist(), strict=True) if o and d < 1e30)
        detail |= {
            "norm": self.norm, "eps": eps, "random": control,
            "attack": f"the smallest perturbation found: FMN, {self.steps} steps"
            + (", and every planned attack" if self.read else ""),
            "set_by": dict(share.most_common()),
            "quartiles": quantiles(right, (0.25, 0.5, 0.75)),
        }  # fmt: skip
        rates = detail["accuracy"]
        at = [e for e, rate in zip(eps, rates, strict=True) if rate is not None and rate < 0.5]
        return Measured(
            at[0] if at else None, len(least), None, forwards, backwards, "ok", detail,
            {"smallest": least, "chosen": chosen},
        )  # fmt: skip

    @staticmethod
    def _merge(
        context: Context, name: str, chosen: Tensor, least: Tensor, owner: list[str]
    ) -> tuple[Tensor, list[str]]:
        """Take another attack's successes where they are closer."""
        other = context.result(name)
        if other is None or "distance" not in other[1]:
            return least, owner
        hit, size = (other[1][key].cpu()[chosen] for key in ("success", "distance"))
        closer = hit & (size < least)
        owner = [name if c else o for c, o in zip(closer.tolist(), owner, strict=True)]
        return torch.where(closer, size, least), owner

    @staticmethod
    def _points(eps: list[float], least: Tensor, owner: list[str]) -> dict[str, Any]:
        """Return accuracy, interval and leading attack at each eps."""
        detail: dict[str, Any] = {"accuracy": [], "low": [], "high": [], "leader": []}
        for before, e in zip([0.0, *eps], eps, strict=False):
            rate, interval = accuracy(least > e * (1 + 1e-6))
            fell = [o for o, d in zip(owner, least.tolist(), strict=True) if o and before < d <= e]
            detail["accuracy"].append(rate)
            detail["low"].append(interval[0] if interval else None)
            detail["high"].append(interval[1] if interval else None)
            # Who set this point: the attack that is closest on most samples that fell here.
            detail["leader"].append(Counter(fell).most_common(1)[0][0] if fell else None)
        return detail
