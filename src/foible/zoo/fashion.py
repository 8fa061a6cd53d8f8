"""The full Fashion-MNIST, from a local folder, Debian's package, the cache or the network."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch

from foible.core.errors import FoibleError, InputError

SOURCE: str = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN: Path = Path("/usr/share/datasets/fashion-mnist")
TIMEOUT: Final = 60.0
LIMIT: Final = 64 * 2**20

# Sums of the *unpacked* files: Debian packs the same contents again, without the file name in the
# gzip header, so that the sums of the packed files differ.
SUMS: Final = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
PREFIX: Final = {"train": "train", "test": "t10k"}
CURE: Final = (
    "`apt install dataset-fashion-mnist` puts the four files in /usr/share/datasets/fashion-mnist; "
    "or give the folder that holds them as folder=... or in the environment variable FOIBLE_DATA"
)


def fashion_mnist(
    part: str = "test", folder: str | os.PathLike[str] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the training or the test set of Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017).

    x is float32 (N, 1, 28, 28) in [0, 1] and y int64 (N,); N is 60,000 for ``"train"`` and 10,000
    for ``"test"``. The four official files, packed (.gz) or not, are looked for in `folder` and
    nowhere else if it is given; otherwise in the folder named by the environment variable
    FOIBLE_DATA, in Debian's /usr/share/datasets/fashion-mnist and in the user's cache
    ($XDG_CACHE_HOME/foible or ~/.cache/foible). What is in none of these is downloaded into the
    cache. Every file is checked against the sha256 of the official data each time it is read.

    Raises `InputError` for another `part`, a folder without the files, or a file that is not the
    official one; `FoibleError` when the download fails.
    """
    if part not in PREFIX:
        raise InputError(f"part is 'train' or 'test', not {part!r}")
    images, labels = f"{PREFIX[part]}-images-idx3-ubyte", f"{PREFIX[part]}-labels-idx1-ubyte"
    home = _home((images, labels), None if folder is None else Path(folder))
    x = np.frombuffer(_read(home, images), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    y = np.frombuffer(_read(home, labels), np.uint8, offset=8)
    return torch.from_numpy(x.astype(np.float32) / 255), torch.from_numpy(y.astype(np.int64))


def cache() -> Path:
    """Return the per-user folder that downloads go to; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "foible" / "fashion-mnist"


def _home(names: tuple[str, ...], folder: Path | None) -> Path:
    """Find the folder that holds all `names`, downloading them as the last resort."""
    if folder is not None:
        if missing := [n for n in names if _find(folder, n) is None]:
            what = "does not exist" if not folder.is_dir() else f"has no {missing[0]}.gz"
            raise InputError(f"the folder {folder} {what}; {CURE}")
        return folder
    for place in _places():
        if all(_find(place, n) for n in names):
            return place
    place = cache()
    for name in names:
        if _find(place, name) is None:
            _download(name, place)
    return place


def _places() -> Iterator[Path]:
    if data := os.environ.get("FOIBLE_DATA"):
        yield Path(data)
        yield Path(data) / "fashion-mnist"
    yield DEBIAN
    yield cache()


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)


def _read(folder: Path, name: str) -> bytes:
    path = _find(folder, name)
    if path is None:
        raise InputError(f"{folder / name}.gz vanished while it was read; {CURE}")
    try:
        return _unpacked(path.read_bytes(), name)
    except ValueError as error:
        cured = f"delete it and try again, or: {CURE}" if folder == cache() else CURE
        raise InputError(f"{path} {error}; {cured}") from error


def _unpacked(data: bytes, name: str) -> bytes:
    """Return the contents of an official file; ValueError says in what way it is not one."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"cannot be unpacked, it is cut short or damaged ({error})") from error
    found = hashlib.sha256(data).hexdigest()
    if found != SUMS[name]:
        raise ValueError(
            f"is not the official file: unpacked it has sha256 {found[:12]}..., "
            f"not {SUMS[name][:12]}..."
        )
    return data


def _download(name: str, folder: Path) -> None:
    """Fetch one packed file, check it, and only then put it in its place."""
    url = f"{SOURCE}{name}.gz"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            data = answer.read(LIMIT)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the open connection
        raise FoibleError(
            f"Fashion-MNIST is not on this machine and {url} cannot be downloaded ({error}); {CURE}"
        ) from error
    try:
        _unpacked(data, name)
    except ValueError as error:
        raise FoibleError(f"what {url} sent {error}; {CURE}") from error
    try:
        _write(folder / f"{name}.gz", data)
    except OSError as error:
        raise FoibleError(
            f"the download of {name}.gz cannot be kept in {folder} ({error}); "
            f"set XDG_CACHE_HOME to a folder that can be written, or: {CURE}"
        ) from error


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also when two processes write it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
