"""Pictures in and out: what `foible attack` and `foible explain` share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foible.cli.sharing import loaded, model_table, refuse_model_options

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from foible.models import TorchModel

    Pixels = npt.NDArray[np.uint8]

LEVELS = 255


@dataclass(frozen=True)
class Subject:
    """The model that pictures are shown to. source: as given; classes: names, if known."""

    source: str
    held: TorchModel
    classes: tuple[str, ...] | None

    def label(self, index: int) -> str:
        """Return the name of a class, or its number."""
        return self.classes[index] if self.classes and index < len(self.classes) else str(index)

    def told(self, scores: Tensor) -> list[dict[str, Any]]:
        """Return label, name and confidence for each row of logits (B, K)."""
        top = scores.softmax(1).max(1)
        found = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [{"label": i, "name": self.label(i), "confidence": p} for i, p in found]

    def scores(self, x: Tensor) -> Tensor:
        """Return logits (B, K), in batches."""
        import torch

        with self.held.session(), torch.no_grad():
            return torch.cat([self.held.scores(part) for part in x.split(self.held.chunk(x))])

    def levels(self, x: Tensor) -> Tensor:
        """Return x on the scale 0..255 of 8-bit pictures, not rounded."""
        low, high = self.box
        return (x - low) * (LEVELS / (high - low))

    def values(self, levels: Tensor) -> Tensor:
        """Return 0..255 in the model's own units."""
        low, high = self.box
        return low + levels * ((high - low) / LEVELS)

    @property
    def box(self) -> tuple[float, float]:
        """What black and white are: the model's bounds, (0, 1) where it has none."""
        low, high = self.held.bounds
        return (low, high) if high - low < 1e30 else (0.0, 1.0)


def subject(
    model: str | None,
    weights: Path | None,
    bounds: tuple[str, str],
    mean: str | None,
    std: str | None,
    outputs: str,
) -> Subject:
    """Load the model of the options; the bundled standard one without any."""
    if model is None:
        refuse_model_options(weights, bounds, mean, std, outputs)
        model = "zoo:standard"
    held = loaded(model_table(model, weights, bounds, mean, std, outputs))
    classes = None
    if model.startswith("zoo:"):
        from foible import zoo

        classes = zoo.CLASSES
    return Subject(model, held, classes)


def read_batches(
    place: Path, who: Subject, first: int = 16
) -> list[tuple[list[tuple[str, Path]], Tensor]]:
    """Read a picture, or all of a folder: batches of (name, path) and x (B, C, H, W), one a size.

    Of an .npz or .npy the first rows are read, in the units of the model; they are called by their
    number.

    Raises InputError for files that are no pictures, and for sizes that the model cannot take.
    """
    import torch

    from foible.audit.datafiles import picture_files, read_inputs, read_picture
    from foible.core.errors import InputError

    if place.suffix.lower() in (".npz", ".npy"):
        x = torch.from_numpy(read_inputs(place, first)).float()
        return [([(f"{place.stem}-{i}", place) for i in range(len(x))], x)]
    paths = picture_files(place)
    stems = [path.stem for path in paths]
    batches: dict[tuple[int, ...], list[tuple[tuple[str, Path], Tensor]]] = {}
    for path in paths:
        pixels = read_picture(path)
        if who.source.startswith("zoo:") and pixels.shape != (1, 28, 28):
            channels, high, wide = pixels.shape
            raise InputError(
                f"{path} is {wide} x {high} pixels, {'grey' if channels == 1 else 'colour'}, and "
                f"{who.source} takes 28 x 28 grey pictures of clothes on black (Fashion-MNIST): "
                "resize it, or name a model of your own with --model"
            )
        name = path.stem if stems.count(path.stem) == 1 else path.name.replace(".", "-")
        x = who.values(torch.from_numpy(pixels.copy()).float())
        batches.setdefault(pixels.shape, []).append(((name, path), x))
    return [([f for f, _ in some], torch.stack([x for _, x in some])) for some in batches.values()]


def to_pixels(levels: Tensor) -> Pixels:
    """Round levels (C, H, W) to uint8 (H, W) or (H, W, 3)."""
    import numpy as np

    array = levels.round().clamp(0, LEVELS).cpu().numpy().astype(np.uint8)
    grey: Pixels = array[0] if len(array) == 1 else np.moveaxis(array, 0, 2)
    return grey


def write_picture(path: Path, pixels: Pixels) -> None:
    """Write uint8 pixels as PNG, bit for bit."""
    from PIL import Image

    from foible.core.errors import InputError

    try:
        Image.fromarray(pixels).save(path)
    except OSError as error:
        raise _unwritten(path, error, InputError) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON for a person to read; what is not finite becomes null."""
    from foible.core.errors import InputError

    try:
        path.write_text(json.dumps(_finite(content), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritten(path, error, InputError) from error


def percent(confidence: float) -> str:
    """Write a confidence: 99.2 %."""
    return f"{100 * confidence:.1f} %"


def class_number(text: str, word: str, classes: Sequence[str] | None = None) -> int:
    """Read a class given as its number, or as its name where names are known."""
    from foible.core.errors import InputError

    names = [name.lower() for name in classes or ()]
    if text.lower() in names:
        return names.index(text.lower())
    if text.isdecimal():
        return int(text)
    known = f" ({', '.join(classes)})" if classes else ""
    raise InputError(f"{word} is {text!r}: give the number of a class, counted from 0{known}")


def _unwritten(path: Path, error: OSError, kind: type[Exception]) -> Exception:
    return kind(f"{path} cannot be written ({error.strerror or error}): choose another --out")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
