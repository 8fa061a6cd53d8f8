"""AutoAttack and `strongest` against torchattacks' AutoAttack: robust accuracy, calls and time.

    python benchmarks/autoattack.py --only members,whole,price --samples 1000

Model calls are counted by a wrapper around the net that knows nothing of foible. The panel's
models are trained by recipes/train_panel.py; those that are not there are left out.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import MODELS, Section, Setting, command_line, finish, header, images, load, setting
from torch import Tensor, nn

import foible
from foible.zoo.networks import PANEL

SECTIONS = ("members", "whole", "price", "panel")
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


def run(net: nn.Module, x: Tensor, y: Tensor, attack: Callable[[nn.Module], Tensor]) -> Ran:
    """Time and count one attack; accuracy is measured here, by a forward of our own."""
    counted = Counting(net).eval()
    start = time.perf_counter()
    x_adv = attack(counted)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        good = (net(x).argmax(1) == y) & (net(x_adv).argmax(1) == y)
    n = len(x)
    return Ran(
        float(good.float().mean()), counted.forwards / n, counted.backwards / n, seconds, x_adv
    )


def theirs(name: str, norm: str, eps: float, x: Tensor, y: Tensor, **more: Any) -> Any:
    def call(net: nn.Module) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchattacks

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
            other = run(net, x, y, theirs(peer, norm, threat.eps, x, y, steps=steps, **options))
            own = run(net, x, y, ours(make(threat, steps), x, y))
            table.add(
                f"{name}-{norm}", f"{name}, {norm} {threat.eps:g}, {steps} steps",
                100 * own.robust, 100 * other.robust, own.calls, other.calls,
                other.seconds / own.seconds,
            )  # fmt: skip
            gap = 100 * (own.robust - other.robust)
            bars.bar(f"{name}-{norm}", f"{name} {norm}: points above theirs", gap, "<=", 0.5)


def whole(how: Setting, table: Section, bars: Section) -> None:
    """AutoAttack as published beside torchattacks', and twice with one seed."""
    x, y = images(how.samples)
    net = load("hardened")
    for norm, threat in NORMS:
        own = run(net, x, y, ours(foible.attacks.autoattack(threat), x, y))
        other = run(net, x, y, theirs("AutoAttack", norm, threat.eps, x, y, n_classes=10))
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
            compare(f"{model}-{norm}", net, x, y, (norm, threat), limit, table, bars)


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
        compare(name, net, x, y, ("Linf", threat), 0.1, table, bars)


def mnist(count: int) -> tuple[Tensor, Tensor]:
    """The first digits of the test set, kept beside the panel's weights by its recipe."""
    kept = torch.load(ROOT / "panel" / "mnist_test.pt", weights_only=True)
    return kept["x"][:count].float() / 255, kept["y"][:count].long()


def compare(
    row: str,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    within: tuple[str, Any],
    limit: float,
    table: Section,
    bars: Section,
) -> None:
    norm, threat = within
    own = run(net, x, y, ours(foible.attacks.strongest(threat), x, y))
    other = run(net, x, y, theirs("AutoAttack", norm, threat.eps, x, y, n_classes=10))
    table.add(
        row, f"strongest, {row} {threat.eps:g}", 100 * own.robust, 100 * other.robust, own.calls,
        other.calls, other.seconds / own.seconds,
    )  # fmt: skip
    bars.bar(f"{row}-calls", f"{row}: calls over theirs", own.calls / other.calls, "<=", limit)
    bars.bar(f"{row}-time", f"{row}: times faster", other.seconds / own.seconds, ">=", 3)
    gap = 100 * (own.robust - other.robust)
    bars.bar(f"{row}-gap", f"{row}: points above theirs", gap, "<=", 0.2)


def main() -> None:
    args = command_line(__doc__ or "", "autoattack", SECTIONS, 1)
    how = setting(args)
    columns = (
        "what", "robust %, foible", "robust %, torchattacks", "calls a sample, foible",
        "calls, torchattacks", "times faster",
    )  # fmt: skip
    bars = Section("bars", "Bars", ("what", "measured", "bar", "verdict"))
    titles = {
        "members": "Members of AutoAttack, equal steps, hardened model",
        "whole": "AutoAttack as published, hardened model",
        "price": "`strongest` beside torchattacks' AutoAttack",
        "panel": "`strongest` on four more models, settings frozen",
    }
    done = []
    for name in args.chosen:
        table = Section(name, titles[name], columns)
        print(name, flush=True)
        {"members": members, "whole": whole, "price": price, "panel": panel}[name](how, table, bars)
        done.append(table)
    bars.name = "bars-" + "-".join(args.chosen) if len(args.chosen) < len(SECTIONS) else "bars"
    head = header(
        "AutoAttack and strongest", ["torchattacks"],
        "torchattacks' AutoAttack takes 10 steps a run where the published one takes 100; ours "
        "takes the published 100. Calls are forwards and backwards a sample.",
    )  # fmt: skip
    finish(args, head, [*done, bars], (*SECTIONS, bars.name))


if __name__ == "__main__":
    main()
