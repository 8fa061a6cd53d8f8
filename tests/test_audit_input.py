"""What an audit refuses: data, models, damaged folders and plans; and plans as TOML."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from typing import Any

import pytest
import torch
from audit_helpers import NOTHING, TINY, audit, mlp, no_page, table
from torch import Tensor, nn

from foible.audit import Plan
from foible.core.errors import FoibleError, InputError, LogError, ModelError

__all__ = ["no_page"]  # a fixture

# --- refused in time


class Untouched(nn.Module):
    """A model that must not be called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("called")


def nan_at(x: Tensor) -> Tensor:
    x = x.clone()
    x[2, 3] = float("nan")
    return x


BAD: dict[str, tuple[Any, str]] = {
    "nan": (lambda x, y: (nan_at(x), y), "NaN"),
    "one class": (lambda x, y: (x, torch.zeros_like(y)), "all 40 labels are class 0.*two classes"),
    "empty": (lambda x, y: (x[:0], y[:0]), "empty"),
    "negative": (lambda x, y: (x, y - 1), "-1"),
    "floats": (lambda x, y: (x, y.float()), "int64"),
    "one-hot": (lambda x, y: (x, torch.eye(3)[y].long()), "one class number a sample"),
    "bounds": (lambda x, y: (x * 255, y), r"bounds=\(0, 255\)"),
    "no pair": (lambda x, y: x, "pair"),
    "lengths": (lambda x, y: (x, y[:-1]), "39"),
    "bytes": (lambda x, y: ((x * 255).byte(), y), "float"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_refused_before_any_work(tmp_path, no_page, name: str) -> None:
    change, said = BAD[name]
    with pytest.raises((InputError, TypeError), match=said) as error:
        audit(tmp_path / "run", model=Untouched(), data=change(*table()))
    assert isinstance(error.value, FoibleError)
    assert not (tmp_path / "run").exists()


def test_bad_models_are_refused_before_any_work(tmp_path, no_page) -> None:
    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return mlp()(x) * float("nan")

    x, y = table()
    spoiled = Untouched()
    spoiled.weight.data.fill_(float("nan"))
    cases: list[tuple[Any, type[Exception], str]] = [
        (spoiled, InputError, "weight 'weight' of 'model' is NaN.*checkpoint"),
        (mlp(classes=2), InputError, "y holds class 2 and the model has classes 0..1"),
        (mlp(classes=1), InputError, 'outputs="logit"'),
        (Nan(), ModelError, "NaN"),
        (lambda v: v, TypeError, "wrap"),
    ]
    for model, kind, said in cases:
        with pytest.raises(kind, match=said):
            audit(tmp_path / "run", model=model, data=(x, y))
        assert not (tmp_path / "run").exists()


def test_a_folder_with_a_damaged_log_is_left_as_it_is(tmp_path, no_page) -> None:
    audit(tmp_path)
    log, plan = tmp_path / "log.jsonl", (tmp_path / "plan.json").read_bytes()
    log.write_bytes(b"{broken\n" + log.read_bytes())
    held = log.read_bytes()
    with pytest.raises(LogError, match="byte 0"):
        audit(tmp_path, replace(TINY, eps=0.2))
    assert log.read_bytes() == held and (tmp_path / "plan.json").read_bytes() == plan


# --- plans


MODELS = [{"name": 'a "quoted" 😀 é\x7f', "source": "my.net:make", "bounds": [-math.inf, 255.0],
           "mean": [0.1, 1e-05], "weights": None}]  # fmt: skip
DATA = {"source": "images.npz", "classes": ["T-shirt/top", "<b>"]}
PLANS = [
    Plan.preset("quick"),
    Plan.preset("full", eps=8 / 255, seed=7, samples=50),
    NOTHING,
    replace(TINY, eps=1e-7, thresholds=({"what": "robust", "norm": "l1", "at_least": 0.25},),
            attacks=({"name": "p", "recipe": "pgd", "norm": "l2", "eps": 0.5, "restarts": 2,
                      "objective": "margin"},)),
]  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_written_is_the_plan_read(plan: Plan) -> None:
    text = plan.to_toml(MODELS, DATA, "runs/é")
    again, rest = Plan.from_toml(text)
    assert again == plan
    given = [{k: v for k, v in table.items() if v is not None} for table in MODELS]
    assert rest == {"models": given, "data": DATA, "out": "runs/é"}
    assert again.to_toml(rest["models"], rest["data"], rest["out"]) == text
    assert set(tomllib.loads(text)) >= {"eps", "seed", "samples", "curves", "checks"}


def test_a_short_file_changes_only_what_it_names() -> None:
    plan, rest = Plan.from_toml('eps = 0.2\ncurves = ["l1"]\nchecks = false\n')
    assert rest == {}
    assert plan == replace(Plan.preset("quick"), eps=0.2, curves=("l1",), checks=False)
    assert Plan.from_toml('preset = "full"')[0] == Plan.preset("full")
    assert Plan.from_toml("attacks = []")[0].attacks == ()


def attack(**more: Any) -> str:
    table = {"name": "a", "recipe": "fgsm", "norm": "linf", **more}
    return Plan("quick", attacks=(table,)).to_toml([], {}, "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("eps = ", "not valid TOML"),
        ("epsilon = 0.1\nspeed = 2", "holds epsilon, speed, which no plan has.*eps"),
        ('preset = "slow"', "'slow': choose quick or full"),
        ("eps = 0", "eps is 0: give a positive"),
        ("eps = -0.1", "eps is -0.1"),
        ("eps = nan", "eps is nan"),
        ("eps = inf", "eps is inf"),
        ('eps = "8/255"', "eps is '8/255'"),
        ('seed = "x"', "seed is 'x': give a whole number"),
        ("samples = 1.5", "samples is 1.5"),
        ("samples = 1", "samples is 1: at least 2"),
        ('curves = ["l7"]', "no curve for norm 'l7': choose linf"),
        ('curves = "linf"', "curves is 'linf': give a list of names"),
        ("attacks = 3", "attacks is 3: give a list of tables"),
        ('explanations = ["tea"]', "'tea': choose saliency"),
        ('[[attacks]]\nname = "a"\nnorm = "linf"', "lacks recipe"),
        (attack(recipe="magic"), "no attack is called 'magic'.*foible list"),
        (attack(norm="l7"), "no norm is called 'l7'"),
        (attack(eps=-1), "eps is -1"),
        (attack(name="clean"), "'clean', which is another cell's name"),
        (attack(name="curve-linf"), "another cell's name.*fgsm-linf"),
        (attack() + attack().partition("[data]")[2], "two attacks are called 'a'"),
        ('[[thresholds]]\nwhat = "accuracy"\natleast = 0.5', "cannot be judged.*at_least"),
        ('[[thresholds]]\nwhat = "accuracy"', "cannot be judged"),
        ('[[thresholds]]\nwhat = "accuracy"\nat_least = "0.5"', "cannot be judged"),
    ],
)
def test_what_no_plan_can_be_is_told(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Plan.from_toml(text)


def test_a_plan_made_in_python_is_checked_by_the_audit(tmp_path, no_page) -> None:
    for bad in (replace(TINY, eps=-1.0), replace(TINY, attacks=(*TINY.attacks, TINY.attacks[0]))):
        with pytest.raises(InputError):
            audit(tmp_path / "run", bad)
        assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="eps is 0"):
        Plan.preset(eps=0)
    with pytest.raises(InputError, match="'slow'"):
        Plan.preset("slow")


def test_radii_follow_the_size_of_the_input() -> None:
    plan = Plan.preset()
    assert [plan.radius(n, 784) for n in ("linf", "l2", "l1")] == [0.1, 1.0, 10.0]
    assert plan.radius("l2", 784 * 4) == 2.0 and plan.radius("l1", 784 * 4) == 41.0
    with pytest.raises(InputError, match="set eps"):
        plan.radius("l0", 784)


def test_both_presets_have_the_cascades_and_their_parameters_are_known() -> None:
    for name in ("quick", "full"):
        plan = Plan.preset(name)
        plan.validate()
        recipes = {(t["recipe"], t["norm"]) for t in plan.attacks}
        assert {("strongest", "linf"), ("strongest", "l2")} <= recipes
    full = {t["recipe"] for t in Plan.preset("full").attacks}
    assert {"autoattack", "square", "hop_skip_jump"} <= full
    tables = [
        {"name": "s", "recipe": "strongest", "norm": "l2", "eps": 0.5, "budget": 500},
        {"name": "a", "recipe": "autoattack", "norm": "linf", "version": "rand"},
    ]
    replace(Plan(), attacks=tuple(tables)).validate()
    tables[0]["steps"] = 5
    with pytest.raises(InputError, match="'s' cannot be made: strongest"):
        replace(Plan(), attacks=tuple(tables)).validate()
