"""What the commands write: lines for people, one JSON document for scripts."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import typer

FAILED, WRONG_CALL = 1, 2
"""Exit codes."""
_LONGEST = 300


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Say in a line on standard error what is wrong, and how to put it right, and end.

    Args:
        message: in a line.
        code: exit code: 1 for a failure, 2 for a wrong call.
    """
    typer.echo(f"dynamo-probe: {printable(message, 2000)}", err=True)
    raise typer.Exit(code)


def tell(message: str) -> None:
    """Say something on standard error, which is not the answer to the question."""
    typer.echo(f"dynamo-probe: {printable(message, 2000)}", err=True)


def printable(text: str, longest: int = _LONGEST) -> str:
    """Make one line of a text that came from elsewhere: no control characters, not without end."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    line = line.encode("utf-8", "backslashreplace").decode()  # names of files may be half a pair
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def write_json(document: dict[str, Any]) -> None:
    """Write a document on standard output; what is not finite becomes null."""
    typer.echo(json.dumps(_finite(document), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value
