"""Substitutes: what they ask, how their set grows, and whether attacks on them carry over."""

from __future__ import annotations

import pytest
import torch
from conftest import Counter, SmallNet, filled, predicted, rand, randn
from test_no_trace import everything_about, same
from torch import Tensor, nn

from foible import zoo
from foible.attacks import Teaching, fgsm, random_noise, substitute, transfer
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.models import wrap
from foible.parts.threats import Linf

QUICK = Teaching(epochs=2, batch=8)


def small(classes: int = 3, outputs: int | None = None) -> nn.Module:
    body = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, outputs or classes))
    return filled(body, 3, 3.0)


@pytest.mark.parametrize(("rounds", "reservoir", "labels"), [
    (1, None, 12), (2, None, 24), (4, None, 96), (4, 5, 12 + 3 * 5), (4, 20, 12 + 12 + 20 + 20),
])  # fmt: skip
def test_it_asks_for_as_many_labels_as_it_says_and_for_nothing_else(
    rounds: int, reservoir: int | None, labels: int
) -> None:
    model = Counter(wrap(small()), level=Access.LABELS, at_most=5)
    found = substitute(
        model,
        rand(12, 10, seed=1),
        rounds=rounds,
        teaching=Teaching(2, batch=8, reservoir=reservoir),
    )
    assert model.forwards == found.queries == len(found.x) == len(found.y) == labels
    assert model.backwards == 0
    assert torch.equal(found.y, predicted(small(), found.x))


def by_hand(net: nn.Module, x: Tensor, y: Tensor, step: float) -> Tensor:
    """Jacobian-based augmentation as the paper writes it, one sample at a time."""
    grown = []
    for one, label in zip(x, y.tolist(), strict=True):
        leaf = one[None].clone().requires_grad_()
        net(leaf).softmax(1)[0, label].backward()
        grown.append((one + step * leaf.grad[0].sign()).clamp(0, 1))
    return torch.stack(grown)


def test_the_set_grows_as_in_the_paper_and_the_step_turns_round() -> None:
    model, x = small().double(), rand(9, 10, seed=2, dtype=torch.float64)
    how = Teaching(epochs=3, batch=4, period=1)
    one, two, three = (substitute(model, x, rounds=r, step=0.3, teaching=how) for r in (1, 2, 3))
    assert torch.equal(one.x, x)
    torch.testing.assert_close(two.x[9:], by_hand(one.model.net, x, one.y, 0.3))
    torch.testing.assert_close(three.x[18:], by_hand(two.model.net, two.x, two.y, -0.3))
    long = Teaching(epochs=3, batch=4, period=2)
    kept = substitute(model, x, rounds=3, step=0.3, teaching=long)
    torch.testing.assert_close(kept.x[18:], by_hand(two.model.net, two.x, two.y, 0.3))


def test_a_seed_fixes_everything_and_nothing_else_does() -> None:
    model, x, before = small(), rand(10, 10, seed=5), torch.random.get_rng_state()
    one = substitute(model, x, rounds=3, teaching=QUICK, seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    two = substitute(small(), x, rounds=3, teaching=QUICK, seed=4)
    assert torch.equal(one.x, two.x)
    for a, b in zip(one.model.net.parameters(), two.model.net.parameters(), strict=True):
        assert torch.equal(a, b)
    other = substitute(small(), x, rounds=3, teaching=QUICK, seed=5)
    assert not torch.equal(other.x, one.x)


def test_the_model_and_the_given_net_stay_as_they_were() -> None:
    model, own = filled(SmallNet(), 5, 2.0).train(), filled(SmallNet(), 6).train()
    x = rand(7, 1, 6, 6, seed=3)
    kept, before, weights = x.clone(), everything_about(model), everything_about(own)
    found = substitute(model, x, own, rounds=2, teaching=QUICK)
    after, left = everything_about(model), everything_about(own)
    assert [k for k in before if not same(before[k], after[k])] == []
    assert [k for k in weights if not same(weights[k], left[k])] == []
    assert torch.equal(x, kept) and found.model.net is not own
    assert all(p.grad is None for p in found.model.net.parameters())
    # It has batch norm and dropout and was taught in training mode: its statistics have moved.
    assert not torch.equal(found.model.net.norm.running_mean, own.norm.running_mean)
    again = substitute(model, x, own, rounds=2, teaching=QUICK)
    assert torch.equal(again.model.net.head.weight, found.model.net.head.weight)


@pytest.mark.parametrize("shape", [(10,), (1, 8, 8), (8, 8, 3), (6, 6), (3, 12, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_shape_and_dtype_and_one_seed(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    size = int(torch.tensor(shape).prod())
    net = filled(nn.Sequential(nn.Flatten(), nn.Linear(size, 3)), 2, 3.0).to(dtype)
    found = substitute(net, rand(1, *shape, seed=1, dtype=dtype), rounds=2, teaching=QUICK)
    assert found.x.shape == (2, *shape) and found.x.dtype == dtype
    assert found.model(found.x).shape == (2, 3) and found.model(found.x).dtype == dtype


def test_two_classes_of_a_single_logit_and_bounds_of_its_own() -> None:
    model = wrap(small(outputs=1), bounds=(-2, 2), outputs="logit")
    found = substitute(
        model,
        2 * randn(30, 10, seed=7).clamp(-1, 1),
        rounds=3,
        step=0.5,
        teaching=Teaching(epochs=80),
    )
    assert found.model.bounds == (-2, 2) and found.model(found.x).shape[1] == 2
    assert found.x.abs().max() == 2  # cut to the bounds, which 0.5 a round reaches
    assert found.agreement(model, randn(200, 10, seed=8).clamp(-2, 2)) > 0.7


def test_what_cannot_be_used_is_refused() -> None:
    x = rand(5, 10, seed=1)
    with pytest.raises(InputError, match="one output a class"):
        substitute(small(3), x, small(4))
    with pytest.raises(InputError, match="rounds=0"):
        substitute(small(), x, rounds=0)
    with pytest.raises(InputError, match="bounds"):
        substitute(small(), x + 3)
    with pytest.raises(InputError, match="no parameter"):
        substitute(small(10), x, nn.Identity())
    with pytest.raises(KindError, match="untrained"):
        substitute(small(), x, "mlp")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1"):
        Teaching(epochs=0)


def rates(model: nn.Module, taught: nn.Module, eps: float, x: Tensor, y: Tensor) -> list[float]:
    """Success of FGSM carried over from the substitute, and of random signs of equal size."""
    threat = Linf(eps)
    carried = transfer(fgsm(threat), taught)(model, x, y)
    return [carried.success_rate or 0.0, random_noise(threat)(model, x, y).success_rate or 0.0]


def test_a_few_hundred_labels_teach_enough_to_fool() -> None:
    model = small()
    with torch.no_grad():
        model[2].bias -= model(rand(200, 10, seed=9)).mean(0)
    x, unseen = rand(20, 10, seed=1), rand(300, 10, seed=2)
    y = predicted(model, unseen)
    found = substitute(model, x, rounds=5, teaching=Teaching(epochs=20))
    carried, noise = rates(model, found.model, 0.1, unseen, y)
    assert found.queries == 320 and found.agreement(model, unseen) > 0.6
    assert carried > noise + 0.3
    # The seeds alone teach less than the set that has grown from them.
    fixed = substitute(model, x, rounds=1, teaching=Teaching(epochs=320))
    assert fixed.agreement(model, unseen) < found.agreement(model, unseen)


@pytest.mark.slow
def test_the_papers_setting_on_the_bundled_model() -> None:
    x, y = zoo.sample()
    model = zoo.load("standard")
    found = substitute(model, x[:150])
    assert found.queries == 4800
    assert found.agreement(model, x[150:550]) >= 0.75
    carried, noise = rates(model, found.model, 0.1, x[150:550], y[150:550])
    assert carried >= 0.6 and carried >= noise + 0.4
    # At the paper's 0.3 random signs alone fool this model on 7 of 10 images.
    assert rates(model, found.model, 0.3, x[150:550], y[150:550])[0] >= 0.9
