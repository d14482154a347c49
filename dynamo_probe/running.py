"""Run a script or a module as Python itself would, inside a process that is already running."""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import io
import os
import sys
import types
from collections.abc import Sequence
from types import CodeType, TracebackType
from typing import Any


class NotRunnable(Exception):
    """There is no such script or module; carries what Python would say, and its exit code."""

    def __init__(self, message: str, code: int) -> None:
        """Keep both."""
        super().__init__(message)
        self.code = code


class Program:
    """A script or module that is to run as `__main__`.

    Attributes:
        module: the module that becomes `__main__`.
    """

    def __init__(self, target: str, arguments: Sequence[str], *, as_module: bool = False) -> None:
        """Find it, and set `sys.argv` and `sys.path[0]` as Python would.

        Args:
            target: path of a script, or the dotted name of a module.
            arguments: what follows it on the command line.
            as_module: whether it is a module (`python -m`).

        Raises:
            NotRunnable: when there is no such script or module.
        """
        self.module = types.ModuleType("__main__")
        self._names: dict[str, Any] = vars(self.module)
        self._names.update(__builtins__=builtins, __cached__=None, __annotations__={})
        self._path: str | None = None
        if as_module:
            _put_first(os.getcwd())
            self._find_module(target)
        else:
            self._find_script(target)
        sys.argv[:] = [target if not as_module else str(self._names["__file__"]), *arguments]

    def _find_script(self, path: str) -> None:
        if not os.path.isfile(path):
            raise NotRunnable(f"can't open file {os.path.abspath(path)!r}: No such file", 2)
        self._path = os.path.abspath(path)
        loader = importlib.machinery.SourceFileLoader("__main__", self._path)
        self._names.update(__file__=self._path, __loader__=loader, __package__=None, __spec__=None)
        _put_first(os.path.dirname(os.path.realpath(path)))

    def _find_module(self, name: str) -> None:
        spec = _spec_of(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = _spec_of(f"{name}.__main__")
        code = getattr(spec.loader, "get_code", lambda _: None)(spec.name) if spec else None
        if spec is None or code is None:
            raise NotRunnable(f"No module named {name}, or none that can be run", 1)
        self._code: CodeType = code
        self._names.update(
            __file__=spec.origin,
            __loader__=spec.loader,
            __package__=spec.parent,
            __spec__=spec,
            __cached__=spec.cached,
        )

    def run(self) -> None:
        """Run it. What it raises comes out, and a traceback of it will begin at its first line.

        `__main__` stays in its place afterwards, for what runs when Python ends.
        """
        sys.modules["__main__"] = self.module
        try:
            if self._path is not None:
                with io.open_code(self._path) as file:
                    source = file.read()
                self._code = compile(source, self._path, "exec", dont_inherit=True)
            exec(self._code, self._names)
        except SystemExit:
            raise
        except BaseException:
            self._shorten_tracebacks()
            raise

    def _shorten_tracebacks(self) -> None:
        """Have the frames before the program's own left out when Python prints a traceback."""
        show = sys.excepthook

        def shortened(
            kind: type[BaseException], error: BaseException, trace: TracebackType | None
        ) -> None:
            own = self._own_part(trace)
            show(kind, error.with_traceback(own), own)

        sys.excepthook = shortened

    def _own_part(self, trace: TracebackType | None) -> TracebackType | None:
        part = trace
        while part is not None and part.tb_frame.f_globals is not self._names:
            part = part.tb_next
        if part is None and not hasattr(self, "_code"):
            return None  # it could not be compiled: no frame is the program's
        return part or trace


def _put_first(directory: str) -> None:
    """Put a directory where Python puts the script's; with `python -P` it puts none."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0:1] = [directory]


def _spec_of(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            return None
        raise
    except ValueError:
        return None
