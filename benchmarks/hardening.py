"""What training against attacks gives on Fashion-MNIST, and what a step of it costs.

    python benchmarks/hardening.py --only step --threads 1
    python benchmarks/hardening.py --only madry,trades,fgsm --threads 1

Nets are trained by `foible.defend.train` on the whole training set, with the seed and settings
below; each is kept beside its checkpoint in benchmarks/hardened/ and is trained once. Figures are
taken on the first images of the bundled sample of the test set.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    Section,
    Setting,
    alternate,
    command_line,
    finish,
    header,
    images,
    ratio,
    setting,
    spread,
)
from torch import Tensor, nn

import foible
from foible.defend import Settings, adversarial, fast, plain, trades, train
from foible.zoo.networks import small_cnn

SECTIONS = ("step", "madry", "trades", "fgsm")
BAR = ("what", "measured", "bar", "verdict")
ROOT = Path(__file__).resolve().parent / "hardened"
EPS = 0.1
WIDTH = 16
COLUMNS = (
    "training", "clean %", "FGSM %", "PGD-40 %", "AutoAttack %, first 200", "strongest %",
    "minutes",
)  # fmt: skip


def trained(name: str, loss: Any, epochs: int, lr: float = 2e-3) -> tuple[nn.Module, float]:
    """Train once, or read what was trained; return the net and its minutes."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = small_cnn(width=WIDTH)
    data = foible.zoo.fashion_mnist("train")
    settings = Settings(batch=128, lr=lr, seed=0)
    made = train(net, data, loss, epochs, out=ROOT / name, settings=settings)
    with (ROOT / name / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return made, float(rows[-1]["seconds"]) / 60


def figures(net: nn.Module, eps: float, how: Setting) -> dict[str, float]:
    """Accuracies in % under attacks of growing strength; PGD is the worst of two losses."""
    x, y = images(how.samples)
    threat = foible.Linf(eps)
    clean = float((net(x).argmax(1) == y).double().mean())

    def left(*attacks: Any, first: int = 1000) -> float:
        stands = torch.ones(len(y[:first]), dtype=torch.bool)
        for attack in attacks:
            stands &= ~attack(net, x[:first], y[:first], seed=0).success
        return 100 * float(stands.double().mean())

    pgd = [
        foible.attacks.pgd(threat, 40, restarts=2, objective=o, stop="success")
        for o in ("cross_entropy", "margin")
    ]
    return {
        "clean": 100 * clean,
        "fgsm": left(foible.attacks.fgsm(threat)),
        "pgd": left(*pgd),
        "autoattack": left(foible.attacks.autoattack(threat), first=200),
        "strongest": left(foible.attacks.strongest(threat)),
    }


def told(table: Section, row: str, what: str, net: nn.Module, at: tuple[float, float, Setting]):
    eps, minutes, how = at
    got = figures(net, eps, how)
    table.add(row, what, *got.values(), minutes)
    return got


def madry(how: Setting, table: Section, bars: Section) -> None:
    """R1: PGD training, and the net that was never hardened."""
    threat = foible.Linf(EPS)
    base, spent = trained("plain", plain(), 5)
    got = told(table, "plain", "plain, 5 epochs", base, (EPS, spent, how))
    bars.bar("plain-pgd", "plain: PGD-40 %, eps 0.1", got["pgd"], "<=", 5)
    attack = foible.attacks.pgd(threat, 10, step=0.02)
    net, spent = trained("pgd10", adversarial(attack), 8)
    got = told(table, "pgd10", "PGD-10 (R1), 8 epochs", net, (EPS, spent, how))
    bars.bar("pgd10-clean", "R1: clean %", got["clean"], ">=", 82)
    bars.bar("pgd10-pgd", "R1: PGD-40 %, two restarts and losses", got["pgd"], ">=", 65)
    net, spent = trained("fast", fast(threat), 8)
    told(table, "fast", "fast (one step from a random start), 8 epochs", net, (EPS, spent, how))


def trading(how: Setting, table: Section, bars: Section) -> None:
    """R4: TRADES at two betas."""
    attack = foible.attacks.pgd(foible.Linf(EPS), 7)
    got = {}
    for beta in (1, 6):
        net, spent = trained(f"trades{beta}", trades(attack, beta), 6)
        what = f"TRADES, beta {beta}, 6 epochs"
        got[beta] = told(table, f"trades{beta}", what, net, (EPS, spent, how))
    bars.bar("trades-clean", "R4, beta 6: clean %", got[6]["clean"], ">=", 80)
    bars.bar("trades-pgd", "R4, beta 6: PGD-40 %", got[6]["pgd"], ">=", 63)
    cost = got[1]["clean"] - got[6]["clean"]
    bars.bar("trades-cost", "R4: clean points that beta 6 costs over beta 1", cost, ">=", 1)
    gain = got[6]["pgd"] - got[1]["pgd"]
    bars.bar("trades-gain", "R4: PGD-40 points that beta 6 gains over beta 1", gain, ">=", -1)


def single(how: Setting, table: Section, bars: Section) -> None:
    """R2: FGSM training, which hides its gradient at a large eps."""
    for eps in (0.1, 0.3):
        loss = adversarial(foible.attacks.fgsm(foible.Linf(eps)), clean=0.5)
        net, spent = trained(f"fgsm{eps}", loss, 5)
        what = f"FGSM, alpha 0.5, eps {eps}, 5 epochs"
        got = told(table, f"fgsm{eps}", what, net, (eps, spent, how))
        x, y = images(how.samples)
        pgd50 = foible.attacks.pgd(foible.Linf(eps), 50)(net, x, y)
        if eps == 0.1:
            base, _ = trained("plain", plain(), 5)
            before = 100 * foible.attacks.fgsm(foible.Linf(eps))(base, x, y).robust_accuracy
            gain = got["fgsm"] - before
            bars.bar("fgsm-gain", "R2: FGSM points gained at eps 0.1", gain, ">=", 40)
        else:
            left = 100 * pgd50.robust_accuracy
            bars.bar("fgsm-fgsm", "R2, eps 0.3: FGSM %", got["fgsm"], ">=", 80)
            bars.bar("fgsm-pgd", "R2, eps 0.3: PGD-50 %", left, "<=", 5)
            bars.bar("fgsm-gap", "R2, eps 0.3: FGSM less PGD-50", got["fgsm"] - left, ">=", 40)


def bare_step(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> Callable[[], object]:
    """A step of PGD training in plain torch: as many forwards and backwards, nothing else."""
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-4)

    def run() -> None:
        adv = (x + (torch.rand_like(x) * 2 - 1) * EPS).clamp(0, 1)
        net.requires_grad_(False)
        for _ in range(steps):
            adv.requires_grad_(True)
            (g,) = torch.autograd.grad(F.cross_entropy(net(adv), y, reduction="sum"), adv)
            adv = adv.detach() + 0.02 * g.sign()
            adv = torch.minimum(torch.maximum(adv, x - EPS), x + EPS).clamp(0, 1)
        net.requires_grad_(True)
        optimiser.zero_grad()
        F.cross_entropy(net(adv), y).backward()
        optimiser.step()

    return run


def step(how: Setting, table: Section, bars: Section) -> None:
    """The time of a step of PGD-10 training over that of a bare loop."""
    from foible.defend.training.feeding import Fed
    from foible.defend.training.running import Training

    for width, size in ((32, 128), (32, 256)):
        x, y = images(size)
        loss = adversarial(foible.attacks.pgd(foible.Linf(EPS), 10, step=0.02))
        settings = Settings(batch=size, hold_out=0)
        run = Training(small_cnn(width=width), (x, y), loss, 1000, None, None, settings)
        fed = Fed(x, y, torch.arange(size), ())
        contenders: dict[str, Callable[[], object]] = {
            "foible": lambda run=run, fed=fed: run._batch(fed, 0),
            "bare": bare_step(small_cnn(width=width), x, y, 10),
        }
        times = alternate(contenders, max(how.runs, 9), how.now)
        what = f"PGD-10 training, batch {size}: time of a step over a bare one (rounds: "
        what += f"{spread(times, 'foible', 'bare')})"
        bars.bar(f"step-{size}", what, ratio(times, "foible", "bare"), "<=", 1.10)


WORK: dict[str, tuple[Callable[[Setting, Section, Section], None], str]] = {
    "step": (step, "A step of training over a bare loop"),
    "madry": (madry, "PGD training (R1), eps 0.1"),
    "trades": (trading, "TRADES (R4), eps 0.1"),
    "fgsm": (single, "FGSM training (R2)"),
}


def main() -> None:
    args = command_line(__doc__ or "", "hardening", SECTIONS, 9)
    how = setting(args)
    head = header(
        "Training against attacks", [],
        f"Fashion-MNIST, the bundled architecture at width {WIDTH}, batch 128, Adam 2e-3 with "
        "warm-up and cosine, averaged weights, best epoch by robust accuracy on 1,000 held-out "
        "training images, seed 0.",
    )  # fmt: skip
    order = [part for name in SECTIONS for part in (name, f"bars-{name}")]
    done: list[Section] = []
    for name in args.chosen:
        work, title = WORK[name]
        print(name, flush=True)
        table, bars = Section(name, title, COLUMNS), Section(f"bars-{name}", f"Bars: {title}", BAR)
        work(how, table, bars)
        if table.rows:
            table.note = f"{how.samples} images."
            done.append(table)
        done.append(bars)
        finish(args, head, done, order)


if __name__ == "__main__":
    main()
