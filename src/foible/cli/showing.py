"""`foible show`."""

from __future__ import annotations

from typing import Annotated

import typer

from foible.cli.sharing import console


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `foible list`.")],
) -> None:
    """Show one recipe: parameters, source paper, access needed, cost."""
    from rich.text import Text

    from foible.audit.catalogue import find

    entry = find(name)
    paper = console()
    rooms = {"attacks": "foible.attacks.", "explanations": "foible.explain.", "threats": "foible."}
    title = rooms.get(entry.kind, "") + entry.name
    if entry.kind == "threats" and entry.name == "Deletion":
        title = f"foible.parts.threats.{entry.name}"
    paper.print(Text(title, style="bold"), soft_wrap=True)
    lines = [
        ("kind", entry.kind.removesuffix("s")),
        ("source", entry.source or "none named"),
        ("survey", ", ".join(entry.facts.rows) or "not a row"),
    ]
    if entry.access:
        what = "" if entry.kind == "defences" else " access"
        lines.append(("needs", entry.access + what))
    if entry.kind in ("attacks", "explanations"):
        facts = entry.facts
        cost = f"{facts.forwards} forwards, {facts.backwards} backwards a sample"
        lines.append(("cost", cost if facts.forwards else "not stated"))
    for label, text in lines:
        paper.print(f"{label:<8}{text}", soft_wrap=True)
    if entry.parameters:
        paper.print()
        wide = max(len(name) for name, _, _ in entry.parameters)
        kinds = max(len(kind) for _, kind, _ in entry.parameters)
        for parameter, kind, default in entry.parameters:
            told = default if default == "needed" else f"= {default}"
            paper.print(f"  {parameter:<{wide}}  {kind:<{kinds}}  {told}", soft_wrap=True)
    paper.print()
    paper.print(entry.doc, soft_wrap=True)
