"""The picture of an input beside its maps, as `foible explain` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foible.cli.picturing import Subject, percent, to_pixels

if TYPE_CHECKING:
    from torch import Tensor


def draw(
    path: Path, who: Subject, x: Tensor, maps: list[Tensor], contents: list[dict[str, Any]]
) -> None:
    """Draw the input beside its maps: orange speaks for the class, blue against, white is zero.

    x: (C, H, W), or (D,), which becomes bars; maps: of x's shape, one a method, each with its own
    entry of `contents`. Several maps share one scale, shares of each method's largest value;
    one map keeps its own units.
    """
    import numpy as np

    from foible.core.errors import InputError, MissingExtra
    from foible.figures import is_picture, shared_scale
    from foible.figures.maps import NEGATIVE, POSITIVE

    try:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("maps need matplotlib: run `pip install matplotlib`") from error

    ends = [tuple(c / 255 for c in colour) for colour in (NEGATIVE, POSITIVE)]
    colours = LinearSegmentedColormap.from_list("foible", [ends[0], (1.0, 1.0, 1.0), ends[1]])
    alone, columns = len(maps) == 1, min(6, len(maps) + 1)
    lines = -(-(len(maps) + 1) // columns)
    size = (7.6, 3.6) if alone else (2.3 * columns, 2.6 * lines)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    places = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    seen = contents[0]["prediction"]
    picture = is_picture(tuple(x.shape))
    if picture:
        places[0].imshow(
            to_pixels(who.levels(x)), cmap="gray", vmin=0, vmax=255, interpolation="nearest"
        )
    else:
        places[0].bar(range(x.numel()), x.flatten().tolist(), color="0.45")
    small = 11 if alone else 9
    name = f"{seen['name']}, {percent(seen['confidence'])}"
    places[0].set_title(name, fontsize=small, parse_math=False)
    for axes, values, content in zip(places[1:], maps, contents, strict=False):
        scale = shared_scale(values.numpy())
        flat = values.double().sum(0).numpy() if picture else values.double().flatten().numpy()
        limit = scale if alone else 1.0
        flat = flat if alone else flat / scale
        if picture:
            shown = axes.imshow(
                flat, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest"
            )
            if alone:
                figure.colorbar(shown, ax=axes, shrink=0.8)
        else:
            axes.bar(range(len(flat)), flat, color=[ends[int(v >= 0)] for v in flat])
            axes.axhline(0, color="0.6", linewidth=0.8)
        title = f"{content['method']} for {content['target']['name']}"
        axes.set_title(
            title if alone else content["method"].replace("_", " "), fontsize=small,
            parse_math=False,
        )  # fmt: skip
    for axes in places:
        axes.set_xticks([])
        if picture:
            axes.set_yticks([])
    for axes in places[len(maps) + 1 :]:
        axes.set_axis_off()
    if not alone:
        figure.suptitle(
            f"maps for {contents[0]['target']['name']}: shares of each method's largest value",
            fontsize=10, parse_math=False,
        )  # fmt: skip
    try:
        figure.savefig(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): choose another --out"
        ) from error
