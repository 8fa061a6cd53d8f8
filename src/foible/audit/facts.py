"""What code cannot say of a recipe: its paper, the rows of the survey, what it costs."""

from __future__ import annotations

from dataclasses import dataclass

_SURVEY = "Adversarial Attacks and Defenses: An Interpretation Perspective"


@dataclass(frozen=True)
class Facts:
    """cite, title: the paper; rows: of the survey's table; forwards, backwards: cost a sample,
    in the recipe's own parameters.
    """

    cite: str = ""
    title: str = ""
    rows: tuple[str, ...] = ()
    forwards: str = ""
    backwards: str = ""


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
    "least_likely": Facts(
        "Kurakin et al. 2017", "Adversarial Examples in the Physical World",
        ("A3",), "steps + 3", "steps",
    ),
    "pgd": Facts(
        "Madry et al. 2018",
        "Towards Deep Learning Models Resistant to Adversarial Attacks",
        ("S2", "S3", "S6"), "restarts * (steps + 1) + 2", "restarts * steps",
    ),
    "mim": Facts(
        "Dong et al. 2018", "Boosting Adversarial Attacks with Momentum",
        (), "steps + 3", "steps",
    ),
    "smoothgrad_attack": Facts(
        "Liu et al. 2020", f"{_SURVEY}, 3.1.1",
        ("A5",), "steps * (samples + 1) + 3", "steps * samples",
    ),
    "ig_deletion": Facts(
        "Liu et al. 2020", f"{_SURVEY}, Eq. 11 and 12",
        ("A6", "S8"), "50 + deleted features + 2", "50",
    ),
    "random_noise": Facts(
        "none, a control", "", (), "points + 2", "0",
    ),
    "curve": Facts(
        "none, bisection", "", (), "about log2(grid) runs of its attack", "the same",
    ),
    "bend": Facts(
        "Dombrowski et al. 2019",
        "Explanations Can Be Manipulated and Geometry Is to Blame",
        ("X4",), "3 * steps explanations", "3 * steps explanations",
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
    "smoothgrad": Facts(
        "Smilkov et al. 2017", "SmoothGrad: Removing Noise by Adding Noise",
        ("B2",), "samples", "samples",
    ),
    "integrated_gradients": Facts(
        "Sundararajan et al. 2017", "Axiomatic Attribution for Deep Networks",
        ("B3", "S8"), "steps", "steps",
    ),
    "lime": Facts(
        "Ribeiro et al. 2016", '"Why Should I Trust You?": Explaining the Predictions of Any '
        "Classifier", ("B5",), "samples", "0",
    ),
    "random_map": Facts("none, a control", "", (), "0", "0"),
}  # fmt: skip
