"""foible finds where a model is weak by explaining it, and attacks it there.

>>> import foible
>>> net = foible.zoo.load("standard")
>>> x, y = foible.zoo.sample()
>>> result = foible.attacks.pgd(foible.Linf(0.1), stop="success")(net, x[:32], y[:32])
>>> bool(result.success.float().mean() > 0.9)
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from foible import attacks, audit, defend, detect, explain, models, zoo
    from foible.core.errors import FoibleError
    from foible.models import wrap
    from foible.parts.threats import L0, L1, L2, Features, Linf

_WHERE = {
    "wrap": "foible.models",
    "L0": "foible.parts.threats",
    "L1": "foible.parts.threats",
    "L2": "foible.parts.threats",
    "Linf": "foible.parts.threats",
    "Features": "foible.parts.threats",
    "FoibleError": "foible.core.errors",
}
_ROOMS = ("attacks", "audit", "defend", "detect", "explain", "models", "zoo")

__all__ = [
    "L0",
    "L1",
    "L2",
    "Features",
    "FoibleError",
    "Linf",
    "attacks",
    "audit",
    "defend",
    "detect",
    "explain",
    "models",
    "wrap",
    "zoo",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import foible` stays as cheap as its import of nothing."""
    if name in _ROOMS:
        return importlib.import_module(f"foible.{name}")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'foible' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
