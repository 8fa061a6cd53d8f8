"""zennit without torchvision, which it imports and which the tests never install.

Importing this module imports zennit with a stand-in, and takes the stand-in away again.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

_NAMES = ("torchvision", "torchvision.models", "torchvision.models.resnet")


def _stand_in() -> None:
    if "zennit" in sys.modules:
        return
    made = {name: ModuleType(name) for name in _NAMES if name not in sys.modules}
    for name in ("Bottleneck", "BasicBlock"):
        if "torchvision.models.resnet" in made:
            setattr(made["torchvision.models.resnet"], name, type(name, (), {}))
    sys.modules.update(made)
    try:
        pytest.importorskip("zennit", reason="zennit is not installed: make test installs it")
    finally:
        for name in made:
            del sys.modules[name]


_stand_in()
