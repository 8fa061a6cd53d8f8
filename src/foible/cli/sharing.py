"""What the verbs share: options, models from options, errors as text, paper to print on."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from foible.models import TorchModel

_NUMBER = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?(/\d+)?$")
_LISTS = ("--mean", "--std")

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="SOURCE",
        help="zoo:standard, zoo:hardened, or package.module:factory, a function without arguments "
        "that returns the network. Only that module's code runs.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights", metavar="FILE", help="Its weights: .safetensors, or .pt of tensors only."
    ),
]
BoundsOption = Annotated[
    tuple[str, str],
    typer.Option("--bounds", metavar="LOW HIGH", help="The smallest and largest input value."),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        "--mean", metavar="NUMBERS", help="Inputs become (x - mean) / std; one, or one a channel."
    ),
]
StdOption = Annotated[str | None, typer.Option("--std", metavar="NUMBERS", help="See --mean.")]
OutputsOption = Annotated[
    str,
    typer.Option(
        "--outputs",
        metavar="KIND",
        help="What the network returns: logits, probabilities, or logit (one number, two classes).",
    ),
]


class Verb(TyperCommand):
    """A command that takes `--mean 0.1 0.2 0.3` and tells foible's errors in plain text."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the numbers after an option that takes several."""
        return super().parse_args(ctx, joined(args))

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; an error that foible raises on purpose becomes text and exit code 2."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            errors = sys.modules.get("foible.core.errors")
            if errors is None or not isinstance(error, errors.FoibleError):
                raise
            if os.environ.get("FOIBLE_DEBUG"):
                raise
            typer.echo(f"foible: {error}", err=True)
            raise typer.Exit(2) from error


def joined(args: Sequence[str]) -> list[str]:
    """Join the numbers that follow --mean and --std by commas.

    >>> joined(["--mean", "0.5", "-1", "1/2", "--out", "x"])
    ['--mean', '0.5,-1,1/2', '--out', 'x']
    """
    out: list[str] = []
    run = False
    for arg in args:
        number = all(_NUMBER.match(part) for part in arg.rstrip(",").split(","))
        if run and number and out[-1] not in _LISTS:
            out[-1] = f"{out[-1].rstrip(',')},{arg.rstrip(',')}"
        else:
            run = arg in _LISTS or (run and number)
            out.append(arg)
    return out


def console() -> Console:
    """Return the paper for tables: the terminal, or 100 columns of plain text elsewhere."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
    return Console(width=wide, highlight=False, markup=False)


def model_table(
    source: str,
    weights: Path | None,
    bounds: tuple[str, str],
    mean: str | None,
    std: str | None,
    outputs: str,
) -> dict[str, Any]:
    """Return the options of a model as the table that a plan file holds."""
    from foible.audit.sources import parse_number, parse_numbers

    pair = [parse_number(b) for b in bounds]
    table: dict[str, Any] = {"source": source}
    if weights is not None:
        table["weights"] = str(weights)
    # TOML as the plan writes it has no infinity, so such bounds stay words.
    table["bounds"] = [b if abs(b) < 1e300 else str(b) for b in pair]
    for name, text in (("mean", mean), ("std", std)):
        if text is not None:
            table[name] = list(parse_numbers(text))
    table["outputs"] = outputs
    return table


def loaded(table: dict[str, Any]) -> TorchModel:
    """Load a model from its table."""
    from foible.audit.sources import load_model
    from foible.core.errors import InputError

    known = {"name", "source", "weights", "bounds", "mean", "std", "outputs"}
    if unknown := sorted(set(table) - known):
        raise InputError(
            f"a model of the plan holds {', '.join(unknown)}: it knows {', '.join(sorted(known))}"
        )
    if "source" not in table:
        raise InputError('a model of the plan has no source: write source = "zoo:standard"')
    return load_model(
        table["source"],
        table.get("weights"),
        table.get("bounds", (0, 1)),
        table.get("mean"),
        table.get("std"),
        table.get("outputs", "logits"),
    )


def read_samples(
    source: str, samples: int | None, seed: int, held: TorchModel
) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """Load data for a model and try them on it; what was changed in them is told."""
    from foible.audit.sources import check_fit, load_data

    x, y, classes = load_data(
        source, samples, seed, model=held,
        note=lambda text: typer.echo(f"note: {text}", err=True),
    )  # fmt: skip
    check_fit(held, x, y, source)
    return x, y, classes


def linf_size(eps: str | None, held: TorchModel) -> float:
    """Return the size of --eps, or in Linf a tenth of the model's range."""
    from foible.audit.sources import parse_number
    from foible.core.errors import InputError

    low, high = held.bounds
    if eps is not None:
        return parse_number(eps)
    if not high - low < 1e30:
        raise InputError("--eps is missing: the model has no bounds to take a tenth of")
    return 0.1 * (high - low)


def refuse_model_options(
    weights: Path | None, bounds: tuple[str, str], mean: str | None, std: str | None, outputs: str
) -> None:
    """Raise InputError where options of a model are given and no model is."""
    from foible.core.errors import InputError

    given = [n for n, v in (("--weights", weights), ("--mean", mean), ("--std", std)) if v]
    given += ["--bounds"] if tuple(bounds) != ("0", "1") else []
    given += ["--outputs"] if outputs != "logits" else []
    if given:
        raise InputError(
            f"{', '.join(given)} without --model: name the model that this is about, for example "
            "--model my_package.models:make"
        )


def folder_for(out: Path) -> Path:
    """Make the folder that pictures go to, or say why that cannot be."""
    from foible.core.errors import InputError

    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror}): choose another --out"
        ) from error
    return out
