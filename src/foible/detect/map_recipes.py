"""Detectors that look at explanations."""

from __future__ import annotations

from foible.detect.features import LeavingOut, Maps, Signature, Template
from foible.detect.heads import Largest, Logistic
from foible.detect.nets import Network
from foible.detect.panels import Panel
from foible.detect.watching import Detector
from foible.explain.backward_rules import guided_backprop
from foible.explain.base import Explanation
from foible.explain.gradient import saliency
from foible.explain.masks import meaningful_perturbation
from foible.explain.path import integrated_gradients


def saliency_detector(image: bool = True, width: int = 16, epochs: int = 30) -> Detector:
    """Return the network on an input and its saliency (T8, Zhang et al. 2018).

    A small CNN sees the image and the signed gradient of the predicted class's logit, as channels.
    image=False: the gradient alone. Broken by attacking prediction and map at once (Zhang et al.
    2020): `adaptive(watch, threat)`, which follows the softplus twin's map, because a ReLU net's
    jumps.

    >>> saliency_detector().access.name
    'GRADIENTS'
    """
    return Detector("saliency_detector", Maps((saliency(),), image), Network(width, epochs))


def ml_loo(
    layers: tuple[str, ...] | None = None,
    spreads: tuple[str, ...] = ("iqr",),
    pixels: int | None = None,
    c: float = 0.1,
) -> Detector:
    """Return ML-LOO (T9, Yang et al. 2020): the dispersion of leave-one-out effects in each unit.

    Every feature of the input is hidden once, one forward each, and a logistic regression sees how
    far each unit's values lie apart. layers: names, None for all activations, () for the predicted
    probability alone. spreads: "iqr" (the paper's choice), "std", "mad". pixels: how many features
    are hidden, chosen at random for each input; None for all. c: the inverse penalty of the
    regression, which the paper chooses by cross-validation. `adaptive(watch, threat)` follows 78
    random features at each step and is judged on all.

    >>> ml_loo(layers=()).access.name, ml_loo().access.name
    ('SCORES', 'INTERNALS')
    """
    return Detector("ml_loo", LeavingOut(layers, spreads, pixels), Logistic(c))


def shap_signatures(layer: str | None = None, width: int = 16, epochs: int = 30) -> Detector:
    """Return SHAP signatures (T10, Fidel et al. 2020): Shapley values of the units before the end.

    The values of all units for all classes, which are exact because the last layer is linear, go
    into a network of two hidden layers. layer: the penultimate one; None finds it.

    >>> shap_signatures().feature.looks
    1
    """
    return Detector("shap_signatures", Signature(layer), Network(width, epochs))


def x_ensemble(steps: int = 10, width: int = 16, epochs: int = 30) -> Detector:
    """Return X-Ensemble (T11, Wang et al. 2023): a network for each explanation, and a forest.

    Saliency, integrated gradients with `steps` points and guided backpropagation, where the paper
    has layer-wise relevance too, whose rules are an extra here. `rectify` classifies what is
    flagged again. That no gradient passes a forest is obfuscation and no defence:
    `adaptive(watch, threat)` follows a stand-in.

    >>> x_ensemble(steps=5).feature.looks
    7
    """
    explainers: tuple[Explanation, ...] = (
        saliency(), integrated_gradients(steps), guided_backprop(),
    )  # fmt: skip
    return Detector("x_ensemble", Maps(explainers, False), Panel(3, Network(width, epochs)))


def mask_detector(steps: int = 40, width: int = 16, epochs: int = 30) -> Detector:
    """Return the network on meaningful-perturbation masks (T13, Fong and Vedaldi 2017).

    The mask that deletes the predicted class is searched for each input, `steps` forwards and
    backwards, where the explainer's default is 100 and the paper's 300. What comes of a search has
    no gradient to follow, so an adaptive attack needs another way in: attack by scores.

    >>> mask_detector().feature.differentiable
    False
    """
    made = meaningful_perturbation(steps=steps)
    return Detector("mask_detector", Maps((made,), False), Network(width, epochs))


def class_template(explainer: Explanation | None = None, kind: str = "cosine") -> Detector:
    """Return the distance of a map from its predicted class's template (S13, survey Fig. 5).

    An explanation of an adversarial does not look like those of the class that it is taken for.
    The template is the mean map of clean inputs of the class. No adversarials are learnt from.
    explainer: saliency if None. kind: "cosine" or "correlation". `adaptive(watch, threat)` attacks
    the prediction and the map at once.

    >>> class_template().head.supervised
    False
    """
    maps = Maps((saliency() if explainer is None else explainer,), False)
    return Detector("class_template", Template(maps, kind), Largest("high", normed=False))
