"""Layer-wise relevance propagation; its rules are zennit's, an extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import AccessError, InputError, MissingExtra, ModelError
from foible.core.explainer import Field
from foible.core.oracle import Oracle, Run
from foible.core.problem import View
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.base import Explanation
from foible.explain.rules import pulled, scaled
from foible.models.functions import ASKING, POOLS, PROPERTIES, Following, name_of, names
from foible.models.functions import activation as activation_of
from foible.models.twins import SharpSoftplus

RULES = ("epsilon", "zplus", "epsilon_plus", "alpha2_beta1", "gamma")
# Outside of modules with a rule: what only moves values, whose gradient moves relevance back.
_MOVING = names(
    "flatten unflatten reshape reshape_as view view_as permute transpose t swapaxes movedim "
    "squeeze unsqueeze cat concat concatenate chunk split unbind getitem select narrow "
    "contiguous clone to float double stack flip roll pixel_shuffle dropout "
    "dropout1d dropout2d dropout3d"
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Placed(Following):
    """Refuse what happens between the modules that have a rule, unless it only moves values."""

    def __init__(self, ruled: list[nn.Module]) -> None:
        super().__init__(torch.zeros(0), "layer-wise relevance", strict=True)
        self.ruled, self.inside = ruled, 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Know when a module with a rule runs; its own functions are the rule's business."""

        def enter(*_: Any) -> None:
            self.inside += 1

        def leave(*_: Any) -> None:
            self.inside -= 1

        handles = []
        for module in self.ruled:
            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not self.inside:
            return super().__torch_function__(func, types, args, kwargs)
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.seen[out] = (out.requires_grad, out.requires_grad)
        return out

    def _serve(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], moving: list[Tensor]
    ) -> Any:
        name = name_of(func)
        call = activation_of(func, args, kwargs)
        # The rules give a dead unit no relevance, so a ReLU's own gradient passes it on unchanged.
        known = (call is not None and call.kind == "relu") or name in _MOVING or name in POOLS
        if name == "get":
            known = getattr(getattr(func, "__self__", None), "__name__", "") in PROPERTIES
        if kwargs.get("training") or not (known or name in ASKING):
            self.refuse(name)
        return func(*args, **kwargs)

    def refuse(self, name: str) -> None:
        """Raise for a function that no module with a rule stands for."""
        raise ModelError(
            f"layer-wise relevance has no rule for the function {name!r}: its rules belong to "
            "modules, so write it as one (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,"
            " nn.Sigmoid, and zennit.layer.Sum for a sum), end with logits, or use "
            "foible.explain.deep_lift()"
        )


class _Rules:
    """zennit's rules for the types of modules, and what must hold for them to be right."""

    def __init__(self, rule: str, epsilon: float) -> None:
        try:
            from zennit.canonizers import SequentialMergeBatchNorm
            from zennit.composites import LayerMapComposite
            from zennit.layer import Sum
            from zennit.rules import AlphaBeta, Epsilon, Gamma, Norm, Pass, ZPlus
            from zennit.types import Activation, AvgPool, Convolution
        except ImportError as error:
            raise MissingExtra(
                f"the rules of layer-wise relevance are zennit's, which was not found ({error}): "
                "pip install 'foible[zennit]' (it needs torchvision, built for your torch)"
            ) from error
        # A ReLU needs no hook: dead units have no relevance. Attention is no activation.
        hookless = (nn.ReLU, nn.MultiheadAttention)
        passing = tuple(t for t in Activation.__subclass__ if t not in hookless)
        self.passing = (*passing, SharpSoftplus)
        self.weighted = (Convolution, nn.Linear)
        self.summing = (Sum, AvgPool)
        conv = {
            "epsilon": Epsilon(epsilon),
            "zplus": ZPlus(epsilon),
            "epsilon_plus": ZPlus(epsilon),
            "alpha2_beta1": AlphaBeta(2.0, 1.0, epsilon),
            "gamma": Gamma(0.25, epsilon),
        }[rule]
        dense = ZPlus(epsilon) if rule == "zplus" else Epsilon(epsilon)
        types = [
            (self.passing, Pass()),
            (self.summing, Norm(epsilon)),
            (_NORMS, Pass()),
            ((Convolution,), conv),
            ((nn.Linear,), dense),
        ]
        self.composite, self.merging = LayerMapComposite(types), SequentialMergeBatchNorm()

    def check(self, net: nn.Module, layers: dict[str, Any]) -> list[nn.Module]:
        """Return the modules that have a rule; refuse a net that they do not suit."""
        kinds = (*self.passing, *self.weighted, *self.summing, *_NORMS)
        ruled = {n: m for n, m in net.named_modules() if isinstance(m, kinds)}
        for name in (n.partition("#")[0] for n in layers if n.endswith("#2")):
            if name in ruled:
                raise ModelError(
                    f"module {name!r} runs several times in one forward, and a rule knows one run "
                    "only: give each run a module of its own (a ReLU may be shared)"
                )
        for name, module in net.named_modules():
            bare = any(getattr(module, part, None) is None for part in ("weight", "running_var"))
            if isinstance(module, _NORMS) and bare:
                raise ModelError(
                    f"batch norm {name!r} has no weight or no running statistics, so it cannot be "
                    "merged into the layer before it"
                )
        return list(ruled.values())

    @contextmanager
    def held(self, net: nn.Module) -> Iterator[None]:
        """Hold the rules in hooks on the net; its batch norms are merged, for good, before."""
        # Not by the composite, which would undo it while the map's own graph needs the weights.
        self.merging.apply(net)
        for name, module in net.named_modules():
            if isinstance(module, _NORMS):
                if not _is_identity(module):
                    raise ModelError(
                        f"batch norm {name!r} does not follow a linear layer in the order of "
                        "definition, so it could not be merged and has no rule"
                    )
                module.eps = 0.0
        try:
            self.composite.register(net)
            yield
        finally:
            self.composite.remove()


def _is_identity(norm: Any) -> bool:
    shifts, scales = (norm.running_mean, norm.bias), (norm.running_var, norm.weight)
    return not any(bool(t.any()) for t in shifts) and all(bool((t == 1).all()) for t in scales)


@dataclass(frozen=True)
class Lrp(Explanation):
    """Relevance, handed from the logit to the input layer by layer (Bach et al. 2015).

    rule: "epsilon" or "zplus" for all layers; "epsilon_plus", z+ for convolutions and epsilon for
    linear layers; "alpha2_beta1" or "gamma" for convolutions and epsilon for linear layers.
    epsilon: added to every denominator. Batch norms are merged into the layer before them. The map
    is of what the net itself is given, after a preprocessing. On a graph it is differentiable by x,
    not by the parameters.
    """

    rule: str = "epsilon_plus"
    epsilon: float = 1e-6
    access = Access.INTERNALS
    verb = "delete"

    def __post_init__(self) -> None:
        if self.rule not in RULES or not self.epsilon > 0:
            raise InputError(
                f"rule={self.rule!r}, epsilon={self.epsilon}: choose {', '.join(RULES)}, and an "
                "epsilon above 0"
            )

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """Two forwards, two backwards of which one ends at the scores; on a copy of the net."""
        copied = getattr(field.oracle.model, "copied", None)
        if copied is None:
            raise AccessError(
                f"{type(field.oracle.model).__name__} holds no torch module: layer-wise relevance "
                "needs one, e.g. foible.wrap(net)"
            )
        rules = _Rules(self.rule, self.epsilon)
        model = copied()
        net = model.net
        for module in net.modules():
            if getattr(module, "inplace", False):
                module.inplace = False
        oracle = Oracle(model, len(field.oracle.meter.forwards), self.access)
        oracle.meter = field.oracle.meter
        with torch.no_grad():
            plain = oracle.scores(rows.x.detach(), rows)
        ruled = rules.check(net, model.layers(rows.x))
        with rules.held(net):
            some = Field(oracle, field.score, field.width)
            return self._relevance(some, rows, _Placed(ruled), plain, create_graph=create_graph)

    def _relevance(
        self, field: Field, rows: Rows, placed: _Placed, plain: Tensor, *, create_graph: bool
    ) -> Tensor:
        oracle, x = field.oracle, rows.x if create_graph else rows.x.detach()
        given: list[Tensor] = []

        def start(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            first = args[0] if create_graph else args[0].detach().requires_grad_()
            placed.seen[first] = (True, True)
            given.append(first)
            return (first.clone(), *args[1:])

        def look(run: Run, at: Tensor) -> Tensor:
            placed.seen[at] = (False, at.requires_grad)  # what comes before the net is free
            return placed.finish(run(at, placed))

        net: nn.Module = oracle.model.net  # type: ignore[attr-defined]
        handle = net.register_forward_pre_hook(start)
        try:
            with torch.enable_grad(), placed.watching(), oracle.through(look):
                scores = oracle.scores(x, rows)
        finally:
            handle.remove()
        if not torch.allclose(scores, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max())):
            raise ModelError(
                "merging batch norms into the layers before them changed the scores: the modules "
                "are not defined in the order in which they run"
            )
        with torch.enable_grad():
            values = field.score(View(oracle, rows, x, scores=scores))
            (share,) = oracle.grad(values, (scores,), rows, create_graph=create_graph)
            begin = share * scores
            # The relevance that each score begins with is the gradient that it is sent.
            handed = pulled(scores, scores.detach(), scaled, begin)
            (relevance,) = oracle.grad(handed, (given[-1],), rows, create_graph=create_graph)
        if relevance.shape != rows.x.shape:
            raise ModelError(
                f"the net is given {tuple(relevance.shape)} for inputs {tuple(rows.x.shape)}: the "
                "preprocessing changes the shape, so the map is not of the input"
            )
        return relevance


def lrp(rule: str = "epsilon_plus", epsilon: float = 1e-6) -> Lrp:
    """Return layer-wise relevance propagation (Bach et al. 2015), with the rules of zennit.

    Needs the extra `zennit`. rule: "epsilon", "zplus", "epsilon_plus", "alpha2_beta1" or "gamma".
    The map of a net without biases sums to the logit, up to epsilon.
    """
    return Lrp(rule, epsilon)
