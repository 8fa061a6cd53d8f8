"""How the report writes numbers. What was not measured is said in words, never as zero."""

from __future__ import annotations

from fractions import Fraction

MISSING = "not measured"
NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
#: no line break between a figure and its unit
_NB = "\u00a0"


def percent(value: float | None) -> str:
    """A share as percent with one decimal.

    >>> percent(0.9214).replace("\u00a0", " "), percent(None)
    ('92.1 %', 'not measured')
    """
    return MISSING if value is None else f"{100 * value:.1f}{_NB}%"


def span(interval: tuple[float, float] | None) -> str:
    """An interval of shares, without the unit: "90.3 to 93.6"; empty if there is none."""
    return "" if interval is None else f"{100 * interval[0]:.1f}{_NB}to{_NB}{100 * interval[1]:.1f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits, in plain digits where they will do."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:.2e}"


def fraction(eps: float | None) -> str:
    """A size of perturbation: k/255 where it is one, otherwise the number itself.

    >>> fraction(8 / 255), fraction(0.1)
    ('8/255', '0.1')
    """
    if eps is None:
        return MISSING
    exact = Fraction(eps * 255).limit_denominator(1)
    if 0 < exact <= 64 and abs(eps * 255 - float(exact)) < 1e-9 and len(f"{eps:g}") > 5:
        return f"{exact}/255"
    return number(eps)


def count(value: float | None) -> str:
    """A count with commas; one decimal if it is no whole number (an average for each sample)."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def score(value: float | None) -> str:
    """A correlation or overlap with two decimals, and a true minus sign."""
    return MISSING if value is None else f"{value:.2f}".replace("-", "\u2212")


def short_hash(value: object) -> str:
    """The first twelve letters of a hash: enough to tell two models apart by eye."""
    digits = str(value).rpartition(":")[2]
    return digits if len(digits) <= 12 else f"{digits[:12]}…"
