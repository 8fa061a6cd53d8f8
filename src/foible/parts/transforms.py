"""Random, differentiable changes of an input: what input diversity and expectation average over.

A transform is called with (x, draw): x (B, *shape), and a draw that is bound to its rows, so
that a row meets the same change whoever shares its batch. Nothing is cut to the box: a
transform stands between the input and the model, as a camera would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.errors import InputError, KindError
from foible.core.randomness import Draw
from foible.core.rows import per_row

Transform = Callable[[Tensor, Draw], Tensor]


def images(x: Tensor, who: str) -> tuple[int, int]:
    """Return height and width of (B, C, H, W); refuse anything else."""
    if x.dim() != 4:
        raise KindError(
            f"{who} moves the pixels of images (B, C, H, W) and got inputs of shape "
            f"{tuple(x.shape[1:])}: use Noise, or a transform of your own"
        )
    return x.shape[2], x.shape[3]


def warp(x: Tensor, at: Tensor, fill: float = 0.0) -> Tensor:
    """Read images (B, C, H, W) at pixel positions (B, H, W, 2), bilinearly; outside is `fill`.

    at: (column, row) in pixels, (0, 0) the centre of the first one.
    """
    size = torch.tensor([x.shape[3], x.shape[2]], dtype=x.dtype, device=x.device)
    grid = (2 * at + 1) / size - 1
    if fill:
        return fill + F.grid_sample(x - fill, grid, padding_mode="zeros", align_corners=False)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def moved(angle: Tensor, shift: Tensor, scale: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return where each pixel of a moved image comes from: (B, H, W, 2), (column, row).

    angle: (B,) radians, counter-clockwise. shift: (B, 2) pixels to the right and down. scale:
    (B,), above 1 enlarges. All about the middle of the image.
    """
    height, width = shape
    rows = torch.arange(height, dtype=angle.dtype, device=angle.device) - (height - 1) / 2
    columns = torch.arange(width, dtype=angle.dtype, device=angle.device) - (width - 1) / 2
    across = columns[None, None, :] - shift[:, 0, None, None]
    down = rows[None, :, None] - shift[:, 1, None, None]
    cos = (torch.cos(angle) / scale)[:, None, None]
    sin = (torch.sin(angle) / scale)[:, None, None]
    from_column = cos * across - sin * down + (width - 1) / 2
    from_row = sin * across + cos * down + (height - 1) / 2
    return torch.stack([from_column, from_row], -1)


def resize_pad(
    x: Tensor,
    share: Tensor,
    place: Tensor,
    fill: float = 0.0,
    canvas: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Resize images (B, C, H, W) and lay each somewhere on a canvas, in whole pixels.

    share: (B,) float64, of its own side that an image gets, and no more than the canvas holds.
    place: (B, 2) in [0, 1), where it lies, down and across. canvas: height and width, None for
    those of x; fill: what it is made of. Bilinear. Returns the canvases (B, C, *canvas) and which
    pixels (B, 1, *canvas) are image.
    """
    height, width = canvas or (x.shape[2], x.shape[3])
    (source_row, row_in), (source_column, column_in) = (
        _axis(side, share, place[:, k], size)
        for k, (side, size) in enumerate(((x.shape[2], height), (x.shape[3], width)))
    )
    at = torch.stack(
        [
            source_column[:, None, :].expand(-1, height, -1),
            source_row[:, :, None].expand(-1, -1, width),
        ],
        -1,
    ).to(x.dtype)
    inside = (row_in[:, :, None] & column_in[:, None, :])[:, None]
    size = torch.tensor([x.shape[3], x.shape[2]], dtype=x.dtype, device=x.device)
    grid = (2 * at + 1) / size - 1
    small = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return torch.where(inside, small, fill), inside


def _axis(side: int, share: Tensor, place: Tensor, canvas: int) -> tuple[Tensor, Tensor]:
    """Return where each place (B, canvas) of one axis comes from, and whether it is image."""
    size = (share * side).round().clamp(1, canvas)
    first = (place * (canvas - size + 1)).floor()
    at = torch.arange(canvas, device=share.device, dtype=torch.float64)[None] - first[:, None]
    inside = (at >= 0) & (at < size[:, None])
    return (at + 0.5) * (side / size[:, None]) - 0.5, inside


def _between(draw: Tensor, reach: float) -> Tensor:
    return (2 * draw - 1) * reach


@dataclass(frozen=True)
class ResizePad:
    """Shrink to a random share of the side in [low, high] and pad at random places.

    Input diversity (Xie et al. 2019), and the randomised defence of Xie et al. 2018. p: the
    probability that an image is changed at all. fill: the value of the border. The paper
    enlarges the canvas instead; here the shape stays, because most nets take one shape only.
    """

    low: float = 0.9
    high: float = 1.0
    p: float = 0.5
    fill: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.high <= 1 and 0 <= self.p <= 1):
            raise InputError(
                f"low={self.low}, high={self.high}, p={self.p}: shares of the side with "
                "0 < low <= high <= 1, and a probability"
            )

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        """Return images of x's shape; those that are not changed are x's, bit for bit."""
        images(x, "ResizePad")
        u = draw.scalars(4)
        share = self.low + (self.high - self.low) * u[:, 1]
        changed, inside = resize_pad(x, share, u[:, 2:], self.fill)
        same = (u[:, 0] >= self.p) | inside.flatten(1).all(1)
        return torch.where(per_row(same, x), x, changed)


@dataclass(frozen=True)
class ShiftRotate:
    """Turn, shift and scale at random: each uniform within plus or minus its reach.

    degrees: of the angle; shift: in pixels, both ways; scale: the share by which the size
    changes; fill: what comes in from outside.
    """

    degrees: float = 15.0
    shift: float = 2.0
    scale: float = 0.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        if min(self.degrees, self.shift, self.scale) < 0 or self.scale >= 1:
            raise InputError(
                f"degrees={self.degrees}, shift={self.shift}, scale={self.scale}: reaches are "
                "not negative, and scale lies below 1"
            )

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        """Return images of x's shape, read bilinearly."""
        shape = images(x, "ShiftRotate")
        u = draw.scalars(4).to(x.dtype)
        angle = torch.deg2rad(_between(u[:, 0], self.degrees))
        at = moved(angle, _between(u[:, 1:3], self.shift), 1 + _between(u[:, 3], self.scale), shape)
        return warp(x, at, self.fill)


@dataclass(frozen=True)
class Jitter:
    """Shift by whole pixels, at most `reach` both ways; the edge's pixels fill what comes in."""

    reach: int = 1

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        """Return images of x's shape, their pixels unchanged; reach 0 gives x itself."""
        sides = images(x, "Jitter")
        if self.reach == 0:
            return x
        shift = (draw.scalars(2) * (2 * self.reach + 1)).long() - self.reach
        row, column = (
            (torch.arange(side, device=x.device) - shift[:, k, None]).clamp(0, side - 1)
            for k, side in enumerate(sides)
        )
        x = x.gather(2, row[:, None, :, None].expand_as(x))
        return x.gather(3, column[:, None, None, :].expand_as(x))


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise of standard deviation sigma; inputs of any shape."""

    sigma: float = 0.1

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        """Return x plus noise; sigma 0 gives x itself."""
        if self.sigma == 0:
            return x
        return x + self.sigma * draw.normal(tuple(x.shape[1:]), x.dtype)


@dataclass(frozen=True)
class Blur:
    """Blur with a Gaussian whose width is uniform in [low, high] pixels."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise InputError(f"low={self.low}, high={self.high}: widths with 0 <= low <= high")

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        """Return blurred images; beyond the edge the nearest pixel is repeated."""
        images(x, "Blur")
        reach = max(1, round(3 * self.high))
        width = (self.low + (self.high - self.low) * draw.scalars(1)).to(x.dtype)
        away = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)[None]
        kernel = torch.exp(-0.5 * (away / width.clamp_min(1e-3)) ** 2)
        kernel = kernel / kernel.sum(1, keepdim=True)
        for axis in (2, 3):
            pad = [reach, reach, 0, 0] if axis == 3 else [0, 0, reach, reach]
            windows = F.pad(x, pad, mode="replicate").unfold(axis, 2 * reach + 1, 1)
            x = (windows * kernel[:, None, None, None]).sum(-1)
        return x


@dataclass(frozen=True)
class Light:
    """Change brightness (added) and contrast (a factor about 1), each within plus or minus."""

    brightness: float = 0.1
    contrast: float = 0.1

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        """Return (1 + c) x + b with one b and c an input."""
        u = draw.scalars(2).to(x.dtype)
        factor = per_row(1 + _between(u[:, 0], self.contrast), x)
        return x * factor + per_row(_between(u[:, 1], self.brightness), x)


@dataclass(frozen=True)
class Chain:
    """Apply several transforms in turn, each with a draw of its own.

    >>> from foible.core.randomness import Rng
    >>> x = torch.rand(2, 1, 8, 8)
    >>> Chain((ShiftRotate(), Noise(0.05)))(x, Rng(0).at(torch.arange(2))).shape
    torch.Size([2, 1, 8, 8])
    """

    parts: tuple[Transform, ...] = ()

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        """Return what the last one gives."""
        for place, part in enumerate(self.parts):
            x = part(x, draw.split(place))
        return x
