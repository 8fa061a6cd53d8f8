"""Maps moved while the label stays, beside noise of the same size, on the true net.

python benchmarks/fragile.py [--quick] [--samples 200] [--threads 1]
"""

from __future__ import annotations

import torch
from common import MODELS, Section, command_line, finish, header, images, load, percent
from torch import Tensor, nn

import foible
from foible import attacks, explain
from foible.attacks.fragility import mass
from foible.explain import Explanation, rank_correlation, topk_intersection

BAR = ("what", "measured", "bar", "verdict")
WHAT = (
    "moved",
    "top 100 kept",
    "under noise",
    "Spearman",
    "under noise",
    "shift, noise",
    "figures",
)
K, STEPS = 100, 100
SIZES = (0.02, 0.05, 0.1)
# The explainer, how many images, how many steps.
OTHERS: dict[str, tuple[Explanation, int, int]] = {
    "gradient_x_input": (explain.gradient_x_input(), 100, STEPS),
    "grad_cam": (explain.grad_cam(), 100, STEPS),
    "smoothgrad": (explain.smoothgrad(10), 24, 50),
    "integrated_gradients": (explain.integrated_gradients(10), 24, 50),
}


def rightly(name: str, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A model and the first images that it classifies rightly."""
    net, (x, y) = load(name), images(1000)
    right = (net(x).argmax(1) == y).nonzero().squeeze(1)[:count]
    return net, x[right], y[right]


def noisy(x: Tensor, eps: float) -> Tensor:
    signs = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    return (x + eps * signs).clamp(0, 1)


Figures = tuple[float, float, float, float, float, float]


def measured(
    table: Section, model: str, method: str, explainer: Explanation, eps: float, count: int,
    steps: int = STEPS,
) -> Figures:  # fmt: skip
    """Kept labels, moved maps, both agreements and both under noise; a row of the table."""
    net, x, y = rightly(model, count)
    found = attacks.fragile(foible.Linf(eps), explainer, "top", K, steps)(net, x, y)
    label = net(found.x).argmax(1)
    maps = [mass(explainer(net, at, y)) for at in (x, found.x, noisy(x, eps))]
    top, noise_top = (float(topk_intersection(maps[0], m, K).mean()) for m in maps[1:])
    rank, noise_rank = (float(rank_correlation(maps[0], m).nanmean()) for m in maps[1:])
    gone = attacks.fragility.centre(maps[2]) - attacks.fragility.centre(maps[0])
    kept, moved = float((label == y).double().mean()), float(found.moved.double().mean())
    table.add(
        f"{method}-{model}-{eps:g}", percent(moved), f"{top:.3f}", f"{noise_top:.3f}",
        f"{rank:.3f}", f"{noise_rank:.3f}",
        f"{float(found.shift.nanmean()):.2f}, {float(gone.norm(dim=1).mean()):.2f}",
        f"{len(x)} images, {steps} steps, label kept on {percent(kept)}",
    )  # fmt: skip
    return kept, moved, top, noise_top, rank, noise_rank


def saliency(table: Section, bars: Section, count: int) -> None:
    """The bars, on the plain gradient."""
    seen: dict[tuple[str, float], Figures] = {}
    for model in MODELS:
        for eps in SIZES:
            seen[model, eps] = measured(table, model, "saliency", explain.saliency(), eps, count)
    for eps in SIZES:
        kept, moved, top, noise_top, rank, noise_rank = seen["standard", eps]
        at = f"standard, eps {eps:g}: "
        bars.bar(f"kept-{eps:g}", at + "label kept", kept, ">=", 0.95)
        bars.bar(f"moved-{eps:g}", at + "a better map found", moved, ">=", 0.95)
        bars.bar(f"top-{eps:g}", at + "top 100 kept", top, "<=", 0.35)
        if eps < 0.1:  # there the noise is only reported
            bars.bar(f"noise-{eps:g}", at + "top 100 kept under noise", noise_top, ">=", 0.6)
        bars.bar(
            f"rank-{eps:g}", at + "Spearman less that under noise", rank - noise_rank, "<=", -0.2
        )
        gap = seen["hardened", eps][2] - top
        bars.bar(
            f"hardened-{eps:g}",
            f"eps {eps:g}: top 100 kept, hardened less standard",
            gap,
            ">=",
            0.1,
        )


def aims(table: Section, count: int) -> None:
    """The other two aims on the standard model's saliency."""
    net, x, y = rightly("standard", count)
    corner = torch.zeros(28, 28, dtype=torch.bool)
    corner[:9, :9] = True
    for eps in SIZES:
        far = attacks.fragile(foible.Linf(eps), explain.saliency(), "centre", K, STEPS)(net, x, y)
        into = attacks.fragile(foible.Linf(eps), explain.saliency(), "region", K, STEPS)(
            net, x, y, corner
        )
        noise = mass(explain.saliency()(net, noisy(x, eps), y))
        clean = mass(far.clean_map)
        gone = (attacks.fragility.centre(noise) - attacks.fragility.centre(clean)).norm(dim=1)
        for name, what, found, after, control in (
            ("centre", "shift of the centre, pixels", far, far.shift, gone),
            ("region", "share in a corner of 9 x 9", into, into.after, noise[:, corner].sum(1)),
        ):
            kept = percent(float(found.kept.double().mean()))
            table.add(f"{name}-{eps:g}", what, *(float(v.mean()) for v in (after, control)), kept)


def main() -> None:
    names = ("bars", "saliency", "others", "aims")
    args = command_line(__doc__ or "", "fragile", ("bars", "others", "aims"), 1)
    count = min(args.samples, 200)
    bars = Section("bars", "Bars: the plain gradient", BAR)
    plain = Section("saliency", f"The plain gradient after {STEPS} steps", WHAT)
    others = Section("others", "Other explainers", WHAT)
    goals = Section("aims", "The other two aims, saliency of the standard model",
                    ("what", "attacked", "under noise", "label kept"))  # fmt: skip
    if "bars" in args.chosen:
        saliency(plain, bars, count)
    if "others" in args.chosen:
        for model in MODELS:
            for method, (explainer, some, steps) in OTHERS.items():
                measured(others, model, method, explainer, 0.05, min(count, some), steps)
    if "aims" in args.chosen:
        aims(goals, min(count, 100))
    head = header(
        "Fragile maps", [],
        "`attacks.fragile` (Ghorbani et al. 2019) searches a softplus twin; every figure here is "
        "the ReLU net's, on the first images that it classifies rightly. Noise: random signs of "
        "the same size. A label is kept by construction: the clean input comes back where nothing "
        "better was found, so the share that moved stands beside it.",
    )  # fmt: skip
    finish(args, head, [s for s in (bars, plain, others, goals) if s.rows], names)


if __name__ == "__main__":
    main()
