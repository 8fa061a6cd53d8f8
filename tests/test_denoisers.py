"""The guided denoiser: its loss by hand, who learns, and that gradients pass through it."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import SmallNet, filled, rand
from replicas import training as slow
from torch import Tensor, nn

from foible import attacks, defend
from foible.core.errors import InputError, KindError
from foible.defend import Batch, Settings
from foible.models import wrap
from foible.parts.threats import Linf


def centred(net: nn.Module, head: nn.Linear, x: Tensor) -> nn.Module:
    """Give a net as many predictions of each class, roughly: its scores have mean 0 on x."""
    with torch.no_grad():
        head.bias -= net.eval()(x).mean(0)
    return net


def image_net(classes: int = 4) -> nn.Module:
    net = filled(SmallNet(classes), 5, 2.0)
    return centred(net, net.head, rand(80, 1, 6, 6, seed=6))


def denoising_batch(
    to: str = "logits", vary: bool = True
) -> tuple[defend.Loss, Batch, nn.Module, nn.Module]:
    net = filled(SmallNet(), 5, 2.0).eval().double()
    unet = defend.UNet(1, (4, 8)).double()
    nn.init.normal_(unet.last.weight, 0, 0.3, generator=torch.Generator().manual_seed(1))
    attack = attacks.fgsm(Linf(0.1))
    loss = defend.guided_denoiser(wrap(net), attack, to, vary)
    x = rand(5, 1, 6, 6, seed=6, dtype=torch.float64)
    model = wrap(loss.prepare(unet))
    batch = Batch(model, x, torch.arange(5) % 4, torch.arange(5), seed=2)
    return loss, batch, net, unet


@pytest.mark.parametrize("to", ["logits", "pixels", "conv"])
def test_the_guided_loss_by_hand(to: str) -> None:
    loss, batch, net, unet = denoising_batch(to, vary=False)
    found = loss(batch)
    for i, (x, y) in enumerate(zip(batch.x, batch.y, strict=True)):
        moved = slow.fgsm_of(net, x, y, 0.1)[None]
        clean = unet(moved)
        if to == "pixels":
            wanted = (clean - x).square().mean()
        elif to == "logits":
            wanted = (net(clean) - net(x[None])).abs().mean()
        else:
            wanted = (net.conv(clean) - net.conv(x[None])).abs().mean()
        assert float(found[i].detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)


def test_only_the_denoiser_learns_and_the_classifier_stays_whole() -> None:
    loss, batch, net, unet = denoising_batch()
    before = copy.deepcopy(net.state_dict())
    batch.net.train()
    loss(batch).mean().backward()
    defended = batch.net
    assert unet.training and not defended.classifier.training
    assert all(p.grad is not None for p in unet.parameters())
    assert all(p.grad is None for p in defended.classifier.parameters())
    assert all(p.requires_grad for p in net.parameters())  # it learnt from a copy
    now = defended.classifier.state_dict()
    assert all(torch.equal(now[k], before[k]) for k in before)
    with pytest.raises(KindError, match="trains Denoised"):
        loss(Batch(wrap(unet), batch.x, batch.y, batch.ids))


def test_every_sample_has_noise_of_its_own_size() -> None:
    loss, batch, *_ = denoising_batch()
    attack = loss.attack_of(batch)
    eps = torch.tensor(attack.threat.eps)
    assert eps.shape == (5,) and 0 < float(eps.min()) < float(eps.max()) <= 0.1
    x_adv = batch.craft(attack, against=loss.model)
    size = (x_adv - batch.x).flatten(1).abs().amax(1)
    assert bool((size <= eps + 1e-7).all()) and float(size.max()) > 0.5 * float(eps.max())
    two = defend.guided_denoiser(loss.model, [attacks.fgsm(Linf(0.1)), attacks.pgd(Linf(0.1), 2)])
    names = set()
    for k in range(20):
        batch.progress = k / 20
        names.add(two.attack_of(batch).name)
    assert names == {"fgsm", "pgd"}


def test_a_denoiser_begins_as_the_identity_and_gradients_pass_through_it() -> None:
    net, x = image_net(), rand(4, 1, 7, 9, seed=6)
    unet = defend.UNet()
    assert torch.equal(unet(x), x)
    one, two = defend.UNet(seed=1), defend.UNet(seed=1)
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.first[0].weight, unet.first[0].weight)
    x = rand(6, 1, 6, 6, seed=6)
    with torch.no_grad():
        y = net(x).argmax(1)
    attack = attacks.pgd(Linf(0.3), 5)
    bare, whole = attack(net, x, y), attack(defend.denoised(net, unet), x, y)
    torch.testing.assert_close(bare.x, whole.x)
    assert bool(whole.success.any())
    nn.init.normal_(unet.last.weight, 0, 0.3, generator=torch.Generator().manual_seed(1))
    changed = attack(defend.denoised(net, unet), x, y)
    assert not torch.equal(changed.x, whole.x)


def test_a_denoiser_is_trained_by_the_trainer_and_chosen_by_what_it_stops() -> None:
    net, x = image_net(2), rand(80, 1, 6, 6, seed=6)
    with torch.no_grad():
        y = net(x).argmax(1)
    attack = attacks.pgd(Linf(0.05), 3)
    loss = defend.guided_denoiser(net, attack)
    how = Settings(batch=20, lr=0.01, average=0.0, hold_out=0.0)
    defended = defend.train(defend.UNet(1, (4, 8)), (x, y), loss, epochs=20, settings=how)
    found = attack(net, x, y).x
    with torch.no_grad():
        before = (net(found).argmax(1) == y).float().mean()
        after = (defended(found).argmax(1) == y).float().mean()
        clean = (defended(x).argmax(1) == y).float().mean()
    assert float(after) > float(before) + 0.15 and float(clean) >= 0.95
    assert loss.against.source is loss.model


def test_a_denoiser_refuses_nonsense() -> None:
    net = filled(SmallNet(), 5, 2.0)
    with pytest.raises(InputError, match="empty"):
        defend.guided_denoiser(net, [])
    with pytest.raises(InputError, match="single eps"):
        defend.guided_denoiser(net, attacks.fgsm(Linf(torch.tensor([0.1, 0.2]))))
    with pytest.raises(InputError, match="multiple of 4"):
        defend.UNet(1, (5, 8))
