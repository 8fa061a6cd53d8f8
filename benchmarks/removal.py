"""LIME, KernelSHAP, leave-one-out and LEMNA beside captum, shap, lime and a cvxpy loop.

    python benchmarks/removal.py [--quick] [--only speed,lemna,planted] [--threads 1]

Speed: 1,000 samples, 49 segments of 4 by 4 pixels, the same black baseline and the same class for
all. A peer is timed as it comes and with its best batch. Planted: models whose truth is known.
"""

from __future__ import annotations

import os
import statistics
import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Section,
    Setting,
    alternate,
    command_line,
    finish,
    header,
    images,
    load,
    ratio,
    setting,
    spread,
)
from torch import Tensor, nn

import foible
from foible import attacks, explain
from foible.core.randomness import Rng
from foible.explain.mixture import Fit, em_step, fit_mixture
from foible.explain.removal import EveryFeature

os.environ["TQDM_DISABLE"] = "1"  # lime draws a bar
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

SECTIONS = ("speed", "lemna", "planted")
BAR = ("what", "measured", "bar", "verdict")
SAMPLES, SIDE = 1000, 4
Contenders = dict[str, Callable[[], object]]


def cells(device: str = "cpu") -> Tensor:
    """The label of every pixel's segment, (1, 1, 28, 28) int64."""
    at = torch.arange(28, device=device) // SIDE
    return (at[:, None] * 7 + at)[None, None]


def captum_lime(net: nn.Module, x: Tensor, y: int, batch: int) -> Tensor:
    from captum.attr import Lime

    found: Tensor = Lime(net).attribute(
        x, target=y, feature_mask=cells(), n_samples=SAMPLES, perturbations_per_eval=batch
    )
    return found


def captum_shap(net: nn.Module, x: Tensor, y: int, batch: int) -> Tensor:
    from captum.attr import KernelShap

    found: Tensor = KernelShap(net).attribute(
        x, target=y, feature_mask=cells(), n_samples=SAMPLES, perturbations_per_eval=batch
    )
    return found


def captum_ablation(net: nn.Module, x: Tensor, y: int, batch: int) -> Tensor:
    from captum.attr import FeatureAblation

    found: Tensor = FeatureAblation(net).attribute(
        x, target=y, feature_mask=cells(), perturbations_per_eval=batch
    )
    return found


def shap_kernel(net: nn.Module, x: Tensor, y: int) -> Any:
    import shap

    label = cells().flatten().numpy()

    def values(shown: np.ndarray) -> np.ndarray:
        keep = torch.from_numpy(shown.astype(np.float32))[:, label].view(-1, 1, 28, 28)
        with torch.no_grad():
            return net(keep * x)[:, y].numpy()

    explainer = shap.KernelExplainer(values, np.zeros((1, 49)))
    return explainer.shap_values(np.ones(49), nsamples=SAMPLES, silent=True)


def lime_image(net: nn.Module, x: Tensor, y: int, batch: int) -> Any:
    from lime.lime_image import LimeImageExplainer

    def values(pictures: np.ndarray) -> np.ndarray:
        grey = torch.from_numpy(np.ascontiguousarray(pictures[..., 0])).float()[:, None]
        with torch.no_grad():
            return net(grey).numpy()

    picture = x[0, 0].numpy().astype(np.float64)
    return LimeImageExplainer(random_state=0).explain_instance(
        np.stack([picture] * 3, -1), values, labels=(y,), top_labels=None, hide_color=0,
        num_samples=SAMPLES, batch_size=batch,
        segmentation_fn=lambda _: cells()[0, 0].numpy(),
    )  # fmt: skip


def speed(how: Setting, table: Section) -> None:
    """One image at a time as peers do it, then many images at once."""
    net, (x, labels) = load("standard"), images(16)
    one, y = x[:1], int(labels[0])
    lime, shap = explain.lime(SAMPLES, SIDE), explain.kernel_shap(SAMPLES, SIDE)
    left = explain.leave_one_out(SIDE)
    contenders: Contenders = {
        "lime": lambda: lime(net, one, y),
        "captum lime": partial(captum_lime, net, one, y, 1),
        "captum lime tuned": partial(captum_lime, net, one, y, 250),
        "lime lime": partial(lime_image, net, one, y, 10),
        "lime lime tuned": partial(lime_image, net, one, y, 250),
        "shap": lambda: shap(net, one, y),
        "captum shap": partial(captum_shap, net, one, y, 1),
        "captum shap tuned": partial(captum_shap, net, one, y, 250),
        "shap shap": partial(shap_kernel, net, one, y),
        "out": lambda: left(net, one, y),
        "captum out tuned": partial(captum_ablation, net, one, y, 50),
        "many lime": lambda: lime(net, x, labels),
        "loop lime": lambda: [lime(net, x[i : i + 1], int(labels[i])) for i in range(len(x))],
        "captum lime loop": lambda: [
            captum_lime(net, x[i : i + 1], int(labels[i]), 250) for i in range(len(x))
        ],
        "captum shap loop": lambda: [
            captum_shap(net, x[i : i + 1], int(labels[i]), 250) for i in range(len(x))
        ],
        "many out": lambda: left(net, x, labels),
        "loop out": lambda: [left(net, x[i : i + 1], int(labels[i])) for i in range(len(x))],
        "floor": lambda: bare(net, one),
        "many shap": lambda: shap(net, x, labels),
        "loop shap": lambda: [shap(net, x[i : i + 1], int(labels[i])) for i in range(len(x))],
    }
    gap = float((left(net, one, y) - captum_ablation(net, one, y, 50)).abs().max())
    table.bar("out-agrees", "leave-one-out against captum, same result", gap, "<=", 1e-5)
    for call in contenders.values():
        call()
    times = alternate(contenders, how.runs, how.now)

    def against(row: str, what: str, above: str, below: str, limit: float) -> None:
        what += f" (rounds: {spread(times, above, below)})"
        table.bar(row, what, ratio(times, above, below), ">=", limit)

    against("lime-tuned", "captum LIME, 250 at once / foible", "captum lime tuned", "lime", 2.5)
    against("lime-default", "captum LIME as it comes / foible", "captum lime", "lime", 8)
    against("lime-lime-tuned", "lime, 250 at once / foible", "lime lime tuned", "lime", 2.5)
    against("lime-lime-default", "lime as it comes / foible", "lime lime", "lime", 8)
    against("shap-tuned", "captum KernelSHAP, 250 at once / foible", "captum shap tuned", "shap",
            2.5)  # fmt: skip
    against("shap-default", "captum KernelSHAP as it comes / foible", "captum shap", "shap", 8)
    against("shap-shap", "shap, one batch by itself / foible", "shap shap", "shap", 2.5)
    against("out-tuned", "captum ablation, all at once / leave-one-out", "captum out tuned", "out",
            1)  # fmt: skip
    against("lime-many", "16 images: a loop over captum's tuned LIME / all at once",
            "captum lime loop", "many lime", 2)  # fmt: skip
    against("shap-many", "16 images: a loop over captum's tuned KernelSHAP / all at once",
            "captum shap loop", "many shap", 2)  # fmt: skip
    against("out-many", "16 images: leave-one-out one by one / at once, both foible", "loop out",
            "many out", 2)  # fmt: skip
    for name in ("lime", "shap"):
        own = ratio(times, f"loop {name}", f"many {name}")
        table.add(f"{name}-own-loop", f"16 images: foible one by one / at once, {name}", own,
                  "reported", "")  # fmt: skip
        over = ratio(times, name, "floor")
        table.add(f"{name}-floor", f"foible's {name} / 1,000 bare forwards, 250 at once", over,
                  "reported", "")  # fmt: skip


def bare(net: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        for _ in range(4):
            net(x.expand(250, *x.shape[1:]).contiguous())


def cvxpy_em(x: np.ndarray, y: np.ndarray, now: Any, row: int, limit: float) -> list[np.ndarray]:
    """One step of the EM as it is usually written: a cvxpy problem a component."""
    import cvxpy

    weight, offset = now.weight[row].numpy(), now.offset[row].numpy()
    share, sigma = now.share[row].numpy(), now.sigma[row].numpy()
    left = y[:, None] - x @ weight.T - offset
    parts = share / sigma * np.exp(-0.5 * (left / sigma) ** 2)
    owned = parts / parts.sum(1, keepdims=True)
    planes = []
    for k in range(len(share)):
        b, a = cvxpy.Variable(x.shape[1]), cvxpy.Variable()
        root = np.sqrt(owned[:, k])
        loss = cvxpy.sum_squares(cvxpy.multiply(root, y - x @ b - a))
        problem = cvxpy.Problem(
            cvxpy.Minimize(loss + 1e-3 * cvxpy.sum_squares(b)), [cvxpy.tv(b) <= limit]
        )
        problem.solve()
        planes.append(np.append(b.value, a.value))
    return planes


def lemna(how: Setting, table: Section) -> None:
    """Error near a planted bend, the likelihood, deletion on real images, time against cvxpy."""
    from test_lemna import Bent, near_error

    ratios, recall = [], []
    x = torch.ones(1, 1, 6, 6).double()
    for seed in range(10 if how.quick else 40):
        model = Bent(seed)
        maps = [
            e(foible.wrap(model), x, 0, seed=seed).flatten()
            for e in (explain.lemna(600, 2, segments=1), explain.lime(600, 1))
        ]
        error = [near_error(model, w, 100 + seed) for w in maps]
        on = model.weight[0] != 0
        ratios.append(error[0] / error[1])
        recall.append([float(on[w.abs().topk(int(on.sum())).indices].double().mean())
                       for w in maps])  # fmt: skip
    what = f"RMSE near a planted bend over LIME's, median of {len(ratios)}"
    table.bar("lemna-error", f"{what} (worst {max(ratios):.2f})", statistics.median(ratios), "<=",
              0.7)  # fmt: skip
    ours, theirs = np.mean(recall, 0)
    table.bar("lemna-recall", f"features of the blocks found; LIME finds {theirs:.3f}", ours, ">=",
              theirs)  # fmt: skip
    _likelihood(how, table)
    _deduction(how, table)


def _likelihood(how: Setting, table: Section) -> None:
    rng, rows, n, size = Rng(0).at(torch.arange(4)), 4, 200, 12
    x = (rng.split(1).uniform((n, size), torch.float64) < 0.7).double()
    weight = rng.split(2).normal((3, size), torch.float64)
    y = (x @ weight.mT).amax(2) + 0.1 * rng.split(3).normal((n,), torch.float64)
    fit = Fit(3, limit=4.0)
    now = fit_mixture(x, y, Fit(3, limit=4.0, steps=1), rng)
    worst, one = torch.inf, now
    for _ in range(60):
        after = em_step(one, x, y, fit, torch.zeros(rows, dtype=torch.float64))
        worst = min(worst, float((after.likelihood - one.likelihood).min()))
        one = after
    table.bar("lemna-likelihood", "least rise of the log-likelihood in 60 steps", worst, ">=", 0)
    floor = torch.zeros(rows, dtype=torch.float64)
    planes = [cvxpy_em(x[r].numpy(), y[r].numpy(), now, r, 4.0) for r in range(rows)]
    after = em_step(now, x, y, fit, floor)
    ours = torch.cat([after.weight, after.offset[:, :, None]], 2)
    gap = float((ours - torch.from_numpy(np.array(planes))).abs().max())
    table.bar("lemna-cvxpy-gap", "one step's planes against cvxpy's", gap, "<=", 1e-3)
    times = alternate(
        {
            "cvxpy": lambda: [cvxpy_em(x[r].numpy(), y[r].numpy(), now, r, 4.0)
                              for r in range(rows)],
            "foible": lambda: em_step(now, x, y, fit, floor),
        },
        how.runs, how.now,
    )  # fmt: skip
    what = f"a step of 4 mixtures of 3: cvxpy / foible (rounds: {spread(times, 'cvxpy', 'foible')})"
    table.bar("lemna-speed", what, ratio(times, "cvxpy", "foible"), ">=", 20)


def _deduction(how: Setting, table: Section) -> None:
    """The loss of probability when the five largest of 49 segments are hidden."""
    net, (x, y) = load("standard"), images(30 if how.quick else 60)
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    label = cells().flatten()

    def lost(maps: Tensor) -> Tensor:
        worth = torch.zeros(len(x), 49).index_add_(1, label, maps.flatten(1))
        gone = torch.zeros(len(x), 49).scatter_(1, worth.topk(5, 1).indices, 1.0)[:, label]
        hidden = x * (1 - gone.view_as(x))
        with torch.no_grad():
            before, after = (net(at).softmax(1).gather(1, y[:, None]) for at in (x, hidden))
        return (before - after).squeeze(1)

    falls = {
        "lemna": lost(explain.lemna(SAMPLES, segments=SIDE)(net, x, y)),
        "lime": lost(explain.lime(SAMPLES, SIDE)(net, x, y)),
        "random": lost(explain.random_map()(net, x, y)),
    }
    mean = {name: float(fall.mean()) for name, fall in falls.items()}
    gap = falls["lemna"] - falls["lime"]
    high = float(gap.mean() + 1.96 * gap.std() / len(gap) ** 0.5)
    what = f"probability lost with 5 of 49 hidden: LEMNA {mean['lemna']:.3f}, LIME "
    what += f"{mean['lime']:.3f}, random {mean['random']:.3f}; LEMNA - LIME, upper end of 95 %"
    table.bar("lemna-deduction", what, high, ">=", 0)
    table.bar("lemna-deduction-random", "the same over random",
              mean["lemna"] / max(mean["random"], 1e-3), ">=", 2)  # fmt: skip


def planted(how: Setting, table: Section) -> None:
    """Recall of known features, agreement of seeds, error against all coalitions, erasure."""
    from test_leaving_out import all_sets
    from test_surrogate import filled, planted, planted_tree

    seeds = 10 if how.quick else 40
    for name, make in (("lime", explain.lime), ("shap", explain.kernel_shap)):
        hit = wanted = 0
        for seed in range(seeds):
            net, truth = planted(3 + seed % 8, seed) if seed % 3 else planted_tree(seed)
            found = make(600)(net, torch.ones(1, 30, dtype=torch.float64), 1)[0]
            hit += len(truth & set(found.abs().topk(len(truth)).indices.tolist()))
            wanted += len(truth)
        table.bar(f"{name}-recall", f"planted features of 30 recalled, {seeds} models",
                  hit / wanted, ">=", 0.9)  # fmt: skip
    net, (x, y) = load("standard"), images(8)
    for name, make in (("lime", explain.lime), ("shap", explain.kernel_shap)):
        overlap = []
        for samples in (100, 300, 1000):
            maps = [make(samples, SIDE)(net, x, y, seed=s) for s in range(4)]
            pairs = [explain.topk_intersection(a, b, 160) for i, a in enumerate(maps)
                     for b in maps[:i]]  # fmt: skip
            overlap.append(float(torch.stack(pairs).mean()))
        what = "top 10 of 49 segments shared by two seeds, 100, 300 and 1,000 samples: "
        what += ", ".join(f"{o:.2f}" for o in overlap) + "; the least rise"
        rise = min(b - a for a, b in pairwise(overlap))
        table.bar(f"{name}-seeds", what, rise, ">=", 0)
    _coalitions(table)
    found = best = 0.0
    for seed in range(seeds // 2):
        small = filled(nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3)), seed, 3.0)
        small, points = small.double(), Rng(seed).at(torch.arange(15)).uniform((10,), torch.float64)
        labels = small(points).argmax(1)
        result = attacks.minimal_erasure()(small, points, labels)
        least = all_sets(small, points, labels)
        found += float(result.distance[result.success].sum())
        best += float(least[result.success].sum())
    table.bar("erasure-size", "greedy erasures over the smallest that exist, 10 features",
              found / best, "<=", 1.2)  # fmt: skip


def _coalitions(table: Section) -> None:
    """KernelSHAP against Shapley values from all 2^12 coalitions."""
    net = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 2)).double()
    draw = Rng(3).at(torch.arange(1))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(draw.split(i).normal(tuple(p.shape), torch.float64)[0])
    x = Rng(4).at(torch.arange(6)).uniform((12,), torch.float64)
    exact = explain.exact_shapley(EveryFeature())(net, x, 1)
    errors = [
        float((explain.kernel_shap(samples, EveryFeature())(net, x, 1) - exact).abs().max())
        for samples in (100, 300, 1000, 3000, 4096)
    ]
    what = "largest error with 100, 300, 1,000 and 3,000 samples: "
    what += ", ".join(f"{e:.2g}" for e in errors[:-1]) + "; with all 4,096"
    table.bar("shap-exact", what, errors[-1], "<=", 1e-6)
    fall = max(b / max(a, 1e-12) for a, b in pairwise(errors))
    table.bar("shap-falls", "largest ratio of an error to that with fewer samples", fall, "<=", 1)
    values = {keep: net(x * torch.tensor(keep))[:, 1] for keep in product([0.0, 1.0], repeat=12)}
    whole, none = values[(1.0,) * 12], values[(0.0,) * 12]
    gap = float((exact.sum(1) - whole + none).abs().max())
    table.bar("shap-efficiency", "sum of the values - (F(x) - F(b))", gap, "<=", 1e-6)


def main() -> None:
    warnings.simplefilter("ignore")
    args = command_line(__doc__ or "", "removal", SECTIONS, 5)
    how, done = setting(args), []
    for name, title, make in (
        ("speed", "Speed", speed), ("lemna", "LEMNA", lemna), ("planted", "Planted truth", planted),
    ):  # fmt: skip
        if name not in args.chosen:
            continue
        print(name)
        table = Section(name, title, BAR)
        make(how, table)
        done.append(table)
    intro = "Explanations that need scores only. One round is one call of each contender in turn."
    head = header("Removal and surrogates", ["captum", "shap", "lime", "cvxpy"], intro)
    finish(args, head, done, SECTIONS)


if __name__ == "__main__":
    main()
