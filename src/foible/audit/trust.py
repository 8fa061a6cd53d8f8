"""Trust checks that attack: a planted adversarial, a black box, and the alarm over all signs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foible import attacks
from foible.audit.cells import Context
from foible.core.access import Access
from foible.core.oracle import Oracle
from foible.core.problem import Goal, Problem, View
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.solver import solve
from foible.parts.searches import Ascent

Verdict = tuple[bool | None, float | None, str, str]

# A one-step attack so much weaker than many steps is what single-step training leaves behind.
GAP = 0.4
# Sign of masked gradients -> what it says, for the alarm's text.
SIGNS = {
    "check-gradients": "gradients vanish",
    "check-determinism": "scores are random",
    "check-iterative": "one step beats many",
    "check-random": "noise beats PGD",
    "check-larger-eps": "a larger eps is weaker",
    "check-huge-eps": "an unlimited attack fails",
    "check-black-box": "a black box beats PGD",
    "check-planted": "a planted adversarial is missed",
}


@dataclass(frozen=True)
class Readout:
    """The score of a linear readout of the logits, one a row: w . logits - b."""

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        extra = view.rows.extra
        return (view.scores * extra["readout"]).sum(1) - extra["level"]


@dataclass(frozen=True)
class Crossed(Goal):
    """The readout is positive."""

    def __call__(self, view: View) -> Tensor:
        """Return (B,) bool."""
        return Readout()(view) > 0


def planted(context: Context) -> Verdict:
    """Fail where PGD misses an adversarial that is known to exist.

    Zimmermann et al. 2022 (binarisation test): for each sample one corner of the ball is planted
    as the other side of a linear readout of the model's scores that holds for random points of
    the ball, so that a perfect defence of the readout is impossible by construction. Their
    readout uses the features before the last layer; ours uses the scores, which every model has.
    """
    x = context.x[:64]
    threat = context.ball("linf").inside(context.model.bounds)
    oracle = Oracle(context.model, len(x), Access.GRADIENTS)
    index = torch.arange(len(x), device=x.device)
    rows = Rows(index, index, x, context.y[:64], None, threat.radii(len(x), x))
    rng = Rng(context.seed).split(31)
    with oracle.session(context.seed), torch.no_grad():
        inner = []
        for draw in range(24):
            z = threat.start(rows, rng.at(index, draw))
            inner.append(oracle.scores(threat.render(rows, z), rows).double())
        signs = rng.at(index, 99).normal(rows.shape, x.dtype)
        corner = threat.project(rows, threat.steepest(rows, signs, signs) * rows.radius())
        outer = oracle.scores(threat.render(rows, corner), rows).double()
        cloud = torch.stack(inner, 1)
        w, level, apart = _split(cloud, outer)
        rows = replace(rows, extra={"readout": w.to(x.dtype), "level": level.to(x.dtype)})
        rows = rows.take(apart)
        if len(rows) < 8:
            context.spend(*_cost(oracle))
            return None, None, "no corner stands out of its ball", "every planted one is found"
        problem = Problem(oracle, threat, Readout(), Crossed(), "success")
        search = Ascent(40, None, 2.5 / 40, "random")
        found = solve(problem, rows, search, seed=context.seed)
    context.spend(*_cost(oracle))
    rate = float(found.success.double().mean())
    hits = int(found.success.sum())
    return rate >= 0.95, rate, f"PGD found {hits} of {len(rows)}", "at least 95 %"


def _split(cloud: Tensor, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the readout w (B, K), its level (B,) and which rows (n,) it separates.

    cloud: (B, N, K) scores of random points, outer: (B, K) of the planted one.
    """
    centre = cloud.mean(1)
    spread = cloud - centre[:, None]
    cover = spread.transpose(1, 2) @ spread / cloud.shape[1]
    size = cover.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    eye = torch.eye(cloud.shape[2], dtype=cloud.dtype, device=cloud.device)
    w = torch.linalg.solve(cover + 0.1 * size[:, None, None] * eye, outer - centre)
    w = w / w.norm(dim=1, keepdim=True).clamp_min(1e-12)
    most = (cloud * w[:, None]).sum(2).amax(1)
    reach = (outer * w).sum(1)
    # A hair below the planted point, so that it is a solution by more than rounding.
    level = reach - 0.05 * (reach - most).clamp_min(0.0)
    return w, level, (reach > most + 1e-6 * reach.abs()).nonzero().squeeze(1)


def _cost(oracle: Oracle) -> tuple[int, int]:
    return int(oracle.meter.forwards.sum()), int(oracle.meter.backwards.sum())


def black_box(context: Context) -> Verdict:
    """Fail where Square, which sees scores only, breaks what PGD left standing."""
    found = context.result("pgd-linf")
    expected = "at most 1 % of the samples tried"
    if found is None:
        return None, None, "PGD was not measured", expected
    standing = (~found[1]["success"]).nonzero().squeeze(1)[:100]
    if len(standing) == 0:
        return True, 0.0, "PGD left nothing standing", expected
    x, y = context.x[standing], context.y[standing]
    result = attacks.square(context.ball("linf"), 200)(context.model, x, y, seed=context.seed)
    context.spend(int(result.forwards.sum()), int(result.backwards.sum()))
    broke = int((result.success & result.attacked).sum())
    # Of all that PGD and Square were tried on, in proportion.
    share = broke / len(standing) * float((~found[1]["success"]).double().mean())
    measured = f"Square broke {broke} of {len(standing)} that PGD did not, in 200 queries"
    return share <= 0.01, share, measured, expected


def masking(context: Context) -> Verdict:
    """Fail where any sign of masked gradients is there (Athalye et al. 2018, and our own gates)."""
    seen = []
    for name, text in SIGNS.items():
        found = context.result(name)
        if found is not None and found[0]["status"] == "failed":
            seen.append(text)
    one, many = context.result("fgsm-linf"), context.result("pgd-linf")
    if one is not None and many is not None:
        gap = float(one[0]["value"]) - float(many[0]["value"])
        if gap >= GAP:
            seen.append(f"one step leaves {gap:.0%} more than many")
    return not seen, float(len(seen)), "; ".join(seen) or "none of nine signs", "no sign"
