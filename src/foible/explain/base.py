"""How a user calls an explainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.explainer import Explainer, Field
from foible.core.oracle import Oracle
from foible.core.problem import Objective
from foible.core.randomness import Draw, Rng
from foible.core.rows import Rows
from foible.core.threat import Box
from foible.models import as_model
from foible.parts.objectives import Logit

T = TypeVar("T")


class Explanation(Explainer):
    """An explainer that can be called with (model, x, target)."""

    def explained(self) -> Objective:
        """Return what a call explains: the target's logit, unless the method's paper says else."""
        return Logit()

    @property
    def looks(self) -> int:
        """How many points it looks at for a row: its steps, or its samples."""
        return int(getattr(self, "steps", getattr(self, "samples", 1)))

    def __call__(
        self,
        model: Any,
        x: Tensor,
        target: Tensor | int | None = None,
        *,
        seed: int = 0,
        create_graph: bool = False,
    ) -> Tensor:
        """Explain the logit of `target` at x.

        model: an `nn.Module` or a wrapped model. x: (B, *shape) float. target: (B,) int64
        classes, one int for all, or None for the predicted classes. seed: with the row's
        position it fixes all randomness. create_graph: keep the map differentiable by x (if x
        requires grad) and by the parameters. Returns the signed map, of x's shape and dtype.

        Raises InputError for NaN in x or targets outside the classes.
        """
        if create_graph and not self.differentiable:
            raise InputError(f"{type(self).__name__} is not differentiable: drop create_graph")

        def work(field: Field, rows: Rows, draw: Draw) -> Tensor:
            return self.attribute(field, rows, draw, create_graph=create_graph)

        maps = each(self, model, x, target, work, seed=seed, create_graph=create_graph)
        return torch.cat(maps) if maps else torch.zeros_like(x)


class Asking(Protocol):
    """What goes over a model's rows: it says what it asks of the model, and of which number."""

    access: ClassVar[Access]

    def explained(self) -> Objective:
        """Return the number that is asked for."""


def each(
    asking: Asking,
    model: Any,
    x: Tensor,
    target: Tensor | int | None,
    work: Callable[[Field, Rows, Draw], T],
    *,
    seed: int = 0,
    create_graph: bool = False,
) -> list[T]:
    """Return what `work` makes of each chunk of rows, in order, inside the model's session."""
    held = as_model(model)
    check_inputs(x)
    labels = as_labels(x, target)
    oracle = Oracle(held, len(x), asking.access)
    x, found = x if create_graph else x.detach(), []
    if len(x) == 0:
        return []
    with oracle.session(seed, freeze=not create_graph):
        width = oracle.chunk(x)
        for part in torch.arange(len(x), device=x.device).split(width):
            rows = Rows(part, part, x[part], torch.zeros_like(part))
            rows = targeted(oracle, rows, None if labels is None else labels[part])
            field = Field(oracle, asking.explained(), width)
            found.append(work(field, rows, Rng(seed).split(5).at(rows.id)))
    return found


def targeted(oracle: Oracle, rows: Rows, labels: Tensor | None) -> Rows:
    """Return the rows with the labels to explain; None: the predicted ones, one forward a row."""
    if labels is None:
        return replace(rows, y=oracle.labels(rows.x.detach(), rows))
    if oracle.classes == 0:
        first = torch.zeros(1, dtype=torch.int64)
        oracle.labels(rows.x[:1].detach(), rows.take(first))
    check_classes(labels, oracle.classes)
    return replace(rows, y=labels)


def check_classes(labels: Tensor, classes: int) -> None:
    """Refuse targets that the model does not have."""
    if int(labels.max()) >= classes:
        raise InputError(
            f"target holds class {int(labels.max())} and the model has classes "
            f"0..{classes - 1}: check the label encoding"
        )


def as_labels(x: Tensor, target: Any) -> Tensor | None:
    """Return the targets (B,) int64, or None for the predicted classes."""
    if target is None:
        return None
    if isinstance(target, int | np.integer) and not isinstance(target, bool):
        target = torch.tensor(int(target), device=x.device)
    if isinstance(target, Tensor) and target.dim() == 0:
        target = target.expand(len(x))
    if not isinstance(target, Tensor):
        raise KindError(f"target is {type(target).__name__}: pass one int, or an int64 tensor (B,)")
    if target.dtype not in (torch.int64, torch.int32) or target.shape != (len(x),):
        raise InputError(
            f"target has shape {tuple(target.shape)} and {target.dtype} for {len(x)} samples: give "
            "(B,) int64 classes, one a sample"
        )
    if len(x) and int(target.min()) < 0:
        raise InputError(f"target holds {int(target.min())}: classes are counted from 0")
    return target.to(x.device, torch.int64)


def check_inputs(x: Any) -> None:
    """Refuse what no method can use: the wrong type, integers, NaN or infinity."""
    if not isinstance(x, Tensor):
        raise KindError(f"x is {type(x).__name__}: pass a torch tensor (B, *shape)")
    if not x.is_floating_point():
        raise InputError(f"x has dtype {x.dtype}: convert it, e.g. x.float() / 255")
    if x.dim() < 2:
        raise InputError(
            f"x has shape {tuple(x.shape)}: the first dimension is the batch, (B, *shape)"
        )
    bad = ~torch.isfinite(x.detach().flatten(1)).all(1)
    if bool(bad.any()):
        where = bad.nonzero().flatten()[:5].tolist()
        raise InputError(
            f"x is NaN or infinite in {int(bad.sum())} of {len(x)} samples (rows {where}): "
            "remove these rows or impute their values"
        )


def check_bounds(x: Tensor, bounds: tuple[float, float]) -> None:
    """Refuse no inputs at all, and inputs outside the model's bounds, which no threat holds."""
    if len(x) == 0:
        raise InputError("x is empty: an attack on no samples measures nothing")
    low, high = float(x.detach().min()), float(x.detach().max())
    slack = 1e-7 * Box(*bounds).width  # what a threat's own judge allows
    if low < bounds[0] - slack or high > bounds[1] + slack:
        raise InputError(
            f"x spans [{low:.4g}, {high:.4g}] and the model's bounds are [{bounds[0]:g}, "
            f"{bounds[1]:g}]: scale x into the bounds, or wrap the model with the bounds of your "
            "data, e.g. foible.wrap(net, bounds=(0, 255)); mean and std go into preprocess="
        )
