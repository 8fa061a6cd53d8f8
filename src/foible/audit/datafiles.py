"""Data of a user, raw: arrays of an .npz, folders of pictures, data sets in Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foible.audit.userland import told
from foible.core.errors import InputError, MissingExtra

Array = npt.NDArray[Any]
Note = Callable[[str], None]

PICTURES = (".png", ".jpg", ".jpeg")
INPUTS = ("x", "images", "data", "X", "x_test")
LABELS = ("y", "labels", "label", "targets", "Y", "y_test")
NAMES = ("classes", "class_names")
_SAVE = "numpy.savez('data.npz', x=images, y=labels) with x float or uint8 and y int64"


@dataclass(frozen=True)
class Raw:
    """x: (N, *shape) of any number type; y: (N,) class numbers; classes: their names, if known."""

    x: Array
    y: Array
    classes: tuple[str, ...] | None = None


def balanced(y: Array, samples: int | None, seed: int) -> Array:
    """Choose rows so that classes come in turns: positions (samples,) int64.

    Each class is shuffled by `seed`; a class that is used up is left out of further rounds, and
    every beginning of the choice is balanced, too. Without `samples`, or with more than there
    are, all rows in their own order.

    >>> y = np.array([0, 0, 0, 0, 1, 1])
    >>> y[balanced(y, 4, seed=0)].tolist()
    [0, 1, 0, 1]
    """
    if samples is None or samples >= len(y):
        return np.arange(len(y))
    if samples < 1:
        raise InputError(f"samples is {samples}: at least 1")
    rng = np.random.default_rng(seed)
    piles = [rng.permutation(np.flatnonzero(y == label)) for label in np.unique(y)]
    rounds = [i for turn in zip_longest(*piles) for i in turn if i is not None]
    return np.array(rounds[:samples], dtype=np.int64)


def read_arrays(path: Path, labels: Path | None, samples: int | None, seed: int) -> Raw:
    """Read arrays x and y (or images, data; labels, targets) of an .npz, never a pickle.

    labels: a second file, .npy or .npz, that holds y; x may then be an .npy, too.
    """
    held = _arrays(path)
    x = held.get("") if "" in held else held[_first(INPUTS, held, path, "inputs")]
    if labels is not None:
        others = _arrays(labels)
        y = others.get("") if "" in others else others[_first(LABELS, others, labels, "labels")]
    elif "" in held:
        raise InputError(
            f"{path} holds one array and no labels: give them with --labels y.npy, or put both "
            f"into one file, {_SAVE}"
        )
    else:
        y = held[_first(LABELS, held, path, "labels")]
    assert x is not None and y is not None
    named = next((held[name] for name in NAMES if name in held), None)
    classes = None if named is None else tuple(str(name) for name in named.ravel())
    y = plain_labels(y, len(x) if x.ndim else 0, str(labels or path))
    chosen = balanced(y, samples, seed)
    return Raw(x[chosen], y[chosen], classes)


def read_inputs(path: Path, first: int) -> Array:
    """Read the first inputs of an .npz or .npy, without labels."""
    held = _arrays(path)
    x = held[""] if "" in held else held[_first(INPUTS, held, path, "inputs")]
    if x.ndim < 2 or len(x) == 0 or first < 1:
        raise InputError(
            f"{path} holds inputs of shape {x.shape}, and the first {first} are asked for: give "
            "(N, ...) with at least one row"
        )
    return np.ascontiguousarray(x[:first])


def read_folder(folder: Path, samples: int | None, seed: int, note: Note) -> Raw:
    """Read PNG and JPEG pictures from one folder a class, labelled in the order of the names.

    Folders named by numbers only are their own labels. Only the chosen pictures are opened.
    """
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] not in "._")
    if not classes:
        loose = len(_pictures(folder))
        raise InputError(
            f"{folder} holds {f'{loose} pictures' if loose else 'nothing'} and no folders: make "
            "one folder a class, for example data/cat/1.png and data/dog/2.png"
        )
    numbers = all(p.name.isdecimal() for p in classes)
    if numbers:
        classes.sort(key=lambda p: int(p.name))
    files = [_pictures(p) for p in classes]
    if bare := [p.name for p, found in zip(classes, files, strict=True) if not found]:
        raise InputError(
            f"{folder} has no PNG or JPEG picture in {', '.join(bare[:5])}: put some there, or "
            "remove these folders"
        )
    labels = [int(p.name) if numbers else i for i, p in enumerate(classes)]
    paths = [path for found in files for path in found]
    counts = [len(found) for found in files]
    y = plain_labels(np.repeat(np.array(labels, dtype=np.int64), counts), len(paths), str(folder))
    chosen = balanced(y, samples, seed)
    x = _stacked([paths[i] for i in chosen], note)
    if numbers:
        return Raw(x, y[chosen])
    names = tuple(p.name for p in classes)
    note(f"labels follow the names of the folders: {', '.join(names[:12])}")
    return Raw(x, y[chosen], names)


def read_python(thing: Any, source: str, samples: int | None, seed: int, note: Note) -> Raw:
    """Read (x, y), or a data set of (x, y) pairs, which a user's code gave."""
    if isinstance(getattr(thing, "dataset", None), torch.utils.data.Dataset):
        thing = thing.dataset  # a loader: its batches and its order are not wanted
    if isinstance(thing, tuple | list) and len(thing) == 2:
        x, y = (_array(part, source) for part in thing)
        y = plain_labels(y, len(x) if x.ndim else 0, source)
        chosen = balanced(y, samples, seed)
        return Raw(x[chosen], y[chosen])
    if not (hasattr(thing, "__getitem__") and hasattr(thing, "__len__")):
        raise InputError(
            f"{source} gave {type(thing).__name__}: give (x, y), two tensors or arrays, or a "
            "torch.utils.data.Dataset with a length whose items are (x, y)"
        )
    chosen = _chosen_items(thing, source, samples, seed, note)
    try:
        items = [thing[int(i)] for i in chosen]
        pairs = [(_array(item[0], source), int(item[1])) for item in items]
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"an item of {source} cannot be read: {told(error)}; items are (x, y) with a tensor, "
            "an array or a picture, and a class number"
        ) from error
    if sizes := Counter(x.shape for x, _ in pairs).most_common(3):
        if len(sizes) > 1:
            raise InputError(_sizes(source, [(str(s), n) for s, n in sizes]))
        x = np.stack([x for x, _ in pairs])
    else:
        x = np.zeros((0, 1))
    y = plain_labels(np.array([y for _, y in pairs], dtype=np.int64), len(x), source)
    again = balanced(y, samples, seed)
    named = getattr(thing, "classes", None)
    fine = isinstance(named, list | tuple) and all(isinstance(n, str) for n in named)
    return Raw(x[again], y[again], tuple(named or ()) if fine else None)


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Read a PNG or JPEG as uint8 (1, H, W) grey or (3, H, W) colour.

    Raises InputError for a file that is no picture, has more than 8 bits a channel or is
    transparent; MissingExtra without Pillow.
    """
    image = _pillow()
    try:
        with image.open(path) as picture:
            if picture.mode.startswith("I") or picture.mode == "F":
                raise InputError(
                    f"{path} has more than 8 bits a pixel ({picture.mode}): convert it to 8 bits"
                )
            layered = "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA")
            if layered and picture.convert("RGBA").getchannel("A").getextrema()[0] < 255:
                raise InputError(f"{path} is transparent in places: put it on a background")
            grey = picture.mode in ("1", "L", "LA")
            pixels = np.asarray(picture.convert("L" if grey else "RGB"), dtype=np.uint8)
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise InputError(f"{path} cannot be read as a picture ({told(error)})") from error
    return pixels[None] if grey else np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


def picture_files(place: Path) -> list[Path]:
    """Return the picture itself, or the PNG and JPEG files of a folder in order of name."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise InputError(f"there is no file or folder {place}: check the path")
    if not (found := _pictures(place)):
        raise InputError(f"{place} holds no PNG or JPEG picture")
    return found


def plain_labels(y: Array, rows: int, where: str) -> npt.NDArray[np.int64]:
    """Return labels as int64 (N,), or say what is wrong with them."""
    y = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if rows == 0:
        raise InputError(f"{where} is empty: give at least a few samples of each class")
    if y.ndim != 1 or len(y) != rows:
        cure = "; one-hot rows become labels by .argmax(1)" if y.ndim == 2 else ""
        raise InputError(
            f"{where} has labels of shape {y.shape} for {rows} inputs: give one class number an "
            f"input, ({rows},){cure}"
        )
    if y.dtype.kind not in "iuf" or not bool(np.all(np.equal(np.mod(y, 1), 0))):
        raise InputError(
            f"{where} has labels of type {y.dtype}, for example {y[:1].tolist()}: labels are "
            "whole class numbers from 0, int64"
        )
    out = y.astype(np.int64)
    if int(out.min()) < 0:
        raise InputError(f"{where} has the label {int(out.min())}: classes are counted from 0")
    if int(out.min()) == int(out.max()):
        raise InputError(
            f"{where} holds one class only ({int(out[0])}): accuracy on one class says nothing "
            "about the others; give samples of at least two"
        )
    return out


def _arrays(path: Path) -> dict[str, Array]:
    """Read all arrays of an .npz by name; the one of an .npy has the name ""."""
    if not path.is_file():
        raise InputError(f"there is no file {path}: check the path")
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {"": found}
            wanted = {*INPUTS, *LABELS, *NAMES}
            return {n: found[n] if n in wanted else np.zeros(0) for n in found.files}
    except Exception as error:  # zip files, headers, disks: many kinds
        if "pickle" in str(error):
            raise InputError(
                f"{path} holds Python objects (a pickle, or an array of dtype object), and opening "
                f"them could run any code: foible does not. Save plain arrays: {_SAVE}"
            ) from error
        raise InputError(
            f"{path} cannot be read as .npz ({told(error)}): make it with {_SAVE}"
        ) from error


def _first(wanted: Sequence[str], held: Mapping[str, Array], path: Path, what: str) -> str:
    for name in wanted:
        if name in held:
            return name
    raise InputError(
        f"{path} holds no {what}: arrays are called {', '.join(wanted[:3])}, and the file has "
        f"{', '.join(held) or 'none'}; make it with {_SAVE}"
    )


def _pictures(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.name[0] != ".")
    return sorted(p for p in found if p.is_file())


def _stacked(paths: list[Path], note: Note) -> Array:
    pictures = [read_picture(path) for path in paths]
    sizes = Counter(p.shape[1:] for p in pictures).most_common(3)
    if len(sizes) > 1:
        shown = [(f"{w} x {h}", n) for (h, w), n in sizes]
        raise InputError(_sizes(str(paths[0].parent.parent), shown))
    colour = sum(len(p) == 3 for p in pictures)
    if 0 < colour < len(pictures):
        note(f"{len(pictures) - colour} grey pictures were made colour, as the other {colour} are")
        pictures = [p if len(p) == 3 else np.repeat(p, 3, axis=0) for p in pictures]
    return np.stack(pictures)


def _sizes(where: str, sizes: list[tuple[str, int]]) -> str:
    shown = ", ".join(f"{size} ({n} of them)" for size, n in sizes)
    return (
        f"{where} holds inputs of different sizes: {shown}. A batch has one size: resize or crop "
        "them to the size that the model was trained on"
    )


def _array(part: Any, source: str) -> Array:
    found = part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
    if found.dtype == object:
        raise InputError(f"{source} gave {type(part).__name__}, which is no array of numbers")
    return found


def _chosen_items(thing: Any, source: str, samples: int | None, seed: int, note: Note) -> Array:
    """Choose items by their labels where the data set tells them without loading its items."""
    if samples is None or samples >= len(thing):
        return np.arange(len(thing))
    tensors = getattr(thing, "tensors", None)
    told_labels = tensors[-1] if tensors else getattr(thing, "targets", None)
    if told_labels is not None and len(told_labels) == len(thing):
        y = plain_labels(_array(told_labels, source), len(thing), source)
        return balanced(y, samples, seed)
    drawn = min(len(thing), 10 * samples)
    if drawn < len(thing):
        note(f"{drawn} random items of {len(thing)} were loaded to choose {samples} from")
    return np.random.default_rng(seed).permutation(len(thing))[:drawn]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pictures need Pillow: run `pip install pillow`") from error
    return Image
