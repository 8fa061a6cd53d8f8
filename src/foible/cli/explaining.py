"""`foible explain`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foible.cli.drawing import draw
from foible.cli.picturing import (
    Subject,
    class_number,
    percent,
    read_batches,
    subject,
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
        Path,
        typer.Argument(
            metavar="IMAGE", help="A PNG or JPEG, a folder of them, or an .npz or .npy of inputs."
        ),
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
            help="A method, several with commas between, or all; `foible list explanations`.",
        ),
    ] = "smoothgrad",
    target: Annotated[
        str | None,
        typer.Option("--target", help="The class to explain; without it, what the model sees."),
    ] = None,
    first: Annotated[int, typer.Option("--first", help="Of an .npz, how many inputs.")] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Fixes all randomness.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Where the files go.")] = Path("runs/explain"),
) -> None:
    """Explain pictures or rows; write each beside its maps, and a JSON file with a summary."""
    import torch

    from foible.audit.sources import check_fit

    who = subject(model, weights, bounds, mean, std, outputs)
    methods, every = _explainers(method), method.strip().lower() == "all"
    chosen = None if target is None else class_number(target, "--target", who.classes)
    batches = read_batches(image, who, first)
    for _, x in batches:
        check_fit(who.held, x, torch.full((len(x),), chosen or 0), who.source)
    folder = folder_for(out)
    for files, x in batches:
        scores = who.scores(x)
        labels = scores.argmax(1) if chosen is None else torch.full((len(x),), chosen)
        told = {}
        for name, explainer in methods.items():
            maps = _maps(explainer, who, x, labels, seed, every)
            if maps is not None:
                told[name] = maps, _residuals(explainer, who, x, labels, maps)
        for i, (stem, path) in enumerate(files):
            confidence = float(scores[i].softmax(0)[int(labels[i])])
            facts = {
                "picture": str(path),
                "model": who.source,
                "seed": seed,
                "prediction": who.told(scores[i : i + 1])[0],
                "target": {
                    "label": int(labels[i]),
                    "name": who.label(int(labels[i])),
                    "confidence": confidence,
                },
            }
            contents = [
                {
                    **facts,
                    "method": name,
                    "summary": {**_summary(maps[i]), "completeness_residual": residuals[i]},
                }
                for name, (maps, residuals) in told.items()
            ]
            kind = contents[0]["method"] if len(contents) == 1 else "maps"
            drawn = folder / f"{stem}-{kind}.png"
            draw(drawn, who, x[i], [maps[i] for maps, _ in told.values()], contents)
            for content in contents:
                write_json(folder / f"{stem}-{content['method']}.json", content)
                typer.echo(_said(path.name, content, drawn))


def _explainers(method: str) -> dict[str, Explanation]:
    """Return the named methods, made with their defaults; "all" takes those that need nothing."""
    from foible.audit.catalogue import entries, find
    from foible.core.errors import InputError

    if method.strip().lower() == "all":
        named = [e for e in entries("explanations") if e.made is not None]
        return {e.name: e.made() for e in named if e.made is not None and not _needed(e.made)}
    made = {}
    for name in filter(None, (part.strip() for part in method.split(","))):
        entry = find(name, "explanations")
        assert entry.made is not None
        if needed := _needed(entry.made):
            raise InputError(
                f"{entry.name} needs {', '.join(needed)}; use it from Python: "
                f"foible.explain.{entry.name}"
            )
        made[entry.name] = entry.made()
    if not made:
        raise InputError("--method is empty: name one, e.g. --method smoothgrad, or all")
    return made


def _needed(made: Any) -> list[str]:
    parameters = inspect.signature(made).parameters.values()
    return [p.name for p in parameters if p.default is p.empty]


def _maps(
    explainer: Explanation, who: Subject, x: Tensor, labels: Tensor, seed: int, every: bool
) -> Tensor | None:
    """Explain; where every method was asked for, one that does not fit is told and left out."""
    from foible.core.errors import FoibleError, InputError
    from foible.explain import MaskingModel

    try:
        if isinstance(explainer, MaskingModel) and who.source != "zoo:standard":
            raise InputError(
                "the bundled masking model knows zoo:standard only; train one for this model from "
                "Python: foible.explain.train_masks"
            )
        return explainer(who.held, x, labels, seed=seed).detach()
    except FoibleError as error:
        if not every:
            raise
        typer.echo(f"{type(explainer).__name__} is left out: {error}", err=True)
        return None


def _residuals(
    explainer: Explanation, who: Subject, x: Tensor, labels: Tensor, maps: Tensor
) -> list[float | None]:
    """Return how far each map is from adding up, as a share; None where it need not."""
    from foible.explain import completeness

    if not explainer.additive:
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
