"""Surrogates of black boxes: attacks along local ones, masked gradients, and students of scores.

python benchmarks/surrogates.py --samples 100
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import torch
from common import Section, command_line, finish, header, images, load, percent, setting
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import foible
from foible.parts.statistics import auc
from foible.zoo import weak

SECTIONS = ("surrogate-attack", "bars-attack", "masked", "bars-masked", "mimic", "bars-mimic")
BAR = ("what", "measured", "bar", "verdict")
WIDE = (float("-inf"), float("inf"))
BUDGET, QUERIES, EPS = 4.0, 1000, 0.1
a, e = foible.attacks, foible.explain


def split(seed: int) -> tuple[np.ndarray, ...]:
    """Breast cancer, standardised by its training rows; class 1 is malignant."""
    table = load_breast_cancer()
    parts = train_test_split(
        table.data, 1 - table.target, test_size=0.4, random_state=seed, stratify=table.target
    )
    scale = StandardScaler().fit(parts[0])
    return scale.transform(parts[0]), scale.transform(parts[1]), parts[2], parts[3]


def forest(seed: int) -> tuple[Any, Tensor, Tensor]:
    """A held forest, and the malignant test rows that it detects."""
    train, test, label, truth = split(seed)
    held = foible.models.estimator(
        RandomForestClassifier(100, random_state=seed).fit(train, label), bounds=WIDE
    )
    x, y = torch.from_numpy(test).float(), torch.from_numpy(truth)
    seen = (y == 1) & (held(x).argmax(1) == 1)
    return held, x[seen], y[seen]


def middle(result: Any) -> float:
    """The median distance, those that survived counted as the largest."""
    far = result.distance.masked_fill(~result.success, math.inf)
    return float(far.sort().values[(len(far) - 1) // 2])


def on_forest(seeds: int, table: Section, bars: Section) -> None:
    flipped: dict[str, list[float]] = {}
    most, ours, theirs = 0, [], []
    for seed in range(seeds):
        held, x, y = forest(seed)
        ball = foible.L2(BUDGET)
        found: dict[str, Any] = {
            "tabular_lime": a.surrogate_attack(
                ball, e.tabular_lime(), QUERIES, objective="cross_entropy"
            ),
            "random-1": a.random_noise(ball),
        }
        if seed == 0:
            found |= {
                "tabular_lime-margin": a.surrogate_attack(ball, e.tabular_lime(), QUERIES),
                "lemna": a.surrogate_attack(
                    ball, e.lemna(components=2, noise=(1.0,) * x.shape[1]), QUERIES,
                    objective="cross_entropy",
                ),
                "nes": a.nes(ball, QUERIES, sigma=1.0, objective="cross_entropy"),
                f"random-{QUERIES}": a.random_noise(ball, QUERIES - 2),
            }  # fmt: skip
        for name, attack in found.items():
            result = attack(held, x, y, seed=seed)
            flipped.setdefault(name, []).append(result.success_rate or 0.0)
            most = max(most, int(result.forwards.max()))
            if name != "tabular_lime" or seed == 0:
                what = f"{name}, {len(x)} detected positives, seed {seed}"
                table.add(f"forest-{name}-{seed}", what, percent(result.success_rate or 0.0),
                          middle(result), int(result.forwards.max()))  # fmt: skip
        if seed == 0:
            # The L2 cost of a flip: the smallest of a few budgets, beside a minimum-norm attack.
            budgets = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0]
            cost = torch.full((len(x),), math.inf, dtype=torch.float64)
            for eps in reversed(budgets):
                attack = a.surrogate_attack(
                    foible.L2(eps), e.tabular_lime(), QUERIES, objective="cross_entropy"
                )
                result = attack(held, x, y)
                cost = torch.where(result.success, torch.minimum(cost, result.distance), cost)
            jump = a.hop_skip_jump(foible.L2(), QUERIES)(held, x, y)
            ours.append(float(cost.sort().values[(len(cost) - 1) // 2]))
            theirs.append(middle(jump))
            table.add("forest-cost", "median L2 of a flip: surrogates, best of nine budgets", "",
                      ours[0], QUERIES)  # fmt: skip
            table.add("forest-cost-jump", "median L2 of a flip: hop_skip_jump, labels only",
                      percent(jump.success_rate or 0.0), theirs[0],
                      int(jump.forwards.max()))  # fmt: skip
    mean = {name: sum(rates) / len(rates) for name, rates in flipped.items()}
    lime, once = flipped["tabular_lime"], flipped["random-1"]
    table.add("forest-mean", f"tabular_lime, mean of {seeds} seeds", percent(mean["tabular_lime"]),
              "", "")  # fmt: skip
    bars.bar("a7-flipped", "least share of positives flipped, any seed", min(lime), ">=", 0.5)
    bars.bar("a7-random", "largest share flipped by a random direction, any seed", max(once), "<=",
             0.1)  # fmt: skip
    bars.bar("a7-queries", "most queries of any sample", float(most), "<=", QUERIES)
    gain = lime[0] - flipped[f"random-{QUERIES}"][0]
    bars.bar(
        "a7-order", f"surrogate less the best of {QUERIES - 2} random points", gain, ">=", 0.01
    )
    bars.bar("a7-order-random", "those random points", flipped[f"random-{QUERIES}"][0], ">=", 0.01)
    bars.bar("a7-cost", "L2 cost over that of hop_skip_jump", ours[0] / theirs[0], "<=", 2.0)


def on_masks(count: int, table: Section, bars: Section) -> None:
    """One step of equal size along FGS, LIME and LEMNA; then the attack, and the bare net."""
    net, (x, y) = load("standard"), images(count)
    ball = foible.Linf(EPS)
    masked: dict[str, nn.Module] = {
        "quantised": weak.Quantised(net), "detached": weak.DetachedSoftmax(net),
        "minmax": weak.MinMaxLogits(net), "temperature": weak.Temperature(net, 1000.0),
    }  # fmt: skip
    lime, lemna = e.lime(300, 4), e.lemna(300, 2, segments=4, noise=0.2)
    for name, defence in masked.items():
        kept = defence(x).argmax(1) == y
        some, label = x[kept], y[kept]
        steps: dict[str, Any] = {
            "fgs": a.fgsm(ball),
            "lime": one_step(ball, lime),
            "lemna": one_step(ball, lemna),
            "random": a.random_noise(ball),
            "attack": a.surrogate_attack(ball, lemna, QUERIES, 10, 2),
            "square": a.square(ball, QUERIES),
        }
        left = {k: attack(defence, some, label).success_rate or 0.0 for k, attack in steps.items()}
        best = max(left["lime"], left["lemna"])
        table.add(f"masked-{name}", f"{name}, {len(some)} images",
                  *(percent(left[k]) for k in steps))  # fmt: skip
        points = 100 * (best - left["fgs"])
        bars.bar(f"s9-{name}", f"{name}: the better surrogate's points above FGS", points, ">=", 10)
        chance = 100 * (best - left["random"])
        bars.bar(f"s9-{name}-chance", f"{name}: its points above random signs", chance, ">=", 0.01)
    bare = a.fgsm(ball)(net, x, y).success_rate or 0.0
    table.add("masked-none", f"no defence, {len(x)} images", percent(bare), "", "", "", "", "")


def one_step(ball: foible.Linf, explainer: Any) -> Any:
    """FGS with a surrogate in the gradient's place, on the margin, which no mask saturates."""
    return a.bim(ball, 1, ball.eps, objective="margin", direction=explainer)


def students(seeds: int, table: Section, bars: Section) -> None:
    """A forest's students, of its scores and of labels, on rows that neither has seen."""
    gains: dict[str, list[float]] = {"tree": [], "linear": [], "boosted": []}
    fits: dict[str, list[float]] = {name: [] for name in gains}
    for seed in range(seeds):
        train, test, label, truth = split(seed)
        teacher = foible.models.estimator(
            RandomForestClassifier(200, min_samples_leaf=3, random_state=seed).fit(train, label),
            bounds=WIDE,
        )
        rows, fresh = (torch.from_numpy(part).float() for part in (train, test))
        wanted, sick = teacher(fresh).exp()[:, 1].double(), truth == 1
        for name in gains:
            found = [
                e.mimic(teacher, rows, None, name, soft=soft, held_out=0.1, seed=seed)
                for soft in (True, False)
            ]
            told = [m.model(fresh).exp()[:, 1].double() for m in found]
            areas = [auc(p.numpy(), sick) or 0.0 for p in (*told, wanted)]
            missed = float(((told[0] - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum())
            gains[name].append(areas[0] - areas[1])
            fits[name].append(1 - missed)
            same = float(((told[0] > 0.5) == (wanted > 0.5)).double().mean())
            right = float(((told[0] > 0.5).numpy() == sick).mean())
            table.add(f"mimic-{name}-{seed}", f"{name}, seed {seed}", 1 - missed, same, right,
                      *areas)  # fmt: skip
    for name, gain in gains.items():
        mean = sum(gain) / seeds
        what = f"{name}: mean AUC of soft less hard labels"
        if seeds == 5:
            half = 2.776 * statistics.stdev(gain) / math.sqrt(seeds)  # Student's t, four degrees
            what += f" ({mean - half:.4f} to {mean + half:.4f}, {seeds} seeds)"
        bars.bar(f"b7-soft-{name}", what, mean, ">=", 0.0)
        bars.bar(f"b7-fidelity-{name}", f"{name}: least R^2 to the teacher", min(fits[name]), ">=",
                 0.8)  # fmt: skip


def main() -> None:
    args = command_line(__doc__ or "", "surrogates", SECTIONS, 1)
    how = setting(args)
    seeds, count, done = 1 if how.quick else 5, min(how.samples, 100), []
    made = {
        "surrogate-attack": (
            on_forest, seeds, "A forest of 100 trees on breast cancer",
            ("what", "flipped", "median L2", "most queries"),
            f"Standardised features, L2 {BUDGET:g}, {QUERIES} queries. A median L2 of inf: less "
            "than half were flipped. random-1 is one direction a sample.",
        ),
        "masked": (
            on_masks, count, f"Masked gradients, Linf {EPS:g}: flipped",
            ("what", "FGS", "LIME, one step", "LEMNA, one step", "random signs",
             "surrogate attack", "square"),
            f"The standard model behind defences that hide its gradient. One step costs 300 "
            f"queries, the last two columns at most {QUERIES}.",
        ),
        "mimic": (
            students, seeds, "Students of a forest",
            ("what", "R^2 to the teacher", "same label", "accuracy", "AUC, soft labels",
             "AUC, teacher's hard labels", "teacher's AUC"),
            "Breast cancer, 341 rows to teach teacher and student, 228 that neither has seen. Hard "
            "labels are the teacher's; of its own training rows nearly all are true.",
        ),
    }  # fmt: skip
    for name, (work, size, title, columns, note) in made.items():
        if name not in args.chosen:
            continue
        print(name, flush=True)
        table = Section(name, title, columns, note)
        bars = Section(f"bars-{name.split('-')[-1]}", f"Bars: {name}", BAR)
        work(size, table, bars)
        done += [table, bars]
    head = header(
        "Surrogates", ["scikit-learn"],
        "Models that are fitted to another one's scores: around one input, to attack it, or on a "
        "whole table, to read it.",
    )  # fmt: skip
    finish(args, head, done, SECTIONS)


if __name__ == "__main__":
    main()
