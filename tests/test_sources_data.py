"""Data of users: what they become, and what each mistake is told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from user_code import here

import foible
from foible.audit.sources import check_fit, load_data, load_model
from foible.core.errors import InputError

__all__ = ["here"]  # a fixture


@pytest.fixture
def notes() -> list[str]:
    return []


# --- data: arrays


def write(path: Path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


X8 = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
Y4 = np.array([0, 1, 0, 1])


def test_the_bundled_sample_is_balanced_by_seed() -> None:
    x, y, classes = load_data("zoo:sample", samples=30, seed=1)
    assert x.dtype == torch.float32 and x.shape == (30, 1, 28, 28)
    assert y.bincount().tolist() == [3] * 10
    assert classes == foible.zoo.CLASSES
    assert torch.equal(load_data("zoo:sample", samples=30, seed=1)[0], x)
    assert not torch.equal(load_data("zoo:sample", samples=30, seed=2)[0], x)
    everything = foible.zoo.sample()
    assert torch.equal(load_data("zoo:sample")[0], everything[0])
    assert torch.equal(load_data("zoo:sample", samples=5000)[1], everything[1])


def test_eight_bit_pictures_are_scaled_into_the_bounds(tmp_path: Path, notes) -> None:
    source = write(tmp_path / "d.npz", images=X8, labels=Y4[:, None])
    x, y, classes = load_data(source, note=notes.append)
    assert x.shape == (4, 1, 6, 5) and y.tolist() == [0, 1, 0, 1] and classes is None
    assert torch.allclose(x.flatten(), torch.from_numpy(X8).flatten().float() / 255)
    assert "(N, H, W) became (N, 1, H, W)" in notes[1] and "8-bit" in notes[0]
    conv = foible.wrap(nn.Sequential(nn.Conv2d(1, 2, 6), nn.Flatten()), bounds=(-1, 1))
    x, _, _ = load_data(source, model=conv)
    assert float(x.min()) == -1 and float(x[0].max()) == pytest.approx(29 / 127.5 - 1)


def test_channels_come_first_where_the_model_wants_them(tmp_path: Path, notes) -> None:
    array = np.random.default_rng(0).random((4, 8, 8, 3), dtype=np.float32)
    source = write(tmp_path / "d.npz", x=array, y=Y4)
    x, _, _ = load_data(source, note=notes.append)
    assert x.shape == (4, 3, 8, 8) and "(N, H, W, C) became" in notes[0]
    assert torch.equal(x[1, 2], torch.from_numpy(array[1, :, :, 2]))
    flat = foible.wrap(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))
    assert load_data(source, model=flat)[0].shape == (4, 8, 8, 3)
    conv = foible.wrap(nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten()))
    assert load_data(source, model=conv)[0].shape == (4, 3, 8, 8)


def test_series_and_tables_stay_as_they_are(here: Path, notes) -> None:
    series = write(here / "s.npz", x=np.zeros((4, 7, 5), np.float64), y=Y4)
    held = load_model("usercode:Rows")
    assert load_data(series, model=held, note=notes.append)[0].shape == (4, 7, 5)
    table = write(here / "t.npz", x=np.array([[3, 200], [1, 2]] * 2, np.uint8), y=Y4)
    x, _, _ = load_data(table, note=notes.append)
    assert x.tolist()[0] == [3.0, 200.0] and x.dtype == torch.float32
    assert notes == []


def test_labels_and_names_may_stand_in_files_of_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(4))
    np.save(tmp_path / "y.npy", Y4.astype(np.float64))
    x, y, _ = load_data(str(tmp_path / "x.npy"), labels=tmp_path / "y.npy")
    assert x.tolist() == np.eye(4).tolist() and y.dtype == torch.int64
    with pytest.raises(InputError, match="--labels y.npy"):
        load_data(str(tmp_path / "x.npy"))
    named = write(tmp_path / "n.npz", x=np.eye(4), y=Y4, classes=np.array(["<b>no</b>", "yes"]))
    assert load_data(named)[2] == ("<b>no</b>", "yes")
    short = write(tmp_path / "m.npz", x=np.eye(4), y=Y4, classes=np.array(["no"]))
    with pytest.raises(InputError, match="has the label 1 and names 1 classes"):
        load_data(short)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.array([{}, {}], object), "y": Y4[:2]}, "Python objects.*Save plain arrays"),
        ({"y": Y4}, "holds no inputs.*x, images, data.*the file has y"),
        ({"x": np.eye(4)}, "holds no labels.*the file has x"),
        ({"x": np.eye(4), "y": np.eye(4)}, r"one-hot rows become labels by \.argmax\(1\)"),
        ({"x": np.eye(4), "y": Y4[:3]}, r"shape \(3,\) for 4 inputs"),
        ({"x": np.eye(4), "y": Y4 + 0.5}, "whole class numbers"),
        ({"x": np.eye(4), "y": np.array(list("abab"))}, "whole class numbers"),
        ({"x": np.eye(4), "y": Y4 - 1}, "has the label -1"),
        ({"x": np.eye(4), "y": Y4 * 0 + 2}, r"one class only \(2\)"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0, int)}, "is empty"),
        ({"x": np.zeros(4), "y": Y4}, r"inputs of shape \(4,\)"),
        ({"x": np.eye(4) * 1j, "y": Y4}, "complex128: give real numbers"),
    ],
)
def test_arrays_that_cannot_be_used_are_told(tmp_path: Path, arrays, said: str) -> None:
    source = write(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=said):
        load_data(source)


def test_a_file_that_is_no_npz_is_told(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    for content, said in ((b"", "cannot be read"), (b"PK\x03\x04rubbish", "cannot be read"),
                          (b"\x80\x04K\x01.", "pickle|cannot be read")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            load_data(str(path))
    path.unlink()
    with pytest.raises(InputError, match="there is no file"):
        load_data(str(path))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("zoo:imagenet", "zoo:sample.*zoo:fashion_mnist"),
        ("no/such/folder", "no such file or folder"),
        ("./no:such", "no such file or folder"),
    ],
)
def test_what_is_no_data_is_told(source: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_data(source)


# --- data: folders


def picture(path: Path, mode: str = "L", size: tuple[int, int] = (5, 4), value=None) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if value is not None else 51).save(path)


def test_a_folder_of_class_folders(tmp_path: Path, notes) -> None:
    picture(tmp_path / "dog" / "1.png", value=255)
    picture(tmp_path / "cat" / "1.PNG")
    picture(tmp_path / "cat" / "2.jpg", value=0)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / ".hidden").mkdir()
    x, y, classes = load_data(str(tmp_path), note=notes.append)
    assert x.shape == (3, 1, 4, 5) and classes == ("cat", "dog") and y.tolist() == [0, 0, 1]
    assert x[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.0, 1.0])
    assert "cat, dog" in notes[0]


def test_colour_and_grey_together_are_colour(tmp_path: Path, notes) -> None:
    picture(tmp_path / "a" / "1.png", "RGB", value=(255, 0, 51))
    picture(tmp_path / "b" / "1.png")
    picture(tmp_path / "b" / "2.png", "RGBA", value=(0, 0, 0, 255))
    x, _, _ = load_data(str(tmp_path), note=notes.append)
    assert x.shape == (3, 3, 4, 5)
    assert x[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    assert x[1, :, 0, 0].tolist() == pytest.approx([0.2, 0.2, 0.2])
    assert any("1 grey pictures were made colour" in note for note in notes)


def test_folders_of_numbers_are_their_own_labels(tmp_path: Path) -> None:
    for label in ("2", "10"):
        picture(tmp_path / label / "1.png")
    _, y, classes = load_data(str(tmp_path))
    assert y.tolist() == [2, 10] and classes is None


def test_only_the_chosen_pictures_are_opened(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for i in range(10):
            picture(tmp_path / label / f"{i}.png")
    x, y, _ = load_data(str(tmp_path), samples=4)
    assert x.shape[0] == 4 and sorted(y.tolist()) == [0, 0, 1, 1]


def test_pictures_of_different_sizes_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "a" / "2.png")
    picture(tmp_path / "b" / "1.png", size=(9, 7))
    with pytest.raises(
        InputError, match=r"5 x 4 \(2 of them\), 9 x 7 \(1 of them\).*resize or crop"
    ):
        load_data(str(tmp_path))


def test_folders_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    def refused(said: str) -> None:
        with pytest.raises(InputError, match=said):
            load_data(str(tmp_path))

    refused("holds nothing and no folders: make one folder a class")
    picture(tmp_path / "loose.png")
    refused("holds 1 pictures and no folders")
    picture(tmp_path / "a" / "1.png")
    refused("one class only")
    (tmp_path / "b").mkdir()
    refused("no PNG or JPEG picture in b")
    (tmp_path / "b" / "1.png").write_bytes(b"not a picture")
    refused("1.png cannot be read as a picture")
    picture(tmp_path / "b" / "1.png", "RGBA", value=(0, 0, 0, 10))
    refused("is transparent in places")
    picture(tmp_path / "b" / "1.png", "I;16", value=300)
    refused("more than 8 bits")


# --- data: Python


def test_a_function_that_gives_tensors(here: Path) -> None:
    x, y, _ = load_data("usercode:xy")
    assert x.shape == (4, 12) and y.tolist() == [0, 1, 2, 0]
    x, y, _ = load_data("usercode:xy", samples=3, seed=5)
    assert sorted(y.tolist()) == [0, 1, 2]


def test_a_data_set_is_chosen_by_its_labels_without_loading_it(here: Path, notes) -> None:
    x, y, _ = load_data("usercode:tensors", samples=8)
    assert x.shape == (8, 2) and y.bincount().tolist() == [2, 2, 2, 2]
    _, y, _ = load_data("usercode:Told", samples=6, note=notes.append)
    assert y.bincount().tolist() == [3, 3] and len(sys.modules["usercode"].opened) == 6
    assert notes == []
    x, y, _ = load_data("usercode:Slow", samples=6, note=notes.append)
    assert y.bincount().tolist() == [3, 3] and len(sys.modules["usercode"].opened) == 66
    assert "60 random items of 400" in notes[0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("usercode:raises", "raised RuntimeError: no GPU here"),
        ("usercode:number", "gave int: give .x, y."),
        ("usercode:Ragged", r"different sizes: \((2|3),\) \(200 of them\)"),
        ("usercode:Broken", "an item of usercode:Broken cannot be read: KeyError"),
        ("usercode:tensros", "did you mean tensors"),
    ],
)
def test_python_data_that_cannot_be_used_are_told(here: Path, source: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_data(source)


# --- whether both fit


X, Y = torch.rand(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])


def test_what_fits_is_not_touched() -> None:
    held = foible.wrap(nn.Sequential(nn.Dropout(), nn.Linear(3, 2)))
    check_fit(held, X, Y)
    assert held.net.training


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.rand(6, 4), Y, r"net cannot take inputs of shape \(4,\): RuntimeError"),
        (X, Y + 4, "labels go from 4 to 5, and net has classes 0 to 1"),
        (X, Y + 1, "subtract 1"),
        (X.clone().fill_(float("nan")), Y, "NaN"),
        (X * 255, Y, "scale x into the bounds"),
    ],
)
def test_what_does_not_fit_is_told(x, y, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_fit(foible.wrap(nn.Linear(3, 2)), x, y, "net")


def test_mean_must_match_the_channels() -> None:
    held = load_model(nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten()), mean="0,0,0", std="1,1,1")
    with pytest.raises(InputError, match="mean has 3 numbers.*1 channels"):
        check_fit(held, torch.rand(6, 1, 4, 4), Y)


def test_a_loader_stands_for_its_data_set() -> None:
    from foible.audit.datafiles import read_python

    data = torch.utils.data.TensorDataset(X, Y)
    raw = read_python(torch.utils.data.DataLoader(data, batch_size=4), "d", None, 0, print)
    assert np.array_equal(raw.x, X.numpy()) and raw.y.tolist() == Y.tolist()
    odd = SimpleNamespace(dataset=3)
    with pytest.raises(InputError, match="gave SimpleNamespace"):
        read_python(odd, "d", None, 0, print)
