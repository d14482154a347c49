"""What could be tapped in a script: asked of a process of its own, and put into words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamo_probe.cli.output import printable


def examine_script(
    given: Sequence[str], *, as_module: bool, time_limit: float, quiet: bool
) -> dict[str, Any]:
    """Run a script up to its first optimizer step, and return what was found.

    Args:
        given: the script, or a module's name, and its arguments.
        as_module: whether it is a module.
        time_limit: seconds after which it is ended.
        quiet: whether its output is hidden; otherwise it goes to standard error.

    Returns:
        `target`, `ended` (why the script ended, in words), `networks` and `trouble`.
    """
    with tempfile.TemporaryDirectory(prefix="dynamo-probe-") as directory:
        answer = Path(directory, "answer.json")
        # No `-m`: the script's directory, and not ours, comes first on its path.
        code = "from dynamo_probe.cli.examining import main; main()"
        kind = "module" if as_module else "script"
        command = [sys.executable, "-c", code, str(answer), kind, *given]
        ended = _run(command, time_limit, quiet)
        try:
            found = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {"ended": ended, "networks": [], "trouble": []}
        if ended.startswith("the time limit"):
            found["ended"] = ended
    if not found["networks"]:
        found["trouble"].append(
            "no network was found: no torch optimizer with a module's parameters came to a step"
        )
    return {"target": given[0], **found}


def _run(command: list[str], time_limit: float, quiet: bool) -> str:
    """Run a process, its output on standard error, and say how it ended."""
    from dynamo_probe import __file__ as here

    path = [str(Path(here).parent.parent), os.environ.get("PYTHONPATH", "")]
    output = subprocess.DEVNULL if quiet or sys.stderr is None else _stderr()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        start_new_session=True,  # its own processes end with it
    )
    try:
        code = process.wait(time_limit)
    except subprocess.TimeoutExpired:
        return f"the time limit of {time_limit:g} s was reached; --time-limit gives it more"
    finally:
        _end(process)
    return f"the script ended with exit code {code}" if code >= 0 else f"signal {-code} ended it"


def _stderr() -> Any:
    """Return standard error where it is a real file, and otherwise no place at all."""
    try:
        return sys.stderr.fileno()
    except (OSError, AttributeError, ValueError):
        return subprocess.DEVNULL


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


def script_lines(found: dict[str, Any]) -> list[str]:
    """Put what was found into lines."""
    lines = [f"{found['target']}: {found['ended']}"]
    for network in found["networks"]:
        lines += ["", *_network_lines(network)]
    lines += ["", *(f"Trouble: {one}" for one in found["trouble"])] if found["trouble"] else []
    return lines


def _network_lines(network: dict[str, Any]) -> list[str]:
    optimizers = ", ".join(network["optimizers"]) or "no optimizer"
    lines = [
        f"{network['name']} ({network['class']}, {network['parameters']:,} parameters, "
        f"{optimizers})"
    ]
    if network["trouble"]:
        return [*lines, f"  cannot be watched: {network['trouble']}"]
    names = [printable(layer["name"], 80) for layer in network["layers"]]
    width = max(map(len, names), default=0)
    lines.append("  Layers that can be tapped" if network["layers"] else "  No layer can be tapped")
    for name, layer in zip(names, network["layers"], strict=True):
        units = f"{layer['units']:>6} units, read at the {layer['read']}"
        no = f"; not recyclable: {layer['not_recyclable']}" if layer["not_recyclable"] else ""
        lines.append(f"    {name:<{width}} {units}{no}")
    if network["skipped"]:
        lines.append("  Layers that are left out")
        lines += [f"    {one['name']}: {one['reason']}" for one in network["skipped"]]
    lines += ["  Probes"] if network["probes"] else []
    for one in network["probes"]:
        says = {True: "works", False: "gives no reading", None: "unknown"}[one["works"]]
        lines.append(f"    {one['name']:<13} {says}{': ' if one['reason'] else ''}{one['reason']}")
    return lines + [f"  Warning: {one}" for one in network["warnings"]]
