"""Scores of maps: exact on linear models, beside loops and captum, and never one ranking."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import Counter, linear, predicted, rand, randn
from torch import Tensor, nn

from foible import explain
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.explain.scoring import shuffled
from foible.models import TorchModel, wrap


@pytest.fixture
def flat() -> tuple[TorchModel, Tensor, Tensor]:
    weight = randn(3, 5, seed=1, dtype=torch.float64)
    return wrap(linear(weight, randn(3, seed=2).double())), weight, rand(4, 5, seed=3).double()


def by_loop(net, x: Tensor, map_: Tensor, target: int, shares, keep: bool) -> list[float]:
    """The curve of one sample as the paper tells it: one forward a point."""
    order = sorted(range(map_.numel()), key=lambda i: -float(map_.flatten()[i]))
    found = []
    for share in shares:
        top = order[: round(share * len(order))]
        at = torch.zeros_like(x) if keep else x.clone()
        at.view(-1)[top] = x.reshape(-1)[top] if keep else 0.0
        with torch.no_grad():
            found.append(float(net(at[None]).softmax(1)[0, target]))
    return found


@pytest.mark.parametrize("make", [explain.deletion, explain.insertion])
def test_a_curve_is_the_papers_loop(make, net: nn.Module, images: Tensor) -> None:
    x = images[:3]
    y = predicted(net, x)
    maps = randn(*x.shape, seed=4)
    score = make(7)(net, x, maps, y)
    net.eval()
    assert score.curve is not None
    for i in range(3):
        wanted = by_loop(net, x[i], maps[i], int(y[i]), score.shares, make is explain.insertion)
        torch.testing.assert_close(score.curve[i], torch.tensor(wanted).double(), rtol=0, atol=1e-6)
        area = sum((a + b) / 14 for a, b in itertools.pairwise(wanted))
        assert abs(float(score.values[i]) - area) < 1e-6


def test_the_true_order_is_the_best_on_a_linear_model(flat) -> None:
    model, weight, x = flat
    true = weight[1] * x
    delete, insert = (explain.of_logit(m(5)) for m in (explain.deletion, explain.insertion))
    best = delete(model, x, true, 1).values, insert(model, x, true, 1).values
    worse = 0
    for order in itertools.permutations(range(5)):
        maps = torch.tensor(order).double().expand(4, 5)
        gone, come = delete(model, x, maps, 1).values, insert(model, x, maps, 1).values
        assert bool((gone >= best[0] - 1e-12).all()) and bool((come <= best[1] + 1e-12).all())
        worse += int((gone > best[0] + 1e-9).sum())
    assert worse == 4 * 119  # one order of 120 is the best, a sample


def test_features_that_tie_may_change_places(flat) -> None:
    """Equal contributions of a linear model: any order among them has one area."""
    model = wrap(linear(torch.tensor([[1.0, 2.0, 2.0, 4.0], [0.0] * 4]).double(), torch.zeros(2)))
    x = torch.tensor([[1.0, 1.0, 1.0, 0.5]]).double()
    measure = explain.of_logit(explain.deletion(4))
    areas = [
        float(measure(model, x, torch.tensor([[0.0, a, b, c]]).double(), 0).values)
        for a, b, c in itertools.permutations((1.0, 2.0, 3.0))
    ]
    tied = float(measure(model, x, torch.tensor([[1.0, 2.0, 2.0, 2.0]]).double(), 0).values)
    assert max(abs(area - tied) for area in areas) < 1e-12


def test_falls_are_sums_on_a_linear_model(flat) -> None:
    model, weight, x = flat
    maps = weight[2] * x
    ordered = maps.sort(1, descending=True).values
    shares = (0.2, 0.6)
    falls = explain.of_logit(explain.comprehensiveness(shares))(model, x, maps, 2)
    left = explain.of_logit(explain.sufficiency(shares))(model, x, maps, 2)
    wanted = torch.stack([ordered[:, :1].sum(1), ordered[:, :3].sum(1)], 1)
    torch.testing.assert_close(falls.curve, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(falls.values, wanted.mean(1), rtol=0, atol=1e-12)
    rest = torch.stack([ordered[:, 1:].sum(1), ordered[:, 3:].sum(1)], 1)
    torch.testing.assert_close(left.curve, rest, rtol=0, atol=1e-12)
    assert (falls.better, left.better) == ("higher", "lower")


def test_absolute_order_baseline_and_colours() -> None:
    """All colours of a pixel go at once, in the order of their sum, to what the baseline shows."""
    seen = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return x.flatten(1)[:, :2]

    x = rand(1, 3, 2, 2, seed=7)
    maps = torch.zeros(1, 3, 2, 2)
    maps[0, :, 0, 1], maps[0, :, 1, 0] = torch.tensor([-3.0, 0.0, 0.0]), torch.tensor([1.0, 1, 0])
    explain.deletion(4, 0.25, "absolute")(Watch(), x, maps, 0)
    points = torch.cat(seen)[-10:-5] if len(torch.cat(seen)) > 10 else torch.cat(seen)[:5]
    gone = [(points[j] == 0.25).all(0).nonzero().tolist() for j in range(5)]
    assert gone[1] == [[0, 1]] and gone[2] == [[0, 1], [1, 0]] and len(gone[4]) == 4
    mean = explain.deletion(4, "mean")(wrap(linear(torch.ones(2, 12), torch.zeros(2))), x, maps, 0)
    assert mean.curve is not None and float(mean.curve.std()) < 1e-6  # both logits stay equal


def test_infidelity_is_captums(net: nn.Module, images: Tensor) -> None:
    from captum.metrics import infidelity as captum_infidelity

    net, x = net.double().eval(), images[:3].double()
    y = predicted(net, x)
    maps = randn(*x.shape, seed=5).double()
    for kind, size in (("noise", 0.3), ("square", 0.5)):
        measure = explain.infidelity(12, kind, size, scaled=False)
        rows = Rows(torch.arange(3), torch.arange(3), x, y)
        moved = measure.perturbations(rows, Rng(0).split(13).at(torch.arange(3)))

        def perturb(inputs: Tensor, moved: Tensor = moved) -> tuple[Tensor, Tensor]:
            held = moved.flatten(0, 1)
            return held, inputs - held

        for normalise in (False, True):
            wanted = captum_infidelity(
                net, perturb, x, maps, target=y, n_perturb_samples=12, normalize=normalise
            )
            made = explain.infidelity(12, kind, size, scaled=normalise)
            got = made(net, x, maps, y).values
            if normalise:  # ours is a share of the mean squared change
                at = (x[:, None] - moved).flatten(0, 1)
                label = y.repeat_interleave(12)[:, None]
                with torch.no_grad():
                    after = net(at).gather(1, label).view(3, 12)
                    change = net(x).gather(1, y[:, None]) - after
                got = got * (change**2).mean(1)
            torch.testing.assert_close(got, wanted.detach(), rtol=1e-6, atol=1e-9)


def test_infidelity_of_the_gradient_of_a_linear_model_is_zero_and_of_nothing_is_one(flat) -> None:
    model, weight, x = flat
    right = weight[1].expand(4, 5)
    for measure in (explain.infidelity(20), explain.infidelity(20, "square", scaled=False)):
        assert float(measure(model, x, right, 1).values.max()) < 1e-20
    scaled = explain.infidelity(20)
    assert torch.equal(scaled(model, x, 0 * right, 1).values, torch.ones(4).double())
    assert float(scaled(model, x, 7 * right, 1).values.max()) < 1e-20  # no scale is judged
    assert float(explain.infidelity(20, scaled=False)(model, x, 7 * right, 1).values.min()) > 0.01
    noise = scaled(model, x, randn(4, 5, seed=9).double(), 1).values
    assert bool(((noise > 0.01) & (noise <= 1)).all())
    constant = wrap(linear(torch.zeros(2, 5), torch.ones(2)))
    assert float(scaled(constant, x.float(), right.float(), 0).values.abs().max()) == 0


def test_measures_may_disagree_and_no_single_ranking_is_given() -> None:
    """A map of the effects wins by infidelity; a map in the order of deletion wins by deletion.

    The logit is -10 x0 + x1 + x2 + x3 at (1, 1, 1, 1). `sizes` has the right order and wrong
    sizes; `effects` has the right sizes but for a detail that spoils the order.
    """
    weight = torch.tensor([[-10.0, 1.0, 1.1, 1.2], [0.0] * 4]).double()
    model, x = wrap(linear(weight, torch.zeros(2)), bounds=(-9, 9)), torch.ones(2, 4).double()
    order = torch.tensor([[-1.0, 5.0, 6.0, 7.0]]).double().expand(2, 4)
    effects = torch.tensor([[-10.0, 1.2, 1.1, 1.0]]).double().expand(2, 4)
    measures = [explain.of_logit(explain.deletion(4)), explain.infidelity()]
    found = explain.compare(measures, model, x, {"order": order, "effects": effects}, 0)
    assert found.ranking("deletion") == ["order", "effects"]
    assert found.ranking("infidelity") == ["effects", "order"]
    assert found.disagreements() == [("deletion", "infidelity")]
    with pytest.raises(InputError, match="a ranking over 2 definitions would hide.*area under"):
        found.ranking()
    with pytest.raises(InputError, match="'beauty' was not measured: choose deletion"):
        found.ranking("beauty")
    alone = explain.compare(measures[:1], model, x, {"order": order, "effects": effects}, 0)
    assert alone.ranking() == ["order", "effects"]
    with pytest.raises(InputError, match="share a name"):
        explain.compare([measures[0]] * 2, model, x, {"order": order}, 0)


def test_every_score_carries_its_definition_and_chance(net: nn.Module, images: Tensor) -> None:
    x = images[:4]
    y = predicted(net, x)
    maps = explain.saliency()(net, x, y)
    made = [
        explain.deletion(5, 0.5), explain.insertion(5, "mean"), explain.comprehensiveness(),
        explain.sufficiency(), explain.infidelity(10), explain.infidelity(10, "square"),
    ]  # fmt: skip
    scores = [measure(net, x, maps, y) for measure in made]
    assert len({s.definition for s in scores}) == len(scores)
    for score in scores:
        assert score.values.shape == score.control.shape == (4,)
        assert not torch.equal(score.values, score.control)
        assert score.mean is not None and score.chance is not None and score.gain is not None
        sign = 1 if score.better == "higher" else -1
        assert abs(score.gain[0] - sign * (score.mean[0] - score.chance[0])) < 1e-9
    again = made[0](net, x, maps, y)
    assert torch.equal(again.values, scores[0].values)
    assert torch.equal(again.control, scores[0].control)
    assert not torch.equal(made[0](net, x, maps, y, seed=1).control, scores[0].control)
    mixed = shuffled(maps, Rng(0).at(torch.arange(4)))
    assert torch.equal(mixed.flatten(1).sort(1).values, maps.flatten(1).sort(1).values)


def test_work_is_counted_bounded_and_needs_scores_only(net: nn.Module, images: Tensor) -> None:
    x = images[:5]
    y = predicted(net, x)
    maps = randn(*x.shape, seed=3)
    counted = Counter(wrap(net), level=Access.SCORES)
    explain.deletion(6)(counted, x, maps, y)
    assert counted.forwards == 2 * 5 * 7 + 1 and counted.backwards == 0  # one asks for the classes
    counted = Counter(wrap(net), level=Access.SCORES)
    explain.infidelity(9)(counted, x, maps, y)
    assert counted.forwards == 2 * 5 * 10 + 1

    for measure in (explain.deletion(6), explain.infidelity(9, "square")):
        narrow = Counter(wrap(net), at_most=10)
        got = measure(narrow, x, maps, y).values
        assert max(narrow.sizes) <= 10
        torch.testing.assert_close(got, measure(net, x, maps, y).values, rtol=1e-5, atol=1e-6)


def test_bad_input_is_refused(net: nn.Module, images: Tensor) -> None:
    x = images[:2]
    with pytest.raises(InputError, match="maps have shape"):
        explain.deletion()(net, x, x[:, :, :3], 0)
    with pytest.raises(InputError, match="NaN or infinity"):
        explain.deletion()(net, x, x * float("nan"), 0)
    with pytest.raises(InputError, match="order='up'"):
        explain.deletion(order="up")
    with pytest.raises(InputError, match="rising numbers"):
        explain.sufficiency((0.5, 0.1))
    with pytest.raises(InputError, match="steps=0"):
        explain.insertion(0)
    with pytest.raises(InputError, match="samples=1"):
        explain.infidelity(1)
    with pytest.raises(KindError, match="no weights to shuffle"):
        explain.randomisation(explain.lime(8), Counter(wrap(net)), x)


def test_randomisation_finds_the_map_that_ignores_the_model(net: nn.Module, images: Tensor) -> None:
    x = images[:4]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = explain.randomisation(explain.saliency(), net, x, k=10)
    assert found.layers[0] == "head" and len(found.layers) == len(found.rank) == len(found.topk)
    assert found.maps.shape == (len(found.layers) + 1, *x.shape)
    wanted = explain.saliency()(net, x, predicted(net, x))
    torch.testing.assert_close(found.maps[0], wanted)
    assert float(found.rank[-1].abs().mean()) < 0.5
    blind = explain.randomisation(explain.random_map(), net, x, k=10)
    assert torch.equal(blind.topk, torch.ones_like(blind.topk))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    again = explain.randomisation(explain.saliency(), net, x, k=10)
    assert torch.equal(again.maps, found.maps)
    other = explain.randomisation(explain.saliency(), net, x, k=10, seed=1)
    assert not torch.equal(other.maps[1:], found.maps[1:])


def test_retraining_misses_what_the_map_names() -> None:
    """Two of eight features carry the label: a net without them is lost, without two others not."""
    calls = []

    def fit(x: Tensor, y: Tensor, seed: int) -> nn.Module:
        calls.append(seed)
        spread = torch.cat([x, torch.ones(len(x), 1).double()], 1)
        wanted = torch.nn.functional.one_hot(y, 2).double() - 0.5
        solved = torch.linalg.lstsq(spread, wanted, driver="gelsd").solution
        return linear(solved[:-1].T, solved[-1])

    x = randn(240, 8, seed=1).double()
    y = (x[:, 2] + x[:, 5] > 0).long()
    found = explain.retraining(
        explain.gradient_x_input(), fit, (x[:160], y[:160]), (x[160:], y[160:]), (0.25,), seed=3
    )
    assert calls == [3] * 3 and found.whole > 0.9
    assert float(found.accuracy[0]) < float(found.control[0]) - 0.1


def test_a_field_of_probabilities_is_what_is_watched(net: nn.Module, images: Tensor) -> None:
    x = images[:2]
    y = predicted(net, x)
    curve = explain.deletion(1)(net, x, x, y).curve
    net.eval()
    with torch.no_grad():
        clean, empty = net(x).softmax(1), net(0 * x).softmax(1)
    assert curve is not None
    wanted = torch.stack([p.gather(1, y[:, None])[:, 0] for p in (clean, empty)], 1).double()
    torch.testing.assert_close(curve, wanted, rtol=0, atol=1e-6)
