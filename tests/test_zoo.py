"""The bundled models and images, and the loader of the full set, good and bad."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from foible import zoo
from foible.core.errors import FoibleError, InputError
from foible.zoo import bundled, fashion

TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def full_set() -> tuple[torch.Tensor, torch.Tensor]:
    """The real test set where it is on the machine, without ever using the network."""
    for place in fashion._places():
        if all(fashion._find(place, name) for name in TEST_FILES):
            return zoo.fashion_mnist("test", place)
    pytest.skip("Fashion-MNIST is not on this machine: apt install dataset-fashion-mnist")


def accuracy(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


# --- what is bundled


@pytest.mark.parametrize(("name", "least"), [("standard", 0.91), ("hardened", 0.84)])
def test_bundled_models_have_the_accuracy_that_their_notes_claim(name: str, least: float) -> None:
    x, y = full_set()
    claimed = bundled.notes("weights", name)["test_accuracy"]
    measured = accuracy(zoo.load(name), x, y)
    assert measured >= least
    assert measured == pytest.approx(claimed, abs=5e-4)


@pytest.mark.parametrize("name", ["standard", "hardened"])
def test_load_gives_a_new_module_in_eval_mode(name: str) -> None:
    first, second = zoo.load(name), zoo.load(name)
    assert not any(module.training for module in first.modules())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in first.parameters())
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).abs().sum() > 0


def test_hardened_notes_claim_the_robust_accuracy_of_the_bar() -> None:
    assert bundled.notes("weights", "hardened")["pgd40_eps_0.1_first_1000"] >= 0.64


def test_an_unknown_name_is_told_the_choices() -> None:
    with pytest.raises(InputError, match="'resnet'.*'standard', 'hardened'"):
        zoo.load("resnet")


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path(bundled.__file__).parent / "weights"
    copy = tmp_path / "weights"
    copy.mkdir()
    data = bytearray((real / "standard.safetensors").read_bytes())
    (copy / "standard.json").write_text((real / "standard.json").read_text())
    monkeypatch.setattr(bundled, "files", lambda package: tmp_path)
    with pytest.raises(InputError, match=r"standard\.safetensors; install foible again"):
        zoo.load("standard")
    data[-1] ^= 1
    (copy / "standard.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="changed or cut short"):
        zoo.load("standard")


def test_sample_is_balanced_in_every_round_of_ten() -> None:
    x, y = zoo.sample()
    assert (x.shape, x.dtype) == ((1000, 1, 28, 28), torch.float32)
    assert (y.shape, y.dtype) == ((1000,), torch.int64)
    assert x.min() == 0 and x.max() == 1
    assert torch.equal(y.view(100, 10).sort(1).values, torch.arange(10).expand(100, 10))
    assert len(zoo.CLASSES) == 10 and zoo.CLASSES[9] == "Ankle boot"


def test_sample_is_what_its_indices_name_in_the_official_test_set() -> None:
    path = Path(bundled.__file__).parent / "images" / f"{bundled.SAMPLE}.npz"
    with np.load(path, allow_pickle=False) as arrays:
        index = torch.from_numpy(arrays["index"].astype(np.int64))
    assert len(index.unique()) == 1000
    official_x, official_y = full_set()
    x, y = zoo.sample()
    assert torch.equal(x, official_x[index])
    assert torch.equal(y, official_y[index])


def test_bundled_images_carry_their_licence() -> None:
    folder = Path(bundled.__file__).parent / "images"
    text = (folder / "LICENSE").read_text()
    assert "MIT" in text and "Zalando SE" in text


# --- the full set


def test_fashion_mnist_reads_the_real_files() -> None:
    x, y = full_set()
    assert (x.shape, x.dtype) == ((10_000, 1, 28, 28), torch.float32)
    assert (y.dtype, y.bincount().tolist()) == (torch.int64, [1000] * 10)
    assert x.min() == 0 and x.max() == 1
    assert x.mean().item() == pytest.approx(0.2868, abs=1e-3)


def test_fashion_mnist_refuses_an_unknown_part() -> None:
    with pytest.raises(InputError, match="'train' or 'test', not 'valid'"):
        zoo.fashion_mnist("valid")


def test_a_folder_without_the_files_is_told_the_cures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no t10k-images.*apt install dataset.*folder="):
        zoo.fashion_mnist("test", tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        zoo.fashion_mnist("test", tmp_path / "nowhere")


# --- a small stand-in for the official files, so that the rest needs neither disk nor network


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four files of seven images, declared official; all real places are hidden."""
    rng = np.random.Generator(np.random.PCG64(3))
    unpacked = {}
    for name in fashion.SUMS:
        head, size = (16, 7 * 784) if "images" in name else (8, 7)
        unpacked[name] = bytes(head) + rng.integers(0, 10, size, dtype=np.uint8).tobytes()
    monkeypatch.setattr(
        fashion, "SUMS", {n: fashion.hashlib.sha256(b).hexdigest() for n, b in unpacked.items()}
    )
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(fashion, "TIMEOUT", 5.0)
    monkeypatch.setattr(fashion, "SOURCE", "http://127.0.0.1:9/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("FOIBLE_DATA", raising=False)
    return unpacked


def put(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def served(
    tiny: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, list[str]]]:
    """A local server that plays the official source: its folder, and what was asked of it."""
    folder, asked = put(tmp_path / "served", tiny), list[str]()
    handler = functools.partial(type("H", (Quiet,), {"asked": asked}), directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(fashion, "SOURCE", f"http://127.0.0.1:{server.server_port}/")
        yield folder, asked
        server.shutdown()
        thread.join()


def expected(contents: dict[str, bytes], prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
    images = np.frombuffer(contents[f"{prefix}-images-idx3-ubyte"][16:], np.uint8)
    labels = np.frombuffer(contents[f"{prefix}-labels-idx1-ubyte"][8:], np.uint8)
    x = torch.from_numpy(images.reshape(7, 1, 28, 28).astype(np.float32) / 255)
    return x, torch.from_numpy(labels.astype(np.int64))


def test_a_download_is_checked_kept_and_not_repeated(
    served: tuple[Path, list[str]], tiny: dict[str, bytes]
) -> None:
    _, asked = served
    for _ in range(2):
        x, y = zoo.fashion_mnist("train")
        want_x, want_y = expected(tiny, "train")
        assert torch.equal(x, want_x) and torch.equal(y, want_y)
    assert asked == ["/train-images-idx3-ubyte.gz", "/train-labels-idx1-ubyte.gz"]
    names = sorted(os.listdir(fashion.cache()))
    assert names == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize("wrong", ["truncated", "other", "page", "missing"])
def test_a_bad_download_is_an_error_and_is_not_kept(
    served: tuple[Path, list[str]], tiny: dict[str, bytes], wrong: str
) -> None:
    path = served[0] / "t10k-images-idx3-ubyte.gz"
    if wrong == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif wrong == "other":
        path.write_bytes(gzip.compress(tiny["t10k-images-idx3-ubyte"][:-1] + b"\xff"))
    elif wrong == "page":
        path.write_bytes(b"<html>please log in</html>")
    else:
        path.unlink()
    with pytest.raises(FoibleError, match="apt install dataset-fashion-mnist") as caught:
        zoo.fashion_mnist("test")
    assert "t10k-images-idx3-ubyte.gz" in str(caught.value)
    assert not fashion.cache().exists() or os.listdir(fashion.cache()) == []


def test_a_short_body_is_an_error_too(tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
    class Cut(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b"\x1f\x8b too little")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cut) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(fashion, "SOURCE", f"http://127.0.0.1:{server.server_port}/")
        try:
            with pytest.raises(FoibleError, match="apt install"):
                zoo.fashion_mnist("test")
        finally:
            server.shutdown()
            thread.join()
    assert not fashion.cache().exists()


def test_no_network_is_an_error_that_names_the_cures(tiny: dict[str, bytes]) -> None:
    with pytest.raises(FoibleError, match=r"cannot be downloaded.*apt install.*folder=") as caught:
        zoo.fashion_mnist("test")
    assert not isinstance(caught.value, InputError)


def test_a_cache_that_cannot_be_written_is_an_error(
    served: tuple[Path, list[str]], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(FoibleError, match="cannot be kept.*XDG_CACHE_HOME"):
        zoo.fashion_mnist("test")


def test_the_places_are_looked_at_in_order(
    tiny: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {name: b"nothing official" for name in tiny}
    put(fashion.cache(), tiny)
    assert len(zoo.fashion_mnist("test")[0]) == 7
    put(fashion.DEBIAN, bad)
    with pytest.raises(InputError, match="debian"):
        zoo.fashion_mnist("test")
    monkeypatch.setenv("FOIBLE_DATA", str(tmp_path / "mine"))
    put(tmp_path / "mine" / "fashion-mnist", tiny)
    assert len(zoo.fashion_mnist("test")[0]) == 7
    put(tmp_path / "mine", bad)
    with pytest.raises(InputError, match="mine"):
        zoo.fashion_mnist("test")
    assert len(zoo.fashion_mnist("test", put(tmp_path / "given", tiny))[0]) == 7


def test_unpacked_files_are_read_too(tiny: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in tiny.items():
        (tmp_path / name).write_bytes(data)
    assert torch.equal(zoo.fashion_mnist("train", tmp_path)[0], expected(tiny, "train")[0])


@pytest.mark.parametrize("wrong", ["truncated", "not the official file"])
def test_a_damaged_local_file_is_named(tiny: dict[str, bytes], tmp_path: Path, wrong: str) -> None:
    folder = put(tmp_path / "given", tiny)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    if wrong == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
        wrong = "cut short or damaged"
    else:
        path.write_bytes(gzip.compress(b"other"))
    with pytest.raises(InputError, match=f"{path.name} .*{wrong}.*apt install"):
        zoo.fashion_mnist("test", folder)


def test_notes_are_json_with_the_recipe() -> None:
    for folder, name in (
        ("weights", "standard"),
        ("weights", "hardened"),
        ("images", bundled.SAMPLE),
    ):
        notes = bundled.notes(folder, name)
        assert notes["command"].startswith("python recipes/")
        assert len(notes["sha256"]) == 64 and isinstance(notes["seed"], int)
        assert json.loads(json.dumps(notes)) == notes


def test_the_autoencoder_gives_garments_back_and_noise_not() -> None:
    x, _ = full_set()
    net, notes = zoo.load("autoencoder"), bundled.notes("weights", "autoencoder")
    with torch.no_grad():
        found = (net(x[:2000]) - x[:2000]).square().flatten(1).sum(1).mean()
        noise = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        lost = (net(noise) - noise).square().flatten(1).sum(1).mean()
    assert float(found) == pytest.approx(notes["test_residual"], rel=0.05)
    assert found < 0.03 * x[:2000].square().flatten(1).sum(1).mean() and lost > 5 * found
    assert not net.training and notes["parameters"] == sum(p.numel() for p in net.parameters())
