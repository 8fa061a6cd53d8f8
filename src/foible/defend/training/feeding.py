"""The data of a training, in batches with ids: tensors of our own, or any loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foible.core.errors import InputError, KindError

MOST_HELD_OUT = 1000


class Fed(NamedTuple):
    """One batch: x (B, *shape), y (B,), ids (B,) and what the data hold beside them."""

    x: Tensor
    y: Tensor
    ids: Tensor
    extras: tuple[Tensor, ...]


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process takes."""

    rank: int = 0
    world: int = 1


class Tensors:
    """Data in memory: (x, y, *extras) with one row a sample, shuffled anew every epoch."""

    def __init__(self, parts: Sequence[Tensor], batch: int, ids: Tensor | None = None) -> None:
        self.parts, self.batch = tuple(parts), batch
        self.ids = torch.arange(len(parts[0])) if ids is None else ids

    def __len__(self) -> int:
        return len(self.ids)

    def steps(self, share: Share) -> int:
        """Return how many steps an epoch has; a last batch with nothing for a process is left."""
        full, rest = divmod(len(self), self.batch * share.world)
        return full + (rest >= share.world)

    def batches(self, seed: int, share: Share, start: int = 0) -> Iterator[Fed]:
        """Yield one epoch's batches from the `start`-th on; seed: of its order."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        wide = self.batch * share.world
        for number in range(start, self.steps(share)):
            rows = order[number * wide : (number + 1) * wide][share.rank :: share.world]
            x, y, *extras = (part[rows] for part in self.parts)
            yield Fed(x, y, self.ids[rows], tuple(extras))

    def split(self, part: float, seed: int) -> tuple[Tensors, tuple[Tensor, Tensor] | None]:
        """Return the data without a share of them, and that share (x, y), to validate on."""
        count = min(MOST_HELD_OUT, int(part * len(self)))
        if count == 0:
            return self, None
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        out, rest = order[:count].sort().values, order[count:].sort().values
        kept = Tensors([part[rest] for part in self.parts], self.batch, self.ids[rest])
        return kept, (self.parts[0][out], self.parts[1][out])


class Loader:
    """Any iterable with a length that yields (x, y, *extras): a torch DataLoader, say.

    A sample's id is its place in the epoch, so that noise repeats only where the order does. Every
    process reads the whole and takes its share of the batches.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def steps(self, share: Share) -> int:
        """Return how many steps an epoch has."""
        return len(self.loader) // share.world

    def batches(self, seed: int, share: Share, start: int = 0) -> Iterator[Fed]:
        """Yield one epoch's batches from the `start`-th on; those before are read and left."""
        seen = 0
        for number, one in enumerate(self._seeded(seed)):
            step, whose = divmod(number, share.world)
            if step >= self.steps(share):
                return
            x, y, *extras = _parts(one)
            ids = torch.arange(seen, seen + len(y))
            seen += len(y)
            if whose == share.rank and step >= start:
                yield Fed(x, y, ids, tuple(extras))

    def _seeded(self, seed: int) -> Iterator[Any]:
        """Yield what the loader does, each batch from a random state of its own."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # a loader that shuffles draws from it
            own = getattr(self.loader, "generator", None)
            if own is not None:
                own.manual_seed(seed)
            found = iter(self.loader)
            batch = list(islice(found, 1))  # samplers draw when they are first asked
        number = 0
        while batch:
            yield batch[0]
            number += 1
            with torch.random.fork_rng(devices=[]):  # a data set that augments draws from it
                torch.default_generator.manual_seed((seed * 1_000_003 + number) & (2**62 - 1))
                batch = list(islice(found, 1))


def feed(data: Any, batch: int, extras: int) -> Tensors | Loader:
    """Hold data for training; refuse what has not x, y and exactly `extras` tensors more.

    data: (x, y) or (x, y, ...) of tensors, a torch Dataset, or a loader of such batches.
    """
    if isinstance(data, tuple | list) and data and all(isinstance(p, Tensor) for p in data):
        _count(len(data) - 2, extras)
        sizes = {len(part) for part in data}
        if len(sizes) != 1 or 0 in sizes:
            raise InputError(
                f"the data hold {' and '.join(str(len(p)) for p in data)} samples: give as many "
                "labels as inputs, and at least one"
            )
        return Tensors([part.detach() for part in data], batch)
    if isinstance(data, torch.utils.data.Dataset):
        data = torch.utils.data.DataLoader(data, batch, shuffle=True)
    if not (isinstance(data, Iterable) and isinstance(data, Sized)):
        raise KindError(
            f"the data are {type(data).__name__}: give (x, y) as tensors, a torch Dataset, or a "
            "loader with a length that yields (x, y)"
        )
    if len(data) == 0:
        raise InputError("the loader is empty: there is nothing to train on")
    return Loader(data)


def _parts(one: Any) -> tuple[Tensor, ...]:
    if not isinstance(one, tuple | list) or len(one) < 2:
        raise KindError(
            f"the loader yields {type(one).__name__}: foible trains on batches (x, y); wrap it in "
            "a generator class that picks the two"
        )
    for part in one:
        if not isinstance(part, Tensor):
            raise KindError(f"the loader yields a {type(part).__name__} where a tensor belongs")
    return tuple(one)


def check_fed(fed: Fed, extras: int) -> None:
    """Refuse a batch that the loss or the model cannot use."""
    _count(len(fed.extras), extras)
    if not fed.x.is_floating_point():
        raise InputError(f"x has dtype {fed.x.dtype}: convert it, e.g. x.float() / 255")
    if fed.y.dtype != torch.int64 or fed.y.dim() != 1 or len(fed.y) != len(fed.x):
        raise InputError(
            f"labels have dtype {fed.y.dtype} and shape {tuple(fed.y.shape)} for {len(fed.x)} "
            "inputs: give one class number a sample, int64 (B,)"
        )


def _count(given: int, wanted: int) -> None:
    if given != wanted:
        said = f"{wanted} more" if wanted else "nothing more"
        raise InputError(
            f"the data hold {given + 2} things a sample, and this loss takes x, y and {said}: pick "
            "them before you pass the data, or choose a loss that uses the third "
            "(`foible.defend.rationales`)"
        )
