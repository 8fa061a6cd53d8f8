"""Influence functions against training again, dense algebra and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import filled, rand, randn
from test_no_trace import everything_about, same
from torch import Tensor, nn

from foible import explain
from foible.core.errors import InputError, KindError, ModelError
from foible.explain.curvature import cross_entropy

L2 = 0.02


def trained(
    x: Tensor, y: Tensor, start: nn.Linear | None = None, classes: int = 3, l2: float = L2
) -> nn.Linear:
    """A softmax regression at its minimum, by Newton's method on a dense Hessian of its own."""
    net = nn.Linear(x.shape[1], classes).double()
    theta = torch.zeros(classes * (x.shape[1] + 1), dtype=torch.float64)
    if start is not None:
        theta = torch.cat([start.weight.detach().flatten(), start.bias.detach()])
    wide = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    d = x.shape[1]
    order = [k * d + j for k in range(classes) for j in range(d)]
    place = [k * (d + 1) + j for k in range(classes) for j in range(d)]
    place += [k * (d + 1) + d for k in range(classes)]
    assert len(order) + classes == len(place)
    for _ in range(30):
        w = torch.cat([theta[: classes * d].view(classes, d), theta[classes * d :, None]], 1)
        p = (wide @ w.T).softmax(1)
        error = p - nn.functional.one_hot(y, classes)
        slope = (error.T @ wide / len(x)).flatten()[place] + l2 * theta
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        hessian = torch.einsum("nkl,ni,nj->kilj", middle, wide, wide) / len(x)
        size = classes * (d + 1)
        hessian = hessian.reshape(size, size)[place][:, place] + l2 * torch.eye(size).double()
        step = torch.linalg.solve(hessian, slope)
        theta = theta - step
        if float(step.abs().max()) < 1e-12:
            break
    with torch.no_grad():
        net.weight.copy_(theta[: classes * d].view(classes, d))
        net.bias.copy_(theta[classes * d :])
    return net


@pytest.fixture(scope="module")
def case() -> tuple[nn.Linear, Tensor, Tensor, Tensor, Tensor]:
    centres = randn(3, 6, seed=1).double()
    y = torch.arange(90) % 3
    x = centres[y] + 1.2 * randn(90, 6, seed=2).double()
    x[4] = x[4] * 4  # a point that matters
    test_y = torch.arange(12) % 3
    return trained(x, y), x, y, centres[test_y] + 1.2 * randn(12, 6, seed=3).double(), test_y


def test_the_absence_of_a_point_is_foretold(case) -> None:
    net, x, y, tx, ty = case
    found = explain.influence(explain.explicit(), l2=L2).fit(net, (x, y)).on(tx, ty)
    before = cross_entropy(net(tx), ty).detach()
    truth = []
    for i in range(0, 90, 3):
        keep = torch.arange(90) != i
        # The theory takes the point's weight 1 / n away and keeps the others': the same minimum
        # as of the mean over n - 1 with a penalty that is larger by n / (n - 1).
        again = trained(x[keep], y[keep], net, l2=L2 * 90 / 89)
        truth.append(cross_entropy(again(tx), ty).detach() - before)
    wanted, got = torch.stack(truth, 1), found[:, ::3]
    r = np.corrcoef(wanted.flatten().numpy(), got.flatten().numpy())[0, 1]
    assert r > 0.95, r
    fitted = explain.influence(explain.explicit(), l2=L2).fit(net, (x, y))
    first = int(fitted.suspects()[0])
    change = fitted.removed(first)
    start = torch.cat([net.weight.flatten(), net.bias]).detach()
    keep = torch.arange(90) != first
    again = trained(x[keep], y[keep], net, l2=L2 * 90 / 89)
    moved = torch.cat([again.weight.flatten(), again.bias]).detach() - start
    assert float(nn.functional.cosine_similarity(change, moved, dim=0)) > 0.9


def test_solvers_agree(case) -> None:
    net, x, y, tx, ty = case
    dense, cg = (
        explain.influence(solver, l2=L2).fit(net, (x, y)).on(tx[:4], ty[:4])
        for solver in (explain.explicit(), explain.conjugate_gradient())
    )
    assert float((dense - cg).abs().max()) < 1e-4 * float(dense.abs().max())
    rough = explain.lissa(depth=600, scale=12.0, batch=90, repeats=1)
    series = explain.influence(rough, l2=L2).fit(net, (x, y)).on(tx[:2], ty[:2])
    r = np.corrcoef(series.flatten().numpy(), dense[:2].flatten().numpy())[0, 1]
    assert r > 0.9, r


def test_the_dense_hessian_is_the_formula_and_products_are_its(case) -> None:
    net, x, y, _, _ = case
    curvature = explain.influence(l2=L2, damping=0.5).fit(net, (x, y)).curvature
    with curvature.session() as c:
        hessian = c.dense()
        vector = randn(c.size, seed=5).double()
        torch.testing.assert_close(c.product(vector), hessian @ vector, rtol=1e-9, atol=1e-10)
        p = net(x).softmax(1).detach()
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        by_bias = middle.mean(0) + (L2 + 0.5) * torch.eye(3).double()
        torch.testing.assert_close(hessian[-3:, -3:], by_bias, rtol=1e-9, atol=1e-10)
        own = torch.stack([c.gradient(x[i : i + 1], y[i : i + 1]) for i in range(7)])
        torch.testing.assert_close(c.along(x[:7], y[:7], vector), own @ vector)


def test_a_changed_point_is_foretold(case) -> None:
    net, x, y, tx, ty = case
    fitted = explain.influence(explain.explicit(), l2=L2).fit(net, (x, y))
    new = x[7:8] + 0.3 * randn(1, 6, seed=8).double()
    foretold = fitted.changed(7, (new, y[7:8]), (tx, ty))
    other = x.clone()
    other[7] = new[0]
    truth = cross_entropy(trained(other, y, net)(tx), ty) - cross_entropy(net(tx), ty)
    r = np.corrcoef(foretold.numpy(), truth.detach().numpy())[0, 1]
    assert r > 0.95, r
    slope = fitted.pushed(7, (tx, ty))
    way = randn(6, seed=9).double()
    sides = [
        float(fitted.changed(7, (x[7:8] + s * 1e-4 * way, y[7:8]), (tx, ty)).mean())
        for s in (1, -1)
    ]
    assert abs((sides[0] - sides[1]) / 2e-4 - float(slope @ way)) < 1e-5 * float(slope.norm())


def test_mislabelled_points_come_first() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images[:200] / 16).view(200, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    y = torch.from_numpy(labels[:200]).long()
    wrong = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:20]
    y[wrong] = (y[wrong] + 1 + torch.arange(20) % 9) % 10
    net = trained(x, y, classes=10)
    fitted = explain.influence(explain.explicit(), l2=L2).fit(net, (x, y))
    checked = fitted.suspects()[:40]
    assert int(torch.isin(checked, wrong).sum()) >= 14


def test_the_last_layer_of_a_net_alone(net: nn.Module, images: Tensor) -> None:
    net, x = net.double(), images[:8].double()
    y = torch.arange(8) % 4
    before = everything_about(net)
    for p in net.parameters():
        p.requires_grad_(False)
    net.head.weight.requires_grad_(True)
    flags = [p.requires_grad for p in net.parameters()]
    fitted = explain.influence(explain.explicit(), layers=["head"], damping=0.1).fit(net, (x, y))
    found = fitted.on(x[:2], y[:2])
    assert found.shape == (2, 8) and fitted.curvature.size == 108 * 4 + 4
    assert [p.requires_grad for p in net.parameters()] == flags
    cg = explain.influence(layers=["head"], damping=0.1).fit(net, (x, y)).on(x[:2], y[:2])
    torch.testing.assert_close(found, cg, rtol=1e-4, atol=1e-8)
    for p in net.parameters():
        p.requires_grad_(True)
    after = everything_about(net)
    assert [k for k in before if not same(before[k], after[k])] == []


def test_mistakes_are_told(case) -> None:
    net, x, y, _, _ = case
    with pytest.raises(InputError, match="no layer 'tail'"):
        explain.influence(layers=["tail"]).fit(net, (x, y))
    with pytest.raises(InputError, match="at least 0"):
        explain.influence(damping=-1.0)
    with pytest.raises(InputError, match="one label each"):
        explain.influence().fit(net, (x, y[:3]))
    with pytest.raises(KindError, match="no parameters"):
        explain.influence().fit(_Scores(), (x, y))
    bent = filled(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), 3, 2.0).double()
    with pytest.raises(ModelError, match="curves downwards"):
        explain.influence().fit(bent, (x, y)).on(rand(1, 6, seed=1).double(), y[:1])
    with pytest.raises(ModelError, match="not positive definite"):
        explain.influence(explain.explicit()).fit(bent, (x, y)).removed(0)
    with pytest.raises(ModelError, match="Raise scale"):
        explain.influence(explain.lissa(60, 1e-3, 8), l2=L2).fit(net, (x, y)).removed(0)
    with pytest.raises(InputError, match="a dense Hessian of"):
        explain.influence(explain.explicit()).fit(
            nn.Linear(6, 1000).double(), (x, y)
        ).removed(0)  # fmt: skip


class _Scores:
    """A model without weights."""

    bounds = (0.0, 1.0)
    access = 1

    def scores(self, x: Tensor) -> Tensor:
        return x[:, :3]

    def session(self, seed: int = 0, *, freeze: bool = True) -> object:
        raise NotImplementedError

    def chunk(self, x: Tensor) -> int:
        return 8
