"""Defences in front of a model, what breaks each, and the certificate of randomized smoothing.

    python benchmarks/input_defences.py --only resize,squeeze,smoothing,coverage --threads 1
    python benchmarks/input_defences.py --only digits --threads 1 --mnist FOLDER

Nets are trained by `foible.defend.train` on the first 20,000 training images (of MNIST on 59,000)
and kept in benchmarks/hardened/. Figures are taken on the bundled sample of Fashion-MNIST's test
set, or, with --mnist, on MNIST: a folder with its four official files, unpacked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Section, Setting, command_line, finish, header, images, load, setting
from torch import Tensor, nn

import foible
from foible import attacks, defend
from foible.attacks import Attack, Result, eot, pgd
from foible.models import bpda, wrap
from foible.parts.statistics import binomial_lower
from foible.zoo.networks import norm_cnn, small_cnn

SECTIONS = ("resize", "squeeze", "fronts", "digits", "smoothing", "coverage")
BAR = ("what", "measured", "bar", "verdict")
ROOT = Path(__file__).resolve().parent / "hardened"
IMAGES, EPS, SIGMA = 20_000, 0.1, 0.25
DRAWS = 20  # fresh ones, over which the accuracy of a random model is taken


def begun(make: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net: nn.Module = make()
        return net


def trained(name: str, net: Any, loss: Any, epochs: int, data: Any = None) -> nn.Module:
    """Train once, or read what was trained."""
    if data is None:
        data = tuple(t[:IMAGES] for t in foible.zoo.fashion_mnist("train"))
    return defend.train(net, data, loss, epochs, out=ROOT / f"inputs-{name}")


def right(model: Any, x: Tensor, y: Tensor, draws: int = 1) -> float:
    """Accuracy in %, over fresh draws of the model's own randomness."""
    held, hits = foible.models.as_model(model), []
    with held.session(77), torch.no_grad():
        for _ in range(draws):
            scores = torch.cat([held.scores(part) for part in x.split(held.chunk(x))])
            hits.append((scores.argmax(1) == y).double().mean())
    return 100 * float(torch.stack(hits).mean())


def left(attack: Attack, model: Any, x: Tensor, y: Tensor) -> float:
    """Accuracy in % under an attack."""
    return 100 * float((~attack(model, x, y, seed=0).success).double().mean())


# ---------------------------------------------------------------- N1, and half of N6


def resize(how: Setting, table: Section) -> None:
    """A net of any size; images of 28 pixels, enlarged to 28 to 31 and laid on 31."""
    x, y = images(min(how.samples, 300))
    front = defend.randomize(begun(norm_cnn), 1.0, 31 / 28, 31)
    net = trained("agnostic-resized", front, defend.plain(), 4).net
    bare = nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), net).eval()
    model = defend.randomize(net, 1.0, 31 / 28, 31)
    clean = right(bare, x, y)
    drop = clean - right(model, x, y, DRAWS)
    table.bar("n1-clean", f"N1: clean points lost (bare {clean:.1f} %)", drop, "<=", 3)
    eps, under = 0.0, 100.0
    for eps in (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1):
        static = pgd(foible.Linf(eps), 10)(bare, x, y, seed=0).x
        under = right(bare, static, y)
        if under <= 10:
            break
    threat = foible.Linf(eps)
    before = right(model, static, y, DRAWS)
    what = f"N1: points above the bare net under its own PGD-10, eps {eps} (bare {under:.1f} %)"
    table.bar("n1-gain", what, before - under, ">=", 15)
    found = defend.breaker("randomize", steps=20)(model, x, y, threat)
    one, many = (right(model, r.x, y, DRAWS) for r in (found.naive, found.adaptive))
    table.bar("n1-eot", f"N1: % of that gain that EOT-30 takes ({before:.1f} to {many:.1f} %)",
              100 * (before - many) / (before - under), ">=", 80)  # fmt: skip
    what = f"N6: points that EOT-30 leaves less than one draw a step ({one:.1f} and {many:.1f} %)"
    if max(one, many) <= 10:
        table.add("n6-eot", what, one - many, ">= 10, or both <= 10", "met")
    else:
        table.bar("n6-eot", what, one - many, ">=", 10)
    few = x[:100], y[:100]
    for eps in (0.1, 0.15):
        attack = defend.breaker("randomize", steps=20).attack(foible.Linf(eps))
        far = right(model, attack(model, *few, seed=0).x, few[1], DRAWS)
        table.add(f"n1-eot-{eps}", f"EOT-30 % at eps {eps}, 100 images", far, "none", "reported")


# ---------------------------------------------------------------- N3, and the other half of N6


def squeeze(how: Setting, table: Section) -> None:
    """Few bits and a median before the bundled model."""
    x, y = images(how.samples)
    net = load("standard")
    threat = foible.Linf(EPS)
    bare = left(pgd(threat, 40), net, x, y)
    three = defend.squeeze(net, bits=3)
    table.add("n6-clean", "3 bits: clean %", right(three, x, y), "none", "reported")
    naive = left(pgd(threat, 40), three, x, y)
    table.bar("n6-naive", "N6: PGD-40 % through 3 bits, eps 0.1, zero gradient", naive, ">=", 60)
    seen = left(pgd(threat, 40), bpda(three, at="defence"), x, y)
    what = f"N6: BPDA-identity PGD-40 % less the bare net's ({bare:.1f} %)"
    table.bar("n6-bpda", what, seen - bare, "<=", 10)
    for name, model in {
        "bits4-median2": defend.squeeze(net, bits=4, median=2),
        "median2": defend.squeeze(net, median=2),
    }.items():
        table.add(f"n3-clean-{name}", f"{name}: clean %", right(model, x, y), "none", "reported")
        found = defend.breaker("squeeze")(model, x, y, threat)
        what = f"{name}: naive PGD-40 %, eps 0.1"
        table.add(f"n3-naive-{name}", what, robust(found.naive), "none", "reported")
        what = f"N3, {name}: adaptive success %, eps 0.1"
        table.bar(f"n3-adaptive-{name}", what, success(found.adaptive), ">=", 80)
    few = x[:200], y[:200]
    small = attacks.cw(foible.L2())(net, *few, seed=0)
    for name, model in {
        "bits4": defend.squeeze(net, bits=4), "median2": defend.squeeze(net, median=2),
        "bits4-median2": defend.squeeze(net, bits=4, median=2),
        "nonlocal": defend.squeeze(net, nonlocal_means=(13, 3, 2.0)),
    }.items():  # fmt: skip
        what = f"{name}: % right again of 200 with C&W-L2, k = 0 (bare 0; clean as purified "
        what += f"{right(model, *few):.1f})"
        table.add(f"n3-cw-{name}", what, right(model, small.x, few[1]), "none", "reported")


def robust(result: Result) -> float:
    found = result.robust_accuracy
    assert found is not None
    return 100 * found


def success(result: Result) -> float:
    found = result.success_rate
    assert found is not None
    return 100 * found


def fronts(how: Setting, table: Section) -> None:
    """The others: what is left of PGD on the bare net, and of the breaker; no bars of their own."""
    x, y = images(min(how.samples, 300))
    net = load("standard")
    threat = foible.Linf(0.05)
    bare = left(pgd(threat, 40), net, x, y)
    table.add("bare", "standard, nothing in front: PGD-40 %, eps 0.05", bare, "none", "reported")
    for name, model in {
        "jpeg-75": defend.jpeg(net, 75), "jpeg-20": defend.jpeg(net, 20),
        "total_variation-0.1": defend.total_variation(net, 0.1),
        "total_variation-0.3": defend.total_variation(net, 0.3),
    }.items():  # fmt: skip
        found = defend.breaker(model.defence)(model, x, y, threat)
        what = f"{name}: clean {right(model, x, y):.1f}, naive {robust(found.naive):.1f}; breaker %"
        bars = (robust(found.adaptive), "<=", bare + 15)
        table.bar(name, what, *bars)


# ---------------------------------------------------------------- MNIST: N5, N6


def digits(how: Setting, table: Section, folder: Path | None) -> None:
    if folder is None:
        print("digits needs --mnist FOLDER: left out")
        return
    train, test = (read(folder, part) for part in ("train", "t10k"))
    # The house net of MNIST is right on 98.5 % at least: all images but those that fit the radius.
    seen = tuple(t[:-1000] for t in train)
    net = trained("digits-all", begun(lambda: small_cnn(width=16)), defend.plain(), 6, seen)
    x, y = (t[: how.samples] for t in test)
    clean = right(net, x, y)
    unseen = tuple(t[-1000:] for t in train)
    radius = defend.fit_radius(net, *unseen, votes=50, step=0.02)
    model = defend.region_vote(net, radius, 200)
    voted = right(model, x, y)
    what = f"N5: clean points lost by 200 votes at the fitted radius {radius:g} ({clean:.1f} %)"
    table.bar("n5-clean", what, clean - voted, "<=", 1)
    few = x[:200], y[:200]
    for k in (0.0, 20.0):
        found = attacks.cw(foible.L2(), confidence=k)(net, *few, seed=0)
        alone = success(found)
        seen = 100 - right(model, found.x, few[1])
        row = f"n5-cw-{k:g}"
        if k == 0:
            table.bar(f"{row}-bare", "N5: C&W-L2, k = 0: success % on the net", alone, ">=", 95)
            table.bar(row, "N5: the same, shown to the vote: wrong %", seen, "<=", 40)
        else:
            table.bar(row, f"N5: C&W-L2, k = 20 ({alone:.0f} %), shown to the vote: wrong %", seen,
                      ">=", 80)  # fmt: skip
    threat = foible.Linf(0.3)
    fast = attacks.fgsm(threat)(net, *few, seed=0).x
    change = abs(right(model, fast, few[1]) - right(net, fast, few[1]))
    table.bar("n5-fgsm", "N5: points that FGSM at 0.3 differs by", change, "<=", 15)
    found = defend.breaker("region_vote", steps=20, draws=10)(model, *few, threat)
    table.bar("n5-breaker", f"N5: breaker success %, eps 0.3 (naive {success(found.naive):.1f})",
              success(found.adaptive), ">=", 80)  # fmt: skip
    one = defend.squeeze(net, bits=1)
    threat = foible.Linf(EPS)
    bare = left(pgd(threat, 40), net, x, y)
    table.add("n6-digits-clean", f"1 bit: clean % (bare {clean:.1f})", right(one, x, y), "none",
              "reported")  # fmt: skip
    table.bar("n6-digits-naive", "N6: PGD-40 % through 1 bit, eps 0.1",
              left(pgd(threat, 40), one, x, y), ">=", 60)  # fmt: skip
    seen = left(pgd(threat, 40), bpda(one, at="defence"), x, y)
    what = f"N6: BPDA-identity PGD-40 % less the bare net's ({bare:.1f} %)"
    table.bar("n6-digits-bpda", what, seen - bare, "<=", 10)
    both = defend.squeeze(net, bits=1, median=2)
    for row, threat in {"linf": foible.Linf(0.3), "l2": foible.L2(4.0)}.items():
        found = defend.breaker("squeeze")(both, *few, threat)
        what = f"1 bit and median 2: breaker success %, {row} {threat.eps} (naive "
        what += f"{success(found.naive):.1f})"
        table.add(f"n3-digits-{row}", what, success(found.adaptive), "none", "reported")


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Read MNIST's files: images (N, 1, 28, 28) in [0, 1] and labels (N,)."""
    x = np.frombuffer((folder / f"{part}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    y = np.frombuffer((folder / f"{part}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    pixels = torch.from_numpy(x.astype(np.float32) / 255).reshape(-1, 1, 28, 28)
    return pixels, torch.from_numpy(y.astype(np.int64))


# ---------------------------------------------------------------- the certificate


def smoothing(how: Setting, table: Section) -> None:
    """A net trained under noise, smoothed: what is certain, and what attacks find within it."""
    x, y = images(how.samples)
    net = trained("noise", begun(lambda: small_cnn(width=16)), defend.with_noise(SIGMA), 8)
    model = defend.randomized_smoothing(net, SIGMA, draws=16)
    sure = model.certify(x, n0=100, n=1000, alpha=0.001)
    table.add("abstained", "abstains %", 100 * float((sure.labels < 0).double().mean()), "none",
              "reported")  # fmt: skip
    for radius in (0.0, 0.25, 0.5):
        what = f"certainly right within an L2 radius of {radius} %, n = 1,000"
        table.add(f"certified-{radius}", what, 100 * sure.accuracy(y, radius), "none", "reported")
    plain = defend.randomized_smoothing(load("standard"), SIGMA).certify(x[:200], n=500)
    what = "the same at 0.25 of the standard model, which was not trained under noise, 200 images"
    table.add("certified-untrained", what, 100 * plain.accuracy(y[:200], 0.25), "none", "reported")
    some = sure.radii > 0
    x, labels, radii = x[some], sure.labels[some], sure.radii[some].to(x.dtype)
    n = len(x)
    for times in (1.0, 2.0, 4.0):
        # Salman et al. 2019: PGD on the loss of the mean probability. Every certified image, also
        # one whose label is wrong: the certificate is of the label that it gives.
        attack = eot(pgd(foible.L2(0.999 * times * radii), 20), 1)
        x_adv = attack(model, x, labels, seed=1).x
        if times == 1.0:
            far = float(((x_adv - x).flatten(1).norm(dim=1) / radii).median())
        moved = model.predict(x_adv, 1000, seed=9)
        broken = int(((moved != labels) & (moved >= 0)).sum())
        if times == 1.0:
            what = (
                f"certificates violated of {n}, PGD-20 through 16 draws (median length {far:.2f})"
            )
            table.bar("violations-pgd", what, broken, "<=", 0)
        else:
            what = f"moved by the same attack at {times:g} radii, of {n}"
            table.add(f"moved-{times:g}", what, broken, "none", "reported")
    for name, attack in {
        "apgd": attacks.apgd(foible.L2(0.999 * radii), 40, objective="margin"),
        "strongest": attacks.strongest(foible.L2(0.999 * radii), budget=200),
    }.items():
        # On the net itself, whose every input within the radius is a candidate.
        x_adv = attack(net, x, labels, seed=1).x
        moved = model.predict(x_adv, 1000, seed=9)
        broken = int(((moved != labels) & (moved >= 0)).sum())
        what = f"certificates violated of {n}, {name} on the net that is smoothed"
        table.bar(f"violations-{name}", what, broken, "<=", 0)


def coverage(how: Setting, table: Section) -> None:
    """The interval by simulation, and the radius on a plane, where the truth is known."""
    trials = 100_000
    for n, p, alpha in ((1000, 0.99, 0.001), (1000, 0.7, 0.05), (100, 0.5, 0.05)):
        chance = torch.full((trials,), p, dtype=torch.float64)
        draw = torch.Generator().manual_seed(n)
        hits = torch.binomial(torch.full_like(chance, n), chance, generator=draw).long()
        over = float((binomial_lower(hits, n, alpha) > p).double().mean())
        what = f"bounds above the truth, of {trials:,}, over alpha {alpha:g}: n = {n}, p = {p}"
        slack = 4 * (alpha * (1 - alpha) / trials) ** 0.5
        table.bar(f"coverage-{n}-{p}", what, over / alpha, "<=", 1 + slack / alpha)
    weight = torch.tensor([[0.0, 0.0], [3.0, -4.0]], dtype=torch.float64)
    net = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(weight)
    distance = 0.3
    x = torch.tensor([[3 / 5, -4 / 5]], dtype=torch.float64).repeat(2000, 1) * distance
    model = defend.randomized_smoothing(wrap(net, (-1, 1)), SIGMA)
    radii = model.certify(x, n=500, alpha=0.05).radii
    over = float((radii > distance).double().mean())
    what = "radii beyond the distance to a plane, of 2,000 runs, over alpha 0.05"
    table.bar("coverage-plane", what, over / 0.05, "<=", 1 + 4 * (0.95 / 0.05 / 2000) ** 0.5)
    what = "the mean of those radii over the distance, n = 500"
    table.add("tight-plane", what, float(radii.mean()) / distance, "none", "reported")


def main() -> None:
    before = argparse.ArgumentParser(add_help=False)
    before.add_argument("--mnist", type=Path, default=None)
    known, rest = before.parse_known_args()
    sys.argv[1:] = rest
    args = command_line(__doc__ or "", "input_defences", SECTIONS, 1)
    how = setting(args)
    notes = {
        "resize": "N1, and EOT of N6, on 300 images: `norm_cnn`, which takes any size, trained "
        "behind the random resizing; the bare net has the image in the middle. "
        "EOT has converged: of 60 images 20 and 40 steps leave the same, so that part of the gain "
        "at this eps is real.",
        "squeeze": "N3 as a purifier, and BPDA of N6.",
        "fronts": "Further changes of the input on 300 images; the bar is ours: the breaker leaves "
        "at most 15 points more than PGD on the bare net.",
        "digits": "Run with --mnist FOLDER. N5, N6 and N3 on MNIST. Few pixels of a digit lie "
        "within 0.1, or 0.3, of 1/2: what one bit protects there is real, and BPDA cannot take "
        "it; in L2 a few pixels may cross.",
        "smoothing": f"sigma {SIGMA}, alpha 0.001.",
        "coverage": "Simulated; a bar is alpha and four standard errors.",
    }
    work: dict[str, Any] = {
        "resize": resize, "squeeze": squeeze, "fronts": fronts, "smoothing": smoothing,
        "coverage": coverage, "digits": lambda h, t: digits(h, t, known.mnist),
    }  # fmt: skip
    made = []
    for name in args.chosen:
        print(name)
        table = Section(name, name.capitalize(), BAR, notes[name])
        work[name](how, table)
        if table.rows:
            made.append(table)
    intro = "Defences in front of a model, beside what breaks them, and what is certain."
    finish(args, header("Input defences and certificates", (), intro), made, SECTIONS)


if __name__ == "__main__":
    main()
