"""Explanations that change the backward of a net's nonlinearities, and nothing else.

The net is followed function by function, so it does not matter whether a ReLU is a module, a
function, in place, or used many times.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, ModelError
from foible.core.explainer import Field
from foible.core.oracle import Run
from foible.core.problem import View
from foible.core.rows import Rows
from foible.explain.base import Explanation
from foible.models.functions import Call, Following


class Pulled(torch.autograd.Function):
    """Forward: `out`. Backward: what pull(gradient, *needs) gives, which must be linear in it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, pull: Any, *needs: Tensor) -> Tensor:
        """Give `out`."""
        ctx.set_materialize_grads(False)
        ctx.pull, ctx.count = pull, len(needs)
        ctx.save_for_backward(*needs)
        return out.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Pull; made of differentiable functions, so that it can be differentiated in turn."""
        given = None if grads[0] is None else ctx.pull(grads[0], *ctx.saved_tensors)
        return given, None, None, *[None] * ctx.count


def pulled(x: Tensor, out: Tensor, pull: Any, *needs: Tensor) -> Tensor:
    """Return `out`, whose backward to x is pull(gradient, *needs)."""
    result: Tensor = Pulled.apply(x, out, pull, *needs)  # type: ignore[no-untyped-call]
    return result


def scaled(grad: Tensor, factor: Tensor) -> Tensor:
    """Pull a gradient back through an elementwise function of that slope."""
    return grad * factor


class Recording(Following):
    """Keep what every nonlinearity is given, on its graph."""

    def __init__(self, x: Tensor, who: str) -> None:
        super().__init__(x, who, strict=True)
        self.kept: list[Tensor] = []

    def activation(self, call: Call) -> Tensor:
        """Keep the argument."""
        # A copy: what follows may work in place on it.
        self.kept.append(call.argument.clone())
        return super().activation(call)

    def maximum(self, func: Any, x: Tensor, rest: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        """Keep the argument."""
        self.kept.append(x.clone())
        return super().maximum(func, x, rest, named)


class Ruling(Following):
    """Give every nonlinearity the rule's backward.

    true: what each nonlinearity is given in a run of the net as it is, on x's graph, so that the
    map can be differentiated; None in a run without a graph, where the values here are those.
    base: the same for the baseline, or None.
    """

    def __init__(
        self, x: Tensor, rule: Ruled, true: list[Tensor] | None, base: list[Tensor] | None
    ) -> None:
        super().__init__(x, rule.who, strict=rule.strict or true is not None)
        self.rule, self.true, self.base, self.turn = rule, true, base, 0
        self.kinds: set[str] = set()

    def activation(self, call: Call) -> Tensor:
        """Replace the function."""
        self.kinds.add(call.kind)
        x = call.taken()
        at, base = self._next(x)
        graph = self.true is not None
        return call.give(self.rule.activation(call, (x, at, base), create_graph=graph))

    def maximum(self, func: Any, x: Tensor, rest: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        """Replace the function."""
        return self.rule.maximum(Pool(func, rest, named), (x, *self._next(x)))

    def finish(self, scores: Tensor) -> Tensor:
        """Return the scores, if the rule had what it needs."""
        self.rule.check(self.kinds)
        return super().finish(scores)

    def _next(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        place, self.turn = self.turn, self.turn + 1
        found = []
        for kept in (self.true, self.base):
            if kept is not None and (place >= len(kept) or kept[place].shape != x.shape):
                raise ModelError(
                    f"{self.who} runs the net several times, and it did not take the same course: "
                    "a net whose course depends on its input cannot be followed"
                )
            found.append(None if kept is None else kept[place])
        return (x.detach() if found[0] is None else found[0]), found[1]


class Pool:
    """A maximum over windows, with the places of the largest values."""

    def __init__(self, func: Any, rest: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.name = str(func.__name__)
        self.func, self.rest, self.named = func, rest, named
        self.axes = -int(self.name[-2])  # max_pool2d: the last two

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maxima and, flattened, the position of each in its channel."""
        named = {k: v for k, v in self.named.items() if k != "return_indices"}
        within = getattr(F, f"{self.name}_with_indices")
        out, places = within(x, *self.rest, return_indices=True, **named)
        return out, places.flatten(self.axes)

    def back(self, grad: Tensor, places: Tensor, like: Tensor) -> Tensor:
        """Return a gradient at the places; those that several windows share get the sum."""
        flat = torch.zeros_like(like).flatten(self.axes)
        return flat.scatter_add(-1, places, grad.flatten(self.axes)).view_as(like)


# x on the rule's graph, where the true net is there, and where it is for the baseline.
Point = tuple[Tensor, Tensor, Tensor | None]


class Ruled(Explanation):
    """An explainer whose map is the gradient under another backward of the nonlinearities.

    who: its name in errors. strict: refuse nets that hold anything but linear functions,
    activations and maxima over windows; a map on a graph is always so strict. forwards: how many
    inputs of a row are held at once.
    """

    access = Access.INTERNALS
    who = "this explainer"
    strict = True
    forwards = 1

    @abstractmethod
    def activation(self, call: Call, point: Point, *, create_graph: bool) -> Tensor:
        """Return the function at the point, with the rule's backward."""

    def maximum(self, pool: Pool, point: Point) -> Tensor:
        """Return the maxima; the gradient goes to the largest value, as ever."""
        x, at, _ = point
        out, places = pool(at.detach())
        return pulled(x, out, lambda grad: pool.back(grad, places, x.detach()))

    def check(self, kinds: set[str]) -> None:
        """Refuse a net by the kinds of its activation functions."""

    def reference(self, x: Tensor) -> Tensor | None:
        """Return the baselines (B, *shape), or None."""
        return None

    def gradient(self, field: Field, rows: Rows, *, create_graph: bool) -> Tensor:
        """Return the field's gradient (B, *shape) under the rule."""
        groups = field.groups(rows, self.forwards)
        some = self._second if create_graph else self._first
        return torch.cat([some(field, rows.take(group)) for group in groups])

    def _first(self, field: Field, rows: Rows) -> Tensor:
        with field.oracle.through(self._look):
            return field.gradient(rows.x, rows)[1]

    def _look(self, run: Run, x: Tensor) -> Tensor:
        ruling = Ruling(x, self, None, self._base(run, x))
        return ruling.finish(run(x, ruling))

    def _base(self, run: Run, x: Tensor) -> list[Tensor] | None:
        baseline = self.reference(x)
        return None if baseline is None else self._record(run, baseline)[1]

    def _record(self, run: Run, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        recording = Recording(x, self.who)
        scores = recording.finish(run(x, recording))
        return scores, recording.kept

    def _second(self, field: Field, rows: Rows) -> Tensor:
        """The same on a graph: one run of the true net beside one under the rule.

        The rule's slopes depend on x through the true net, not through the rule's backward.
        """
        oracle, x = field.oracle, rows.x
        if hasattr(field.score, "draws"):
            raise InputError(
                f"{self.who} on a graph explains one point, and this objective averages over "
                "draws: explain the inner objective"
            )
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            true, kept, base = torch.zeros(0), list[Tensor](), None

            def look(run: Run, at: Tensor) -> Tensor:
                nonlocal true, kept, base
                base = self._base(run, at)
                true, kept = self._record(run, at)
                ruling = Ruling(leaf, self, kept, base)
                return ruling.finish(run(leaf, ruling))

            with oracle.through(look):
                scores = oracle.scores(x, rows)
            values = field.score(View(oracle, rows, x, scores=true))
            (weights,) = oracle.grad(values, (true,), rows, create_graph=True)
            return oracle.grad((weights * scores).sum(1), (leaf,), rows, create_graph=True)[0]
