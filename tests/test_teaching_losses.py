"""Losses that teach: by a teacher, by rationales; and training in rounds."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import filled, linear, linear_case, rand, softened
from replicas import training as slow
from test_training_losses import batch_of, step
from torch import Tensor, nn

from foible import attacks, defend, explain
from foible.core.errors import InputError
from foible.defend import Batch, Settings
from foible.defend.losses import Tempered
from foible.defend.losses.reasons import fitted, patches
from foible.models import wrap
from foible.parts.threats import Linf

# ---------------------------------------------------------------- distillation


@pytest.mark.parametrize("temperature", [1.0, 7.0, 100.0])
def test_a_student_learns_from_the_softened_teacher(temperature: float) -> None:
    teacher, batch = softened(0.5), batch_of(softened())
    wanted = slow.distilled(batch.net, teacher, batch.x, temperature)
    found = defend.distilled(teacher, temperature)(batch)
    assert found.tolist() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(temperature: float) -> None:
    net = softened()
    batch = batch_of(net)
    defend.distilled(copy.deepcopy(net), temperature)(batch).mean().backward()
    assert max(float(p.grad.abs().max()) for p in net.parameters()) < 1e-14
    other = softened()
    defend.distilled(softened(0.5), temperature)(batch_of(other)).mean().backward()
    assert max(float(p.grad.abs().max()) for p in other.parameters()) > 1e-3


def test_the_teacher_learns_at_the_temperature_and_stays_frozen() -> None:
    batch = batch_of(softened())
    wanted = F.cross_entropy(batch.net(batch.x) / 9, batch.y, reduction="none")
    torch.testing.assert_close(Tempered(9.0)(batch), wanted)
    teacher = softened(0.5).train()
    step(defend.distilled(teacher, 9.0), batch)
    assert teacher.training and all(p.grad is None for p in teacher.parameters())
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="temperature"):
            defend.distilled(teacher, bad)


def blobs(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two classes that the first two features tell apart, in [0, 1]."""
    y = torch.arange(rows) % 2
    x = rand(rows, 6, seed=seed)
    x[:, :2] = 0.3 + 0.4 * y[:, None] + 0.1 * x[:, :2]
    return x, y


def test_distillation_makes_logits_large_and_the_students_gradient_small() -> None:
    net = filled(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), 3)
    before = [p.clone() for p in net.parameters()]
    x, y = blobs(400, 1)
    how = Settings(batch=50, lr=0.05, average=0.0, hold_out=0.0)
    usual = defend.train(net, (x, y), defend.plain(), epochs=16, settings=how)
    student = defend.distillation(net, (x, y), 20.0, epochs=16, settings=how)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
    right = [(n(x).argmax(1) == y).float().mean() for n in (usual, student)]
    assert min(right) >= 0.99
    spans = [(n(x)[:, 1] - n(x)[:, 0]).abs().median().detach() for n in (usual, student)]
    assert float(spans[1] / spans[0]) > 3


# ---------------------------------------------------------------- rationales


@pytest.mark.parametrize("patch", [None, 1, 4])
def test_rationales_are_the_papers_loss(patch: int | None) -> None:
    batch = batch_of(softened())
    r = (rand(7, 10, seed=8, dtype=torch.float64) < 0.5).double()
    batch.extras = (r,)
    found = defend.rationales(0.3, 0.7, 0.4, patch=patch)(batch)
    wanted = slow.crex(batch.net, batch.x, batch.y, r, (0.3, 0.7, 0.4), patch)
    assert found.tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("patch", [None, 3])
def test_a_map_inside_of_the_rationale_costs_nothing(patch: int | None) -> None:
    case = linear_case(3, 8, seed=5, wide=False)
    weight = case.weight.clone()
    weight[:, 6:] = 0  # the net looks at the first six only
    net = linear(weight, case.bias)
    r = torch.zeros(8, 12, dtype=torch.float64)
    r[:, :6] = 1
    given = {"x": case.x, "y": case.y, "ids": torch.arange(8)}
    batch = Batch(wrap(net), extras=(r,), **given)
    loss = defend.rationales(2.0, unsure=0.0, patch=patch)
    assert torch.equal(loss(batch), defend.plain()(batch))
    batch.extras = (1 - r,)
    assert bool((loss(batch) > defend.plain()(batch) + 0.01).all())


def test_the_outside_of_a_linear_model_in_closed_form() -> None:
    """The gradient of the sum of log-probabilities is W^T (1 - K p)."""
    case = linear_case(4, 9, seed=2)
    r = (rand(9, 12, seed=3, dtype=torch.float64) < 0.5).double()
    batch = Batch(case.model, case.x, case.y, torch.arange(9), (r,))
    found = defend.rationales(0.3, unsure=0.0)(batch) - defend.plain()(batch)
    p = (case.x @ case.weight.T + case.bias).softmax(1)
    wanted = 0.3 * ((1 - r) * ((1 - 4 * p) @ case.weight)).abs().sum(1)
    torch.testing.assert_close(found, wanted)


def test_a_sample_without_a_rationale_pays_for_the_size_of_its_map_only() -> None:
    batch = batch_of(softened())
    r = torch.ones(7, 10, dtype=torch.float64)
    r[::2] = float("nan")
    batch.extras = (r,)
    extra = defend.rationales(0.3, unsure=0.0, sparse=0.01)(batch) - defend.plain()(batch)
    maps = torch.stack([slow.explanation(batch.net, x, None)[0] for x in batch.x])
    torch.testing.assert_close(extra[::2].detach(), 0.01 * maps[::2].abs().sum(1))
    assert float(extra[1::2].detach().abs().max()) < 1e-15  # all ones: nothing is beside the point
    step(defend.rationales(), batch)
    assert all(torch.isfinite(p).all() for p in batch.net.parameters())


def test_the_price_of_being_sure_falls_as_the_rationale_takes_the_opinion_with_it() -> None:
    weight = torch.zeros(2, 4, dtype=torch.float64)
    weight[1] = torch.tensor([8.0, 0.0, 0.0, 8.0])
    net = linear(weight, torch.tensor([0.0, -4.0], dtype=torch.float64))
    x, y = torch.tensor([[1.0, 1, 1, 0]], dtype=torch.float64), torch.tensor([1])
    loss = defend.rationales(1.0, unsure=1.0, spread=0.0)
    sure = []
    for reason in ([1.0, 0, 0, 0], [0.0, 1, 0, 0]):
        batch = Batch(wrap(net), x, y, torch.arange(1), (torch.tensor([reason]).double(),))
        sure.append(float(loss.sure(batch, batch.extras[0], net(x)).detach()))
    p = torch.tensor([[0.0, 4.0], [0.0, -4.0]]).softmax(1)[:, 1]
    assert sure[0] == pytest.approx(-float(p[0] - p[1]), rel=1e-6) and sure[1] == 0


def test_masks_fit_images_and_words() -> None:
    x = rand(2, 3, 4, 5, seed=1)
    for shape in ((2, 1, 4, 5), (2, 4, 5), (2, 3, 4, 5), (2, 1, 1, 1)):
        assert torch.broadcast_shapes(fitted(torch.ones(shape), x).shape, x.shape) == x.shape
    words = rand(2, 6, 8, seed=1)
    assert fitted(torch.ones(2, 6), words).shape == (2, 6, 1)
    for shape in ((2, 5, 4), (3, 1, 4, 5), (2, 4)):
        with pytest.raises(InputError, match="do not fit"):
            fitted(torch.ones(shape), x)
    with pytest.raises(InputError, match="span"):
        fitted(torch.full((2, 6), 255.0), words)
    cells = patches(x, 2)
    assert cells.shape == (2 * 3, 3, 4, 5) and bool((cells.sum(0) == 1).all())
    assert bool((cells == cells[:, :1]).all())  # the same for all colours
    rows = patches(words, 4)
    assert rows.shape == (2, 6, 8) and rows[0, :4].all() and rows[1, 4:].all()


def test_words_are_left_out_by_position() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    net = filled(body, 4, 3.0).double()
    x, y = rand(5, 4, 3, seed=2, dtype=torch.float64), torch.arange(5) % 3
    r = torch.tensor([[1.0, 0, 0, 0]]).double().repeat(5, 1)
    batch = Batch(wrap(net), x, y, torch.arange(5), (r,))
    found = defend.rationales(0.5, unsure=0.0, patch=1)(batch) - defend.plain()(batch)
    p, outside = net(x).softmax(1), torch.zeros(5, dtype=torch.float64)
    for word in (1, 2, 3):
        without = x.clone()
        without[:, word] = 0
        outside += (p - net(without).softmax(1)).abs().mean(1).detach()
    torch.testing.assert_close(found.detach(), 0.5 * outside)


def test_rationales_refuse_nonsense() -> None:
    assert defend.rationales().extras == 1
    for bad in ({"weight": -1.0}, {"spread": float("nan")}, {"patch": 0}):
        with pytest.raises(InputError):
            defend.rationales(**bad)  # type: ignore[arg-type]


# ---------------------------------------------------------------- rounds


def test_rounds_craft_on_the_net_as_it_is_and_measure_every_pair() -> None:
    net = filled(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), 3)
    data, held = blobs(200, 1), blobs(60, 2)
    how = Settings(batch=50, lr=0.02, average=0.0, hold_out=0.0)
    net = defend.train(net, data, defend.plain(), epochs=3, settings=how)
    sources = {
        "fgs": attacks.fgsm(Linf(0.1)),
        "ig": attacks.pgd(Linf(0.1), 2, direction=explain.integrated_gradients(4)),
        "lime": attacks.surrogate_attack(Linf(0.1), explain.tabular_lime(), 40, 2, 2),
    }
    found = defend.rounds(net, data, sources, held, count=2, epochs=1, settings=how)
    assert found.trained == ("fgs", "ig", "lime", "all")
    assert found.attacks == ("clean", "fgs", "ig", "lime")
    assert found.accuracy.shape == (4, 3, 4)
    for i, name in enumerate(found.trained):  # the last round by hand
        for j, other in enumerate(found.attacks[1:], 1):
            left = sources[other](found.nets[name], *held).robust_accuracy
            assert float(found.matrix[i, j]) == pytest.approx(left)
    assert bool((found.accuracy[:, 0] == found.accuracy[0, 0]).all())
    assert not torch.equal(found.accuracy[0], found.accuracy[3])
    own = found.matrix[0, 1] - found.matrix[0, 2:].mean()
    assert float(found.overfit[0]) == pytest.approx(float(own))
    assert bool(found.overfit[3].isnan())
    torch.testing.assert_close(found.gain, found.accuracy[:, 2] - found.accuracy[:, 0])
    lines = str(found).splitlines()
    assert lines[0].split() == ["clean", "fgs", "ig", "lime"] and len(lines) == 5
    again = defend.rounds(net, data, sources, held, count=2, epochs=1, settings=how)
    assert torch.equal(found.accuracy, again.accuracy)


def test_rounds_train_on_the_union_of_all_rounds_before() -> None:
    """One round of one source by hand."""
    net = filled(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), 3)
    (x, y), how = blobs(100, 1), Settings(batch=50, average=0.0, hold_out=0.0)
    attack = attacks.fgsm(Linf(0.1))
    found = defend.rounds(net, (x, y), {"fgs": attack}, (x, y), 1, 1, how)
    made = Batch(wrap(net), x, y, torch.arange(100)).craft(attack)
    union = (torch.cat([x, made]), torch.cat([y, y]))
    twin = defend.train(net, union, defend.plain(), epochs=1, settings=how)
    pairs = zip(twin.parameters(), found.nets["fgs"].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(InputError, match="at least one of each"):
        defend.rounds(net, (x, y), {}, (x, y))
    with pytest.raises(InputError, match="names a row"):
        defend.rounds(net, (x, y), {"all": attack}, (x, y))
