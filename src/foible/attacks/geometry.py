"""Attacks that move an image as a whole."""

from __future__ import annotations

from math import prod

from foible.attacks.base import Attack
from foible.core.errors import InputError, KindError
from foible.core.search import Search
from foible.parts.objectives import Margin
from foible.parts.searches import Ascent, RandomPoints
from foible.parts.searches.gridding import GridPoints
from foible.parts.threats.spatial import Spatial

SEARCHES = ("grid", "gradient", "random")


def spatial(
    threat: Spatial | None = None,
    search: str = "grid",
    angles: int = 31,
    shifts: int = 5,
    steps: int | None = None,
    restarts: int = 1,
    stop: str = "never",
) -> Attack:
    """Return the rotation-translation attack: the worst way to move each image.

    Engstrom et al. 2019 (A23). threat: `Spatial()`, 30 degrees and 3 pixels, unless another is
    given. search: "grid", every point of a grid, angles * shifts * shifts forwards (the paper's
    31 * 5 * 5), by far the strongest in the paper; "gradient", sign steps on the parameters
    through the rendering; "random", the worst of a few random points. angles, shifts: points of
    the grid a side, the scale (where the threat has one) as many as a shift. steps: gradient
    steps (None: 40) or random points (None: 10, as in the paper). restarts: of the gradient
    search, from random starts. stop: "never" or "success".

    Points are ranked by the margin. The result's z holds the shares of the limits that were found
    and its distance is the largest of them.

    Raises KindError for another kind of threat and, when it runs, for inputs that are no images.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> result = spatial(angles=7, shifts=3)(foible.zoo.load("standard"), x[:8], y[:8])
    >>> result.x.shape, result.z.shape
    (torch.Size([8, 1, 28, 28]), torch.Size([8, 3]))
    """
    threat = Spatial() if threat is None else threat
    if not isinstance(threat, Spatial):
        raise KindError(
            f"spatial moves images and got {type(threat).__name__}: pass "
            "foible.parts.threats.Spatial(rotation, translation)"
        )
    if search not in SEARCHES:
        raise InputError(f"search={search!r}: choose {', '.join(map(repr, SEARCHES))}")
    if search != "gradient" and restarts != 1:
        raise InputError(f'restarts={restarts}: only search="gradient" has random starts')
    way: Search
    if search == "grid":
        counts = (angles, *[shifts] * (len(threat.sizes) - 1))
        way = GridPoints(max(1, prod(counts)), counts)
    elif search == "gradient":
        count = 40 if steps is None else steps
        way = Ascent(count, None, min(1.0, 2.5 / max(1, count)), "random")
    else:
        way = RandomPoints(10 if steps is None else steps, corners=False)
    return Attack("spatial", threat, way, Margin(), stop=stop, restarts=restarts)
