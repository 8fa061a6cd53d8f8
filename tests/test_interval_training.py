"""Training on interval bounds: the loss, its ramp, and that what it trains can be certified."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import Own, images, seeded
from torch import Tensor, nn

from foible import defend
from foible.core.errors import InputError, ModelError
from foible.defend.batch import Batch
from foible.defend.certify import bounds, certified
from foible.defend.training.devices import Devices
from foible.defend.training.validating import Validation
from foible.models import wrap


def net() -> nn.Module:
    def make() -> nn.Module:
        body = [nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 16), nn.ReLU()]
        return nn.Sequential(*body, nn.Linear(16, 3))

    return seeded(make)


def batch(model: nn.Module, progress: float, count: int = 6) -> Batch:
    y = torch.arange(count) % 3
    return Batch(wrap(model), images(count), y, torch.arange(count), progress=progress)


@pytest.mark.parametrize("progress", [0.0, 0.2, 0.4, 0.9])
def test_the_loss_is_the_papers(progress: float) -> None:
    model, loss = net(), defend.interval(0.1, kappa_end=0.25, ramp=0.4)
    one = batch(model, progress)
    grown = min(1.0, progress / 0.4)
    kappa = 1 - 0.75 * grown
    # The worst logits: of the last layer less the row of y, over the box of what enters it.
    lower, upper = bounds(model[:-1], one.x, 0.1 * grown)
    want = []
    for i in range(6):
        weight = model[-1].weight - model[-1].weight[one.y[i]]
        bias = model[-1].bias - model[-1].bias[one.y[i]]
        worst = weight.clamp(min=0) @ upper[i] + weight.clamp(max=0) @ lower[i] + bias
        clean = F.cross_entropy(model(one.x[i : i + 1]), one.y[i : i + 1])
        want.append(kappa * clean + (1 - kappa) * F.cross_entropy(worst[None], one.y[i : i + 1]))
    torch.testing.assert_close(loss(one), torch.stack(want))
    if progress == 0:
        torch.testing.assert_close(
            loss(one), F.cross_entropy(model(one.x), one.y, reduction="none")
        )


def test_the_worst_is_worse_than_any_adversarial_and_reaches_all_parameters() -> None:
    model = net()
    one, loss = batch(model, 1.0), defend.interval(0.05, kappa_end=0.0)
    from foible.attacks import pgd
    from foible.parts.threats import Linf

    x_adv = one.craft(pgd(Linf(0.05), steps=20))
    values = loss(one)
    assert bool((values >= F.cross_entropy(model(x_adv), one.y, reduction="none")).all())
    values.mean().backward()
    assert all(bool((p.grad != 0).any()) for p in model.parameters())


def shapes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Bars at one of three heights, with noise."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=g)
    x = 0.3 * torch.rand(count, 1, 8, 8, generator=g)
    for i in range(count):
        x[i, 0, 3 * int(y[i]) : 3 * int(y[i]) + 2] += 0.7
    return x, y


def test_what_is_trained_so_can_be_certified() -> None:
    (x, y), (tx, ty) = shapes(512, 0), shapes(200, 1)
    rates = {}
    settings = defend.Settings(batch=64, lr=1e-2, average=0.0)
    for name, loss in {
        "plain": defend.plain(),
        "interval": defend.interval(0.15, ramp=0.3),
    }.items():
        model = defend.train(net(), (x, y), loss, 16, valid=(tx, ty), settings=settings)
        assert (model(tx).argmax(1) == ty).float().mean() > 0.95
        rates[name] = certified(model, tx, ty, 0.15).float().mean().item()
    assert rates["interval"] > 0.9 > 0.5 > rates["plain"]


def test_validation_counts_what_is_certified() -> None:
    model, loss = net(), defend.interval(0.02)
    (x, y), settings = shapes(60, 2), defend.Settings(watch=None)
    watched = Validation((x, y), loss, settings)
    clean, robust = watched.accuracy(wrap(model), Devices("no"))
    assert clean == float((model(x).argmax(1) == y).double().mean())
    assert robust == float(certified(model, x, y, 0.02).double().mean())


def test_batch_norm_in_training_mode_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="batch norm is served in evaluation mode only"):
        defend.interval(0.1)(batch(Own().train(), 0.5))


@pytest.mark.parametrize("given", [{"eps": 0.0}, {"kappa_end": 1.5}, {"ramp": -0.1}])
def test_numbers_out_of_range(given: dict[str, float]) -> None:
    with pytest.raises(InputError):
        defend.interval(**{"eps": 0.1, **given})
