"""A detector: a feature of an input and its model, and a head that says how suspect it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from foible.core.access import Access
from foible.core.oracle import Oracle
from foible.core.randomness import Draw, Rng
from foible.core.rows import Rows
from foible.models import as_model

State = dict[str, Tensor]
"""What a part has learnt: plain tensors by name, so that it can be saved without code."""


class Feature(ABC):
    """A few numbers, or a map, of each input under a model; a frozen value.

    access: what it asks of the model. differentiable: whether `create_graph` works, so that an
    adaptive attack can follow it. looks: about how many forwards an input costs.
    """

    access: ClassVar[Access] = Access.SCORES
    differentiable: ClassVar[bool] = True

    @property
    def looks(self) -> int:
        """How many points it looks at for an input."""
        return 1

    @property
    def held(self) -> int:
        """How many of these points an input holds at once, off the graph: chunks are cut by it."""
        return self.looks

    def soft(self) -> Feature:
        """Return what a search follows in its place: smoother, or cheaper; it reads one state."""
        return self

    def learn(self, oracle: Oracle, rows: Rows, draw: Draw) -> State:
        """Return what it has to know of clean inputs; rows.y holds their true labels."""
        return {}

    @abstractmethod
    def __call__(
        self, oracle: Oracle, rows: Rows, state: State, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Return (B, *feature shape) at rows.x; rows.y holds the predicted classes.

        With create_graph it lies on the graph of rows.x.
        """


class Head(ABC):
    """From features to how suspect an input is; a frozen value.

    supervised: whether it learns from adversarials; others learn from clean inputs alone.
    differentiable: whether a gradient passes; where none does, `soft` gives a stand-in.
    """

    supervised: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True

    @abstractmethod
    def learn(self, features: Tensor, bad: Tensor, seed: int) -> State:
        """Return what it learns from features (N, ...) of which bad (N,) bool are adversarial."""

    @abstractmethod
    def __call__(self, features: Tensor, state: State) -> Tensor:
        """Return suspicion (B,): higher is more suspect, without a fixed unit."""

    def soft(self, features: Tensor, state: State) -> Tensor:
        """Return a differentiable stand-in of the suspicion (B,)."""
        return self(features, state)


def part_of(state: State, name: str) -> State:
    """Return the tensors of one part, without the part's name before theirs."""
    start = name + "."
    return {k[len(start) :]: v for k, v in state.items() if k.startswith(start)}


def named(state: State, name: str) -> State:
    """Return the tensors with a part's name before theirs."""
    return {f"{name}.{key}": value for key, value in state.items()}


def chunks(oracle: Oracle, rows: Rows, looks: int) -> tuple[Tensor, ...]:
    """Cut rows, by position, so that the looks of one part fill a forward."""
    positions = torch.arange(len(rows), device=rows.x.device)
    parts: tuple[Tensor, ...] = positions.split(max(1, oracle.chunk(rows.x) // max(1, looks)))
    return parts


def gathered(feature: Feature, oracle: Oracle, rows: Rows, state: State, draw: Draw) -> Tensor:
    """Return a feature (N, *shape) of many rows, whose y is explained, off the graph, in chunks."""
    found = [
        feature(oracle, rows.take(part), state, draw.take(part)).detach()
        for part in chunks(oracle, rows, feature.held)
    ]
    return torch.cat(found)


def features_of(
    feature: Feature, model: Any, x: Tensor, state: State, seed: int = 0, ids: Tensor | None = None
) -> Tensor:
    """Return a feature (N, *shape) of inputs x (N, *shape), off the graph, in chunks.

    ids: (N,) what keys each input's randomness; its position if None.
    """
    held = as_model(model)
    index = torch.arange(len(x), device=x.device)
    oracle = Oracle(held, len(x), max(feature.access, Access.SCORES))
    rows = Rows(index, index if ids is None else ids.to(index), x.detach(), torch.zeros_like(index))
    with oracle.session(seed):
        y = [oracle.labels(rows.x[p], rows.take(p)) for p in chunks(oracle, rows, 1)]
        draw = Rng(seed).split(23).at(rows.id)
        return gathered(feature, oracle, replace(rows, y=torch.cat(y)), state, draw)


def learned_of(feature: Feature, model: Any, x: Tensor, y: Tensor, seed: int = 0) -> State:
    """Return what a feature learns from clean inputs and their true labels."""
    index = torch.arange(len(x), device=x.device)
    oracle = Oracle(as_model(model), len(x), max(feature.access, Access.SCORES))
    rows = Rows(index, index, x.detach(), y.to(index))
    with oracle.session(seed):
        return {
            k: v.detach().contiguous()  # as a file gives it back: another layout, other bits
            for k, v in feature.learn(oracle, rows, Rng(seed).split(29).at(index)).items()
        }
