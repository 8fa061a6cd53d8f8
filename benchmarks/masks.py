"""Masks: the smallest region that decides, and how far its price and its regularisers reach.

python benchmarks/masks.py [--quick] [--only masks] [--threads 1]
"""

from __future__ import annotations

import time

import torch
from common import Section, Setting, command_line, finish, header, images, load, setting
from torch import Tensor, nn

import foible
from foible.core.rows import Rows
from foible.explain import Explanation
from foible.explain.removal import Baseline, filling

SECTIONS = ("masks",)
BAR = ("what", "measured", "bar", "verdict")
IMAGES = 200


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


def main() -> None:
    args = command_line(__doc__ or "", "masks", SECTIONS, 5)
    how = setting(args)
    tables = {
        "masks": Section("masks", "Meaningful perturbation (B14)", BAR),
    }
    runs = {"masks": masks}
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
