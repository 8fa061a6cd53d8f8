"""`foible harden`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foible.cli.sharing import (
    BoundsOption,
    MeanOption,
    ModelOption,
    OutputsOption,
    StdOption,
    WeightsOption,
    folder_for,
    linf_size,
    loaded,
    model_table,
    read_samples,
    refuse_model_options,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foible.core.threat import Threat
    from foible.models import TorchModel

Samples = tuple["Tensor", "Tensor"]


def harden(
    model: ModelOption = None,
    weights: WeightsOption = None,
    bounds: BoundsOption = ("0", "1"),
    mean: MeanOption = None,
    std: StdOption = None,
    outputs: OutputsOption = "logits",
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="What to train on: an .npz with x and y, a folder of class folders of pictures, "
            "package.module:dataset, or zoo:fashion_mnist_train.",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            "--test",
            metavar="SOURCE",
            help="What the report is measured on; without it a tenth of --data, at most 1,000, "
            "which is then not trained on.",
        ),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            metavar="NAME",
            help="trades, pgd, fast, awp, free, fgsm, interval, penalty, advprop or plain.",
        ),
    ] = "trades",
    norm: Annotated[str, typer.Option("--norm", metavar="linf|l2|l1")] = "linf",
    eps: Annotated[
        str | None,
        typer.Option(
            "--eps", metavar="SIZE", help="What to withstand, such as 8/255; 0.1 of the range."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the data.")] = 10,
    steps: Annotated[int, typer.Option("--steps", help="Steps of the attack in the loss.")] = 10,
    beta: Annotated[float, typer.Option("--beta", help="TRADES: the weight of robustness.")] = 6.0,
    ramp: Annotated[
        float, typer.Option("--ramp", help="The share of the training over which eps grows.")
    ] = 0.0,
    batch: Annotated[int, typer.Option("--batch", help="Samples a step and process.")] = 128,
    lr: Annotated[float, typer.Option("--lr", help="Adam's learning rate at its height.")] = 2e-3,
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="Stop after so many epochs without a better one."),
    ] = None,
    precision: Annotated[str, typer.Option("--precision", metavar="no|bf16|fp16")] = "no",
    seed: Annotated[int, typer.Option("--seed", help="Fixes all randomness.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", help="Where the net, its history and the report go.")
    ] = Path("runs/hardened"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Audit the net before and after.")
    ] = True,
) -> None:
    """Train a model to withstand attacks; audit it before and after.

    Without --model it hardens the bundled standard model on Fashion-MNIST. Runs on several devices
    under `accelerate launch -m foible.cli harden ...`. A run that was stopped or killed goes on
    with --resume, and ends with the same weights.
    """
    from foible.core.errors import InputError
    from foible.defend import Settings, train
    from foible.defend.naming import Choice, named

    if model is None:
        refuse_model_options(weights, bounds, mean, std, outputs)
        if test is None and data is None:
            test = "zoo:sample"
    source = model or "zoo:standard"
    held = loaded(model_table(source, weights, bounds, mean, std, outputs))
    threat = _threat(norm, eps, held)
    chosen = named(loss, Choice(threat, steps, beta, ramp))
    settings = Settings(batch=batch, lr=lr, patience=patience, precision=precision, seed=seed)
    if data is None and model is not None:
        raise InputError(
            "--data is missing: give what to train on, an .npz with arrays x and y, a folder of "
            "class folders with pictures, or package.module:dataset"
        )
    taught, shown = _data(data or "zoo:fashion_mnist_train", test, held, seed)
    folder = folder_for(out)
    _check_folder(folder, resume)
    try:
        made = train(held, taught, chosen, epochs, out=folder, settings=settings)
    except KeyboardInterrupt:
        typer.echo("foible: stopped. The same command with --resume goes on from there.", err=True)
        raise typer.Exit(3) from None
    if not _first_process():
        return
    typer.echo(f"Trained: {folder / 'model.safetensors'}, epochs in {folder / 'history.csv'}")
    if report:
        _report(held, made, shown, folder, (norm, threat, seed))


def _threat(norm: str, eps: str | None, held: TorchModel) -> Threat:
    """Build the ball of --norm and --eps."""
    from foible.core.errors import InputError
    from foible.parts import threats

    balls: dict[str, type[Any]] = {"linf": threats.Linf, "l2": threats.L2, "l1": threats.L1}
    if norm.lower() not in balls:
        raise InputError(f"there is no norm {norm!r} to train against: choose {', '.join(balls)}")
    if eps is None and norm.lower() != "linf":
        raise InputError(f"--eps is missing: {norm} has no size that fits every input")
    return balls[norm.lower()](linf_size(eps, held))  # type: ignore[no-any-return]


def _data(data: str, test: str | None, held: TorchModel, seed: int) -> tuple[Samples, Samples]:
    """Load what is trained on and what is measured on; they share no sample."""
    import torch

    x, y, _ = read_samples(data, None, seed, held)
    if test is not None:
        return (x, y), read_samples(test, 1000, seed, held)[:2]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    count = min(1000, max(1, len(y) // 10))
    rest, out = order[count:].sort().values, order[:count].sort().values
    return (x[rest], y[rest]), (x[out], y[out])


def _check_folder(folder: Path, resume: bool) -> None:
    from foible.core.errors import InputError
    from foible.defend.training import checkpoints

    there = (folder / checkpoints.NAME).exists()
    if there and not resume:
        raise InputError(
            f"{folder} holds a training already: --resume goes on with it, and another --out "
            "starts afresh"
        )
    if resume and not there:
        raise InputError(f"--resume: there is no checkpoint in {folder}; leave --resume out")


def _first_process() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _report(
    held: TorchModel,
    made: nn.Module,
    shown: Samples,
    folder: Path,
    setting: tuple[str, Threat, int],
) -> None:
    """Audit both nets on the same samples, and say what changed."""
    import shlex

    from foible.audit import Plan, run
    from foible.cli.auditing import tell

    norm, threat, seed = setting
    # The plan derives the sizes of L2 and L1 from that of Linf: choose it so that the trained one
    # comes out.
    unit = Plan.preset(eps=1.0).radius(norm.lower(), shown[0][0].numel())
    size = float(threat.eps) / unit  # type: ignore[attr-defined]
    plan = Plan.preset("quick", eps=size, seed=seed)
    after = held.copied()
    after.net = made
    done = run(
        {"before": held, "after": after}, shown, folder / "report", plan=plan,
        about={"command": "foible " + shlex.join(sys.argv[1:])},
    )  # fmt: skip
    tell(done, False)
