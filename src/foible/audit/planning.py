"""The plan of an audit: which attacks, explanations, checks and thresholds; as TOML, too."""

from __future__ import annotations

import inspect
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foible.core.errors import InputError

PRESETS = ("quick", "full")
EXPLAINERS = ("saliency", "gradient_x_input", "smoothgrad", "integrated_gradients")
DEFAULT_EPS = 0.1
NORMS = ("linf", "l2", "l1", "l0")
RESERVED = re.compile(r"clean$|strips$|(breaker|curve|thesis|stability|check|explain)-")


@dataclass(frozen=True)
class Plan:
    """What an audit does, as plain values.

    name: the preset it came from. eps: the Linf radius, in units of the input; L2 and L1 follow
    from it (`radius`) unless an attack sets its own. samples: at most this many of the data.
    attacks: tables {name, recipe, norm, eps?, ...options of the recipe}. curves: norms.
    explanations: names of explainers. thesis, gallery (explanations side by side), checks: whether
    these pages are made.
    thresholds: tables {what: "accuracy" | "robust", norm?, at_least}.
    """

    name: str = "quick"
    eps: float = DEFAULT_EPS
    seed: int = 0
    samples: int = 1000
    attacks: tuple[Mapping[str, Any], ...] = ()
    curves: tuple[str, ...] = ("linf", "l2")
    explanations: tuple[str, ...] = EXPLAINERS
    thesis: bool = True
    gallery: bool = True
    checks: bool = True
    thresholds: tuple[Mapping[str, Any], ...] = ()

    @staticmethod
    def preset(
        name: str = "quick",
        *,
        eps: float | None = None,
        seed: int = 0,
        samples: int | None = None,
    ) -> Plan:
        """Return a named plan: "quick" or "full".

        Quick takes two to five minutes for both bundled models on two cores.

        >>> Plan.preset("quick", eps=8 / 255).attacks[0]["name"]
        'random-linf'
        """
        if name not in PRESETS:
            raise InputError(f"no preset is called {name!r}: choose {' or '.join(PRESETS)}")
        full = name == "full"
        attacks: list[dict[str, Any]] = [
            {"name": "random-linf", "recipe": "random_noise", "norm": "linf", "points": 1},
            {"name": "fgsm-linf", "recipe": "fgsm", "norm": "linf"},
            {"name": "r_fgsm-linf", "recipe": "r_fgsm", "norm": "linf"},
            {"name": "smoothgrad-linf", "recipe": "smoothgrad_attack", "norm": "linf"},
            {"name": "mim-linf", "recipe": "mim", "norm": "linf"},
            {"name": "pgd-linf", "recipe": "pgd", "norm": "linf", "steps": 40},
            _margin("linf", full),
            _strongest("linf", full),
            {"name": "random-l2", "recipe": "random_noise", "norm": "l2", "points": 1},
            _strongest("l2", full),
            {
                "name": "apgd-l1",
                "recipe": "apgd",
                "norm": "l1",
                "objective": "margin",
                "restarts": 5 if full else 1,
                "stop": "success",
            },
        ]
        if full:
            attacks += [
                {"name": "bim-linf", "recipe": "bim", "norm": "linf"},
                {"name": "least_likely-linf", "recipe": "least_likely", "norm": "linf"},
                {"name": "pgd-dlr-linf", "recipe": "pgd", "norm": "linf", "steps": 100,
                 "objective": "dlr", "stop": "success"},
                {"name": "autoattack-linf", "recipe": "autoattack", "norm": "linf"},
                {"name": "square-linf", "recipe": "square", "norm": "linf", "queries": 1000},
                {"name": "hop_skip_jump-linf", "recipe": "hop_skip_jump", "norm": "linf",
                 "queries": 1000},
                {"name": "fgsm-l2", "recipe": "fgsm", "norm": "l2"},
                _margin("l2", full),
                {"name": "autoattack-l2", "recipe": "autoattack", "norm": "l2"},
                {"name": "hop_skip_jump-l2", "recipe": "hop_skip_jump", "norm": "l2",
                 "queries": 1000},
                {"name": "strongest-l1", "recipe": "strongest", "norm": "l1"},
            ]  # fmt: skip
        thresholds = (
            {"what": "accuracy", "at_least": 0.8},
            {"what": "robust", "norm": "linf", "at_least": 0.5},
        )
        return Plan(
            name,
            DEFAULT_EPS if eps is None else _positive(eps),
            seed,
            (10_000 if full else 1000) if samples is None else samples,
            tuple(attacks),
            ("linf", "l2", "l1") if full else ("linf", "l2"),
            thresholds=thresholds,
        )

    def radius(self, norm: str, features: int) -> float:
        """Return the eps of a norm for inputs of so many features.

        L2 and L1 default to what makes them about as strong as Linf: 0.36 eps sqrt(d) and
        0.13 eps d, to two digits (for eps 0.1 on 784 pixels: 1.0 and 10). Set eps in an attack's
        table to choose otherwise.
        """
        if norm == "linf":
            return self.eps
        size = {"l2": 0.36 * math.sqrt(features), "l1": 0.13 * features}.get(norm)
        if size is None:
            raise InputError(f"no default eps for norm {norm!r}: set eps in the attack's table")
        return float(f"{self.eps * size:.2g}")

    def to_toml(
        self, models: Sequence[Mapping[str, Any]], data: Mapping[str, Any], out: str
    ) -> str:
        """Write the plan with its models and data as a TOML file that `from_toml` reads."""
        lines = ["# A plan for `foible audit --plan`: every line may be changed.", ""]
        lines += _table({"out": out, "preset": self.name, "eps": self.eps, "seed": self.seed,
                         "samples": self.samples, "curves": list(self.curves),
                         "explanations": list(self.explanations), "thesis": self.thesis,
                         "gallery": self.gallery, "checks": self.checks})  # fmt: skip
        # Without a table the preset's would be read.
        lines += [f"{k} = []" for k in ("attacks", "thresholds") if not getattr(self, k)]
        lines += ["", "[data]", *_table(data)]
        for name, tables in (
            ("models", models), ("attacks", self.attacks), ("thresholds", self.thresholds),
        ):  # fmt: skip
            for table in tables:
                lines += ["", f"[[{name}]]", *_table(table)]
        return "\n".join(lines) + "\n"

    @staticmethod
    def from_toml(text: str) -> tuple[Plan, dict[str, Any]]:
        """Read a plan; returns it and the file's other tables: models, data, out.

        Raises InputError for a file that is not TOML or holds keys that no plan has.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"the plan is not valid TOML: {error}") from error
        rest: dict[str, Any] = {
            key: table.pop(key) for key in ("models", "data", "out") if key in table
        }
        name = table.pop("preset", "quick")
        plan = Plan.preset(name)
        known = {"eps", "seed", "samples", "attacks", "curves", "explanations", "thesis",
                 "gallery", "checks", "thresholds"}  # fmt: skip
        unknown = sorted(set(table) - known)
        if unknown:
            raise InputError(
                f"the plan holds {', '.join(unknown)}, which no plan has: it knows "
                f"{', '.join(sorted(known | {'preset', 'out', 'models', 'data'}))}"
            )
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in table.items()
        }
        plan = replace(plan, **values)
        plan.validate()
        return plan, rest

    def validate(self) -> None:
        """Raise InputError for names that do not exist and values that cannot be."""
        from foible import attacks

        _positive(self.eps)
        self._validate_kinds()
        for norm in self.curves:
            if norm not in ("linf", "l2", "l1"):
                raise InputError(f"no curve for norm {norm!r}: choose linf, l2, l1")
        for explainer in self.explanations:
            if explainer not in EXPLAINERS:
                raise InputError(
                    f"no stability page for {explainer!r}: choose {', '.join(EXPLAINERS)}"
                )
        seen: set[str] = set()
        for table in self.attacks:
            missing = {"name", "recipe", "norm"} - set(table)
            if missing:
                raise InputError(f"the attack {dict(table)} lacks {', '.join(sorted(missing))}")
            if RESERVED.match(str(table["name"])):
                raise InputError(
                    f"an attack is called {table['name']!r}, which is another cell's name: name it "
                    f"otherwise, for example {table['recipe']}-{table['norm']}"
                )
            if table["norm"] not in NORMS:
                raise InputError(f"no norm is called {table['norm']!r}: choose {', '.join(NORMS)}")
            if "eps" in table:
                _positive(table["eps"])
            if table["name"] in seen:
                raise InputError(f"two attacks are called {table['name']!r}: names must differ")
            seen.add(table["name"])
            if table["recipe"] not in attacks.__all__:
                raise InputError(f"no attack is called {table['recipe']!r}: see `foible list`")
            options = {k: v for k, v in table.items() if k not in ("name", "recipe", "norm", "eps")}
            try:
                inspect.signature(getattr(attacks, table["recipe"])).bind(None, **options)
            except TypeError as error:
                raise InputError(
                    f"the attack {table['name']!r} cannot be made: {table['recipe']} has {error}; "
                    f"`foible show {table['recipe']}` lists its parameters"
                ) from error

    def _validate_kinds(self) -> None:
        for name, least in (("seed", None), ("samples", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"{name} is {value!r}: give a whole number")
            if least is not None and value < least:
                raise InputError(f"{name} is {value}: at least {least}, so that two classes fit")
        for name in ("curves", "explanations", "attacks", "thresholds"):
            value = getattr(self, name)
            kind = str if name in ("curves", "explanations") else Mapping
            if not isinstance(value, tuple | list) or not all(isinstance(v, kind) for v in value):
                what = "names" if kind is str else "tables"
                raise InputError(f"{name} is {value!r}: give a list of {what}")
        for table in self.thresholds:
            unknown = sorted(set(table) - {"what", "norm", "cell", "model", "at_least"})
            least = table.get("at_least")
            if unknown or not isinstance(least, int | float) or isinstance(least, bool):
                raise InputError(
                    f"the threshold {dict(table)} cannot be judged: it needs what, norm or cell, "
                    'and a number at_least, e.g. {what = "robust", norm = "linf", '
                    "at_least = 0.5}"
                )


def _strongest(norm: str, full: bool) -> dict[str, Any]:
    # So many calls a sample find what the full budget finds but for a few tenths of a point.
    limit = {} if full else {"budget": 100 if norm == "linf" else 200}
    return {"name": f"strongest-{norm}", "recipe": "strongest", "norm": norm, **limit}


def _margin(norm: str, full: bool) -> dict[str, Any]:
    return {"name": f"pgd-margin-{norm}", "recipe": "pgd", "norm": norm,
            "steps": 100 if full else 40, "restarts": 5 if full else 1, "objective": "margin",
            "stop": "success"}  # fmt: skip


def _positive(eps: Any) -> float:
    if not isinstance(eps, int | float) or not (math.isfinite(eps) and eps > 0):
        raise InputError(f"eps is {eps!r}: give a positive number in the units of the input")
    return float(eps)


def _table(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in table.items() if value is not None]


def _toml(value: Any) -> str:
    """JSON's strings, booleans and finite numbers are TOML's; an escaped surrogate is not."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf, -inf, nan
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
