"""Masks: the smallest region that decides, and how far its price and its regularisers reach.

python benchmarks/masks.py [--quick] [--only masks] [--threads 1]
"""

from __future__ import annotations

import json
import time
from importlib.resources import files

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
)
from torch import Tensor, nn

import foible
from foible.core.rows import Rows
from foible.explain import Explanation
from foible.explain.removal import Baseline, filling

SECTIONS = ("masks", "masking_model")
BAR = ("what", "measured", "bar", "verdict")
IMAGES = 200
NOTE = (
    "The bundled network (`python recipes/train_masks.py`, training images without labels), which "
    "sees neither the baseline nor the model when it is asked. The class is the predicted one. "
    "Images 201 to 400 of the sample: the terms of its loss were chosen on the first 200, its "
    "other settings on the last 200 test images of the full set. B14 is given the baseline that "
    "deletion uses. The prices of area are of small networks, trained on 600 further images."
)


def probability(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        p = torch.cat([net(part).softmax(1) for part in x.split(500)])
    return p.gather(1, y[:, None]).squeeze(1)


def shown_instead(x: Tensor, null: Baseline) -> Tensor:
    index = torch.arange(len(x))
    return filling(null, Rows(index, index, x, index)).expand_as(x)


def under_deletion(
    net: nn.Module, x: Tensor, y: Tensor, maps: Tensor, null: Baseline, order: str = "signed"
) -> float:
    score = foible.explain.deletion(56, null, order)(net, x, maps, y)
    assert score.mean is not None
    return score.mean[0]


def variation(maps: Tensor) -> Tensor:
    """The total variation of each map, for each unit of its area."""
    total = sum(maps.diff(dim=d).abs().flatten(1).sum(1) for d in (2, 3))
    return total / maps.flatten(1).sum(1).clamp_min(1e-9)


def masks(how: Setting, table: Section) -> None:
    """B14: the bars, and each setting beside the default."""
    net = load("standard")
    x, y = images(min(IMAGES, how.samples))
    n, make = len(x), foible.explain.meaningful_perturbation
    begun = time.perf_counter()
    found = make()(net, x, y)
    seconds = time.perf_counter() - begun
    left = probability(net, torch.lerp(x, shown_instead(x, "blur"), found), y)
    area = found.flatten(1).mean(1)
    what = f"{n} images, the default ({1000 * seconds / n:.0f} ms an image): "
    table.bar(
        "masks-left", f"{what}median probability under the mask", float(left.median()), "<=", 0.2
    )
    table.bar("masks-area", f"{what}median area of the mask", float(area.median()), "<=", 0.4)
    for null in ("blur", 0.0):
        ours = under_deletion(net, x, y, make(null=null)(net, x, y), null)
        others: dict[str, Explanation] = {
            "saliency": foible.explain.saliency(),
            "integrated_gradients": foible.explain.integrated_gradients(),
            "random_map": foible.explain.random_map(),
        }
        name = "black" if null == 0.0 else null
        for other, explainer in others.items():
            maps = explainer(net, x, y)
            # Whichever reading of the other map deletes better.
            orders = ("signed", "absolute")
            best = min(under_deletion(net, x, y, maps, null, order) for order in orders)
            row, what = f"masks-deletion-{name}-{other}", f"deletion AUC, {name}: masks {ours:.3f}"
            if other == "saliency":
                table.bar(row, f"{what} less {other} {best:.3f}", ours - best, "<=", 0.0)
            else:
                table.add(row, f"{what} less {other} {best:.3f}", ours - best, "order", "reported")
    again = make()(net, x[:50], y[:50])
    same = float(torch.equal(again, make()(net, x[:50], y[:50])))
    table.bar("masks-seed", "50 images twice: 1 where every bit is the same", same, ">=", 1.0)
    usual = float(variation(found).median())
    for row, given in {
        "jitter": {"jitter": 0.0},
        "smooth": {"smooth": 0.0},
        "both": {"jitter": 0.0, "smooth": 0.0},
    }.items():
        rough = float(variation(make(**given)(net, x, y)).median())
        what = f"variation for each unit of area without {row}, over that of the default"
        table.bar(f"masks-without-{row}", what, rough / usual, ">=", 1.0)
    for row, given in {
        "preserve": {"game": "preserve"},
        "steps-300": {"steps": 300},
        "cheap": {"area": 0.1},
        "dear": {"area": 1.0},
    }.items():
        maps = make(**given)(net, x, y)
        auc = under_deletion(net, x, y, maps, "blur")
        what = f"{given}: median area {float(maps.flatten(1).mean(1).median()):.3f}; deletion AUC"
        table.add(f"masks-{row}", what, auc, "none", "reported")


def masking_model(how: Setting, table: Section) -> None:
    """B15: the bundled network beside B14 on the same images, its cost, and the price of area."""
    net = load("standard")
    every = images(1000)[0]
    x = every[IMAGES : IMAGES + min(IMAGES, how.samples)]
    n, make, one = len(x), foible.explain.meaningful_perturbation, foible.explain.masking_model()
    with torch.no_grad():
        y = net(x).argmax(1)  # what it was trained to explain
    begun = time.perf_counter()
    found = one(net, x, y)
    table.bar(
        "b15-speed", f"images a second, {n} at once", n / (time.perf_counter() - begun), ">=", 200
    )
    for null in ("blur", 0.0):
        name = "black" if null == 0.0 else null
        theirs = under_deletion(net, x, y, make(null=null)(net, x, y), null)
        ours = under_deletion(net, x, y, found, null)
        noise = under_deletion(net, x, y, foible.explain.random_map()(net, x, y), null)
        what = f"deletion AUC, {name}, {n} images: {ours:.3f} less B14's {theirs:.3f}"
        table.bar(f"b15-deletion-{name}", f"{what} (chance {noise:.3f})", ours - theirs, "<=", 0.05)
    contenders = {
        "B14": lambda: make()(net, x[:50], y[:50]),
        "B15": lambda: one(net, x[:50], y[:50]),
    }
    times = alternate(contenders, min(3, how.runs), how.now)
    table.bar("b15-faster", "time of B14 over B15, 50 images", ratio(times, "B14", "B15"), ">=", 50)
    left = probability(net, x * (1 - found), y)
    table.add(
        "b15-left", f"median probability where the mask is black; median area "
        f"{float(found.flatten(1).mean(1).median()):.3f}", float(left.median()), "none", "reported",
    )  # fmt: skip
    notes = files("foible.explain").joinpath("weights", "masks_standard.json")
    made = json.loads(notes.read_text(encoding="utf-8"))
    what = f"minutes of one core to train it, {made['images']} images, {made['epochs']} epochs"
    table.bar("b15-training", what, float(made["cpu_minutes"]), "<=", 6.0)
    train, some = every[2 * IMAGES :], {}
    for area in (0.5, 2.0, 8.0):
        few = foible.explain.train_masks(net, train, 6, area, width=8)
        some[area] = float(few(net, x, y).mean())
    largest = max(some[2.0] / some[0.5], some[8.0] / some[2.0])
    told = ", ".join(f"{area:g}: {mean:.3f}" for area, mean in some.items())
    what = f"mean mask by area coefficient ({told}): the largest ratio of neighbours"
    table.bar("b15-area", what, largest, "<=", 1.0)


def main() -> None:
    args = command_line(__doc__ or "", "masks", SECTIONS, 5)
    how = setting(args)
    tables = {
        "masks": Section("masks", "Meaningful perturbation (B14)", BAR),
        "masking_model": Section("masking_model", "Real-time saliency (B15)", BAR, NOTE),
    }
    runs = {"masks": masks, "masking_model": masking_model}
    for name in args.chosen:
        print(name, flush=True)
        runs[name](how, tables[name])
    intro = (
        "The bundled standard model and the first images of the bundled sample. Deletion AUC: the "
        "mean probability of the label while pixels are replaced in the order of the map; less is "
        "better. Settings were chosen on other test images of the full set."
    )
    head = header("Masks", ["numpy"], intro)
    finish(args, head, [tables[name] for name in args.chosen], SECTIONS)


if __name__ == "__main__":
    main()
