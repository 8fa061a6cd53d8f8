"""Two samples, one distribution? The kernel test of Gretton, and drift over served inputs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError


@dataclass(frozen=True)
class Test:
    """mmd: the unbiased estimate of the squared discrepancy. p: of the permutation test."""

    __test__ = False  # no test of pytest's

    mmd: float
    p: float


def mmd_test(
    first: Tensor,
    second: Tensor,
    permutations: int = 1000,
    width: float | None = None,
    seed: int = 0,
) -> Test:
    """Test whether two samples come from one distribution (T2, Grosse et al. 2017; Gretton 2012).

    first (N, *shape), second (M, *shape): at least two each. permutations: of the labels; p is at
    least 1 / (permutations + 1). width: of the Gaussian kernel exp(-d^2 / (2 width^2)); None is the
    median distance. A set is tested, no single input can be flagged, and minimum-norm adversarials
    pass (Carlini and Wagner 2017).

    Departure: the unbiased estimate leaves out the diagonal, and p counts the sample itself, so
    that it is never 0.

    Raises InputError for samples that are too small, or hold NaN or infinity.

    >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> mmd_test(x[:20], x[20:]).p > 0.05, mmd_test(x[:20], x[20:] + 2).p < 0.01
    (True, True)
    """
    n, m = len(first), len(second)
    if n < 2 or m < 2:
        raise InputError(f"samples of {n} and {m}: a test needs two of each at least")
    data = torch.cat([first.flatten(1), second.flatten(1)]).double()
    if not bool(torch.isfinite(data).all()):
        raise InputError("samples hold NaN or infinity, which no distance compares: remove them")
    apart = torch.cdist(data, data).square()
    if width is None:
        upper = apart[torch.triu(torch.ones_like(apart, dtype=torch.bool), 1)]
        width = float(upper.median().sqrt().clamp_min(1e-12))
    kernel = torch.exp(-apart / (2 * width**2)).fill_diagonal_(0)
    rng = torch.Generator().manual_seed(seed)
    marks = torch.zeros(permutations + 1, n + m, dtype=torch.float64)
    marks[0, :n] = 1
    for row in marks[1:]:
        row[torch.randperm(n + m, generator=rng)[:n]] = 1
    marks = marks.to(kernel.device)
    within = ((marks @ kernel) * marks).sum(1) / (n * (n - 1))
    rest = 1 - marks
    outside = ((rest @ kernel) * rest).sum(1) / (m * (m - 1))
    between = ((marks @ kernel) * rest).sum(1) / (n * m)
    values = within + outside - 2 * between
    rounding = 1e-12
    p = float((values[1:] >= values[0] - rounding).sum() + 1) / (permutations + 1)
    return Test(float(values[0]), p)


@dataclass
class Drift:
    """Watch a stream of inputs against a reference; made by `drift`.

    window: how many of the last inputs are tested. every: test after so many new ones. tests: what
    was found, in order.
    """

    reference: Tensor
    window: int = 100
    every: int = 50
    permutations: int = 500
    seen: int = field(default=0, init=False)
    tests: list[Test] = field(default_factory=list, init=False)
    _last: Any = field(default=None, init=False, repr=False)
    _due: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.window < 2 or self.every < 1:
            raise InputError(f"window={self.window}, every={self.every}: at least 2 and 1")
        self._last = deque(maxlen=self.window)

    def __call__(self, x: Tensor) -> Test | None:
        """Take inputs (B, *shape) in; return the newest test if one was due, else None."""
        found = None
        for one in x.detach().to(self.reference):
            self._last.append(one)
            self.seen += 1
            self._due += 1
            if len(self._last) == self.window and self._due >= self.every:
                self._due = 0
                found = mmd_test(
                    self.reference, torch.stack(list(self._last)), self.permutations,
                    seed=self.seen,
                )  # fmt: skip
                self.tests.append(found)
        return found


def drift(reference: Tensor, window: int = 100, every: int = 50, permutations: int = 500) -> Drift:
    """Return a watch over a stream of inputs: `drift(x)(batch)` gives a test where one is due.

    reference: (N, *shape) of clean inputs, a few hundred. The window slides over single inputs, so
    that batches of any size give the same tests. p below a level again and again is drift; at level
    a, a share a of the tests is below without any.

    Raises InputError for a window below 2.

    >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    >>> watch = drift(x[:100], window=50, every=25)
    >>> watch(x[100:160]) is not None, watch(x[160:260] + 3).p < 0.01
    (True, True)
    """
    return Drift(reference, window, every, permutations)
