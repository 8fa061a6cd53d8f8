"""Two bundled models, weak defences, 1,000 bundled images, and the full Fashion-MNIST."""

from __future__ import annotations

from foible.zoo import weak as weak
from foible.zoo.bundled import CLASSES, load, sample
from foible.zoo.fashion import fashion_mnist

__all__ = ["CLASSES", "fashion_mnist", "load", "sample"]
