"""The losses of single defences: against their papers' words, and against algebra."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from conftest import Counter, SmallNet, filled, linear_case, rand, softened
from replicas import training as slow
from torch import Tensor, nn

from foible import attacks, defend
from foible.core.errors import InputError, KindError
from foible.defend import Batch, Loss
from foible.defend.breaking import defence_of
from foible.models import wrap
from foible.parts.threats import L2, Linf, Spatial

EPS = 0.07


def batch_of(net: nn.Module, rows: int = 7, **given: object) -> Batch:
    x = rand(rows, 10, seed=4, dtype=torch.float64)
    y = torch.arange(rows) % 3
    return Batch(wrap(net), x, y, torch.arange(rows), **given)  # type: ignore[arg-type]


def step(loss: Loss, batch: Batch, rate: float = 0.1) -> None:
    """One step of plain gradient descent on the mean, as a trainer takes it."""
    batch.net.zero_grad()
    with loss.around(batch):
        loss(batch).mean().backward()
    with torch.no_grad():
        for p in batch.net.parameters():
            assert p.grad is not None
            p -= rate * p.grad


# ---------------------------------------------------------------- ensemble training


def test_ensemble_training_is_the_papers_loss_on_the_drawn_source() -> None:
    net, others = softened(), [softened(0.4), softened(1.0)]
    loss = defend.ensemble_training(attacks.fgsm(Linf(EPS)), others)
    seen = set()
    for progress in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
        batch = batch_of(net, progress=progress, seed=3)
        source = loss.source(batch)
        seen.add(id(source.net))
        wanted = slow.ensemble(net, source.net, batch.x, batch.y, EPS)
        assert loss(batch).tolist() == pytest.approx(wanted, abs=1e-12)
    assert len(seen) == 3


def test_each_source_is_drawn_at_its_rate_and_once_a_batch() -> None:
    net, others = softened(), [softened(0.4), softened(1.0)]
    loss = defend.ensemble_training(attacks.fgsm(Linf(EPS)), others)
    drawn = [loss.source(batch_of(net, 2, progress=k / 3000, seed=5)) for k in range(3000)]
    for net_of in (net, *others):
        share = sum(source.net is net_of for source in drawn) / len(drawn)
        assert share == pytest.approx(1 / 3, abs=0.03)  # 3.5 standard deviations
    again = [loss.source(batch_of(net, 5, progress=k / 3000, seed=5)) for k in range(50)]
    assert [s.net for s in again] == [s.net for s in drawn[:50]]  # whatever the batch holds


def test_a_source_is_left_as_it_was() -> None:
    source = softened(0.4).train()
    loss = defend.ensemble_training(attacks.fgsm(Linf(EPS)), [source])
    for k in range(4):
        loss(batch_of(softened(), progress=k / 4)).sum().backward()
    assert source.training and all(p.grad is None and p.requires_grad for p in source.parameters())
    with pytest.raises(InputError, match="sources is empty"):
        defend.ensemble_training(attacks.fgsm(Linf(EPS)), [])


# ---------------------------------------------------------------- gradient penalty


@pytest.mark.parametrize("weight", [0.5, 110.0])
def test_the_gradient_penalty_is_the_papers(weight: float) -> None:
    batch = batch_of(softened())
    wanted = slow.gradient_penalty(batch.net, batch.x, batch.y, weight)
    assert defend.gradient_penalty(weight)(batch).tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("of", ["label", "all"])
def test_the_gradient_penalty_of_a_linear_model_in_closed_form(of: str) -> None:
    """d CE / d x is W^T (p - e_y), d sum log p / d x is W^T (1 - K p)."""
    case = linear_case(4, 9, seed=2)
    x = case.x.clone()
    batch = Batch(case.model, x, case.y, torch.arange(len(x)))
    found = defend.gradient_penalty(3.0, of)(batch) - defend.plain()(batch)
    p = (x @ case.weight.T + case.bias).softmax(1)
    inner = p - F.one_hot(case.y, 4) if of == "label" else 1 - 4 * p
    torch.testing.assert_close(found, 3.0 * (inner @ case.weight).square().sum(1))


def test_the_penalty_teaches_the_weights_through_the_second_derivative() -> None:
    net = softened()
    batch, loss = batch_of(net), defend.gradient_penalty(2.0)
    net.zero_grad()
    loss(batch).sum().backward()
    weight, h = net[0].weight, 1e-5
    values = []
    for move in (h, -h):
        other = copy.deepcopy(net)
        with torch.no_grad():
            other[0].weight[2, 3] += move
        values.append(sum(slow.gradient_penalty(other, batch.x, batch.y, 2.0)))
    assert float(weight.grad[2, 3]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


def test_the_published_weight_on_our_scale() -> None:
    """56,234 times half the squared gradients of a mean over 256 is 110 times their mean."""
    net = filled(nn.Sequential(nn.Linear(10, 3)), 1).double()
    x, y = rand(256, 10, seed=1, dtype=torch.float64), torch.arange(256) % 3
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
    published = 56_234 * grad.square().sum() / 2
    batch = Batch(wrap(net), x, y, torch.arange(256))
    ours = (defend.gradient_penalty(56_234 / 512)(batch) - defend.plain()(batch)).mean()
    assert float(ours.detach()) == pytest.approx(float(published), rel=1e-9)


def test_a_gradient_penalty_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="plain"):
        defend.gradient_penalty(0)
    with pytest.raises(InputError, match="choose 'label' or 'all'"):
        defend.gradient_penalty(1.0, "some")


# ---------------------------------------------------------------- weight perturbation


def test_awp_moves_the_weights_as_the_authors_proxy_does() -> None:
    net = softened()
    batch = batch_of(net)
    wanted = slow.awp_weights(net, batch.x, batch.y, 0.02)
    before = float(defend.plain()(batch).mean().detach())
    with defend.awp(defend.plain(), 0.02).around(batch):
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.detach(), wanted[name], rtol=1e-10, atol=1e-12)
        assert float(defend.plain()(batch).mean().detach()) > before


@pytest.mark.parametrize("broken", [False, True])
def test_awp_restores_the_weights_bit_for_bit(broken: bool) -> None:
    net = filled(SmallNet(), 5, 2.0).train()
    batch = Batch(wrap(net), rand(6, 1, 6, 6, seed=6), torch.arange(6) % 4, torch.arange(6))
    before = {k: v.clone() for k, v in net.named_parameters()}
    loss = defend.awp(defend.adversarial(attacks.pgd(Linf(0.1), 2)), 0.05)
    counted = int(net.norm.num_batches_tracked)
    try:
        with loss.around(batch):
            assert any(not torch.equal(p, before[k]) for k, p in net.named_parameters())
            loss(batch).mean().backward()
            if broken:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert all(torch.equal(p, before[k]) for k, p in net.named_parameters())
    assert all(p.grad is not None for p in net.parameters())
    assert int(net.norm.num_batches_tracked) == counted + 1  # the first look leaves no trace
    assert batch.crafted is None


def test_awp_is_validated_as_the_loss_within_is() -> None:
    """Bounds by what is certified, not by clean accuracy alone."""
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), rand(6, 1, 6, 6, seed=6)
    y = wrap(net)(x).argmax(1)
    inner = defend.interval(0.3)
    got = defend.awp(inner).withstands(wrap(net), x, y)
    assert got is not None and torch.equal(got, inner.withstands(wrap(net), x, y))
    assert not bool(got.all())


def test_awp_learns_at_the_moved_weights_from_adversarials_of_the_old_ones() -> None:
    net, attack = softened(), attacks.pgd(Linf(EPS), 3)
    batch = batch_of(net, seed=2)
    x_adv = batch.craft(attack)
    moved = copy.deepcopy(net)
    wanted = slow.awp_weights(net, x_adv, batch.y, 0.02)
    moved.load_state_dict(wanted)
    F.cross_entropy(moved(x_adv), batch.y).backward()
    counter = Counter(wrap(net))
    batch = batch_of(net, seed=2)
    batch.model = counter  # type: ignore[assignment]
    step(defend.awp(defend.adversarial(attack), 0.02), batch)
    assert counter.forwards == 7 * (3 + 2)  # crafted once, looked at twice
    for ours, theirs in zip(net.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_awp_is_the_loss_itself_while_it_is_not_yet_warm() -> None:
    one, two = softened(), softened()
    inner = defend.adversarial(attacks.pgd(Linf(EPS), 3))
    step(inner, batch_of(one, progress=0.1))
    step(defend.awp(inner, 0.02, warm=0.2), batch_of(two, progress=0.1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@dataclass(frozen=True)
class Asking(defend.losses.Plain):
    """A loss with wishes of its own, which awp must pass on."""

    @property
    def extras(self) -> int:
        return 2

    def prepare(self, net: nn.Module) -> nn.Module:
        return nn.Sequential(net)

    def finish(self, net: nn.Module) -> nn.Module:
        return net[0]


def test_awp_passes_on_what_its_loss_wishes() -> None:
    attack = attacks.pgd(Linf(EPS), 3)
    loss, net = defend.awp(Asking()), softened()
    assert loss.extras == 2 and loss.finish(loss.prepare(net)) is net
    assert defend.awp(defend.adversarial(attack)).against == attack
    with pytest.raises(InputError, match="looks once"):
        defend.awp(defend.free(Linf(EPS), 2))
    with pytest.raises(KindError, match="pass one"):
        defend.awp(attack)  # type: ignore[arg-type]


# ---------------------------------------------------------------- free training


def test_free_training_is_the_papers_algorithm() -> None:
    net, twin = softened(), softened()
    x = rand(15, 10, seed=9, dtype=torch.float64)
    y = torch.arange(15) % 3
    batches = list(zip(x.split(6), y.split(6), strict=True))  # the last one is smaller
    wanted = slow.free_training(twin, batches, EPS, 3, 0.1)
    memory: dict[str, Tensor] = {}
    loss = defend.free(Linf(EPS), replays=3)
    for a, b in batches:
        for replay in range(loss.replays):
            ids = torch.arange(len(a))
            step(loss, Batch(wrap(net), a, b, ids, memory=memory, replay=replay))
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert list(memory) == ["free/change"]
    torch.testing.assert_close(memory["free/change"], wanted)
    assert float(wanted.abs().max()) > 0


def test_free_training_with_one_replay_is_fgsm_training_from_the_last_change() -> None:
    net = softened()
    memory: dict[str, Tensor] = {}
    batch = batch_of(net, memory=memory)
    before = copy.deepcopy(net)
    step(defend.free(Linf(EPS), 1), batch)
    pairs = zip(batch.x, batch.y, strict=True)
    signs = torch.stack([slow.input_gradient(before, a, b).sign() for a, b in pairs])
    torch.testing.assert_close(memory["free/change"], EPS * signs)
    found = defend.free(Linf(EPS), 1)(batch_of(net, memory=memory))
    at = (batch.x + memory["free/change"]).clamp(0, 1)
    torch.testing.assert_close(found, F.cross_entropy(net(at), batch.y, reduction="none"))


def test_free_training_within_another_ball_and_with_a_larger_batch() -> None:
    net, memory = softened(), {}
    loss = defend.free(L2(0.3))
    step(loss, batch_of(net, 3, memory=memory))
    step(loss, batch_of(net, 7, memory=memory))
    size = memory["free/change"].norm(dim=1)
    assert len(size) == 7 and float(size.max()) <= 0.3 + 1e-9 and float(size.min()) > 0.1
    with torch.no_grad():
        loss(batch_of(net, 7, memory=memory))  # looked at without learning
    assert torch.equal(memory["free/change"].norm(dim=1), size)
    overflown = torch.full((7, 10), float("inf"), dtype=torch.float64)
    rows = batch_of(net, 7).rows()
    before = memory["free/change"].clone()
    loss.carry(memory, replace(rows, eps=torch.full((7,), 0.3)), before, overflown)
    torch.testing.assert_close(memory["free/change"], before)
    with pytest.raises(KindError, match="norm ball"):
        defend.free(Spatial(10.0))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="eps"):
        defend.free(Linf())


def test_a_defence_that_is_broken_is_named_on_its_net() -> None:
    attack = attacks.fgsm(Linf(EPS))
    for name, loss in {
        "ensemble_training": defend.ensemble_training(attack, [softened(0.4)]),
        "gradient_penalty": defend.gradient_penalty(1.0),
        "distillation": defend.distilled(softened(0.4)),
    }.items():
        net = loss.finish(softened())
        assert defence_of(net) == name == defend.breaker(name).name
        own = nn.Sequential()
        own.defence = nn.Linear(2, 2)
        assert isinstance(loss.finish(own).defence, nn.Linear)
    assert defence_of(defend.denoised(SmallNet(), defend.UNet())) == "guided_denoiser"


def test_losses_repeat_themselves_under_a_seed() -> None:
    attack = attacks.pgd(Linf(EPS), 3)
    for loss in (
        defend.ensemble_training(attacks.r_fgsm(Linf(EPS)), [softened(0.4)]),
        defend.awp(defend.trades(attack)),
        defend.free(Linf(EPS)),
    ):
        nets = [softened(), softened()]
        for net in nets:
            memory: dict[str, Tensor] = {}
            for k in range(3):
                step(loss, batch_of(net, progress=k / 3, seed=8, memory=memory))
        pairs = zip(nets[0].parameters(), nets[1].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert not torch.equal(nets[0][0].weight, softened()[0].weight)
