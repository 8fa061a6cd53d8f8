"""The dynamic adversary of a detector subnetwork, and training against it (T3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.attacks.base import Attack
from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.oracle import Oracle
from foible.core.problem import View
from foible.core.randomness import Draw, Rng
from foible.core.rows import Rows, per_row
from foible.core.threat import Threat
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss, cross_entropy
from foible.defend.training import Settings, train
from foible.detect.base import Feature, State, features_of, named, part_of
from foible.detect.nets import Network
from foible.detect.watching import Detector, Watch
from foible.models.holding import TorchModel, as_model, wrap
from foible.parts.searches import Ascent


@dataclass(frozen=True)
class Mixed:
    """An objective whose gradient is (1 - s) of the classifier's loss and s of the detector's.

    share: s, or None to draw one for each input, evenly from 0 to 1, and keep it. Each gradient is
    divided by its mean absolute value first, so that neither drowns the other. Departure: the paper
    adds the signs; the step of an Linf threat takes the sign of what is added, of which nothing
    of the smaller share would be left.
    """

    watch: Watch
    share: float | None = 0.5

    @property
    def access(self) -> Access:
        """As deep as the feature looks, and a gradient through it."""
        return max(Access.GRADIENTS, self.watch.detector.access)

    def shares(self, view: View) -> Tensor:
        """Return s (B,) of each row."""
        ids = view.rows.id
        if self.share is not None:
            return torch.full((len(ids),), self.share, device=ids.device).to(view.x_adv)
        rng = view.draw.rng if isinstance(view.draw, Draw) else Rng(0)
        return rng.split(67).at(ids).scalars(1).squeeze(1).to(view.x_adv)

    def __call__(self, view: View) -> Tensor:
        """Return (B,): the mixture of the losses."""
        from foible.detect.evading import suspicion

        share = self.shares(view)
        first, second = scaled_by(view.x_adv, 1 - share), scaled_by(view.x_adv, share)
        own = View(view.oracle, view.rows, first, view.z)
        own.draw = view.draw
        wrong = cross_entropy(own.scores, view.rows.y)
        other = View(view.oracle, view.rows, second, view.z)
        other.draw = view.draw
        other._labels = own.labels
        graph = torch.is_grad_enabled() and view.x_adv.requires_grad
        hidden = -suspicion(self.watch, other, soft=True, create_graph=graph)
        return (1 - share) * wrong + share * hidden


def scaled_by(x: Tensor, weight: Tensor) -> Tensor:
    """Return x (B, *shape), whose gradient has a mean absolute value of `weight` (B,)."""
    made = x.view_as(x)
    if made.requires_grad:

        def scale(grad: Tensor) -> Tensor:
            size = grad.flatten(1).abs().mean(1).clamp_min(torch.finfo(grad.dtype).tiny)
            return grad * per_row(weight / size, grad)

        made.register_hook(scale)
    return made


def dynamic_adversary(
    watch: Watch, threat: Threat, share: float | None = 0.5, steps: int = 10
) -> Attack:
    """Return the attack on a classifier and its detector of Metzen et al. 2017 (T3).

    x <- x + step along (1 - share) of the classifier's gradient and share of the detector's. Its
    success is to fool the classifier; what of that the detector sees is for `watch.score` to say.
    `adaptive` searches harder. share: in [0, 1], or None to draw it for each input. Departure: see
    `Mixed`.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net, pgd = foible.zoo.load("standard"), foible.attacks.pgd(foible.Linf(0.1), steps=5)
    >>> watch = foible.detect.subnetwork(epochs=1).fit(net, (x[:100], y[:100]), attack=pgd)
    >>> dynamic_adversary(watch, foible.Linf(0.1))(net, x[100:104], y[100:104]).x.shape
    torch.Size([4, 1, 28, 28])
    """
    if share is not None and not 0 <= share <= 1:
        raise InputError(f"share={share}: the detector's part of each step lies in [0, 1]")
    search = Ascent(steps, None, min(1.0, 2.5 / steps), "random")
    return Attack("dynamic_adversary", threat, search, Mixed(watch, share))


class Subnet(nn.Module):
    """A detector as a net of its own: inputs to (B, 2), with the classifier frozen inside.

    head: what is trained. model, feature, known: where its features come from. scale: their mean
    and spread.
    """

    def __init__(
        self, head: nn.Module, model: TorchModel, feature: Feature, known: State, scale: State
    ) -> None:
        super().__init__()
        self.head, self.model, self.feature = head, model, feature
        self.known, self.scale = known, scale

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 2)."""
        oracle = Oracle(self.model, len(x), max(self.feature.access, Access.SCORES))
        index = torch.arange(len(x), device=x.device)
        rows = Rows(index, index, x, index)
        with oracle.session(), torch.no_grad():
            rows = replace(rows, y=oracle.labels(x, rows))
            draw = Rng(0).split(23).at(index)
            features = self.feature(oracle, rows, self.known, draw)
        found: Tensor = self.head((features - self.scale["mean"]) / self.scale["spread"])
        return found


@dataclass(frozen=True)
class Dynamic(Loss):
    """The cross-entropy of clean inputs, and of what the dynamic adversary makes of them now."""

    detector: Detector
    threat: Threat
    steps: int = 10

    @property
    def extras(self) -> int:
        """The class of each input, which the adversary leads away from."""
        return 1

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        net = batch.net
        if not isinstance(net, Subnet):
            raise KindError(f"dynamic training trains a Subnet and got {type(net).__name__}")
        held = {f"net.{k}": v.detach() for k, v in net.head.state_dict().items()} | net.scale
        now = Watch(self.detector, named(net.known, "feature") | named(held, "head"))
        attack = dynamic_adversary(now, self.threat, None, self.steps)
        bad = batch.craft(attack, against=net.model, y=batch.extras[0])
        scores = batch.scores(torch.cat([batch.x, bad]))
        marks = torch.arange(len(scores), device=scores.device) >= len(batch.x)
        return F.cross_entropy(scores, marks.long(), reduction="none").view(2, -1).mean(0)


def hardened(
    detector: Detector,
    model: Any,
    clean: tuple[Tensor, Tensor],
    state: State,
    threat: Threat,
    seed: int,
) -> State:
    """Return the head's state after `detector.dynamic` more epochs, against the dynamic adversary.

    state: of the fitted detector. Raises KindError for a head that is no `Network`, or a model that
    is no torch module.
    """
    held, head = as_model(model), detector.head
    if not isinstance(head, Network) or not isinstance(held, TorchModel):
        raise KindError(
            f"{detector.name} cannot be trained dynamically: that takes a Network head and a torch "
            "module"
        )
    (x, y), told = clean, part_of(state, "head")
    weights = part_of(told, "net")
    scale = {k: told[k] for k in ("mean", "spread")}
    known = part_of(state, "feature")
    shape = features_of(detector.feature, held, x[:1], known, seed).shape[1:]
    net = head.build(tuple(shape))
    net.load_state_dict(weights)
    subnet = Subnet(net, held, detector.feature, known, scale)
    made = train(
        wrap(subnet, held.bounds), (x, torch.zeros_like(y), y), Dynamic(detector, threat),
        detector.dynamic, settings=Settings(batch=64, lr=head.lr, hold_out=0, seed=seed),
    )  # fmt: skip
    assert isinstance(made, Subnet)
    return scale | {f"net.{k}": v.detach() for k, v in made.head.state_dict().items()}
