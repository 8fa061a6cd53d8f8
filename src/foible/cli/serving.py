"""`foible serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foible.cli.sharing import (
    BoundsOption,
    MeanOption,
    ModelOption,
    OutputsOption,
    StdOption,
    WeightsOption,
    loaded,
    model_table,
    read_samples,
    refuse_model_options,
)

if TYPE_CHECKING:
    from torch import Tensor

    from foible.detect import Watch
    from foible.models import TorchModel


def serve(
    model: ModelOption = None,
    weights: WeightsOption = None,
    bounds: BoundsOption = ("0", "1"),
    mean: MeanOption = None,
    std: StdOption = None,
    outputs: OutputsOption = "logits",
    detector: Annotated[
        list[Path] | None,
        typer.Option(
            "--detector",
            metavar="FILE",
            help="A detector that `foible detect fit` wrote for this model; may be repeated. "
            "Without one, feature squeezing is fitted to --data.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SOURCE", help="Clean samples of what the model is for."),
    ] = None,
    fpr: Annotated[
        float, typer.Option("--fpr", help="The share of clean inputs that may be refused.")
    ] = 0.05,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port")] = 8000,
    most_bytes: Annotated[
        int, typer.Option("--max-bytes", help="The longest body that is read.")
    ] = 4 * 2**20,
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="Gets a JSON line a request.")
    ] = None,
) -> None:
    """Put a model behind HTTP, guarded by detectors: it answers, or abstains and says why.

    POST /predict takes {"inputs": ...} or a PNG or JPEG; GET /health and /metrics. It listens on
    this machine alone unless --host says otherwise, and has no users of its own: put it behind
    what checks them.
    """
    from foible.core.errors import InputError, MissingExtra
    from foible.detect import guard
    from foible.detect.watching import load

    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtra(
            "a server is FastAPI, uvicorn and prometheus-client: pip install 'foible[serve]'"
        ) from error
    if model is None:
        refuse_model_options(weights, bounds, mean, std, outputs)
        data = data or "zoo:sample"
    source = model or "zoo:standard"
    held = loaded(model_table(source, weights, bounds, mean, std, outputs))
    if data is None:
        raise InputError(
            "--data is missing: some clean samples say what an input is like, and where levels lie"
        )
    x, y, classes = read_samples(data, 1000, 0, held)
    watches = [load(path) for path in detector or []] or [_fitted(held, x, y)]
    for watch in watches:
        watch.score(held, x[:1])  # one that does not fit the inputs is told before anyone asks
    from foible.serve import Service, service

    made = Service(guard(held, watches, fpr, log), tuple(x.shape[1:]), classes or ())
    typer.echo(f"http://{host}:{port}/predict answers; detectors: "
               f"{', '.join(watch.detector.name for watch in watches)}")  # fmt: skip
    uvicorn.run(service(made, most_bytes), host=host, port=port, log_level="warning")


def _fitted(held: TorchModel, x: Tensor, y: Tensor) -> Watch:
    from foible.core.errors import InputError
    from foible.detect import squeezed

    if x.dim() != 4:
        raise InputError(
            "--detector is missing: feature squeezing, the default, is for pictures; fit another "
            "with `foible detect fit`"
        )
    return squeezed((3,)).fit(held, (x, y))
