"""What `foible list` and `foible show` know of every recipe.

Names, parameters, access and one-line texts are read off the recipes themselves, so a new one
appears here at once; `FACTS` adds what code cannot say: papers, rows of the survey, costs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

from foible.audit.facts import FACTS, Facts
from foible.core.errors import InputError

KINDS = ("attacks", "explanations", "defences", "detectors", "threats", "models")
_ROW = re.compile(r"\b([ABCDLNPRSTX]\d{1,2})\b")
_CITE = re.compile(r"[A-Z][\w'-]+(?: (?:et al\.|and [A-Z][\w'-]+))? (?:19|20)\d\d")
_ASIDE = re.compile(r"\s*\([^()]*(?:survey|Eq\.|\b[A-Z]\d{1,2}\b|\b(?:19|20)\d\d\b)[^()]*\)")


@dataclass(frozen=True)
class Entry:
    """One thing that foible has.

    kind: one of KINDS. line: what it is, in a few words. access: what it asks of a model, ""
    where that means nothing. parameters: (name, type, default). doc: its whole docstring.
    made: what is called to get it.
    """

    kind: str
    name: str
    line: str
    access: str
    facts: Facts
    doc: str
    parameters: tuple[tuple[str, str, str], ...] = ()
    made: Callable[..., Any] | None = None

    @property
    def source(self) -> str:
        """The paper, as far as it is known."""
        return ", ".join(part for part in (self.facts.cite, self.facts.title) if part)


def entries(kind: str | None = None) -> list[Entry]:
    """Return everything of one kind, or all of them in the order of KINDS.

    >>> [e.name for e in entries("threats")][:6]
    ['Added', 'Deletion', 'Features', 'Kept', 'L0', 'L1']
    """
    if kind is not None and kind not in KINDS:
        close = get_close_matches(kind, KINDS, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else f"choose {', '.join(KINDS)}"
        raise InputError(f"there is no list of {kind!r}: {hint}")
    made = {"attacks": _attacks, "explanations": _explanations, "threats": _threats}
    made |= {"models": _models, "defences": _defences, "detectors": _detectors}
    return [entry for k in KINDS if kind in (None, k) for entry in made[k]()]


def find(name: str, kind: str | None = None) -> Entry:
    """Return the entry of a name; case, "-" for "_" and a prefix like "attacks." do not matter.

    Raises InputError with names that are close.

    >>> find("attacks.PGD").access
    'gradients'
    """
    wanted = _plain(name)
    # A threat may share its name with the attack inside it: the attack comes first.
    known = {_plain(entry.name): entry for entry in reversed(entries(kind))}
    if wanted in known:
        return known[wanted]
    close = [known[n].name for n in get_close_matches(wanted, known, 3, 0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else "`foible list` shows all names"
    what = (kind or "recipes, threats and models").removesuffix("s") if kind else "recipe"
    raise InputError(f"there is no {what} called {name!r}: {hint}")


def _plain(name: str) -> str:
    return re.split(r"[.:]", name.strip())[-1].lower().replace("-", "_")


def _attacks() -> Iterator[Entry]:
    from foible import attacks

    for name, function in _functions(attacks):
        returned = get_type_hints(function).get("return")
        if isinstance(returned, type) and returned.__module__.startswith("foible.attacks"):
            access = _access(_example(function)) or FACTS.get(name, Facts()).access
            yield _entry("attacks", name, function, access)


def _explanations() -> Iterator[Entry]:
    from foible import explain

    for name, function in _functions(explain):
        returned = get_type_hints(function).get("return")
        kinds = (explain.Explanation, explain.VisualCounterfactual)
        trains = "model" in inspect.signature(function).parameters
        if isinstance(returned, type) and issubclass(returned, kinds) and not trains:
            yield _entry("explanations", name, function, _access(_example(function)))


def _defences() -> Iterator[Entry]:
    """What trains a net, changes one, or stands in front of one; helpers of these are left out."""
    import torch

    from foible import defend
    from foible.models import TorchModel

    for name, function in _functions(defend):
        returned = get_type_hints(function).get("return")
        if not isinstance(returned, type) or name in ("train", "plain", "plain_again"):
            continue
        first = next(iter(inspect.signature(function).parameters), "")
        if issubclass(returned, defend.Loss):
            yield _entry("defences", name, function, "training")
        elif first in ("model", "net") and issubclass(returned, torch.nn.Module | TorchModel):
            yield _entry("defences", name, function, "a net" if first == "net" else "a model")


def _detectors() -> Iterator[Entry]:
    from foible import detect

    for name, function in _functions(detect):
        if get_type_hints(function).get("return") is detect.Detector:
            yield _entry("detectors", name, function, function().access.name.lower())


def _threats() -> Iterator[Entry]:
    from foible.core.threat import Threat
    from foible.parts import threats

    for name in sorted(threats.__all__):
        kind = getattr(threats, name)
        if isinstance(kind, type) and issubclass(kind, Threat) and not inspect.isabstract(kind):
            yield _entry("threats", name, kind, "")


def _models() -> Iterator[Entry]:
    from foible.zoo.bundled import MODELS, WEAK, notes

    for name in MODELS + WEAK:
        made = notes("weights", name)
        clean, robust = made.get("test_accuracy"), made.get("pgd40_eps_0.1_first_1000")
        line = "small CNN for Fashion-MNIST, (1, 28, 28) in [0, 1], 10 classes"
        if isinstance(clean, int | float) and isinstance(robust, int | float):
            line += f"; accuracy {clean:.1%}, {robust:.1%} under PGD at Linf 0.1"
        if name in WEAK:
            line = "weak defence, known to be broken: " + line
        doc = "\n".join(f"{key}: {value}" for key, value in made.items())
        yield Entry("models", f"zoo:{name}", line, "", Facts(), doc)


def _functions(package: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in sorted(package.__all__):
        thing = getattr(package, name)
        if inspect.isfunction(thing):
            yield name, thing


def _entry(kind: str, name: str, thing: Callable[..., Any], access: str) -> Entry:
    doc = inspect.getdoc(thing) or ""
    facts = FACTS.get(name)
    if facts is None:
        cite = _CITE.search(doc)
        facts = Facts(cite[0] if cite else "", rows=tuple(dict.fromkeys(_ROW.findall(doc))))
    return Entry(kind, name, _line(doc), access, facts, doc, _parameters(thing), thing)


def _line(doc: str) -> str:
    """Take the first sentence without "Return" and without citations."""
    start = _ASIDE.sub("", " ".join(doc.split("\n\n")[0].split()))
    sentence = re.split(r"\.(?:\s|$)", start)[0].removeprefix("Return ")
    return sentence.removeprefix("the ")


def _parameters(thing: Callable[..., Any]) -> tuple[tuple[str, str, str], ...]:
    found = []
    for name, parameter in inspect.signature(thing).parameters.items():
        kind = parameter.annotation
        kind = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
        empty = parameter.default is inspect.Parameter.empty
        found.append((name, kind, "needed" if empty else repr(parameter.default)))
    return tuple(found)


def _example(function: Callable[..., Any]) -> Any:
    """Build a recipe with its defaults, to ask it what it needs; None where that fails."""
    import torch

    from foible.attacks import pgd
    from foible.core.errors import KindError
    from foible.explain import saliency
    from foible.parts.threats import L0, L1, L2, Linf

    stock: dict[str, Callable[[], Any]] = {
        "attack": lambda: pgd(Linf(0.1)),
        "explainer": saliency,
        "autoencoder": lambda: torch.nn.Identity().eval(),
        "eps": lambda: [0.1],
        "data": lambda: torch.zeros(2, 2),
    }
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    if not set(needed) <= {*stock, "threat"}:
        return None
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: Linf(0.1), lambda: L2(0.1), lambda: L1(0.1), lambda: L0(1.0),
    )  # fmt: skip
    for threat in kinds:
        stock["threat"] = threat
        try:
            return function(**{name: stock[name]() for name in needed})
        except KindError:  # made for another norm
            continue
    return None


def _access(example: Any) -> str:
    for thing in (example, getattr(example, "attack", None), getattr(example, "explainer", None)):
        access = getattr(thing, "access", None)
        if access is not None:
            return str(access.name).lower()
    return ""
