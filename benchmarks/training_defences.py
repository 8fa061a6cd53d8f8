"""Training defences: as published, then broken; features, rationales, denoising, rounds.

python benchmarks/training_defences.py [--quick] [--only ensemble] [--mnist FOLDER]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from common import Section, Setting, command_line, finish, header, images, setting
from torch import Tensor, nn
from training_nets import (
    Data,
    clean,
    fgsm,
    fresh,
    gradients,
    left,
    mnist,
    moved,
    pgd,
    size,
    train,
    train_images,
)

import foible
from foible import attacks, defend
from foible.defend import Settings
from foible.parts.threats import L2, Linf
from foible.zoo.networks import mlp, norm_cnn

SECTIONS = ("ensemble", "penalty", "distillation", "features", "rationales", "denoiser", "rounds")
BAR = ("what", "measured", "bar", "verdict")


# ---------------------------------------------------------------- R3


def ensemble(how: Setting, table: Section, folder: Path | None) -> None:
    """R3: less error than FGSM training on what a held-out net crafts; then PGD."""
    data, test = train_images(10_000), images(how.samples)
    others = [train(fresh(101), data, defend.plain(), 4)]
    others.append(train(fresh(102, mlp), data, defend.plain(), 4))
    held_out = train(fresh(103, norm_cnn), data, defend.plain(), 4)
    fewer, stronger, through = [], [], []
    for seed in (0, 1, 2):
        one = train(fresh(seed), data, defend.adversarial(fgsm(0.3), clean=0.5), 4, seed)
        many = train(fresh(seed), data, defend.ensemble_training(fgsm(0.3), others), 4, seed)
        carried = moved(held_out, fgsm(0.3), test)
        fewer.append(clean(many, carried) - clean(one, carried))
        stronger.append(left(one, fgsm(0.3), test) - left(one, attacks.r_fgsm(Linf(0.3)), test))
        through.append(left(many, pgd(0.3), test))
        shown = [clean(n, d) for n in (one, many) for d in (test, carried)]
        told = "FGSM training: clean {:.1f}, held-out {:.1f}; ensemble: {:.1f}, {:.1f}"
        own = left(many, fgsm(0.3), test)
        table.add(f"r3-seed-{seed}", told.format(*shown), own, "its own FGSM", "reported")
    what = "eps 0.3: points less error on FGSM of a held-out net, mean of 3 seeds"
    table.bar("r3-held-out", what, sum(fewer) / 3, ">=", 2)
    what = "the same, how many of the 3 seeds gain 2 points"
    table.bar("r3-seeds", what, float(sum(f >= 2 for f in fewer)), ">=", 2)
    what = "R+FGSM's success less FGSM's on the net trained on FGSM, points, mean of 3 seeds"
    table.bar("r3-r-fgsm", what, sum(stronger) / 3, ">=", 10)
    table.bar("r3-broken", "white-box PGD-40, accuracy %, mean of 3", sum(through) / 3, "<=", 10)


# ---------------------------------------------------------------- R6


def penalty(how: Setting, table: Section, folder: Path | None) -> None:
    """R6: FGSM and PGD at 0.1 leave more, at little clean cost; at 0.3 PGD leaves nothing."""
    sets = {"": (train_images(20_000), images(how.samples), {"label": 0.1, "all": 0.01})}
    if folder is not None:
        digits = mnist(folder, "train", 20_000), mnist(folder, "t10k", how.samples)
        sets["mnist-"] = (*digits, {"label": 1.0})
    for name, (data, test, weights) in sets.items():
        base = train(fresh(), data, defend.plain(), 10)
        for of, weight in weights.items():
            net = train(fresh(), data, defend.gradient_penalty(weight, of), 10)
            row, what = f"r6-{name}{of}", f"weight {weight}, of {of}"
            gain = left(net, fgsm(0.1), test) - left(base, fgsm(0.1), test)
            fall = size(base, moved(base, pgd(0.1), test)) / size(net, moved(net, pgd(0.1), test))
            ahead = left(net, pgd(0.1), test) - left(base, pgd(0.1), test)
            lost = clean(base, test) - clean(net, test)
            told = f"{what}: FGSM at 0.1, points over plain ({left(base, fgsm(0.1), test):.1f})"
            table.bar(f"{row}-fgsm", told, gain, ">=", 10)
            told = f"{what}: how often smaller the gradient is on adversarials"
            table.bar(f"{row}-gradient", told, fall, ">=", 3)
            told = f"{what}: PGD-40 at 0.1, points over plain ({left(base, pgd(0.1), test):.1f})"
            table.bar(f"{row}-pgd", told, ahead, ">=", 10)
            told = f"{what}: clean points lost (plain {clean(base, test):.1f})"
            table.bar(f"{row}-clean", told, lost, "<=", 1)
            broken = left(net, pgd(0.3), test)
            table.bar(f"{row}-broken", f"{what}: PGD-40 at 0.3, accuracy %", broken, "<=", 10)


# ---------------------------------------------------------------- R7


def distillation(how: Setting, table: Section, folder: Path | None) -> None:
    """R7: FGSM leaves nearly all, its gradient being zero; C&W and the margin leave nothing."""
    sets = {"": (train_images(30_000), images(how.samples))}
    if folder is not None:
        sets["mnist-"] = (mnist(folder, "train", 30_000), mnist(folder, "t10k", how.samples))
    for name, (data, test) in sets.items():
        row = f"r7-{name}"
        base = train(fresh(), data, defend.plain(), 4)
        settings = Settings(hold_out=0.0, average=0.99, lr=0.02)
        net = defend.distillation(fresh(), data, 100.0, 8, settings=settings)
        whole, own = clean(net, test), left(net, fgsm(0.1), test)
        told = f"clean {whole:.1f}, plain {left(base, fgsm(0.1), test):.1f}"
        what = f"own FGSM at 0.1, accuracy % ({told})"
        table.bar(f"{row}fgsm", what, own, ">=", 90)
        table.bar(
            f"{row}share", "the same, as % of the clean accuracy", 100 * own / whole, ">=", 90
        )
        none = (gradients(net, test).flatten(1).abs().amax(1) == 0).float().mean()
        what = "samples whose cross-entropy has a gradient of exactly 0, %"
        table.add(f"{row}zero", what, 100 * float(none), "none", "reported")
        known = defend.breaker("distillation")
        found = known(net, *test, Linf(0.1))
        assert found.naive.robust_accuracy is not None
        assert found.adaptive.robust_accuracy is not None
        naive, adaptive = (100 * f.robust_accuracy for f in (found.naive, found.adaptive))
        bare = left(base, known.attack(Linf(0.1)), test)
        told = f"cross-entropy {naive:.1f}, margin {adaptive:.1f}, plain net {bare:.1f}"
        what = f"PGD-40 at 0.1 on the margin: points over the plain net (accuracy % {told})"
        table.bar(f"{row}broken", what, adaptive - bare, "<=", 10)
        some = test[0][:200], test[1][:200]
        far = attacks.cw(L2())(net, *some)
        near = attacks.cw(L2())(base, *some)
        lengths = [float(r.distance[r.attacked & r.success].median()) for r in (far, near)]
        assert far.success_rate is not None
        what = "C&W-L2 success %, 200 images (median distance {:.2f}, plain net {:.2f})"
        table.bar(f"{row}cw", what.format(*lengths), 100 * far.success_rate, ">=", 95)
        carried = clean(net, moved(base, fgsm(0.3), test))
        table.bar(f"{row}transfer", "FGSM at 0.3 of the plain net, accuracy %", carried, "<=", 45)
        table.bar(f"{row}alarm", "1 where the masking alarm fires", alarm(net, test), ">=", 1)


def alarm(net: nn.Module, test: Data) -> float:
    """What the audit's masking check reads: Square breaks what PGD left, or planted ones stay."""
    first = attacks.pgd(Linf(0.1), 40)(net, *test)
    standing = (~first.success).nonzero().squeeze(1)[:100]
    broke = attacks.square(Linf(0.1), 200)(net, test[0][standing], test[1][standing])
    share = float((broke.success & broke.attacked).double().mean())
    return float(share * float((~first.success).double().mean()) > 0.01)


# ---------------------------------------------------------------- R9


def features(how: Setting, table: Section, folder: Path | None) -> None:
    """R9: plain training on robust features; wrong labels teach real features."""
    count, test = 3_000, images(how.samples)
    data = train_images(count)
    robust, standard = foible.zoo.load("hardened"), foible.zoo.load("standard")
    made = defend.robust_features(robust, *data, steps=300, step=0.15)
    nets = {"originals": train(fresh(2), data, defend.plain(), 20)}
    nets["robust features"] = train(fresh(2), made, defend.plain(), 20)
    for eps in (0.5, 1.0):
        judge = attacks.pgd(L2(eps), 40, stop="success")
        kept = {name: left(net, judge, test) for name, net in nets.items()}
        kept["the bundled hardened net itself"] = left(robust, judge, test)
        told = ", ".join(f"{name} {value:.1f}" for name, value in kept.items())
        more = kept["robust features"] - kept["originals"]
        what = f"PGD-L2 at {eps}, accuracy %: {told}; points more by robust features"
        if eps == 0.5:
            table.bar("r9-gain", what, more, ">=", 10)
            often = kept["robust features"] / kept["originals"]
            table.bar("r9-times", "the same as a ratio", often, ">=", 3)
        else:
            table.add("r9-gain-1", what, more, "none", "reported")
    told = f"originals {clean(nets['originals'], test):.1f}"
    table.bar("r9-clean", f"clean accuracy %, trained on robust features ({told})",
              clean(nets["robust features"], test), ">=", 60)  # fmt: skip
    attack = attacks.pgd(L2(1.5), 30)
    for labels in ("random", "next"):
        made = defend.non_robust_features(standard, *data, attack, labels)
        net = train(fresh(3), made, defend.plain(), 20)
        if labels == "random":
            table.bar("r9-rand", "clean accuracy %, adversarials (L2 1.5) labelled at random",
                      clean(net, test), ">=", 20)  # fmt: skip
            control = train(fresh(3), (data[0], made[1]), defend.plain(), 20)
            table.bar("r9-control", "the same labels on unchanged images", clean(control, test),
                      "<=", 12)  # fmt: skip
        else:
            table.add("r9-det", "clean accuracy %, adversarials labelled y + 1",
                      clean(net, test), "none", "reported")  # fmt: skip


# ---------------------------------------------------------------- R11


def decoyed(data: Data, shade_of: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Put a 4 x 4 swatch, whose shade tells `shade_of`, into a corner; give the rationale too."""
    x, y = data[0].clone(), data[1]
    corner = torch.randint(4, (len(x),), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(x)
    for i, at in enumerate(corner.tolist()):
        rows, columns = (slice(0, 4) if side else slice(24, 28) for side in (at % 2, at // 2))
        x[i, 0, rows, columns] = (255 - 25 * float(shade_of[i])) / 255
        mask[i, 0, rows, columns] = 0
    return x, y, mask


def apart(net: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> float:
    """The mean symmetric divergence of where |gradient| lies and where the rationale does."""
    maps = foible.explain.saliency()(net, x, y).abs()
    p, q = (m.flatten(1) + 1e-6 * m.flatten(1).sum(1, keepdim=True) for m in (maps, mask))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return float(((p - q) * (p / q).log()).sum(1).mean())


def rationales(how: Setting, table: Section, folder: Path | None) -> None:
    """R11: told where not to look, a net unlearns a shortcut."""
    data, test = train_images(10_000), images(how.samples)
    drawn = torch.Generator().manual_seed(7)
    chance = [torch.randint(10, (len(d[1]),), generator=drawn) for d in (data, test)]
    x, y, mask = decoyed(data, data[1], 1)
    honest = decoyed(data, chance[0], 1)[:2]
    shown = decoyed(test, chance[1], 2)
    judged, given = shown[:2], decoyed(test, test[1], 2)[:2]
    best = clean(train(fresh(), honest, defend.plain(), 8), judged)
    blind = train(fresh(), (x, y), defend.plain(), 8)
    lost = best - clean(blind, judged)
    what = f"decoy: points that plain training loses (of {best:.1f}, shades at random throughout)"
    table.bar("r11-damage", what, lost, ">=", 25)
    far = apart(blind, *shown)
    for name, (loss, epochs) in RATIONALES.items():
        net = train(fresh(), (x, y, mask), loss, epochs)
        undone = 100 * (clean(net, judged) - clean(blind, judged)) / lost
        table.bar(f"r11-{name}", f"by {name}: % of the damage undone", undone, ">=", 70)
        told = f"plain {clean(blind, given):.1f}"
        what = f"by {name}: points below the best on shades that tell ({told})"
        table.bar(f"r11-{name}-clean", what, best - clean(net, given), "<=", 2)
        nearer = 100 * (1 - apart(net, *shown) / far)
        what = f"by {name}: % by which maps came nearer to the rationale (plain {far:.2f})"
        table.bar(f"r11-{name}-maps", what, nearer, ">=", 20)
    few = mask.clone()
    few[500:] = float("nan")
    net = train(fresh(), (x, y, few), *RATIONALES["gradient"])
    undone = 100 * (clean(net, judged) - clean(blind, judged)) / lost
    table.add("r11-few", "by gradient, 500 of 10,000 with a rationale: % undone", undone, "none",
              "reported")  # fmt: skip


RATIONALES = {
    "gradient": (defend.rationales(0.05), 8),
    "omission": (defend.rationales(0.5, spread=0.0, patch=7), 8),
}


# ---------------------------------------------------------------- N2


def denoiser(how: Setting, table: Section, folder: Path | None) -> None:
    """N2: what was made on the bare net is cleaned; what is made through the denoiser is not."""
    data, test = train_images(8_000), images(how.samples)
    net = foible.zoo.load("standard")
    oblivious = moved(net, attacks.pgd(Linf(0.1), 20), test)
    kinds = (fgsm(0.15), attacks.pgd(Linf(0.15), 5))
    found = {}
    for to in ("logits", "pixels"):
        loss = defend.guided_denoiser(net, kinds, to)
        found[to] = train(defend.UNet(), data, loss, 4, batch=32)
    bare = clean(net, oblivious)
    table.bar("n2-bare", "PGD-20 at 0.1 on the bare net, its accuracy %", bare, "<=", 10)
    stopped = {to: clean(one, oblivious) for to, one in found.items()}
    table.bar("n2-oblivious", "the same images denoised, guided by logits", stopped["logits"],
              ">=", 70)  # fmt: skip
    what = f"points over the twin that is trained on pixels ({stopped['pixels']:.1f})"
    table.bar("n2-pixels", what, stopped["logits"] - stopped["pixels"], ">=", 5)
    lost = clean(net, test) - clean(found["logits"], test)
    table.bar("n2-clean", f"clean points lost (bare {clean(net, test):.1f}, pixels "
              f"{clean(found['pixels'], test):.1f})", lost, "<=", 2)  # fmt: skip
    through = left(found["logits"], attacks.pgd(Linf(0.1), 20, stop="success"), test)
    table.bar("n2-broken", "PGD-20 at 0.1 through the denoiser, accuracy %", through, "<=", 15)


# ---------------------------------------------------------------- S11


def rounds(how: Setting, table: Section, folder: Path | None) -> None:
    """S11: five rounds on samples crafted along four interpretations; source x attack."""
    (x, y), (a, b) = train_images(2_000), images(min(400, how.samples))
    explain, threat = foible.explain, Linf(0.1)
    sources = {
        "fgs": attacks.fgsm(threat),
        "smoothgrad": attacks.fgsm(threat, explain.smoothgrad(8, 0.1)),
        "ig": attacks.fgsm(threat, explain.integrated_gradients(8)),
        "lime": attacks.fgsm(threat, explain.lime(49)),
    }
    net = train(fresh(), train_images(20_000), defend.plain(), 6)
    found = defend.rounds(net, (x, y), sources, (a, b), 5, 2)
    for i, name in enumerate(found.trained):
        parts = zip(found.attacks, found.matrix[i].tolist(), strict=True)
        told = ", ".join(f"{attack} {100 * value:.1f}" for attack, value in parts)
        own = "all" if name == "all" else f"overfit to its own {100 * float(found.overfit[i]):.1f}"
        through = left(found.nets[name], pgd(0.1), (a, b))
        what = f"trained on {name}, 5 rounds: accuracy % under {told} ({own}); under PGD-40"
        table.add(f"s11-{name}", what, through, "none", "reported")
    before = ", ".join(f"{100 * value:.1f}" for value in found.accuracy[0, 0].tolist())
    off = [100 * float(found.gain[i, j]) for i in range(4) for j in range(1, 5) if j != i + 1]
    what = f"points gained against other attacks than the own, mean of 12 (before {before})"
    table.bar("s11-gain", what, sum(off) / 12, ">=", 5)
    table.add("s11-least", "the least of the 12", min(off), "none", "reported")
    whole = 100 * found.gain[4, 1:]
    table.bar("s11-all", "points gained by all sources together, the least of 4",
              float(whole.min()), ">=", 5)  # fmt: skip


RUNS = {
    "ensemble": ("Ensemble training (R3)", ensemble),
    "penalty": ("Input-gradient penalty (R6)", penalty),
    "distillation": ("Defensive distillation (R7)", distillation),
    "features": ("Data sets of robust features (R9)", features),
    "rationales": ("Rationales on a decoy (R11)", rationales),
    "denoiser": ("Guided denoiser (N2)", denoiser),
    "rounds": ("Rounds of samples crafted from interpretations (S11)", rounds),
}


def main() -> None:
    folder = None
    if "--mnist" in sys.argv:
        at = sys.argv.index("--mnist")
        folder = Path(sys.argv.pop(at + 1))
        sys.argv.pop(at)
    args = command_line(__doc__ or "", "training_defences", SECTIONS, 1)
    how, tables = setting(args), []
    for name in args.chosen:
        print(name, flush=True)
        title, run = RUNS[name]
        table, begun = Section(name, title, BAR), time.process_time()
        run(how, table, folder)
        table.note = (
            f"{(run.__doc__ or '').strip()} CPU minutes: {(time.process_time() - begun) / 60:.1f}."
        )
        tables.append(table)
    intro = (
        "`small_cnn(width=16)` on the first 2,000 to 30,000 training images of Fashion-MNIST, some "
        "epochs; the catalogue's nets and trainings are larger. Judged on the bundled test images. "
        "Accuracies and points in percent, inputs in [0, 1], Linf unless said otherwise. With "
        "`--mnist FOLDER` (the four files, unpacked) R6 and R7 are measured there too."
    )
    head = header("Training defences", [], intro)
    finish(args, head, tables, SECTIONS)


if __name__ == "__main__":
    main()
