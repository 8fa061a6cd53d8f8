"""Detectors that are networks: a subnetwork and its adversary, autoencoders, one class more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from test_layer_detectors import at, fresh, given, learned, tiny
from torch import Tensor, nn

import foible
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.rows import Rows
from foible.defend.training import Settings
from foible.detect import (
    Detector,
    Largest,
    LastClass,
    Network,
    Watch,
    dynamic_adversary,
    load,
    magnet,
    outlier_class,
    reformed,
)
from foible.detect.autoencoders import Autoencoder
from foible.detect.base import features_of, part_of
from foible.detect.dynamics import Mixed
from foible.detect.features import Layer, Reconstruction
from foible.detect.outlying import widened
from foible.models import wrap
from foible.parts.statistics import auc

THREAT = foible.Linf(0.3)


@pytest.fixture(scope="module")
def watched() -> tuple[nn.Module, Tensor, Tensor, Watch]:
    net = tiny().float()
    x, _ = given(tiny(), 160)
    x = x.float()
    y = net(x).argmax(1)
    made = Detector("static", Layer("1"), Network(8, 8))
    return net, x, y, made.fit(net, (x, y), attack=foible.attacks.pgd(THREAT, 10))


# --- the subnetwork and its adversary


def test_the_mixed_gradient_is_both_gradients_at_one_size(
    watched: tuple[nn.Module, Tensor, Tensor, Watch],
) -> None:
    net, x, y, watch = watched
    x, y = x[:5], y[:5]
    told = part_of(watch.state, "head")
    head = watch.detector.head.build((6,))
    head.load_state_dict({k[4:]: v for k, v in told.items() if k.startswith("net.")})
    grads = []
    for kind in ("class", "detector"):
        leaf = x.clone().requires_grad_()
        if kind == "class":
            value = nn.functional.cross_entropy(net(leaf), y, reduction="sum")
        else:
            out = head((net[:2](leaf) - told["mean"]) / told["spread"])
            value = (out[:, 0] - out[:, 1]).sum()  # away from "adversarial"
        (grad,) = torch.autograd.grad(value, leaf)
        grads.append(grad / grad.abs().mean(1, keepdim=True))
    oracle, index = Oracle(wrap(net), 5, Access.INTERNALS), torch.arange(5)
    rows = Rows(index, index, x, y)
    for share in (0.0, 0.3, 1.0):
        objective = Mixed(watch, share)
        with oracle.session():
            _, got = oracle.value_and_grad(lambda z, f=objective: f(View(oracle, rows, z)), x, rows)
        wanted = (1 - share) * grads[0] + share * grads[1]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    drawn = Mixed(watch, None).shares(View(oracle, rows, x))
    assert drawn.unique().numel() == 5 and float(drawn.min()) >= 0 and float(drawn.max()) < 1
    alone = View(oracle, rows.take(index[2:3]), x[2:3])
    assert torch.equal(drawn[2:3], Mixed(watch, None).shares(alone))
    with pytest.raises(InputError, match="share=2"):
        dynamic_adversary(watch, THREAT, 2.0)


def test_dynamic_training_resists_the_dynamic_adversary(
    watched: tuple[nn.Module, Tensor, Tensor, Watch], tmp_path: Path
) -> None:
    net, x, y, static = watched
    pgd, made = foible.attacks.pgd(THREAT, 10), static.detector

    def seen(watch: Watch, share: float | None) -> float:
        """The area under the curve: chance is a half."""
        attack = pgd if share is None else dynamic_adversary(watch, THREAT, share, 10)
        result = attack(net, x, y)
        bad = result.x[result.success & result.attacked]
        assert len(bad) > 30
        values = torch.cat([watch.score(net, x), watch.score(net, bad)]).double().numpy()
        return auc(values, np.arange(len(values)) >= len(x))

    before = {k: v.clone() for k, v in net.state_dict().items()}
    taught = replace(made, dynamic=25).fit(net, (x, y), attack=pgd)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert seen(static, 0.5) < seen(static, None) - 0.1
    assert seen(taught, 0.5) > seen(static, 0.5) + 0.05
    taught.save(tmp_path / "watch")
    assert torch.equal(load(tmp_path / "watch").score(net, x), taught.score(net, x))
    again = replace(made, dynamic=25).fit(net, (x, y), attack=pgd)
    assert torch.equal(again.score(net, x), taught.score(net, x))


def test_dynamic_training_says_what_it_takes() -> None:
    net = tiny().float()
    x, _ = given(tiny(), 60)
    x = x.float()
    y = net(x).argmax(1)
    with pytest.raises(InputError, match="pass attack=, whose threat"):
        Detector("d", Layer("1"), Network(4, 1), dynamic=1).fit(net, (x, y), adversarial=x[:9])
    with pytest.raises(KindError, match="takes a Network head"):
        Detector("d", Layer("1"), foible.detect.Logistic(), dynamic=1).fit(
            net, (x, y), attack=foible.attacks.pgd(THREAT, 5)
        )


# --- MagNet


def test_the_reconstruction_is_its_formula() -> None:
    net, feature = tiny(), Reconstruction((1.0, 10.0), 3, 4)
    state, _, _ = learned(feature, net)
    x = fresh(4)
    got = features_of(feature, net, x, state)
    back = {}
    for name, hidden in (("deep", 2), ("shallow", 8)):
        w = {k: v.numpy() for k, v in part_of(state, name).items()}
        assert w["inner.1.weight"].shape == (hidden, 8)
        inner = 1 / (1 + np.exp(-(x.numpy() @ w["inner.1.weight"].T + w["inner.1.bias"])))
        back[name] = 1 / (1 + np.exp(-(inner @ w["outer.weight"].T + w["outer.bias"])))
    np.testing.assert_allclose(got[:, 0], ((x.numpy() - back["deep"]) ** 2).mean(1), rtol=1e-9)
    np.testing.assert_allclose(got[:, 1], np.abs(x.numpy() - back["shallow"]).mean(1), rtol=1e-9)
    with torch.no_grad():
        here, there = net(x), net(torch.from_numpy(back["deep"]))
    for column, t in ((2, 1.0), (3, 10.0)):
        p, q = ((z / t).softmax(1).numpy() for z in (here, there))
        wanted = [jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)]
        np.testing.assert_allclose(got[:, column], wanted, rtol=1e-6)
    h = 1e-6
    _, grad = at(feature, net, state, x, True)
    for j in (0, 5):
        step = torch.zeros(8, dtype=x.dtype)
        step[j] = h
        up, down = (at(feature, net, state, x + s * step, False)[0] for s in (1, -1))
        torch.testing.assert_close(grad[:, j], (up - down) / (2 * h), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="temperatures"):
        Reconstruction((0.0,))


def test_autoencoders_keep_any_shape_and_stay_in_the_box() -> None:
    for shape, bounds in (((1, 7, 5), (-1.0, 2.0)), ((3, 8, 8), (0.0, 1.0)), ((6,), (0.0, 1.0))):
        for deep in (True, False):
            x = torch.randn(2, *shape) * 9
            with torch.no_grad():
                given_back = Autoencoder(shape, bounds, deep, 3)(x)
            assert given_back.shape == x.shape
            assert bounds[0] <= float(given_back.min()) and float(given_back.max()) <= bounds[1]


def test_magnet_learns_clean_inputs_and_reforms(tmp_path: Path) -> None:
    """Inputs on a line through the box: what leaves the line is given back on it."""
    t = torch.rand(500, 1, generator=torch.Generator().manual_seed(0))
    x = torch.cat([t, 1 - t, t, 1 - t], 1)
    y = (t[:, 0] > 0.5).long()
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-4.0, 0, 0, 4], [4, 0, 0, -4]]))
        net.bias.zero_()
    watch = magnet((1.0,), 80).fit(net, (x, y))
    off = (x[:40] + 0.25 * torch.tensor([1.0, 1, -1, -1])).clamp(0, 1)
    level = watch.threshold(0.05).value
    assert float((watch.score(net, off) > level).double().mean()) > 0.9
    model = reformed(watch, net)
    known = part_of(watch.state, "feature")
    deep = watch.detector.feature.autoencoder((4,), known, (0, 1), "deep")  # type: ignore[attr-defined]
    with torch.no_grad():
        torch.testing.assert_close(model(off), net(deep(off)))
        clean, strange = ((deep(part) - part).abs().mean() for part in (x, off))
        assert float(clean) < 0.7 * float(strange)
    watch.save(tmp_path / "watch")
    assert torch.equal(load(tmp_path / "watch").score(net, x), watch.score(net, x))
    with pytest.raises(KindError, match="no autoencoder"):
        reformed(replace(watch, detector=foible.detect.pixels()), net)


# --- one class more


def test_a_widened_net_keeps_its_other_scores() -> None:
    net = tiny()
    x = fresh()
    wide = widened(net, 3)
    with torch.no_grad():
        torch.testing.assert_close(wide(x)[:, :3], net(x))
        assert wide(x).shape == (9, 4)
    assert net[-1].out_features == 3
    assert widened(nn.Linear(8, 3), 3).out_features == 4
    with pytest.raises(KindError, match="no nn.Linear with 7 outputs"):
        widened(net, 7)


def test_the_outlier_class_takes_what_fools_and_leaves_the_rest() -> None:
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 2
    x = 0.5 + 0.2 * (2 * y[:, None] - 1) + 0.02 * torch.randn(300, 6, generator=rng)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    settings = Settings(batch=32, lr=1e-2, average=0.9)
    net = foible.defend.train(net, (x, y), foible.defend.plain(), 5, settings=settings)
    attack = foible.attacks.fgsm(foible.Linf(0.25))
    made = outlier_class(net, (x, y), attack, 20, settings=settings)
    result = attack(net, x, y)
    bad = result.x[result.success]
    with torch.no_grad():
        assert float((made(x).argmax(1) == y).double().mean()) > 0.95
        assert float((made(bad).argmax(1) == 2).double().mean()) > 0.9
        scores = made(x)
    got = features_of(LastClass(), made, x, {})
    p = scores.softmax(1)
    torch.testing.assert_close(got[:, 0], (p[:, 2] / (1 - p[:, 2])).log(), rtol=1e-3, atol=1e-3)
    watch = Detector("outlier", LastClass(), Largest(normed=False)).fit(made, (x, y))
    assert float((watch.score(made, bad) > watch.threshold(0.05).value).double().mean()) > 0.9
    with pytest.raises(InputError, match="no adversarial fools"):
        outlier_class(net, (x, y), foible.attacks.fgsm(foible.Linf(1e-6)), 1)
