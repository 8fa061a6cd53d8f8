"""Detectors that look at explanations: each against its formula written slowly, and attacked."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from map_nets import asked, gradient, pictures, random_images, sharp, slope_is_right, trained
from torch import nn

import foible
from foible.core.errors import InputError
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.detect import Detector, Forest, Largest, Network, adaptive, load, rectify
from foible.detect.base import features_of, learned_of, part_of
from foible.detect.features import Maps, Signature, Template
from foible.detect.panels import Panel
from foible.explain.gradient import saliency
from foible.models import softplus_twin, wrap
from foible.parts.objectives import Logit

RECIPES = {
    "saliency_detector": lambda: foible.detect.saliency_detector(epochs=4, width=4),
    "ml_loo": lambda: foible.detect.ml_loo(),
    "ml_loo, few": lambda: foible.detect.ml_loo(layers=(), pixels=12, spreads=("std", "mad")),
    "shap_signatures": lambda: foible.detect.shap_signatures(epochs=4, width=4),
    "x_ensemble": lambda: foible.detect.x_ensemble(steps=3, epochs=4, width=4),
    "mask_detector": lambda: foible.detect.mask_detector(steps=3, epochs=2, width=4),
    "class_template": lambda: foible.detect.class_template(),
}


# --- T8: the input and its saliency


def test_the_channels_are_the_input_and_its_gradient() -> None:
    net, x = sharp(), random_images()
    wanted = torch.cat([torch.cat([one[None], gradient(net, one)], 1) for one in x])
    torch.testing.assert_close(features_of(Maps(), net, x, {}), wanted)
    alone = features_of(Maps(image=False), net, x, {})
    torch.testing.assert_close(alone, wanted[:, 1:])
    assert foible.detect.saliency_detector(image=False).feature == Maps((saliency(),), False)


def test_a_search_follows_the_softplus_twins_map() -> None:
    net, x = sharp(), random_images()
    twin = softplus_twin(net, 10.0).net
    soft = Maps(image=False).soft()
    y = net(x).argmax(1)
    leaf = x.clone().requires_grad_()
    twin(leaf).gather(1, y[:, None]).sum().backward()
    torch.testing.assert_close(features_of(soft, net, x, {}), leaf.grad)
    slope_is_right(net, x, soft)
    hard, at = asked(net, x, Maps(image=False))
    hard.sum().backward()
    assert at.grad is None or float(at.grad.abs().max()) == 0  # why there is a stand-in


def test_smoothing_leaves_a_net_without_relus_as_it_is() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.GELU(), nn.Linear(6, 3)).double()
    x = random_images()
    assert torch.equal(features_of(Maps().soft(), net, x, {}), features_of(Maps(), net, x, {}))


# --- T10: signatures


def test_signatures_sum_to_what_the_logits_are_above_their_mean() -> None:
    net, (x, y) = trained(), pictures(40)
    state = learned_of(Signature(), net, x, y)
    found = features_of(Signature(), net, x[:9], state)
    scores = net(x)
    torch.testing.assert_close(found.sum(2), scores[:9] - scores.mean(0), rtol=0, atol=1e-4)
    h, weight = net[:5](x), net[5].weight
    for b in (0, 8):
        for c in range(3):
            for u in range(8):
                wanted = weight[c, u] * (h[b, u] - h[:, u].mean())
                assert float(found[b, c, u]) == pytest.approx(float(wanted), abs=1e-5)
    assert torch.equal(found, features_of(Signature("4"), net, x[:9], state))


def test_signatures_have_a_gradient_and_refuse_what_is_not_linear() -> None:
    net, x = sharp(), random_images(6)
    state = learned_of(Signature(), net, x, net(x).argmax(1))
    slope_is_right(net, x[:2], Signature(), state)
    bent = nn.Sequential(*net, nn.Tanh())
    with pytest.raises(InputError, match="no linear function of the layer before"):
        learned_of(Signature(), bent, x, bent(x).argmax(1))
    with pytest.raises(InputError, match="no linear layer"):
        learned_of(Signature(), nn.Flatten(), x, torch.zeros(6, dtype=torch.int64))


# --- S13: templates


@pytest.mark.parametrize("kind", ["cosine", "correlation"])
def test_a_template_is_the_mean_map_of_its_class(kind: str) -> None:
    net, x = sharp(), random_images(30)
    y = net(x).argmax(1)
    feature = Template(Maps(image=False), kind)

    def unit(v: np.ndarray) -> np.ndarray:
        v = v - v.mean() if kind == "correlation" else v
        return v / np.linalg.norm(v)

    maps = [unit(gradient(net, one).numpy().ravel()) for one in x]
    got = features_of(feature, net, x, learned_of(feature, net, x, y))
    for i in range(30):
        mean = np.mean([m for m, c in zip(maps, y, strict=True) if c == y[i]], axis=0)
        assert float(got[i]) == pytest.approx(1 - unit(maps[i]) @ unit(mean), abs=1e-9)
    slope_is_right(net, x[:2], feature.soft(), learned_of(feature, net, x, y))


def test_a_class_that_was_never_clean_has_the_others_mean() -> None:
    net, x = sharp(), random_images(30)
    y = torch.arange(30) % 2  # of three classes
    state = learned_of(Template(), net, x, y)
    two = state["template"][:2]
    torch.testing.assert_close(
        state["template"][2], nn.functional.normalize(two.mean(0), dim=0), rtol=1e-9, atol=1e-12
    )
    with pytest.raises(InputError, match="choose cosine or correlation"):
        Template(kind="angle")


# --- T11: a panel of networks, and the rectifier


def test_a_panel_is_a_forest_on_what_its_networks_say_of_the_other_half() -> None:
    rng = torch.Generator().manual_seed(1)
    bad = torch.arange(60) % 3 == 0
    data = torch.randn(60, 2, 6, 6, generator=rng) + bad[:, None, None, None] * torch.tensor(
        [2.0, 0.0]
    ).view(1, 2, 1, 1)
    seen = []

    class Spy(Forest):
        def learn(self, features, bad, seed):
            seen.append((features, bad))
            return super().learn(features, bad, seed)

    head = Panel(2, Network(4, 6), Spy(20))
    state = head.learn(data, bad, 0)
    odds = torch.stack(
        [Network(4, 6)(data[:, i : i + 1], part_of(state, f"member{i}")) for i in (0, 1)], 1
    )
    assert torch.equal(head.odds(data, state), odds)
    assert torch.equal(head(data, state), Forest(20)(odds, part_of(state, "forest")))
    told, marks = seen[0]
    assert len(told) == 30 and int(marks.sum()) == 10
    places = [int((odds == one).all(1).nonzero()[0, 0]) for one in told]
    first = [i for i in range(60) if i not in places]
    again = Network(4, 6).learn(data[first, :1], bad[first], 0)
    torch.testing.assert_close(part_of(state, "member0"), again)
    leaf = data.clone().requires_grad_()
    assert head.soft(leaf, state).requires_grad
    with pytest.raises(InputError, match="2 even groups"):
        head.learn(data[:, :1], bad, 0)


def test_the_rectifier_is_its_loop_written_slowly() -> None:
    net, (x, y) = trained(), pictures(60)
    attack = foible.attacks.pgd(foible.Linf(0.2), 10)
    watch = foible.detect.pixels(epochs=4).fit(net, pictures(80, 1), attack=attack)
    mixed = torch.cat([x[:10], attack(net, x[10:30], y[10:30]).x])
    found = rectify(watch, net, mixed, share=0.25, seed=5)
    flagged = watch.score(net, mixed, seed=5) > watch.threshold(0.05).value
    assert torch.equal(found.flagged, flagged) and bool(flagged.any()) and not bool(flagged.all())
    assert torch.equal(found.predicted, net(mixed).argmax(1))
    for i in range(30):
        if not flagged[i]:
            assert found.label[i] == found.predicted[i]
            continue
        strong = gradient(net, mixed[i]).abs().flatten().topk(16).indices
        total = torch.zeros(3)
        for step in range(16):
            gone = Rng(5).split(31).at(torch.tensor([i]), step).bernoulli((64,), 0.5)[0]
            at = mixed[i].clone().view(-1)
            for p in strong.tolist():
                if gone[p]:
                    at[p] = 0.5
            total += net(at.view(1, 1, 8, 8)).softmax(1)[0]
        assert int(found.label[i]) == int(total.argmax())
    with pytest.raises(InputError, match="share=0"):
        rectify(watch, net, mixed, share=0)


# --- all of them


@cache
def watch_of(name: str):
    attack = foible.attacks.pgd(foible.Linf(0.2), 10)
    return RECIPES[name]().fit(trained(), pictures(60, 1), attack=attack)


@pytest.mark.parametrize("name", RECIPES)
def test_a_watch_is_deterministic_and_survives_its_file(name: str, tmp_path) -> None:
    net, x = trained(), pictures(9, 2)[0]
    watch = watch_of(name)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    scores = watch.score(net, x)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert scores.shape == (9,) and float(scores.double().std()) > 0
    again = RECIPES[name]().fit(
        net, pictures(60, 1), attack=foible.attacks.pgd(foible.Linf(0.2), 10)
    )
    assert torch.equal(again.score(net, x), scores)
    watch.save(tmp_path / "watch")
    held = load(tmp_path / "watch")
    assert held.detector == watch.detector and torch.equal(held.score(net, x), scores)
    assert held.threshold(0.1, soft=True) == watch.threshold(0.1, soft=True)
    parts = [watch.score(net, x[p], ids=p) for p in torch.arange(9).split(4)]
    torch.testing.assert_close(torch.cat(parts).double(), scores.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["saliency_detector", "ml_loo", "x_ensemble"])
def test_the_attack_that_knows_the_detector_leaves_less_than_half(name: str) -> None:
    net, (x, y) = trained(), pictures(24, 2)
    made = {
        "saliency_detector": foible.detect.saliency_detector(epochs=15, width=8),
        "ml_loo": foible.detect.ml_loo(),
        "x_ensemble": foible.detect.x_ensemble(steps=3, epochs=8, width=4),
    }[name]
    if name == "ml_loo":
        made = replace(made, feature=replace(made.feature, sketch=16))
    threat = foible.Linf(0.2)
    watch = made.fit(net, pictures(150, 1), attack=foible.attacks.pgd(threat, 10))
    level = watch.threshold(0.05).value
    same = foible.attacks.pgd(threat, 10)(net, x, y)
    caught = float((watch.score(net, same.x[same.success]) > level).double().mean())
    found = adaptive(watch, threat, steps=15)(net, x, y)
    fools = found.label != y
    left = float(
        (watch.score(net, found.x[fools], ids=fools.nonzero()[:, 0]) > level).double().mean()
    )
    assert caught > 0.3 and float(fools.double().mean()) >= 0.8 and left < caught / 2
    won = found.success & found.attacked
    assert bool((watch.score(net, found.x[won], ids=won.nonzero()[:, 0]) <= level).all())


def test_what_stands_in_has_a_level_of_its_own() -> None:
    net, watch = trained(), watch_of("x_ensemble")
    assert watch.stands_in and not watch_of("shap_signatures").stands_in
    levels = watch.state["soft_levels"]
    assert len(levels) == len(watch.state["levels"])
    assert float(levels.min()) < 0  # log-odds, no share of votes
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))[36:].sort().values
    x, y = pictures(60, 1)
    held = order[net(x[order]).argmax(1) == y[order]]
    made = watch.detector
    soft = features_of(made.feature.soft(), net, x[held], part_of(watch.state, "feature"))
    wanted = made.head.soft(soft, part_of(watch.state, "head")).double().sort().values
    torch.testing.assert_close(levels, wanted)
    above = int((levels > watch.threshold(0.2, soft=True).value).sum())
    assert above == int(0.2 * len(levels))


def test_masks_have_no_gradient_and_say_so() -> None:
    watch = watch_of("mask_detector")
    with pytest.raises(InputError, match="mask_detector's feature has no gradient"):
        adaptive(watch, foible.Linf(0.1))
    net, x = trained(), pictures(3, 2)[0]
    feature, index = watch.detector.feature, torch.arange(3)
    oracle = Oracle(wrap(net), 3)
    with oracle.session():
        rows = Rows(index, index, x, net(x).argmax(1))
        draw = Rng(0).split(23).at(index).split(0)
        field = Field(oracle, Logit(), 3)
        wanted = feature.explainers[0].attribute(field, rows, draw)
    torch.testing.assert_close(features_of(feature, net, x, {}), wanted)


def test_templates_need_no_adversarials() -> None:
    net, data = trained(), pictures(60, 1)
    watch = foible.detect.class_template().fit(net, data)
    assert isinstance(watch.detector, Detector) and watch.detector.head == Largest(
        "high", normed=False
    )
    assert bool((watch.score(net, data[0]) <= 2).all())
