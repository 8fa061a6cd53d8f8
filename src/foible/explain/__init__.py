"""Explanations: signed maps of the input's shape, each also a direction for an attack."""

from foible.explain.activation_maps import Cam, GradCam, cam, grad_cam
from foible.explain.backward_rules import DeepLift, GuidedBackprop, deep_lift, guided_backprop
from foible.explain.base import Explanation
from foible.explain.causes import CausalModel, causal_model
from foible.explain.certified import (
    Certificate,
    SparsifiedSmoothGrad,
    certify,
    sparsified_smoothgrad,
)
from foible.explain.evaluate import completeness, rank_correlation, stability, topk_intersection
from foible.explain.fidelity import Infidelity, infidelity
from foible.explain.from_data import DataLime, data_lime
from foible.explain.gradient import (
    GradientTimesInput,
    Saliency,
    SmoothGrad,
    VarGrad,
    gradient_x_input,
    saliency,
    smoothgrad,
    vargrad,
)
from foible.explain.influential import (
    Influence,
    Influences,
    conjugate_gradient,
    explicit,
    influence,
    lissa,
)
from foible.explain.leaving_out import (
    Erasure,
    LeaveOneOut,
    Occlusion,
    erasure,
    leave_one_out,
    occlusion,
)
from foible.explain.masking_nets import MaskingModel, masking_model, train_masks
from foible.explain.masks import MeaningfulPerturbation, meaningful_perturbation
from foible.explain.mimics import Mimic, mimic
from foible.explain.nearby import scale_of
from foible.explain.neurons import NeuronEffect, accuracy_without, neuron_effect
from foible.explain.noise import RandomMap, random_map
from foible.explain.path import (
    ExpectedGradients,
    IntegratedGradients,
    expected_gradients,
    integrated_gradients,
)
from foible.explain.piecewise import Lemna, lemna
from foible.explain.relevance import Lrp, lrp
from foible.explain.removal_curves import (
    Removal,
    comprehensiveness,
    deletion,
    insertion,
    of_logit,
    sufficiency,
)
from foible.explain.sanity import Randomised, Retrained, randomisation, retraining
from foible.explain.scoring import Comparison, Measure, Score, compare
from foible.explain.shapley import ExactShapley, KernelShap, exact_shapley, kernel_shap
from foible.explain.shapley_trees import tree_shap
from foible.explain.shifts import FeatureNoise, feature_noise
from foible.explain.softened import Smoothed, smoothed
from foible.explain.surrogate import Lime, LocalFit, TabularLime, lime, tabular_lime
from foible.explain.textures import (
    TextureOrShape,
    edge_alignment,
    gini,
    patch_shuffled,
    saturated,
    texture_or_shape,
)
from foible.explain.visual import CellSwaps, VisualCounterfactual, visual_counterfactual
from foible.explain.worst_case import Sensitive, Sensitivity, sensitivity

__all__ = [
    "Cam",
    "CausalModel",
    "CellSwaps",
    "Certificate",
    "Comparison",
    "DataLime",
    "DeepLift",
    "Erasure",
    "ExactShapley",
    "ExpectedGradients",
    "Explanation",
    "FeatureNoise",
    "GradCam",
    "GradientTimesInput",
    "GuidedBackprop",
    "Infidelity",
    "Influence",
    "Influences",
    "IntegratedGradients",
    "KernelShap",
    "LeaveOneOut",
    "Lemna",
    "Lime",
    "LocalFit",
    "Lrp",
    "MaskingModel",
    "MeaningfulPerturbation",
    "Measure",
    "Mimic",
    "NeuronEffect",
    "Occlusion",
    "RandomMap",
    "Randomised",
    "Removal",
    "Retrained",
    "Saliency",
    "Score",
    "Sensitive",
    "Sensitivity",
    "SmoothGrad",
    "Smoothed",
    "SparsifiedSmoothGrad",
    "TabularLime",
    "TextureOrShape",
    "VarGrad",
    "VisualCounterfactual",
    "accuracy_without",
    "cam",
    "causal_model",
    "certify",
    "compare",
    "completeness",
    "comprehensiveness",
    "conjugate_gradient",
    "data_lime",
    "deep_lift",
    "deletion",
    "edge_alignment",
    "erasure",
    "exact_shapley",
    "expected_gradients",
    "explicit",
    "feature_noise",
    "gini",
    "grad_cam",
    "gradient_x_input",
    "guided_backprop",
    "infidelity",
    "influence",
    "insertion",
    "integrated_gradients",
    "kernel_shap",
    "leave_one_out",
    "lemna",
    "lime",
    "lissa",
    "lrp",
    "masking_model",
    "meaningful_perturbation",
    "mimic",
    "neuron_effect",
    "occlusion",
    "of_logit",
    "patch_shuffled",
    "random_map",
    "randomisation",
    "rank_correlation",
    "retraining",
    "saliency",
    "saturated",
    "scale_of",
    "sensitivity",
    "smoothed",
    "smoothgrad",
    "sparsified_smoothgrad",
    "stability",
    "sufficiency",
    "tabular_lime",
    "texture_or_shape",
    "topk_intersection",
    "train_masks",
    "tree_shap",
    "vargrad",
    "visual_counterfactual",
]
