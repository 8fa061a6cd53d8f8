"""Visual counterfactuals: which cells of an image, swapped for another's, make it that class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import InputError
from foible.core.oracle import Model, Oracle
from foible.core.problem import Goal, Problem, View
from foible.core.rows import Rows
from foible.core.solver import independent_verdict, solve
from foible.explain.base import as_labels, check_classes, check_inputs
from foible.models import TorchModel, as_model, wrap
from foible.parts.searches.swapping import GreedySwaps, RandomSwaps
from foible.parts.threats.swaps import Swaps, swapped


@dataclass(frozen=True)
class Graft:
    """Where cells are swapped: inside the model at a layer, or, `alone`, in its input.

    alone: the oracle holds what comes after the layer, and x is the layer's maps.
    """

    layer: str | None
    alone: bool = False

    def scores(self, view: View) -> Tensor:
        """Return the logits (B, K) with the cells swapped that z names; one forward a row."""
        if view._scores is None:
            rows, x = view.rows, view.x_adv
            z = rows.extra["z"] if view.z is None else view.z
            if self.alone:
                view._scores = view.oracle.scores(swapped(x, rows.extra["other"], z), rows)
                return view._scores

            def edit(maps: Tensor) -> Tensor:
                return swapped(maps, rows.extra["other"], z)

            view._scores = view.oracle.scores_with(x, rows, self.layer, edit)
        return view._scores


@dataclass(frozen=True)
class Likelihood:
    """The log-probability of the target once cells are swapped."""

    graft: Graft

    def __call__(self, view: View) -> Tensor:
        """Return (B,)."""
        assert view.rows.target is not None
        return -F.cross_entropy(self.graft.scores(view), view.rows.target, reduction="none")


@dataclass(frozen=True)
class Turned(Goal):
    """The prediction is the target once cells are swapped."""

    graft: Graft

    def __call__(self, view: View) -> Tensor:
        """Return (B,) bool."""
        assert view.rows.target is not None
        return self.graft.scores(view).argmax(1).eq(view.rows.target)


@dataclass(frozen=True)
class CellSwaps:
    """Which cells were swapped, and what the model then says.

    cells: (B, H, W) int64, the distractor's cell that each of x's cells shows, counted along the
    rows, -1 for its own. success: (B,) bool, the model says `target` then. edits: (B,) int64, how
    many cells were swapped (of a failure: until it gave up). label: (B,) what the model says.
    forwards: (B,) int64.
    """

    cells: Tensor
    success: Tensor
    edits: Tensor
    label: Tensor
    target: Tensor
    forwards: Tensor

    @property
    def changed(self) -> Tensor:
        """Return (B, H, W) bool: the cells of x that were swapped away."""
        return self.cells >= 0

    @property
    def taken(self) -> Tensor:
        """Return (B, H, W) bool: the cells of the distractor that were swapped in."""
        flat = self.cells.flatten(1) + 1
        used = torch.zeros(len(flat), flat.shape[1] + 1, dtype=torch.bool, device=flat.device)
        return used.scatter(1, flat, True)[:, 1:].view_as(self.cells)


@dataclass(frozen=True)
class VisualCounterfactual:
    """Call it with (model, x, distractor); made by `visual_counterfactual`."""

    layer: str | None = None
    most: int = 20
    order: str = "greedy"
    access: ClassVar[Access] = Access.INTERNALS

    def __post_init__(self) -> None:
        if self.most < 1 or self.order not in ("greedy", "random"):
            raise InputError(
                f"most={self.most}, order={self.order!r}: one swap at least, 'greedy' or 'random'"
            )

    def __call__(
        self,
        model: Any,
        x: Tensor,
        distractor: Tensor,
        target: Tensor | int | None = None,
        *,
        seed: int = 0,
    ) -> CellSwaps:
        """Swap cells of x for cells of the distractor until the model says `target`.

        x, distractor: (B, *shape) images, row by row. target: (B,) classes, one int for all, or
        None for what the model says of the distractor. seed: of a random order.

        Raises InputError for inputs that do not fit each other or a layer that gives no maps.
        """
        held = as_model(model)
        check_inputs(x)
        check_inputs(distractor)
        if x.shape != distractor.shape or len(x) == 0:
            raise InputError(
                f"x has shape {tuple(x.shape)} and the distractor {tuple(distractor.shape)}: give "
                "one distractor an image, and one image at least"
            )
        oracle = Oracle(held, len(x), Access.INTERNALS)
        index = torch.arange(len(x), device=x.device)
        rows = Rows(index, index, x.detach(), index * 0, target=as_labels(x, target))
        with oracle.session(seed), torch.no_grad():
            other, theirs = self._maps(oracle, rows.at(distractor.detach()))
            own, label = self._maps(oracle, rows)
            if rows.target is None:
                rows = replace(rows, target=theirs)
            assert rows.target is not None
            check_classes(rows.target, oracle.classes)
            rows.extra["other"] = other
            rest = rest_of(held, self.layer, x)
            if rest is None:
                return self._swap(oracle, Graft(self.layer), rows, label, seed)
            after = Oracle(rest, len(x), Access.INTERNALS)
            with after.session(seed):
                found = self._swap(after, Graft(None, True), rows.at(own), label, seed)
            return replace(found, forwards=found.forwards + oracle.meter.forwards)

    def _swap(
        self, oracle: Oracle, graft: Graft, rows: Rows, label: Tensor, seed: int
    ) -> CellSwaps:
        threat = Swaps()
        assert rows.target is not None
        success, z = label == rows.target, threat.clean(rows)
        left = (~success).nonzero().squeeze(1)
        if len(left):
            some = rows.take(left)
            some.extra["z"] = z[left]
            kind = GreedySwaps if self.order == "greedy" else RandomSwaps
            problem = Problem(oracle, threat, Likelihood(graft), Turned(graft), "success")
            best = solve(problem, some, kind(self.most), seed=seed)
            assert best.z is not None
            some.extra["z"] = best.z
            verdict, labels = independent_verdict(problem, some, best.x, oracle)
            success[left], label[left], z[left] = verdict & best.success, labels, best.z
        cells = (z.long() - 1).view(len(rows), *rows.extra["other"].shape[2:])
        edits = (cells >= 0).flatten(1).sum(1)
        return CellSwaps(cells, success, edits, label, rows.target, oracle.meter.forwards)

    def _maps(self, oracle: Oracle, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the maps (B, C, H, W) of the layer, and the labels (B,)."""
        maps, labels = [], []
        for part in torch.arange(len(rows), device=rows.x.device).split(oracle.chunk(rows.x)):
            scores, found = oracle.tap(rows.x[part], rows.take(part), self.layer)
            if found.dim() != 4:
                raise InputError(
                    f"the layer {self.layer!r} gives {tuple(found.shape[1:])} for a sample: cells "
                    "are places of maps (C, H, W), so choose a convolution, or None for the last"
                )
            maps.append(found)
            labels.append(scores.argmax(1))
        return torch.cat(maps), torch.cat(labels)


def rest_of(model: Model, layer: str | None, x: Tensor) -> TorchModel | None:
    """Return what comes after a layer as a model of its own, where that is plain to see.

    In a plain `nn.Sequential` it is the modules behind. Of other nets, whose course only they
    know, every look must run the whole: None.
    """
    if type(model) is not TorchModel or type(model.net) is not nn.Sequential:
        return None
    if model.net._forward_hooks or model.net._forward_pre_hooks:
        return None
    there = model.layers(x)
    layer = model.run_of(x, None).name if layer is None else layer
    names = list(model.net._modules)
    if layer not in names or layer not in there:
        return None
    after = model.net[names.index(layer) + 1 :]
    return wrap(after, (-float("inf"), float("inf")), None, model.outputs)


def visual_counterfactual(
    layer: str | None = None, most: int = 20, order: str = "greedy"
) -> VisualCounterfactual:
    """Return the search for a visual counterfactual (B31, Goyal et al. 2019).

    "Were these parts of the image as those of that one, it would be of its class": the fewest
    cells of x's feature map, each swapped for a cell of the distractor's, such that the model says
    the distractor's class. Greedily: each swap is the best of all pairs of a cell of x and one of
    the distractor, none used twice. layer: a name as in `named_modules`, None the last that gives
    maps. most: swaps at most. order: "random" makes any swaps, the control. Costs at most
    cells^2 forwards a swap, 2,401 on a grid of 7 x 7.

    The paper also relaxes the choice to a continuous one; that is not built.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net = foible.zoo.load("standard")
    >>> found = visual_counterfactual("3", most=1)(net, x[:1], x[1:2])
    >>> found.cells.shape, int(found.edits)
    (torch.Size([1, 7, 7]), 1)
    """
    return VisualCounterfactual(layer, most, order)
