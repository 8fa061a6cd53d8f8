"""PGD-40 of foible beside Foolbox, torchattacks and ART, the limit, the curve, every recipe.

    python benchmarks/attacks.py [--quick] [--only time,curve] [--threads 2]

One process, the two bundled models, the bundled images, eps 0.1 in Linf, 40 steps of 2.5 eps / 40
from a random start, for everyone. `make bench` prepares the environment and runs it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import (
    EPS,
    MODELS,
    STEPS,
    Section,
    Setting,
    alternate,
    command_line,
    finish,
    header,
    images,
    load,
    median,
    percent,
    ratio,
    setting,
    spread,
)
from peers import peers, tune, wrapped
from strength import accuracy, claims, pgd, recipes
from torch import Tensor, nn

import foible
from foible.attacks import Result
from foible.attacks.curves import CurveResult
from foible.models import as_model

SECTIONS = ("time", "bars", "curve", "recipes", "claims")
PACKAGES = ("foolbox", "torchattacks", "adversarial-robustness-toolbox")
CALLS = (4, 8, 20, 40)
SPEED = {"standard": 8.0, "hardened": 1.3}
CURVE = {"standard": 0.75, "hardened": 0.50}
GRID = [round(0.0125 * i, 4) for i in range(1, 9)]
BAR = ("what", "measured", "bar", "verdict")


def frozen(name: str) -> nn.Module:
    return load(name).requires_grad_(False)


def bare(net: nn.Module, x: Tensor, y: Tensor, steps: int, width: int) -> None:
    """The floor: forwards and input gradients of a fixed batch, and nothing else."""
    for some, labels in zip(x.split(width), y.split(width), strict=True):
        for _ in range(steps):
            leaf = some.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(net(leaf), labels, reduction="sum"), leaf)


def forwards(net: nn.Module, x: Tensor, steps: int, width: int) -> None:
    """The floor of a verdict: forwards without a graph."""
    with torch.no_grad():
        for some in x.split(width):
            for _ in range(steps):
                net(some)


def inside(x: Tensor, adversarial: Tensor) -> bool:
    change = float((adversarial - x).abs().max())
    return change <= EPS + 1e-6 and bool(((adversarial >= 0) & (adversarial <= 1)).all())


def race(name: str, how: Setting, table: Section, bars: Section) -> None:
    """Time everyone on one model; fill the rows of both tables."""
    print(f"PGD, {name} model", flush=True)
    x, y = images(how.samples)
    net = frozen(name)
    width = as_model(net).chunk(x)
    found: dict[str, Tensor] = {}
    results: dict[str, Result] = {}

    def ours(stop: str) -> Callable[[], None]:
        model = as_model(load(name))  # as a user holds it: foible freezes it itself

        def run() -> None:
            results[stop] = pgd(stop=stop)(model, x, y)

        return run

    def theirs(key: str, call: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            found[key] = call()

        return run

    all_peers = {peer.name: peer for peer in peers(net, EPS)}
    for peer in all_peers.values():
        tune(peer, x, y, (min(width, 250), width, 1000))
    first = alternate(
        {key: theirs(key, lambda p=peer: p(x, y, 10)) for key, peer in all_peers.items()},
        1 if how.quick else 3,
        how.now,
    )
    fastest = min(first, key=lambda key: statistics.median(first[key]))
    careful = all_peers[fastest]
    trial = alternate(
        {f"{n}": theirs("trial", lambda n=n: wrapped(careful, x, y, STEPS, n)) for n in CALLS},
        1 if how.quick else 3,
        how.now,
    )
    calls = int(min(trial, key=lambda key: statistics.median(trial[key])))
    contenders: dict[str, Callable[[], object]] = {
        "success": ours("success"),
        "never": ours("never"),
        **{k: theirs(k, lambda p=p: p(x, y, STEPS)) for k, p in all_peers.items()},
        "wrapped": theirs("wrapped", lambda: wrapped(careful, x, y, STEPS, calls)),
        "floor": lambda: bare(net, x, y, STEPS, width),
        "forwards": lambda: forwards(net, x, STEPS, width),
    }
    times = alternate(contenders, how.runs, how.now)
    fastest = min(all_peers, key=lambda key: statistics.median(times[key]))

    def line(row: str, who: str, key: str, robust: float | None, work: float | None) -> None:
        score = "not applicable" if robust is None else percent(robust)
        cost = "not metered" if work is None else f"{work:.2f}"
        table.add(row, who, score, median(times[key]), ratio(times, key, "floor"), cost)

    def batches(key: str) -> str:
        return f"batches of {min(all_peers[key].batch, len(x))}"

    base = f"pgd-linf-{name}"
    for stop, row in (("success", base), ("never", f"{base}-never")):
        result = results[stop]
        cost = float((result.forwards + result.backwards).double().mean())
        line(row, f'foible, stop="{stop}"', stop, result.robust_accuracy, cost)
    for key, peer in all_peers.items():
        robust = accuracy(net, x, y, found[key])
        if not inside(x, found[key]):
            raise AssertionError(f"{key} left the ball or the box")
        line(f"{base}-{key}", f"{peer.name}, {batches(key)}", key, robust, None)
    robust = accuracy(net, x, y, found["wrapped"])
    who = f"{careful.name} in {calls} calls with a success check, {batches(careful.name)}"
    line(f"{base}-wrapped", who, "wrapped", robust, None)
    steps = f"{STEPS} x forward and input gradient"
    line(f"{base}-floor", f"bare loop: {steps}", "floor", None, 2.0 * STEPS)
    line(f"{base}-forwards", f"bare loop: {STEPS} x forward only", "forwards", None, 1.0 * STEPS)

    judge(name, bars, times, results, {k: accuracy(net, x, y, v) for k, v in found.items()})


def judge(
    name: str,
    bars: Section,
    times: dict[str, list[float]],
    results: dict[str, Result],
    robust: dict[str, float],
) -> None:
    """Hold one model's times against the bars."""
    names = ("foolbox", "torchattacks", "art")
    fastest = min(names, key=lambda key: statistics.median(times[key]))
    won = ratio(times, fastest, "success")
    what = f"{fastest} as it comes / foible (rounds: {spread(times, fastest, 'success')})"
    bars.bar(f"bar-peers-{name}", what, won, ">=", SPEED[name])
    won = ratio(times, "wrapped", "success")
    what = f"wrapped peer / foible (rounds: {spread(times, 'wrapped', 'success')})"
    if name == "hardened":
        bars.bar(f"bar-wrapped-{name}", what, won, ">=", SPEED[name])
    else:
        bars.add(f"bar-wrapped-{name}", what, won, "none", "reported")
    ours = results["success"].robust_accuracy or 0.0
    for key, label in ((fastest, "peers"), ("wrapped", "wrapped")):
        gap = 100 * abs(ours - robust[key])
        what = "points between foible's robust accuracy and "
        what += f"{fastest}'s" if label == "peers" else "the wrapped peer's"
        bars.bar(f"bar-accuracy-{label}-{name}", what, gap, "<=", 0.5)

    result = results["success"]
    n = len(result.success)
    needed = float(result.backwards.sum()) / (n * STEPS)
    share = ratio(times, "success", "floor") / needed
    what = f'stop="success" / (bare loop x {needed:.4f} of the evaluations: gradients only)'
    bars.bar(f"bar-limit-success-{name}", what, share, "<=", 1.10)
    # Beside the gradients stand forwards that no attack with a verdict can do without: of the
    # clean image, of the last point, and of what is returned, judged again independently.
    single = float((result.forwards - result.backwards).sum()) / (n * STEPS)
    each = [
        own / (needed * both + single * alone)
        for own, both, alone in zip(
            times["success"], times["floor"], times["forwards"], strict=True
        )
    ]
    what = f'stop="success" / (the same + {single:.4f} of the bare forwards: verdicts too)'
    bars.bar(f"bar-limit-verdicts-{name}", what, statistics.median(each), "<=", 1.10)
    share = ratio(times, "never", "floor")
    what = f'stop="never" / bare loop (rounds: {spread(times, "never", "floor")})'
    bars.bar(f"bar-limit-never-{name}", what, share, "<=", 1.10)


def curves(name: str, how: Setting, table: Section) -> None:
    """One run over 8 eps against 8 runs, which drop what is fooled, too."""
    print(f"curve, {name} model", flush=True)
    x, y = images(how.samples)
    model = as_model(load(name))
    kept: dict[str, object] = {}

    def whole() -> None:
        kept["curve"] = foible.attacks.curve(pgd(stop="success"), GRID)(model, x, y)

    def separate() -> None:
        kept["runs"] = [pgd(eps, "success")(model, x, y) for eps in GRID]

    times = alternate({"curve": whole, "separate": separate}, max(1, how.runs // 2), how.now)
    one, many = kept["curve"], kept["runs"]
    assert isinstance(one, CurveResult) and isinstance(many, list)
    limit = CURVE[name]
    what = f"time / time of 8 runs (rounds: {spread(times, 'curve', 'separate')})"
    table.bar(f"curve-time-{name}", what, ratio(times, "curve", "separate"), "<=", limit)
    cost = float((one.forwards + one.backwards).sum())
    alone = float(sum((r.forwards + r.backwards).sum() for r in many))
    what = "forwards + backwards / those of 8 runs"
    table.bar(f"curve-work-{name}", what, cost / alone, "<=", limit)
    runs = [r.robust_accuracy or 0.0 for r in many]
    gaps = [100 * abs(a - b) for a, b in zip(one.accuracy, runs, strict=True)]
    points = ", ".join(
        f"{100 * a:.1f} ({100 * b:.1f})" for a, b in zip(one.accuracy, runs, strict=True)
    )
    what = f"largest gap in points; accuracy (separate run) in %: {points}"
    table.bar(f"curve-gap-{name}", what, max(gaps), "<=", 1.5)


def main() -> None:
    args = command_line(__doc__, "attacks", SECTIONS, runs=7)
    how = setting(args)
    n = how.samples
    table = Section(
        "time",
        "Time and robust accuracy",
        ("who", "robust accuracy", "seconds", "x bare loop", "forwards + backwards a sample"),
        f"PGD, {STEPS} steps of 2.5 eps / {STEPS} at eps {EPS:g}, Linf, random start, {n} images. "
        f"Medians of {how.runs} interleaved runs ({args.clock} clock); the ratio is the median of "
        "the rounds' ratios. Peers get frozen parameters and their fastest batch size. What the "
        "model gets wrong without an attack counts as an error everywhere.",
    )
    bars = Section(
        "bars",
        "Bars of time",
        BAR,
        "A wrapped peer drops the same samples as foible, only in coarser gulps: on the hardened "
        "model most samples survive all steps, so that no attack with that many steps can be much "
        "faster than it.",
    )
    curve = Section(
        "curve",
        "A curve of 8 eps in one run",
        BAR,
        f"eps {GRID[0]:g} to {GRID[-1]:g}, PGD-{STEPS}, against 8 separate runs with "
        'stop="success".',
    )
    many = Section(
        "recipes",
        "Every recipe",
        ("what", *MODELS, "forwards + backwards a sample"),
        f"Accuracy under attack of {n} images ({min(n, 500)} for deletions): what is right before "
        "and after. The cost is that on the hardened model.",
    )
    said = Section("claims", "What the survey says of attacks", BAR)
    kept: dict[str, dict[str, Result]] = {}
    if {"time", "bars"} & set(args.chosen):
        for name in MODELS:
            race(name, how, table, bars)
    if "curve" in args.chosen:
        for name in MODELS:
            curves(name, how, curve)
    if "recipes" in args.chosen:
        kept = recipes(how, many)
    if "claims" in args.chosen:
        claims(how, said, kept)
    head = header(
        "Attacks",
        PACKAGES,
        "foible beside its peers, its own limit, and what each recipe leaves. Verdicts are ratios "
        "of interleaved runs; the seconds hold for the machine below only.",
    )
    sections = [s for s in (table, bars, curve, many, said) if s.rows]
    finish(args, head, sections, SECTIONS)


if __name__ == "__main__":
    main()
