"""The Typer application: registers the subcommands, each imported when it runs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynx.cli.configuration import ConfiguredCommand
from dynx.cli.options.commands import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Callable

SUMMARY = "Faster local AI inference by dynamic execution, with the saving in numbers."

app = typer.Typer(
    name="dynx",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=SUMMARY,
    epilog="Try: dynx draw 'red apple' --stats. The --help of each command starts with examples.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from dynx import __version__

        typer.echo(f"dynx {__version__}")
        raise typer.Exit


@app.callback()
def dynx(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Faster local AI inference by dynamic execution."""


def run(name: str, options: Any) -> None:
    """Import a subcommand and run it."""
    importlib.import_module(f"dynx.cli.{name}.command").run(options)


def _runner(name: str) -> Callable[[Any], None]:
    return lambda options: run(name, options)


for _name, _command in COMMANDS.items():
    _command.register(app, _runner(_name), cls=ConfiguredCommand)
