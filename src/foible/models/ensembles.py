"""Several models as one: what an attack that shall transfer is searched on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, KindError, ModelError
from foible.core.oracle import Model
from foible.models.holding import as_model

FUSES = ("logits", "probabilities")


class Ensemble:
    """Models that give one answer together; made by `ensemble`.

    Attributes: members, fuse, weights (their shares, which add up to 1), bounds, access.
    """

    def __init__(self, members: Sequence[Model], fuse: str, weights: tuple[float, ...]) -> None:
        self.members, self.fuse, self.weights = tuple(members), fuse, weights
        self.bounds = self.members[0].bounds
        self.access = min(member.access for member in self.members)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the fused scores (B, K) as the members are now: no session, no meter."""
        return self.scores(x)

    def scores(self, x: Tensor) -> Tensor:
        """Return the weighted mean (B, K) of logits, or the logarithm of that of probabilities.

        Where a member gives labels only, each member has a vote of its weight.
        """
        each = [member.scores(x) for member in self.members]
        widths = {tuple(scores.shape) for scores in each}
        if len(widths) > 1:
            raise ModelError(
                f"the members of the ensemble give scores of shapes {sorted(widths)}: they must "
                "have the same classes, in the same order"
            )
        shares = [torch.tensor(w, dtype=each[0].dtype, device=each[0].device) for w in self.weights]
        if self.access == Access.LABELS:
            each = [F.one_hot(s.argmax(1), s.shape[1]).to(s.dtype) for s in each]
        elif self.fuse == "probabilities":
            logs = [F.log_softmax(s, 1) + w.log() for s, w in zip(each, shares, strict=True)]
            return torch.logsumexp(torch.stack(logs), 0)
        return torch.stack([s * w for s, w in zip(each, shares, strict=True)]).sum(0)

    @contextmanager
    def session(self, seed: int = 0, *, freeze: bool = True) -> Iterator[None]:
        """Hold every member in its own session; all are restored after."""
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.session(seed, freeze=freeze))
            yield

    def chunk(self, x: Tensor) -> int:
        """Return how many samples one forward of all members holds."""
        return max(1, int(1 / sum(1 / member.chunk(x) for member in self.members)))

    def identity(self) -> dict[str, Any]:
        """Return the members' identities, with how they are fused."""
        each: list[Any] = []
        for member in self.members:
            of = getattr(member, "identity", None)
            if of is None:
                raise KindError(f"{type(member).__name__} has no identity that a plan can store")
            each.append(of())
        return {"ensemble": each, "fuse": self.fuse, "weights": list(self.weights)}


def ensemble(
    models: Sequence[Any], fuse: str = "logits", weights: Sequence[float] | None = None
) -> Ensemble:
    """Return several models as one, whose scores are the mean of theirs.

    What fools many models is likelier to fool one more (Liu et al. 2017; Dong et al. 2018, who
    find that fused logits transfer best). models: modules or wrapped models with the same bounds
    and the same classes. fuse: "logits", which the member of the largest logits rules, so that
    "probabilities" can carry further where their sizes differ. weights: a share a member, equal by
    default; only their ratios count. One forward is one of every member. The paper's third way,
    the mean of the losses, is no function of one set of scores and is left out.

    Raises InputError for no models, bounds that differ, and weights that are not positive.

    >>> import foible
    >>> a, b = foible.zoo.load("standard"), foible.zoo.load("hardened")
    >>> both = foible.models.ensemble([a, b])
    >>> x, y = foible.zoo.sample()
    >>> bool(torch.allclose(both(x[:4]), (a(x[:4]) + b(x[:4])) / 2, atol=1e-5))
    True
    """
    if not isinstance(models, Sequence):
        raise KindError(f"models is {type(models).__name__}: pass a list of models")
    members = [as_model(model) for model in models]
    if not members:
        raise InputError("an ensemble needs one model at least")
    if fuse not in FUSES:
        raise InputError(f"fuse is {fuse!r}: choose {' or '.join(map(repr, FUSES))}")
    spans = sorted({tuple(member.bounds) for member in members})
    if len(spans) > 1:
        raise InputError(
            f"the members' bounds are {', '.join(map(str, spans))}: wrap them so that all take the "
            "same input, e.g. foible.wrap(net, bounds=(0, 1), preprocess=(mean, std))"
        )
    given = [1.0] * len(members) if weights is None else [float(w) for w in weights]
    if len(given) != len(members) or not all(math.isfinite(w) and w > 0 for w in given):
        raise InputError(f"weights are {given} for {len(members)} models: one positive number each")
    return Ensemble(members, fuse, tuple(w / sum(given) for w in given))
