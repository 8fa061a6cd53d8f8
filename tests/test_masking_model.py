"""Masking models: a network that has learnt a classifier's masks."""

from __future__ import annotations

import base64
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import call, refused
from conftest import Counter, filled, rand
from test_no_trace import everything_about, same
from torch import Tensor, nn

import foible
from foible import attacks, explain
from foible.core.access import Access
from foible.core.errors import AccessError, InputError, KindError
from foible.core.oracle import Oracle
from foible.core.progress import listening
from foible.core.rows import Rows
from foible.core.threat import Box
from foible.explain import masking_nets
from foible.explain.masking_nets import OTHERS, Lesson, MaskNet
from foible.explain.removal import filling
from foible.models import wrap


class Planted(nn.Module):
    """Class 0 lives in the upper left quarter, class 1 in the lower right one, class 2 in none."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(12.0))

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        ends = (x[:, :, :half, :half], x[:, :, half:, half:])
        found = torch.stack([e.mean((1, 2, 3)) for e in ends], 1)
        return self.gain * torch.cat([found, torch.full_like(found[:, :1], 0.3)], 1)


def bright(rows: int, seed: int = 0) -> Tensor:
    """Images 12 x 12, bright in some quarters and dim elsewhere."""
    x, on = rand(rows, 1, 12, 12, seed=seed), rand(rows, 2, 2, seed=seed + 1) < 0.6
    quarters = on.repeat_interleave(6, 1).repeat_interleave(6, 2)[:, None]
    return torch.where(quarters, 0.6 + 0.4 * x, 0.1 * x)


@cache
def taught(area: float = 2.0, seed: int = 0, epochs: int = 12) -> explain.MaskingModel:
    return explain.train_masks(Planted(), bright(256), epochs, area, width=8, seed=seed)


def test_the_class_selects_its_own_mask() -> None:
    x = bright(64, 7)
    x[:, :, :6, :6], x[:, :, 6:, 6:] = 0.8, 0.8  # both are there: which one is asked for decides
    first, second = (taught()(Planted(), x, k).mean((0, 1)) for k in (0, 1))
    for mask, here, there in (
        (first, slice(0, 6), slice(6, 12)), (second, slice(6, 12), slice(0, 6)),
    ):  # fmt: skip
        assert mask[here, here].mean() > 2 * mask[there, there].mean()
    assert not torch.allclose(first, second, atol=0.05)


def test_a_mask_takes_the_class_away() -> None:
    x = bright(64, 9)
    net, y = Planted(), Planted()(x).argmax(1)
    some = y < 2
    mask = taught()(net, x)
    before, after = (net(at).softmax(1).gather(1, y[:, None])[some] for at in (x, x * (1 - mask)))
    assert after.mean() < before.mean() - 0.2
    assert mask.shape == x.shape and mask.min() >= 0 and mask.max() <= 1
    order = explain.deletion(12)(net, x[some], mask[some], y[some])
    assert order.mean is not None and order.chance is not None
    assert order.mean[0] < order.chance[0] - 0.1


def test_a_larger_area_makes_smaller_masks() -> None:
    x = bright(64, 11)
    cheap, usual, dear = (taught(area)(Planted(), x).mean() for area in (0.3, 2.0, 8.0))
    assert cheap > usual > dear


def test_the_bundled_one_beside_the_standard_model() -> None:
    net, (x, y) = foible.zoo.load("standard"), foible.zoo.sample()
    x, y = x[200:240], y[200:240]
    found, slope = explain.masking_model()(net, x, y), explain.saliency()(net, x, y)
    for null in (0.0, "blur"):
        score = explain.deletion(14, null)
        ours, theirs = (score(net, x, m, y).values.mean() for m in (found, slope.abs()))
        assert ours < theirs


def test_a_seed_repeats_itself_bit_for_bit() -> None:
    def made(seed: int) -> str:
        return explain.train_masks(Planted(), bright(70), 1, width=4, seed=seed).weights

    state = torch.get_rng_state()
    assert made(3) == made(3) != made(4)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(Planted(), nn.Dropout(0.5)).train()
    net[0].gain.grad = torch.ones(())
    before, x = everything_about(net), bright(70)
    kept = x.clone()
    explain.train_masks(net, x, 1, width=4)
    after = everything_about(net)
    assert [k for k in before if not same(before[k], after[k])] == [] and torch.equal(x, kept)


def test_a_map_is_one_look_and_none_at_the_model() -> None:
    x = bright(5, 3)
    counted = Counter(wrap(Planted()), level=Access.LABELS)
    maps = taught()(counted, x, 1)
    assert (counted.forwards, counted.backwards) == (1, 0)  # one sample, to count the classes
    assert torch.equal(maps, taught()(Planted(), x, torch.ones(5, dtype=torch.int64)))
    with pytest.raises(AccessError, match="GRADIENTS"):
        explain.train_masks(Counter(wrap(Planted()), level=Access.SCORES), x, 1, width=4)


def test_colours_sizes_and_dtypes() -> None:
    net = nn.Sequential(nn.Flatten(), filled(nn.Linear(3 * 9 * 11, 4), 5)).double()
    x = rand(70, 3, 9, 11, seed=5, dtype=torch.float64)
    maps = explain.train_masks(wrap(net, (-1, 2)), x, 1, width=4)(net, x[:2])
    assert maps.dtype == torch.float64 and maps.shape == (2, 3, 9, 11)
    assert torch.equal(maps[:, 0], maps[:, 2])  # one mask for all colours


def test_it_can_be_attacked_as_the_map_of_a_detector() -> None:
    x = bright(3, 5)
    moved = attacks.fragile(foible.Linf(0.1), taught(), k=10, steps=3, beta=None)(
        Planted(), x, Planted()(x).argmax(1)
    )
    assert moved.x.shape == x.shape and bool((moved.topk < 1).any())


def test_the_loss_is_the_papers_and_the_cut() -> None:
    """Row by row, with the sums written out, on the draws that were made."""
    x, model = bright(12, 4), wrap(Planted())
    net = filled(MaskNet(1, 3, 4, 2), 3, 2.0)
    index = torch.arange(12)
    rows = Rows(index, index, x, Planted()(x).argmax(1))
    with (oracle := Oracle(model, 12)).session():
        oracle.labels(x[:1], rows.take(index[:1]))
        found = Lesson(oracle, net, Box(0, 1), 2.0, 0.5)(rows, torch.Generator().manual_seed(1))
    again = torch.Generator().manual_seed(1)
    drawn = torch.rand(12, 3, generator=again)
    anything = torch.randint(3, (12,), generator=again)
    assert len({bool(d) for d in drawn[:, 0] < OTHERS}) == 2  # both kinds of targets are there

    def seen(i: int, kept: Tensor, k: int) -> float:
        s = F.interpolate(kept[None, None], (12, 12), mode="bilinear")[0]
        mixed = s * x[i] + (1 - s) * rows.extra["null"][i]
        return float(Planted()(mixed[None]).softmax(1)[0, k].detach())

    for i in range(12):
        own = bool(drawn[i, 0] >= OTHERS)
        k = int(rows.y[i] if own else anything[i])
        logit = net(x[i : i + 1], torch.tensor([k]))[0, 0].detach()
        m = logit.sigmoid()
        tv = sum(float(m.diff(dim=d).abs().pow(3).sum()) for d in (0, 1)) / 36
        rank = sorted(logit.flatten().tolist(), reverse=True)
        cut = ((logit - rank[int(drawn[i, 2] * 36)]) / 0.5).sigmoid()
        wanted = seen(i, 1 - m, k) ** 0.3 + 3.0 * seen(i, 1 - cut, k)
        wanted += 2.0 * float(m.mean()) ** 0.3 + 0.5 * tv
        if own:
            wanted -= 0.3 * max(math.log(seen(i, m, k)), -8.0)
        assert float(found[i].detach()) == pytest.approx(wanted, rel=1e-4)


def test_what_is_shown_instead_is_a_blur_a_colour_or_noise() -> None:
    x, index = bright(400, 4), torch.arange(400)
    rows = Rows(index, index, x, index)
    lesson = Lesson(Oracle(wrap(Planted()), 400), MaskNet(1, 3, 4, 2), Box(0, 1), 2.0, 0.5)
    kind = torch.rand(400, generator=torch.Generator().manual_seed(0))
    null = lesson._null(rows, kind, torch.Generator().manual_seed(1))
    blurred = (null == filling("blur", rows)).flatten(1).all(1)
    plain = (null == null[:, :, :1, :1]).flatten(1).all(1)
    assert torch.equal(blurred, kind >= 0.5) and torch.equal(plain, (kind >= 0.1) & (kind < 0.5))
    black = (null == 0).flatten(1).all(1)
    assert 0.3 < float(black[plain].double().mean()) < 0.7
    assert null.min() >= 0 and null.max() <= 1


# --- kept and interrupted


def test_a_file_gives_the_same_bits(tmp_path: Path) -> None:
    path, x = tmp_path / "masks.safetensors", bright(4, 2)
    taught().save(path)
    again = explain.masking_model(path)
    assert again == taught() and again.weights == taught().weights
    assert torch.equal(again(Planted(), x, 0), taught()(Planted(), x, 0))
    assert len(repr(again)) < 100


@pytest.mark.parametrize("kind", ["cut", "other", "text", "none"])
def test_a_file_that_is_none(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save

    path, whole = tmp_path / "masks.safetensors", base64.b64decode(taught().weights)
    other = {"first.weight": torch.zeros(8, 1, 5, 5), "gate.weight": torch.zeros(3, 2)}
    held = {"cut": whole[:-100], "other": save(other), "text": b"masks"}
    if kind in held:
        path.write_bytes(held[kind])
    says = "there is no masking model" if kind == "none" else "no masking model, or it is cut"
    with pytest.raises(InputError, match=says) as told:
        explain.masking_model(path)
    assert str(path) in str(told.value)


def test_a_bundled_file_that_was_changed(monkeypatch, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    own = Path(masking_nets.__file__).parent / "weights"
    for name in ("masks_standard.json", "masks_standard.safetensors"):
        (folder / name).write_bytes((own / name).read_bytes())
    with monkeypatch.context() as patched:
        patched.setattr(masking_nets, "files", lambda _: tmp_path)
        assert explain.masking_model() == explain.masking_model()
        (folder / "masks_standard.safetensors").write_bytes(b"x")
        with pytest.raises(InputError, match="was changed"):
            explain.masking_model()


def test_the_bundled_one_is_for_its_own_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=foible.zoo.sample()[0][:1].numpy())
    given = ("explain", tmp_path / "rows.npz", "--method", "masking-model", "--out", tmp_path / "o")
    call(*given, "--model", "zoo:standard")
    assert (tmp_path / "o" / "rows-0-masking_model.json").is_file()
    assert "knows zoo:standard only" in refused(*given, "--model", "zoo:hardened")


def test_ctrl_c_keeps_what_is_learnt() -> None:
    seen: list[int] = []

    def stop(rows: int) -> None:
        seen.append(rows)
        if sum(seen) >= 128:
            raise KeyboardInterrupt

    with listening(stop):
        found = explain.train_masks(Planted(), bright(140), 5, width=4)
    assert sum(seen) == 128
    assert found(Planted(), bright(2), 0).shape == (2, 1, 12, 12)


def test_progress_counts_every_image() -> None:
    seen: list[int] = []
    with listening(seen.append):
        explain.train_masks(Planted(), bright(70), 2, width=4)
    assert seen == [64, 6, 64, 6]


# --- what cannot be


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"width": 6}, "width=6"),
        ({"area": -1.0}, "area=-1"),
        ({"smooth": float("nan")}, "smooth=nan"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        explain.train_masks(Planted(), bright(4), **given)


def test_inputs_that_cannot_be() -> None:
    with pytest.raises(KindError, match="images"):
        explain.train_masks(nn.Linear(4, 2), torch.rand(8, 4), 1)
    with pytest.raises(InputError, match="NaN"):
        explain.train_masks(Planted(), bright(4) * float("nan"), 1)
    ten = nn.Sequential(nn.Flatten(), nn.Linear(144, 10))
    with pytest.raises(InputError, match="3 classes"):
        taught()(ten, bright(2), 7)
    with pytest.raises(InputError, match="1 colours"):
        taught()(nn.Sequential(nn.Flatten(), nn.Linear(432, 3)), rand(2, 3, 12, 12, seed=1), 0)
    with pytest.raises(ValueError, match="unsigned"):
        attacks.fgsm(foible.Linf(0.1), taught())


def test_the_net_is_for_any_size() -> None:
    net = MaskNet(1, 3, 4, 2)
    for side in (5, 8, 13):
        assert net(torch.rand(2, 1, side, side), torch.tensor([0, 2])).shape[2] == -(-side // 2)
