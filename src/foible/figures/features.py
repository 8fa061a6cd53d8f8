"""What an attack does to a layer, channel by channel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foible.core.errors import InputError
from foible.figures.maps import shared_scale, signed_tile

FEATURE_COLUMNS = ("clean maps", "adversarial maps", "difference")


def feature_tiles(
    clean: npt.ArrayLike, adversarial: npt.ArrayLike, count: int = 4
) -> list[list[str]]:
    """The channels of one sample that changed most, in the order of `FEATURE_COLUMNS`, as markup.

    Args:
        clean: (C, H, W) maps of a layer, as `foible.explain.feature_noise` gives them.
        adversarial: (C, H, W) the same after the attack.
        count: of channels; fewer where there are not so many.

    Returns:
        A row of three for each channel, the most changed first. All share one scale.
    """
    x, a = (np.asarray(maps, dtype=np.float64) for maps in (clean, adversarial))
    if x.ndim != 3 or x.shape != a.shape:
        raise InputError(f"maps of shapes {x.shape} and {a.shape}: (C, H, W) of one sample, twice")
    change = a - x
    order = np.argsort(-np.square(change).sum(axis=(1, 2)), kind="stable")[:count]
    scale = shared_scale(*x[order][:, None], *a[order][:, None])
    return [
        [
            signed_tile(x[c][None], f"channel {c}, clean", scale),
            signed_tile(a[c][None], f"channel {c}, adversarial", scale),
            signed_tile(change[c][None], f"channel {c}, adversarial minus clean", scale),
        ]
        for c in order
    ]
