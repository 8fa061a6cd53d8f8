"""What a request's body holds: inputs of the model's shape, or the reason why it does not."""

from __future__ import annotations

import io
import json
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foible.core.errors import MissingExtra


class Refused(Exception):
    """A body that cannot be answered: an HTTP status, and a sentence for the caller."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status, self.said = status, said


@dataclass(frozen=True)
class Wanted:
    """What inputs must be: their shape, the model's bounds, and how many a request may hold."""

    shape: tuple[int, ...]
    bounds: tuple[float, float]
    most: int = 256


def from_json(body: bytes, wanted: Wanted) -> Tensor:
    """Return inputs (B, *shape) of {"inputs": [...]}: one input, or a list of them.

    Raises Refused with 400 for what is no such JSON and 422 for inputs that the model cannot take.
    """
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON ({str(error)[:200]})") from error
    if not isinstance(told, dict) or "inputs" not in told:
        raise Refused(400, 'the JSON is no object with "inputs", one input or a list of them')
    try:
        data = np.asarray(told["inputs"])
        if data.dtype.kind not in "iufb":  # numpy would read the words "0.5" and null as numbers
            raise TypeError(f"found {data.dtype.name}")
        data = data.astype(np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refused(
            422, f'"inputs" are no numbers in lists of equal length ({str(error)[:200]})'
        ) from error
    if data.shape == wanted.shape:
        data = data[None]
    return checked(data, wanted)


def from_picture(body: bytes, wanted: Wanted) -> Tensor:
    """Return one input (1, C, H, W) of a PNG or JPEG, black and white at the model's bounds.

    Raises Refused with 400 for no picture, 413 for one with far too many pixels, which is not
    decoded, and 422 for another size than the model's.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtra("pictures are read by Pillow: pip install 'foible[serve]'") from error
    if len(wanted.shape) != 3:
        raise Refused(
            415, f"this model takes inputs of shape {wanted.shape}, no pictures: send JSON"
        )
    channels, height, width = wanted.shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(body), formats=("PNG", "JPEG"))
            if picture.mode.startswith(("I", "F")):  # Pillow would cut its levels at 255
                raise Refused(415, f"the picture has levels of {picture.mode}: send one of 8 bits")
            if picture.size[0] * picture.size[1] > 64 * max(height * width, 2**14):
                raise Refused(413, f"the picture has {picture.size[0]} x {picture.size[1]} pixels")
            levels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except Image.DecompressionBombError as error:
        raise Refused(413, "the picture has far too many pixels") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise Refused(400, f"the body is no PNG or JPEG that can be read ({error})") from error
    if levels.shape[:2] != (height, width):
        raise Refused(
            422, f"the picture is {levels.shape[1]} x {levels.shape[0]} pixels, the model takes "
            f"{width} x {height}: resize it",
        )  # fmt: skip
    low, high = wanted.bounds if math.isfinite(wanted.bounds[1] - wanted.bounds[0]) else (0.0, 1.0)
    pixels = levels.reshape(height, width, channels).transpose(2, 0, 1) / 255
    return checked((low + (high - low) * pixels)[None], wanted)


def checked(data: Any, wanted: Wanted) -> Tensor:
    """Return float32 inputs (B, *shape); Refused with 422 for shapes, NaN and numbers outside."""
    if data.shape[1:] != wanted.shape or data.ndim == 0:
        raise Refused(
            422, f"inputs have shape {tuple(data.shape)}: give one of shape {wanted.shape}, or a "
            "list of them",
        )  # fmt: skip
    if not 1 <= len(data) <= wanted.most:
        raise Refused(422, f"{len(data)} inputs: between 1 and {wanted.most} a request")
    if not np.isfinite(data).all():
        raise Refused(422, "inputs hold NaN or infinity")
    low, high = wanted.bounds
    if data.min() < low - 1e-6 or data.max() > high + 1e-6:
        raise Refused(
            422, f"inputs go from {data.min():g} to {data.max():g}, the model's range is {low:g} "
            f"to {high:g}",
        )  # fmt: skip
    return torch.from_numpy(np.clip(data, low, high).astype(np.float32))
