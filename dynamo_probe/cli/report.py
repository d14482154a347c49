"""`dynamo-probe report`: a page of what a log shows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dynamo_probe.cli.output import WRONG_CALL, fail, tell, write_json

HELP = """
\b
Example:
  dynamo-probe report runs/demo -o demo.html
"""
"""What stands below the options."""


def report(
    log_dir: Annotated[
        Path, typer.Argument(metavar="LOGDIR", help="A log, or a directory of logs.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The page to write.")
    ] = Path("report.html"),
    tau: Annotated[
        float, typer.Option(metavar="TAU", help="Threshold of dormancy.", min=0.0)
    ] = 0.1,
    axis: Annotated[
        str,
        typer.Option(
            metavar="CLOCK", help="What time is: updates, wall, or a clock of the run's own."
        ),
    ] = "updates",
    json: Annotated[
        bool, typer.Option("--json", help="Say what was written as JSON, and nothing else.")
    ] = False,
) -> None:
    """Write a page of what a log shows, and its figures.

    The page needs nothing but itself; the figures lie beside it. The log of a run that was killed
    is read as far as it goes.
    """
    if not log_dir.exists():
        fail(f"there is no {log_dir}; give the directory that a watch wrote to", WRONG_CALL)
    if output.is_dir():
        fail(f"{output} is a directory; give a file, such as -o {output}/report.html", WRONG_CALL)
    if not output.absolute().parent.is_dir():
        fail(f"there is no directory {output.absolute().parent}; make it first", WRONG_CALL)
    try:
        from rich.console import Console

        with Console(stderr=True).status("reading and drawing"):
            from dynamo_probe.report.html import write_report

            files = write_report(log_dir, output, tau=tau, axis=axis)
    except ImportError as error:
        if (error.name or "").split(".")[0] == "dynamo_probe":
            raise
        fail(f"{error}; the figures need: pip install 'dynamo-probe[report]'")
    except (OSError, ValueError) as error:
        fail(f"{error}")
    for warning in files.warnings:
        tell(f"{warning}")
    if json:
        write_json(
            {
                "html": str(files.html),
                "figures": [str(figure) for figure in files.figures],
                "runs": list(files.runs),
                "warnings": [str(warning) for warning in files.warnings],
            }
        )
    else:
        runs, figures = len(files.runs), len(files.figures)
        typer.echo(f"{files.html}: {runs} run{'s' * (runs != 1)}, {figures} figures beside it")
    sys.stdout.flush()
