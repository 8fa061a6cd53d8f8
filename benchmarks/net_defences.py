"""Defences that change a network, bounds on its scores, and what a hardened net reads.

    python benchmarks/net_defences.py --only kernels,texture --threads 1

Nets are those of small_panel.py, or `norm_cnn` where batch norm is needed; three seeds each.
Figures are taken on the bundled sample of the test set.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from common import Section, Setting, command_line, finish, header, images, load, setting
from small_panel import (
    EPS,
    PGD7,
    ROOT,
    SEEDS,
    begun,
    hardened,
    left,
    mean_bar,
    right,
    standard,
    thin,
    told,
    trained,
)
from torch import nn

import foible
from foible import defend
from foible.defend.certify import bounds, certified
from foible.defend.nets import InfoDrop, high_frequency_share, main_norms
from foible.explain import edge_alignment, feature_noise, gini, texture_or_shape
from foible.zoo.networks import norm_cnn

BAR = ("what", "measured", "bar", "verdict")


def layer_share(net: nn.Module) -> float:
    """The share of all kernels together: a kernel counts by its energy."""
    weight = net[0].weight.detach()
    energy = weight.double().square().sum((1, 2, 3))  # as in the Fourier transform, by Parseval
    return float((high_frequency_share(weight) * energy).sum() / energy.sum())


def kernels(how: Setting, table: Section) -> None:
    """R10: the first layer's kernels smoothed after training."""
    x, y = images(how.samples)
    plain, strong = [standard(s) for s in SEEDS], [hardened(s) for s in SEEDS]

    def share(net: nn.Module) -> float:
        return float(high_frequency_share(net[0].weight).mean())

    for rho in (0.1, 0.25, 0.5, 1.0):
        smooth = [defend.kernel_smoothing(net, rho) for net in plain]
        drop = [100 * (1 - share(b) / share(a)) for a, b in zip(plain, smooth, strict=True)]
        cost = [right(a, x, y) - right(b, x, y) for a, b in zip(plain, smooth, strict=True)]
        what = f"rho {rho}: high-frequency share of the first kernels, fall in %"
        if rho == 0.5:
            mean_bar(table, "kernels-share", what, drop, ">=", 20)
        else:
            told(table, f"kernels-share-{rho}", what, drop)
        told(table, f"kernels-clean-{rho}", f"rho {rho}: clean points lost", cost)
    smooth = [defend.kernel_smoothing(net, 0.5) for net in plain]
    gain = [
        left(b, x, y, 0.05, 1) - left(a, x, y, 0.05, 1) for a, b in zip(plain, smooth, strict=True)
    ]
    mean_bar(table, "kernels-fgsm", "rho 0.5: FGSM points gained, eps 0.05", gain, ">=", -2)
    for name, nets in {"plain": plain, "smooth": smooth}.items():
        what = f"{name}: PGD-40 %, eps 0.1"
        told(table, f"kernels-pgd-{name}", what, [left(net, x, y) for net in nets])
    pgd = [left(net, x, y, 0.2) for net in smooth]
    mean_bar(table, "kernels-pgd", "rho 0.5: PGD-40 %, eps 0.2 (no defence)", pgd, "<=", 5)
    for row, what, of in (
        ("sign", "the layer", layer_share), ("sign-each", "the mean of its kernels", share)
    ):  # fmt: skip
        a, b = [of(net) for net in plain], [of(net) for net in strong]
        told(table, f"kernels-{row}-standard", f"high-frequency share of {what}, standard", a)
        told(table, f"kernels-{row}-hardened", f"high-frequency share of {what}, PGD-trained", b)
        lower = float(sum(q <= p for p, q in zip(a, b, strict=True)))
        what = f"seeds in which PGD training has the lower share of {what}"
        table.bar(f"kernels-{row}", what, lower, ">=", 3)


def infodrop(how: Setting, table: Section) -> None:
    """R8: trained with the drop for 5 epochs, and 2 without."""
    x, y = images(how.samples)
    unit = defend.infodrop(nn.Sequential(begun(lambda: nn.Conv2d(1, 8, 3, padding=1), 0)))
    assert isinstance(unit[0], InfoDrop)
    half = torch.full((1, 1, 28, 28), 0.5)
    half[..., 14:] = torch.rand(28, 14, generator=torch.Generator().manual_seed(0))
    layer = unit[0]

    def drawn() -> Any:
        return torch.stack([layer.drop_rates(half, (28, 28)) for _ in range(20)])

    rates = begun(drawn, 0).mean((0, 1, 2))
    gap = float(rates[:, :12].mean() - rates[:, 16:].mean())
    table.bar("infodrop-keep", "rate of keeping, textured half less flat half", gap, ">=", 0.2)
    plain = [standard(s) for s in SEEDS]
    made = []
    for s in SEEDS:
        net = trained("infodrop", defend.infodrop(begun(thin, s)), defend.plain(), 5, s)
        bare = defend.plain_again(net).requires_grad_(True)
        made.append(trained("infodrop-after", bare, defend.plain(), 2, s))

    def onto(net: nn.Module) -> float:
        return float(edge_alignment(foible.explain.saliency()(net, x, y), x).nanmean())

    a, b = [onto(net) for net in plain], [onto(net) for net in made]
    told(table, "infodrop-edges-plain", "saliency mass on edge pixels, plain", a)
    told(table, "infodrop-edges", "saliency mass on edge pixels, InfoDrop", b)
    rises = float(sum(q > p for p, q in zip(a, b, strict=True)))
    table.bar("infodrop-rises", "seeds in which the mass on edges rises", rises, ">=", 2)
    for eps in (0.03, 0.05):
        gain = [
            left(q, x, y, eps, 1) - left(p, x, y, eps, 1) for p, q in zip(plain, made, strict=True)
        ]
        what = f"FGSM points gained over plain, eps {eps}"
        mean_bar(table, f"infodrop-fgsm-{eps}", what, gain, ">=", -2)
    cost = [right(p, x, y) - right(q, x, y) for p, q in zip(plain, made, strict=True)]
    told(table, "infodrop-clean", "clean points lost", cost)
    pgd = [left(net, x, y) for net in plain]
    told(table, "infodrop-pgd-plain", "plain: PGD-40 %, eps 0.1", pgd)
    pgd = [left(net, x, y) for net in made]
    mean_bar(table, "infodrop-pgd", "PGD-40 %, eps 0.1 (no defence)", pgd, "<=", 5)


def denoising(how: Setting, table: Section) -> None:
    """N4: one non-local block after the second ReLU."""
    x, y = images(how.samples)
    first = x[:2]
    fresh = defend.denoising_blocks(load("standard"), x[:1], ["1", "3"]).eval()
    with torch.no_grad():
        apart = float((fresh(x) - load("standard")(x)).abs().max())
    table.bar("blocks-identity", "largest change of a logit by fresh blocks", apart, "<=", 1e-6)
    plain, clean, robust, noise = [], [], [], []
    for s in SEEDS:
        start = defend.denoising_blocks(begun(thin, s), first, ["3"], seed=s)
        net, twin = trained("blocks", start, defend.adversarial(PGD7), 6, s), hardened(s)
        clean.append(right(net, x, y) - right(twin, x, y))
        robust.append(left(net, x, y) - left(twin, x, y))
        x_adv = foible.attacks.pgd(foible.Linf(EPS))(net, x, y).x
        before = feature_noise(net, x, x_adv, "3.layer").change
        noise.append(float((feature_noise(net, x, x_adv, "3").change / before).nanmean()))
        if s == 0:
            alone = trained("blocks-plain", start, defend.plain(), 6, s)
            plain.append(left(alone, x, y))
    mean_bar(table, "blocks-pgd", "PGD-40 points over the twin without blocks", robust, ">=", -1)
    mean_bar(table, "blocks-clean", "clean points over the twin without blocks", clean, ">=", -1)
    what = "feature noise after the block over before it, PGD-trained"
    mean_bar(table, "blocks-noise", what, noise, "<=", 1)
    table.bar("blocks-alone", "trained on clean images: PGD-40 %", plain[0], "<=", 5)


def advprop(how: Setting, table: Section) -> None:
    """R5: one step of PGD at eps 0.03; `norm_cnn`, 10,000 images, 4 epochs."""
    x, y = images(how.samples)
    attack = foible.attacks.pgd(foible.Linf(0.03), 1, step=0.03)
    losses = {
        "vanilla": defend.plain(),
        "shared": defend.adversarial(attack, clean=0.5),
        "advprop": defend.advprop(attack),
    }
    noise = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = (x + noise).clamp(0, 1)
    clean: dict[str, list[float]] = {}
    for name, loss in losses.items():
        nets = [trained(f"norm-{name}", begun(norm_cnn, s), loss, 4, s, 10_000) for s in SEEDS]
        clean[name] = [right(net, x, y) for net in nets]
        told(table, f"advprop-clean-{name}", f"{name}: clean %", clean[name])
        what = f"{name}: clean %, Gaussian noise of 0.1"
        told(table, f"advprop-noise-{name}", what, [right(net, noisy, y) for net in nets])
        what = f"{name}: PGD-40 %, eps 0.03, seed 0"
        table.add(f"advprop-pgd-{name}", what, left(nets[0], x, y, 0.03), "none", "reported")
    for other, limit in (("shared", 0.5), ("vanilla", -0.3)):
        gain = [a - b for a, b in zip(clean["advprop"], clean[other], strict=True)]
        what = f"AdvProp less {other}, clean points"
        mean_bar(table, f"advprop-over-{other}", what, gain, ">=", limit)
    split = both_sets(losses["advprop"])
    norms = [m for m in split.modules() if isinstance(m, defend.nets.TwinNorm)]
    means = [(m.main.running_mean, m.auxiliary.running_mean) for m in norms]
    far = [float((a - b).norm() / a.norm()) for a, b in means]
    what = "running means, auxiliary from main (relative L2), "
    each = ", ".join(f"{f:.3g}" for f in far)
    table.bar("advprop-means", f"{what}largest of the layers {each}", max(far), ">=", 0.05)
    table.bar("advprop-means-least", f"{what}least of the layers", min(far), ">=", 0.05)
    aside = right(main_norms(split, auxiliary=True), x, y)
    table.add("advprop-auxiliary", "clean % by the auxiliary norms", aside, "none", "reported")


def both_sets(loss: Any) -> nn.Module:
    """The net of seed 0 with both sets of norms, out of the checkpoint of its training."""
    state = torch.load(ROOT / "nets-norm-advprop-0" / "checkpoint.pt", weights_only=True)
    net = loss.prepare(norm_cnn())
    net.load_state_dict(state["average"])
    return net.eval()


def softplus(how: Setting, table: Section) -> None:
    """Nets trained with softplus from the start, beside their ReLU twins. Maps are bent on the net
    that is attacked: a ReLU net is searched by its twin of sharpness 30, a softplus net by itself.
    """
    x, y = images(how.samples)
    some = x[:30]

    def bent(net: nn.Module, beta: float | None) -> float:
        """How far the map of 30 images goes to that of the next: the rise of the cosine."""
        labels = net(some).argmax(1)
        saliency = foible.explain.saliency()
        order = saliency(net, some, labels).roll(1, 0)
        attack = foible.attacks.bend(foible.Linf(EPS), saliency, 100, beta)
        found = attack(net, some, labels, order)
        return float((found.similarity - found.before).mean())

    plain = [standard(s) for s in SEEDS]
    sharp = [bent(net, 30.0) for net in plain]
    told(table, "softplus-bend-relu", "ReLU: rise of the cosine with the order", sharp)
    for beta in (2.0, 10.0):
        nets = []
        for s in SEEDS:
            soft = defend.softplus(begun(thin, s), beta)
            nets.append(trained(f"softplus-{beta:g}", soft, defend.plain(), 6, s))
        cost = [right(a, x, y) - right(b, x, y) for a, b in zip(plain, nets, strict=True)]
        told(table, f"softplus-clean-{beta:g}", f"beta {beta:g}: clean points lost", cost)
        what = f"beta {beta:g}: rise of the cosine with the order, ReLU less softplus"
        less = [a - bent(net, None) for a, net in zip(sharp, nets, strict=True)]
        mean_bar(table, f"softplus-bend-{beta:g}", what, less, ">=", 0)
        what = f"beta {beta:g}: PGD-40 %, eps 0.1 (no defence of the prediction)"
        pgd = [left(net, x, y) for net in nets]
        mean_bar(table, f"softplus-pgd-{beta:g}", what, pgd, "<=", 10)


def noise(how: Setting, table: Section) -> None:
    """S12: the logits of the standard model, PGD-40 beside noise."""
    x, y = images(how.samples)
    net = load("standard")
    draw = torch.Generator().manual_seed(0)
    flat, normal = torch.rand(x.shape, generator=draw), torch.randn(x.shape, generator=draw)
    for eps in (0.05, 0.1):
        x_adv = foible.attacks.pgd(foible.Linf(eps))(net, x, y).x
        size = (x_adv - x).flatten(1).norm(dim=1) / normal.flatten(1).norm(dim=1)
        others = {
            "linf": x + eps * (2 * flat - 1),
            "l2": x + size.view(-1, 1, 1, 1) * normal,
            "corner": x + eps * (2 * flat - 1).sign(),
        }
        names = {
            "linf": "uniform noise of the same eps",
            "l2": "normal noise of the same L2 norm",
            "corner": "random signs of the same eps, the largest there is",
        }
        for layer, title in (("7", "last layer"), ("1", "first layer")):
            moved = feature_noise(net, x, x_adv, layer).change.mean()
            for kind, z in others.items():
                ratio = float(moved / feature_noise(net, x, z.clamp(0, 1), layer).change.mean())
                what = f"eps {eps}, {title}: shift by PGD over that by {names[kind]}"
                row = f"noise-{kind}-{eps}-{'last' if layer == '7' else 'first'}"
                if layer == "7" and kind != "corner":
                    table.bar(row, what, ratio, ">=", 3)
                else:
                    table.add(row, what, ratio, "none", "reported")


def texture(how: Setting, table: Section) -> None:
    """L2: standard beside PGD-trained, three seeds."""
    x, y = images(how.samples)
    found: dict[str, list[list[float]]] = {}
    for name, nets in {
        "standard": [standard(s) for s in SEEDS],
        "hardened": [hardened(s) for s in SEEDS],
    }.items():
        rows = []
        for net in nets:
            seen = texture_or_shape(net, x, y, p=1024.0, k=4)
            maps = foible.explain.smoothgrad(samples=50)(net, x[:300], y[:300])
            edge = float(edge_alignment(maps, x[:300]).nanmean())
            halves = texture_or_shape(net, x, y, p=1024.0, k=2)
            rows.append([
                100 * seen.clean, 100 * seen.texture_lost, 100 * seen.shape_lost,
                float(gini(maps).nanmean()), edge, 100 * seen.shuffled, 100 * halves.shape_lost,
                float(edge_alignment(foible.explain.saliency()(net, x, y), x).nanmean()),
            ])  # fmt: skip
        found[name] = [list(column) for column in zip(*rows, strict=True)]
    titles = ("clean %", "clean accuracy lost under saturation p = 1024, %",
              "clean accuracy lost when 4 x 4 patches are shuffled, %",
              "Gini of SmoothGrad maps", "share of SmoothGrad maps on edges",
              "accuracy when 4 x 4 patches are shuffled, %",
              "clean accuracy lost when 2 x 2 patches are shuffled, %",
              "share of saliency maps on edges")  # fmt: skip
    names = (
        "clean",
        "saturated",
        "shuffled",
        "gini",
        "edges",
        "shuffled-raw",
        "shuffled-2",
        "saliency",
    )
    for name, columns in found.items():
        for part, title, values in zip(names, titles, columns, strict=True):
            told(table, f"texture-{part}-{name}", f"{name}: {title}", values)
    a, b = found["standard"], found["hardened"]

    def seeds(column: int, sign: int) -> float:
        pairs = zip(a[column], b[column], strict=True)
        return float(sum(sign * (q - p) >= 0 for p, q in pairs))

    what = "seeds in which PGD training loses no more under saturation"
    table.bar("texture-saturated", what, seeds(1, -1), ">=", 2)
    what = "seeds in which PGD training loses no less under shuffling"
    table.bar("texture-shuffled", what, seeds(2, 1), ">=", 2)
    gain = fmean(b[4]) - fmean(a[4])
    what = f"gain in the share on edges (Gini: {fmean(b[3]) - fmean(a[3]):+.3f})"
    table.bar("texture-edges", what, gain, ">=", 0.05)
    more = float(sum(q > p for p, q in zip(a[3], b[3], strict=True)))
    table.bar("texture-gini", "seeds in which PGD training has the higher Gini", more, ">=", 2)


def certificates(how: Setting, table: Section) -> None:
    """Interval bounds: trained on them, and checked against attacks."""
    x, y = images(how.samples)
    nets = {"plain": standard(0), "PGD-trained": hardened(0)}
    for eps in (0.05, EPS):
        loss = defend.interval(eps, kappa_end=0.5, ramp=0.5)
        nets[f"interval {eps}"] = trained(f"interval-{eps}", begun(thin, 0), loss, 12, 0)
    broken = tested = 0
    for name, net in nets.items():
        clean = right(net, x, y)
        for eps in (0.01, 0.05, EPS):
            sure = certified(net, x, y, eps)
            share, pgd = 100 * float(sure.double().mean()), left(net, x, y, eps)
            key = name.replace(" ", "-").lower()
            what = f"{name}: certified % at eps {eps} (clean {clean:.1f}, PGD-40 {pgd:.1f})"
            table.add(f"bounds-{key}-{eps}", what, share, "none", "reported")
            if bool(sure.any()):
                attack = foible.attacks.strongest(foible.Linf(eps))
                hit = attack(net, x[sure][:100], y[sure][:100], seed=0).success
                broken, tested = broken + int(hit.sum()), tested + len(hit)
    what = f"of {tested} certified points, how many `strongest` breaks"
    table.bar("bounds-broken", what, float(broken), "<=", 0)
    draw = torch.Generator().manual_seed(0)
    outside = 0.0
    for net in nets.values():
        lower, upper = bounds(net, x, EPS)
        for _ in range(20):
            at = x + EPS * (2 * torch.rand(x.shape, generator=draw) - 1).sign()
            with torch.no_grad():
                scores = net(at.clamp(0, 1))
            size = upper.abs().maximum(lower.abs()).max()
            over = torch.maximum(scores - upper, lower - scores).max() / size
            outside = max(outside, float(over))
    what = f"{20 * len(nets)} x {len(x)} corners of the ball: most that a logit leaves, relative"
    table.bar("bounds-outside", what, outside, "<=", 1e-6)


WORK: dict[str, tuple[Callable[[Setting, Section], None], str]] = {
    "kernels": (kernels, "Kernel smoothing (R10)"),
    "infodrop": (infodrop, "InfoDrop (R8)"),
    "denoising": (denoising, "Feature denoising (N4)"),
    "advprop": (advprop, "AdvProp (R5)"),
    "softplus": (softplus, "Softplus nets"),
    "noise": (noise, "Feature noise (S12)"),
    "texture": (texture, "Texture and shape (L2)"),
    "bounds": (certificates, "Interval bounds"),
}
SECTIONS = tuple(WORK)


def main() -> None:
    args = command_line(__doc__ or "", "net_defences", SECTIONS, 1)
    how = setting(args)
    head = header(
        "Defences that change a network", [],
        "Fashion-MNIST, the first 20,000 training images, batch 128, Adam 2e-3 with warm-up and "
        "cosine, averaged weights, best epoch on 1,000 held-out training images; seeds 0, 1 and 2; "
        "PGD-40 is the worst of cross-entropy and margin, eps 0.1 where none is said.",
    )  # fmt: skip
    done: list[Section] = []
    for name in args.chosen:
        work, title = WORK[name]
        print(name, flush=True)
        section = Section(name, title, BAR)
        section.note = f"{how.samples} images. {(work.__doc__ or '').strip()}"
        work(how, section)
        done.append(section)
        finish(args, head, done, SECTIONS)


if __name__ == "__main__":
    main()
