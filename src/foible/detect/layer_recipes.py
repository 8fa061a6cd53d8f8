"""Detectors by their papers: those that look at what the layers of a model give."""

from __future__ import annotations

from foible.detect.features import (
    ClassDensity,
    Codes,
    DensityAndUncertainty,
    LocalDimension,
    MahalanobisDistance,
    Uncertainty,
)
from foible.detect.features.activations import Layers
from foible.detect.heads import Largest, Logistic, Svm
from foible.detect.watching import Detector


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
