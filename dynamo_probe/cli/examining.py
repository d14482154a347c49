"""The inside of `dynamo-probe doctor SCRIPT`: the process that runs the script.

It is a process of its own, because a script may do anything: hang, catch everything, or end Python.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import dynamo_probe as dp
from dynamo_probe.cli.run import probe_kinds
from dynamo_probe.cli.trial import Network, try_probes
from dynamo_probe.finding import Finder
from dynamo_probe.running import NotRunnable, Program


class Reached(BaseException):
    """The script has come to its first optimizer step: it ends here."""


def main() -> NoReturn:
    """Run the script that `sys.argv` names, write what was found, and end the process at once."""
    answer, kind, *given = sys.argv[1:]
    try:
        program = Program(given[0], given[1:], as_module=kind == "module")
    except NotRunnable as reason:
        found: dict[str, Any] = {"ended": f"{reason}", "networks": [], "trouble": []}
    else:
        found = examine(program)
    # Written whole or not at all: the time limit may come at any moment.
    unfinished = Path(f"{answer}.unfinished")
    unfinished.write_text(json.dumps(found), encoding="utf-8")
    unfinished.replace(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what the script left running (threads, loaders) is not waited for


def examine(program: Program) -> dict[str, Any]:
    """Run a program up to its first optimizer step, and try every probe on what was found.

    Returns:
        `ended`, `networks` and `trouble`, as JSON takes them.
    """
    finder = Finder([dp.Dormancy()], None, vars(program.module))
    # After the finder's own, so that the network of this very step has been met.
    reached: list[None] = []

    def stop(*_: Any) -> NoReturn:
        reached.append(None)
        raise Reached

    stopper = register_optimizer_step_pre_hook(stop)
    try:
        ended = _run(program)
    finally:
        stopper.remove()
    if reached and not ended.startswith("ended before"):
        ended = "ended before its first optimizer step; it caught that, and went on without steps"
    networks = [
        Network(name, watch.model, watch._site.optimizers, dict(watch._site.fixed.seen))
        for name, _, watch in finder._watches
    ]
    refused = [(one.name, one.trouble or "") for one in finder.close() if one.trouble is not None]
    kinds = probe_kinds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        looked = [try_probes(network, kinds) for network in networks]
    looked += [_refused(*one) for one in refused]
    return {"ended": ended, "networks": looked, "trouble": []}


def _run(program: Program) -> str:
    try:
        program.run()
    except Reached:
        return "ended before its first optimizer step"
    except SystemExit as error:
        code = error.code if error.code is not None else 0
        return f"ended by itself, exit code {code}, before any optimizer step"
    except KeyboardInterrupt:
        return "interrupted before any optimizer step"
    except BaseException as error:
        traceback.print_exc()
        return f"failed before any optimizer step: {type(error).__name__}: {error}"
    return "ran to its end without an optimizer step"


def _refused(name: str, reason: str) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(("layers", "skipped", "probes", "warnings"), [])
    return {
        "name": name, "class": "", "parameters": 0, "optimizers": [], "trouble": reason, **nothing
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
