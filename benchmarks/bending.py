"""Maps bent to order, the smoothed map beside them, and the attack on the smoothed map (X4).

python benchmarks/bending.py [--samples 60] [--quick]
"""

from __future__ import annotations

import torch
from common import MODELS, Section, command_line, finish, header, images, load, setting
from torch import Tensor

from foible import Linf, attacks, explain

BAR = ("what", "measured", "bar", "verdict")
BETAS = (1.0, 2.0, 5.0)
EPS, STEPS, SHARP = 0.1, 200, 60.0


def pearson(a: Tensor, b: Tensor) -> float:
    """The mean over images of the correlation of two maps' absolute values."""
    a, b = (t.abs().flatten(1) - t.abs().flatten(1).mean(1, keepdim=True) for t in (a, b))
    return float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean())


def bend(name: str, count: int, bars: bool, into: Section) -> None:
    """Each image is to show the map of the next one."""
    net, (x, _) = load(name), images(count)
    y = net(x).argmax(1)
    plain = explain.saliency()
    clean = plain(net, x, y)
    order = clean.roll(1, 0)

    def probability(at: Tensor) -> Tensor:
        return net(at).detach().softmax(1).gather(1, y[:, None]).squeeze(1)

    def row(
        key: str, what: str, value: float, sign: str = ">=", limit: float | None = None
    ) -> None:
        if bars and limit is not None:
            into.bar(f"{key}-{name}", what, value, sign, limit)
        else:
            into.add(f"{key}-{name}", what, value, "none", "reported")

    bent = attacks.bend(Linf(EPS), plain, STEPS, SHARP)(net, x, y, order)
    found = plain(net, bent.x, y)
    to, stays = pearson(found, order), pearson(found, clean)
    n = f"{count} pairs, {name}"
    row("rise", f"{n}: rise of the correlation with the order", to - pearson(clean, order),
        ">=", 0.4)  # fmt: skip
    row("exceeds", f"correlation with the order, {to:.3f}, less that with the map as it was, "
        f"{stays:.3f}", to - stays, ">=", 0.0)  # fmt: skip
    moved = (probability(bent.x) - probability(x)).abs()
    row("probability", "largest change of the label's probability", float(moved.max()),
        "<=", 0.05)  # fmt: skip
    row("labels", "labels that stayed", float((net(bent.x).argmax(1) == y).double().mean()),
        ">=", 1.0)  # fmt: skip
    row("change", "largest change of a pixel", float((bent.x - x).abs().max()), "<=", EPS + 1e-6)
    free = attacks.bend(Linf(EPS), plain, STEPS, SHARP, tolerance=None)(net, x, y, order)
    loose = (probability(free.x) - probability(x)).abs()
    row("free-rise", "rise where only the label counts",
        pearson(plain(net, free.x, y), order) - pearson(clean, order))  # fmt: skip
    row("free-probability", "share of images whose probability then moves by more than 0.05",
        float((loose > 0.05).double().mean()))  # fmt: skip
    signs = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    noise = plain(net, (x + EPS * signs).clamp(0, 1), y)
    row("noise-rise", "rise under random signs of the same size",
        pearson(noise, order) - pearson(clean, order))  # fmt: skip
    for beta in BETAS:
        soft = explain.smoothed(plain, beta)
        before, after = soft(net, x, y), soft(net, bent.x, y)
        with_own, with_relu = pearson(after, before), pearson(after, clean)
        row(f"smoothed-{beta:g}", f"beta {beta:g}: smoothed maps at x' and x, {with_own:.3f}, less "
            f"ReLU maps at x' and x, {stays:.3f}", with_own - stays, ">=", 0.2)  # fmt: skip
        row(f"smoothed-{beta:g}-relu", f"beta {beta:g}: smoothed map at x' and ReLU map at x; "
            f"smoothed at x: {pearson(before, clean):.3f}", with_relu)  # fmt: skip
        row(f"smoothed-{beta:g}-order", f"beta {beta:g}: correlation with the order rises by",
            pearson(after, order) - pearson(before, order))  # fmt: skip
        wanted = before.roll(1, 0)
        forced = attacks.bend(Linf(EPS), soft, STEPS)(net, x, y, wanted)
        at = soft(net, forced.x, y)
        row(f"adaptive-{beta:g}-rise", f"beta {beta:g}, bent itself: correlation with the next "
            "smoothed map rises by", pearson(at, wanted) - pearson(before, wanted))  # fmt: skip
        row(f"adaptive-{beta:g}-stays", f"beta {beta:g}, bent itself: correlation with its map at "
            "x", pearson(at, before))  # fmt: skip


def main() -> None:
    args = command_line(__doc__ or "", "bending", ("bend",), 1)
    how = setting(args)
    table = Section(
        "bend", "X4: bent maps and smoothed ones", BAR,
        f"Saliency within Linf {EPS}; the order is the map of the next of the first images, all "
        "labels as the model gives them. A twin of sharpness "
        f"{SHARP:g} is searched for {STEPS} steps; figures are the ReLU net's. Correlations are "
        "Pearson's, of absolute values. Bars are for the standard model; the hardened one is "
        "reported.",
    )  # fmt: skip
    for name in MODELS:
        bend(name, 12 if how.quick else min(how.samples, 60), name == "standard", table)
    head = header(
        "Maps bent to order", [],
        "`attacks.bend` (Dombrowski et al. 2019), and `explain.smoothed`, the map of a softplus "
        "net, which it does not bend as far; also when it is attacked itself.",
    )  # fmt: skip
    finish(args, head, [table], ("bend",))


if __name__ == "__main__":
    main()
