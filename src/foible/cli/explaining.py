"""`foible explain`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foible.cli.picturing import (
    Subject,
    class_number,
    percent,
    read_batches,
    subject,
    to_pixels,
    write_json,
)
from foible.cli.sharing import (
    BoundsOption,
    MeanOption,
    ModelOption,
    OutputsOption,
    StdOption,
    WeightsOption,
    folder_for,
)

if TYPE_CHECKING:
    from torch import Tensor

    from foible.explain import Explanation


def explain(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="A PNG or JPEG, or a folder of them.")
    ],
    model: ModelOption = None,
    weights: WeightsOption = None,
    bounds: BoundsOption = ("0", "1"),
    mean: MeanOption = None,
    std: StdOption = None,
    outputs: OutputsOption = "logits",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help="saliency, smoothgrad, integrated_gradients, gradient_x_input, lime.",
        ),
    ] = "smoothgrad",
    target: Annotated[
        str | None,
        typer.Option("--target", help="The class to explain; without it, what the model sees."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Fixes all randomness.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Where the files go.")] = Path("runs/explain"),
) -> None:
    """Explain single pictures; write each beside its map, and a JSON file with a summary."""
    import torch

    from foible.audit.sources import check_fit

    who = subject(model, weights, bounds, mean, std, outputs)
    name, explainer = _explainer(method)
    chosen = None if target is None else class_number(target, "--target", who.classes)
    batches = read_batches(image, who)
    for _, x in batches:
        check_fit(who.held, x, torch.full((len(x),), chosen or 0), who.source)
    folder = folder_for(out)
    for files, x in batches:
        scores = who.scores(x)
        labels = scores.argmax(1) if chosen is None else torch.full((len(x),), chosen)
        maps = explainer(who.held, x, labels, seed=seed)
        residuals = _residuals(explainer, who, x, labels, maps)
        for i, (stem, path) in enumerate(files):
            told = who.told(scores[i : i + 1])[0]
            label = int(labels[i])
            content = {
                "picture": str(path),
                "model": who.source,
                "method": name,
                "seed": seed,
                "prediction": told,
                "target": {
                    "label": label,
                    "name": who.label(label),
                    "confidence": float(scores[i].softmax(0)[label]),
                },
                "summary": {**_summary(maps[i]), "completeness_residual": residuals[i]},
            }
            drawn = folder / f"{stem}-{name}.png"
            _draw(drawn, who, x[i], maps[i], content)
            write_json(folder / f"{stem}-{name}.json", content)
            typer.echo(_said(path.name, content, drawn))


def _explainer(method: str) -> tuple[str, Explanation]:
    from foible.audit.catalogue import find
    from foible.core.errors import InputError

    entry = find(method, "explanations")
    assert entry.made is not None
    parameters = inspect.signature(entry.made).parameters.values()
    if needed := [p.name for p in parameters if p.default is p.empty]:
        raise InputError(
            f"{entry.name} needs {', '.join(needed)}; use it from Python: "
            f"foible.explain.{entry.name}"
        )
    return entry.name, entry.made()


def _residuals(
    explainer: Explanation, who: Subject, x: Tensor, labels: Tensor, maps: Tensor
) -> list[float | None]:
    """Return how far each map is from adding up, as a share; None where it need not."""
    from foible.explain import IntegratedGradients, completeness

    if not isinstance(explainer, IntegratedGradients):
        return [None] * len(x)
    found: list[float | None] = completeness(explainer, who.held, x, labels, maps).tolist()
    return found


def _summary(values: Tensor) -> dict[str, Any]:
    size = values.double().abs()
    total, count = float(size.sum()), max(1, values.numel() // 20)
    top = float(size.flatten().topk(count).values.sum())
    return {
        "sum": float(values.double().sum()),
        "smallest": float(values.min()),
        "largest": float(values.max()),
        "positive_share": float(values.double().clamp_min(0).sum()) / total if total else None,
        "share_of_strongest_5_percent": top / total if total else None,
    }


def _said(picture: str, content: dict[str, Any], drawn: Path) -> str:
    seen, target, summary = content["prediction"], content["target"], content["summary"]
    text = f"{picture}: {seen['name']} {percent(seen['confidence'])}"
    if target["label"] != seen["label"]:
        text += f", {content['method']} for {target['name']}"
    if summary["positive_share"] is None:
        text += "; the map is zero everywhere: the model does not react to small changes here"
    if summary["completeness_residual"] is not None:
        text += f"; completeness residual {summary['completeness_residual']:.2g}"
    return f"{text}; {drawn}"


def _draw(path: Path, who: Subject, x: Tensor, values: Tensor, content: dict[str, Any]) -> None:
    """Draw the picture beside its map: orange speaks for the class, blue against, white is zero."""
    from foible.core.errors import InputError, MissingExtra
    from foible.figures import shared_scale
    from foible.figures.maps import NEGATIVE, POSITIVE

    try:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("maps need matplotlib: run `pip install matplotlib`") from error

    ends = [tuple(c / 255 for c in colour) for colour in (NEGATIVE, POSITIVE)]
    colours = LinearSegmentedColormap.from_list("foible", [ends[0], (1.0, 1.0, 1.0), ends[1]])
    scale = shared_scale(values.numpy())
    figure = Figure(figsize=(7.6, 3.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    pixels = to_pixels(who.levels(x))
    left.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    flat = values.double().sum(0).numpy()
    shown = right.imshow(flat, cmap=colours, vmin=-scale, vmax=scale, interpolation="nearest")
    figure.colorbar(shown, ax=right, shrink=0.8)
    seen, target = content["prediction"], content["target"]
    left.set_title(f"{seen['name']}, {percent(seen['confidence'])}", fontsize=11, parse_math=False)
    title = f"{content['method']} for {target['name']}"
    right.set_title(title, fontsize=11, parse_math=False)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
    try:
        figure.savefig(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): choose another --out"
        ) from error
