"""`foible attack`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
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
    write_picture,
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

    from foible.attacks import Attack, Result

NORMS = ("linf", "l2", "l1", "l0")


@dataclass(frozen=True)
class Rounded:
    """An adversarial picture in 8 bits: levels (C, H, W) 0..255; success; inside the threat
    (None where it has no size); scores (K,); distance; how it was rounded.
    """

    levels: Tensor
    success: bool
    inside: bool | None
    scores: Tensor
    distance: float
    how: str


def attack(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="A PNG or JPEG, or a folder of them.")
    ],
    model: ModelOption = None,
    weights: WeightsOption = None,
    bounds: BoundsOption = ("0", "1"),
    mean: MeanOption = None,
    std: StdOption = None,
    outputs: OutputsOption = "logits",
    label: Annotated[
        str, typer.Option("--label", help="The true class; auto takes what the model sees.")
    ] = "auto",
    target: Annotated[
        str | None, typer.Option("--target", help="The class to reach; without it, any other.")
    ] = None,
    recipe: Annotated[
        str, typer.Option("--attack", metavar="NAME", help="An attack from `foible list`.")
    ] = "pgd",
    norm: Annotated[str, typer.Option("--norm", metavar="linf|l2|l1|l0")] = "linf",
    eps: Annotated[
        str | None,
        typer.Option(
            "--eps", metavar="SIZE", help="How far it may go, such as 8/255; 0.1 of the range."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps, if not its default.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Fixes all randomness.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Where the files go.")] = Path("runs/attack"),
) -> None:
    """Attack single pictures; write the adversarial picture, the difference and a JSON file.

    The adversarial picture is rounded to 8 bits, as a PNG holds it, and judged again.
    """
    import torch

    who = subject(model, weights, bounds, mean, std, outputs)
    batches = read_batches(image, who)
    from foible.audit.sources import check_fit

    jobs = []
    for files, x in batches:
        wanted = None if label == "auto" else class_number(label, "--label", who.classes)
        reach = None if target is None else class_number(target, "--target", who.classes)
        check_fit(who.held, x, torch.full((len(x),), max(wanted or 0, reach or 0)), who.source)
        jobs.append((files, x, _build(recipe, norm, eps, steps, who, x), wanted, reach))
    folder = folder_for(out)
    for files, x, made, wanted, reach in jobs:
        clean = who.scores(x)
        y = clean.argmax(1) if wanted is None else torch.full((len(x),), wanted)
        aim = None if reach is None else torch.full_like(y, reach)
        result = made(who.held, x, y, target=aim, seed=seed)
        if made.reach == "least_likely" and aim is None:
            aim = clean.argmin(1)
        shot = Shot(who, made, x, y, aim, result, seed)
        for i, (name, path) in enumerate(files):
            shot.write(i, path, folder / name)


def _build(
    recipe: str, norm: str, eps: str | None, steps: int | None, who: Subject, x: Tensor
) -> Attack:
    """Build the attack of the options for pictures like x."""
    from foible.attacks import Attack
    from foible.audit import Plan
    from foible.audit.catalogue import find
    from foible.audit.sources import parse_number
    from foible.core.errors import InputError
    from foible.parts import threats

    entry = find(recipe, "attacks")
    assert entry.made is not None
    known = inspect.signature(entry.made).parameters
    options: dict[str, Any] = {}
    if steps is not None:
        if "steps" not in known:
            raise InputError(f"{entry.name} has no steps to set: leave --steps out")
        options["steps"] = steps
    if "threat" in known:
        if norm.lower() not in NORMS:
            raise InputError(f"there is no norm {norm!r}: choose {', '.join(NORMS)}")
        ball: dict[str, type[Any]] = {
            "linf": threats.Linf, "l2": threats.L2, "l1": threats.L1, "l0": threats.L0,
        }  # fmt: skip
        low, high = who.box
        if eps is not None:
            size = parse_number(eps)
        elif norm.lower() == "l0":
            size = float(max(1, x[0].numel() // 20))
        else:
            size = Plan(eps=0.1 * (high - low)).radius(norm.lower(), x[0].numel())
        options["threat"] = ball[norm.lower()](size)
    needed = [n for n, p in known.items() if p.default is p.empty and n not in options]
    if needed:
        raise InputError(
            f"{entry.name} needs {', '.join(needed)}; use it from Python: "
            f"foible.attacks.{entry.name}"
        )
    made = entry.made(**options)
    if not isinstance(made, Attack):
        raise InputError(
            f"{entry.name} does not attack single pictures; use it from Python: "
            f"foible.attacks.{entry.name}"
        )
    return made


@dataclass(frozen=True)
class Shot:
    """A batch after its attack: x, y and target as given, and the result."""

    who: Subject
    made: Attack
    x: Tensor
    y: Tensor
    target: Tensor | None
    result: Result
    seed: int

    def write(self, i: int, picture: Path, start: Path) -> None:
        """Write the three files of one picture, named from `start`, and say what came out."""
        rounded = self.rounded(i)
        change = rounded.levels - self.who.levels(self.x[i]).round()
        most = float(change.abs().max())
        factor = 127 / most if most > 0 else 1.0
        content = {"picture": str(picture), **self.told(i, rounded), "difference_factor": factor}
        drawn = start.with_name(f"{start.name}-adversarial.png")
        write_picture(drawn, to_pixels(rounded.levels))
        difference = start.with_name(f"{start.name}-difference.png")
        write_picture(difference, to_pixels(128 + change * factor))
        write_json(start.with_name(f"{start.name}.json"), content)
        typer.echo(_said(picture.name, content, drawn))

    def told(self, i: int, rounded: Rounded) -> dict[str, Any]:
        """Return what is known of one picture, for its JSON file."""
        from foible.core.spec import spec

        result, who, made = self.result, self.who, self.made
        seen = [
            who.told(who.scores(at[i : i + 1]))[0] | {"label": int(label[i])}
            for at, label in ((self.x, result.clean_label), (result.x, result.label))
        ]
        success = bool(result.success[i])
        return {
            "model": who.source,
            "attack": made.name,
            "norm": getattr(made.threat, "norm", None),
            "eps": getattr(made.threat, "eps", None),
            "seed": self.seed,
            "label": int(self.y[i]),
            "target": None if self.target is None else int(self.target[i]),
            "success": success,
            "status": result.status[i],
            "clean": seen[0],
            "adversarial": seen[1],
            "distance": float(result.distance[i]),
            "forwards": int(result.forwards[i]),
            "backwards": int(result.backwards[i]),
            "eight_bit": {
                "survived": success and rounded.success and rounded.inside is not False,
                **who.told(rounded.scores[None])[0],
                "distance": rounded.distance,
                "inside": rounded.inside,
                "rounded": rounded.how,
            },
            "part": spec(made),
        }

    def rounded(self, i: int) -> Rounded:
        """Round to 8 bits: to the nearest if that stays inside the threat and still fools.

        Otherwise towards the clean picture, which never leaves a norm ball.
        """
        who, x = self.who, self.x[i : i + 1]
        goal = int(self.y[i]) if self.target is None else int(self.target[i])
        levels, clean = who.levels(self.result.x[i : i + 1]), who.levels(x).round()
        change = levels - clean
        # A whole level that float arithmetic left a hair short is still that level.
        towards = clean + change.sign() * (change.abs() + 1e-3).floor()
        found = []
        for how, candidate in (("to the nearest", levels.round()), ("towards clean", towards)):
            q = candidate.clamp(0, 255)
            scores = who.scores(who.values(q))[0]
            success = (int(scores.argmax()) == goal) == (self.target is not None)
            inside, distance = _measured(self.made, who, x, who.values(q))
            found.append(Rounded(q[0], success, inside, scores, distance, how))
        near = [r for r in found if r.inside is not False]
        return ([r for r in near if r.success] or near or found)[0]


def _measured(made: Attack, who: Subject, x: Tensor, values: Tensor) -> tuple[bool | None, float]:
    """Ask the threat itself whether rounded values are inside, and how far they went."""
    import torch

    from foible.core.rows import Rows
    from foible.parts.threats import Ball

    threat = made.threat.inside(who.held.bounds)
    index = torch.zeros(1, dtype=torch.int64)
    rows = Rows(index, index, x, index, None, threat.radii(1, x))
    distance = float(threat.distance(rows, values)[0])
    return (bool(threat.contains(rows, values)[0]) if isinstance(threat, Ball) else None), distance


def _said(picture: str, content: dict[str, Any], written: Path) -> str:
    before, after, eight = content["clean"], content["adversarial"], content["eight_bit"]
    start = f"{picture}: {before['name']} {percent(before['confidence'])}"
    if content["status"] == "wrong":
        what = "not class" if content["target"] is None else "already class"
        which = content["label"] if content["target"] is None else content["target"]
        return f"{start}: {what} {which} from the start, so nothing was changed; {written}"
    if not content["success"]:
        return (
            f"{start}: the attack fails ({after['name']} {percent(after['confidence'])}); {written}"
        )
    kept = "survives 8-bit rounding" if eight["survived"] else "is lost by 8-bit rounding"
    cost = f"{content['forwards']} forwards, {content['backwards']} backwards"
    return (
        f"{start} becomes {after['name']} {percent(after['confidence'])} at "
        f"{content['norm'] or 'distance'} {content['distance']:.4g} ({cost}); it {kept}; "
        f"difference shown {content['difference_factor']:.3g} times; {written}"
    )
