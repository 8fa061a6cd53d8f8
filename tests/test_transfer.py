"""Attacks made on one model and judged on another: momentum, diversity, shifts, ensembles."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import Counter, SmallNet, filled, linear_case, predicted, rand, randn, softened
from test_no_trace import everything_about, same
from torch import Tensor, nn

from foible import zoo
from foible.attacks import Diverse, bim, fgsm, mim, pgd, substitute, ti_dim, transfer
from foible.attacks.rivals import Rivals
from foible.core.access import Access
from foible.core.errors import AccessError, InputError, KindError, ModelError
from foible.models import ensemble, softplus_twin, wrap
from foible.parts.objectives import Nearest
from foible.parts.searches import Ascent
from foible.parts.smoothing import gaussian, smooth
from foible.parts.threats import L1, L2, Linf
from foible.parts.transforms import Noise, ResizePad

# --- smoothing over positions


def smoothed_slowly(grad: Tensor, size: int) -> Tensor:
    """Dong et al. 2019: each position becomes the weighted sum of its (2k + 1)^2 neighbours."""
    k, out = size // 2, torch.zeros_like(grad)
    sigma = k / 3**0.5
    place = range(-k, k + 1)
    weight = {(i, j): 2.718281828459045 ** (-(i * i + j * j) / (2 * sigma**2))
              for i in place for j in place}  # fmt: skip
    total, (height, width) = sum(weight.values()), grad.shape[-2:]
    for (i, j), w in weight.items():
        for r in range(height):
            for c in range(width):
                if 0 <= r + i < height and 0 <= c + j < width:
                    out[..., r, c] += w / total * grad[..., r + i, c + j]
    return out


@pytest.mark.parametrize("size", [3, 5, 15])
@pytest.mark.parametrize("shape", [(2, 3, 7, 6), (2, 7, 6), (1, 1, 5, 9)])
def test_the_kernel_is_the_papers(size: int, shape: tuple[int, ...]) -> None:
    grad = randn(*shape, seed=1, dtype=torch.float64)
    torch.testing.assert_close(smooth(grad, size), smoothed_slowly(grad, size))
    if len(shape) == 4 and shape[1] == 3:
        last = grad.permute(0, 2, 3, 1)
        torch.testing.assert_close(smooth(last, size).permute(0, 3, 1, 2), smooth(grad, size))


def test_a_kernel_of_one_changes_nothing_and_others_are_refused() -> None:
    assert gaussian(1, torch.zeros(1)).tolist() == [1.0]
    grad = randn(2, 1, 4, 4, seed=1)
    assert smooth(grad, 1) is grad
    for size in (0, 2, -3):
        with pytest.raises(InputError, match="odd"):
            smooth(grad, size)
    with pytest.raises(KindError, match="positions"):
        smooth(randn(2, 9, seed=1), 3)


# --- the parts, put together


def test_with_all_parts_out_it_is_bim_and_with_momentum_alone_it_is_mim(net, images) -> None:
    y = predicted(net, images)
    bare = ti_dim(Linf(0.1), 4, decay=0, diversity=0, kernel=1)
    assert torch.equal(bare(net, images, y).x, bim(Linf(0.1), 4, 0.1 / 4)(net, images, y).x)
    moving = ti_dim(L2(0.7), 4, diversity=0, kernel=1)
    assert torch.equal(moving(net, images, y).x, mim(L2(0.7), 4)(net, images, y).x)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.7), L1(3.0)])
def test_diversity_that_never_happens_is_the_plain_gradient(threat, net, images) -> None:
    y = predicted(net, images)
    never = Diverse(ResizePad(p=0.0))
    assert torch.equal(
        fgsm(threat, never)(net, images, y).x, fgsm(threat)(net, images, y).x
    )  # fmt: skip
    always = Diverse(ResizePad(low=0.6, high=0.8, p=1.0))
    assert not torch.equal(
        fgsm(threat, always)(net, images, y).x, fgsm(threat)(net, images, y).x
    )  # fmt: skip


def carried_by_hand(net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """MI, TI and SI as the papers write them, without the random resizing: the last point."""
    velocity, at = torch.zeros_like(x), x.clone()
    for _ in range(steps):
        leaf = at.clone().requires_grad_()
        loss = sum(F.cross_entropy(net(leaf / 2**i), y, reduction="sum") for i in range(2)) / 2
        loss.backward()
        grad = smoothed_slowly(leaf.grad, 3)
        velocity = velocity + grad / grad.abs().mean((1, 2, 3), keepdim=True)
        at = (at + eps / steps * velocity.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return at


def test_momentum_shifts_and_scales_do_what_the_papers_say() -> None:
    net = filled(SmallNet(), 5, 2.0).double().eval()
    x = 0.2 + 0.6 * rand(8, 1, 6, 6, seed=6, dtype=torch.float64)
    y = predicted(net, x)
    attack = ti_dim(Linf(0.1), 3, diversity=0, kernel=3, scales=2)
    found, wanted = attack(net, x, y), carried_by_hand(net, x, y, 0.1, 3)
    # The best point is kept, which is seldom another than the last.
    last = (found.x - wanted).abs().flatten(1).amax(1) < 1e-9
    worse = F.cross_entropy(net(found.x), y, reduction="none") > F.cross_entropy(
        net(wanted), y, reduction="none"
    )
    assert bool((last | worse).all()) and int(last.sum()) >= 4


def test_a_row_does_not_know_who_shares_its_batch(images) -> None:
    net = filled(SmallNet(), 5, 2.0).double()
    x = images.double()
    y = predicted(net, x)
    attack = ti_dim(Linf(0.1), 4, scales=2)
    together = attack(net, x, y)
    for chunk in (1, 4):
        torch.testing.assert_close(attack(Counter(wrap(net), at_most=chunk), x, y).x, together.x)
    which = torch.tensor([6, 2])
    alone = attack(net, x[which], y[which], ids=which)
    torch.testing.assert_close(alone.x, together.x[which], rtol=0, atol=1e-9)
    assert not torch.equal(attack(net, x, y, seed=1).x, together.x)


def test_channels_last_is_the_same_attack_on_turned_images(images) -> None:
    class Last(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.permute(0, 3, 1, 2))

    net = filled(SmallNet(), 5, 2.0).double()
    x = images.double()
    y = predicted(net, x)
    first, last = ti_dim(Linf(0.1), 3)(net, x, y), ti_dim(Linf(0.1), 3)(
        Last(net), x.permute(0, 2, 3, 1), y
    )  # fmt: skip
    torch.testing.assert_close(last.x.permute(0, 3, 1, 2), first.x)


def test_tables_take_the_attack_without_the_parts_for_images(case) -> None:
    model, x, y = case
    assert ti_dim(Linf(0.1), 3, diversity=0, kernel=1, scales=2)(model, x, y).x.shape == x.shape
    assert fgsm(Linf(0.1), Diverse(Noise(0.1)))(model, x, y).x.shape == x.shape
    for settings in ({"kernel": 1}, {"diversity": 0}):
        with pytest.raises(KindError, match="images"):
            ti_dim(Linf(0.1), 3, **settings)(model, x, y)
    for settings in ({"decay": -1.0}, {"scales": 0, "diversity": 0.5}, {"diversity": 1.5}):
        with pytest.raises(InputError):
            ti_dim(Linf(0.1), **settings)


# --- transfer


def pair() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Two nets that agree on most samples, and their labels by the second."""
    one = softened()
    two = nn.Sequential(*[filled(nn.Linear(10, 16).double(), 3), nn.Tanh(), nn.Linear(16, 3)])
    two.load_state_dict(one.state_dict())
    two = two.double()
    x = rand(40, 10, seed=4, dtype=torch.float64)
    with torch.no_grad():
        for net in (one, two):
            net[2].bias -= net(x).mean(0)
        for p in two.parameters():
            p += 0.25 * p.abs().mean() * randn(*p.shape, seed=len(p), dtype=torch.float64)
    return one, two, x, predicted(two, x)


def test_the_attacked_model_gives_two_labels_and_judges_alone() -> None:
    source, target, x, y = pair()
    judge = Counter(wrap(target), level=Access.LABELS)
    attack = transfer(pgd(Linf(0.1), 5, stop="success"), source)
    result = attack(judge, x, y)
    assert attack.access == Access.LABELS and attack.stop == "never" == result.stop
    assert judge.forwards == 2 * len(x) and judge.backwards == 0
    assert torch.equal(result.success, predicted(target, result.x) != y)
    assert torch.equal(result.label, predicted(target, result.x))
    assert (result.x - x).abs().max() <= 0.1 * (1 + 1e-6)
    crafted = pgd(Linf(0.1), 5)(source, x, y)
    searched = torch.tensor([s != "wrong" for s in crafted.status])
    assert torch.equal(result.x[searched], crafted.x[searched])
    assert 0 < result.success.sum() < len(x)


def test_from_a_model_to_itself_it_is_the_white_box_attack(net, images) -> None:
    y = predicted(net, images)
    for attack in (pgd(Linf(0.1), 5), fgsm(L2(0.5)), ti_dim(Linf(0.1), 3)):
        white, carried = attack(net, images, y), transfer(attack, net)(net, images, y)
        assert torch.equal(white.x, carried.x) and torch.equal(white.success, carried.success)


def test_samples_that_the_source_gets_wrong_break_nothing() -> None:
    source, target, x, _ = pair()
    y = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
    ranked = fgsm(Linf(0.1))
    for attack in (
        ranked,
        type(ranked)("nearest", Linf(0.1), Ascent(3), Nearest(), prepare=Rivals(Linf(0.1))),
    ):
        result = transfer(attack, source)(target, x, y)
        assert torch.isfinite(result.x).all()
        assert torch.equal(result.success, predicted(target, result.x) != y)


def test_neither_model_keeps_a_trace(images) -> None:
    source, target = filled(SmallNet(), 1, 2.0).train(), filled(SmallNet(), 2, 2.0).train()
    before = everything_about(source), everything_about(target)
    transfer(ti_dim(Linf(0.1), 3), ensemble([source, target]))(
        target, images, images[:, 0, 0, 0].long()
    )
    for was, net in zip(before, (source, target), strict=True):
        now = everything_about(net)
        assert [k for k in was if not same(was[k], now[k])] == []


def test_what_cannot_be_carried_is_refused() -> None:
    source, target, x, y = pair()
    with pytest.raises(KindError, match="pass an attack"):
        transfer(source, source)  # type: ignore[arg-type]
    with pytest.raises(KindError, match="wrap"):
        transfer(fgsm(Linf(0.1)), "standard")
    with pytest.raises(AccessError, match="substitute"):
        transfer(fgsm(Linf(0.1)), Counter(wrap(source), level=Access.SCORES))
    with pytest.raises(InputError, match="bounds"):
        transfer(fgsm(Linf(0.1)), wrap(source, bounds=(0, 255)))(target, x, y)


# --- ensembles


def test_scores_are_fused_as_they_say() -> None:
    one, two, x, _ = pair()
    three = wrap(two)
    logits = [one(x), two(x)]
    torch.testing.assert_close(ensemble([one, three])(x), (logits[0] + logits[1]) / 2)
    torch.testing.assert_close(
        ensemble([one, two], weights=[3, 1])(x), 0.75 * logits[0] + 0.25 * logits[1]
    )
    mean = 0.5 * logits[0].softmax(1) + 0.5 * logits[1].softmax(1)
    torch.testing.assert_close(ensemble([one, two], "probabilities")(x), mean.log())
    torch.testing.assert_close(ensemble([one])(x), logits[0])


def test_where_one_gives_labels_only_all_vote() -> None:
    one, two, x, _ = pair()
    shy = Counter(wrap(one), level=Access.LABELS)
    voting = ensemble([shy, two, two], weights=[1.0, 0.4, 0.4])
    assert voting.access == Access.LABELS
    assert torch.equal(voting(x).argmax(1), predicted(one, x))
    torch.testing.assert_close(voting(x).sum(1), torch.ones(40, dtype=x.dtype))


def test_an_ensemble_is_a_model_and_fools_more_than_one_source(net, images) -> None:
    twin = softplus_twin(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4)))
    filled(twin.net, 3, 2.0)
    both = ensemble([net, twin])
    assert both.chunk(images) <= min(wrap(net).chunk(images), twin.chunk(images))
    y = predicted(net, images)
    result = pgd(Linf(0.2), 5)(both, images, y)
    # Not bit for bit: batch norm and convolutions may round otherwise in another batch.
    torch.testing.assert_close(pgd(Linf(0.2), 5)(both, images, y).x, result.x)
    assert both.identity()["fuse"] == "logits" and net.training


def test_members_must_fit_together() -> None:
    one, two, x, y = pair()
    with pytest.raises(InputError, match="bounds"):
        ensemble([one, wrap(two, bounds=(-1, 1))])
    with pytest.raises(InputError, match="at least"):
        ensemble([])
    with pytest.raises(InputError, match="loss"):
        ensemble([one], "loss")
    with pytest.raises(InputError, match="positive"):
        ensemble([one, two], weights=[1, 0])
    with pytest.raises(KindError, match="list"):
        ensemble(one)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="same classes"):
        fgsm(Linf(0.1))(ensemble([one, filled(nn.Linear(10, 4).double(), 1)]), x, y)


# --- white box against transfer (S6)


def weaker(model: object, sources: list[object], x: Tensor, y: Tensor, eps: float) -> None:
    """White-box PGD is never weaker than the same attack, or a stronger mover, carried over."""
    threat = Linf(eps)
    white = pgd(threat, 20)(model, x, y)
    for source in sources:
        for attack in (pgd(threat, 20), mim(threat), fgsm(threat)):
            carried = transfer(attack, source)(model, x, y)
            assert carried.success.sum() <= white.success.sum()


def test_white_box_is_never_weaker_than_transfer_on_small_nets() -> None:
    source, target, x, y = pair()
    taught = substitute(target, x[:20], rounds=3)
    weaker(target, [source, taught.model, ensemble([source, taught.model])], x, y, 0.08)
    case = linear_case(4, 30, 5, wide=False, dtype=torch.float64)
    other = wrap(nn.Linear(12, 4).double(), bounds=case.bounds)
    filled(other.net, 4)
    weaker(case.model, [other], case.x, case.y, 0.1)


def test_white_box_is_never_weaker_than_transfer_on_the_bundled_models() -> None:
    x, y = zoo.sample()
    standard, hardened = zoo.load("standard"), zoo.load("hardened")
    weaker(standard, [hardened], x[:64], y[:64], 0.05)
    weaker(hardened, [standard], x[:64], y[:64], 0.1)
