"""Attacks that move a map while the label stays: figures by hand, and a literal replica."""

from __future__ import annotations

import pytest
import torch
from conftest import Counter, filled, predicted, rand, softened
from replicas.fragile import moved_by_hand, share_on_top
from torch import Tensor, nn

from foible import attacks, explain
from foible.attacks.fragility import FarFromCentre, LessOnTop, centre, mass
from foible.core.errors import InputError, KindError
from foible.core.rows import Rows
from foible.models import softplus_twin, wrap
from foible.parts.searches import Ascent
from foible.parts.threats import L2, Linf, Spatial

K = 6


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    """A ReLU net on 8 x 8 images of two channels, float64, and its own labels."""
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 16), nn.ReLU(),
        nn.Linear(16, 3),
    )  # fmt: skip
    net = filled(net.double(), 3, 1.5).double()
    x = rand(6, 2, 8, 8, seed=1, dtype=torch.float64)
    with torch.no_grad():  # so that labels differ, and can be lost
        net[5].bias -= net(x).mean(0)
    return net, x, predicted(net, x)


def test_mass_and_centre_by_hand() -> None:
    found = torch.tensor(
        [[[[3.0, 0.0, 0.0], [0.0, 0.0, -3.0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]]
    )
    share = mass(found)
    assert share.shape == (1, 2, 3) and float(share[0, 0, 0]) == float(share[0, 1, 2]) == 0.5
    assert centre(share).tolist() == [[0.5, 1.0]]
    assert not mass(torch.zeros(2, 1, 3, 3)).any()  # nothing, and no NaN
    table = torch.tensor([[1.0, -3.0, 0.0]])
    assert mass(table).tolist() == [[0.25, 0.75, 0.0]] and centre(mass(table)).tolist() == [[0.75]]


@pytest.mark.parametrize("aim", ["top", "centre", "region"])
def test_the_figures_are_the_true_models(aim: str, case) -> None:
    """Label, map and figures again, from plain autograd on the ReLU net."""
    net, x, y = case
    region = torch.zeros(8, 8, dtype=torch.bool)
    region[:3, 4:] = True
    given = (region,) if aim == "region" else ()
    explainer = explain.saliency()
    found = attacks.fragile(Linf(0.1), explainer, aim, K, 12)(net, x, y, *given)
    assert found.kept.all() and torch.equal(predicted(net, found.x), y)
    assert (found.x - x).abs().max() <= 0.1 + 1e-7 and found.x.min() >= 0 and found.x.max() <= 1
    maps = []
    for at in (x, found.x):
        leaf = at.clone().requires_grad_()
        score = net(leaf)[torch.arange(6), y].sum()
        maps.append(torch.autograd.grad(score, leaf)[0].abs().sum(1))
    clean, now = (m / m.sum((1, 2), keepdim=True) for m in maps)
    torch.testing.assert_close(explainer(net, found.x, y), found.map)
    tops = [set(m.flatten().topk(K).indices.tolist()) for m in clean]
    kept = [
        len(a & set(m.flatten().topk(K).indices.tolist())) / K
        for a, m in zip(tops, now, strict=True)
    ]
    assert found.topk.tolist() == pytest.approx(kept)
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")).double()
    centres = [(grid[None] * m[:, None]).sum((2, 3)) for m in (clean, now)]
    gone = (centres[1] - centres[0]).norm(dim=1)
    torch.testing.assert_close(found.shift, gone)
    after = {
        "top": torch.stack(
            [-m.flatten()[sorted(top)].sum() for m, top in zip(now, tops, strict=True)]
        ),
        "centre": gone**2,
        "region": now[:, region].sum(1),
    }[aim]
    torch.testing.assert_close(found.after, after)
    assert (found.after >= found.before).all() and found.moved.double().mean() > 0.6
    assert torch.equal(found.moved, (found.x != x).flatten(1).any(1))


@pytest.mark.parametrize(("eps", "beta"), [(0.08, 20.0), (0.1, 2.0)])
def test_it_is_the_papers_loop_written_slowly(eps: float, beta: float, case) -> None:
    """Sign steps with momentum on the twin, the best kept point of the true net, one by one.

    The second twin is soft, so that its labels and maps are not the net's.
    """
    net, x, y = case
    attack = attacks.fragile(Linf(eps), explain.saliency(), "top", K, 6, beta=beta)
    found = attack(net, x, y)
    twin = softplus_twin(net, beta).net
    assert beta > 9 or not torch.equal(predicted(twin, x), y)
    assert found.kept.all()
    for i in range(len(x)):
        wanted = moved_by_hand((net, twin), x[i], int(y[i]), eps, K, 6)
        torch.testing.assert_close(found.x[i], wanted, rtol=0, atol=1e-12)
        assert float(-found.after[i]) == pytest.approx(
            share_on_top(net, x[i], wanted, int(y[i]), K)
        )


def test_a_label_that_is_not_there_is_left_alone(case) -> None:
    net, x, y = case
    wrong = y.clone()
    wrong[2] = (y[2] + 1) % 3
    found = attacks.fragile(Linf(0.1), explain.saliency(), k=K, steps=4)(net, x, wrong)
    assert found.kept.tolist() == [i != 2 for i in range(6)]
    rest = attacks.fragile(Linf(0.1), explain.saliency(), k=K, steps=4)(net, x, y)
    assert torch.equal(found.x[:2], rest.x[:2])


def test_nor_is_a_label_that_the_search_would_reach(case) -> None:
    """A change wide enough for another label: it was not there to be kept."""
    net, x, y = case
    second = net(x).detach().scatter(1, y[:, None], float("-inf")).argmax(1)
    saliency = explain.saliency()
    reached = attacks.pgd(Linf(0.4), 12)(net, x, y, target=second).success
    assert reached.any()
    found = attacks.fragile(Linf(0.4), saliency, k=K, steps=12)(net, x, second)
    assert not found.kept.any() and torch.equal(found.x, x) and not found.moved.any()
    order = saliency(net, x, y).roll(1, 0)
    bent = attacks.bend(Linf(0.4), saliency, 12, tolerance=None)(net, x, second, order)
    assert not bent.kept.any() and torch.equal(bent.x, x)
    assert torch.equal(bent.similarity, bent.before)


def test_where_every_step_loses_the_label_the_clean_input_comes_back() -> None:
    """A net whose label holds at x only: nothing moves, and that is what is said.

    The search for another centre begins beside x, and never sees a point that keeps the label.
    """

    class Brittle(nn.Module):
        def __init__(self, at: Tensor) -> None:
            super().__init__()
            self.inner, self.at = nn.Linear(5, 4), at

        def forward(self, x: Tensor) -> Tensor:
            there = (x - self.at[: len(x)]).abs().flatten(1).amax(1) == 0
            push = torch.stack([there * 1e3, ~there * 1e3], 1)
            return torch.relu(self.inner(x.flatten(1)))[:, :2] * 1e-3 + push

    for aim, shape in (("top", (1, 5)), ("centre", (1, 1, 1, 5))):
        x = 0.3 + 0.4 * rand(*shape, seed=2)
        net = filled(Brittle(x), 1, 2.0)
        with torch.no_grad():
            net.inner.bias.fill_(5.0)  # so that its map is never 0
        attack = attacks.fragile(Linf(0.1), explain.gradient_x_input(), aim, k=2, steps=5)
        found = attack(net, x, torch.tensor([0]))
        assert torch.equal(found.x, x) and found.kept.all() and not found.moved.any()
        assert found.topk.tolist() == [1.0] and torch.equal(found.map, found.clean_map)


@pytest.mark.parametrize(
    "explainer",
    [
        explain.saliency(), explain.smoothgrad(4), explain.integrated_gradients(4),
        explain.grad_cam(), explain.gradient_x_input(), explain.deep_lift(),
    ],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_every_differentiable_explainer_is_moved(explainer, case) -> None:
    net, x, y = case
    found = attacks.fragile(Linf(0.1), explainer, k=K, steps=8)(net, x, y)
    assert found.kept.all() and found.moved.double().mean() > 0.5
    torch.testing.assert_close(found.map, explainer(net, found.x, y))


def test_a_map_that_vanishes_is_no_success() -> None:
    """Grad-CAM may become 0 everywhere: that names nothing, and has no centre."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[0].weight.fill_(1.0), net[0].bias.fill_(-0.5)
        net[3].weight.zero_(), net[3].bias.copy_(torch.tensor([1.0, 0.0]))
        net[3].weight[0] = 1.0
    x = torch.full((1, 1, 4, 4), 0.4)
    x[0, 0, 0, :2] = 0.6
    for aim in ("top", "centre"):
        found = attacks.fragile(Linf(0.15), explain.grad_cam(), aim, 2, 20)(
            net, x, torch.tensor([0])
        )
        assert found.map.abs().sum() > 0


def test_a_map_of_nothing_is_far_from_nowhere(case) -> None:
    x = case[1]
    rows = Rows(torch.arange(2), torch.arange(2), x[:2], torch.zeros(2, dtype=torch.int64))
    rows.extra["map"] = x[:2]
    nothing = torch.zeros_like(x[:2])
    assert FarFromCentre(explain.saliency()).value(nothing, rows).tolist() == [0.0, 0.0]
    assert LessOnTop(explain.saliency(), K).value(nothing, rows).tolist() == [-1.0, -1.0]


def test_smooth_nets_are_searched_themselves() -> None:
    net = softened()
    images = rand(3, 10, seed=4, dtype=torch.float64)
    y = predicted(net, images)
    with pytest.raises(InputError, match="no ReLU was found"):
        attacks.fragile(Linf(0.1), explain.saliency(), k=4, steps=2)(net, images, y)
    attack = attacks.fragile(Linf(0.1), explain.saliency(), k=4, steps=10, beta=None)
    found = attack(net, images, y)
    assert found.kept.all() and found.moved.all()


def test_what_it_costs_is_what_the_models_were_asked(case, monkeypatch) -> None:
    from foible.explain import moving

    net, x, y = case
    true = Counter(wrap(net))
    soft = Counter(softplus_twin(net, 100.0))
    monkeypatch.setattr(moving, "softplus_twin", lambda model, beta: soft)
    found = attacks.fragile(Linf(0.1), explain.saliency(), k=K, steps=3)(true, x, y)
    assert int(found.forwards.sum()) == true.forwards + soft.forwards
    # The counter sees backwards that begin at the scores; three more begin at the map.
    assert int(found.backwards.sum()) == true.backwards + soft.backwards + 3 * len(x)


def test_tables_and_l2(case) -> None:
    net = filled(nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 3)), 4, 2.0)
    x = rand(4, 20, seed=1)
    y = predicted(net, x)
    found = attacks.fragile(L2(0.4), explain.saliency(), k=5, steps=20)(net, x, y)
    assert found.shift.isnan().all() and found.moved.any() and found.kept.all()
    assert (found.x - x).norm(dim=1).max() <= 0.4 + 1e-6
    region = torch.zeros(4, 20)
    region[:, 3] = 1
    found = attacks.fragile(L2(0.4), explain.saliency(), "region", 5, 20)(net, x, y, region)
    torch.testing.assert_close(found.after, found.map[:, 3].abs() / found.map.abs().sum(1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda x, y, n: attacks.fragile(Linf(), explain.saliency()), "has no eps"),
        (lambda x, y, n: attacks.fragile(Linf(0.1), explain.lime()), "not differentiable"),
        (
            lambda x, y, n: attacks.fragile(Linf(0.1), explain.saliency(), "up"),
            "top, centre, region",
        ),
        (lambda x, y, n: attacks.fragile(Linf(0.1), explain.saliency(), k=0), "k=0"),
        (lambda x, y, n: attacks.fragile(Linf(0.1), explain.saliency(), steps=0), "steps=0"),
        (lambda x, y, n: attacks.bend(Linf(0.1), explain.saliency(), 0), "steps=0"),
        (
            lambda x, y, n: attacks.fragile(Linf(0.1), explain.saliency(), k=K, beta=-1)(n, x, y),
            "beta=-1",
        ),
        (
            lambda x, y, n: attacks.bend(Linf(0.1), explain.saliency())(n, x, y, x / 0),
            "target_map is NaN or infinite",
        ),
        (
            lambda x, y, n: attacks.fragile(Linf(0.1), explain.saliency(), k=K)(n, x, y + 3),
            "y holds class",
        ),
        (
            lambda x, y, n: attacks.fragile(Linf(0.1), explain.saliency(), k=K)(
                nn.Sequential(n, nn.Linear(3, 1).double()), x, 0 * y
            ),
            "1 score",
        ),
        (lambda x, y, n: attacks.fragile(Linf(0.1), explain.saliency())(n, x, y), "k=100 of 64"),
        (
            lambda x, y, n: attacks.fragile(Linf(0.1), explain.saliency(), "region", 5)(n, x, y),
            "needs a region",
        ),
        (
            lambda x, y, n: attacks.fragile(Linf(0.1), explain.saliency(), "top", 5)(n, x, y, x),
            "takes no region",
        ),
        (
            lambda x, y, n: attacks.fragile(Linf(0.1), explain.saliency(), "region", 5)(n, x, y, x),
            r"region has shape \(6, 2, 8, 8\): give \(8, 8\)",
        ),
        (
            lambda x, y, n: attacks.fragile(Linf(0.1), explain.saliency(), "centre", 5)(
                n, x.flatten(1), y
            ),
            "without image axes",
        ),
    ],
)
def test_what_does_not_fit_is_said(make, says: str, case) -> None:
    net, x, y = case
    with pytest.raises(InputError, match=says):
        make(x, y, net)


def test_kinds_that_do_not_fit_are_said(case) -> None:
    net, x, y = case
    with pytest.raises(KindError, match="moves a few parameters"):
        attacks.fragile(Spatial(10.0, 1.0), explain.saliency())
    with pytest.raises(KindError, match="pass a torch tensor"):
        attacks.fragile(Linf(0.1), explain.saliency(), k=K)(net, x.numpy(), y)


def test_its_search_is_a_part() -> None:
    attack = attacks.fragile(Linf(0.1), explain.saliency(), steps=7)
    assert attack.search == Ascent(7, None, 0.5, "clean", 0.9)
    assert attacks.fragile(Linf(0.1), explain.saliency(), "centre").search.start == "random"
