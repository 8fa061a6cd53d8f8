"""HopSkipJump and boundary beside ART and Foolbox, Square beside torchattacks.

    python benchmarks/black_box.py [--quick] [--only labels,scores] [--queries 5000] [--threads 2]

The two bundled models, images that they classify rightly, 100 of them unless --samples says
otherwise. Labels: the median distance after as many queries, and the time to the peer's distance.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from common import (
    EPS,
    MODELS,
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
from foible import attacks
from foible.attacks import Attack

SECTIONS = ("labels", "bars", "scores")
PACKAGES = ("foolbox", "torchattacks", "adversarial-robustness-toolbox")
BAR = ("what", "measured", "bar", "verdict")
FASTER = {"labels": 5.0, "scores": 1.5}
# Queries of foible's at which its distance is first held against the peer's.
LADDER = (0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.0)
CASES = (("hop_skip_jump", "l2"), ("hop_skip_jump", "linf"), ("boundary", "l2"))


class Counted(nn.Module):
    """The net as a service that counts what it is asked."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.asked = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        scores: Tensor = self.net(x.float())  # ART sends float64 now and then
        return scores


def iterations(queries: int) -> int:
    """How many HopSkipJump iterations cost about `queries`, a bisection of 22 in each."""
    spent, count = 110.0, 0
    while spent < queries - 50:
        spent += 100 * math.sqrt(count + 1) + 22
        count += 1
    return max(1, count)


def art(net: Counted, kind: str, norm: str, queries: int, x: Tensor, y: Tensor) -> Tensor:
    """ART as it comes, but for the number of iterations: one image at a time inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.evasion import BoundaryAttack, HopSkipJump
        from art.estimators.classification import PyTorchClassifier

    logging.getLogger("art").setLevel(logging.ERROR)
    model = PyTorchClassifier(
        net, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=10,
        clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    np.random.seed(0)
    if kind == "boundary":
        attack = BoundaryAttack(model, targeted=False, max_iter=queries // 29, verbose=False)
    else:
        power = 2 if norm == "l2" else np.inf
        attack = HopSkipJump(model, norm=power, max_iter=iterations(queries), verbose=False)
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy())).to(x.dtype)


def foolbox(net: Counted, kind: str, norm: str, queries: int, x: Tensor, y: Tensor) -> Tensor:
    """Foolbox, batched; starts cost it nothing, and a failed one is an image of another class."""
    import foolbox as fb

    model = fb.PyTorchModel(net, bounds=(0, 1), device=x.device)
    torch.manual_seed(0)
    np.random.seed(0)
    wrong = fb.criteria.Misclassification(y)
    start = fb.attacks.LinearSearchBlendedUniformNoiseAttack(steps=50).run(model, x, wrong)
    with torch.no_grad():
        failed = (net(start).argmax(1) == y).nonzero().squeeze(1)
    for row in failed.tolist():
        start[row] = x[(y != y[row]).nonzero()[0, 0]]
    net.asked = 0
    if kind == "boundary":
        attack = fb.attacks.BoundaryAttack(steps=round(queries / 1.1))
    else:
        attack = fb.attacks.HopSkipJumpAttack(steps=iterations(queries), constraint=norm)
    found: Tensor = attack.run(model, x, wrong, starting_points=start)
    return found


def ours(kind: str, norm: str, queries: int) -> Attack:
    threat = foible.L2() if norm == "l2" else foible.Linf()
    make: Callable[..., Attack] = getattr(attacks, kind)
    return make(threat, queries=queries)


def distances(net: nn.Module, norm: str, x: Tensor, y: Tensor, found: Tensor) -> Tensor:
    """The distance of every image, judged here; infinite where it is not fooled."""
    with torch.no_grad():
        fooled = net(found).argmax(1) != y
    change = (found - x).double().flatten(1)
    size = change.norm(dim=1) if norm == "l2" else change.abs().amax(1)
    inside = (found.flatten(1).amin(1) >= -1e-6) & (found.flatten(1).amax(1) <= 1 + 1e-6)
    return size.masked_fill(~(fooled & inside), float("inf"))


def middle(values: Tensor) -> float:
    return float(values.quantile(0.5, interpolation="higher"))


def right(name: str, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A model and the first `count` images that it classifies rightly."""
    net = load(name).eval().requires_grad_(False)
    x, y = images(1000)
    with torch.no_grad():
        which = (net(x).argmax(1) == y).nonzero().squeeze(1)[:count]
    return net, x[which], y[which]


def labels(name: str, how: Setting, queries: int, tables: tuple[Section, Section]) -> None:
    """HopSkipJump and boundary on one model; fill the rows of both tables."""
    table, bars = tables
    net, x, y = right(name, how.samples)
    peers = {"art": art, "foolbox": foolbox}
    for kind, norm in CASES:
        row, kept = f"{kind}-{norm}-{name}", {}
        counted = {key: Counted(net).eval() for key in peers}
        model = foible.wrap(net)

        def run(attack: Attack, key: str, kept=kept, model=model, x=x, y=y) -> None:
            kept[key] = attack(model, x, y).x

        def theirs(key: str, kind=kind, norm=norm, kept=kept, counted=counted, x=x, y=y) -> None:
            counted[key].asked = 0
            kept[key] = peers[key](counted[key], kind, norm, queries, x, y)

        contenders: dict[str, Callable[[], object]] = {
            "foible": partial(run, ours(kind, norm, queries), "foible"),
            **{key: partial(theirs, key) for key in peers},
        }
        times = alternate(contenders, how.runs, how.now)
        found = {key: distances(net, norm, x, y, value) for key, value in kept.items()}
        asked = {"foible": float(queries), **{k: c.asked / len(x) for k, c in counted.items()}}
        for key, away in found.items():
            table.add(
                f"{row}-{key}", f"{key}, {kind}, {norm}", middle(away),
                f"{int(away.isinf().sum())} of {len(x)}", asked[key],
                sum(times[key]) / len(times[key]) / len(x),
            )  # fmt: skip
        for key in peers:
            what = f"{kind}, {norm}: median distance / {key}'s at {queries} queries"
            share = middle(found["foible"]) / middle(found[key])
            bars.bar(f"bar-distance-{key}-{row}", what, share, "<=", 1.0)
        won = ratio(times, "art", "foible")
        what = f"{kind}, {norm}: throughput / ART's at {queries} queries each"
        bars.add(f"bar-queries-{row}", what, won, "none", "reported")
        need, won, rounds = reach(ours_at(kind, norm, model, x, y), (net, x, y, norm), how,
                                  (middle(found["art"]), queries, contenders["art"]))  # fmt: skip
        what = f"{kind}, {norm}: throughput / ART's at its median distance, with {need} queries"
        bars.bar(f"bar-speed-{row}", f"{what} (rounds: {rounds})", won, ">=", FASTER["labels"])


def ours_at(kind: str, norm: str, model: object, x: Tensor, y: Tensor) -> Callable[[int], Tensor]:
    return lambda queries: ours(kind, norm, queries)(model, x, y).x


def reach(
    attack: Callable[[int], Tensor],
    data: tuple[nn.Module, Tensor, Tensor, str],
    how: Setting,
    peer: tuple[float, int, Callable[[], object]],
) -> tuple[int, float, str]:
    """The fewest queries of the ladder that come as close as the peer, and the times' ratio."""
    net, x, y, norm = data
    goal, queries, theirs = peer

    def close(count: int) -> bool:
        return middle(distances(net, norm, x, y, attack(count))) <= goal

    rungs = [round(share * queries) for share in LADDER]
    at = next((i for i, count in enumerate(rungs) if close(count)), None)
    if at is None:
        return queries, 0.0, "its distance was not reached"
    need, short = rungs[at], rungs[max(0, at - 1)]
    for _ in range(2 if need > short else 0):
        between = round(math.sqrt(short * need))
        need, short = (between, short) if close(between) else (need, between)
    times = alternate({"art": theirs, "foible": lambda: attack(need)}, how.runs, how.now)
    return need, ratio(times, "art", "foible"), spread(times, "art", "foible")


def scores(name: str, how: Setting, queries: int, table: Section) -> None:
    """Square of foible beside that of torchattacks: what is left, and the time."""
    import torchattacks

    net, x, y = right(name, how.samples)
    model = foible.wrap(net)
    for norm, threat, eps in (("linf", foible.Linf(EPS), EPS), ("l2", foible.L2(1.0), 1.0)):
        kept: dict[str, Tensor] = {}

        def run(key: str, call: Callable[[], Tensor], kept=kept) -> None:
            kept[key] = call()

        theirs = torchattacks.Square(
            net, norm="Linf" if norm == "linf" else "L2", eps=eps, n_queries=queries, seed=0
        )
        mine = attacks.square(threat, queries)
        times = alternate(
            {
                "foible": partial(run, "foible", lambda mine=mine: mine(model, x, y).x),
                "torchattacks": partial(run, "torchattacks", lambda t=theirs: t(x, y)),
            },
            how.runs,
            how.now,
        )
        left = {}
        for key, value in kept.items():
            away = distances(net, norm, x, y, value)
            left[key] = 100 * float((away > eps * (1 + 1e-4)).double().mean())
        what = f"square, {norm}, eps {eps:g}, {queries} queries: points left above torchattacks' "
        what += f"{left['torchattacks']:.1f} %"
        gap = left["foible"] - left["torchattacks"]
        table.bar(f"bar-square-{norm}-{name}", what, gap, "<=", 1.0)
        what = f"square, {norm}: time of torchattacks / time of foible "
        what += f"(rounds: {spread(times, 'torchattacks', 'foible')})"
        won = ratio(times, "torchattacks", "foible")
        table.bar(f"bar-square-time-{norm}-{name}", what, won, ">=", FASTER["scores"])


def main() -> None:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--queries", type=int, default=None)
    mine, rest = first.parse_known_args()
    asked, sys.argv[1:] = list(sys.argv[1:]), rest
    args = command_line(__doc__, "black_box", SECTIONS, runs=1)
    sys.argv[1:] = asked
    queries = mine.queries or (1000 if args.quick else 5000)
    if not any(a.startswith("--samples") for a in rest):
        args.samples = 20 if args.quick else 100
    how = setting(args)
    table = Section(
        "labels",
        "Labels only",
        ("who", "median distance", "not fooled", "queries an image", "seconds an image"),
        f"{how.samples} images that each model classifies rightly; about {queries} queries each. "
        "The clean look and the verification count as queries of foible's. A start that fails "
        "leaves an image unfooled at an infinite distance; Foolbox's starts are not counted, and "
        "where its own fail it is given another image.",
    )
    bars = Section(
        "bars",
        "Bars of labels only",
        BAR,
        "Throughput at equal distance: the fewest queries, to a tenth, at which foible's median is "
        "at most ART's; both are then timed in turn. Medians count an image that is not fooled as "
        "infinitely far.",
    )
    box = Section(
        "scores",
        "Square",
        BAR,
        f"{how.samples} images that each model classifies rightly, {queries} queries at most.",
    )
    for name in MODELS:
        if {"labels", "bars"} & set(args.chosen):
            print(f"labels, {name} model", flush=True)
            labels(name, how, queries, (table, bars))
        if "scores" in args.chosen:
            print(f"scores, {name} model", flush=True)
            scores(name, how, queries, box)
    head = header(
        "Black boxes",
        PACKAGES,
        "Attacks that see labels or scores only, beside their peers at equal queries. Verdicts are "
        "ratios of interleaved runs; the seconds hold for the machine below only.",
    )
    finish(args, head, [s for s in (table, bars, box) if s.rows], SECTIONS)


if __name__ == "__main__":
    main()
