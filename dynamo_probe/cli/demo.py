"""`dynamo-probe demo`: small trainings that show something."""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynamo_probe.cli.output import WRONG_CALL, fail, tell, write_json
from dynamo_probe.demos.registry import DEMOS, Demo

if TYPE_CHECKING:
    from rich.progress import Progress

_DEFAULT = Path("runs/demo")
_NAMES = [*DEMOS, "all"]


def _known(name: str) -> str:
    if name not in _NAMES:
        raise typer.BadParameter(f"invalid choice {name!r}; give one of {', '.join(_NAMES)}")
    return name


HELP = """
\b
Example:
  dynamo-probe demo dormancy --log-dir runs/first
"""
"""What stands below the options."""


def demo(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[dormancy|sparsity|heads|all]",
            callback=_known,
            autocompletion=lambda: list(_NAMES),
            help=" ".join(f"{one.name}: {one.shows}." for one in DEMOS.values()),
        ),
    ] = "all",
    log_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to write.  [default: runs/demo, or the next number that is free]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights and data.", min=0)] = 0,
    updates: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of each run; fewer show less.", show_default=False),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Say where the logs are as JSON, and nothing else.")
    ] = False,
) -> None:
    """Train small networks that show something, and say how to look at it.

    They take under a minute in all, on one processor core.
    """
    chosen = list(DEMOS.values()) if name == "all" else [DEMOS[name]]
    place = _place(log_dir, chosen)
    try:
        _train(chosen, place, seed, updates)
    except OSError as error:
        fail(f"the log cannot be written: {error}; give another --log-dir")
    commands = [f"tensorboard --logdir {_quoted(place)}", f"dynamo-probe report {_quoted(place)}"]
    if json:
        logs = {one.name: str(place / one.name) for one in chosen}
        write_json({"log_dir": str(place), "demos": logs, "look": commands})
    else:
        typer.echo(f"To look at it: {commands[0]}   or   {commands[1]}")


def _place(given: Path | None, chosen: list[Demo]) -> Path:
    """Return where the logs go: never into a log that is there, which would mix the two."""
    if given is not None:
        for one in chosen:
            if (given / one.name).exists():
                fail(f"{given / one.name} is there already; give another --log-dir", WRONG_CALL)
        return given
    place, number = _DEFAULT, 1
    while any((place / one.name).exists() for one in chosen):
        number += 1
        place = _DEFAULT.with_name(f"{_DEFAULT.name}-{number}")
    return place


def _train(chosen: list[Demo], place: Path, seed: int, updates: int | None) -> None:
    with warnings.catch_warnings():
        # What a watch warns of is in the log, which is where the demos want it looked at.
        warnings.filterwarnings("ignore", category=_warning())
        with _bar() as bar:
            for one in chosen:
                total = one.runs * (updates or one.updates)
                row = bar.add_task(one.name, total=total)
                tell(f"{one.name}: {one.shows}")
                one.run(
                    place / one.name,
                    seed=seed,
                    updates=updates,
                    progress=lambda done, row=row: bar.update(row, completed=done),
                )


def _warning() -> type[Warning]:
    import torch

    from dynamo_probe.warning import DynamoProbeWarning

    torch.set_num_threads(1)  # the networks are small: more threads only wait for one another
    return DynamoProbeWarning


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description:>10}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
