"""Devices, processes and mixed precision: what accelerate does, behind one small door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foible.core.errors import MissingExtra


class Devices:
    """This process among its peers, on its device."""

    def __init__(self, precision: str = "no") -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise MissingExtra(
                "training runs on Hugging Face accelerate, which is not installed: "
                "pip install 'foible[train]'"
            ) from error
        self.held = Accelerator(mixed_precision=None if precision == "no" else precision)
        self.rank, self.world = self.held.process_index, self.held.num_processes
        self.main = bool(self.held.is_main_process)
        self.moved = self.held.device.type != "cpu"

    def prepare(
        self, module: nn.Module, optimiser: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return both as this process uses them: on its device, and averaged with its peers."""
        held, stepped = self.held.prepare(module, optimiser)
        return held, stepped

    def to(self, tensor: Tensor) -> Tensor:
        """Move a tensor to this process's device."""
        return tensor.to(self.held.device, non_blocking=True)

    def differentiate(self, loss: Tensor) -> None:
        """Run the backward of the step's loss into the parameters' `.grad`."""
        self.held.backward(loss)

    def summed(self, *counts: float) -> list[float]:
        """Return each number added over all processes."""
        here = torch.tensor(counts, dtype=torch.float64, device="cpu" if not self.moved else None)
        if self.world == 1:
            return list(counts)
        found: Tensor = self.held.reduce(self.to(here.float()), reduction="sum")
        return [float(v) for v in found]

    @contextmanager
    def randomness(self, seed: int) -> Iterator[None]:
        """Give random modules a state of this step; the user's own comes back after."""
        devices = [self.held.device.index or 0] if self.held.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
            yield

    def scaler(self) -> dict[str, Any] | None:
        """Return the state of the gradient scaler that fp16 needs; None without one."""
        held = self.held.scaler
        return None if held is None else dict(held.state_dict())

    def load_scaler(self, state: dict[str, Any] | None) -> None:
        """Put such a state back."""
        if state is not None and self.held.scaler is not None:
            self.held.scaler.load_state_dict(state)
