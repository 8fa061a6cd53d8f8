"""A model behind its detectors: it answers, or abstains and says why."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError
from foible.detect.watching import Watch
from foible.explain.base import check_bounds, check_inputs
from foible.models import as_model


@dataclass(frozen=True)
class Answer:
    """What a guard says of a batch.

    label: (B,) int64, -1 where it abstains. predicted: (B,) the model's class all the same. scores:
    (B, K) logits. abstained: (B,) bool. suspicion: by detector, (B,). reasons: for each input the
    names of the detectors that flagged it. seconds: of the whole batch.
    """

    label: Tensor
    predicted: Tensor
    scores: Tensor
    abstained: Tensor
    suspicion: dict[str, Tensor]
    reasons: list[list[str]]
    seconds: float


@dataclass
class Guard:
    """A model that answers or abstains; made by `guard`.

    levels: of each detector. log: a file that gets one JSON line a batch. asked, refused: counts.
    """

    model: Any
    watches: Mapping[str, Watch]
    levels: Mapping[str, float]
    log: Path | None = None
    asked: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)

    def __call__(self, x: Tensor, *, seed: int = 0) -> Answer:
        """Answer a batch x (B, *shape) inside the model's bounds.

        Raises InputError for NaN and for values out of bounds.
        """
        check_inputs(x)
        check_bounds(x, self.model.bounds)
        start = time.perf_counter()
        with self.model.session(seed), torch.no_grad():
            found = [self.model.scores(part) for part in x.split(max(1, self.model.chunk(x)))]
        scores = torch.cat(found)
        suspicion = {name: w.score(self.model, x, seed=seed) for name, w in self.watches.items()}
        # Not above, but not at or below: a suspicion of NaN is no reason to answer.
        flags = {name: ~(s <= self.levels[name]) for name, s in suspicion.items()}
        bad = torch.stack(list(flags.values())).any(0)
        predicted = scores.argmax(1)
        reasons = [[n for n, f in flags.items() if bool(f[i])] for i in range(len(x))]
        answer = Answer(
            predicted.masked_fill(bad, -1), predicted, scores, bad, suspicion, reasons,
            time.perf_counter() - start,
        )  # fmt: skip
        self.asked += len(x)
        self.refused += int(bad.sum())
        if self.log is not None:
            self._write(answer)
        return answer

    def _write(self, answer: Answer) -> None:
        line = {
            "time": time.time(), "seconds": answer.seconds, "label": answer.label.tolist(),
            "predicted": answer.predicted.tolist(), "reasons": answer.reasons,
            "suspicion": {name: s.tolist() for name, s in answer.suspicion.items()},
        }  # fmt: skip
        assert self.log is not None
        with self.log.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


def guard(
    model: Any,
    detectors: Watch | Sequence[Watch],
    fpr: float = 0.05,
    log: str | Path | None = None,
) -> Guard:
    """Return a model that abstains where a detector is above its level.

    model: a module or a wrapped model. detectors: fitted to it. fpr: the rate of false alarms of
    the whole; with several detectors each gets its share of it (Bonferroni), so that the whole
    stays below, but for what few held-out inputs leave unsure (`Watch.threshold`). log: a file
    that gets a line a batch.

    An input that is refused is not proved to be an attack, and one that is answered is not proved
    to be none: `foible.detect.evaluate` says what the detectors are worth.

    Raises InputError without detectors, and for two of one name.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net = foible.zoo.load("standard")
    >>> watch = foible.detect.squeezed((3,)).fit(net, (x[:100], y[:100]))
    >>> answer = guard(net, watch)(x[100:164])
    >>> bool((answer.label[answer.abstained] == -1).all())
    True
    """
    watches = [detectors] if isinstance(detectors, Watch) else list(detectors)
    if not watches:
        raise InputError("a guard without detectors refuses nothing: give one at least")
    names = [watch.detector.name for watch in watches]
    if len(set(names)) != len(names):
        raise InputError(f"two detectors are called {max(names, key=names.count)!r}: rename one")
    levels = {n: w.threshold(fpr / len(watches)).value for n, w in zip(names, watches, strict=True)}
    return Guard(
        as_model(model), dict(zip(names, watches, strict=True)), levels,
        None if log is None else Path(log),
    )  # fmt: skip
