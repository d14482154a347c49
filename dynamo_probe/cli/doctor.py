"""`dynamo-probe doctor`: what could be tapped, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dynamo_probe.cli.output import FAILED, WRONG_CALL, fail, printable, write_json
from dynamo_probe.cli.run import script_of

_CHECKPOINTS = {".pt", ".pth", ".bin", ".ckpt", ".safetensors"}


def _seconds(number: float) -> float:
    if not 0 < number < float("inf"):
        raise typer.BadParameter(f"{number:g} seconds; give more than 0")
    return number


HELP = """
\b
Exit codes: 0 a network was found that can be watched, or the checkpoint is sound; 1 none was
found, or the checkpoint was refused or has values that are not finite; 2 a wrong call.

\b
Examples:
  dynamo-probe doctor train.py --lr 3e-4
  dynamo-probe doctor --json -m my_package.train
  dynamo-probe doctor runs/model.pt
"""
"""What stands below the options."""


def doctor(
    target: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SCRIPT_OR_CHECKPOINT ARGUMENTS",
            help="The script, with -m the module, and after it its own arguments; or a checkpoint.",
            show_default=False,
        ),
    ] = None,
    module: Annotated[bool, typer.Option("-m", help="Run a module instead of a script.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Give the answer as JSON, and nothing else.")
    ] = False,
    time_limit: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            callback=_seconds,
            help="How long the script may take to its first optimizer step.",
        ),
    ] = 120.0,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Hide what the script writes, which goes to stderr.")
    ] = False,
) -> None:
    """Say what could be tapped, before anything is trained.

    A script is run in a process of its own up to its first optimizer step, and ended there, before
    the step changes anything. What the script does before, it does: files it writes, data it
    fetches. Each network then makes one update at a learning rate of 0 with every probe, to see
    which of them give readings.

    A checkpoint (.pt, .pth, .safetensors) is read, never executed: what holds more than tensors and
    plain values is refused.
    """
    given = script_of(target)
    if not module and not Path(given[0]).exists():
        fail(f"there is no {given[0]}; give a script, a checkpoint, or -m and a module", WRONG_CALL)
    if not module and Path(given[0]).is_dir():
        fail(f"{given[0]} is a directory; give a script or a checkpoint", WRONG_CALL)
    if not module and is_checkpoint(Path(given[0])):
        if given[1:]:
            fail(f"a checkpoint takes no arguments, and {given[1]} is one", WRONG_CALL)
        trouble = _checkpoint(Path(given[0]), json)
    else:
        trouble = _script(given, module, json, time_limit, quiet)
    if trouble:
        raise typer.Exit(FAILED)


def is_checkpoint(path: Path) -> bool:
    """Whether a file is one by its name, or by how it begins: as a zip archive or a pickle."""
    if path.suffix.lower() in _CHECKPOINTS:
        return True
    if path.suffix.lower() in {".py", ".pyw"} or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _checkpoint(path: Path, json: bool) -> bool:
    from dynamo_probe.cli.checkpoint import Unreadable, examine_checkpoint
    from dynamo_probe.cli.checkpoint_text import checkpoint_lines

    try:
        found = examine_checkpoint(path)
    except Unreadable as error:
        fail(f"{error}")
    _write(found, json, checkpoint_lines(found))
    return bool(found["trouble"])


def _script(given: list[str], module: bool, json: bool, limit: float, quiet: bool) -> bool:
    from dynamo_probe.cli.script import examine_script, script_lines

    found = examine_script(given, as_module=module, time_limit=limit, quiet=quiet)
    _write(found, json, script_lines(found))
    return all(network["trouble"] for network in found["networks"])


def _write(found: dict[str, Any], json: bool, lines: list[str]) -> None:
    if json:
        write_json(found)
    else:
        typer.echo("\n".join(printable(line, 400) for line in lines))
