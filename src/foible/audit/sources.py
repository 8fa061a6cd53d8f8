"""Models and data of users by name: bundled ones, files, folders, and Python modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from foible.attacks.base import check_batch
from foible.audit.datafiles import Raw, balanced, read_arrays, read_folder, read_python
from foible.audit.userland import called, named_thing, told
from foible.audit.weights import put_weights
from foible.core.errors import FoibleError, InputError
from foible.models import TorchModel, wrap

Note = Callable[[str], None]
Number = str | float | Fraction


def load_model(
    source: str | nn.Module,
    weights: str | Path | None = None,
    bounds: Sequence[Number] = (0, 1),
    mean: str | Sequence[Number] | None = None,
    std: str | Sequence[Number] | None = None,
    outputs: str = "logits",
) -> TorchModel:
    """Return a user's model, wrapped.

    source: "zoo:standard", "zoo:hardened", "package.module:factory" (called without arguments;
    it returns the network), "package.module:network", or a module itself. Only the named module
    runs, and modules of the current directory are found. weights: a .safetensors file, or .pt or
    .pth without pickled code. bounds: the legal input values. mean, std: one number, or one a
    channel; inputs become (x - mean) / std inside the model. outputs: as for `foible.wrap`.

    Raises InputError that says what is wrong and what to change; the error of a user's code is
    its cause.

    >>> load_model("zoo:standard").bounds
    (0.0, 1.0)
    """
    low, high = _pair(bounds)
    held = _made(source)
    prepare = _normalisation(mean, std)
    if isinstance(held, TorchModel):
        if prepare is not None or (low, high) != (0, 1) or outputs != "logits":
            raise InputError(
                f"{source} gives a model that is wrapped already: set its bounds, mean, std and "
                "outputs there, or return the bare network"
            )
    else:
        held = wrap(held, (low, high), prepare, outputs)
    if weights is not None:
        put_weights(held.net, weights)
    return held


def load_data(
    source: str,
    samples: int | None = None,
    seed: int = 0,
    *,
    labels: str | Path | None = None,
    model: TorchModel | None = None,
    note: Note | None = None,
) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """Return x (N, *shape) float32, y (N,) int64 and the names of the classes, if known.

    source: "zoo:sample", "zoo:fashion_mnist" (its test set) or "zoo:fashion_mnist_train", an .npz
    with arrays x and y (or an .npy, with the labels in a file of their own), a folder of class
    folders with PNG or JPEG pictures of one size, or "package.module:dataset", a function or an
    object that gives (x, y) or a torch data set. samples: at most so many, balanced over the
    classes by `seed`. model: what the data is for. 8-bit pictures are spread over its bounds,
    (0, 1) without one; arrays that it takes as they are stay as they are, otherwise (N, H, W)
    becomes (N, 1, H, W) and (N, H, W, C) becomes (N, C, H, W). note: called with a sentence on
    each such change.

    Raises InputError for data that cannot be used: pickles, missing arrays, labels that are
    none, an empty set, one class, pictures of different sizes.

    >>> x, y, classes = load_data("zoo:sample", samples=20)
    >>> x.shape, y.bincount().tolist(), classes[1]
    (torch.Size([20, 1, 28, 28]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2], 'Trouser')
    """
    say = note or (lambda _: None)
    raw = _read(source, samples, seed, labels, say)
    top = int(raw.y.max())
    if raw.classes is not None and top >= len(raw.classes):
        raise InputError(
            f"{source} has the label {top} and names {len(raw.classes)} classes, 0 to "
            f"{len(raw.classes) - 1}: correct the labels or the names"
        )
    if raw.x.dtype.kind not in "biuf":
        raise InputError(f"{source} has inputs of type {raw.x.dtype}: give real numbers")
    if raw.x.ndim < 2:
        raise InputError(
            f"{source} has inputs of shape {raw.x.shape}: the first dimension counts the samples, "
            "and each sample needs at least one more, (N, features) or (N, C, H, W)"
        )
    x = torch.from_numpy(raw.x.astype("float32"))
    if raw.x.dtype.name == "uint8" and x.dim() > 2:
        low, high = model.bounds if model is not None else (0.0, 1.0)
        if not math.isfinite(high - low):
            low, high = 0.0, 1.0
        x = low + x * ((high - low) / 255)
        say(f"8-bit inputs were scaled from 0..255 to {low:g}..{high:g}")
    x = _laid_out(x, model, say)
    return x, torch.from_numpy(raw.y.astype("int64")), raw.classes


def check_fit(model: TorchModel, x: Tensor, y: Tensor, name: str = "the model") -> None:
    """Try two samples, so that what does not fit is said before any work.

    Raises InputError where the model cannot take x, where mean and std do not match its
    channels, and for labels outside the model's classes.
    """
    check_batch(x, y, None, model.bounds)
    prepared = model.preprocess
    pairs = dict(zip(("mean", "std"), prepared, strict=True)) if isinstance(prepared, tuple) else {}
    for word, part in pairs.items():
        count = torch.as_tensor(part).numel()
        if count not in (1, x.shape[1]):
            raise InputError(
                f"{word} has {count} numbers and inputs of shape {tuple(x.shape[1:])} have "
                f"{x.shape[1]} channels: give one number, or one a channel"
            )
    scores = _tried(model, x)
    if isinstance(scores, Exception):
        raise InputError(
            f"{name} cannot take inputs of shape {tuple(x.shape[1:])}: {told(scores)}. Give data "
            "of the shape that it was trained on"
        ) from scores
    if scores.dim() == 2 and len(scores) == min(2, len(x)) and int(y.max()) >= scores.shape[1] > 1:
        k, low = scores.shape[1], int(y.min())
        cure = "; they seem to count from 1: subtract 1" if low == 1 and int(y.max()) == k else ""
        raise InputError(
            f"labels go from {low} to {int(y.max())}, and {name} has classes 0 to {k - 1}: give "
            f"the labels that it was trained with{cure}"
        )


def parse_number(text: Number) -> float:
    """Return a number written as a decimal or as a fraction.

    >>> parse_number("8/255") == 8 / 255, parse_number("-1.5")
    (True, -1.5)
    """
    try:
        if isinstance(text, str):
            top, slash, bottom = text.partition("/")
            value = float(top) / float(bottom) if slash else float(top)
        else:
            value = float(text)
    except (ValueError, ZeroDivisionError, TypeError) as error:
        raise InputError(f"{text!r} is not a number: write 0.03 or 8/255") from error
    if math.isnan(value):
        raise InputError(f"{text!r} is not a number: write 0.03 or 8/255")
    return value


def parse_numbers(text: str | Number | Sequence[Number]) -> tuple[float, ...]:
    """Return several numbers, separated by commas or spaces.

    >>> parse_numbers("0.485, 0.456,0.406")
    (0.485, 0.456, 0.406)
    """
    if isinstance(text, str):
        parts: Sequence[Number] = text.replace(",", " ").split()
    else:
        parts = [text] if isinstance(text, int | float | Fraction) else text
    if not parts:
        raise InputError("a number is missing: write one, or several as 0.485,0.456,0.406")
    return tuple(parse_number(part) for part in parts)


def _made(source: str | nn.Module) -> nn.Module | TorchModel:
    if isinstance(source, nn.Module | TorchModel):
        return source
    if source.startswith("zoo:"):
        from foible import zoo

        return zoo.load(source.removeprefix("zoo:"))
    if ":" not in source:
        kind = "a file" if Path(source).exists() else "no model"
        raise InputError(
            f"{source!r} is {kind}: name a model zoo:standard, zoo:hardened, or "
            "package.module:factory, a function without arguments that returns the network"
            + ("; weights go into --weights" if kind == "a file" else "")
        )
    thing = named_thing(source, "a model")
    if not isinstance(thing, nn.Module | TorchModel):
        if not callable(thing):
            raise InputError(
                f"{source} is {type(thing).__name__}: name a torch.nn.Module, or a function "
                "without arguments that returns one"
            )
        thing = called(thing, source, " and returns the network")
    if not isinstance(thing, nn.Module | TorchModel):
        raise InputError(
            f"{source} returned {type(thing).__name__}: it must return a torch.nn.Module"
            + ("; state dicts go into --weights" if isinstance(thing, dict) else "")
        )
    return thing


def _read(
    source: str, samples: int | None, seed: int, labels: str | Path | None, note: Note
) -> Raw:
    place = Path(source)
    if labels is not None and place.suffix not in (".npz", ".npy"):
        raise InputError(f"labels of their own go with an .npy or .npz file, not with {source!r}")
    if source.startswith("zoo:"):
        return _bundled(source, samples, seed)
    if place.is_dir():
        return read_folder(place, samples, seed, note)
    if place.suffix in (".npz", ".npy"):
        return read_arrays(place, None if labels is None else Path(labels), samples, seed)
    if place.is_file() or ":" not in source or "/" in source.partition(":")[0]:
        found = "there is no such file or folder" if not place.exists() else "it is a file"
        raise InputError(
            f"{source!r} is no data that can be read ({found}): give an .npz with arrays x and y, "
            "a folder of class folders with pictures, package.module:dataset, or zoo:sample"
        )
    thing = named_thing(source, "a data set")
    if isinstance(thing, type) or (callable(thing) and not hasattr(thing, "__getitem__")):
        thing = called(thing, source, " and gives (x, y) or a data set")
    return read_python(thing, source, samples, seed, note)


def _bundled(source: str, samples: int | None, seed: int) -> Raw:
    from foible import zoo

    name = source.removeprefix("zoo:")
    parts = {"fashion_mnist": "test", "fashion_mnist_train": "train"}
    if name != "sample" and name not in parts:
        raise InputError(
            f"there is no bundled data {name!r}: choose zoo:sample, 1,000 bundled images, "
            "zoo:fashion_mnist, the whole test set, or zoo:fashion_mnist_train, its training set"
        )
    x, y = zoo.sample() if name == "sample" else zoo.fashion_mnist(parts[name])
    chosen = balanced(y.numpy(), samples, seed)
    return Raw(x.numpy()[chosen], y.numpy()[chosen], zoo.CLASSES)


def _laid_out(x: Tensor, model: TorchModel | None, note: Note) -> Tensor:
    """Put channels first where the model asks for it, or, without one, where x looks like it."""
    if x.dim() == 3:
        other, change = x.unsqueeze(1), "(N, H, W) became (N, 1, H, W)"
    elif x.dim() == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        other, change = x.permute(0, 3, 1, 2).contiguous(), "(N, H, W, C) became (N, C, H, W)"
    else:
        return x
    if model is not None and _rather(model, x, other):
        return x
    note(f"inputs of shape {change}")
    return other


def _rather(model: TorchModel, x: Tensor, other: Tensor) -> bool:
    """Say whether the model is for x as it is, not for pictures with channels first."""
    first, second = _scores(model, x), _scores(model, other)
    if first is None or second is None:
        return first is not None
    pictures = any(isinstance(m, nn.Conv2d) for m in model.net.modules())
    # A net that flattens its input takes both: where its answer is the same, a picture it is.
    return not pictures and not torch.equal(first, second)


def _scores(model: TorchModel, x: Tensor) -> Tensor | None:
    scores = _tried(model, x)
    good = isinstance(scores, Tensor) and scores.dim() == 2 and len(scores) == min(2, len(x))
    return scores if isinstance(scores, Tensor) and good else None


def _tried(model: TorchModel, x: Tensor) -> Tensor | Exception:
    try:
        with model.session(), torch.no_grad():
            return model.scores(x[:2])
    except FoibleError:
        raise
    except Exception as error:
        return error


def _normalisation(
    mean: str | Sequence[Number] | None, std: str | Sequence[Number] | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError(
            f"{'mean' if mean is None else 'std'} is missing: give both, inputs become "
            "(x - mean) / std"
        )
    return parse_numbers(mean), parse_numbers(std)


def _pair(bounds: Sequence[Number]) -> tuple[float, float]:
    if len(bounds) != 2:
        raise InputError(f"bounds are {list(bounds)}: give two numbers, the smallest and largest")
    return parse_number(bounds[0]), parse_number(bounds[1])
