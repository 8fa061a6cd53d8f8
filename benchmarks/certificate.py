"""Certified sparsified SmoothGrad: what is certain of the top features, and what an attack leaves.

python benchmarks/certificate.py --samples 200
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from common import MODELS, Section, command_line, finish, header, images, load, setting
from torch import Tensor, nn

import foible
from foible.core.access import Access
from foible.core.oracle import Oracle
from foible.core.problem import Goal, Problem, View
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.core.solver import solve
from foible.core.threat import Box
from foible.parts.objectives import Logit
from foible.parts.searches import Ascent

BAR = ("what", "measured", "bar", "verdict")
Q, SIGMA, SHARE, K = 2000, 0.2, 0.1, 157
RADII = (0.0, 0.01, 0.03, 0.1, 0.2)
DRAWS, STEPS = 12, 8
e = foible.explain


@dataclass(frozen=True)
class Anywhere(Goal):
    """Every point counts: the certificate does not ask for the label."""

    def __call__(self, view: View) -> Tensor:
        return torch.ones(len(view.rows), dtype=torch.bool)


@dataclass(frozen=True)
class Overtake:
    """Soft marks of the runners-up minus those of the top features, on fresh noisy copies.

    rows.extra["pull"]: (B, *shape), -1 at the top k, 1 at the ranks k + 1 to 2k, else 0.
    """

    draws: int = DRAWS

    def __call__(self, view: View) -> Tensor:
        many = view.rows.repeat(self.draws)
        assert view.draw is not None
        noise = view.draw.normal((self.draws, *view.rows.shape), view.x_adv.dtype) * SIGMA
        x = view.x_adv.repeat(self.draws, *[1] * (view.x_adv.dim() - 1))
        x = x + noise.transpose(0, 1).reshape(x.shape)
        climbing = torch.is_grad_enabled() and x.requires_grad
        grads = view.oracle.value_and_grad(
            lambda at: Logit()(View(view.oracle, many, at)), x, many, create_graph=climbing
        )[1]
        size = grads.flatten(1).abs()
        least = size.detach().topk(round(SHARE * size.shape[1]), 1).values[:, -1:]
        soft = torch.sigmoid((size / least.clamp_min(1e-12) - 1) / 0.2)
        return (soft * many.extra["pull"].flatten(1)).sum(1).view(self.draws, -1).mean(0)


def attacked(net: nn.Module, x: Tensor, y: Tensor, clean: Tensor, radius: float) -> Tensor:
    """Ascend in the L2 ball, whole and not cut by the box, on a softplus copy of the net."""
    order = clean.flatten(1).argsort(descending=True)
    pull = torch.zeros_like(clean).flatten(1)
    pull = pull.scatter(1, order[:, :K], -1.0).scatter(1, order[:, K : 2 * K], 1.0)
    twin = Oracle(foible.models.softplus_twin(foible.models.as_model(net), 20.0), len(x),
                  Access.GRADIENTS)  # fmt: skip
    index, threat = torch.arange(len(x)), foible.L2(radius, box=Box())
    rows = Rows(index, index, x, y, None, threat.radii(len(x), x))
    rows.extra["pull"] = pull.view_as(x)
    problem = Problem(twin, threat, Overtake(), Anywhere(), draws=DRAWS)
    with twin.session(0):
        found = solve(problem, rows, Ascent(STEPS, None, 2.5 / STEPS)).x
    length = (found - x).flatten(1).norm(dim=1)
    if float(length.max()) > radius * (1 + 1e-5):
        raise AssertionError(f"the attack went {float(length.max())} far in a ball of {radius}")
    return found


def measure(name: str, count: int, table: Section, bars: Section) -> None:
    net, (x, y) = load(name), images(count)
    explainer = e.sparsified_smoothgrad(Q, SIGMA, SHARE)
    found = e.certify(explainer, net, x, y)
    for radius in RADII:
        certain = found.overlap(K, radius)
        median, mean = float(certain.median()), float(certain.mean())
        left: list[object] = ["", "", "", ""]
        some = {0.0: min(20, count), 0.03: count, 0.1: min(20, count)}.get(radius, 0)
        if some:
            moved = x[:some]
            if radius:
                moved = attacked(net, moved, y[:some], found.map[:some], radius)
            # Other draws than the first map's: what somebody sees who explains the input again.
            again = explainer(net, moved, y[:some], seed=1)
            stays = e.topk_intersection(found.map[:some], again, K)
            left = [float(stays.median()), float(stays.min()),
                    float((stays - certain[:some]).min()), ""]  # fmt: skip
            if radius == 0.1:
                move = Rng(2).at(torch.arange(some)).normal(x.shape[1:])
                move = radius * F.normalize(move.flatten(1)).view_as(move)
                by_chance = explainer(net, x[:some] + move, y[:some], seed=1)
                left[3] = float(e.topk_intersection(found.map[:some], by_chance, K).median())
            if radius:
                share = float((stays >= certain[:some]).double().mean())
                what = f"{name}: images that keep what was certain at {radius:g}, of {some}"
                bars.bar(f"holds-{name}-{radius:g}", what, share, ">=", 1.0)
        table.add(f"certificate-{name}-{radius:g}", f"{name}, L2 {radius:g}", median, mean, *left)
    at = float(found.overlap(K, 0.03).median())
    bars.bar(f"median-{name}", f"{name}: median certain overlap at 0.03", at, ">=", 0.1)
    far = float(found.overlap(K, 5 * SIGMA).max())
    bars.bar(f"far-{name}", f"{name}: largest certain overlap at 5 sigma", far, "<=", 0.0)
    fewer = e.Certificate(found.map, Q // 4, SIGMA)
    rise = float((fewer.overlap(K, 0.03) - found.overlap(K, 0.03)).max())
    bars.bar(f"samples-{name}", f"{name}: largest gain by a quarter of the samples", rise, "<=", 0)


def main() -> None:
    args = command_line(__doc__ or "", "certificate", ("certificate", "bars"), 1)
    count = min(setting(args).samples, 200)
    table = Section(
        "certificate", "Overlap of the top features: certain, and left by an attack",
        ("what", "median certain", "mean certain", "median left", "least left", "least margin",
         "median left by a random change"),
        f"q = {Q}, sigma {SIGMA}, tau {SHARE}, k = {K} of 784 pixels, p = 0.95, {count} images "
        "(the attack at 0.1 and the second look at 0 on 20). Left: the overlap with a map of "
        f"{Q} other draws at the attacked input; margin: that minus the certain one. At 0 nothing "
        f"was changed but the draws. The attack: {STEPS} steps on {DRAWS} fresh copies, up the "
        "soft marks of the ranks k + 1 to 2k and down those of the top k, on a softplus copy of "
        "the net.",
    )  # fmt: skip
    bars = Section("bars", "Bars", BAR)
    for name in MODELS:
        measure(name, count, table, bars)
    head = header(
        "Certified explanations", [],
        "Sparsified SmoothGrad of the label's logit on the bundled images, and its certificate.",
    )  # fmt: skip
    finish(args, head, [table, bars], ("certificate", "bars"))


if __name__ == "__main__":
    main()
