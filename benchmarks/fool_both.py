"""Prediction and map attacked together, beside noise of the same size and PGD, on the true net.

python benchmarks/fool_both.py [--quick] [--samples 100] [--threads 1]
"""

from __future__ import annotations

import torch
from common import MODELS, Section, command_line, finish, header, images, load, percent

import foible
from foible import attacks, explain
from foible.attacks.fragility import mass
from foible.explain import Explanation, topk_intersection

BAR = ("what", "measured", "bar", "verdict")
WHAT = ("flipped", "top 100 kept", "under noise", "PGD flips", "after PGD", "figures")
K, STEPS = 100, 60


def measured(
    table: Section, model: str, method: str, explainer: Explanation, eps: float, count: int
) -> tuple[float, float, float]:
    """The flipped share, the overlap of flipped samples' maps, and that under noise."""
    net, (x, y) = load(model), images(1000)
    right = (net(x).argmax(1) == y).nonzero().squeeze(1)[:count]
    x, y = x[right], y[right]
    found = attacks.fool_both(foible.Linf(eps), explainer, K, STEPS)(net, x, y)
    signs = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    pgd = attacks.pgd(foible.Linf(eps), STEPS)(net, x, y)
    points = {"both": found.x, "noise": (x + eps * signs).clamp(0, 1), "pgd": pgd.x}
    clean, kept, flipped = mass(explainer(net, x, y)), {}, {}
    for name, at in points.items():
        label = net(at).argmax(1)  # what the user sees: the map of the class that is predicted
        flipped[name] = label != y
        kept[name] = topk_intersection(clean, mass(explainer(net, at, label)), K)
    fell = flipped["both"]
    share, own, noise = float(fell.double().mean()), kept["both"][fell], kept["noise"][fell]
    after = kept["pgd"][flipped["pgd"]]
    table.add(
        f"{method}-{model}-{eps:g}", percent(share), f"{float(own.mean()):.3f}",
        f"{float(noise.mean()):.3f}", percent(float(flipped["pgd"].double().mean())),
        f"{float(after.mean()):.3f}", f"{len(x)} images; kept better than under noise on "
        f"{percent(float((own >= noise).double().mean()))} of the flipped",
    )  # fmt: skip
    return share, float(own.mean()), float(noise.mean())


def main() -> None:
    args = command_line(__doc__ or "", "fool_both", ("bars",), 1)
    count = min(args.samples, 100)
    bars = Section("bars", "Bars: the standard model", BAR)
    table = Section("maps", f"What is left of the maps after {STEPS} steps", WHAT)
    for method, explainer in (("saliency", explain.saliency()), ("grad_cam", explain.grad_cam())):
        for eps in (0.05, 0.1):
            share, own, noise = measured(table, "standard", method, explainer, eps, count)
            at = f"{method}, eps {eps:g}: "
            bars.bar(f"flipped-{method}-{eps:g}", at + "flipped", share, ">=", 0.8)
            bars.bar(f"overlap-{method}-{eps:g}", at + "top 100 kept, less that under noise",
                     own - noise, ">=", 0.0)  # fmt: skip
    for model in MODELS:
        few = max(1, count // 4)
        measured(table, model, "gradient_x_input", explain.gradient_x_input(), 0.1, few)
        measured(table, model, "integrated_gradients", explain.integrated_gradients(10), 0.1, few)
    measured(table, "hardened", "saliency", explain.saliency(), 0.1, count // 2)
    measured(table, "hardened", "grad_cam", explain.grad_cam(), 0.1, count // 2)
    head = header(
        "Prediction and map attacked together", [],
        "`attacks.fool_both` (ADV2, Zhang et al. 2020) on images that are classified rightly. The "
        "maps are what a user sees, of the predicted class at each point, against the clean map; "
        "means over flipped images, and of noise over the same ones. Noise: random signs of the "
        "same size.",
    )  # fmt: skip
    finish(args, head, [bars, table], ("bars", "maps"))


if __name__ == "__main__":
    main()
