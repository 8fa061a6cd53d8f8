"""The smallest changes at an equal number of model calls, beside Foolbox, torchattacks and ART.

    python benchmarks/minimum.py [--quick] [--only area,bars,tenfold] [--threads 1]

Area under accuracy against distance: the mean of min(distance, cap) over the images that the model
gets right. Smaller is stronger. Calls are counted by the wrapper of benchmarks/autoattack.py.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from autoattack import Counting
from common import MODELS, Section, Setting, command_line, finish, header, images, load, setting
from torch import Tensor, nn

import foible
from foible import attacks

SECTIONS = ("area", "bars", "tenfold")
BAR = ("what", "measured", "bar", "verdict")
BUDGET = 1000  # forwards and backwards an image
CAPS = {"linf": 0.5, "l2": 6.0, "l1": 60.0, "l0": 150.0}
BALLS = {"linf": foible.Linf(), "l2": foible.L2(), "l1": foible.L1(), "l0": foible.L0()}
Attack = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
Found = dict[str, tuple[Tensor, float]]


def foibles(norm: str) -> dict[str, Attack]:
    """Every minimum-norm attack of foible's in a norm, its steps stretched to the budget."""
    ball: Any = BALLS[norm]

    def made(make: Callable[[int], Any]) -> Attack:
        return lambda net, x, y, calls: make(calls)(foible.wrap(net), x, y).x

    # Ranking the classes costs 11 calls, the clean look and the verification two.
    ways: dict[str, Callable[[int], Any]] = {"fmn": lambda c: attacks.fmn(ball, (c - 14) // 2)}
    if norm == "l0":
        # Ten last steps take features out: 14 calls each.
        ways = {
            "fmn": lambda c: attacks.fmn(ball, (c - 14 - 140) // 2 + 10),
            "sigma_zero": lambda c: attacks.sigma_zero(ball, (c - 14 - 140) // 2 + 10),
        }
    else:
        ways["fab"] = lambda c: attacks.fab(ball, (c - 6) // 11)
        ways["fab_targeted"] = lambda c: attacks.fab_targeted(ball, (c - 30) // 18)
    if norm == "l2":
        ways["ddn"] = lambda c: attacks.ddn(ball, (c - 14) // 2)
    if norm in ("linf", "l2"):
        ways["cw"] = lambda c: attacks.cw(ball, (c - 24) // 18)
    if norm == "l1":
        ways["ead"] = lambda c: attacks.ead(ball, (c - 24) // 18)
    return {name: made(make) for name, make in ways.items()}


def foolboxes(norm: str) -> dict[str, Attack]:
    """Foolbox's attacks in a norm."""
    import foolbox as fb

    def made(make: Callable[[int], Any]) -> Attack:
        def call(net: nn.Module, x: Tensor, y: Tensor, calls: int) -> Tensor:
            model = fb.PyTorchModel(net, bounds=(0, 1), device=x.device)
            torch.manual_seed(0)
            wrong = fb.criteria.Misclassification(y)
            found: Tensor = make(calls)(model, x, wrong, epsilons=None)[1]
            return found

        return call

    a, half = fb.attacks, 2  # one forward and one backward a step
    fast = {"linf": a.LInfFMNAttack, "l2": a.L2FMNAttack, "l1": a.L1FMNAttack, "l0": a.L0FMNAttack}
    ways: dict[str, Callable[[int], Any]] = {"fmn": lambda c: fast[norm](steps=c // half)}
    if norm == "l2":
        ways["ddn"] = lambda c: a.DDNAttack(steps=c // half)
        ways["cw"] = lambda c: a.L2CarliniWagnerAttack(steps=c // half // 9)
        # Fewer searches from a larger weight suit a small budget better than the defaults.
        ways["cw tuned"] = lambda c: a.L2CarliniWagnerAttack(
            5, steps=c // half // 5, stepsize=0.05, initial_const=1.0
        )
        ways["deepfool"] = lambda c: a.L2DeepFoolAttack(steps=c // 11)
    if norm == "linf":
        ways["deepfool"] = lambda c: a.LinfDeepFoolAttack(steps=c // 11)
    if norm == "l1":
        ways["ead"] = lambda c: a.EADAttack(steps=c // 3 // 9, decision_rule="L1")
        ways["ead tuned"] = lambda c: a.EADAttack(
            5, steps=c // 3 // 5, initial_stepsize=0.05, initial_const=1.0, decision_rule="L1"
        )
    return {name: made(make) for name, make in ways.items()}


def torches(norm: str) -> dict[str, Attack]:
    """torchattacks' attacks in a norm."""
    import torchattacks as ta

    def made(make: Callable[[nn.Module, int], Any]) -> Attack:
        def call(net: nn.Module, x: Tensor, y: Tensor, calls: int) -> Tensor:
            torch.manual_seed(0)
            found: Tensor = make(net, calls)(x, y)
            return found

        return call

    ways: dict[str, Callable[[nn.Module, int], Any]] = {}
    if norm != "l0":
        named = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
        wide = CAPS[norm]  # it begins its random restarts in here, and keeps what is smaller
        ways["fab"] = lambda n, c: ta.FAB(n, named, wide, steps=c // 12)
        ways["fab targeted"] = lambda n, c: ta.FAB(
            n, named, wide, steps=c // 27, multi_targeted=True
        )
    if norm == "l2":
        ways["cw"] = lambda n, c: ta.CW(n, steps=c // 2)
        ways["cw, c 10"] = lambda n, c: ta.CW(n, c=10, steps=c // 2)
        ways["deepfool"] = lambda n, c: ta.DeepFool(n, steps=c // 11)
    if norm == "l1":
        ways["ead"] = lambda n, c: ta.EADL1(n, max_iterations=c // 3 // 9)
    return {name: made(make) for name, make in ways.items()}


def arts(norm: str) -> dict[str, Attack]:
    """ART's attacks in a norm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks import evasion as ev
        from art.estimators.classification import PyTorchClassifier

    logging.getLogger("art").setLevel(logging.ERROR)

    def made(make: Callable[[Any, int], Any]) -> Attack:
        def call(net: nn.Module, x: Tensor, y: Tensor, calls: int) -> Tensor:
            model = PyTorchClassifier(
                net, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=10,
                clip_values=(0.0, 1.0), device_type="cpu",
            )  # fmt: skip
            np.random.seed(0)
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = make(model, calls).generate(x.numpy(), y.numpy())
            return torch.from_numpy(np.asarray(found)).to(x.dtype)

        return call

    size: dict[str, Any] = {"batch_size": 250, "verbose": False}
    ways: dict[str, Callable[[Any, int], Any]] = {}
    if norm == "l2":
        # Its line search costs up to ten forwards a step beside the gradient.
        ways["cw"] = lambda m, c: ev.CarliniL2Method(m, max_iter=c // 100, **size)
        ways["deepfool"] = lambda m, c: ev.DeepFool(m, max_iter=c // 12, **size)
    if norm == "linf":
        ways["cw"] = lambda m, c: ev.CarliniLInfMethod(m, max_iter=c // 100, **size)
    if norm == "l1":
        ways["ead"] = lambda m, c: ev.ElasticNet(
            m, max_iter=c // 3 // 9, decision_rule="L1", **size
        )
    return {name: made(make) for name, make in ways.items()}


LIBRARIES = {"foible": foibles, "foolbox": foolboxes, "torchattacks": torches, "art": arts}


def judged(net: nn.Module, norm: str, x: Tensor, y: Tensor, found: Tensor) -> Tensor:
    """Each image's distance (B,), in float64, at most the cap; the cap where it is not fooled."""
    with torch.no_grad():
        fooled = net(found).argmax(1) != y
    change = (found.double() - x.double()).flatten(1)
    inside = (found.flatten(1).amin(1) >= -1e-6) & (found.flatten(1).amax(1) <= 1 + 1e-6)
    size = {
        "linf": lambda: change.abs().amax(1),
        "l2": lambda: change.norm(dim=1),
        "l1": lambda: change.abs().sum(1),
        "l0": lambda: (change.abs() > 1e-6).sum(1).double(),  # a rounding is no change
    }[norm]()
    return size.masked_fill(~(fooled & inside), float("inf")).clamp_max(CAPS[norm])


def raced(
    library: str, norm: str, on: tuple[nn.Module, Tensor, Tensor], calls: int
) -> dict[str, tuple[Tensor, float]]:
    """Distances and calls a sample of each attack of a library."""
    net, x, y = on
    found = {}
    for name, attack in LIBRARIES[library](norm).items():
        counted = Counting(net).eval()
        try:
            adversarial = attack(counted, x, y, calls).detach()
        except Exception as error:  # a peer that fails here is reported, and the others go on
            print(f"  {library} {name} {norm}: {type(error).__name__}: {error}", flush=True)
            continue
        spent = (counted.forwards + counted.backwards) / len(x)
        found[name] = (judged(net, norm, x, y, adversarial), spent)
        print(f"    {library} {name} {norm}: {found[name][0].mean():.5g}, {spent:.0f}", flush=True)
    return found


def right(name: str, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A model and those of the first `count` images that it gets right."""
    net = load(name).eval().requires_grad_(False)
    x, y = images(count)
    with torch.no_grad():
        which = net(x).argmax(1) == y
    return net, x[which], y[which]


def area(how: Setting, table: Section, bars: Section) -> None:
    """Every attack on both models, and the best of foible's over the best of each peer."""
    for model in MODELS:
        on = right(model, how.samples)
        for norm in CAPS:
            best: dict[str, tuple[float, str]] = {}
            for library in LIBRARIES:
                found = raced(library, norm, on, BUDGET)
                for name, (away, spent) in found.items():
                    row = f"{library}-{name}-{norm}-{model}".replace(", ", "-").replace(" ", "-")
                    mean, middle = float(away.mean()), float(away.quantile(0.5))
                    short = float((away >= CAPS[norm]).double().mean())
                    table.add(row, f"{library}, {name}", norm, model, f"{mean:.5g}",
                              f"{middle:.5g}", f"{100 * short:.1f} %", spent)  # fmt: skip
                    # An attack that spends more is no equal; a tenth more is a rounding of steps.
                    if spent <= 1.1 * BUDGET:
                        best[library] = min(best.get(library, (mean, name)), (mean, name))
            own, mine = best.pop("foible")
            least, who, theirs = min((a, lib, name) for lib, (a, name) in best.items())
            what = f"{norm}, {model}: area of {mine} / area of {who}'s {theirs}, the best peer"
            bars.bar(f"bar-area-{norm}-{model}", what, own / least, "<=", 1.0)


def tenfold(how: Setting, table: Section) -> None:
    """The best attack at the budget over the best, sample by sample, of all at ten times it."""
    for model in MODELS:
        on = right(model, min(how.samples, 150))
        for norm in ("linf", "l2"):
            once = raced("foible", norm, on, BUDGET)
            mine, name = min((float(away.mean()), name) for name, (away, _) in once.items())
            many = raced("foible", norm, on, 10 * BUDGET)
            least = torch.stack([away for away, _ in [*many.values(), *once.values()]]).amin(0)
            what = f"{norm}, {model}, {len(on[1])} images: area of {name} at {BUDGET} calls / area "
            what += f"of the best of {', '.join(many)} for each image at {10 * BUDGET}"
            table.bar(f"bar-tenfold-{norm}-{model}", what, mine / float(least.mean()), "<=", 1.01)


def main() -> None:
    args = command_line(__doc__ or "", "minimum", SECTIONS, 1)
    if args.samples == 1000:
        args.samples = 500
    how = setting(args)
    caps = ", ".join(f"{norm} {cap:g}" for norm, cap in CAPS.items())
    table = Section(
        "area", "Area under accuracy against distance",
        ("who", "norm", "model", "area", "median distance", "at the cap", "calls an image"),
        f"The first {how.samples} images, those that the model gets right; {BUDGET} forwards and "
        f"backwards an image at most; distances above the cap count as the cap ({caps}).",
    )  # fmt: skip
    bars = Section(
        "bars", "Bars: the best single attack of foible over the best of the peers", BAR,
        "Attacks that spent more than 1.1 times the budget are listed and not ranked.",
    )  # fmt: skip
    more = Section("tenfold", "Bars: what ten times the budget would find", BAR)
    head = header(
        "Smallest changes", ("foolbox", "torchattacks", "adversarial-robustness-toolbox"),
        "Default settings but for the steps, which fill the budget; `tuned` and `c` say what was "
        "changed in a peer's favour. Foolbox's Brendel-Bethge attacks were left out: they need a "
        "starting point that is misclassified, and one image at a time.",
    )  # fmt: skip
    done = []
    if {"area", "bars"} & set(args.chosen):
        area(how, table, bars)
        done += [table, bars]
        finish(args, head, done, SECTIONS)
    if "tenfold" in args.chosen:
        tenfold(how, more)
        finish(args, head, [*done, more], SECTIONS)


if __name__ == "__main__":
    main()
