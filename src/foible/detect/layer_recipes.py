"""Detectors by their papers: those that look at what the layers of a model give."""

from __future__ import annotations

from typing import Any

from foible.core.errors import KindError
from foible.defend.denoisers import denoised
from foible.detect.base import part_of
from foible.detect.features import (
    ClassDensity,
    Codes,
    DensityAndUncertainty,
    Layer,
    LocalDimension,
    MahalanobisDistance,
    Reconstruction,
    Uncertainty,
)
from foible.detect.features.activations import Layers
from foible.detect.heads import Largest, Logistic, Svm
from foible.detect.nets import Network
from foible.detect.watching import Detector, Watch
from foible.models.holding import TorchModel, as_model


def subnetwork(
    layer: str | None = None, width: int = 16, epochs: int = 20, dynamic: int = 0
) -> Detector:
    """Return the detector subnetwork on an inner layer (T3, Metzen et al. 2017).

    layer: a name as in `foible.models.layers_of`; None is the last that gives maps, the paper found
    an early one best. width: of its first convolution; for maps it has three and a mean over
    positions, which is smaller than theirs. epochs: on adversarials of the bare classifier, which
    is all that the static detector knows. dynamic: further epochs in which half of each batch is
    made on the fly by an adversary against classifier and detector at once, with a weight between
    them drawn for each input. It resists that adversary (`dynamic_adversary`) and not a search that
    stays at it: `adaptive(watch, threat)` (Carlini and Wagner 2017).

    >>> subnetwork(dynamic=5).dynamic
    5
    """
    return Detector("subnetwork", Layer(layer), Network(width, epochs), dynamic=dynamic)


def kde_uncertainty(
    bandwidth: float | None = None, passes: int = 50, layer: str | None = None
) -> Detector:
    """Return kernel density and Bayesian uncertainty (T4, Feinman et al. 2017).

    A logistic regression on two numbers: minus the log density of clean activations of the
    predicted class at the last hidden layer, and the variance of the probabilities under dropout.
    Clean inputs with noise as long as the adversarial changes count as clean. bandwidth: in the
    unit of the activations, 1.2 on MNIST and 0.26 on CIFAR in the paper for its nets; None has it
    chosen for this net (`ClassDensity`). passes: of dropout; a net without dropout has units of
    `layer` dropped, which measures something else (`Uncertainty`). layer: None is the last hidden.

    Their script fits and scores the regression on the same points, which flatters it: here levels
    and figures come from other ones. Broken: a term for the density, or for the variance, in the
    attack's loss (Carlini and Wagner 2017): `adaptive(watch, threat)`.

    >>> kde_uncertainty(passes=20).feature.looks
    21
    """
    feature = DensityAndUncertainty(ClassDensity(layer, bandwidth), Uncertainty(passes))
    return Detector("kde_uncertainty", feature, Logistic(), noisy=True)


def safetynet(layers: Layers = 2, levels: int = 4) -> Detector:
    """Return SafetyNet (T5, Lu et al. 2017): a Gaussian SVM on codes of late ReLU layers.

    layers: names, or how many of the last. levels: of a code, cut at quantiles of clean inputs.
    Departure: the paper leaves its levels open and codes all positions of maps; here maps are
    averaged first, which keeps the support vectors small. That codes and narrow kernels have no
    gradient hides the way and does not close it: `adaptive(watch, threat)` passes a gradient
    straight through (Athalye et al. 2018).

    >>> safetynet().feature.levels
    4
    """
    return Detector("safetynet", Codes(layers, levels), Svm())


def mahalanobis(layers: Layers = 3, shrinkage: float = 0.01, supervised: bool = True) -> Detector:
    """Return the Mahalanobis distance to the nearest class, of several layers (Lee et al. 2018).

    layers: names, or how many of the last. shrinkage: of the covariance that all classes share.
    supervised: weigh the layers by a logistic regression on adversarials; else the layer that
    stands out most decides, and no adversarials are needed. Departure: the paper also moves the
    input a step towards its class first, which costs a gradient and is left out.

    >>> mahalanobis(supervised=False).head.supervised
    False
    """
    head = Logistic() if supervised else Largest("high")
    return Detector("mahalanobis", MahalanobisDistance(layers, shrinkage), head)


def local_dimension(layers: Layers = 3, neighbours: int = 20, reference: int = 200) -> Detector:
    """Return local intrinsic dimensionality (Ma et al. 2018), weighed by a logistic regression.

    layers: names, or how many of the last. neighbours: of each input among `reference` clean ones;
    20 of 100 in the paper, whose reference is the batch itself. Clean inputs with noise as long as
    the adversarial changes count as clean. Broken by attacks in full (Athalye et al. 2018 show that
    confident adversarials pass), and by the term for it: `adaptive(watch, threat)`.

    >>> local_dimension().feature.neighbours
    20
    """
    feature = LocalDimension(layers, neighbours, reference)
    return Detector("local_dimension", feature, Logistic(), noisy=True)


def magnet(
    temperatures: tuple[float, ...] = (1.0, 10.0, 40.0), epochs: int = 100, width: int = 8
) -> Detector:
    """Return MagNet's detectors (T7, Meng and Chen 2017).

    How badly two autoencoders of clean inputs give an input back, and how far the prediction moves
    from the input to what is given back, at each of some temperatures. No adversarials are learnt
    from. `reformed(watch, model)` is its other half. temperatures: 10 and 40 on CIFAR in the paper,
    and none on MNIST; 1 is ours, and sees what lies just over a boundary. epochs, width: of the
    autoencoders.

    Departures: one level for the number that stands out most, in spreads of clean inputs, in place
    of a level each; the autoencoders are fixed, not drawn from a pool. Broken: attacks through the
    autoencoders (Carlini and Wagner 2017b) and on L1 (Chen et al. 2018): `adaptive(watch, threat)`.

    >>> magnet().head.supervised
    False
    """
    return Detector("magnet", Reconstruction(temperatures, epochs, width), Largest("high"))


def reformed(watch: Watch, model: Any) -> TorchModel:
    """Return a model behind MagNet's reformer (T7): it sees what the deep autoencoder gives back.

    watch: of `magnet`, fitted. model: a torch module, bare or wrapped. Attacks see the whole, and
    gradients pass. The paper counts an adversarial as stopped that is detected *or* classified
    right by this model.

    Raises KindError for another watch, or a model that is no torch module.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net = foible.zoo.load("standard")
    >>> watch = magnet(epochs=1).fit(net, (x[:64], y[:64]))
    >>> reformed(watch, net)(x[:2]).shape
    torch.Size([2, 10])
    """
    feature, held = watch.detector.feature, as_model(model)
    if not isinstance(feature, Reconstruction):
        raise KindError(f"{watch.detector.name} has no autoencoder: fit foible.detect.magnet()")
    known = part_of(watch.state, "feature")
    bounds = (float(held.bounds[0]), float(held.bounds[1]))
    shape = tuple(int(n) for n in known["shape"])
    return denoised(held, feature.autoencoder(shape, known, bounds, "deep"))
