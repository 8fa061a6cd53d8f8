"""What the sections of benchmarks/detectors.py share: the images, the adversarials, the tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from common import Section, Setting, images, load, percent
from torch import Tensor, nn

import foible
from foible.attacks import Attack, Result, pgd
from foible.detect import Crafted, Detector, Watch, Worth, crafted, evaluate
from foible.parts.statistics import auc

BAR = ("what", "measured", "bar", "verdict")
WAYS = ("n", "fools", "AUC", "caught at 5 %", "caught at 1 %")
EPS, FITTED = 0.1, 2000
THREAT = foible.Linf(EPS)


class Once:
    """An attack whose results are kept while this process lives: detectors share their data."""

    def __init__(self, attack: Attack) -> None:
        self.attack, self.threat = attack, attack.threat
        self.known: dict[tuple[int, float], Result] = {}

    def __call__(self, model: object, x: Tensor, y: Tensor, *, seed: int = 0) -> Result:
        key = (len(x), float(x.double().sum()))
        if key not in self.known:
            self.known[key] = self.attack(model, x, y, seed=seed)
        return self.known[key]


@dataclass(frozen=True)
class Ground:
    """The bundled standard model; images to fit on, and others to judge on.

    few: how many of the sample are judged on, clean, and attacked as the four ways say; knowing:
    how many the adaptive attack is run on.
    """

    few: int
    knowing: int

    @cached_property
    def net(self) -> nn.Module:
        return load("standard")

    @cached_property
    def fitted(self) -> tuple[Tensor, Tensor]:
        """Test images that are not in the sample: a net is surer of what it was trained on."""
        sample = {one.numpy().tobytes() for one in images(1000)[0]}
        x, y = foible.zoo.fashion_mnist("test")
        rest = [
            i for i, one in enumerate(x[: FITTED + 1500]) if one.numpy().tobytes() not in sample
        ]
        return x[rest[:FITTED]], y[rest[:FITTED]]

    @cached_property
    def judged(self) -> tuple[Tensor, Tensor]:
        return images(self.few)

    @cached_property
    def attack(self) -> Once:
        """PGD-40 in full: what detectors learn from."""
        return Once(pgd(THREAT, 40))

    @cached_property
    def made(self) -> tuple[Crafted, ...]:
        return crafted(self.net, self.judged, THREAT)

    @cached_property
    def carlini(self) -> Tensor:
        """What C&W in L2 makes of 100 of the images, with confidence 0."""
        x, y = (part[:100] for part in self.judged)
        result = foible.attacks.cw(foible.L2())(self.net, x, y, seed=0)
        return result.x[result.success & result.attacked]

    def area(self, worth: Worth, watch: Watch, bad: Tensor) -> float:
        """AUC of adversarials against the clean images of a figure."""
        values = torch.cat([worth.clean, watch.score(self.net, bad, seed=1)]).double().numpy()
        return auc(values, np.arange(len(values)) >= len(worth.clean))

    @cache  # noqa: B019 - one ground a process
    def fit(self, detector: Detector) -> Watch:
        return detector.fit(self.net, self.fitted, attack=self.attack)  # type: ignore[arg-type]


Bars = Callable[[Ground, Worth, Watch, Section], None]


@dataclass(frozen=True)
class Row:
    """One detector's sections: the four ways, and its own bars.

    knowing: how many images the adaptive attack is run on, where the ground's number costs much.
    on: a ground of its own, with fewer images, where an input costs much.
    """

    title: str
    detector: Callable[[], Detector]
    bars: Bars
    note: str = ""
    knowing: int | None = None
    on: Ground | None = None


def four_ways(ground: Ground, name: str, row: Row) -> tuple[Section, Section]:
    """Fit, judge in four ways, and hold the figures against the row's own bars."""
    ground = row.on or ground
    begun = time.process_time()
    watch = ground.fit(row.detector())
    fitting = time.process_time() - begun
    x = ground.judged[0]
    begun = time.process_time()
    watch.score(ground.net, x)
    each = (time.process_time() - begun) / len(x)
    knowing = min(ground.knowing, row.knowing or ground.knowing)
    begun = time.process_time()
    worth = evaluate(
        watch, ground.net, ground.judged, THREAT, ground.made, adaptive_samples=knowing
    )
    judging = time.process_time() - begun
    alarms = " and ".join(percent(rate) for rate in worth.false_alarms)
    note = (
        f"{row.note} On clean images the levels for 5 % and 1 % flag {alarms}. "
        f"One look costs {1000 * each:.2f} ms."
    ).strip()
    table = Section(name, row.title, WAYS, note)
    for way in worth.ways:
        fools = None if way.fooled is None else percent(way.fooled)
        caught = [None if c is None else percent(c) for c in way.caught]
        table.add(f"{name}-{short(way.name)}", way.n, fools, way.auc, *caught)
    bars = Section(f"{name}-bars", f"{row.title}: bars", BAR)
    row.bars(ground, worth, watch, bars)
    knows(worth, bars, name)
    print(f"  fitted in {fitting:.0f} s of CPU, judged in {judging:.0f} s", flush=True)
    return table, bars


def short(name: str) -> str:
    """as fitted, eps 0.025 -> as-fitted-small."""
    small = name.partition(", eps")[0] + ("-small" if ", eps" in name else "")
    return small.replace(",", "").replace(" ", "-").lower()


def caught(worth: Worth, name: str) -> float:
    """The share of a way's adversarials that is flagged at 5 %."""
    way = next(w for w in worth.ways if short(w.name) == name)
    assert way.caught[0] is not None
    return way.caught[0]


def area(worth: Worth, name: str) -> float:
    way = next(w for w in worth.ways if short(w.name) == name)
    assert way.auc is not None
    return way.auc


def knows(worth: Worth, table: Section, name: str) -> None:
    """The bars of the adaptive attack: half of the detector gone, the model still fooled."""
    last, same = worth.way("adaptive"), worth.way("same")
    if last.fooled is None or last.caught[0] is None or same.caught[0] is None:
        table.add(f"{name}-knowing", "adaptive: no gradient", None, "none", "reported")
        return
    what = f"caught at 5 % by the adaptive attack, over the same attack's {percent(same.caught[0])}"
    table.bar(f"{name}-knowing", what, last.caught[0] / max(same.caught[0], 1e-9), "<=", 0.5)
    table.bar(f"{name}-knowing-fools", "% that it still fools", 100 * last.fooled, ">=", 80)


def ground(how: Setting) -> Ground:
    """300 clean images and their adversarials, unless --samples says otherwise."""
    return Ground(
        min(how.samples, 300) if how.samples == 1000 else how.samples, min(100, how.samples)
    )


def merged(*parts: Mapping[str, Row]) -> dict[str, Row]:
    return {name: row for part in parts for name, row in part.items()}


def cpu(make: Callable[[], object]) -> float:
    """Seconds of CPU."""
    begun = time.process_time()
    make()
    return time.process_time() - begun


__all__ = [
    "BAR", "EPS", "THREAT", "WAYS", "Ground", "Row", "area", "caught", "cpu", "four_ways", "ground",
    "knows", "merged", "torch",
]  # fmt: skip
