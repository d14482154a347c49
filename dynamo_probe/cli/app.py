"""The commands put together, and what becomes of a wrong call."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer

from dynamo_probe import __version__
from dynamo_probe.cli import demo, doctor, report, run
from dynamo_probe.cli.output import printable

PROGRAM = "dynamo-probe"
_AS_WRITTEN = {"allow_interspersed_args": False}
"""What follows a script is the script's own."""
# typer brings its own copy of click from 0.20 on, so that neither's module can be relied on.
_Refused = cast(
    "type[Exception]",
    next(one for one in typer.BadParameter.__mro__ if one.__name__ == "ClickException"),
)

app = typer.Typer(
    name=PROGRAM,
    help="See what happens inside a network while it trains.",
    epilog="Exit codes: 0 all is well, 1 something failed or trouble was found, 2 a wrong call.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(epilog=demo.HELP)(demo.demo)
app.command(epilog=run.HELP, context_settings=_AS_WRITTEN)(run.run)
app.command(epilog=report.HELP)(report.report)
app.command(epilog=doctor.HELP, context_settings=_AS_WRITTEN)(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Take what stands before the command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code.

    Args:
        arguments: what follows the program's name; None takes that of this process.

    Raises:
        SystemExit: when the call is wrong (2), or as the script that is run raises it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    try:
        outcome: Any = command.main(given, prog_name=PROGRAM, standalone_mode=False)
    except _Refused as error:
        _tell(error)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, typer.Abort):
        return 130
    # A script runs outside of the parser, which would make its own of what the script raises.
    return outcome() if callable(outcome) else int(outcome or 0)


def _tell(error: Exception) -> None:
    """Say in one line what is wrong with the call, and where help is."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    message = getattr(error, "format_message", lambda: f"{error}")().strip().rstrip(".")
    message = message.removeprefix("Invalid value: ")
    if message == "Missing command":
        message = "no COMMAND was given; give demo, run, report or doctor"
    elif "No such option" in message and path.endswith((" run", " doctor")):
        message += "; the script's own options come after the script"
    typer.echo(f"{path}: {printable(message)} ({path} --help says more)", err=True)
