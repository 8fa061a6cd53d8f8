"""What detectors look at, one short file each."""

from foible.detect.features.pixels import Pixels
from foible.detect.features.squeezed import Squeezed

__all__ = ["Pixels", "Squeezed"]
