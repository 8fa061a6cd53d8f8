"""The trainer: what a step is, what is handed out, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SmallNet
from torch import Tensor, nn
from training import attack, constant, data, net, same, sgd

import foible
from foible.core.errors import InputError, KindError
from foible.defend import Batch, Loss, Settings, adversarial, fast, plain, trades, train
from foible.defend.losses import cross_entropy
from foible.defend.training.devices import Devices
from foible.defend.training.feeding import Tensors, feed
from foible.defend.training.history import Epoch
from foible.defend.training.settings import Cosine
from foible.defend.training.validating import Validation

HERE = Path(__file__).resolve().parent


# --- what it does


def test_it_learns_and_leaves_the_given_net_alone() -> None:
    x, y = data()
    given, random = net(), torch.random.get_rng_state()
    before = {k: v.clone() for k, v in given.state_dict().items()}
    made = train(given, (x, y), adversarial(attack()), 30, settings=Settings(batch=16, lr=0.02))
    result = foible.attacks.pgd(foible.Linf(0.05))(made, x, y)
    assert result.robust_accuracy is not None and result.robust_accuracy > 0.95
    assert not made.training and given.training and made is not given
    assert all(torch.equal(v, before[k]) for k, v in given.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in given.parameters())
    assert torch.equal(random, torch.random.get_rng_state())


def test_one_seed_is_one_net_whatever_the_users_random_state() -> None:
    settings = Settings(batch=16, seed=1)
    first = train(net(drop=0.5), data(), trades(attack()), 2, settings=settings)
    torch.rand(7)
    again = train(net(drop=0.5), data(), trades(attack()), 2, settings=settings)
    other = train(net(drop=0.5), data(), trades(attack()), 2, settings=Settings(batch=16, seed=2))
    assert same(first, again) and not same(first, other)


def test_a_step_is_the_literal_one() -> None:
    """One batch, SGD, no average: the weights move by minus lr times the mean gradient."""
    x, y = data(12)
    given = net(torch.float64)
    settings = Settings(batch=12, average=0, hold_out=0, optimiser=sgd, schedule=constant, seed=0)
    made = train(given, (x.double(), y), plain(), 1, settings=settings)
    twin = net(torch.float64)
    loss = nn.functional.cross_entropy(twin(x.double()), y)
    for p, g in zip(
        twin.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True
    ):
        p.data -= 0.5 * g
    for p, q in zip(made.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_adversarials_of_a_step_are_the_attacks_last_points() -> None:
    """Against a literal loop: the same start, sign steps, the box; and not one forward more."""
    x, y = data(10)
    model = foible.wrap(net(torch.float64))
    x = x.double()
    calls: list[int] = []
    handle = model.net.register_forward_hook(lambda *a: calls.append(1))
    batch = Batch(model, x, y, torch.arange(10), seed=4)
    made = batch.craft(attack(5))
    handle.remove()
    # One more than the steps: the first call of a model measures its chunk with one sample.
    assert len(calls) == 6
    problem = attack(5)
    rows = problem.rows(foible.Linf(0.05).inside((0, 1)), x, y, None, None)
    from foible.core.randomness import Rng

    z = foible.Linf(0.05).inside((0, 1)).start(rows, Rng(4).split(0).at(rows.id, 0).split(3))
    for _ in range(5):
        leaf = (x + z).requires_grad_()
        (g,) = torch.autograd.grad(
            nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf
        )
        z = ((x + z + 0.025 * g.sign()).clamp(x - 0.05, x + 0.05).clamp(0, 1)) - x
    torch.testing.assert_close(made, x + z, rtol=0, atol=1e-12)
    assert not made.requires_grad and (made - x).abs().max() <= 0.05 + 1e-12


def test_eps_grows_over_the_ramp() -> None:
    x, y = data(10)
    batch = Batch(foible.wrap(net()), x, y, torch.arange(10), progress=0.1)
    half = batch.grown(foible.attacks.pgd(foible.Linf(0.2), step=0.1), 0.2)
    assert half.threat.eps == pytest.approx(0.1) and half.search.length == pytest.approx(0.05)
    assert batch.grown(attack(), 0.0) == attack() and batch.grown(attack(), 0.05) == attack()


def test_trades_is_its_formula() -> None:
    x, y = data(10)
    model = foible.wrap(net(torch.float64))
    batch = Batch(model, x.double(), y, torch.arange(10))
    loss = trades(attack(), beta=3.0)
    held = model(batch.x)
    from dataclasses import replace

    from foible.defend.losses import Divergence

    adv = batch.craft(replace(attack(), objective=Divergence()), scores=held.detach())
    p, q = held.softmax(1), model(adv).softmax(1)
    wanted = -held.log_softmax(1)[torch.arange(10), y] + 3 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(loss(batch), wanted)
    assert (
        bool((loss(batch) >= cross_entropy(held, y)).all())
        and float((p - q).detach().abs().max()) > 1e-4
    )


def test_trades_learns_as_the_authors_code_does_and_climbs_its_divergence() -> None:
    """KL(clean || moved) in that order, in the search too, and learnt from through both."""
    from foible.defend.losses import Divergence

    x, y = data(10)
    steep = net(torch.float64)
    with torch.no_grad():
        steep[3].weight *= 30  # else both orders nearly agree
    model = foible.wrap(steep)
    batch = Batch(model, x.double(), y, torch.arange(10))
    held, now = model(batch.x), model(batch.x.flip(0))
    view = SimpleNamespace(rows=SimpleNamespace(scores=held), scores=now)
    theirs = nn.functional.kl_div(now.log_softmax(1), held.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(Divergence()(view), theirs)
    other = nn.functional.kl_div(held.log_softmax(1), now.softmax(1), reduction="none").sum(1)
    assert float((theirs - other).detach().abs().max()) > 1e-4

    adv = batch.craft(replace(attack(), objective=Divergence()), scores=held.detach())
    robust = nn.functional.kl_div(
        model(adv).log_softmax(1), model(batch.x).softmax(1), reduction="sum"
    )
    wanted = nn.functional.cross_entropy(held, y, reduction="sum") + 3 * robust
    weights = tuple(model.net.parameters())
    got = torch.autograd.grad(trades(attack(), 3.0)(batch).sum(), weights)
    for one, two in zip(got, torch.autograd.grad(wanted, weights), strict=True):
        torch.testing.assert_close(one, two)


def test_fgsm_training_is_equation_15() -> None:
    """alpha J(x, y) + (1 - alpha) J(x + eps sign grad J, y), by hand on a linear model."""
    x, y = data(12)
    line = nn.Linear(4, 3).double()
    loss = adversarial(foible.attacks.fgsm(foible.Linf(0.05)), clean=0.25)
    batch = Batch(foible.wrap(line), x.double(), y, torch.arange(12))
    p = line(batch.x).softmax(1)
    gradient = (p - nn.functional.one_hot(y, 3)) @ line.weight  # of the cross-entropy, by x
    moved = (batch.x + 0.05 * gradient.sign()).clamp(0, 1)
    first, second = (
        nn.functional.cross_entropy(line(at), y, reduction="none") for at in (batch.x, moved)
    )
    torch.testing.assert_close(loss(batch), 0.25 * first + 0.75 * second)
    assert bool((second >= first).all())
    with pytest.raises(InputError, match="clean=1"):
        adversarial(attack(), clean=1)
    with pytest.raises(InputError, match="ramp=2"):
        adversarial(attack(), ramp=2)
    assert fast(foible.Linf(0.08)).attack.search.length == pytest.approx(0.1)
    with pytest.raises(InputError, match="one eps for all"):
        fast(foible.Linf(torch.tensor([0.1, 0.2])))


def test_the_best_epoch_is_handed_out_and_patience_ends_it(tmp_path: Path) -> None:
    """A loss that first teaches and then unteaches: the net of the turn is returned."""
    x, y = data()
    settings = Settings(batch=16, lr=0.05, average=0, hold_out=0, schedule=constant, patience=3)
    made = train(net(), (x, y), Turning(), 40, valid=(x, y), out=tmp_path, settings=settings)
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert rows[0] == "epoch,step,loss,lr,clean,robust,seconds"
    clean = [float(row.split(",")[4]) for row in rows[1:]]
    assert len(clean) < 40 and clean[-1] < max(clean)
    assert len(clean) - 1 - clean.index(max(clean)) == 3
    assert float((made(x).argmax(1) == y).double().mean()) == pytest.approx(max(clean))
    drawn = (tmp_path / "history.svg").read_text()
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "epoch" in drawn


def test_the_average_of_the_weights_is_by_hand_and_is_what_is_validated(tmp_path: Path) -> None:
    x, y = data(12)
    x = x.double()
    settings = Settings(batch=12, average=0.4, hold_out=0, optimiser=sgd, schedule=constant)
    made = train(net(torch.float64), (x, y), plain(), 9, settings=settings)
    twin = net(torch.float64)
    mean = [p.detach().clone() for p in twin.parameters()]
    for step in range(1, 10):
        loss = nn.functional.cross_entropy(twin(x), y)
        grads = torch.autograd.grad(loss, list(twin.parameters()))
        decay = min(0.4, (1 + step) / (10 + step))
        for p, m, g in zip(twin.parameters(), mean, grads, strict=True):
            p.data -= 0.5 * g
            m.copy_(decay * m + (1 - decay) * p.detach())
    for p, m in zip(made.parameters(), mean, strict=True):
        torch.testing.assert_close(p, m, rtol=1e-12, atol=1e-12)

    def shown(average: float) -> tuple[list[float], float]:
        settings = Settings(batch=16, average=average, optimiser=sgd, schedule=constant)
        folder = tmp_path / str(average)
        made = train(net(), data(), plain(), 6, valid=data(), out=folder, settings=settings)
        rows = (folder / "history.csv").read_text().splitlines()[1:]
        right = float((made(data()[0]).argmax(1) == data()[1]).double().mean())
        return [float(row.split(",")[4]) for row in rows], right

    (told, found), (raw, _) = shown(0.999), shown(0.0)
    assert max(told) == pytest.approx(found) and told != raw and raw[-1] > 0.5


class Turning(Loss):
    """Cross-entropy in the first twentieth of the training, against it after."""

    def __call__(self, batch: Batch) -> Tensor:
        loss = cross_entropy(batch.scores(batch.x), batch.y)
        return loss if batch.progress < 0.05 else -loss.clamp_max(20)


def test_what_is_written_is_what_is_returned(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    made = train(net(), data(), adversarial(attack()), 2, out=tmp_path)
    held = load_file(str(tmp_path / "model.safetensors"))
    assert all(torch.equal(held[k], v) for k, v in made.state_dict().items())
    again = train(net(), data(), adversarial(attack()), 2, out=tmp_path)
    assert same(made, again)  # finished: read, not trained


@pytest.mark.parametrize("kind", ["dict", "normalised", "batchnorm"])
def test_models_of_every_kind(kind: str) -> None:
    x, y = data()
    if kind == "batchnorm":
        images = x.reshape(-1, 1, 2, 2).repeat_interleave(3, 2).repeat_interleave(3, 3)
        made = train(SmallNet(), (images, y), adversarial(attack()), 1, settings=Settings(batch=32))
        fresh = SmallNet().state_dict()
        assert any("running_mean" in k and not torch.equal(v, fresh[k])
                   for k, v in made.state_dict().items())  # fmt: skip
        return
    inner = net()
    given = Wordy(inner) if kind == "dict" else foible.wrap(inner, preprocess=(0.5, 0.25))
    settings = Settings(batch=16, lr=0.02)
    made = train(given, (x, y), adversarial(attack()), 20, settings=settings)
    held = foible.wrap(made, preprocess=(0.5, 0.25) if kind == "normalised" else None)
    assert float((held(x).argmax(1) == y).float().mean()) > 0.9


class Wordy(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x)}


def test_a_loader_and_a_dataset_serve_as_data() -> None:
    x, y = data()
    held = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(held, 16, shuffle=True)
    one, two = (
        train(net(), given, plain(), 3, settings=Settings(batch=16)) for given in (held, loader)
    )
    assert same(one, two)
    assert same(two, train(net(), loader, plain(), 3, settings=Settings(batch=16)))


# --- bad input


def test_bad_input_is_told_before_a_step_is_taken() -> None:
    x, y = data()
    loss = plain()
    for given, error, said in (
        ((x, y, y), InputError, "holds? 3 things"),
        ((x, y[:-1]), InputError, "96 and 95 samples"),
        ((x, y + 1), InputError, "labels go from 1 to 3 and the net has classes 0 to 2"),
        ((x, y - 1), InputError, "labels go from -1"),
        ((x + 1, y), InputError, "inputs go from .* bounds are"),
        ((x, y.float()), InputError, "dtype torch.float32"),
        ((x, y.int()), InputError, "dtype torch.int32"),
        (((x * 255).byte(), y), InputError, "x has dtype torch.uint8"),
        ((torch.cat([x, x[:1] + 1]), torch.cat([y, y[:1]])), InputError, "inputs go from"),
        ([(x, y), (x, y + 1)], InputError, "labels go from 1 to 3"),
        ([(x, y), (x + 1, y)], InputError, "inputs go from"),
        (5, KindError, "the data are int"),
        ([], InputError, "empty"),
        ([(x, y, y)], InputError, "hold 3 things"),
        ([{"x": x}], KindError, "yields dict"),
    ):
        with pytest.raises(error, match=said):
            train(net(), given, loss, 1)
    with pytest.raises(InputError, match="epochs=0"):
        train(net(), (x, y), loss, 0)
    with pytest.raises(InputError, match="no parameters"):
        train(nn.Flatten(), (x, y), loss, 1)
    with pytest.raises(InputError, match="beta=0"):
        trades(attack(), beta=0)
    for bad in ({"batch": 0}, {"lr": 0}, {"average": 1.0}, {"precision": "int8"}, {"patience": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            Settings(**bad)


def test_data_on_a_graph_of_their_own_are_taken_off_it() -> None:
    x, y = data()
    held = (2 * x.clone().requires_grad_()) / 2
    one, two = (train(net(), (given, y), trades(attack()), 1) for given in (held, x))
    assert same(one, two)


def test_data_are_held_out_by_the_seed_and_keep_their_ids() -> None:
    x, y = data()
    held = feed((x, y), 8, 0)
    assert isinstance(held, Tensors)
    rest, valid = held.split(0.25, 1)
    assert valid is not None and len(rest) == 72 and len(valid[0]) == 24
    assert torch.equal(x[rest.ids], rest.parts[0])
    assert not (rest.parts[0][:, None] == valid[0][None]).all(2).any()
    assert held.split(0.0, 1) == (held, None)


def test_an_epoch_is_worth_its_robust_accuracy() -> None:
    assert Epoch(1, 1, 0.0, 0.0, 0.9, 0.5, 0.0).worth == 0.5
    assert Epoch(1, 1, 0.0, 0.0, 0.9, None, 0.0).worth == 0.9


def test_the_schedule_rises_over_a_twentieth_and_falls_as_a_cosine() -> None:
    rate = Cosine(100)
    assert [rate(k) for k in (0, 1)] == pytest.approx(
        [0.2, 0.4 * 0.5 * (1 + math.cos(0.01 * math.pi))]
    )
    assert rate(4) == pytest.approx(0.5 * (1 + math.cos(0.04 * math.pi)))
    assert rate(50) == pytest.approx(0.5) and rate(100) == pytest.approx(0, abs=1e-12)


def test_what_is_misclassified_is_not_robust() -> None:
    x, y = data(30)
    made = train(net(), (x, y), plain(), 20, settings=Settings(batch=10, lr=0.02, hold_out=0))
    wrong = torch.where(torch.arange(30) < 12, (y + 1) % 3, y)
    loss = adversarial(foible.attacks.pgd(foible.Linf(1e-6), steps=1))
    held = Validation((x, wrong), loss, Settings())
    share = float((made(x).argmax(1) == wrong).double().mean())
    assert held.accuracy(foible.wrap(made), Devices()) == pytest.approx((share, share))
    assert 0.3 < share < 0.7
