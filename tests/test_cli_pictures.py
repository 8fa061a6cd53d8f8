"""`foible attack` and `foible explain`: the files tell the truth, and mistakes are told."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import MODULE, call, refused
from PIL import Image

import foible

X = foible.zoo.sample()[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "usercode.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("usercode", None)


# --- attack


def save(path: Path, index: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((X[index, 0].numpy() * 255).round().astype(np.uint8)).save(path)
    return path


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).float()


def labels(*pictures: torch.Tensor) -> list[int]:
    net = foible.zoo.load("standard")
    with torch.no_grad():
        return [int(net(p[None, None] / 255).argmax()) for p in pictures]


@pytest.mark.parametrize(("norm", "eps"), [("linf", "8/255"), ("linf", "0.1"), ("l2", "2.03")])
def test_an_attack_survives_as_a_png_and_the_files_tell_the_truth(
    tmp_path: Path, norm: str, eps: str
) -> None:
    path = save(tmp_path / "shirt.png", 3)
    text = call("attack", path, "--norm", norm, "--eps", eps, "--steps", 8, "--out", tmp_path / "o")
    told = json.loads((tmp_path / "o" / "shirt.json").read_text())
    clean, found = pixels(path), pixels(tmp_path / "o" / "shirt-adversarial.png")
    before, after = labels(clean, found)
    assert (told["clean"]["label"], told["clean"]["name"]) == (before, foible.zoo.CLASSES[before])
    assert told["success"] and told["eight_bit"]["survived"] and after != before
    assert told["eight_bit"]["label"] == after and "survives 8-bit rounding" in text
    change = (found - clean) / 255
    size = float(change.abs().max() if norm == "linf" else change.double().norm())
    limit = 8 / 255 if eps == "8/255" else float(eps)
    assert 0.7 * limit < size <= limit * (1 + 1e-6) + 1e-7
    assert told["eight_bit"]["distance"] == pytest.approx(size, rel=1e-5)
    assert told["eight_bit"]["inside"] is True
    assert (told["forwards"], told["backwards"]) == (11, 8)
    assert told["eps"] == limit and told["norm"] == norm
    shown = pixels(tmp_path / "o" / "shirt-difference.png") - 128
    assert float(shown.abs().max()) == 127
    assert torch.allclose(shown, 255 * change * told["difference_factor"], atol=0.51)


def test_a_target_a_true_label_and_a_folder(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", i)
    (tmp_path / "in" / "notes.txt").write_text("x")
    out = tmp_path / "o"
    call("attack", tmp_path / "in", "--target", "bag", "--eps", 0.3, "--out", out)
    told = [json.loads((out / f"{i}.json").read_text()) for i in range(3)]
    assert [t["target"] for t in told] == [8, 8, 8]
    assert labels(*(pixels(out / f"{i}-adversarial.png") for i in range(3))) == [8, 8, 8]
    text = call("attack", tmp_path / "in" / "0.png", "--label", 9, "--out", out)
    told = [json.loads((out / "0.json").read_text())]
    assert told[0]["status"] == "wrong" and told[0]["distance"] == 0
    assert "not class 9 from the start" in text
    assert torch.equal(pixels(out / "0-adversarial.png"), pixels(tmp_path / "in" / "0.png"))


def test_a_failed_attack_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 0)
    text = call("attack", path, "--eps", "1/255", "--steps", 1, "--out", tmp_path / "o")
    assert "the attack fails" in text
    told = json.loads((tmp_path / "o" / "a.json").read_text())
    assert not told["success"] and not told["eight_bit"]["survived"]


def test_other_attacks_and_the_seed(tmp_path: Path) -> None:
    path, out = save(tmp_path / "a.png", 3), tmp_path / "o"
    call("attack", path, "--attack", "ig-deletion", "--out", out)
    told = json.loads((out / "a.json").read_text())
    changed = pixels(path) != pixels(out / "a-adversarial.png")
    assert told["success"] and int(changed.sum()) == told["distance"]
    assert (pixels(out / "a-adversarial.png")[changed] == 0).all()
    call("attack", path, "--norm", "l0", "--eps", 40, "--steps", 5, "--out", out)
    assert 0 < int((pixels(path) != pixels(out / "a-adversarial.png")).sum()) <= 40
    same = [(out / "a-adversarial.png").read_bytes() for _ in range(2)
            if call("attack", path, "--steps", 2, "--seed", 4, "--out", out)]  # fmt: skip
    assert same[0] == same[1]
    call("attack", path, "--steps", 2, "--seed", 5, "--out", out)
    assert (out / "a-adversarial.png").read_bytes() != same[0]


def test_an_own_model_with_colour_pictures(here: Path) -> None:
    Image.new("RGB", (8, 8), (200, 30, 90)).save(here / "c.png")
    options = ("--model", "usercode:rgb", "--bounds", "-1", "1", "--mean", "0", "0.1", "0",
               "--std", "1", "1", "1")  # fmt: skip
    call("attack", "c.png", *options, "--eps", 0.9, "--out", "o")
    told = json.loads((here / "o" / "c.json").read_text())
    assert np.array(Image.open(here / "o" / "c-adversarial.png")).shape == (8, 8, 3)
    assert told["clean"]["name"] == str(told["clean"]["label"])
    call("explain", "c.png", *options, "--out", "o")
    assert (here / "o" / "c-smoothgrad.png").is_file()


def test_mistakes_of_an_attack_are_told(tmp_path: Path, here: Path) -> None:
    path = save(tmp_path / "a.png", 0)
    Image.new("RGB", (40, 30)).save(tmp_path / "big.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for args, said in (
        ((tmp_path / "big.png",), "is 40 x 30 pixels, colour, and zoo:standard takes 28 x 28 grey"),
        ((tmp_path / "bad.png",), "cannot be read as a picture"),
        ((tmp_path / "gone.png",), "there is no file or folder"),
        ((tmp_path / "empty",), "holds no PNG or JPEG"),
        ((path, "--attack", "pgdd"), "did you mean pgd"),
        ((path, "--attack", "bend"), "use it from Python: foible.attacks.bend"),
        ((path, "--attack", "fgsm", "--steps", 3), "fgsm has no steps"),
        ((path, "--norm", "l7"), "choose linf, l2, l1, l0"),
        ((path, "--eps", "big"), "write 0.03 or 8/255"),
        ((path, "--eps", "-1"), "eps is -1.0"),
        ((path, "--label", "12"), "classes 0 to 9"),
        ((path, "--target", "sock"), "'sock': give the number of a class.*Trouser"),
        ((path, "--weights", "w.safetensors"), "--weights without --model"),
        ((path, "--model", "usercode:make"), r"cannot take inputs of shape \(1, 28, 28\)"),
        ((path, "--model", "usercode:raises"), "RuntimeError: no GPU here"),
        ((path, "--out", tmp_path / "file"), "cannot be written .*choose another --out"),
    ):
        assert re.search(said, refused("attack", *args)), said


# --- explain


@pytest.mark.parametrize(
    "method", ["saliency", "smoothgrad", "integrated-gradients", "gradient_x_input", "lime"]
)
def test_a_picture_is_drawn_beside_its_map(tmp_path: Path, method: str) -> None:
    path, name = save(tmp_path / "a.png", 2), method.replace("-", "_")
    text = call("explain", path, "--method", method, "--target", "sandal", "--out", tmp_path / "o")
    told = json.loads((tmp_path / "o" / f"a-{name}.json").read_text())
    assert told["target"]["label"] == 5 and told["prediction"]["label"] == 9
    x = pixels(path)[None, None] / 255
    maps = getattr(foible.explain, name)()(foible.zoo.load("standard"), x, 5)
    assert told["summary"]["sum"] == pytest.approx(float(maps.double().sum()), rel=1e-4)
    residual = told["summary"]["completeness_residual"]
    assert (residual is not None) == (name == "integrated_gradients")
    assert residual is None or (0 <= residual < 0.2 and "completeness residual" in text)
    drawn = np.array(Image.open(tmp_path / "o" / f"a-{name}.png"))
    assert drawn.shape[0] > 300 and drawn.std() > 10


def test_the_map_is_orange_where_it_is_positive_and_white_at_zero(tmp_path: Path) -> None:
    from foible.cli.drawing import draw
    from foible.cli.picturing import Subject

    values = torch.zeros(1, 4, 4)
    values[0, 0, 0], values[0, 3, 3] = 2.0, -1.0
    who = Subject("m", foible.wrap(torch.nn.Identity()), ("$a_b^$", "b"))
    said = {"prediction": {"name": "$a_b^$", "confidence": 1.0}, "method": "m",
            "target": {"name": "<b>"}}  # fmt: skip
    draw(tmp_path / "m.png", who, torch.zeros(1, 4, 4), [values], [said])
    drawn = np.array(Image.open(tmp_path / "m.png").convert("RGB")).reshape(-1, 3).tolist()
    assert [214, 86, 28] in drawn and [255, 255, 255] in drawn
    assert any(r < b - 40 for r, _, b in drawn)


def test_a_folder_is_explained_and_mistakes_are_told(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", 0)
    save(tmp_path / "in" / "a.jpg", 1)
    call("explain", tmp_path / "in", "--method", "saliency", "--out", tmp_path / "o")
    assert sorted(p.name for p in (tmp_path / "o").glob("*.json")) == [
        "a-jpg-saliency.json", "a-png-saliency.json",
    ]  # fmt: skip
    path = tmp_path / "in" / "a.png"
    assert "did you mean saliency" in refused("explain", path, "--method", "salience")
    assert "classes 0 to 9" in refused("explain", path, "--target", "10")
    assert "no explanation called" in refused("explain", path, "--method", "pgd")


def test_several_methods_share_a_sheet_and_a_batch_is_read(tmp_path: Path) -> None:
    x, _ = foible.zoo.sample()
    np.savez(tmp_path / "rows.npz", x=x[:5].numpy())
    out = tmp_path / "o"
    text = call("explain", tmp_path / "rows.npz", "--method", "saliency, gradient-x-input",
                "--first", "2", "--out", out)  # fmt: skip
    assert sorted(p.name for p in out.iterdir()) == [
        "rows-0-gradient_x_input.json", "rows-0-maps.png", "rows-0-saliency.json",
        "rows-1-gradient_x_input.json", "rows-1-maps.png", "rows-1-saliency.json",
    ]  # fmt: skip
    told = json.loads((out / "rows-1-saliency.json").read_text())
    maps = foible.explain.saliency()(foible.zoo.load("standard"), x[1:2])
    assert told["summary"]["largest"] == pytest.approx(float(maps.max()), rel=1e-5)
    assert text.count("rows-0-maps.png") == 2
    assert "--method is empty" in refused("explain", tmp_path / "rows.npz", "--method", ",")
    np.save(tmp_path / "flat.npy", np.zeros(4))
    assert "at least one row" in refused("explain", tmp_path / "flat.npy")


def test_a_row_of_a_table_becomes_bars(tmp_path: Path) -> None:
    from foible.cli.drawing import draw
    from foible.cli.picturing import Subject

    who = Subject("m", foible.wrap(torch.nn.Identity()), None)
    said = {"prediction": {"name": "0", "confidence": 1.0}, "method": "m", "target": {"name": "0"}}
    maps = [torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 1.0, -1.0])]
    draw(tmp_path / "m.png", who, torch.rand(3), maps, [said, said])
    drawn = np.array(Image.open(tmp_path / "m.png").convert("RGB")).reshape(-1, 3).tolist()
    assert [214, 86, 28] in drawn and [36, 108, 178] in drawn
