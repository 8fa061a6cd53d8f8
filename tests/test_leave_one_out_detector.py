"""ML-LOO's feature: what is left out, counted, and differentiated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_nets import pictures, random_images, sharp, slope_is_right, trained
from torch import Tensor, nn

import foible
from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Rng
from foible.core.rows import Rows
from foible.detect.base import features_of
from foible.detect.features import LeavingOut
from foible.detect.features.leaving import dispersion
from foible.models import wrap


def slowly(net: nn.Module, one: Tensor, which: list[int], layers: bool) -> dict[str, list[float]]:
    """ML-LOO of one image, unit by unit and feature by feature."""
    net = net.requires_grad_(False)
    seen = int(net(one[None]).argmax())
    columns: list[list[float]] = []
    for i in which:
        without = one.clone()
        without.view(-1)[i] = 0.0
        h1 = net[:2](without[None])
        h2 = net[:5](without[None])
        p = net(without[None]).softmax(1)[0]
        units = [float(p[seen])]
        if layers:
            units += [float(v) for v in p]
            units += [float(h1[0, c].mean()) for c in range(4)] + [float(v) for v in h2[0]]
        columns.append(units)
    table = np.array(columns)
    q1, q2, q3 = (np.percentile(table, p, axis=0) for p in (25, 50, 75))
    return {
        "iqr": list(q3 - q1), "std": list(table.std(0)),
        "mad": list(np.median(np.abs(table - q2), axis=0)),
    }  # fmt: skip


def test_ml_loo_is_its_loop_written_slowly() -> None:
    net, x = sharp(), random_images(3)
    for layers in ((), None):
        feature = LeavingOut(layers, ("iqr", "std", "mad"))
        found = features_of(feature, net, x, {})
        for one, got in zip(x, found, strict=True):
            told = slowly(net, one, list(range(64)), layers is None)
            wanted = torch.tensor(told["iqr"] + told["std"] + told["mad"])
            torch.testing.assert_close(got, wanted.to(got), rtol=1e-9, atol=1e-12)
    named = features_of(LeavingOut(("1", "4")), net, x, {})
    assert torch.equal(named, features_of(LeavingOut(None), net, x, {}))
    assert foible.detect.ml_loo(layers=()).access.name == "SCORES"


def test_a_few_features_are_each_inputs_own_and_no_chunk_changes_them() -> None:
    net, x = sharp(), random_images(5)
    feature = LeavingOut(None, pixels=9)
    ids = torch.tensor([4, 0, 9, 2, 7])
    whole = features_of(feature, net, x, {}, seed=3, ids=ids)
    alone = features_of(feature, net, x[2:3], {}, seed=3, ids=ids[2:3])
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-9, atol=1e-12)
    drawn = Rng(3).split(23).at(ids).split(41).uniform((64,), torch.float64).argsort(1)[:, :9]
    assert len({tuple(sorted(row.tolist())) for row in drawn}) == 5
    told = slowly(net, x[2], sorted(drawn[2].tolist()), True)["iqr"]
    torch.testing.assert_close(alone[0], torch.tensor(told).to(alone), rtol=1e-9, atol=1e-12)
    other = features_of(feature, net, x, {}, seed=4, ids=ids)
    assert not torch.equal(other, whole)


def test_leaving_out_costs_one_forward_a_feature() -> None:
    net, x = sharp(), random_images(5)
    rows = []
    handle = net[0].register_forward_hook(lambda m, a, out: rows.append(len(out)))
    held = wrap(net)
    held.chunk(x), held.layers(x)
    rows.clear()
    features_of(LeavingOut(None), held, x, {})
    handle.remove()
    assert sum(rows) == 5 * 65 and max(rows) <= held.chunk(x)  # one more for the label


@pytest.mark.parametrize("kind", ["iqr", "std", "mad"])
def test_dispersions_have_their_gradient(kind: str) -> None:
    slope_is_right(sharp(), random_images(2), LeavingOut(None, (kind,), pixels=11))
    values = torch.tensor([[3.0, 1.0, 4.0, 1.5, 9.0]])[..., None]
    on = values.clone().requires_grad_()
    assert torch.equal(dispersion(on, kind).detach(), dispersion(values, kind))


def test_leaving_out_refuses_what_it_does_not_know() -> None:
    with pytest.raises(InputError, match="one or more of iqr, std, mad"):
        LeavingOut(spreads=("range",))
    with pytest.raises(InputError, match="two features"):
        LeavingOut(pixels=1)


def test_several_layers_are_read_in_one_forward() -> None:
    net, x = trained(), pictures(3)[0]
    index = torch.arange(3)
    oracle = Oracle(wrap(net), 3, Access.INTERNALS)
    rows = Rows(index, index, x, index)
    with oracle.session(), torch.no_grad():
        scores, (late, early) = oracle.taps(x, rows, ["4", "1"])
        assert oracle.meter.forwards.tolist() == [1, 1, 1]
        assert torch.equal(scores, net(x)) and torch.equal(late, oracle.tap(x, rows, "4")[1])
        _, (mean,) = oracle.readings(x, rows, ["1"], lambda out: out.mean((2, 3)))
        assert torch.equal(mean, early.mean((2, 3)))
        with pytest.raises(InputError, match="'9' is no module"):
            oracle.readings(x, rows, ["1", "9"], torch.clone)
    assert not net[1]._forward_hooks and not net[4]._forward_hooks
