"""The command line, start here: the subcommands, in the order of `--help`."""

import signal
from typing import Annotated

import typer

from actcli import __version__
from actcli.commands.attn_plot import attn_plot
from actcli.commands.dump import dump
from actcli.commands.gammas import gammas
from actcli.commands.logit_lens import logit_lens
from actcli.commands.outliers import outliers
from actcli.commands.qk_contrib import qk_contrib
from actcli.commands.sae_eval import sae_eval
from actcli.terminal.config_command import Command, add_command

COMMANDS = (
    Command("dump", dump, panel="Capture"),
    Command("logit-lens", logit_lens, panel="Read a model"),
    Command("qk-contrib", qk_contrib, panel="Read a model"),
    Command("sae-eval", sae_eval, panel="Read a model"),
    Command("outliers", outliers, panel="Analyse a dump"),
    Command("attn-plot", attn_plot, panel="Analyse a dump"),
    Command("gammas", gammas, panel="Analyse a dump"),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"actcli {__version__}")
        raise typer.Exit


app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            metavar="",
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Look inside a transformer: capture its activations, then ask questions of them."""


for each in COMMANDS:
    add_command(app, each)


def main() -> None:
    """Entry point of the `actcli` script."""
    signal.signal(signal.SIGTERM, _end_tidily)
    app()


def _end_tidily(number: int, _frame: object) -> None:
    """Let go what is half done when a job scheduler ends the program, as on Ctrl-C."""
    raise SystemExit(128 + number)
