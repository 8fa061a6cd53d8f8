"""What is removed and what shows instead: under LIME, Shapley values, erasure and curves."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from conftest import Counter, filled, linear, rand, randn
from torch import Tensor, nn

from foible import explain
from foible.core.errors import InputError, KindError, MissingExtra
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.rows import Rows
from foible.core.spec import build, spec
from foible.explain.removal import (
    EveryFeature,
    Grid,
    LabelMap,
    Superpixels,
    as_segments,
    filling,
    masked_values,
    plain,
)
from foible.models import wrap
from foible.parts.objectives import Logit


def rows_of(x: Tensor, y: int = 0) -> Rows:
    index = torch.arange(len(x))
    return Rows(index, index, x, torch.full_like(index, y))


@pytest.fixture
def colour() -> Tensor:
    return rand(3, 3, 7, 6, seed=1, dtype=torch.float64)


LEFT_RIGHT = tuple((0, 0, 0, 7, 7, 7) for _ in range(7))
KINDS = [Grid(2), EveryFeature(), LabelMap(LEFT_RIGHT), Superpixels(1.0, 3.0)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("fill", [0.5, "mean", "segment", "blur", "constant"])
@pytest.mark.parametrize("width", [1, 4, 100])
def test_masked_values_are_those_of_a_literal_loop(kind, fill, width, colour: Tensor) -> None:
    """Pixel by pixel, one forward each; never a forward wider than the chunk."""
    net = filled(nn.Sequential(nn.Flatten(), nn.Linear(126, 5), nn.Tanh(), nn.Linear(5, 2)), 2)
    model = Counter(wrap(net.double()), at_most=width)
    rows = rows_of(colour, 1)
    part = kind.of(rows)
    if fill == "constant":
        fill = plain(rand(3, 7, 6, seed=3))
    base = filling(fill, rows, part)
    keep = rand(3, 5, part.count, seed=4) < 0.5
    field = Field(Oracle(model, 3), Logit(), width)
    found = masked_values(field, rows, keep, part, base)
    assert model.forwards == 15 and max(model.sizes) <= width
    labels, bases = part.label.expand_as(colour), base.expand_as(colour)
    for i in range(3):
        for n in range(5):
            at = colour[i].clone()
            for c, h, w in torch.cartesian_prod(*map(torch.arange, at.shape)).tolist():
                if not keep[i, n, labels[i, c, h, w]]:
                    at[c, h, w] = bases[i, c, h, w]
            expected = float(net(at[None])[0, 1].detach())
            assert abs(float(found[i, n]) - expected) < 1e-12


def test_one_set_of_maskings_for_all_rows_is_the_same_repeated(colour: Tensor) -> None:
    model = wrap(filled(nn.Sequential(nn.Flatten(), nn.Linear(126, 2)), 2).double())
    rows, keep = rows_of(colour), rand(1, 6, 12, seed=1) < 0.5
    field, part = Field(Oracle(model, 3), Logit(), 4), Grid(2).of(rows)
    one, many = (
        masked_values(field, rows, k, part, torch.tensor(0.0))
        for k in (keep, keep.expand(3, -1, -1))
    )
    torch.testing.assert_close(one, many, rtol=0, atol=1e-14)
    assert not torch.allclose(one[0], one[1])


def test_a_grid_cuts_cells_and_the_last_ones_are_smaller(colour: Tensor) -> None:
    part = Grid(3).of(rows_of(colour))
    assert part.count == 6 and part.label.shape == (1, 1, 7, 6)
    assert part.sizes((3, 7, 6)).tolist() == [[27, 27, 27, 27, 9, 9]]
    table = Grid(3).of(rows_of(rand(2, 5, seed=1)))
    assert table.label.tolist() == [[0, 1, 2, 3, 4]]


def test_a_map_of_labels_names_segments(colour: Tensor) -> None:
    part = LabelMap(LEFT_RIGHT).of(rows_of(colour))
    assert part.count == 2
    spread = part.spread(torch.tensor([[1.0, 2.0]] * 3), (3, 7, 6))
    assert spread.shape == colour.shape
    assert bool((spread[..., :3] == 1).all()) and bool((spread[..., 3:] == 2).all())
    with pytest.raises(InputError, match="label map has shape"):
        LabelMap(((0, 1), (1, 0))).of(rows_of(colour))
    with pytest.raises(InputError, match="whole numbers"):
        LabelMap(plain(torch.zeros(7, 6))).of(rows_of(colour))


def test_superpixels_are_each_images_own() -> None:
    x = torch.zeros(2, 1, 12, 12)
    x[0, :, :, 6:] = 1.0
    x[1, :, :6, :6] = 1.0
    x[1, :, 6:, 6:] = 1.0
    part = Superpixels(1.0, 8.0, 1.0).of(rows_of(x))
    assert part.present.sum(1).tolist()[0] < part.present.sum(1).tolist()[1] == part.count
    for i in range(2):
        for s in range(int(part.present[i].sum())):
            inside = x[i, 0][part.label[i, 0] == s]
            assert len(inside) > 0 and len(inside.unique()) == 1  # no segment crosses an edge
    again = Superpixels(1.0, 8.0, 1.0).of(rows_of(x[1:]))
    assert torch.equal(again.label[0], part.label[1])


def test_superpixels_say_what_to_install(monkeypatch: pytest.MonkeyPatch, colour: Tensor) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(MissingExtra, match=r"foible\[image\]"):
        Superpixels().of(rows_of(colour))
    with pytest.raises(InputError, match="need images"):
        Superpixels().of(rows_of(rand(2, 5, seed=1)))


def test_baselines(colour: Tensor) -> None:
    rows = rows_of(colour)
    assert float(filling(0.25, rows)) == 0.25
    mean = filling("mean", rows).expand_as(colour)
    torch.testing.assert_close(mean[1, 2, 0, 0], colour[1, 2].mean())
    own = filling("segment", rows, Grid(3).of(rows))
    torch.testing.assert_close(own[2, 1, 4, 5], colour[2, 1, 3:6, 3:].mean())
    torch.testing.assert_close(own[2, 1, 6, 0], colour[2, 1, 6:, :3].mean())
    flat = rows_of(torch.full((2, 3, 7, 6), 0.3))
    torch.testing.assert_close(filling("blur", flat), flat.x)
    assert filling("blur", rows).std() < colour.std()


def test_what_cannot_be_a_baseline_or_a_segment_is_refused(colour: Tensor) -> None:
    rows, table = rows_of(colour), rows_of(rand(2, 5, seed=1))
    with pytest.raises(InputError, match="give a number, a tensor"):
        explain.lime(baseline="grey")
    for word in ("mean", "blur", "segment"):
        with pytest.raises(InputError, match="one value a feature"):
            filling(word, table)
    with pytest.raises(InputError, match="broadcast to one input"):
        filling((1.0, 2.0), rows)
    with pytest.raises(InputError, match="needs segments"):
        filling("segment", rows)
    with pytest.raises(InputError, match="at least 1"):
        explain.lime(segments=0)
    with pytest.raises(KindError, match="pass Segments"):
        as_segments("grid")


def test_a_tensor_becomes_numbers_that_a_plan_can_store() -> None:
    part = explain.lime(20, LabelMap(plain(torch.tensor([0, 1, 1]))), torch.tensor([0.0, 1.0, 2.0]))
    assert part.baseline == (0.0, 1.0, 2.0) and build(spec(part)) == part
    net = linear(randn(2, 3, seed=1), torch.zeros(2))
    maps = part(net, rand(2, 3, seed=2), 0)
    assert torch.equal(maps[:, 1], maps[:, 2])
    assert replace(part, baseline=0.0) != part
