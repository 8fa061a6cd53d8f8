"""The trainer: one loop for every loss, on one process or many, which survives a kill."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foible.core.errors import InputError, LogError, ModelError
from foible.defend.batch import Batch
from foible.defend.losses.base import Loss
from foible.defend.training import checkpoints, history
from foible.defend.training.devices import Devices
from foible.defend.training.feeding import Fed, Loader, Share, Tensors, check_fed, feed
from foible.defend.training.history import Epoch
from foible.defend.training.identity import run_identity
from foible.defend.training.settings import Settings
from foible.defend.training.showing import Showing
from foible.defend.training.stopping import Stopping
from foible.defend.training.validating import Validation
from foible.models.holding import TorchModel, as_model


def train(
    net: nn.Module | TorchModel,
    data: Any,
    loss: Loss,
    epochs: int = 10,
    *,
    valid: tuple[Tensor, Tensor] | None = None,
    out: str | Path | None = None,
    settings: Settings | None = None,
) -> nn.Module:
    """Train a copy of a net and return it, in evaluation mode; the given one stays as it is.

    net: an `nn.Module` for inputs in (0, 1), or `foible.wrap(net, bounds, preprocess, outputs)`.
    data: (x, y) as tensors, x (N, *shape) float inside the bounds and y (N,) int64; a torch
    Dataset; or a loader of such batches. loss: from `foible.defend`, e.g. `trades(attack)`.
    valid: (x, y) to choose the best epoch by; None holds out a twentieth of tensor data
    (`Settings.hold_out`). out: a folder for the checkpoint, `history.csv`, `history.svg` and
    `model.safetensors`. A training that was killed goes on from its checkpoint when it is called
    again with the same arguments, and ends with the same bits on one process. settings: the rest.

    What is returned has the averaged weights of the epoch with the best robust validation accuracy.
    Devices, processes (`accelerate launch`) and mixed precision are Hugging Face accelerate's.

    Raises InputError or KindError for data, labels or settings that cannot be used; ModelError when
    the loss is not finite, with the batch it happened in; LogError for a folder that holds another
    training or a disk that is full. A finished checkpoint stays valid through all of them, and
    through Ctrl-C, which ends the step in progress and writes one more; a second Ctrl-C stops at
    once and writes none.

    >>> import foible, torch
    >>> x, y = torch.rand(64, 3), torch.arange(64) % 2
    >>> attack = foible.attacks.pgd(foible.Linf(0.05), steps=2)
    >>> net = foible.defend.train(torch.nn.Linear(3, 2), (x, y), foible.defend.adversarial(attack),
    ...                           epochs=1)
    >>> net.training
    False
    """
    return Training(net, data, loss, epochs, valid, Path(out) if out else None, settings).run()


class _Lossy(nn.Module):
    """The loss as a module, so that processes average gradients once a step, whatever it calls."""

    def __init__(self, net: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean loss."""
        return self.loss(batch).mean()


class Training:
    """A training in progress; made by `train`."""

    def __init__(
        self,
        net: nn.Module | TorchModel,
        data: Any,
        loss: Loss,
        epochs: int,
        valid: tuple[Tensor, Tensor] | None,
        out: Path | None,
        settings: Settings | None,
    ) -> None:
        if epochs < 1:
            raise InputError(f"epochs={epochs}: at least one")
        held = as_model(net)
        if not isinstance(held, TorchModel):
            raise InputError(
                f"{type(net).__name__} is no torch module with weights to train: pass the network"
            )
        self.settings = settings or Settings()
        self.loss, self.epochs, self.out = loss, epochs, out
        self.fed: Tensors | Loader = feed(data, self.settings.batch, loss.extras)
        told = run_identity(held, data, loss, epochs, self.settings)
        if valid is None and isinstance(self.fed, Tensors):
            self.fed, valid = self.fed.split(self.settings.hold_out, self.settings.seed)
        self.devices = Devices(self.settings.precision)
        self.share = Share(self.devices.rank, self.devices.world)
        # Steps are counted in batches of all processes: other numbers of them, another training.
        self.identity = told if self.share.world == 1 else f"{told} on {self.share.world}"
        self.per_epoch = self.fed.steps(self.share)
        if self.per_epoch == 0:
            raise InputError("fewer samples than processes: there is no step to take")
        self.model = held.copied()
        self.home = next((p.device for p in held.net.parameters()), torch.device("cpu"))
        self.model.net = loss.prepare(self.model.net)
        parameters = list(self.model.net.parameters())
        if not parameters:
            raise InputError("the net has no parameters: there is nothing to train")
        if not any(p.requires_grad for p in parameters):
            self.model.net.requires_grad_(True)  # a bundled net comes frozen
        self._set_up(valid)

    def _set_up(self, valid: tuple[Tensor, Tensor] | None) -> None:
        net, settings = self.model.net, self.settings
        self.module, self.optimiser = self.devices.prepare(
            _Lossy(net, self.loss),
            settings.optimiser_of([p for p in net.parameters() if p.requires_grad]),
        )
        self.schedule = settings.schedule_of(self.optimiser, self.epochs * self.per_epoch)
        if settings.compile:
            net.compile()
        self.average = {k: v.detach().clone() for k, v in net.state_dict().items()}
        self.best: dict[str, Tensor] | None = None
        self.memory: dict[str, Any] = {}
        self.rows: list[Epoch] = []
        self.epoch, self.position, self.step = 0, 0, 0
        self.total, self.spent = 0.0, 0.0
        self.classes = 0  # not asked yet
        self.whole = True  # between two steps, where a checkpoint may be written
        self.validation = None if valid is None else Validation(valid, self.loss, settings)

    # --- the loop

    def run(self) -> nn.Module:
        """Train to the end, from the checkpoint if there is one; return the net."""
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            state = checkpoints.load(self.out, self.identity)
            if state is not None:
                self._restore(state)
        self.began = self.saved = time.monotonic()
        with Showing(self.epochs, self.per_epoch, self.devices.main) as showing, Stopping() as stop:
            showing.at(self.epoch, self.position, self.rows)
            try:
                while self.epoch < self.epochs and not self._over():
                    self._epoch(showing, stop)
            except KeyboardInterrupt:
                if self.whole:  # half a step is no place to go on from
                    self._save()
                raise
        return self._finish()

    def _epoch(self, showing: Showing, stop: Stopping) -> None:
        seed = self._seed(self.epoch)
        for fed in self.fed.batches(seed, self.share, self.position):
            check_fed(fed, self.loss.extras)
            self.whole = False
            self._batch(fed, seed)
            self.position += 1
            self.whole = True
            showing.at(self.epoch, self.position, self.rows)
            stop.check()
            if time.monotonic() - self.saved >= self.settings.save_seconds:
                self._save()
        self.whole = False
        self._validate()
        self.epoch, self.position, self.total = self.epoch + 1, 0, 0.0
        self.whole = True
        showing.at(self.epoch, 0, self.rows)
        self._save()
        stop.check()

    def _batch(self, fed: Fed, seed: int) -> None:
        to = self.devices.to
        x, ids = to(fed.x), to(fed.ids)
        batch = Batch(
            self.model, x, to(fed.y), ids, tuple(to(e) for e in fed.extras), seed,
            self.step / (self.epochs * self.per_epoch), self.memory,
        )  # fmt: skip
        self._check(fed, batch)
        if self.settings.augment is not None:
            low, high = self.model.bounds
            batch.x = self.settings.augment(x, batch.draw(17)).clamp(low, high)
        # Dropout and its like draw from a state of this step alone: nothing to save, and the
        # user's own random state is left as it is.
        with self.devices.randomness(self._seed(self.epoch, self.position, self.share.rank)):
            for replay in range(self.loss.replays):
                batch.replay = replay
                value = self._update(batch)
        self.total += value
        self.step += 1
        self.schedule.step()
        self._blend()

    def _update(self, batch: Batch) -> float:
        self.model.net.train()
        self.optimiser.zero_grad()
        with self.loss.around(batch):
            loss = self.module(batch)
            value = float(loss.detach())
            if not torch.isfinite(loss.detach()):
                raise ModelError(self._broken(value, batch))
            self.devices.differentiate(loss)
        self.optimiser.step()
        return value

    def _broken(self, value: float, batch: Batch) -> str:
        ids = batch.ids.tolist()
        some = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
        kept = "nothing was kept, because no `out` folder was given"
        if self.out is not None:
            there = (self.out / checkpoints.NAME).exists()
            kept = f"the last good checkpoint is in {self.out}" if there else "none was written yet"
        return (
            f"the loss is {value} at step {self.step} (epoch {self.epoch + 1}, batch "
            f"{self.position + 1}, samples {some}); {kept}. Lower Settings(lr=...), clip gradients "
            "in your optimiser, or look at these samples"
        )

    def _blend(self) -> None:
        decay = min(self.settings.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.net.state_dict().items():
                mean = self.average[key]
                if self.settings.average and value.is_floating_point() and "running_" not in key:
                    mean.lerp_(value, 1 - decay)
                else:
                    mean.copy_(value)

    def _seed(self, *at: int) -> int:
        seed = self.settings.seed
        for part in at:
            seed = (seed * 1_000_003 + part + 1) & (2**62 - 1)
        return seed

    # --- between epochs

    def _validate(self) -> None:
        clean = robust = None
        if self.validation is not None:
            shown = self._shown(self.average)
            clean, robust = self.validation.accuracy(shown, self.devices)
        row = Epoch(
            self.epoch + 1, self.step, self.total / max(1, self.per_epoch),
            float(self.optimiser.param_groups[0]["lr"]), clean, robust, self._seconds(),
        )  # fmt: skip
        before = [r.worth for r in self.rows if r.worth is not None]
        self.rows.append(row)
        if row.worth is not None and all(row.worth >= other for other in before):
            self.best = {k: v.clone() for k, v in self.average.items()}

    def _over(self) -> bool:
        """Say whether the patience is used up."""
        worths = [r.worth for r in self.rows]
        if self.settings.patience is None or not worths or worths[-1] is None:
            return False
        kept = [w for w in worths if w is not None]
        return len(kept) - 1 - kept.index(max(kept)) >= self.settings.patience

    def _shown(self, state: dict[str, Tensor]) -> TorchModel:
        """Return the model with other weights, as it will be handed out."""
        shown = self.model.copied()
        shown.net.load_state_dict(state)
        shown.net = self.loss.finish(shown.net).eval()
        return shown

    def _check(self, fed: Fed, batch: Batch) -> None:
        """Refuse labels and inputs out of range: of tensors all, of a loader batch by batch."""
        first = self.classes == 0
        if first:
            with self.model.session(), torch.no_grad():
                self.classes = self.model.scores(batch.x[:1]).shape[1]
        elif isinstance(self.fed, Tensors):
            return
        x, y = self.fed.parts[:2] if isinstance(self.fed, Tensors) else (fed.x, fed.y)
        if int(y.min()) < 0 or int(y.max()) >= self.classes:
            raise InputError(
                f"labels go from {int(y.min())} to {int(y.max())} and the net has classes "
                f"0 to {self.classes - 1}: check the label encoding"
            )
        low, high = self.model.bounds
        if float(x.min()) < low - 1e-6 or float(x.max()) > high + 1e-6:
            raise InputError(
                f"inputs go from {float(x.min()):g} to {float(x.max()):g} and the "
                f"model's bounds are {(low, high)}: give bounds (and preprocess) to foible.wrap"
            )

    # --- what is kept

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self.began

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.out is None or not self.devices.main:
            return
        net = self.model.net.state_dict()
        if not self._finite():
            return  # the next loss will be NaN and tells; the last good checkpoint stays
        checkpoints.save(self.out, {
            "identity": self.identity, "epoch": self.epoch, "position": self.position,
            "step": self.step, "total": self.total, "seconds": self._seconds(), "net": net,
            "average": self.average, "best": self.best,
            "optimiser": self.optimiser.state_dict(), "schedule": self.schedule.state_dict(),
            "scaler": self.devices.scaler(), "memory": self.memory,
            "rows": [asdict(row) for row in self.rows],
        })  # fmt: skip
        history.write(self.out, self.rows)

    def _finite(self) -> bool:
        """Say whether the weights are finite; a buffer, as a mask, may hold an infinity."""
        return checkpoints.finite(dict(self.model.net.named_parameters()))

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.net.load_state_dict(state["net"])
        to = self.devices.to
        self.average = {k: to(v) for k, v in state["average"].items()}
        self.best = None if state["best"] is None else {k: to(v) for k, v in state["best"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.devices.load_scaler(state["scaler"])
        self.memory.update(state["memory"])
        self.rows = history.read(state["rows"])
        self.epoch, self.position, self.step = state["epoch"], state["position"], state["step"]
        self.total, self.spent = state["total"], state["seconds"]

    def _finish(self) -> nn.Module:
        if self.best is None and not self._finite():
            raise ModelError(  # no loss was looked at after the last step
                f"the weights are not finite after the last step, {self.step}: there is no net to "
                "hand out. Lower Settings(lr=...), or clip gradients in your optimiser"
            )
        model = self._shown(self.average if self.best is None else self.best)
        if self.out is not None and self.devices.main:
            from safetensors.torch import save_model

            try:
                save_model(model.net, str(self.out / "model.safetensors"))
                history.write(self.out, self.rows)
                history.draw(self.out, self.rows)
            except OSError as error:
                raise LogError(
                    f"the trained net could not be written to {self.out} ({error}): make room and "
                    "run the same command again, which goes on from the checkpoint"
                ) from error
        return model.net.to(self.home)
