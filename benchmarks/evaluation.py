"""Scores of maps on the bundled models, and the time of a deletion curve against a plain loop.

python benchmarks/evaluation.py [--quick] [--samples 64]
"""

from __future__ import annotations

import warnings
from itertools import pairwise

import torch
from common import (
    MODELS,
    Section,
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

BAR = ("what", "measured", "bar", "verdict")
METHODS = ("saliency", "gradient_x_input", "smoothgrad", "integrated_gradients", "random_map")


def scores(samples: int, table: Section) -> None:
    """Deletion, insertion and infidelity of five methods, each beside its own map shuffled."""
    e = foible.explain
    measures = [e.deletion(), e.insertion(), e.infidelity(50)]
    for name in MODELS:
        net, (x, y) = load(name), images(samples)
        right = net(x).argmax(1) == y
        x, y = x[right], y[right]
        maps = {m: getattr(e, m)()(net, x, y) for m in METHODS}
        found = e.compare(measures, net, x, maps, y)
        for measure in measures:
            for method, score in found.scores[measure.name].items():
                mean, chance = score.mean or [0.0] * 3, score.chance or [0.0] * 3
                table.add(
                    f"{measure.name}-{method}-{name}", f"{measure.name} of {method}, {name}",
                    f"{mean[0]:.3f} ({mean[1]:.3f} to {mean[2]:.3f})", f"{chance[0]:.3f}",
                    score.better,
                )  # fmt: skip


def loop(net: nn.Module, x: Tensor, maps: Tensor, y: Tensor, steps: int) -> list[float]:
    """The curve as it is usually written: one image and one forward at a time."""
    areas = []
    with torch.no_grad():
        for image, values, label in zip(x, maps, y, strict=True):
            order = values.flatten().argsort(descending=True)
            curve = []
            for j in range(steps + 1):
                at = image.clone().flatten()
                at[order[: round(j / steps * len(order))]] = 0
                curve.append(float(net(at.view_as(image)[None]).softmax(1)[0, label]))
            areas.append(sum((a + b) / 2 for a, b in pairwise(curve)) / steps)
    return areas


def quantus(net: nn.Module, x: Tensor, maps: Tensor, y: Tensor, steps: int) -> Tensor:
    """The curve (B, steps) by Quantus, all images in one batch, without the whole input."""
    from quantus import PixelFlipping

    measure = PixelFlipping(
        features_in_step=x[0].numel() // steps, normalise=False, perturb_baseline="black",
        disable_warnings=True,
    )  # fmt: skip
    found = measure(
        net, x.numpy(), y.numpy(), a_batch=maps.numpy(), channel_first=True, batch_size=len(x)
    )
    return torch.tensor(found).double()


def bare(net: nn.Module, x: Tensor, times: int) -> None:
    with torch.no_grad():
        for _ in range(times):
            net(x)


def time(samples: int, runs: int, now: object, table: Section) -> None:
    """The same areas by all; foible's time holds the control as well, twice the work."""
    net, (x, y) = load("standard"), images(samples)
    maps = foible.explain.saliency()(net, x, y)
    measure = foible.explain.deletion(28)
    ours = measure(net, x, maps, y).values
    gap = float((ours - torch.tensor(loop(net, x, maps, y, 28)).double()).abs().max())
    table.bar("deletion-gap", "largest difference of any area", gap, "<=", 1e-5)
    curve = measure(net, x, maps, y).curve
    assert curve is not None
    gap = float((curve[:, 1:].double() - quantus(net, x, maps, y, 28)).abs().max())
    table.bar("deletion-gap-quantus", "largest difference of any point, Quantus", gap, "<=", 1e-4)
    times = alternate(
        {
            "foible": lambda: measure(net, x, maps, y),
            "loop": lambda: loop(net, x, maps, y, 28),
            "quantus": lambda: quantus(net, x, maps, y, 28),
            "floor": lambda: bare(net, x, 2 * 29),
        },
        runs, now,
    )  # fmt: skip
    what = f"{samples} images, 28 steps: loop / foible with its control "
    what += f"(rounds: {spread(times, 'loop', 'foible')})"
    table.bar("deletion-time", what, ratio(times, "loop", "foible"), ">=", 10)
    table.add("deletion-time-curve", "the same without the control, which the loop has not: twice",
              f"{2 * ratio(times, 'loop', 'foible'):.1f}", "none", "reported")  # fmt: skip
    what = "Quantus, one batch / foible with its control "
    what += f"(rounds: {spread(times, 'quantus', 'foible')})"
    table.bar("deletion-time-quantus", what, ratio(times, "quantus", "foible"), ">=", 10)
    what = "foible with its control / bare forwards of as many images, in batches: nothing can be "
    what += "faster by more"
    table.add("deletion-time-floor", what, ratio(times, "foible", "floor"), "none", "reported")


def main() -> None:
    warnings.simplefilter("ignore")
    args = command_line(__doc__ or "", "evaluation", ("scores", "time"), 3)
    how = setting(args)
    count = min(how.samples, 128)
    first = Section("scores", "Scores and chance", ("what", "mean", "shuffled", "better"))
    second = Section("time", "A deletion curve against a loop", BAR)
    scores(count, first)
    time(count, how.runs, how.now, second)
    head = header(
        "Scores of maps", ["quantus"],
        "Mean and 95 % interval over images that are classified rightly; each score beside that of "
        "the map's own values, shuffled. No ranking over several definitions.",
    )  # fmt: skip
    finish(args, head, [first, second], ("scores", "time"))


if __name__ == "__main__":
    main()
