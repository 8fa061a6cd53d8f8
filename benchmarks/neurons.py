"""Neurons taken out: what predicts the accuracy that is lost, and how well a causal model does.

python benchmarks/neurons.py [--quick] [--only lenet] [--threads 1]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from common import Section, Setting, command_line, finish, header, load, setting
from torch import Tensor, nn

import foible
from foible.explain import CausalModel, NeuronEffect, accuracy_without, causal_model, neuron_effect
from foible.parts.statistics import spearman

SECTIONS = ("lenet", "bundled")
BAR = ("what", "measured", "bar", "verdict")
SHARE, DRAWS, FEW = 0.1, 10, 4


def lenet() -> nn.Sequential:
    """LeNet-5 with ReLU and pooling by maximum (LeCun et al. 1998)."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def trained(epochs: int) -> nn.Sequential:
    x, y = foible.zoo.fashion_mnist("train")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, order = lenet(), torch.Generator().manual_seed(0)
        optimiser = torch.optim.Adam(net.parameters(), 2e-3)
        batches = [
            b for _ in range(epochs) for b in torch.randperm(len(x), generator=order).split(128)
        ]
        for seen, batch in enumerate(batches):
            optimiser.param_groups[0]["lr"] = 2e-3 * (1 - seen / len(batches))
            optimiser.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
    return net.eval().requires_grad_(False)


def agree(a: Tensor, b: Tensor) -> float:
    return float(spearman(a[None].double().numpy(), b[None].double().numpy())[0])


class Measured:
    """A net, its units by ablation on one half of the data, and what they cost on the other."""

    def __init__(self, net: nn.Module, n: int) -> None:
        x, y = foible.zoo.fashion_mnist("test")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:n]
        x, y = x[order], y[order]
        self.net, half = net, n // 2
        self.fitted, self.held = (x[:half], y[:half]), (x[half:], y[half:])
        self.causes: CausalModel = causal_model(net, self.fitted[0])
        self.layers = self.causes.layers
        self.told = [neuron_effect(net, *self.fitted, layer) for layer in self.layers]
        self.lost = [neuron_effect(net, *self.held, layer) for layer in self.layers]
        self.owner = [(k, u) for k, e in enumerate(self.lost) for u in range(e.loss.shape[1])]
        self.filters = sum(
            e.loss.shape[1] for k, e in zip(self.layers, self.lost, strict=True)
            if len(foible.models.layers_of(net, x[:1])[k]) == 3
        )  # fmt: skip

    def all(self, of: list[NeuronEffect], what: str) -> Tensor:
        return torch.cat([getattr(effect, what) for effect in of])

    def cost(self, units: Tensor) -> float:
        """The accuracy lost on the other half without these units, all together."""
        chosen: dict[str, list[int]] = {}
        for place in units.tolist():
            layer, unit = self.owner[place]
            chosen.setdefault(self.layers[layer], []).append(unit)
        off = {layer: torch.tensor(some) for layer, some in chosen.items()}
        return self.lost[0].accuracy - accuracy_without(self.net, *self.held, off)


def rows(table: Section, name: str, at: Measured) -> None:
    """The bars of B32 and L4, on the convolutions' filters and on all units."""
    loss, scm = at.all(at.told, "loss_rise"), [at.causes.importance(k) for k in at.layers]
    lost, importance, n = at.all(at.lost, "accuracy_drop"), torch.cat(scm), at.filters
    done = torch.cat([at.causes.effect(k).abs().sum(1) for k in at.layers])
    repeat = agree(at.all(at.told, "accuracy_drop")[:n], lost[:n])
    what = f"{n} filters, Spearman with the accuracy lost on the other half: "
    table.add(f"{name}-repeat", f"{what}the accuracy lost on the first half", repeat, "ceiling", "")
    table.bar(
        f"{name}-loss", f"{what}the loss's rise on one half", agree(loss[:n], lost[:n]), ">=", 0.8
    )
    table.bar(
        f"{name}-scm-do", f"{what}the causal model's do()", agree(done[:n], lost[:n]), ">=", 0.8
    )
    order = loss[:n].argsort(descending=True)
    top, bottom = at.cost(order[:FEW]), at.cost(order[-FEW:])
    what = (
        f"accuracy lost without the top {FEW} filters {top:.3f}, over the bottom {FEW} {bottom:.4f}"
    )
    table.bar(f"{name}-top-bottom", what, top / max(bottom, 1 / len(at.held[0])), ">=", 3.0)
    count = round(SHARE * len(lost))
    draw = torch.Generator().manual_seed(0)
    chance = (
        sum(at.cost(torch.randperm(len(lost), generator=draw)[:count]) for _ in range(DRAWS))
        / DRAWS
    )
    for who, worth, bar in (("scm", importance, 2.0), ("ablation", loss, 3.0)):
        fall = at.cost(worth.argsort(descending=True)[:count])
        what = f"{count} of {len(lost)} units by {who}: lost {fall:.3f}, over random {chance:.3f}"
        table.bar(f"{name}-top-{who}", what, fall / chance, ">=", bar)
    for layer, fitted in at.causes.fit(at.net, at.held[0]).items():
        live = fitted[~fitted.isnan()]
        what = f"median R^2 on the other half, children of layer {layer}"
        table.bar(f"{name}-r2-{layer}", what, float(live.median()), ">=", 0.5)
    what = "Spearman of the causal model's importance and the accuracy lost: "
    table.add(
        f"{name}-scm-all",
        f"{what}all {len(lost)} units",
        agree(importance, lost),
        "none",
        "reported",
    )
    for k, layer in enumerate(at.layers):
        figure = agree(scm[k], at.lost[k].accuracy_drop)
        table.add(f"{name}-scm-{layer}", f"{what}layer {layer}", figure, "none", "reported")


def main() -> None:
    args = command_line(__doc__ or "", "neurons", SECTIONS, 1)
    how: Setting = setting(args)
    tables = {
        "lenet": Section("lenet", "LeNet-5 on Fashion-MNIST (B32, L4)", BAR),
        "bundled": Section("bundled", "The bundled standard model (B32, L4)", BAR),
    }
    for name in args.chosen:
        net = trained(1 if how.quick else 3) if name == "lenet" else load("standard")
        # The bundled model has more units, and each costs a forward.
        at = Measured(net, 600 if how.quick else 10_000 if name == "lenet" else 4_000)
        table = tables[name]
        table.note = f"Accuracy of the whole model on the other half: {at.lost[0].accuracy:.3f}."
        rows(table, name, at)
    intro = (
        "Units are taken out one at a time (set to zero). What is predicted comes from one half of "
        "test images, what is lost from the other."
    )
    head = header("Neurons", ["numpy"], intro)
    finish(args, head, [tables[name] for name in args.chosen], SECTIONS)


if __name__ == "__main__":
    main()
