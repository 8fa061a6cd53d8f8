"""Defences in front of a model: what each does by hand, what it costs, what a gradient sees."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SmallNet, filled, rand
from test_no_trace import everything_about, same
from torch import Tensor, nn

import foible
from foible import attacks, defend, explain
from foible.attacks import bim, eot, pgd, random_noise, square
from foible.core.errors import AccessError, InputError, KindError
from foible.defend.inputs import Defended
from foible.models import bpda, estimator, wrap
from foible.parts.threats import Linf

RANDOM, BLIND = ("randomize", "region_vote"), ("jpeg", "nonlocal", "region_vote")
MAKES: dict[str, Any] = {
    "randomize": lambda m: defend.randomize(m, 0.6),
    "bits": lambda m: defend.squeeze(m, bits=3),
    "median": lambda m: defend.squeeze(m, median=2),
    "nonlocal": lambda m: defend.squeeze(m, nonlocal_means=(5, 3, 20.0)),
    "jpeg": lambda m: defend.jpeg(m, 60),
    "total_variation": lambda m: defend.total_variation(m, 0.1, 5),
    "region_vote": lambda m: defend.region_vote(m, 0.05, 7),
}


class Counted(nn.Module):
    """A net that counts the rows of its forwards and of its backwards, on its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.counts = net, torch.zeros(2, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        self.counts[0] += len(x)
        scores: Tensor = self.net(x)
        if scores.requires_grad:
            scores.register_hook(self._back)
        return scores

    def _back(self, grad: Tensor) -> None:
        self.counts[1] += len(grad)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return filled(SmallNet(4), 5, 2.0).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return rand(6, 1, 6, 6, seed=1)


def bump(low: float, high: float) -> nn.Module:
    """Class 1 where the one feature lies between low and high."""

    class Bump(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside = ((x > low) & (x < high)).double()
            return torch.cat([1 - inside, inside], 1)

    return Bump()


# --- every one of them


@pytest.mark.parametrize("name", MAKES)
def test_it_is_a_model_for_attacks_and_explainers(name: str, net, images) -> None:
    model = MAKES[name](net)
    assert isinstance(model, Defended) and model.bounds == (0.0, 1.0)
    y = model(images).argmax(1)
    before = everything_about(net)
    attack = eot(random_noise(Linf(0.05)), 2) if name in BLIND else eot(pgd(Linf(0.05), 3), 2)
    one, two = attack(model, images, y, seed=1), attack(model, images, y, seed=1)
    assert torch.equal(one.x, two.x) and torch.equal(one.success, two.success)
    explainer = explain.occlusion(3) if name in BLIND else explain.saliency()
    assert explainer(model, images, y).shape == images.shape
    after = everything_about(net)
    assert [key for key in before if not same(before[key], after[key])] == []


@pytest.mark.parametrize("name", MAKES)
def test_the_model_keeps_what_it_was_wrapped_with(name: str, images) -> None:
    """Bounds of 0 to 255, means, and probabilities: the defence works in the input's units."""
    inner = filled(SmallNet(4), 5, 2.0).eval()
    plain = MAKES[name](inner)
    held = wrap(nn.Sequential(inner, nn.Softmax(1)), (0, 255), ([0.0], [255.0]), "probabilities")
    if name == "region_vote":
        wide = defend.region_vote(held, 0.05 * 255, 7)
    elif name == "total_variation":
        wide = defend.total_variation(held, 0.1 * 255, 5)
    else:
        wide = MAKES[name](held)
    assert wide.bounds == (0.0, 255.0)
    with plain.session(3), wide.session(3), plain.session(3), torch.no_grad():
        want = plain(images).softmax(1)
    with wide.session(3), torch.no_grad():
        got = wide(255 * images).softmax(1)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", MAKES)
def test_the_meter_is_what_the_net_was_asked(name: str, net, images) -> None:
    counted = Counted(net)
    model = MAKES[name](counted)
    attack = square(Linf(0.1), 60) if name in BLIND else pgd(Linf(0.1), 3)
    y = net(images).argmax(1)
    model.chunk(images)  # measured once, outside of any attack's account
    counted.counts.zero_()
    found = eot(attack, 1)(model, images, y)
    assert int(found.forwards.sum()) == int(counted.counts[0]) > 0
    assert int(found.backwards.sum()) == int(counted.counts[1])


def test_a_cap_counts_every_vote(net, images) -> None:
    counted = Counted(net)
    model, y = defend.region_vote(counted, 0.01, 7), net(images).argmax(1)
    model.chunk(images)
    counted.counts.zero_()
    found = eot(square(Linf(0.001), 60), 1)(model, images, y)
    assert int(found.forwards.max()) == 56 and int(found.forwards.sum()) == int(counted.counts[0])
    with pytest.raises(InputError, match="7 forwards"):
        square(Linf(0.1), 20)(model, images, y)
    labels = attacks.hop_skip_jump(Linf(0.1), 100)
    assert int(eot(labels, 1)(model, images, y).forwards.max()) <= 100


@pytest.mark.parametrize("name", BLIND)
def test_a_gradient_attack_is_told_the_cure(name: str, net, images) -> None:
    model = MAKES[name](net)
    with pytest.raises(AccessError, match="foible.defend.breaker"):
        pgd(Linf(0.1), 2)(model, images, net(images).argmax(1))
    with pytest.raises(AccessError, match="foible.defend.breaker"):
        pgd(Linf(0.1), 2)(defend.squeeze(model, median=2), images, net(images).argmax(1))
    if name != "region_vote":
        seen = bpda(model, at="defence")
        assert explain.saliency()(seen, images, 1).abs().sum() > 0


def test_identities_tell_settings_and_weights_apart(net) -> None:
    other = filled(SmallNet(4), 6, 2.0).eval()
    models = [make(net) for make in MAKES.values()]
    models += [defend.randomize(net, 0.7), defend.squeeze(net, bits=4), defend.jpeg(net, 61)]
    models += [defend.region_vote(net, 0.05, 8), defend.total_variation(net, 0.2, 5)]
    models += [defend.squeeze(net, bits=3, median=2), defend.jpeg(other, 60), wrap(net)]
    models += [defend.jpeg(defend.squeeze(net, bits=3), 60), defend.jpeg(wrap(net, (0, 2)), 60)]
    models += [models[6].soft(7), bpda(models[4], at="defence")]
    digests = {str(m.identity()) for m in models}
    assert len(digests) == len(models)
    assert MAKES["jpeg"](net).identity() == MAKES["jpeg"](wrap(net)).identity()
    assert models[0].identity()["weights"] == wrap(net).identity()["weights"]


def test_defences_stand_behind_each_other(net, images) -> None:
    y = net(images).argmax(1)
    both = defend.region_vote(defend.squeeze(net, bits=3), 0.01, 3)
    twice = defend.region_vote(both, 0.01, 2)
    assert (both.looks, twice.looks) == (3, 6)
    assert random_noise(Linf(0.01))(twice, images, y).forwards.tolist() == [18] * 6
    alike = defend.squeeze(net, bits=3)(images).argmax(1) == both(images).argmax(1)
    assert alike.double().mean() > 0.7
    copy = defend.squeeze(net, median=2)
    again = copy.copied()
    assert again.held.net is again.net.net and again.held.net is not net
    torch.testing.assert_close(again(images), copy(images))
    with pytest.raises(KindError, match="undo"):
        defend.squeeze(bpda(copy, at="defence"), bits=3).copied()


def test_what_holds_no_module_is_refused() -> None:
    class Signs:
        classes_ = np.array([0, 1])

        def predict(self, table: np.ndarray) -> np.ndarray:
            return (table[:, 0] > 0.5).astype(int)

    for make in MAKES.values():
        with pytest.raises(KindError, match="torch module"):
            make(estimator(Signs()))
    with pytest.raises(KindError, match="images"):
        defend.randomize(nn.Linear(3, 2))(rand(2, 3, seed=0))
    endless = wrap(nn.Flatten(), (-float("inf"), float("inf")))
    for make in (MAKES["bits"], MAKES["jpeg"], MAKES["nonlocal"]):
        with pytest.raises(InputError, match="scale of the input"):
            make(endless)


# --- one by one


def test_rounding_by_hand_and_its_gradient() -> None:
    x = torch.tensor([[-0.9, -0.3, 0.2, 0.9]])
    model = defend.squeeze(wrap(nn.Flatten(), (-1, 1)), bits=1)
    assert model(x).tolist() == [[-1, -1, 1, 1]]
    x = torch.tensor([[0.1, 0.4, 0.6, 0.9]])
    torch.testing.assert_close(
        defend.squeeze(nn.Flatten(), bits=2)(x), torch.tensor([[0, 1, 2, 3]]) / 3
    )
    model = defend.squeeze(nn.Linear(4, 2), bits=2)
    assert explain.saliency()(model, x, 0).abs().sum() == 0
    assert torch.equal(bim(Linf(0.2), 3)(model, x, model(x).argmax(1)).x, x)
    for bad in ({}, {"bits": 0}, {"median": 1}, {"nonlocal_means": (13, 3, 0.0)}):
        with pytest.raises(InputError):
            defend.squeeze(nn.Flatten(), **bad)


@pytest.mark.parametrize("window", [2, 3, 5])
def test_the_median_is_scipys(window: int) -> None:
    from scipy.ndimage import median_filter

    x = rand(2, 2, 7, 9, seed=3)
    got = defend.squeeze(nn.Identity(), median=window).net.defence(x)
    want = median_filter(x.numpy(), size=(1, 1, window, window), mode="reflect")
    assert torch.equal(got, torch.from_numpy(want))


def test_nonlocal_means_are_scikit_images() -> None:
    from skimage.restoration import denoise_nl_means

    x = rand(2, 3, 9, 9, seed=3, dtype=torch.float64)
    model = defend.squeeze(nn.Identity(), bits=8, nonlocal_means=(7, 3, 30.0))
    rounded = (x * 255).round() / 255
    want = [
        denoise_nl_means(p, patch_size=3, patch_distance=3, h=30 / 255, channel_axis=0)
        for p in rounded.numpy()
    ]
    torch.testing.assert_close(model.net.defence(x), torch.from_numpy(np.stack(want)))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_the_file(channels: int) -> None:
    from PIL import Image

    x = (255 * rand(2, channels, 16, 16, seed=3)).round() / 255
    model = defend.jpeg(wrap(nn.Flatten(), (-1, 1)), 30)
    for one, got in zip(x, model(2 * x - 1), strict=True):
        pixels = (one * 255).round().byte().movedim(0, 2).numpy()
        file = BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=30)
        back = torch.from_numpy(np.array(Image.open(file))).reshape(16, 16, channels).movedim(2, 0)
        torch.testing.assert_close(got, 2 * back.float().flatten() / 255 - 1)
    grey = x[:, :1]  # of colour, half the resolution is dropped at any quality
    assert float((defend.jpeg(nn.Flatten(), 100)(grey) - grey.flatten(1)).abs().max()) < 0.02
    with pytest.raises(KindError, match="2 channels"):
        model(rand(1, 2, 8, 8, seed=1))
    with pytest.raises(InputError, match="1 to 100"):
        defend.jpeg(nn.Flatten(), 0)


def test_total_variation_is_scikit_images() -> None:
    from skimage.restoration import denoise_tv_chambolle

    x = rand(2, 1, 8, 10, seed=3, dtype=torch.float64)
    got = defend.total_variation(nn.Identity(), 0.15, 12).net.defence(x)
    want = [denoise_tv_chambolle(p, weight=0.15, eps=0, max_num_iter=13) for p in x[:, 0].numpy()]
    torch.testing.assert_close(got[:, 0], torch.from_numpy(np.stack(want)))


def test_the_gradient_of_total_variation_is_the_functions() -> None:
    x = rand(1, 1, 5, 5, seed=4, dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), filled(nn.Linear(25, 2), 3)).double()
    model = defend.total_variation(net, 0.1, 8)
    found = explain.saliency()(model, x, 1).flatten()
    step = 1e-6 * torch.eye(25, dtype=torch.float64).view(25, 1, 5, 5)
    with torch.no_grad():
        want = (model(x + step)[:, 1] - model(x - step)[:, 1]) / 2e-6
    torch.testing.assert_close(found, want, atol=1e-6, rtol=1e-4)


def test_resizing_keeps_the_whole_image_and_each_draw_is_its_own() -> None:
    model = defend.randomize(nn.Flatten(), 0.5, 0.5)
    x = torch.ones(40, 1, 20, 20)
    with model.session(1):
        one, two = model(x).view_as(x), model(x).view_as(x)
    assert torch.equal(one.flatten(1).sum(1), torch.full((40,), 100.0))
    assert not torch.equal(one, two)
    for corner in ((0, 0), (0, 19), (19, 0), (19, 19)):
        assert (one[:, 0, corner[0], corner[1]] == 1).sum() < 40
    with model.session(1):
        assert torch.equal(model(x).view_as(x), one)
    large = defend.randomize(nn.Identity(), 1.0, 1.5, side=30, fill=0.25).net.defence(x[:, :, :20])
    assert large.shape == (40, 1, 30, 30)
    assert set(large.round(decimals=5).unique().tolist()) == {0.25, 1.0}
    sides = (large > 0.5).flatten(1).sum(1).double().sqrt()
    assert 20 <= float(sides.min()) <= 22 and 28 <= float(sides.max()) <= 30
    with pytest.raises(InputError, match="would not fit"):
        defend.randomize(nn.Flatten(), 0.5, 1.2)(x)
    with pytest.raises(InputError, match="0 < low"):
        defend.randomize(nn.Flatten(), 0.0)


def test_without_randomness_it_is_the_attack_itself(net, images) -> None:
    y = net(images).argmax(1)
    want, got = (pgd(Linf(0.1), 4)(m, images, y) for m in (net, defend.randomize(net, 1.0)))
    assert torch.equal(want.x, got.x) and torch.equal(want.forwards, got.forwards)


def test_a_vote_by_hand() -> None:
    x = torch.tensor([[0.5], [0.05]]).double()
    model = defend.region_vote(bump(0.4, 0.7), 0.2, 4000)
    with model.session(0):
        share = model(x).softmax(1)[:, 1]
    # From 0.3 to 0.7 three quarters lie inside; the points of 0.05 are cut at 0 and never do.
    assert float(share[0]) == pytest.approx(0.75, abs=0.03) and float(share[1]) < 1e-3
    still = defend.region_vote(bump(0.4, 0.7), 0.0, 3)
    assert still(x).argmax(1).tolist() == [1, 0]
    seen = defend.region_vote(nn.Identity(), 0.2, 1).net.defence(torch.full((4000, 1), 0.9))
    assert (
        float(seen.min()) >= 0.7 and float(seen.max()) == 1.0 and (seen == 1).float().mean() > 0.2
    )
    for bad in ({"radius": -0.1}, {"radius": 0.1, "votes": 0}):
        with pytest.raises(InputError):
            defend.region_vote(nn.Flatten(), **bad)


def test_the_soft_vote_is_the_mean_probability(net, images) -> None:
    model = defend.region_vote(net, 0.05, 9)
    soft = model.soft(5)
    assert soft.looks == 5 and soft.access > model.access
    with soft.session(2), torch.no_grad():
        got = soft(images).exp()
    with soft.session(2), torch.no_grad():
        size = max(1, wrap(net).chunk(images) // len(images))
        assert size >= 5  # one block: the points are drawn in one go
        points = soft.net.defence(images.repeat(5, 1, 1, 1))
        want = net(points).softmax(1).view(5, 6, 4).mean(0)
    torch.testing.assert_close(got, want)


def test_the_largest_radius_that_costs_no_accuracy() -> None:
    """The vote at 0.5 fails where the box is wider than twice the bump of 0.2: from 0.2 on."""
    x = torch.tensor([[0.5], [0.5], [0.9]]).double()
    y = torch.tensor([1, 1, 0])
    fit = defend.fit_radius
    assert fit(bump(0.4, 0.6), x, y, step=0.15) == pytest.approx(0.15)
    assert fit(bump(0.4, 0.6), x, y, step=0.25) == 0.0
    assert fit(bump(0.4, 0.6), x, y, step=0.25, tolerance=0.7) >= 0.25
    with pytest.raises(InputError, match="share below 1"):
        fit(bump(0.4, 0.6), x, y, tolerance=1.0)
    with pytest.raises(InputError, match="step"):
        fit(bump(0.4, 0.6), x, y, step=0.0)


def test_the_bundled_model_votes_as_it_answers() -> None:
    x, _ = foible.zoo.sample()
    net = foible.zoo.load("standard")
    model = defend.region_vote(net, 0.02, 20)
    with model.session(0), torch.no_grad():
        same_label = model(x[:50]).argmax(1) == net(x[:50]).argmax(1)
    assert same_label.double().mean() >= 0.96
