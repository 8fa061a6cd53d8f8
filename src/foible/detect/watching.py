"""Fitting a detector, and what comes of it: a watch that scores, has levels, and can be saved."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foible.attacks.base import Attack
from foible.core.access import Access
from foible.core.errors import InputError, LogError
from foible.core.files import replace_file
from foible.core.rows import per_row
from foible.core.spec import build, spec
from foible.detect.base import (
    Feature,
    Head,
    State,
    features_of,
    learned_of,
    named,
    part_of,
)
from foible.explain.base import check_bounds, check_inputs
from foible.models import as_model

SCHEMA = 1
HELD = 0.4  # the share of the clean inputs that levels are set on; the rest is learnt from


@dataclass(frozen=True)
class Level:
    """A level of suspicion for a rate of false alarms.

    value: what exceeds it is flagged. fpr: the rate that was asked for. interval: (low, high), a
    95 % interval of the level itself, from the order of the held-out scores; infinite where there
    are too few of them. n: how many held-out clean inputs it was set on.
    """

    value: float
    fpr: float
    interval: tuple[float, float]
    n: int


@dataclass(frozen=True)
class Detector:
    """A feature and a head, not fitted yet.

    noisy: whether clean inputs with Gaussian noise, in L2 as long as the adversarials' changes,
    count as clean ones, too (Feinman et al. 2017), so that it does not learn to see noise.
    dynamic: epochs of a Network head against an adversary that knows it (Metzen et al. 2017), after
    it has learnt from the attack that is given.
    """

    name: str
    feature: Feature
    head: Head
    noisy: bool = False
    dynamic: int = 0

    @property
    def access(self) -> Access:
        """What it asks of the model."""
        return max(self.feature.access, Access.SCORES)

    def fit(
        self,
        model: Any,
        clean: tuple[Tensor, Tensor],
        attack: Attack | None = None,
        adversarial: Tensor | None = None,
        *,
        seed: int = 0,
    ) -> Watch:
        """Fit to a model.

        clean: x (N, *shape) and true labels y (N,). Six tenths, chosen by the seed, are learnt
        from; the rest, of what the model gets right, sets the levels and is seen by nothing else.
        attack: makes the adversarials that a supervised head learns from, of which those count that
        truly fool the model. adversarial: (M, *shape) in its place, all of which count. A full-run
        attack (stop="never") is the one to learn from: what barely fools is another thing to
        detect.

        Raises InputError where a supervised head gets no adversarials, or the data are too few.
        """
        held = as_model(model)
        x, y = clean
        check_inputs(x)
        check_bounds(x, held.bounds)
        if len(x) < 10 or y.shape != (len(x),):
            raise InputError(
                f"{len(x)} clean inputs with labels {tuple(y.shape)}: give one label an input, and "
                "ten inputs at the very least"
            )
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        cut = int(len(x) * (1 - HELD))
        learn, out = order[:cut].sort().values, order[cut:].sort().values
        right = _right(held, x, y, seed)
        state = named(learned_of(self.feature, held, x[learn], y[learn], seed), "feature")
        known = part_of(state, "feature")
        good = x[learn][right[learn]]
        bad = self._bad(held, (x[learn], y[learn]), attack, adversarial, seed)
        if self.noisy and len(bad):
            good = torch.cat([good, noisy(good, bad, held.bounds, seed)])
        parts = [
            features_of(self.feature, held, part, known, seed) for part in (good, bad) if len(part)
        ]
        marks = torch.cat([torch.zeros(len(good)), torch.ones(len(bad))]).bool()
        told = self.head.learn(torch.cat(parts), marks.to(x.device), seed)
        state |= named(told, "head")
        if self.dynamic:
            from foible.detect.dynamics import hardened

            if attack is None:
                raise InputError(
                    f"{self.name} makes adversarials of its own as it learns: pass attack=, whose "
                    "threat they keep to"
                )
            made = hardened(self, held, (x[learn], y[learn]), state, attack.threat, seed)
            state |= named(made, "head")
        state = {k: v.contiguous() for k, v in state.items()}
        watch = Watch(self, state)
        kept = out[right[out]]
        if len(kept) == 0:
            raise InputError(
                "the model is right on none of the held-out inputs: no level can be set"
            )
        state["levels"] = watch.score(held, x[kept], seed=seed).double().sort().values
        if watch.stands_in:
            found = features_of(self.feature.soft(), held, x[kept], known, seed)
            soft = self.head.soft(found, part_of(state, "head"))
            state["soft_levels"] = soft.double().sort().values
        return watch

    def _bad(
        self,
        model: Any,
        clean: tuple[Tensor, Tensor],
        attack: Attack | None,
        adversarial: Tensor | None,
        seed: int,
    ) -> Tensor:
        x, y = clean
        if not self.head.supervised:
            return x[:0]
        if adversarial is not None:
            check_inputs(adversarial)
            check_bounds(adversarial, model.bounds)
            if adversarial.shape[1:] != x.shape[1:]:
                raise InputError(
                    f"adversarials have shape {tuple(adversarial.shape[1:])} and clean inputs "
                    f"{tuple(x.shape[1:])}: give what was made of such inputs"
                )
            bad = adversarial.to(x)
        elif attack is not None:
            result = attack(model, x, y, seed=seed)
            bad = result.x[result.success & result.attacked.to(result.success.device)]
        else:
            raise InputError(
                f"{self.name} learns from adversarials: pass attack=, e.g. "
                "foible.attacks.pgd(foible.Linf(0.1)), or adversarial="
            )
        if len(bad) < 5:
            raise InputError(
                f"{len(bad)} adversarials fool the model, too few to learn from: take a stronger "
                "attack, a larger eps or more clean inputs"
            )
        return bad


@dataclass(frozen=True)
class Watch:
    """A fitted detector; made by `Detector.fit` or `load`. state: all that it learnt."""

    detector: Detector
    state: State

    def score(self, model: Any, x: Tensor, *, seed: int = 0, ids: Tensor | None = None) -> Tensor:
        """Return how suspect each input is, (B,) float: higher is more suspect.

        model: the one that it was fitted to. x: (B, *shape) in the model's bounds. seed, ids: key
        the randomness of features that draw.
        """
        check_inputs(x)
        if len(x) == 0:
            return x.new_zeros(0)
        found = features_of(
            self.detector.feature, model, x, part_of(self.state, "feature"), seed, ids
        )
        return self.detector.head(found, part_of(self.state, "head"))

    @property
    def stands_in(self) -> bool:
        """Whether a search follows another score than the detector's own, in units of its own."""
        made = self.detector
        return made.feature.differentiable and not (
            made.head.differentiable and made.feature.soft() == made.feature
        )

    def threshold(self, fpr: float = 0.05, *, soft: bool = False) -> Level:
        """Return the level that a share `fpr` of held-out clean inputs exceeds.

        Of n of them: a new clean input exceeds it with probability (fpr * n + 1) / (n + 1) at the
        most, over all draws of both: a little more than fpr, and far more where n is small.
        soft: the level of the score that a search follows in its place.

        >>> # watch.score(model, x) > watch.threshold(0.05).value  flags what is suspect
        """
        if not 0 < fpr < 1:
            raise InputError(f"fpr={fpr}: a rate of false alarms in (0, 1)")
        scores = self.state["soft_levels" if soft and self.stands_in else "levels"]
        n = len(scores)
        place = min(n - 1, math.ceil((1 - fpr) * n) - 1)
        # The scores between which the true quantile lies, by the binomial's normal approximation.
        wide = 1.96 * math.sqrt(n * fpr * (1 - fpr))
        low, high = math.floor((1 - fpr) * n - wide) - 1, math.ceil((1 - fpr) * n + wide)
        return Level(
            float(scores[place]), fpr,
            (float(scores[low]) if low >= 0 else -math.inf,
             float(scores[high]) if high < n else math.inf), n,
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the watch as safetensors: tensors, and the detector as plain data.

        Whole or not at all. Raises LogError where the disk does not take it.
        """
        from safetensors.torch import save

        path = Path(path)
        told = {
            "foible": "detector",
            "schema": str(SCHEMA),
            "detector": json.dumps(spec(self.detector)),
        }
        held = save({k: v.detach().cpu().contiguous() for k, v in self.state.items()}, told)
        try:
            replace_file(path, held)
        except OSError as error:
            raise LogError(f"the detector could not be written to {path} ({error})") from error


def load(path: str | Path) -> Watch:
    """Read a saved watch; no code of the file runs, and its scores are bit for bit the same.

    Raises LogError for a file that is no detector of foible's, is cut short, or is newer.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(path), "pt") as file:
            told = file.metadata() or {}
            # Copied to where torch would put it: BLAS gives other last bits at odd addresses.
            state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise LogError(f"{path} cannot be read as a detector ({error})") from error
    if told.get("foible") != "detector":
        raise LogError(f"{path} holds tensors, but no detector of foible's")
    if told.get("schema") != str(SCHEMA):
        raise LogError(f"{path} has schema {told.get('schema')}, this foible reads {SCHEMA}")
    try:
        held = json.loads(told["detector"])
    except (KeyError, ValueError) as error:
        raise LogError(f"{path} does not say which detector it is ({error!r})") from error
    if strange := sorted(set(_strangers(held))):
        raise LogError(
            f"{path} names {', '.join(strange)}: only parts of foible's own are built from a file"
        )
    try:
        made = build(held)
    except InputError as error:
        raise LogError(f"{path} holds a detector that cannot be built: {error}") from error
    parts = (getattr(made, "feature", None), getattr(made, "head", None))
    fits = isinstance(parts[0], Feature) and isinstance(parts[1], Head)
    if not isinstance(made, Detector) or not fits or not len(state.get("levels", ())):
        raise LogError(f"{path} does not hold a fitted detector: a feature, a head and levels")
    return Watch(made, state)


def _strangers(told: Any) -> Iterator[str]:
    """Yield what a spec names that is no part of foible's: such code is never imported."""
    if isinstance(told, dict):
        for key, value in told.items():
            if key in ("part", "function") and not str(value).startswith("foible."):
                yield str(value)
            yield from _strangers(value)
    elif isinstance(told, list):
        for value in told:
            yield from _strangers(value)


def _right(model: Any, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """Return which inputs (B,) bool the model gets right."""
    found: list[Tensor] = []
    with model.session(seed), torch.no_grad():
        for a, b in zip(x.split(model.chunk(x)), y.to(x.device).split(model.chunk(x)), strict=True):
            found.append(model.scores(a).argmax(1) == b)
    return torch.cat(found)


def noisy(good: Tensor, bad: Tensor, bounds: Sequence[float], seed: int) -> Tensor:
    """Return clean inputs (N, *shape) with Gaussian noise, cut to the bounds.

    Before it is cut it is as long, in L2, as adversarials are from their nearest clean input, in
    the median.
    """
    length = torch.cdist(bad.flatten(1), good.flatten(1)).amin(1).median()
    rng = torch.Generator().manual_seed(seed + 1)
    noise = torch.randn(good.shape, generator=rng, dtype=good.dtype).to(good.device)
    size = noise.flatten(1).norm(dim=1).clamp_min(1e-12)
    return (good + per_row(length / size, good) * noise).clamp(*bounds)
