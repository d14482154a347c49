"""`dynamo-probe run`: watch a script that was not written for it."""

from __future__ import annotations

import functools
import inspect
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynamo_probe.cli.output import printable

if TYPE_CHECKING:
    import dynamo_probe as dp
    from dynamo_probe.finding import Found

PROBES = (
    "dormancy", "gradients", "induction", "rank", "repetition", "saturation", "topology",
    "trainability", "updates", "utility",
)  # fmt: skip
"""The names of `probe_kinds`, for those who only ask for help."""


def positive(number: int) -> int:
    """Refuse what is no period."""
    if number < 1:
        raise typer.BadParameter(f"{number} updates; give 1 or more")
    return number


def script_of(words: Sequence[str] | None) -> list[str]:
    """Return the script and its arguments.

    Raises:
        BadParameter: when there is none.
    """
    given = list(words or ())
    if given[:1] == ["--"]:
        del given[0]
    if not given:
        raise typer.BadParameter(
            "no script was given; put it after the options, or -m and a module"
        )
    return given


def _probes(names: list[str] | None) -> list[str]:
    for name in names or ():
        if name not in PROBES:
            raise typer.BadParameter(f"invalid choice {name!r}; give one of {', '.join(PROBES)}")
    return names or []


HELP = """
\b
Examples:
  dynamo-probe run --probe rank --every 50 --log-dir runs/a train.py --lr 3e-4
  dynamo-probe run --redo -m my_package.train --lr 3e-4
"""
"""What stands below the options."""


def run(
    script: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SCRIPT ARGUMENTS",
            help="The script, or with -m the module, and after it its own arguments.",
            show_default=False,
        ),
    ] = None,
    module: Annotated[bool, typer.Option("-m", help="Run a module instead of a script.")] = False,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            callback=_probes,
            autocompletion=lambda: list(PROBES),
            help=f"What to measure; may be given again: {', '.join(PROBES)}.  [default: dormancy]",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        int, typer.Option(metavar="N", callback=positive, help="Updates between two readings.")
    ] = 100,
    redo: Annotated[bool, typer.Option("--redo", help="Recycle dormant units (ReDo).")] = False,
    redo_every: Annotated[
        int, typer.Option(metavar="N", callback=positive, help="Updates between two recyclings.")
    ] = 1000,
    tau: Annotated[
        float, typer.Option(metavar="TAU", help="Threshold of dormancy for --redo.")
    ] = 0.1,
    log_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where to write.  [default: runs/DATE_HOST, as TensorBoard does]",
            show_default=False,
        ),
    ] = None,
) -> Callable[[], int]:
    """Watch the training of a script that was not written for it.

    Run a script, or a module, as Python would, and watch every network that it trains. The script
    is not changed: its output, arguments, exit code and results stay its own.

    A network is found when it is called for the first time, if its optimizer is there by then, and
    otherwise at its optimizer's first step; the first update is then counted but not read. Each
    network has a directory of its own in the log directory. Torch is imported before the script:
    what it reads from the environment at that moment, such as OMP_NUM_THREADS, has to be set
    outside.
    """
    given = script_of(script)
    instruments = _instruments(probe or ["dormancy"], every, redo_every if redo else None, tau)
    # The script may change its directory: where the log goes is settled before.
    place = os.path.abspath(log_dir or _usual_place())
    return functools.partial(_run, given, module, instruments, place)


def probe_kinds() -> dict[str, type[dp.Probe]]:
    """Return the probes that can be made without more than a period, by name."""
    import dynamo_probe as dp

    found = {}
    for kind in (getattr(dp, name) for name in dp.__all__):
        if isinstance(kind, type) and issubclass(kind, dp.Probe) and hasattr(kind, "name"):
            wanted = list(inspect.signature(kind).parameters.values())
            optional = all(one.default is not one.empty for one in wanted)
            if optional and any(one.name == "every" for one in wanted):
                found[kind.name] = kind
    return found


def _instruments(
    names: Sequence[str], every: int, redo_every: int | None, tau: float
) -> list[dp.Instrument]:
    import dynamo_probe as dp

    kinds: dict[str, Any] = probe_kinds()
    try:
        instruments: list[dp.Instrument] = [
            kinds[name](every=every) for name in dict.fromkeys(names)
        ]
        if redo_every is not None:
            instruments.append(dp.ReDo(every=redo_every, tau=tau))
    except ValueError as error:
        raise typer.BadParameter(f"{error}") from None
    return instruments


def _run(given: list[str], module: bool, instruments: Sequence[dp.Instrument], log_dir: str) -> int:
    from dynamo_probe.finding import Finder
    from dynamo_probe.running import NotRunnable, Program

    try:
        program = Program(given[0], given[1:], as_module=module)
    except NotRunnable as reason:
        print(f"dynamo-probe: {printable(f'{reason}', 2000)}", file=sys.stderr)
        return reason.code
    finder = Finder(instruments, log_dir, vars(program.module))
    try:
        program.run()
    finally:
        _tell(finder.close())
    return 0


def _tell(found: Sequence[Found]) -> None:
    """Say in a line for each network where its log is."""
    if sys.stderr is None or os.environ.get("RANK", "0") != "0":
        return
    sys.stderr.flush()
    for one in found:
        line = f"{one.name}, {one.updates} updates: {one.log_dir}"
        if one.trouble is not None:
            line = f"{one.name} was not watched: {one.trouble}"
        print(f"dynamo-probe: {line}", file=sys.stderr)
    if not found:
        print(
            "dynamo-probe: no training was seen (no torch optimizer stepped a module's parameters)",
            file=sys.stderr,
        )


def _usual_place() -> str:
    return os.path.join("runs", f"{time.strftime('%b%d_%H-%M-%S')}_{socket.gethostname()}")
