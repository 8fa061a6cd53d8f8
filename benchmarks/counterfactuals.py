"""Counterfactuals, contrastive explanations, the autoencoder term, swapped cells: their bars.

python benchmarks/counterfactuals.py --samples 100 --threads 1
"""

from __future__ import annotations

from typing import Any

import torch
from common import Section, command_line, finish, header, images, load, percent, setting
from torch import Tensor, nn

import foible
from foible.attacks import alternatives, autoencoder_penalty, contrastive, counterfactual
from foible.explain import visual_counterfactual

SECTIONS = ("tables", "contrast", "autoencoder", "cells")
BAR = ("what", "measured", "bar", "verdict")
a = foible.attacks
POINTS, FIXED, RISING, FALLING = 200, (1, 21), (4,), (9,)


# ---------------------------------------------------------------- tables (B30)


def cancer() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A small net on scikit-learn's breast cancer table, its training rows, and 200 others."""
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    x, y = torch.tensor(table.data).float(), torch.tensor(table.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    seen, held = order[POINTS:], order[:POINTS]
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                        nn.Linear(16, 2))  # fmt: skip
    torch.random.set_rng_state(state)
    mean, std = x[seen].mean(0), x[seen].std(0)
    optimiser = torch.optim.Adam(net.parameters(), 0.01, weight_decay=1e-3)
    for _ in range(200):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net((x[seen] - mean) / std), y[seen]).backward()
        optimiser.step()

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, raw: Tensor) -> Tensor:
            out: Tensor = self.net((raw - mean) / std)
            return out

    right = (Scaled()(x[held]).argmax(1) == y[held]).float().mean()
    print(f"  the net is right on {percent(float(right))} of the {POINTS} points")
    return Scaled().eval(), x[seen], x[held], mean


class Unscaled(nn.Module):
    """The net on inputs in units of the threat, so that L2 counts the features as L1 does."""

    def __init__(self, net: nn.Module, units: Tensor) -> None:
        super().__init__()
        self.net, self.units = net, units

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x * self.units)
        return out


def tables(count: int, table: Section) -> None:
    net, seen, x, _ = cancer()
    model = foible.wrap(net, (0.0, 1e4))
    with torch.no_grad():
        y = net(x).argmax(1)
    threat = foible.Features.of(seen, fixed=FIXED, rising=RISING, falling=FALLING)
    found = counterfactual(threat)(model, x, y)
    table.bar("b30-valid", "share of 200 points with a counterfactual, 2 features fixed, 1 rising, "
              "1 falling, all in the ranges of the data",
              share(found.success), ">=", 0.95)  # fmt: skip
    change = found.x - x
    broken = (change[:, FIXED] != 0).any(1) | (change[:, RISING] < 0).any(1)
    broken = broken | (change[:, FALLING] > 0).any(1)
    low, high = (torch.tensor(end) for end in (threat.lowest, threat.highest))
    broken = broken | (found.x < x.minimum(low) - 1e-6).any(1)
    broken = broken | (found.x > x.maximum(high) * (1 + 1e-6)).any(1)
    table.bar("b30-broken", "points whose counterfactual breaks a constraint",
              float(broken.sum()), "<=", 0.0)  # fmt: skip
    free = counterfactual(foible.Features(units=threat.units))(model, x, y)
    units = torch.tensor(threat.units)
    within = foible.wrap(Unscaled(net, units), (0.0, 1e6))
    short = a.cw(foible.L2())(within, x / units, y)
    both = free.success & short.success
    touched = [((point - start).abs() > 0.01).sum(1)[both].double().mean()
               for point, start in ((free.x / units, x / units), (short.x, x / units))]  # fmt: skip
    table.bar("b30-sparse", f"features changed by 0.01 units: {float(touched[0]):.2f} in L1 and "
              f"{float(touched[1]):.2f} by C&W in L2, no constraints, {int(both.sum())} points; "
              "the ratio", float(touched[0] / touched[1]), "<=", 1.0)  # fmt: skip
    several = alternatives(counterfactual(threat), model, x[:50], y[:50], count=5)
    longer = several.distance[:, -1] / several.distance[:, 0]
    table.add("b30-restarts", "five restarts on 50 points: counterfactuals that differ; the "
              "longest over the shortest, median",
              f"{float(several.distinct.double().mean()):.2f}; "
              f"{float(longer[longer.isfinite()].median()):.3f}", "reported", "")  # fmt: skip
    table.add("b30-cost", "forwards + backwards a point, mean", cost(found), "reported", "")


# ---------------------------------------------------------------- contrast (A13)


def share(which: Tensor) -> float:
    return float(which.double().mean())


def cost(result: Any) -> str:
    calls = (result.forwards.double().mean(), result.backwards.double().mean())
    return f"{calls[0]:.0f} + {calls[1]:.0f}"


def residual(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return (x - net(x)).flatten(1).square().sum(1)


def nearest(x: Tensor, data: Tensor) -> Tensor:
    flat = data.flatten(1)
    return torch.stack([torch.cdist(row[None].flatten(1), flat).min() for row in x])


def contrast(count: int, table: Section) -> None:
    x, _ = images(count)
    net, judge = load("standard"), load("autoencoder")
    with torch.no_grad():
        y = net(x).argmax(1)
    data, _ = foible.zoo.fashion_mnist("train")
    for kind in ("negative", "positive"):
        plain = contrastive(kind)(net, x, y)
        drawn = contrastive(kind, judge, 100.0)(net, x, y)
        if kind == "negative":
            more = ((plain.x >= x).flatten(1).all(1)) & plain.success
            table.bar("a13-negative", "negatives that change the class and take no ink",
                      share(more), ">=", 0.95)  # fmt: skip
        else:
            kept, ink = ((t != 0).flatten(1).sum(1) for t in (plain.x, x))
            few = plain.success & (kept <= 0.5 * ink) & (plain.x <= x).flatten(1).all(1)
            table.bar("a13-positive", "positives that keep the class on half of the inked pixels",
                      share(few), ">=", 0.95)  # fmt: skip
            asked = torch.tensor([s != "wrong" for s in plain.status])
            table.add("a13-positive-asked", f"the same without {int((~asked).sum())} images whose "
                      "class a blank page has already; pixels kept, mean share",
                      f"{share(few[asked]):.3f}; {share((kept / ink)[asked]):.3f}",
                      "reported", "")  # fmt: skip
        both = plain.success & drawn.success
        for name, of in (("residual", lambda t: residual(judge, t)),
                         ("nearest", lambda t: nearest(t, data))):  # fmt: skip
            before, after = (float(of(r.x[both]).mean()) for r in (plain, drawn))
            what = "residual" if name == "residual" else "distance to the nearest training image"
            table.bar(f"a13-{kind}-{name}", f"{kind}s: mean {what}, {before:.3f} without and "
                      f"{after:.3f} with gamma 100, {int(both.sum())} images; the ratio",
                      after / before, "<=", 1.0)  # fmt: skip
        sizes = [float(r.distance[both].mean()) for r in (plain, drawn)]
        table.add(f"a13-{kind}-size", f"{kind}s: mean L1 of the change without and with gamma 100; "
                  "forwards + backwards", f"{sizes[0]:.1f}, {sizes[1]:.1f}; {cost(plain)}, "
                  f"{cost(drawn)}", "reported", "")  # fmt: skip


# ---------------------------------------------------------------- the term on any attack (S10)


def autoencoder(count: int, table: Section) -> None:
    x, y = images(count)
    judge = load("autoencoder")
    cases = (
        ("pgd", "standard", a.pgd(foible.Linf(0.1), 40, objective="margin"), 1.0),
        ("apgd-l2", "standard", a.apgd(foible.L2(2.0), 40, "margin"), 1.0),
        ("pgd", "hardened", a.pgd(foible.Linf(0.2), 40, objective="margin"), 0.05),
        ("cw", "standard", a.cw(foible.L2()), 1.0),
        ("ead", "standard", a.ead(foible.L1()), 3.0),
    )
    for name, model, attack, weight in cases:
        net = load(model)
        plain = attack(net, x, y)
        drawn = autoencoder_penalty(attack, judge, weight)(net, x, y)
        both = plain.success & drawn.success & plain.attacked
        rates = [r.success_rate or 0.0 for r in (plain, drawn)]
        before, after = (float(residual(judge, r.x[both]).mean()) for r in (plain, drawn))
        clean = float(residual(judge, x[both]).mean())
        table.bar(f"s10-{name}-{model}", f"{name} on {model}, weight {weight:g}: success "
                  f"{percent(rates[0])} and {percent(rates[1])}; mean residual {before:.2f} and "
                  f"{after:.2f} (clean {clean:.2f}), {int(both.sum())} images; the ratio",
                  after / before, "<=", 0.7)  # fmt: skip
        table.bar(f"s10-{name}-{model}-success", f"{name} on {model}: points of success lost",
                  100 * (rates[0] - rates[1]), "<=", 1.0)  # fmt: skip


# ---------------------------------------------------------------- swapped cells (B31)


def cells(count: int, table: Section) -> None:
    x, _ = images(count)
    pool, truth = images(1000)
    net = load("standard")
    with torch.no_grad():
        scores, said = net(x), net(pool).argmax(1)
    order = scores.argsort(1, descending=True)
    picks = {
        "runner-up": order[:, 1],
        "any": order.gather(1, 1 + torch.arange(count)[:, None] % 9).squeeze(1),
    }
    for name, target in picks.items():
        chosen = []
        for row, wanted in enumerate(target.tolist()):
            there = ((said == wanted) & (truth == wanted)).nonzero().flatten()
            chosen.append(int(there[row % len(there)]))
        greedy = visual_counterfactual("3", 49)(net, x, pool[chosen], target)
        chance = visual_counterfactual("3", 49, "random")(net, x, pool[chosen], target)
        mean, control = (float(r.edits.double().mean()) for r in (greedy, chance))
        what = "the class of the second score" if name == "runner-up" else "any other class in turn"
        table.bar(f"b31-{name}-reached", f"towards {what}: share that the greedy order turns",
                  share(greedy.success), ">=", 0.95)  # fmt: skip
        table.bar(f"b31-{name}-edits", f"towards {what}: swaps of 49, mean (median "
                  f"{float(greedy.edits.double().median()):g})", mean, "<=", 6.0)  # fmt: skip
        table.bar(f"b31-{name}-random", f"towards {what}: swaps over those of a random order "
                  f"({control:.1f}, which turns {percent(share(chance.success))})",
                  mean / control, "<=", 0.5)  # fmt: skip
    table.add("b31-cost", "forwards an image, mean, towards any class",
              f"{greedy.forwards.double().mean():.0f}", "reported", "")  # fmt: skip


def main() -> None:
    args = command_line(__doc__ or "", "counterfactuals", SECTIONS, 1)
    how = setting(args)
    notes = {
        "tables": ("Counterfactuals of a table (B30)", "scikit-learn's breast cancer table, 30 "
                   "features; a net of 30-16-16-2 trained on 369 rows, explained on the 200 "
                   "others. Units are median absolute deviations."),
        "contrast": ("Pertinent negatives and positives (A13)", f"The first {how.samples} bundled "
                     "images, standard model, predicted labels; recipes with their defaults. "
                     "Nearest of the 60,000 training images in L2."),
        "autoencoder": ("The autoencoder term on any attack (S10)", "The squared distance to the "
                        "bundled autoencoder's reconstruction, where both attacks succeed."),
        "cells": ("Visual counterfactuals (B31)", "Cells of 7 x 7 after the second convolution of "
                  "the standard model; distractors are bundled images that it gets right."),
    }  # fmt: skip
    made = {k: Section(k, title, BAR, note) for k, (title, note) in notes.items()}
    work = {"tables": tables, "contrast": contrast, "autoencoder": autoencoder, "cells": cells}
    for name in args.chosen:
        work[name](how.samples, made[name])
    head = header("Counterfactuals", ("scikit-learn",), "Smallest changes that explain a decision.")
    finish(args, head, [made[name] for name in args.chosen], SECTIONS)


if __name__ == "__main__":
    main()
