"""The command line: `dynamo-probe run [options] script.py arguments ...`."""

from __future__ import annotations

import argparse
import inspect
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence

import dynamo_probe as dp
from dynamo_probe.finding import Finder, Found
from dynamo_probe.running import NotRunnable, Program

_RUN = """
Run a script, or a module, as Python would, and watch every network that it trains. The script is
not changed: its output, arguments, exit code and results stay its own.

A network is found when it is called for the first time, if its optimizer is there by then, and
otherwise at its optimizer's first step; the first update is then counted but not read. Each network
has a directory of its own in the log directory. Torch is imported before the script: what it reads
from the environment at that moment, such as OMP_NUM_THREADS, has to be set outside.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code.

    Args:
        arguments: what follows the program's name; None takes that of this process.
    """
    parser = argparse.ArgumentParser(
        prog="dynamo-probe", description="See what happens inside a network while it trains."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {dp.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    chosen = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = chosen.command
    return command(chosen)


def probe_kinds() -> dict[str, type[dp.Probe]]:
    """Return the probes that can be made without more than a period, by name."""
    found = {}
    for kind in (getattr(dp, name) for name in dp.__all__):
        if isinstance(kind, type) and issubclass(kind, dp.Probe) and hasattr(kind, "name"):
            wanted = list(inspect.signature(kind).parameters.values())
            optional = all(one.default is not one.empty for one in wanted)
            if optional and any(one.name == "every" for one in wanted):
                found[kind.name] = kind
    return found


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "run",
        help="watch the training of a script that was not written for it",
        description=_RUN,
        usage="dynamo-probe run [options] (script.py | -m module) [arguments ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = sorted(probe_kinds())
    parser.add_argument(
        "--probe",
        action="append",
        choices=kinds,
        metavar="NAME",
        help=f"what to measure; may be given again. One of {', '.join(kinds)}. Default: dormancy",
    )
    parser.add_argument(
        "--every", type=_period, default=100, metavar="N", help="updates between two readings (100)"
    )
    parser.add_argument("--redo", action="store_true", help="recycle dormant units (ReDo)")
    parser.add_argument(
        "--redo-every", type=_period, default=1000, metavar="N", help="updates between two (1000)"
    )
    parser.add_argument(
        "--tau", type=float, default=0.1, help="threshold of dormancy for --redo (0.1)"
    )
    parser.add_argument(
        "--log-dir", metavar="DIR", help="where to write (runs/DATE_HOST, as TensorBoard does)"
    )
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module instead")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the script and its arguments")
    parser.set_defaults(command=lambda chosen: _run(parser, chosen))


def _run(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    given = list(chosen.module if chosen.module is not None else chosen.script)
    if given[:1] == ["--"]:
        del given[0]
    if not given:
        parser.error("no script was given; put it after the options, or -m and a module")
    if given[0].startswith("-"):
        parser.error(f"unknown option {given[0]}; the script's own options come after the script")
    kinds = probe_kinds()
    try:
        instruments: list[dp.Instrument] = [
            kinds[name](every=chosen.every) for name in dict.fromkeys(chosen.probe or ["dormancy"])
        ]
        if chosen.redo:
            instruments.append(dp.ReDo(every=chosen.redo_every, tau=chosen.tau))
    except ValueError as error:
        parser.error(str(error))
    # The script may change its directory: where the log goes is settled before.
    log_dir = os.path.abspath(chosen.log_dir or _usual_place())
    try:
        program = Program(given[0], given[1:], as_module=chosen.module is not None)
    except NotRunnable as reason:
        print(f"dynamo-probe: {reason}", file=sys.stderr)
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


def _period(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} updates; give 1 or more")
    return number
