"""What code cannot say of a recipe: its paper, the rows of the survey, what it costs."""

from __future__ import annotations

from dataclasses import dataclass

_SURVEY = "Adversarial Attacks and Defenses: An Interpretation Perspective"


@dataclass(frozen=True)
class Facts:
    """cite, title: the paper; rows: of the survey's table; forwards, backwards: cost a sample,
    in the recipe's own parameters. access: where no recipe can be built to be asked.
    """

    cite: str = ""
    title: str = ""
    rows: tuple[str, ...] = ()
    forwards: str = ""
    backwards: str = ""
    access: str = ""


# An attack pays one forward for the clean label, one for its last point and one for the verdict.
FACTS: dict[str, Facts] = {
    "fgsm": Facts(
        "Goodfellow et al. 2015", "Explaining and Harnessing Adversarial Examples",
        ("A1", "S3", "S7"), "4", "1",
    ),
    "r_fgsm": Facts(
        "Tramer et al. 2018", "Ensemble Adversarial Training: Attacks and Defenses",
        ("A4",), "4", "1",
    ),
    "bim": Facts(
        "Kurakin et al. 2017", "Adversarial Examples in the Physical World",
        ("A3",), "steps + 3", "steps",
    ),
    "minimal_erasure": Facts(
        "Li et al. 2016", "Understanding Neural Networks through Representation Erasure",
        ("B13",), "at most segments * (segments + 1) + 4", "0",
    ),
    "least_likely": Facts(
        "Kurakin et al. 2017", "Adversarial Examples in the Physical World",
        ("A3",), "steps + 3", "steps",
    ),
    "pgd": Facts(
        "Madry et al. 2018",
        "Towards Deep Learning Models Resistant to Adversarial Attacks",
        ("S2", "S3", "S6"), "restarts * (steps + 1) + 2", "restarts * steps",
    ),
    "apgd": Facts(
        "Croce and Hein 2020",
        "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks",
        ("A25",), "restarts * (steps + 1) + 2", "restarts * steps",
    ),
    "apgd_targeted": Facts(
        "Croce and Hein 2020",
        "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks",
        ("A25",), "targets * (steps + 1) + 2", "targets * steps",
    ),
    "mim": Facts(
        "Dong et al. 2018", "Boosting Adversarial Attacks with Momentum",
        (), "steps + 3", "steps",
    ),
    "smoothgrad_attack": Facts(
        "Liu et al. 2020", f"{_SURVEY}, 3.1.1",
        ("A5",), "steps * (samples + 1) + 3", "steps * samples",
    ),
    "deepfool": Facts(
        "Moosavi-Dezfooli et al. 2016",
        "DeepFool: A Simple and Accurate Method to Fool Deep Neural Networks",
        (), "2 * steps + 6 at most", "10 * steps at most",
    ),
    "fab": Facts(
        "Croce and Hein 2020",
        "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
        ("A25",), "restarts * (steps + 4) + 3", "restarts * steps * 10",
    ),
    "fab_targeted": Facts(
        "Croce and Hein 2020",
        "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
        ("A25",), "targets * restarts * (steps + 4) + 2", "targets * restarts * steps",
    ),
    "ig_deletion": Facts(
        "Liu et al. 2020", f"{_SURVEY}, Eq. 11 and 12",
        ("A6", "S8"), "50 + deleted features + 2", "50",
    ),
    "eot": Facts(
        "Athalye et al. 2018",
        "Obfuscated Gradients Give a False Sense of Security: Circumventing Defenses to "
        "Adversarial Examples", ("A11",), "samples * its attack's", "samples * its attack's",
    ),
    "with_density": Facts(
        "Biggio et al. 2013", "Evasion Attacks against Machine Learning at Test Time",
        ("A8",), "its attack's", "its attack's",
    ),
    "spatial": Facts(
        "Engstrom et al. 2019", "Exploring the Landscape of Spatial Robustness",
        ("A23",), "angles * shifts**2 + 1", "0",
    ),
    "square": Facts(
        "Andriushchenko et al. 2020",
        "Square Attack: a Query-Efficient Black-Box Adversarial Attack via Random Search",
        ("A25",), "at most queries", "0",
    ),
    "nes": Facts(
        "Ilyas et al. 2018",
        "Black-box Adversarial Attacks with Limited Queries and Information",
        (), "at most queries", "0",
    ),
    "spsa": Facts(
        "Uesato et al. 2018", "Adversarial Risk and the Dangers of Evaluating Against Weak Attacks",
        ("A23",), "at most queries", "0",
    ),
    "simba": Facts(
        "Guo et al. 2019", "Simple Black-box Adversarial Attacks", (), "at most queries", "0",
    ),
    "surrogate_attack": Facts(
        "Liu et al. 2020", f"{_SURVEY}, 3.1.2", ("A7", "S9"), "at most queries", "0", "scores",
    ),
    "ti_dim": Facts(
        "Dong et al. 2019",
        "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks",
        ("A10",), "steps * (scales + 1) + 3", "steps * scales",
    ),
    "transfer": Facts(
        "Papernot et al. 2016",
        "Transferability in Machine Learning: from Phenomena to Black-Box Attacks using "
        "Adversarial Samples", ("A10", "S6"), "2, and its attack's on the source",
        "its attack's on the source", "labels",
    ),
    "transfer_matrix": Facts(
        "Papernot et al. 2016",
        "Transferability in Machine Learning: from Phenomena to Black-Box Attacks using "
        "Adversarial Samples", ("A10",), "its attack's, and 2 a pair of models", "its attack's",
        "labels",
    ),
    "path_flip": Facts(
        "Papernot et al. 2016",
        "Transferability in Machine Learning: from Phenomena to Black-Box Attacks using "
        "Adversarial Samples", ("A10",), "3", "0", "labels",
    ),
    "substitute": Facts(
        "Papernot et al. 2017", "Practical Black-Box Attacks against Machine Learning",
        ("A9",), "2 ** (rounds - 1) labels a seed", "0", "labels",
    ),
    "autoattack": Facts(
        "Croce and Hein 2020",
        "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks",
        ("A25",), "at most about 8,800 of a survivor (standard)", "at most 2,000",
    ),
    "strongest": Facts(
        "none, a cascade", "", (), "about 150 on a hardened model, 4 on a standard one",
        "about 145 and 2",
    ),
    "boundary": Facts(
        "Brendel et al. 2018",
        "Decision-Based Adversarial Attacks",
        ("S6",), "queries", "0",
    ),
    "hop_skip_jump": Facts(
        "Chen et al. 2020",
        "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack",
        ("S6",), "queries", "0",
    ),
    "ddn": Facts(
        "Rony et al. 2019",
        "Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks",
        ("S2",), "steps + 4", "steps + 10",
    ),
    "fmn": Facts(
        "Pintor et al. 2021",
        "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints",
        ("S2",), "steps + 4 (124 in L0)", "steps + 10",
    ),
    "sigma_zero": Facts(
        "Cinà et al. 2024",
        "Sigma-zero: Gradient-based Optimization of l0-norm Adversarial Examples",
        ("S2",), "steps + 124 at most", "steps + 10",
    ),
    "jsma": Facts(
        "Papernot et al. 2016", "The Limitations of Deep Learning in Adversarial Settings",
        ("S2",), "2 * pairs + 134 at most", "2 * pairs + 20 at most",
    ),
    "random_noise": Facts(
        "none, a control", "", (), "points + 2", "0",
    ),
    "curve": Facts(
        "none, bisection", "", (), "about log2(grid) runs of its attack", "the same",
    ),
    "counterfactual": Facts(
        "Wachter et al. 2017",
        "Counterfactual Explanations without Opening the Black Box: Automated Decisions and the "
        "GDPR", ("B30",), "steps * searches + 25 at most", "steps * searches + 10 at most",
    ),
    "alternatives": Facts(
        "Wachter et al. 2017",
        "Counterfactual Explanations without Opening the Black Box: Automated Decisions and the "
        "GDPR", ("B30",), "count * its attack's", "count * its attack's",
        "gradients",
    ),
    "contrastive": Facts(
        "Dhurandhar et al. 2018",
        "Explanations based on the Missing: Towards Contrastive Explanations with Pertinent "
        "Negatives", ("A13",), "steps * searches + 23 at most",
        "steps * searches + 10 at most, twice that with an autoencoder",
    ),
    "autoencoder_penalty": Facts(
        "Dhurandhar et al. 2018",
        "Explanations based on the Missing: Towards Contrastive Explanations with Pertinent "
        "Negatives", ("S10",), "its attack's", "its attack's, twice that of a penalty attack",
    ),
    "cw": Facts(
        "Carlini and Wagner 2017", "Towards Evaluating the Robustness of Neural Networks",
        ("S2",), "steps * searches + 11 at most", "steps * searches + 10 at most",
    ),
    "ead": Facts(
        "Chen et al. 2018",
        "EAD: Elastic-Net Attacks to Deep Neural Networks via Adversarial Examples",
        (), "steps * searches + 11 at most", "steps * searches + 10 at most",
    ),
    "lbfgs": Facts(
        "Szegedy et al. 2014", "Intriguing Properties of Neural Networks",
        ("A2",), "about searches * iterations * 1.2 + 11", "about searches * iterations * 1.2 + 10",
    ),
    "bend": Facts(
        "Dombrowski et al. 2019",
        "Explanations Can Be Manipulated and Geometry Is to Blame",
        ("X4",), "about 2 * steps * (its explainer's + 1)",
        "about steps * (2 * its explainer's + 1)",
    ),
    "fool_both": Facts(
        "Zhang et al. 2020", "Interpretable Deep Learning under Fire",
        ("S17",), "about 2 * steps * (its explainer's + 1)",
        "about steps * (2 * its explainer's + 1)",
    ),
    "fragile": Facts(
        "Ghorbani et al. 2019", "Interpretation of Neural Networks Is Fragile",
        ("X1",), "about steps * (2 * its explainer's + 1)",
        "about steps * (2 * its explainer's + 1)",
    ),
    "fool_map": Facts(
        "Subramanya et al. 2019", "Fooling Network Interpretation in Image Classification",
        ("X2",), "2 * steps + 4", "2 * steps + 1", "internals",
    ),
    "scaffolding": Facts(
        "Slack et al. 2020",
        "Fooling LIME and SHAP: Adversarial Attacks on Post hoc Explanation Methods",
        ("X3",), "2 an answer", "0", "scores",
    ),
    "saliency": Facts(
        "Simonyan et al. 2014",
        "Deep Inside Convolutional Networks: Visualising Image Classification Models and "
        "Saliency Maps", ("B1",), "1", "1",
    ),
    "gradient_x_input": Facts(
        "Shrikumar et al. 2016",
        "Not Just a Black Box: Learning Important Features Through Propagating Activation "
        "Differences", (), "1", "1",
    ),
    "smoothed": Facts(
        "Dombrowski et al. 2019",
        "Explanations Can Be Manipulated and Geometry Is to Blame",
        ("X4",), "its explainer's", "its explainer's",
    ),
    "smoothgrad": Facts(
        "Smilkov et al. 2017", "SmoothGrad: Removing Noise by Adding Noise",
        ("B2",), "samples", "samples",
    ),
    "integrated_gradients": Facts(
        "Sundararajan et al. 2017", "Axiomatic Attribution for Deep Networks",
        ("B3", "S8"), "steps", "steps",
    ),
    "expected_gradients": Facts(
        "Erion et al. 2021", "Improving Performance of Deep Learning Models with Axiomatic "
        "Attribution Priors and Expected Gradients", (), "samples", "samples",
    ),
    "vargrad": Facts(
        "Adebayo et al. 2018", "Local Explanation Methods for Deep Neural Networks Lack "
        "Sensitivity to Parameter Values", (), "samples", "samples",
    ),
    "sparsified_smoothgrad": Facts(
        "Levine et al. 2019", "Certifiably Robust Interpretation in Deep Learning",
        ("X5",), "samples", "samples",
    ),
    "cam": Facts(
        "Zhou et al. 2016", "Learning Deep Features for Discriminative Localization",
        ("B4",), "4", "1",
    ),
    "grad_cam": Facts(
        "Selvaraju et al. 2017", "Grad-CAM: Visual Explanations from Deep Networks via "
        "Gradient-based Localization", ("B4",), "1", "1",
    ),
    "guided_backprop": Facts(
        "Springenberg et al. 2015", "Striving for Simplicity: The All Convolutional Net",
        (), "1", "1",
    ),
    "deep_lift": Facts(
        "Shrikumar et al. 2017", "Learning Important Features Through Propagating Activation "
        "Differences", (), "2", "1",
    ),
    "lrp": Facts(
        "Bach et al. 2015", "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by "
        "Layer-Wise Relevance Propagation", (), "2", "2",
    ),
    "lime": Facts(
        "Ribeiro et al. 2016", '"Why Should I Trust You?": Explaining the Predictions of Any '
        "Classifier", ("B5",), "samples", "0",
    ),
    "occlusion": Facts(
        "Zeiler and Fergus 2014", "Visualizing and Understanding Convolutional Networks",
        (), "windows + 1", "0",
    ),
    "leave_one_out": Facts(
        "Li et al. 2016", "Understanding Neural Networks through Representation Erasure",
        ("B13",), "segments + 1", "0",
    ),
    "erasure": Facts(
        "Li et al. 2016", "Understanding Neural Networks through Representation Erasure",
        ("B13",), "segments + 1", "0",
    ),
    "tabular_lime": Facts(
        "Ribeiro et al. 2016", '"Why Should I Trust You?": Explaining the Predictions of Any '
        "Classifier", ("B5",), "samples", "0",
    ),
    "data_lime": Facts(
        "Ribeiro et al. 2016", '"Why Should I Trust You?": Explaining the Predictions of Any '
        "Classifier", ("X3",), "samples", "0",
    ),
    "kernel_shap": Facts(
        "Lundberg and Lee 2017", "A Unified Approach to Interpreting Model Predictions",
        ("B11",), "at most samples", "0",
    ),
    "exact_shapley": Facts(
        "Shapley 1953", "A Value for n-Person Games", ("B11",), "2 ** segments", "0",
    ),
    "visual_counterfactual": Facts(
        "Goyal et al. 2019", "Counterfactual Visual Explanations",
        ("B31",), "cells**2 a swap + 4", "0",
    ),
    "tree_shap": Facts(
        "Lundberg et al. 2020",
        "From Local Explanations to Global Understanding with Explainable AI for Trees",
        ("B11",), "1 where no class is given", "0", "internals",
    ),
    "meaningful_perturbation": Facts(
        "Fong and Vedaldi 2017",
        "Interpretable Explanations of Black Boxes by Meaningful Perturbation",
        ("B14",), "steps + 11", "steps",
    ),
    "masking_model": Facts(
        "Dabkowski and Gal 2017", "Real Time Image Saliency for Black Box Classifiers",
        ("B15",), "0, or 1 where no class is given", "0",
    ),
    "lemna": Facts(
        "Guo et al. 2018", "LEMNA: Explaining Deep Learning based Security Applications",
        ("B6",), "samples", "0",
    ),
    "random_map": Facts("none, a control", "", (), "0", "0"),
}  # fmt: skip
