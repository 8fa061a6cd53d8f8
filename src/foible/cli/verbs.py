"""All verbs put together."""

from __future__ import annotations

from typing import Annotated

import typer

from foible.cli.attacking import attack
from foible.cli.auditing import audit
from foible.cli.detecting import evaluate, fit
from foible.cli.explaining import explain
from foible.cli.hardening import harden
from foible.cli.listing import listed
from foible.cli.reporting import report
from foible.cli.serving import serve
from foible.cli.sharing import Verb
from foible.cli.showing import show

_HELP = """Find where a classifier is weak: explain it, attack it there, and see what was found.

`foible audit` alone audits two bundled models and writes a report to open in a browser."""


def build() -> typer.Typer:
    """Return the application; nothing heavy is imported before a verb runs."""
    app = typer.Typer(
        name="foible",
        help=_HELP,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    for name, verb in (
        ("audit", audit),
        ("report", report),
        ("attack", attack),
        ("explain", explain),
        ("harden", harden),
        ("serve", serve),
        ("list", listed),
        ("show", show),
    ):
        app.command(name, cls=Verb)(verb)
    detect = typer.Typer(
        help="Fit a detector of adversarial inputs, and say what it is worth.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    detect.command("fit", cls=Verb)(fit)
    detect.command("evaluate", cls=Verb)(evaluate)
    app.add_typer(detect, name="detect")
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from foible import __version__

        typer.echo(f"foible {__version__}")
        raise typer.Exit()


def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
