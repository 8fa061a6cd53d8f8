"""Influence functions against training again: scikit-learn's digits, softmax regression.

python benchmarks/influence.py [--quick]
"""

from __future__ import annotations

import numpy as np
import torch
from common import Section, command_line, finish, header, setting
from sklearn.datasets import load_digits
from torch import Tensor, nn

import foible
from foible.explain.curvature import cross_entropy

BAR = ("what", "measured", "bar", "verdict")
L2 = 0.01


def trained(x: Tensor, y: Tensor, l2: float = L2, start: nn.Linear | None = None) -> nn.Linear:
    """A softmax regression at its minimum (L-BFGS of torch, float64)."""
    net = nn.Linear(x.shape[1], 10).double()
    with torch.no_grad():
        for p, q in zip(net.parameters(), start.parameters() if start else (), strict=False):
            p.copy_(q)
        if start is None:
            for p in net.parameters():
                p.zero_()
    run = torch.optim.LBFGS(
        net.parameters(), max_iter=1000, tolerance_grad=1e-10, tolerance_change=1e-16,
        history_size=50, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        run.zero_grad()
        loss = cross_entropy(net(x), y).mean()
        loss = loss + l2 / 2 * sum((p**2).sum() for p in net.parameters())
        loss.backward()
        return loss

    run.step(closure)
    return net


def leave_one_out(quick: bool, table: Section) -> None:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images / 16), torch.from_numpy(labels).long()
    train, test = (x[:1500], y[:1500]), (x[1500:], y[1500:])
    net = trained(*train)
    with torch.no_grad():
        lost = cross_entropy(net(test[0]), test[1])
    hardest = lost.argsort(descending=True)[:1]
    point = test[0][hardest], test[1][hardest]
    fitted = foible.explain.influence(foible.explain.explicit(), l2=L2).fit(net, train)
    told = fitted.on(*point)[0]
    cg = foible.explain.influence(foible.explain.conjugate_gradient(), l2=L2).fit(net, train)
    gap = float((cg.on(*point)[0] - told).abs().max() / told.abs().max())
    table.bar("influence-cg", "conjugate gradients against the dense inverse, relative", gap,
              "<=", 1e-4)  # fmt: skip
    count = 10 if quick else 50
    order = told.abs().argsort(descending=True)
    others = order[count:][torch.randperm(1500 - count, generator=_generator(0))[:count]]
    for name, chosen in (("top", order[:count]), ("all", torch.cat([order[:count], others]))):
        truth = []
        for i in chosen.tolist():
            keep = torch.arange(1500) != i
            # The theory takes the point's 1 / n away and leaves the others': the same minimum as of
            # the mean over n - 1 with a penalty larger by n / (n - 1).
            again = trained(train[0][keep], train[1][keep], L2 * 1500 / 1499, net)
            with torch.no_grad():
                loss = cross_entropy(again(point[0]), point[1]) - lost[hardest]
            truth.append(float(loss))
        r = float(np.corrcoef(truth, told[chosen].numpy())[0, 1])
        what = f"Pearson of foretold and true change, {len(chosen)} points ({name})"
        table.bar(f"influence-loo-{name}", what, r, ">=", 0.95)


def mislabelled(table: Section) -> None:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images[:1000] / 16), torch.from_numpy(labels[:1000]).long()
    wrong = torch.randperm(1000, generator=_generator(1))[:100]
    y[wrong] = (y[wrong] + 1 + torch.arange(100) % 9) % 10
    net = trained(x, y)
    fitted = foible.explain.influence(foible.explain.explicit(), l2=L2).fit(net, (x, y))
    found = torch.isin(fitted.suspects()[:200], wrong).sum() / 100
    table.bar("influence-suspects", "share of 100 flips among the first 200 of 1,000 suspects",
              float(found), ">=", 0.7)  # fmt: skip
    with torch.no_grad():
        by_loss = cross_entropy(net(x), y).argsort(descending=True)[:200]
    share = f"{float(torch.isin(by_loss, wrong).sum() / 100):.2f}"
    table.add("influence-by-loss", "the same, ranked by loss", share, "none", "reported")
    table.add("influence-by-chance", "the same, at random", "0.20", "none", "by definition")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def main() -> None:
    args = command_line(__doc__ or "", "influence", ("influence",), 1)
    how = setting(args)
    table = Section("influence", "Influence functions", BAR)
    leave_one_out(how.quick, table)
    mislabelled(table)
    head = header(
        "Influence functions", ["scikit-learn"],
        "Softmax regression on scikit-learn's digits, float64, l2 0.01, at its minimum by L-BFGS.",
    )  # fmt: skip
    finish(args, head, [table], ("influence",))


if __name__ == "__main__":
    main()
