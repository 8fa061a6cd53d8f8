"""Nets, outputs and inputs of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import SmallNet, filled, linear_case, predicted, rand
from torch import Tensor, nn

from foible import explain
from foible.attacks import fgsm, pgd
from foible.core.errors import ModelError
from foible.models import wrap
from foible.parts.threats import L1, L2, Ball, Linf

# --- nets of every kind


class FirstInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return self.head(F.relu(x, inplace=True))


class Answering(nn.Module):
    def __init__(self, shape: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.head, self.shape = filled(nn.Linear(10, 3), 1, 3.0), shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(self.head(x))


def first(out: Any) -> Tensor:
    return out[0]


class Record:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def attacked(model: Any, x: Tensor) -> None:
    """Attack and explain, and check the verdicts by hand."""
    y = predicted(model, x) if not isinstance(model, nn.Module) else predicted(wrap(model), x)
    kept = x.detach().clone()
    result = pgd(Linf(0.2), 5)(model, x, y)
    assert torch.equal(x.detach(), kept), "the input was changed"
    assert torch.equal(result.success, predicted(model, result.x) != y)
    assert (result.x - x).abs().max() <= 0.2 + 1e-6 and result.x.dtype == x.dtype
    assert result.x.shape == x.shape and not result.x.requires_grad
    map_ = explain.integrated_gradients(5)(model, x, y)
    assert map_.shape == x.shape and map_.abs().sum() > 0


def test_in_place_first_operations(table: Tensor) -> None:
    attacked(filled(FirstInPlace(), 1, 3.0), table.float())
    attacked(filled(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(10, 3)), 1, 3.0), table.float())


def test_in_place_preprocessing(table: Tensor) -> None:
    def centred(x: Tensor) -> Tensor:
        return x.sub_(0.5) if not x.requires_grad or x.grad_fn is not None else x - 0.5

    net = filled(nn.Linear(10, 3), 1, 3.0)
    attacked(wrap(net, preprocess=centred), table.float())
    plain = wrap(net, preprocess=(0.5, 1.0))
    assert torch.equal(plain(table.float()), wrap(net, preprocess=centred)(table.float()))


def test_outputs_of_every_kind(table: Tensor) -> None:
    x = table.float()
    logits = wrap(Answering(lambda z: z))
    same_logits = [
        wrap(Answering(lambda z: {"logits": z, "loss": None})),
        wrap(Answering(Record)),
        wrap(Answering(lambda z: (z, z * 0)), outputs=first),
    ]
    for model in same_logits:
        assert torch.equal(model(x), logits(x))
        attacked(model, x)
    soft = wrap(Answering(lambda z: torch.softmax(z, 1)), outputs="probabilities")
    assert torch.allclose(torch.softmax(soft(x), 1), torch.softmax(logits(x), 1), atol=1e-6)
    attacked(soft, x)
    for shape in (lambda z: z[:, 0], lambda z: z[:, :1]):
        single = wrap(Answering(shape), outputs="logit")
        assert single(x).shape == (11, 2)
        assert torch.equal(single(x).argmax(1), (logits(x)[:, 0] > 0).long())
        attacked(single, x)
    with pytest.raises(ModelError, match="returned tuple"):
        fgsm(Linf(0.1))(Answering(lambda z: (z, z)), x, torch.zeros(11).long())


def test_mean_and_std_are_part_of_the_model(images: Tensor) -> None:
    net = filled(SmallNet(), 5, 2.0)
    model = wrap(net, preprocess=([0.3], [0.2]))
    net.eval()
    assert torch.equal(model(images), net((images - 0.3) / 0.2))
    attacked(model, images)
    table = wrap(
        filled(nn.Linear(4, 3), 1), bounds=(-9, 9), preprocess=([0, 1, 2, 3], [1, 2, 3, 4])
    )
    x = rand(3, 4, seed=1)
    by_hand = table.net((x - torch.arange(4)) / torch.arange(1, 5))
    assert torch.equal(table(x), by_hand)


def test_dropout_and_batch_norm_are_in_evaluation_mode(net: nn.Module, images: Tensor) -> None:
    y = predicted(net, images)
    one, two = (pgd(Linf(0.1), 4)(net.train(), images, y) for _ in range(2))
    three = pgd(Linf(0.1), 4)(net.eval(), images, y)
    assert torch.equal(one.x, two.x) and torch.equal(one.x, three.x)
    attacked(net, images)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = filled(nn.Linear(10, 3), 1, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + 1e-4 * torch.randn_like(x))


def test_a_random_net_draws_from_a_fork_seeded_by_us(table: Tensor) -> None:
    x = table.float()
    y = predicted(Noisy(), x)
    state = torch.random.get_rng_state()
    one = pgd(Linf(0.05), 4)(Noisy(), x, y, seed=1)
    torch.rand(5)
    two = pgd(Linf(0.05), 4)(Noisy(), x, y, seed=1)
    assert torch.equal(one.x, two.x)
    torch.random.set_rng_state(state)


def test_a_net_that_throws_dice_is_refused(table: Tensor) -> None:
    class Dice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(len(x), 3) + 0 * x[:, :3]

    x = table.float().repeat(20, 1)
    with pytest.raises(ModelError, match="did not hold in a second forward"):
        pgd(Linf(0.1), 10)(Dice(), x, torch.zeros(len(x)).long())


def test_inputs_of_every_layout(net: nn.Module, images: Tensor) -> None:
    y = predicted(net, images)
    for threat in (Linf(0.1), L2(0.5), L1(2.0)):
        expected = pgd(threat, 4)(net, images, y)
        for x in (
            images.to(memory_format=torch.channels_last),
            images.transpose(2, 3).contiguous().transpose(2, 3),
            images.repeat_interleave(2, 0)[::2],
            images.clone().requires_grad_(),
        ):
            found = pgd(threat, 4)(net, x, y)
            torch.testing.assert_close(found.x, expected.x, rtol=0, atol=1e-5)
            assert torch.equal(found.success, expected.success)
            if x.requires_grad:
                assert x.grad is None
    three = rand(4, 3, 5, 5, seed=1).to(memory_format=torch.channels_last)
    head = filled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 3)), 2, 2.0)
    plain = explain.smoothgrad(5)(head, three.contiguous(), 1)
    torch.testing.assert_close(explain.smoothgrad(5)(head, three, 1), plain)


@pytest.mark.parametrize("classes", [2, 3, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_of_any_number_of_classes(classes: int, dtype: torch.dtype) -> None:
    net = filled(nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, classes)), 1, 3.0)
    x = rand(5, 7, seed=2, dtype=dtype)
    attacked(net.to(dtype), x)
    y = predicted(net, x)
    result = pgd(Linf(0.2), 4, objective="margin", restarts=2)(net, x, y)
    assert torch.equal(result.success, predicted(net, result.x) != y)


def test_attacks_work_where_gradients_are_switched_off(case) -> None:
    model, x, y = case
    expected = pgd(Linf(0.05), 4)(model, x, y)
    with torch.no_grad():
        found = pgd(Linf(0.05), 4)(model, x, y)
        map_ = explain.saliency()(model, x, y)
    assert torch.equal(found.x, expected.x) and torch.equal(map_, explain.saliency()(model, x, y))


def test_unbounded_tables_far_from_zero() -> None:
    """No box and values of thousands: rounding must not push every point out of the ball."""
    case = linear_case(2, 7, 27, dtype=torch.float32)
    weight, shift = case.weight, 4000.0
    bias = case.bias - weight @ torch.full((12,), shift)
    layer = nn.Linear(12, 2)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    x = case.x * 10 + shift
    model = wrap(layer, bounds=(float("-inf"), float("inf")))
    y = predicted(model, x)
    for threat in (Linf(5.0), L2(20.0), L1(60.0)):
        result = pgd(threat, 10)(model, x, y)
        assert result.success.all(), type(threat)
        assert (result.distance <= threat.eps * (1 + 1e-6)).all()
        assert not isinstance(threat, Ball) or result.distance.max() > 0.5 * threat.eps
