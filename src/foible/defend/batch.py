"""What a training loss sees: the net as it is now, a batch, and the randomness of this step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from foible.attacks.base import Attack
from foible.core.errors import InputError
from foible.core.oracle import Oracle
from foible.core.randomness import Draw, Rng
from foible.core.rows import Rows
from foible.models.holding import TorchModel, as_model
from foible.parts.searches import Ascent


@dataclass
class Batch:
    """One step of training.

    model: the net that is trained, with its bounds and preprocessing. x: (B, *shape) float; y: (B,)
    int64; ids: (B,) int64, each sample's place in the data, which keys its noise. extras: what the
    data hold beside x and y, (B, ...) each. seed: of this epoch; with an id it fixes all noise.
    progress: the share of the training that is over, in [0, 1). memory: what a loss keeps from step
    to step; tensors, numbers and words in it are part of a checkpoint. replay: how many times this
    batch has been shown already, for losses that ask for several (`Loss.replays`). crafted: the
    adversarials made so far, inside of `remembering`; None outside.
    """

    model: TorchModel
    x: Tensor
    y: Tensor
    ids: Tensor
    extras: tuple[Tensor, ...] = ()
    seed: int = 0
    progress: float = 0.0
    memory: dict[str, Any] = field(default_factory=dict)
    replay: int = 0
    crafted: list[Tensor] | None = None
    seen: int = 0

    @property
    def net(self) -> nn.Module:
        """The module whose parameters are trained."""
        return self.model.net

    def scores(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of inputs, on the graph of the parameters, in the net's own mode."""
        return self.model.scores(x)

    def oracle(self) -> Oracle:
        """Return a door to the net as it is: for losses that hold gradients by the input."""
        return Oracle(self.model, len(self.x), self.model.access)

    def rows(self, x: Tensor | None = None) -> Rows:
        """Return the batch as rows, for an oracle or an explainer."""
        index = torch.arange(len(self.y), device=self.y.device)
        return Rows(index, self.ids, self.x if x is None else x, self.y)

    def draw(self, stream: int = 0) -> Draw:
        """Return random numbers keyed by sample, epoch and replay, one stream a purpose."""
        return Rng(self.seed).split(stream).at(self.ids, self.replay)

    def once(self, stream: int = 0) -> Draw:
        """Return a draw of one row, for the batch as a whole.

        Keyed by epoch, progress and replay: all processes of one step draw the same.
        """
        step = torch.tensor([round(self.progress * 2**52)])
        return Rng(self.seed).split(stream).at(step, self.replay)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Give the same adversarials to every look at the batch within; `rewind` begins a look."""
        self.crafted, self.seen = [], 0
        try:
            yield
        finally:
            self.crafted = None

    def rewind(self) -> None:
        """Begin another look at the batch, inside of `remembering`."""
        self.seen = 0

    def craft(
        self,
        attack: Attack,
        *,
        scores: Tensor | None = None,
        against: Any = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """Return adversarials (B, *shape) of this batch, off the graph.

        The net is in evaluation mode and its parameters are frozen while they are made (as in
        TRADES' code). An attack that ascends gets no verdict and no second look: its last point is
        taken (Madry et al. 2018), for one forward and one backward a step. Any other attack runs as
        it stands. scores: (B, K) what the objective compares with (`rows.scores`). against:
        another model to attack in place of the one in training. y: (B,) labels to attack in place
        of the batch's.
        """
        y = self.y if y is None else y
        if self.crafted is None:
            return self._made(attack, scores, against, y)
        if self.seen == len(self.crafted):
            self.crafted.append(self._made(attack, scores, against, y))
        self.seen += 1
        return self.crafted[self.seen - 1]

    def _made(self, attack: Attack, scores: Tensor | None, against: Any, y: Tensor) -> Tensor:
        model = self.model if against is None else as_model(against)
        seed = self.seed + 0x5EED * self.replay
        if not (isinstance(attack.search, Ascent) and attack.restarts == 1):
            return attack(model, self.x, y, seed=seed, ids=self.ids).x
        oracle = Oracle(model, len(self.x), attack.searching)
        threat = attack.threat.inside(model.bounds)
        rows = replace(attack.rows(threat, self.x, y, None, self.ids), scores=scores)
        with oracle.session(seed):
            if attack.prepare is not None:
                rows = attack.prepare(oracle, rows, seed)
            problem = replace(attack.problem(oracle, threat), keep="last", stop="never")
            return attack.search_all(problem, rows, seed)[0].detach()

    def grown(self, attack: Attack, ramp: float) -> Attack:
        """Return the attack with eps as far as it has grown: from 0, over the share `ramp`.

        A net that meets a large eps at once may stay at chance (MNIST at 0.3).
        """
        share = 1.0 if ramp <= 0 else min(1.0, self.progress / ramp)
        if share == 1.0:
            return attack
        eps = getattr(attack.threat, "eps", None)
        if not isinstance(eps, float):
            raise InputError("ramp needs a threat with one eps, which is what it lets grow")
        smaller = attack.within(replace(attack.threat, eps=eps * share))  # type: ignore[call-arg]
        search = smaller.search
        if isinstance(search, Ascent) and search.length is not None:
            smaller = replace(smaller, search=replace(search, length=search.length * share))
        return smaller
