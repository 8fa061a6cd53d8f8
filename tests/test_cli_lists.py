"""`foible list` and `foible show`: what they say is what the recipes are."""

from __future__ import annotations

from typing import Any

import pytest
from command_line import call, refused

import foible
from foible import attacks
from foible.attacks import Attack
from foible.audit import catalogue
from foible.core.threat import Threat


def test_list_holds_every_recipe() -> None:
    text = call("list")
    recipes = [n for n in (*attacks.__all__, *foible.explain.__all__) if n[0].islower()]
    figures = {
        "accuracy_without", "causal_model", "certify", "compare", "completeness",
        "comprehensiveness", "conjugate_gradient", "deletion", "edge_alignment", "explicit",
        "feature_noise", "gini", "patch_shuffled", "saturated", "texture_or_shape",
        "infidelity", "influence", "insertion", "lissa", "mimic", "neuron_effect", "of_logit",
        "randomisation", "rank_correlation", "retraining", "scale_of", "sensitivity", "stability",
        "sufficiency", "topk_intersection", "train_masks", "tree_shap",
    }  # fmt: skip
    for name in {*recipes, "Linf", "L2", "L1", "L0", "zoo:standard", "zoo:hardened"} - figures:
        assert f" {name} " in text, name
    listed = {entry.name for entry in catalogue.entries()}
    assert not listed & (figures | {"Ball", "Attack"})
    assert "Madry et al. 2018" in text
    assert "pgd" not in call("list", "explanations")
    assert "did you mean attacks" in refused("list", "attack")


def test_every_training_loss_and_wrapper_is_a_defence_of_the_list() -> None:
    from typing import get_type_hints

    from foible import defend

    made = {n for n in defend.__all__ if n[0].islower() and callable(getattr(defend, n))}
    losses = {
        n for n in made - {"plain"}
        if isinstance(kind := get_type_hints(getattr(defend, n)).get("return"), type)
        and issubclass(kind, defend.Loss)
    }  # fmt: skip
    listed = {entry.name: entry for entry in catalogue.entries("defences")}
    assert losses == {name for name, entry in listed.items() if entry.access == "training"}
    assert {"trades", "adversarial"} <= losses and listed["randomize"].access == "a model"
    assert "train" not in listed and "plain" not in listed
    text = call("show", "trades")
    assert "kind    defence" in text and "needs   training\n" in text and "R4" in text


def brand_new(threat: Threat, force: int = 3) -> Attack:
    """Return a brand new attack (Nobody et al. 2031, A99). More words."""
    return attacks.fgsm(threat)


def test_a_new_recipe_appears_by_itself(monkeypatch) -> None:
    monkeypatch.setattr(attacks, "brand_new", brand_new, raising=False)
    monkeypatch.setattr(attacks, "__all__", [*attacks.__all__, "brand_new"])
    entry = catalogue.find("brand-new")
    assert entry.line == "Return a brand new attack".removeprefix("Return ")
    assert (entry.access, entry.source, entry.facts.rows) == (
        "gradients", "Nobody et al. 2031", ("A99",),
    )  # fmt: skip
    text = call("show", "brand_new")
    assert "force   int     = 3" in text and "cost    not stated" in text


def test_show_tells_parameters_paper_access_and_cost() -> None:
    text = call("show", "PGD")
    for part in (
        "foible.attacks.pgd", "Madry et al. 2018, Towards Deep Learning", "gradients access",
        "restarts * (steps + 1) + 2 forwards, restarts * steps backwards a sample",
        "S2, S3, S6", "The strongest point on the way is returned",
    ):  # fmt: skip
        assert part in text
    assert any(line.split() == ["steps", "int", "=", "40"] for line in text.splitlines())
    assert any(line.split() == ["threat", "Threat", "needed"] for line in text.splitlines())
    assert "scores access" in call("show", "lime")
    assert "Every value may change by at most eps" in call("show", "linf")
    assert "test_accuracy" in call("show", "zoo:standard")


def test_an_unknown_name_gets_suggestions() -> None:
    assert "did you mean pgd" in refused("show", "pdg")
    assert "foible list" in refused("show", "xyzzy")


X, Y = foible.zoo.sample()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fgsm", {}),
        ("r_fgsm", {}),
        ("bim", {"steps": 2}),
        ("least_likely", {"steps": 2}),
        ("mim", {"steps": 3}),
        ("pgd", {"steps": 3, "restarts": 2}),
        ("smoothgrad_attack", {"steps": 2, "samples": 3}),
        ("random_noise", {"points": 4}),
    ],
)
def test_the_stated_cost_is_the_measured_one(name: str, options: dict[str, Any]) -> None:
    entry = catalogue.find(name, "attacks")
    assert entry.made is not None
    result = entry.made(foible.Linf(0.001), **options)(foible.zoo.load("standard"), X[:4], Y[:4])
    i = result.status.index("survived")
    stated = [eval(text, {}, options) for text in (entry.facts.forwards, entry.facts.backwards)]
    assert [int(result.forwards[i]), int(result.backwards[i])] == stated


def test_every_attack_and_explanation_states_paper_access_and_cost() -> None:
    for entry in [*catalogue.entries("attacks"), *catalogue.entries("explanations")]:
        assert entry.source and entry.access and entry.line and entry.facts.forwards, entry.name
