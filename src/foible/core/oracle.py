"""The oracle: the only door to a model, and the only caller of autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from foible.core.access import Access, Meter
from foible.core.errors import AccessError, ModelError
from foible.core.rows import Rows

Run = Callable[[Tensor, AbstractContextManager[Any]], Tensor]
# From a forward and an input (B, *shape) to scores (B, K).
Look = Callable[[Run, Tensor], Tensor]
_CURE = "wrap the model itself, e.g. foible.wrap(net)"


@runtime_checkable
class Model(Protocol):
    """What the oracle needs of a model; `foible.wrap` makes one of an `nn.Module`."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest legal input value; may be infinite."""

    @property
    def access(self) -> Access:
        """The most that the model gives."""

    def scores(self, x: Tensor) -> Tensor:
        """Map (B, *shape) to logits (B, K), differentiable where access is GRADIENTS."""

    def session(self, seed: int = 0, *, freeze: bool = True) -> Any:
        """Return a context in which the model is in evaluation mode, and is restored after."""

    def chunk(self, x: Tensor) -> int:
        """Return how many samples one forward should hold; from model and shape alone."""


class Oracle:
    """A model for the length of one run: metered, limited to an access level, checked for NaN.

    model: a `Model`; rows: how many samples the run has; access: the most that may be asked.
    A model that asks its net several times for one answer has `looks`, how many times; one that
    gives less than its net has `cure`, what to do about it.
    """

    def __init__(self, model: Model, rows: int, access: Access = Access.GRADIENTS) -> None:
        if access > model.access:
            raise AccessError(
                f"this attack or explainer needs {access.name}, the model gives only "
                f"{model.access.name}: choose a method that needs less (`foible list` shows "
                f"what each needs), or {getattr(model, 'cure', '') or _CURE}"
            )
        self.model, self.access = model, access
        self.meter = Meter(rows, int(getattr(model, "looks", 1)))
        self.classes = 0
        self._look: Look | None = None

    @contextmanager
    def session(self, seed: int = 0, *, freeze: bool = True) -> Iterator[Oracle]:
        """Hold the model in evaluation mode; leave it exactly as it was."""
        with self.model.session(seed, freeze=freeze):
            yield self

    @property
    def bounds(self) -> tuple[float, float]:
        """The model's bounds."""
        return self.model.bounds

    def chunk(self, x: Tensor) -> int:
        """Return how many samples one forward should hold."""
        return self.model.chunk(x)

    def scores(self, x: Tensor, rows: Rows) -> Tensor:
        """Return logits (B, K) of x (B, *shape); one forward a row, on the graph if x is."""
        self._require(Access.SCORES)

        def run(at: Tensor, within: AbstractContextManager[Any]) -> Tensor:
            self.meter.count(rows.index)
            with within:
                scores = self.model.scores(at)
            return self._checked(scores, at)

        return run(x, nullcontext()) if self._look is None else self._look(run, x)

    def labels(self, x: Tensor, rows: Rows) -> Tensor:
        """Return predicted classes (B,), all that LABELS access allows."""
        self.meter.count(rows.index)
        with torch.no_grad():
            return self._checked(self.model.scores(x), x).argmax(1)

    def tap(self, x: Tensor, rows: Rows, layer: str | None = None) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and what a layer gave (B, *layer shape); one forward a row.

        layer: a name as in `named_modules`, `name#2` for the second run of a module that runs
        several times, or None for the last that gives maps (B, C, H, W). In grad mode the logits
        can be differentiated by the activation; both are on the graph of x if x is.
        """
        with self._watch(x, layer) as seen:
            scores = self.scores(x, rows)
        activation: Tensor = seen.activation
        return scores, activation

    def scores_with(
        self, x: Tensor, rows: Rows, layer: str | None, edit: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return logits (B, K) of the model whose layer gives `edit` of its output instead.

        edit: maps (B, *layer shape) to the same shape, and may work in place. One forward a row;
        on the graph of x, and of what the edit brings in.
        """
        with self._watch(x, layer, edit) as seen:
            scores = self.scores(x, rows)
        seen.activation  # noqa: B018 - complains where the layer did not run
        return scores

    def taps(
        self,
        x: Tensor,
        rows: Rows,
        layers: Sequence[str],
        edits: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits (B, K) and what each of several layers gave; still one forward a row.

        layers: names as in `tap`. edits: by layer, as in `scores_with`; what comes later sees them.
        """
        given = {**dict.fromkeys(layers), **(edits or {})}
        with ExitStack() as stack:
            seen = {
                layer: stack.enter_context(self._watch(x, layer, edit))
                for layer, edit in given.items()
            }
            scores = self.scores(x, rows)
        found = {layer: one.activation for layer, one in seen.items()}
        return scores, tuple(found[layer] for layer in layers)

    def readings(
        self, x: Tensor, rows: Rows, layers: Sequence[str], read: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits (B, K) and `read` of what each layer gave; still one forward a row.

        layers: as in `taps`. read: maps an activation (B, *layer shape) to (B, ...) at once, so
        that no large one is copied or held; it must neither change nor return the activation.
        """
        with ExitStack() as stack:
            seen = [stack.enter_context(self._watch(x, name, read=read)) for name in layers]
            scores = self.scores(x, rows)
        return scores, tuple(glimpse.activation for glimpse in seen)

    @contextmanager
    def through(self, look: Look) -> Iterator[None]:
        """Give look(run, x) for every `scores(x)` within.

        run(x, context) is the model's metered forward, held in a context. For rules that change
        a net's backward and not its scores.
        """
        self._require(Access.INTERNALS)
        held, self._look = self._look, look
        try:
            yield
        finally:
            self._look = held

    def value_and_grad(
        self, fn: Callable[[Tensor], Tensor], wrt: Tensor, rows: Rows, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return fn(wrt) (B,) and the gradient of each value by its own row of `wrt`.

        fn may call `scores`, whose forwards it pays; the backward is counted here. With
        create_graph both results stay differentiable.
        """
        self._require(Access.GRADIENTS)
        with torch.enable_grad():
            leaf = wrt if create_graph and wrt.requires_grad else wrt.detach().requires_grad_()
            values = fn(leaf)
            (grad,) = self.grad(values, (leaf,), rows, create_graph=create_graph)
        return (values if create_graph else values.detach()), grad

    def grad(
        self,
        values: Tensor,
        leaves: tuple[Tensor, ...],
        rows: Rows,
        *,
        create_graph: bool = False,
        retain_graph: bool = False,
    ) -> tuple[Tensor, ...]:
        """Differentiate the sum of `values` by any leaves, parameters included: one backward."""
        self._require(Access.GRADIENTS)
        self.meter.count(rows.index, backward=True)
        if not values.requires_grad:
            # Nothing depends on the leaves (a detached or constant model): that is a zero
            # gradient, which the audit's gradient check reports.
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        grads = torch.autograd.grad(
            values.sum(),
            leaves,
            create_graph=create_graph,
            retain_graph=retain_graph or create_graph,
            materialize_grads=True,
        )
        for grad in grads:
            if not torch.isfinite(grad.detach().sum()) and not torch.isfinite(grad).all():
                bad = int((~torch.isfinite(grad.reshape(len(grad), -1))).any(1).sum())
                raise ModelError(
                    f"the gradient is not finite for {bad} of {len(grad)} samples: look for a "
                    "division by zero, a square root or a logarithm at 0 in the model, "
                    "or use float64"
                )
        return tuple(grads)

    def jacobian(self, x: Tensor, rows: Rows, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and their gradients (B, C, *shape) for classes (B, C).

        One forward and C backwards.
        """
        self._require(Access.GRADIENTS)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            scores = self.scores(leaf, rows)
            grads = self.class_grads(scores, classes, leaf, rows)
        return scores.detach(), grads

    def class_grads(self, scores: Tensor, classes: Tensor, leaf: Tensor, rows: Rows) -> Tensor:
        """Return the gradients (B, C, *shape) of scores of classes (B, C) by a leaf: C backwards.

        scores: logits (B, K) on a graph that holds the leaf, which is used up.
        """
        picked, count = scores.gather(1, classes), classes.shape[1]
        grads = [
            self.grad(picked[:, c], (leaf,), rows, retain_graph=c + 1 < count)[0]
            for c in range(count)
        ]
        return torch.stack(grads, 1)

    def _watch(
        self,
        x: Tensor,
        layer: str | None,
        edit: Callable[[Tensor], Tensor] | None = None,
        read: Callable[[Tensor], Tensor] | None = None,
    ) -> AbstractContextManager[Any]:
        self._require(Access.INTERNALS)
        watch = getattr(self.model, "watch", None)
        if watch is None:
            raise AccessError(
                f"{type(self.model).__name__} has no layers to look into: explain or attack a "
                "single torch module, e.g. foible.wrap(net), or choose a method that needs "
                "gradients only"
            )
        context: AbstractContextManager[Any] = (
            watch(x, layer, edit) if read is None else watch(x, layer, edit, read)
        )
        return context

    def _require(self, access: Access) -> None:
        if access > self.access:
            raise AccessError(
                f"a part that declared {self.access.name} access asked for {access.name}: "
                "raise the part's declared access, or use a method that needs less"
            )

    def _checked(self, scores: Tensor, x: Tensor) -> Tensor:
        given: object = scores  # a user's `outputs` function may return anything
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        if not isinstance(given, Tensor) or given.dim() != 2 or len(given) != len(x):
            raise ModelError(
                f"the model gave scores of shape {shape} for {len(x)} inputs; "
                "foible needs one row of class scores an input, (B, K): pass outputs= to "
                "foible.wrap, e.g. a function that picks the logits"
            )
        self.classes = scores.shape[1]
        if torch.isnan(scores.detach().sum()) and torch.isnan(scores).any():
            bad = int(torch.isnan(scores).any(1).sum())
            raise ModelError(
                f"the model's scores are NaN for {bad} of {len(x)} inputs: look at its weights "
                "(NaN after a broken training run?) and at its preprocessing"
            )
        return scores


def slope(fn: Callable[[Tensor], Tensor], at: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return the derivative of an elementwise function; no model is asked, so nothing is metered.

    With create_graph the result depends on `at`, which may lie on a graph.
    """
    with torch.enable_grad():
        leaf = at if create_graph and at.requires_grad else at.detach().requires_grad_()
        (grad,) = torch.autograd.grad(fn(leaf).sum(), leaf, create_graph=create_graph)
    return grad
