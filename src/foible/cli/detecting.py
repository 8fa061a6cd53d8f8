"""`foible detect fit` and `foible detect evaluate`."""

from __future__ import annotations

import json
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
    console,
    linf_size,
    loaded,
    model_table,
    read_samples,
    refuse_model_options,
)

if TYPE_CHECKING:
    from torch import Tensor

    from foible.detect import Worth
    from foible.models import TorchModel

DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="SOURCE", help="Clean samples; as in `foible audit`."),
]
EpsOption = Annotated[
    str | None,
    typer.Option("--eps", metavar="SIZE", help="Linf size of the attacks; 0.1 of the range."),
]


def fit(
    name: Annotated[str, typer.Argument(metavar="DETECTOR", help="From `foible list detectors`.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the detector goes.")],
    model: ModelOption = None,
    weights: WeightsOption = None,
    bounds: BoundsOption = ("0", "1"),
    mean: MeanOption = None,
    std: StdOption = None,
    outputs: OutputsOption = "logits",
    data: DataOption = None,
    eps: EpsOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Fixes all randomness.")] = 0,
) -> None:
    """Fit a detector to a model and write it; adversarials to learn from are PGD's.

    Without --model and --data it is fitted to six in ten of the bundled test images.
    """
    held, x, y = _given((model, weights, bounds, mean, std, outputs), data, seed, fitting=True)
    watch = _named(name).fit(held, (x, y), attack=_attack(held, eps), seed=seed)
    watch.save(out)
    level = watch.threshold(0.05)
    typer.echo(
        f"{out}: {name}, fitted to {len(x)} samples; at {level.value:.4g} five in a hundred clean "
        "inputs are refused"
    )


def evaluate(
    detector: Annotated[
        Path, typer.Argument(metavar="FILE", help="What `foible detect fit` wrote.")
    ],
    model: ModelOption = None,
    weights: WeightsOption = None,
    bounds: BoundsOption = ("0", "1"),
    mean: MeanOption = None,
    std: StdOption = None,
    outputs: OutputsOption = "logits",
    data: DataOption = None,
    eps: EpsOption = None,
    samples: Annotated[int, typer.Option("--samples", help="At most so many.")] = 300,
    seed: Annotated[int, typer.Option("--seed", help="Fixes all randomness.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Gets the figures as JSON.")
    ] = None,
) -> None:
    """Say what a detector is worth: same attack, smaller, others, and one that knows it.

    Give samples that it was not fitted to. Without --model and --data they are the bundled test
    images that `foible detect fit` leaves out without --data.
    """
    from foible.detect import evaluate as measured
    from foible.detect.watching import load
    from foible.parts.threats import Linf

    watch = load(detector)
    held, x, y = _given((model, weights, bounds, mean, std, outputs), data, seed, samples)
    worth = measured(watch, held, (x, y), Linf(linf_size(eps, held)), seed=seed)
    _tell(worth)
    if out is not None:
        out.write_text(json.dumps(_plain(worth), indent=2) + "\n", encoding="utf-8")


def _given(
    options: tuple[Any, ...],
    data: str | None,
    seed: int,
    samples: int | None = None,
    *,
    fitting: bool = False,
) -> tuple[TorchModel, Tensor, Tensor]:
    import torch

    from foible.core.errors import InputError

    model, *rest = options
    bundled = model is None and data is None
    if model is None:
        refuse_model_options(*rest)
        data = data or "zoo:sample"
    if data is None:
        raise InputError("--data is missing: give clean samples of what the model is for")
    held = loaded(model_table(model or "zoo:standard", *rest))
    x, y, _ = read_samples(data, None if bundled else samples, seed, held)
    if bundled:  # what is fitted and what is measured share no sample, whatever the seeds
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        cut = int(0.6 * len(x))
        part = (order[:cut] if fitting else order[cut:][:samples]).sort().values
        x, y = x[part], y[part]
    return held, x, y


def _named(name: str) -> Any:
    from foible.audit.catalogue import find

    entry = find(name, "detectors")
    assert entry.made is not None
    return entry.made()


def _attack(held: TorchModel, eps: str | None) -> Any:
    from foible.attacks import pgd
    from foible.parts.threats import Linf

    return pgd(Linf(linf_size(eps, held)), 40)


def _tell(worth: Worth) -> None:
    from rich import box
    from rich.table import Table

    paper = console()
    table = Table(title=worth.detector, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for column in ("attack", "fools", "AUC", "caught at 5 %", "caught at 1 %"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for way in worth.ways:
        caught = [_share(v, i) for v, i in zip(way.caught, way.caught_interval, strict=True)]
        area = "not measured" if way.auc is None else f"{way.auc:.3f}"
        table.add_row(way.name, _share(way.fooled, None), area, *caught)
    paper.print(table)
    alarms = " and ".join(f"{rate:.1%}" for rate in worth.false_alarms)
    paper.print(f"False alarms on {len(worth.clean)} clean inputs at these levels: {alarms}.")


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.1%}" + ("" if interval is None else f" ({interval[0]:.0%}-{interval[1]:.0%})")


def _plain(worth: Worth) -> dict[str, Any]:
    return {
        "detector": worth.detector, "false_alarms": list(worth.false_alarms),
        "clean": len(worth.clean),
        "ways": [
            {
                "name": w.name, "kind": w.kind, "n": w.n, "fooled": w.fooled, "auc": w.auc,
                "auc_interval": w.auc_interval, "caught": list(w.caught),
                "caught_interval": list(w.caught_interval),
            }
            for w in worth.ways
        ],
    }  # fmt: skip
