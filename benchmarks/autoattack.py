"""AutoAttack and `strongest` against torchattacks' AutoAttack: robust accuracy, calls and time.

    python benchmarks/autoattack.py --only members,whole,price --threads 1 --clock cpu

Model calls are counted by a wrapper around the net that knows nothing of foible. The panel's
models are trained by recipes/train_panel.py; those that are not there are left out. With
`--clock cpu` and one thread, work beside this one hardly moves a ratio.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import (
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
from foible.zoo.networks import PANEL

SECTIONS = ("members", "whole", "price", "panel", "scaled", "twice", "floor")
BAR = ("what", "measured", "bar", "verdict")
FEW = 200  # images of the last two sections, which run AutoAttack several times
NORMS = (("Linf", foible.Linf(0.1)), ("L2", foible.L2(1.0)))
ROOT = Path(__file__).resolve().parent


@dataclass
class Ran:
    """Robust accuracy, forwards and backwards a sample, seconds, and the adversarials."""

    robust: float
    forwards: float
    backwards: float
    seconds: float
    x: Tensor = field(repr=False, default_factory=lambda: torch.empty(0))

    @property
    def calls(self) -> float:
        return self.forwards + self.backwards


class Counting(nn.Module):
    """Counts samples through every forward and backward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.forwards, self.backwards = net, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if torch.is_grad_enabled() and x.requires_grad:
            x = x.clone()
            x.register_hook(self._count)
        return self.net(x)

    def _count(self, grad: Tensor) -> None:
        self.backwards += len(grad)


def run(
    net: nn.Module, x: Tensor, y: Tensor, attack: Callable[[nn.Module], Tensor], how: Setting
) -> Ran:
    """Time and count one attack; accuracy is measured here, by a forward of our own."""
    counted = Counting(net).eval()
    start = how.now()
    x_adv = attack(counted)
    seconds = how.now() - start
    with torch.no_grad():
        good = (net(x).argmax(1) == y) & (net(x_adv).argmax(1) == y)
    n = len(x)
    return Ran(
        float(good.float().mean()), counted.forwards / n, counted.backwards / n, seconds, x_adv
    )


def theirs(name: str, norm: str, eps: float, x: Tensor, y: Tensor, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks  # outside of what is timed

    def call(net: nn.Module) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = getattr(torchattacks, name)(net, norm=norm, eps=eps, seed=0, **more)
            return made(x, y)

    return call


def ours(attack: Any, x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda net: attack(foible.wrap(net), x, y).x


# Each member with the steps that torchattacks takes by default (10), and ours as published (100).
PAIRS: dict[str, tuple[Callable[[Any, int], Any], str, dict[str, Any]]] = {
    "apgd-ce": (lambda t, k: foible.attacks.apgd(t, k, stop="success"), "APGD", {"loss": "ce"}),
    "apgd-dlr": (
        lambda t, k: foible.attacks.apgd(t, k, "dlr", stop="success"), "APGD", {"loss": "dlr"},
    ),
    "apgd-t": (
        lambda t, k: foible.attacks.apgd_targeted(t, k, stop="success"), "APGDT",
        {"n_classes": 10},
    ),
    "fab-t": (
        lambda t, k: foible.attacks.fab_targeted(t, k, stop="success"), "FAB",
        {"multi_targeted": True, "n_classes": 10},
    ),
}  # fmt: skip


def members(how: Setting, table: Section, bars: Section) -> None:
    """Each member beside the same member of torchattacks, with the same number of steps."""
    x, y = images(how.samples)
    net = load("hardened")
    for norm, threat in NORMS:
        for name, (make, peer, options) in PAIRS.items():
            steps = 10
            call = theirs(peer, norm, threat.eps, x, y, steps=steps, **options)
            other = run(net, x, y, call, how)
            own = run(net, x, y, ours(make(threat, steps), x, y), how)
            table.add(
                f"{name}-{norm}", f"{name}, {norm} {threat.eps:g}, {steps} steps",
                100 * own.robust, 100 * other.robust, own.calls, other.calls,
                other.seconds / own.seconds,
            )  # fmt: skip
            gap = 100 * (own.robust - other.robust)
            bars.bar(f"{name}-{norm}", f"{name} {norm}: points above theirs", gap, "<=", 0.5)


def whole(how: Setting, table: Section, bars: Section) -> None:
    """AutoAttack as published beside torchattacks'."""
    x, y = images(how.samples)
    net = load("hardened")
    for norm, threat in NORMS:
        own = run(net, x, y, ours(foible.attacks.autoattack(threat), x, y), how)
        other = peer_whole(f"hardened-{norm}", net, x, y, (norm, threat), how)
        table.add(
            f"autoattack-{norm}", f"AutoAttack standard, {norm} {threat.eps:g}",
            100 * own.robust, 100 * other.robust, own.calls, other.calls,
            other.seconds / own.seconds,
        )  # fmt: skip
        gap = 100 * (own.robust - other.robust)
        bars.bar(f"whole-{norm}", f"AutoAttack {norm}: points above theirs", gap, "<=", 0.1)


def price(how: Setting, table: Section, bars: Section) -> None:
    """`strongest` on the bundled pair."""
    x, y = images(how.samples)
    for model in MODELS:
        net = load(model)
        for norm, threat in NORMS:
            limit = 0.4 if model == "standard" else 0.1
            compare(f"{model}-{norm}", (net, x, y), (norm, threat), limit, (table, bars), how)


def panel(how: Setting, table: Section, bars: Section) -> None:
    """`strongest`, settings frozen, on models that it was not made on."""
    from safetensors.torch import load_file

    for name, made in PANEL.items():
        path = ROOT / "panel" / f"{name}.safetensors"
        if not path.exists():
            table.add(name, f"not there: python recipes/train_panel.py {name}", *[None] * 5)
            continue
        net = made()
        net.load_state_dict(load_file(str(path)))
        net.eval().requires_grad_(False)
        digits = name.startswith("mnist")
        x, y = mnist(how.samples) if digits else images(how.samples)
        threat = foible.Linf(0.3 if digits else 0.1)
        compare(name, (net, x, y), ("Linf", threat), 0.1, (table, bars), how)


def mnist(count: int) -> tuple[Tensor, Tensor]:
    """The first digits of the test set, kept beside the panel's weights by its recipe."""
    kept = torch.load(ROOT / "panel" / "mnist_test.pt", weights_only=True)
    return kept["x"][:count].float() / 255, kept["y"][:count].long()


KEPT: dict[str, Ran] = {}


def peer_whole(
    row: str, net: nn.Module, x: Tensor, y: Tensor, within: tuple[str, Any], how: Setting
) -> Ran:
    """torchattacks' AutoAttack, run once however many sections ask for it."""
    norm, threat = within
    if row not in KEPT:
        call = theirs("AutoAttack", norm, threat.eps, x, y, n_classes=10)
        KEPT[row] = run(net, x, y, call, how)
    return KEPT[row]


def compare(
    row: str,
    on: tuple[nn.Module, Tensor, Tensor],
    within: tuple[str, Any],
    limit: float,
    tables: tuple[Section, Section],
    how: Setting,
) -> None:
    """`strongest` beside torchattacks' AutoAttack on one model."""
    (net, x, y), (table, bars), threat = on, tables, within[1]
    own = run(net, x, y, ours(foible.attacks.strongest(threat), x, y), how)
    other = peer_whole(row, net, x, y, within, how)
    table.add(
        row, f"strongest, {row} {threat.eps:g}", 100 * own.robust, 100 * other.robust, own.calls,
        other.calls, other.seconds / own.seconds,
    )  # fmt: skip
    bars.bar(f"{row}-calls", f"{row}: calls over theirs", own.calls / other.calls, "<=", limit)
    bars.bar(f"{row}-time", f"{row}: times faster", other.seconds / own.seconds, ">=", 3)
    gap = 100 * (own.robust - other.robust)
    bars.bar(f"{row}-gap", f"{row}: points above theirs", gap, "<=", 0.2)


class Scaled(nn.Module):
    """The net with its logits multiplied."""

    def __init__(self, net: nn.Module, by: float) -> None:
        super().__init__()
        self.net, self.by = net, by

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x) * self.by
        return scores


def scaled(how: Setting, table: Section, bars: Section) -> None:
    """APGD-DLR, 100 steps, on logits as they are and times 1e4."""
    x, y = images(how.samples)
    for model in MODELS:
        net = load(model)
        for norm, threat in NORMS:
            attack = foible.attacks.apgd(threat, 100, "dlr", stop="success")
            plain = run(net, x, y, ours(attack, x, y), how).robust
            large = run(Scaled(net, 1e4), x, y, ours(attack, x, y), how).robust
            what = f"APGD-DLR, {model}, {norm} {threat.eps:g}: {100 * plain:.1f} % and, logits "
            what += f"times 1e4, {100 * large:.1f} %: points between"
            bars.bar(f"scaled-{model}-{norm}", what, 100 * abs(plain - large), "<=", 0.5)


def twice(how: Setting, table: Section, bars: Section) -> None:
    """AutoAttack on the same images with one seed, twice: every bit of what it returns."""
    x, y = images(min(how.samples, FEW))
    net = load("hardened")
    for norm, threat in NORMS:
        for name, attack in (
            ("autoattack", foible.attacks.autoattack(threat)),
            ("strongest", foible.attacks.strongest(threat)),
        ):
            one, two = (attack(foible.wrap(net), x, y, seed=0) for _ in range(2))
            apart = (one.x != two.x).flatten(1).any(1) | (one.success != two.success)
            apart = apart | (one.forwards != two.forwards) | (one.backwards != two.backwards)
            what = f"{name}, {norm} {threat.eps:g}, two runs: images of {len(x)} that differ"
            bars.bar(f"{name}-{norm}", what, float(apart.sum()), "<=", 0)


class Recorded(Counting):
    """Keeps (samples, backwards) of every forward, so that the same can be run bare."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.log: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.log.append([len(x), 0])
        return super().forward(x)

    def _count(self, grad: Tensor) -> None:
        self.log[-1][1] += 1


def bare(net: nn.Module, x: Tensor, log: list[list[int]]) -> None:
    """The forwards and backwards of a log, and nothing else."""
    for size, backwards in log:
        if not backwards:
            with torch.no_grad():
                net(x[:size])
            continue
        leaf = x[:size].detach().requires_grad_()
        out = net(leaf).sum()
        for left in range(backwards, 0, -1):
            torch.autograd.grad(out, leaf, retain_graph=left > 1)


def full(log: list[list[int]], width: int) -> list[list[int]]:
    """The same work in batches of one width: what no survivor that dropped out has thinned."""
    packed: list[list[int]] = []
    for backwards in sorted({b for _, b in log}):
        total = sum(size for size, b in log if b == backwards)
        packed += [[width, backwards]] * (total // width)
        packed += [[total % width, backwards]] if total % width else []
    return packed


def floor(how: Setting, table: Section, bars: Section) -> None:
    """AutoAttack's time over that of its own model calls."""
    x, y = images(min(how.samples, FEW))
    net = load("hardened").requires_grad_(False)
    for norm, threat in NORMS:
        attack = foible.attacks.autoattack(threat)
        held = Recorded(net).eval()
        attack(foible.wrap(held), x, y)
        log, width = held.log, min(len(x), foible.wrap(net).chunk(x))
        packed = full(log, width)
        contenders: dict[str, Callable[[], object]] = {
            "foible": lambda attack=attack: attack(foible.wrap(net), x, y),
            "same": lambda log=log: bare(net, x, log),
            "full": lambda log=packed: bare(net, x, log),
        }
        times = alternate(contenders, how.runs, how.now)
        for key, said in (
            ("same", "the same forwards and backwards, bare"),
            ("full", f"the same in full batches of {width}"),
        ):
            what = f"{norm} {threat.eps:g}: time over {said} (rounds: "
            what += f"{spread(times, 'foible', key)})"
            bars.bar(f"{norm}-{key}", what, ratio(times, "foible", key), "<=", 1.10)


WORK: dict[str, tuple[Callable[[Setting, Section, Section], None], str]] = {
    "members": (members, "Members of AutoAttack, equal steps, hardened model"),
    "whole": (whole, "AutoAttack as published, hardened model"),
    "price": (price, "`strongest` beside torchattacks' AutoAttack"),
    "panel": (panel, "`strongest` on four more models, settings frozen"),
    "scaled": (scaled, "Logits times 1e4"),
    "twice": (twice, f"Two runs with one seed, hardened model, {FEW} images"),
    "floor": (floor, f"AutoAttack over its own model calls, hardened model, {FEW} images"),
}


def main() -> None:
    args = command_line(__doc__ or "", "autoattack", SECTIONS, 1)
    how = setting(args)
    columns = (
        "what", "robust %, foible", "robust %, torchattacks", "calls a sample, foible",
        "calls, torchattacks", "times faster",
    )  # fmt: skip
    head = header(
        "AutoAttack and strongest", ["torchattacks"],
        "torchattacks' AutoAttack takes 10 steps a run where the published one takes 100; ours "
        "takes the published 100. Calls are forwards and backwards a sample.",
    )  # fmt: skip
    order = [part for name in SECTIONS for part in (name, f"bars-{name}")]
    done: list[Section] = []
    for name in args.chosen:
        work, title = WORK[name]
        print(name, flush=True)
        table, bars = Section(name, title, columns), Section(f"bars-{name}", title, BAR)
        work(how, table, bars)
        if table.rows:
            table.note = f"{how.samples} images."
            bars.title = f"Bars: {title}"
            done.append(table)
        done.append(bars)
        finish(args, head, done, order)  # after each section: the whole takes an hour


if __name__ == "__main__":
    main()
