"""Every attack beyond PGD on the bundled models: what is left, how far, for how many calls.

python benchmarks/families.py --samples 100
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import MODELS, Section, command_line, finish, header, images, load, percent, setting
from torch import Tensor, nn

import foible
from foible.zoo import weak

SECTIONS = ("budget", "minimum", "queries", "weak", "bars-weak", "around")
BAR = ("what", "measured", "bar", "verdict")
a = foible.attacks
LINF, TWO, ONE, ZERO = foible.Linf(0.1), foible.L2(1.0), foible.L1(10), foible.L0(20)


def cost(result: Any) -> str:
    calls = (result.forwards.double().mean(), result.backwards.double().mean())
    return f"{calls[0]:.0f} + {calls[1]:.0f}"


def budget(x: Tensor, y: Tensor, table: Section) -> None:
    """Robust accuracy inside a ball."""
    rows: list[tuple[str, Any]] = []
    for norm, ball in (("linf", LINF), ("l2", TWO), ("l1", ONE)):
        rows += [
            (f"apgd-{norm}", a.apgd(ball, stop="success")),
            (f"apgd-margin-{norm}", a.apgd(ball, objective="margin", stop="success")),
            (f"apgd_targeted-{norm}", a.apgd_targeted(ball, targets=3)),
            (f"fab_targeted-{norm}", a.fab_targeted(ball, targets=3, stop="success")),
            (f"strongest-{norm}", a.strongest(ball)),
        ]
    rows += [("pgd-l0-20", a.pgd(ZERO, stop="success")), ("sigma_zero-l0-20", a.sigma_zero(ZERO))]
    rows += [("strongest-l0", a.strongest(ZERO)), ("spatial", a.spatial())]
    rows += [("ti_dim-linf", a.ti_dim(LINF))]
    for name, attack in rows:
        found = [attack(load(m), x, y) for m in MODELS]
        cells = [percent(r.robust_accuracy or 0.0) for r in found]
        table.add(name, name.replace("_", " "), *cells, cost(found[1]))


def minimum(x: Tensor, y: Tensor, table: Section) -> None:
    """The median smallest perturbation."""
    for norm, ball in (("linf", foible.Linf()), ("l2", foible.L2()), ("l1", foible.L1()),
                       ("l0", foible.L0())):  # fmt: skip
        makers: list[tuple[str, Callable[[Any], Any]]] = [("fmn", a.fmn)]
        if norm != "l0":
            makers += [("fab", a.fab), ("deepfool", a.deepfool)]
        if norm == "l2":
            makers += [("ddn", a.ddn), ("cw", a.cw), ("lbfgs", a.lbfgs)]
        if norm == "l1":
            makers += [("ead", a.ead)]
        if norm == "l0":
            makers += [("sigma_zero", a.sigma_zero)]
            makers += [("jsma", a.jsma)] if hasattr(a, "jsma") else []
        for name, make in makers:
            some = x[:32], y[:32]
            found = [make(ball)(load(m), *some) for m in MODELS]
            cells = []
            for r in found:
                fell = r.distance[r.attacked & r.success]
                share = r.success_rate or 0.0
                middle = f"{float(fell.median()):.4g}" if len(fell) else "not measured"
                cells.append(f"{middle}, {percent(share)} fell")
            table.add(f"{name}-{norm}", f"{name}, {norm}", *cells, cost(found[1]))


def queries(x: Tensor, y: Tensor, table: Section) -> None:
    """Black boxes at 1,000 queries: what is left, or how far."""
    x, y = x[:32], y[:32]
    for name, attack in (
        ("square-linf", a.square(LINF, 1000)), ("square-l2", a.square(TWO, 1000)),
        ("square-l1", a.square(ONE, 1000)), ("nes-linf", a.nes(LINF, 1000)),
        ("spsa-linf", a.spsa(LINF, 1000)), ("simba-l2", a.simba(TWO, 1000)),
    ):  # fmt: skip
        found = [attack(load(m), x, y) for m in MODELS]
        cells = [percent(r.robust_accuracy or 0.0) for r in found]
        table.add(name, f"{name}, 1,000 queries", *cells, cost(found[1]))
    for name, attack in (
        ("boundary-l2", a.boundary(foible.L2(), 1000)),
        ("hop_skip_jump-l2", a.hop_skip_jump(foible.L2(), 1000)),
        ("hop_skip_jump-linf", a.hop_skip_jump(foible.Linf(), 1000)),
    ):
        found = [attack(load(m), x, y) for m in MODELS]
        cells = [f"median {float(r.distance[r.attacked].median()):.4g}" for r in found]
        table.add(name, f"{name}, 1,000 queries, labels only", *cells, cost(found[1]))


@dataclass(frozen=True)
class Case:
    """A weak defence: the model, the ball it is shown at, the model and the attack advised.

    bare: what the advised figure is held against, `strongest` where there is no bare model.
    """

    net: nn.Module
    ball: Any
    seen: Any
    advised: Any
    bare: tuple[nn.Module, Any]


def cases() -> dict[str, Case]:
    """The seven published tricks (and distillation under its own name)."""
    net, wide, steps = load("standard"), foible.Linf(0.3), 40
    bpda, scaled = foible.models.bpda, a.pgd(LINF, steps, objective="dlr")
    one_bit, cut = weak.Quantised(net, 2), weak.DetachedSoftmax(net)
    patient = a.pgd(wide, steps, restarts=8, objective="margin", stop="success")
    mean = a.eot(a.pgd(LINF, 20), 20)
    step, soft = load("single_step"), load("distilled")
    through = bpda(cut, "defence", nn.LogSoftmax(1))
    plain = a.pgd(LINF, steps)
    return {
        "quantised": Case(one_bit, wide, bpda(one_bit, "defence"), patient, (net, patient)),
        "resized": Case(weak.RandomResizePad(net), LINF, None, mean, (net, plain)),
        "noisy": Case(weak.NoisyActivations(net), LINF, None, mean, (net, plain)),
        "detached": Case(cut, LINF, through, plain, (net, plain)),
        "min_max": Case(weak.MinMaxLogits(net), LINF, None, scaled, (net, scaled)),
        "temperature": Case(weak.Temperature(net), LINF, None, scaled, (net, scaled)),
        "single_step": Case(step, wide, None, a.pgd(wide, steps), (step, a.strongest(wide))),
        "distilled": Case(soft, LINF, None, scaled, (soft, a.strongest(LINF))),
    }


def right(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The accuracy on x over 20 draws of the model's own randomness, which are fresh ones."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(7)
        each = [(net(x).argmax(1) == y).double().mean() for _ in range(20)]
    return float(torch.stack(each).mean())


def alarms(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> str:
    """What an audit's masking alarm says; "" where it is silent."""
    few = [t for t in foible.audit.Plan.preset().attacks
           if t["name"] in ("random-linf", "fgsm-linf", "pgd-linf")]  # fmt: skip
    plan = foible.audit.Plan(
        eps=eps, attacks=tuple(few), curves=(), explanations=(), thesis=False
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = foible.audit.run(net, (x, y), folder, plan=plan, progress=False)
    found = next(c for c in done.cells if c["name"] == "check-masking")
    return "" if found["status"] == "ok" else str(found["detail"]["measured"])


def defences(x: Tensor, y: Tensor, table: Section, bars: Section) -> None:
    """Weak defences: PGD's figure, whether an audit flags it, the advised attack's figure."""
    for name, case in cases().items():
        # One draw a step is what PGD comes to on a random model; foible's own refuses it.
        random = name in ("resized", "noisy")
        naive = a.eot(a.bim(case.ball, 40), 1) if random else a.bim(case.ball, 40)
        if name == "single_step":
            naive = a.fgsm(case.ball)  # what such a model is trained against, and shown with
        before = right(case.net, naive(case.net, x, y).x, y)
        found = case.advised(case.net if case.seen is None else case.seen, x, y)
        after = right(case.net, found.x, y) if random else found.robust_accuracy or 0.0
        net, attack = case.bare
        bare = attack(net, x, y).robust_accuracy or 0.0
        said = alarms(case.net, x, y, case.ball.eps)
        shown = "bim on one draw a step" if random else naive.name
        what = f"{name}, eps {case.ball.eps:g}, naive {shown}, then {found_by(case)}"
        table.add(f"weak-{name}", what, percent(before), said or "no", percent(after),
                  f"{percent(bare)} by {attack.name}", cost(found))  # fmt: skip
        gap = 100 * (after - bare)
        bars.bar(f"weak-{name}-gap", f"{name}: points above the bare model's", gap, "<=", 10.0)
        bars.bar(f"weak-{name}-flag", f"{name}: flagged", float(bool(said)), ">=", 1.0)
    for model in MODELS:
        said = alarms(load(model), x, y, 0.1)
        what = f"{model}, no defence: flagged{': ' + said if said else ''}"
        bars.bar(f"weak-none-{model}", what, float(bool(said)), "<=", 0.0)


def found_by(case: Case) -> str:
    """The advised attack in words."""
    return case.advised.name + (" through BPDA" if case.seen is not None else "")


def around(x: Tensor, y: Tensor, table: Section) -> None:
    """Wrappers and transfer: the naive figure beside the informed one."""
    net = load("standard")
    four = weak.Quantised(net, 4)
    wide = foible.Linf(0.3)
    plain = a.bim(wide, 20)(four, x, y)
    seen = a.pgd(wide, 20)(foible.models.bpda(four, "defence"), x, y)
    table.add("bpda-quantised", "4 levels, eps 0.3: BIM, then PGD through BPDA",
              percent(plain.robust_accuracy or 0.0), percent(seen.robust_accuracy or 0.0),
              cost(seen))  # fmt: skip
    random, ball = weak.RandomResizePad(load("hardened")), foible.Linf(0.15)
    once, many = (a.eot(a.pgd(ball, 15), m)(random, x[:32], y[:32]) for m in (1, 20))
    table.add(
        "eot-resize-pad", "random resize and pad on hardened, eps 0.15: EOT of 1 draw, of 20",
        percent(once.robust_accuracy or 0.0), percent(many.robust_accuracy or 0.0), cost(many),
    )  # fmt: skip
    benign = x[y == 0]
    away = y != 0
    bare = a.pgd(LINF, 20)(net, x[away], y[away])
    dense = a.with_density(a.pgd(LINF, 20), benign, 500.0, 0.1)(net, x[away], y[away])
    table.add("density", "PGD, then with the density of another class's points",
              percent(bare.robust_accuracy or 0.0), percent(dense.robust_accuracy or 0.0),
              cost(dense))  # fmt: skip
    pool, _ = images(1000)
    taught = a.substitute(net, pool[-150:], rounds=6)
    moved = a.transfer(a.fgsm(LINF), taught.model)(net, x, y)
    noise = a.random_noise(LINF)(net, x, y)
    table.add("substitute", "random signs, then FGSM from a substitute of 150 seeds",
              percent(noise.robust_accuracy or 0.0), percent(moved.robust_accuracy or 0.0),
              cost(moved))  # fmt: skip
    far = a.transfer(a.ti_dim(LINF), load("hardened"))(net, x, y)
    table.add("transfer", "FGSM from the substitute, then TI-DIM from the hardened model",
              percent(moved.robust_accuracy or 0.0), percent(far.robust_accuracy or 0.0),
              cost(far))  # fmt: skip
    models = {"standard": net, "hardened": load("hardened"), "distilled": load("distilled")}
    found = a.transfer_matrix(models, x, y, LINF)
    off = [(float(found.error[i, j]), float(found.noise[i, j]))
           for i in range(3) for j in range(3) if i != j]  # fmt: skip
    table.add("matrix", "transfer matrix of three nets, mean off the diagonal: noise, FGSM (error)",
              percent(sum(n for _, n in off) / 6), percent(sum(e for e, _ in off) / 6),
              "2 + 1")  # fmt: skip
    two = (y == 6) | (y == 0)
    sides = a.both_sides(a.fgsm(foible.Linf(0.05)), net, x[two], y[two], 6)
    table.add("both-sides", "shirts hidden, T-shirts that raise an alarm, FGSM at 0.05",
              percent(sides.misses or 0.0), percent(sides.alarms or 0.0), "4 + 1")  # fmt: skip
    pair = a.two_class(Pair(net), x[two], (y[two] == 6).long(), [a.spatial(), a.pgd(LINF, 20)])
    table.add("unrestricted", "two classes at 80 % coverage: clean, worst of spatial and PGD",
              percent(pair.clean), percent(min(pair.under.values())), "")  # fmt: skip


class Pair(nn.Module):
    """T-shirt against shirt, from a ten-class net."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)[:, [0, 6]]
        return scores


def main() -> None:
    args = command_line(__doc__ or "", "families", SECTIONS, 1)
    how = setting(args)
    x, y = images(min(how.samples, 100))
    columns = ("what", *MODELS, "forwards + backwards, hardened")
    made = {
        "budget": (budget, "Budget attacks: accuracy that is left", columns),
        "minimum": (minimum, "Minimum-norm attacks: median distance, 32 images", columns),
        "queries": (queries, "Black boxes, 32 images", columns),
        "weak": (
            defences, "Weak defences: accuracy that is left",
            ("what", "naive", "flagged by an audit", "advised", "bare", "forwards + backwards"),
        ),
        "around": (
            around, "Wrappers and transfer, standard model: accuracy that is left",
            ("what", "first", "second", "forwards + backwards of the second"),
        ),
    }  # fmt: skip
    done = []
    for name in args.chosen:
        if name not in made:
            continue
        work, title, head = made[name]
        table = Section(name, title, head, f"{len(x)} images at most.")
        print(name, flush=True)
        done.append(table)
        if name == "weak":
            bars = Section("bars-weak", "Bars: weak defences", BAR)
            defences(x, y, table, bars)
            done.append(bars)
        else:
            work(x, y, table)
    head = header(
        "Attacks by family", [], "Default settings unless said, bundled images.",
    )  # fmt: skip
    finish(args, head, done, SECTIONS)


if __name__ == "__main__":
    main()
