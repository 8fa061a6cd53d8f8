"""AdvProp: two sets of batch norms, one loss, and the net that is handed out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import images, seeded, train
from torch import Tensor, nn

import foible
from foible import defend
from foible.core.errors import InputError
from foible.defend.batch import Batch
from foible.defend.nets import TwinNorm, main_norms
from foible.models import wrap


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


ADVPROP = defend.advprop(foible.attacks.pgd(foible.Linf(0.1), steps=2))


def test_each_population_has_its_own_norms() -> None:
    net = train(seeded(Normed), ADVPROP)
    norm = net.body[1]
    assert isinstance(norm, TwinNorm) and not norm.aside
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert not torch.equal(getattr(norm.main, name), getattr(norm.auxiliary, name))
    assert int(norm.main.num_batches_tracked) == int(norm.auxiliary.num_batches_tracked) == 3
    x = images()
    usual = net.eval()(x)
    with defend.through_auxiliary(net):
        aside = net(x)
        with defend.through_auxiliary(net):
            pass
        assert torch.equal(net(x), aside)
    assert torch.equal(net(x), usual) and not torch.allclose(usual, aside)
    made = ADVPROP.finish(net)
    assert type(made) is Normed and type(made.body[1]) is nn.BatchNorm2d
    assert list(made.state_dict()) == list(seeded(Normed).state_dict())
    assert torch.equal(made(x), usual)
    torch.testing.assert_close(main_norms(net, auxiliary=True)(x), aside)


def test_the_loss_is_clean_by_main_plus_adversarial_by_auxiliary() -> None:
    net = ADVPROP.prepare(seeded(Normed)).train()
    with torch.no_grad():
        net.body[1].auxiliary.weight.mul_(1.5)
    x, y = images(6), torch.arange(6) % 3
    batch = Batch(wrap(net), x, y, torch.arange(6), seed=3)
    other = main_norms(net, auxiliary=True)
    x_adv = Batch(wrap(other), x, y, torch.arange(6), seed=3).craft(ADVPROP.attack)
    main = main_norms(net)
    want = F.cross_entropy(main(x), y, reduction="none")
    want = want + F.cross_entropy(other(x_adv), y, reduction="none")
    torch.testing.assert_close(ADVPROP(batch), want)


def test_an_error_within_gives_the_main_norms_back() -> None:
    net = defend.split_norms(seeded(Normed))
    with pytest.raises(RuntimeError, match="stop"), defend.through_auxiliary(net):
        raise RuntimeError("stop")
    assert not net.body[1].aside


def test_a_net_without_batch_norm_is_refused() -> None:
    with pytest.raises(InputError, match="no batch norm"):
        ADVPROP.prepare(foible.zoo.networks.small_cnn())
    root = defend.split_norms(nn.BatchNorm1d(3))
    assert isinstance(root, TwinNorm)


def test_the_trainer_hands_out_the_class_that_it_got() -> None:
    net = seeded(Normed)
    data = images(64), torch.arange(64) % 3
    settings = defend.Settings(batch=16, hold_out=0, average=0.0)
    made = defend.train(net, data, ADVPROP, epochs=1, settings=settings)
    assert type(made) is Normed and list(made.state_dict()) == list(net.state_dict())
    assert not torch.equal(made.body[1].running_mean, net.body[1].running_mean)
    assert int(made.body[1].num_batches_tracked) == 4  # the clean batches alone
