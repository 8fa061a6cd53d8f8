"""Detectors by their papers: a feature and a head each."""

from __future__ import annotations

from foible.detect.features import Pixels, Squeezed
from foible.detect.heads import Largest
from foible.detect.nets import Network
from foible.detect.watching import Detector


def pixels(width: int = 16, epochs: int = 30) -> Detector:
    """Return the binary classifier of raw inputs (T1, Gong et al. 2017).

    It sees adversarials of the kind and size that it was trained on, and little else: those of a
    tenth of the size pass (the paper's own table). An attack on both nets at once passes (Carlini
    and Wagner 2017): `adaptive(watch, threat)`. width, epochs: of its network.

    >>> pixels().name
    'pixels'
    """
    return Detector("pixels", Pixels(), Network(width, epochs))


def squeezed(bits: tuple[int, ...] = (1,), medians: tuple[int, ...] = (2,)) -> Detector:
    """Return the detector of feature squeezing (N3, Xu et al. 2018).

    The largest L1 distance between the probabilities of an input and of its squeezed versions. No
    adversarials are learnt from. bits, medians: 1 and 2 on MNIST in the paper, 5 and 2 on CIFAR,
    with non-local means beside them, which are left out here. Broken by putting the squeezers into
    the loss (He et al. 2017): `adaptive(watch, threat)`.

    >>> squeezed().feature.looks
    3
    """
    return Detector("squeezed", Squeezed(bits, medians), Largest("high", normed=False))
