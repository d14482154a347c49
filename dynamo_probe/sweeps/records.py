"""The file of a sweep: a line of JSON for each run, found again by what was run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]


def expand(grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the settings of a grid: every combination, or those that were listed.

    Raises:
        TypeError: when the values of a name are no sequence, or a string.
        ValueError: when settings come twice, or one is called `seed`.

    Example:
        >>> expand({"rate": [1, 2], "width": [8]})
        [{'rate': 1, 'width': 8}, {'rate': 2, 'width': 8}]
    """
    if isinstance(grid, Mapping):
        for name, values in grid.items():
            if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
                raise TypeError(
                    f"{name} is {values!r}; give a list of values, such as [{values!r}]"
                )
        found = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    else:
        found = [dict(settings) for settings in grid]
    for settings in found:
        if "seed" in settings:
            raise ValueError("a setting is called 'seed'; give seeds=")
    texts = [canonical(settings) for settings in found]
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise ValueError(f"the settings {twice} come twice")
    return found


def canonical(value: Any) -> str:
    """Return the JSON text that stands for a value, whatever the order of its names.

    Raises:
        TypeError: when it is not made of what JSON knows.
    """
    try:
        return json.dumps(plain(value), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{value!r} is not made of numbers, strings, lists and dicts ({error}); a file cannot "
            "tell it apart: give a name, and look it up in the function"
        ) from None


def plain(value: Any) -> Any:
    """Return dataclasses, paths, arrays and tensors as what JSON knows; anything else as it is."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(item) for name, item in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    as_list: Any = getattr(value, "tolist", None)
    if callable(as_list):  # NumPy's and torch's
        return as_list()
    return str(value) if isinstance(value, Path) else value


def run_key(function: str, settings: Mapping[str, Any], seed: int) -> str:
    """Return what tells a run from all others."""
    return canonical([function, dict(settings), seed])


def name_of(function: Callable[..., Any]) -> str:
    """Return the qualified name of a function that another process can import.

    Raises:
        ValueError: when it cannot be imported by name, with the fix.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module is None or "<" in name or not name:
        raise ValueError(
            f"{name or function!r} cannot be imported by another process; give a function that is "
            "defined at the top of a module"
        )
    return f"{module}.{name}"


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file; it may be one that a sweep is writing to.

    A last line that is not whole, because an interruption cut it off or because it is being
    written, is left out.

    Raises:
        ValueError: when a line is not that of a sweep.
    """
    if not path.exists():
        return []
    whole, torn = _split(path.read_bytes())
    if torn and not torn.startswith(b"{"):
        raise ValueError(f"the last line of {path} is not a row of a sweep: {torn[:40]!r}")
    rows = []
    for number, line in enumerate(whole.decode("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {path} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} is not a row of a sweep: {line[:40]!r}")
        rows.append(row)
    return rows


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Return the whole lines of a file, and what follows them."""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def write_row(file: IO[str], row: Row) -> None:
    """Append a row, and see to it that it is on the disk."""
    file.write(json.dumps(plain(row)) + "\n")
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def appending(path: Path) -> Iterator[IO[str]]:
    """Open a file for one sweep alone; a last line that was cut off is taken off it.

    Raises:
        RuntimeError: when another process has it.
        ValueError: when it is not a file of a sweep; nothing of it is changed.
    """
    read_rows(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        try:
            import fcntl
        except ModuleNotFoundError:  # Windows: two sweeps on one file are not noticed there
            _cut(path)
            yield file
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(
                f"another sweep writes to {path}; wait for it, or give another out="
            ) from None
        _cut(path)
        yield file


def _cut(path: Path) -> None:
    whole, torn = _split(path.read_bytes())
    if torn:
        os.truncate(path, len(whole))
