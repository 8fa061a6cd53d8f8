"""Meaningful perturbation: against a literal replica, on planted evidence, on the bundled model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import Counter, SmallNet, filled, predicted, rand, randn
from replicas import masks as slow
from torch import Tensor, nn

import foible
from foible import attacks, explain
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.progress import listening
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.explain.masks import MeaningfulPerturbation
from foible.explain.removal import filling
from foible.models import wrap
from foible.parts.objectives import Logit
from foible.parts.threats import Masking
from foible.parts.threats.masking import roughness, upsampled
from foible.parts.transforms import Jitter


def rows_of(x: Tensor, y: Tensor | None = None) -> Rows:
    index = torch.arange(len(x))
    return Rows(index, index, x, torch.zeros_like(index) if y is None else y)


def probability(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).softmax(1).gather(1, y[:, None]).squeeze(1)


class Quarter(nn.Module):
    """Class 1 is bright where rows and columns are both below 8; the rest counts for nothing."""

    def forward(self, x: Tensor) -> Tensor:
        gain = 12 * (x[:, :, :8, :8].mean((1, 2, 3)) - 0.5)
        return torch.stack([torch.zeros_like(gain), gain], 1)


# --- the threat


@pytest.mark.parametrize("keep", [False, True])
def test_a_mask_is_the_image_at_one_end_and_the_null_at_the_other(keep: bool) -> None:
    rows = rows_of(rand(3, 2, 7, 9, seed=1))
    rows.extra["null"] = rand(3, 2, 7, 9, seed=2)
    threat = Masking(cell=2, keep=keep).inside((0.0, 1.0))
    nothing, everything = threat.full(rows, 0.0), threat.full(rows, 1.0)
    assert nothing.shape == (3, 1, 4, 5)
    ends = [threat.render(rows, z) for z in (nothing, everything)]
    assert torch.equal(ends[keep], rows.x)
    torch.testing.assert_close(ends[not keep], rows.extra["null"], rtol=0, atol=1e-6)
    assert torch.equal(threat.render(rows, threat.clean(rows)), rows.x)


def test_a_mask_mixes_by_hand_and_its_judge_knows() -> None:
    rows = rows_of(rand(4, 1, 6, 6, seed=3))
    rows.extra["null"] = rand(4, 1, 6, 6, seed=4)
    threat = Masking(cell=3).inside((0.0, 1.0))
    z = threat.start(rows, Rng(0).at(rows.id))
    s = torch.nn.functional.interpolate(z, (6, 6), mode="bilinear")
    x_adv = threat.render(rows, z)
    torch.testing.assert_close(x_adv, (1 - s) * rows.x + s * rows.extra["null"])
    rows.extra["z"] = z
    assert threat.contains(rows, x_adv).all()
    assert not threat.contains(rows, x_adv + 1e-3 * (x_adv < 0.5)).any()
    torch.testing.assert_close(threat.distance(rows, x_adv), z.double().mean((1, 2, 3)))
    beyond = replace(rows, extra={**rows.extra, "z": z + 1.0})
    assert not threat.contains(beyond, threat.render(beyond, z + 1.0)).any()
    assert torch.equal(threat.project(rows, z + 1.0), torch.ones_like(z))
    with pytest.raises(ValueError, match="does not tell its mask"):
        threat.contains(rows_of(rows.x), x_adv)


def test_roughness_is_total_variation_to_a_power() -> None:
    z = rand(3, 1, 4, 5, seed=5, dtype=torch.float64)
    wanted = torch.stack([slow.rough(m[0], 3.0) for m in z]) / 20
    torch.testing.assert_close(roughness(z), wanted)
    assert torch.equal(roughness(torch.full((2, 1, 3, 3), 0.4)), torch.zeros(2))


def test_jitter_moves_whole_pixels_and_repeats_the_edge() -> None:
    x = rand(6, 2, 5, 7, seed=6)
    draw = Rng(3).at(torch.arange(6))
    found, seen = Jitter(2)(x, draw), set()
    for image, moved in zip(x, found, strict=True):
        fits = [
            (d, r) for d in range(-2, 3) for r in range(-2, 3)
            if torch.equal(slow.moved(image, d, r), moved)
        ]  # fmt: skip
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 2 and Jitter(0)(x, draw) is x


# --- the paper's loop


@pytest.mark.parametrize(("game", "jitter"), [("delete", 0.5), ("preserve", 0.0)])
def test_the_replica(game: str, jitter: float, monkeypatch: pytest.MonkeyPatch) -> None:
    shifts: dict[int, list[tuple[int, int]]] = {k: [] for k in range(3)}
    original = Jitter.__call__

    def noted(self: Jitter, x: Tensor, draw) -> Tensor:
        moves = (draw.scalars(2) * 3).long() - 1
        for key, step, (down, right) in zip(
            draw.ids.tolist(), draw.step.tolist(), moves.tolist(), strict=True
        ):
            if step == len(shifts[key]):
                shifts[key].append((down, right))
        return original(self, x, draw)

    monkeypatch.setattr(Jitter, "__call__", noted)
    net = filled(SmallNet(), 5, 3.0).double().eval()
    x = rand(3, 1, 6, 6, seed=6, dtype=torch.float64)
    y = predicted(net, x)
    part = MeaningfulPerturbation(game, 0.2, steps=12, cell=2, jitter=jitter)
    found = part(Counter(wrap(net), at_most=2), x, y)
    for k in range(3):
        steps = shifts[k][:12] or [(0, 0)] * 12
        null = torch.full_like(x[k], 0.2)
        m = slow.mask(
            net, (x[k], null), int(y[k]), steps, (0.3, 0.5), (0.1, 0.01), game == "preserve"
        )
        chosen = m if game == "preserve" else 1 - m
        wanted = upsampled(chosen[None, None], x[:1])[0]
        torch.testing.assert_close(found[k], wanted, rtol=0, atol=1e-7)
        assert 0.05 < float(wanted.mean()) < 0.95


def test_what_it_costs() -> None:
    """One forward and backward a step, one forward at the end, ten for the start, one label."""
    model = Counter(wrap(filled(SmallNet(), 5, 2.0)))
    x = rand(3, 1, 6, 6, seed=6)
    finished: list[int] = []
    with listening(finished.append):
        explain.meaningful_perturbation(steps=7, null="mean")(model, x)
    assert model.forwards == 3 * (7 + 11 + 1) and model.backwards == 3 * 7
    assert finished == []  # an attack that asks for masks counts its own rows only


# --- what a mask must say


@pytest.mark.parametrize("game", ["delete", "preserve"])
def test_the_region_that_counts_is_found(game: str) -> None:
    x = 0.8 + 0.2 * rand(5, 1, 16, 16, seed=7)
    found = explain.meaningful_perturbation(game, 0.0, smooth=0.1)(Quarter(), x, 1)
    inside = found[:, :, :8, :8].sum((1, 2, 3)) / found.sum((1, 2, 3))
    assert inside.min() > 0.85
    shown = 1 - found if game == "delete" else found
    after = probability(Quarter(), x * shown, torch.ones(5, dtype=torch.int64))
    assert (after < 0.2).all() if game == "delete" else (after > 0.8).all()


@pytest.mark.parametrize("game", ["delete", "preserve"])
def test_the_circle_is_the_smallest_that_does_it(game: str) -> None:
    net = filled(SmallNet(), 5, 3.0).double().eval()
    x = rand(4, 1, 6, 6, seed=6, dtype=torch.float64)
    y = predicted(net, x)
    part = MeaningfulPerturbation(game, 0.2, steps=1, rate=1e-9, last=1e-9, cell=2)
    found = part(net, x, y)
    for k in range(4):
        m = slow.disc(net, x[k], torch.full_like(x[k], 0.2), int(y[k]), 3, game == "preserve")
        chosen = m if game == "preserve" else 1 - m
        torch.testing.assert_close(
            found[k], upsampled(chosen[None, None], x[:1])[0], rtol=0, atol=1e-6
        )


def test_any_other_field_counts_by_its_own_scale() -> None:
    """As a share of its difference between x and null: a thousand times the field, one mask."""
    net = filled(SmallNet(), 5, 3.0).double().eval()
    x = rand(3, 1, 6, 6, seed=6, dtype=torch.float64)
    held, rows = wrap(net), rows_of(x, predicted(net, x))
    maps = []
    for scale in (1.0, 1000.0):
        oracle = Oracle(held, 3)
        with oracle.session():
            field = Field(oracle, lambda view, s=scale: s * Logit()(view), 8)
            part = explain.meaningful_perturbation(null=0.2, steps=15)
            maps.append(part.attribute(field, rows, Rng(0).at(rows.id)))
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=1e-6)
    assert 0.05 < float(maps[0].mean()) < 0.95


def test_a_seed_fixes_the_mask_whoever_shares_the_batch() -> None:
    net, x = filled(SmallNet(), 5, 2.0).double().eval(), rand(5, 1, 6, 6, seed=6).double()
    part = explain.meaningful_perturbation(null="noise", steps=10)
    found = part(net, x, 1, seed=3)
    assert torch.equal(found, part(net, x, 1, seed=3))
    assert not torch.equal(found, part(net, x, 1, seed=4))
    split = part(Counter(wrap(net), at_most=2), x, 1, seed=3)
    torch.testing.assert_close(split, found, rtol=0, atol=1e-9)


def test_prices_do_what_they_say() -> None:
    net, (x, y) = foible.zoo.load("standard"), foible.zoo.sample()
    x, y = x[:8], y[:8]

    def found(**given: float) -> Tensor:
        return explain.meaningful_perturbation(steps=25, **given)(net, x, y)

    def rough(maps: Tensor) -> float:
        return float(sum((maps.diff(dim=d).abs()).sum() for d in (2, 3)))

    usual = found()
    assert found(area=2.0).mean() < 0.7 * usual.mean()
    assert rough(found(smooth=0.0)) > 1.1 * rough(usual)
    assert rough(found(smooth=8.0)) < 0.8 * rough(usual)
    # Without both, more of it a unit of area: what is left is closer to a pattern.
    bare = found(smooth=0.0, jitter=0.0)
    assert rough(bare) / bare.mean() > 1.2 * rough(usual) / usual.mean()


def test_the_bar_on_a_few_bundled_images() -> None:
    net, (x, y) = foible.zoo.load("standard"), foible.zoo.sample()
    x, y = x[:20], y[:20]
    found = explain.meaningful_perturbation(steps=50)(net, x, y)
    blurred = filling("blur", rows_of(x)).expand_as(x)
    assert probability(net, x + found * (blurred - x), y).median() <= 0.2
    assert found.mean((1, 2, 3)).median() <= 0.4

    slope, score = explain.saliency()(net, x, y), explain.deletion(14, "blur")
    ours = score(net, x, found, y).values.mean()
    theirs = [score(net, x, m, y).values.mean() for m in (slope, slope.abs())]
    assert ours < min(theirs) - 0.1


# --- what cannot be


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"game": "keep"}, "game='keep'"),
        ({"null": "segment"}, "no segments"),
        ({"null": "grey"}, "baseline='grey'"),
        ({"steps": 0}, "steps=0"),
        ({"cell": 0}, "cell=0"),
        ({"area": -1.0}, "area=-1"),
        ({"smooth": float("nan")}, "smooth=nan"),
    ],
)
def test_settings_that_cannot_be(given, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        explain.meaningful_perturbation(**given)


def test_it_is_for_images_and_no_direction() -> None:
    part = explain.meaningful_perturbation(null=0.0)
    with pytest.raises(TypeError, match="images"):
        part(nn.Linear(4, 2), torch.rand(2, 4), 0)
    with pytest.raises(ValueError, match="unsigned"):
        attacks.fgsm(foible.Linf(0.1), part)


def test_a_null_image_may_be_given() -> None:
    x, null = 0.8 + 0.2 * rand(2, 1, 8, 8, seed=7), randn(1, 8, 8, seed=8) * 1e-3
    part = explain.meaningful_perturbation(null=null.abs(), steps=5)
    assert part(Quarter(), x, 1).shape == x.shape and isinstance(part.null, tuple)
