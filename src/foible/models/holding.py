"""A torch module as a model: bounds, preprocessing, outputs, and a session that leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import InputError, KindError, ModelError
from foible.core.oracle import Model
from foible.models.hooks import Edit, Glimpse, Run, find, named, recorded, watched
from foible.models.identity import digest_of, structure, weights_hash

Outputs = str | Callable[[Any], Tensor]
Preprocess = Callable[[Tensor], Tensor] | tuple[Sequence[float], Sequence[float]] | None

KINDS = ("logits", "probabilities", "logit")
# One forward holds about this many bytes of saved activations: what a shared cache takes on a
# CPU (larger batches were slower here), and a small part of any accelerator's memory.
_CPU_BYTES, _DEVICE_BYTES = 10 * 2**20, 2**30


class TorchModel:
    """An `nn.Module` with what an attack must know about it; made by `wrap`.

    Attributes: net, bounds (low, high), outputs, access, looks (how many forwards of a net one
    answer costs). Calling it gives logits (B, K).
    """

    looks: int = 1

    def __init__(
        self,
        net: nn.Module,
        bounds: tuple[float, float],
        preprocess: Preprocess,
        outputs: Outputs,
    ) -> None:
        self.net, self.outputs, self.access = net, outputs, Access.INTERNALS
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.preprocess = preprocess
        self._mean_std: tuple[Tensor, Tensor] | None = None
        if isinstance(preprocess, tuple | list):
            mean, std = (torch.as_tensor(p, dtype=torch.float64) for p in preprocess)
            if bool((std <= 0).any()):
                raise InputError(f"std is {std.tolist()}: every entry must be positive")
            self._mean_std = (mean, std)
        self._chunks: dict[tuple[Any, ...], int] = {}
        self._runs: dict[tuple[Any, ...], list[Run]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (B, K) as the net is now: no session, no meter."""
        return self.scores(x)

    def scores(self, x: Tensor) -> Tensor:
        """Return logits (B, K); probabilities are turned into their logarithms."""
        out = self.net(self._prepared(x))
        if callable(self.outputs):
            return self.outputs(out)
        if not isinstance(out, Tensor):
            named = out.get("logits") if isinstance(out, Mapping) else None
            out = named if named is not None else getattr(out, "logits", out)
        if not isinstance(out, Tensor):
            raise ModelError(
                f"the model returned {type(out).__name__}, not a tensor of scores: pass "
                "outputs= a function that picks them, e.g. wrap(net, outputs=first) with "
                "def first(out): return out[0]"
            )
        if self.outputs == "logit":
            out = out.reshape(len(x), 1)
            return torch.cat([torch.zeros_like(out), out], 1)
        if self.outputs == "probabilities":
            return out.clamp_min(1e-30).log()
        return out

    def to(self, where: Any) -> TorchModel:
        """Move the net to a device or dtype, as `nn.Module.to`."""
        self.net.to(where)
        return self

    def copied(self) -> TorchModel:
        """Return the model around a copy of its net, for methods that must change modules."""
        other = copy.copy(self)
        other.net = copy.deepcopy(self.net)
        return other

    @contextmanager
    def session(self, seed: int = 0, *, freeze: bool = True) -> Iterator[None]:
        """Evaluation mode, frozen parameters, a random state of its own; all restored after.

        Also after an exception or Ctrl-C. freeze=False leaves `requires_grad` alone, for
        explanations that are differentiated by the parameters.
        """
        training = [(module, module.training) for module in self.net.modules()]
        frozen = [p for p in self.net.parameters() if p.requires_grad] if freeze else []
        devices = sorted({p.device.index or 0 for p in self.net.parameters() if p.is_cuda})
        with torch.random.fork_rng(devices=devices):
            # Stochastic modules draw from this fork, never from the user's random state.
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.default_generators[device].manual_seed(seed)
            try:
                self.net.eval()
                for p in frozen:
                    p.requires_grad_(False)
                yield
            finally:
                for module, mode in training:
                    module.training = mode
                for p in frozen:
                    p.requires_grad_(True)

    def chunk(self, x: Tensor) -> int:
        """Return how many samples one forward holds: from the net, shape and dtype alone."""
        key = (tuple(x.shape[1:]), x.dtype, x.device.type)
        if key not in self._chunks:
            budget = _CPU_BYTES if x.device.type == "cpu" else _DEVICE_BYTES
            self._chunks[key] = max(1, min(8192, budget // max(1, self._saved_bytes(x))))
        return self._chunks[key]

    def layers(self, x: Tensor) -> dict[str, tuple[int, ...]]:
        """Return the names and output shapes of the layers; see `foible.models.layers_of`."""
        return named(self._ran(x))

    @contextmanager
    def watch(
        self, x: Tensor, layer: str | None, edit: Edit | None = None, read: Edit | None = None
    ) -> Iterator[Glimpse]:
        """Look into one layer, or edit what it gives, in the forward of x within.

        layer: a name of `layers`, or None for the last that gives maps (B, C, H, W). read: makes
        what is kept of the output, which it may neither change nor return.
        """
        with watched(self.net, Glimpse(self.run_of(x, layer), len(x), edit, read)) as glimpse:
            yield glimpse

    def run_of(self, x: Tensor, layer: str | None) -> Run:
        """Return the run that a layer's name means; see `watch`."""
        return find(self.net, self._ran(x), layer)

    def _ran(self, x: Tensor) -> list[Run]:
        """Return which modules run, and in which order: found out once, with one sample."""
        key = (tuple(x.shape[1:]), x.dtype, x.device.type)
        if key not in self._runs:
            with self.session(), torch.no_grad(), recorded(self.net) as runs:
                self.scores(x[:1].detach().clone())
            self._runs[key] = runs
        return self._runs[key]

    def identity(self) -> dict[str, Any]:
        """Return what makes this model this one: code, settings, wrapper, a hash of all weights."""
        mean_std = self._mean_std
        lines = [*structure(self.net), *structure(self.outputs)]
        before = str(getattr(self.preprocess, "__qualname__", type(self.preprocess).__qualname__))
        if mean_std is None:
            lines += structure(self.preprocess)
            if isinstance(self.preprocess, nn.Module):
                lines.append(weights_hash(self.preprocess))
        return {
            "architecture": digest_of(lines),
            "weights": weights_hash(self.net),
            "bounds": list(self.bounds),
            "preprocess": before if mean_std is None else [p.tolist() for p in mean_std],
            "outputs": self.outputs if isinstance(self.outputs, str) else self.outputs.__qualname__,
            "parameters": sum(p.numel() for p in self.net.parameters()),
        }

    def _prepared(self, x: Tensor) -> Tensor:
        if self._mean_std is not None:
            shape = [1, -1] + [1] * (x.dim() - 2) if x.dim() > 1 else [-1]
            mean, std = (p.to(x).reshape(shape) for p in self._mean_std)
            return (x - mean) / std
        # A net or a preprocessing may work in place: it gets a copy, never our tensor.
        x = x.clone()
        return self.preprocess(x) if callable(self.preprocess) else x

    def _saved_bytes(self, x: Tensor) -> int:
        """Measure what one sample's backward keeps in memory, parameters left out."""
        own = {p.untyped_storage().data_ptr() for p in self.net.parameters()}
        kept: list[Tensor] = []  # alive until they are counted, so that no address comes twice

        def keep(saved: Tensor) -> Tensor:
            kept.append(saved)
            return saved

        with (
            self.session(),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        ):
            self.scores(x[:1].detach().clone().requires_grad_())
        storages = (saved.untyped_storage() for saved in kept)
        sizes = {place.data_ptr(): place.nbytes() for place in storages}
        total = sum(size for place, size in sizes.items() if place not in own)
        return max(total, x[:1].numel() * x.element_size())


def wrap(
    net: nn.Module,
    bounds: tuple[float, float] = (0, 1),
    preprocess: Preprocess = None,
    outputs: Outputs = "logits",
) -> TorchModel:
    """Hold a torch module with what foible must know about it.

    net: maps (B, *shape) to class scores. It is never changed: every call runs in evaluation
    mode and leaves flags, gradients, hooks and random state as they were.
    bounds: the smallest and largest legal input value, the box of every threat.
    preprocess: (mean, std), each a number or one a channel, or any callable; part of the
    model, so eps and bounds speak of the input before it.
    outputs: "logits" (B, K), "probabilities" (B, K), "logit" (B,) or (B, 1) of a binary net, or
    a function that picks (B, K) logits from whatever the net returns.

    Raises KindError for a thing that is no module, InputError for bounds in the wrong order.

    >>> import torch
    >>> model = wrap(torch.nn.Linear(3, 2), bounds=(-1, 1))
    >>> model(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """
    if not isinstance(net, nn.Module):
        raise KindError(
            f"wrap takes a torch.nn.Module and got {type(net).__name__}: pass the network "
            "itself, not its weights, path or class"
        )
    if not bounds[0] < bounds[1]:
        raise InputError(f"bounds are {tuple(bounds)}: the first must be below the second")
    if isinstance(outputs, str) and outputs not in KINDS:
        raise InputError(f"outputs is {outputs!r}: choose {', '.join(KINDS)} or pass a function")
    return TorchModel(net, bounds, preprocess, outputs)


def as_model(model: Any) -> Model:
    """Return a model as it is, or wrap a bare module with bounds (0, 1)."""
    if isinstance(model, nn.Module):
        return wrap(model)
    if isinstance(model, Model):
        return model
    raise KindError(
        f"expected a torch.nn.Module or a wrapped model and got {type(model).__name__}: "
        "wrap it first, e.g. foible.wrap(net, bounds=(0, 1))"
    )


def as_module(model: Any) -> TorchModel:
    """Return a model that holds a torch module; refuse any other, which has no layers."""
    held = as_model(model)
    if not isinstance(held, TorchModel):
        raise KindError(
            f"{type(model).__name__} holds no torch module to train or to look into: pass the "
            "nn.Module itself, or foible.wrap(net)"
        )
    return held
