"""Real text that is there already: Python's standard library, and the docstrings of two packages.

Nothing is downloaded. What the text is depends on the versions that are installed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
PACKAGES = ("scipy", "sklearn")
_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings"}


@dataclass(frozen=True, slots=True)
class Text:
    """Characters as token ids.

    Attributes:
        train: one after the other, `[tokens]`, int64.
        test: the same of other files.
        vocab_size: token ids are below it.
    """

    train: Tensor
    test: Tensor
    vocab_size: int = len(CHARACTERS)


@cache
def load(name: str) -> Text:
    """Return `python` (the standard library's source) or `docs` (docstrings of scipy and sklearn).

    A file in ten, by a hash of its name, is for testing. Characters are newline and the 95 of
    ASCII that can be printed; others are dropped.
    """
    parts: tuple[list[str], list[str]] = ([], [])
    for path, text in {"python": _source, "docs": _docstrings}[name]():
        digest = hashlib.sha256(path.encode()).digest()
        parts[digest[0] % 10 == 0].append(text)
    return Text(*(_encode("\n".join(part)) for part in parts))


def _source() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _LEFT_OUT.isdisjoint(name.parts):
            yield str(name), path.read_text(encoding="utf-8", errors="ignore")


def _docstrings() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"{package} is not installed; pip install 'dynamo-probe[dev]'"
            )
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root.parent)
            if _LEFT_OUT.isdisjoint(name.parts):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                texts = [text for node in ast.walk(tree) if (text := _docstring(node))]
                yield str(name), "\n\n".join(texts)


def _docstring(node: ast.AST) -> str | None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return ast.get_docstring(node) if isinstance(node, kinds) else None


def _encode(text: str) -> Tensor:
    table = torch.full((128,), -1)
    table[[ord(character) for character in CHARACTERS]] = torch.arange(len(CHARACTERS))
    codes = torch.frombuffer(bytearray(text.encode("ascii", errors="ignore")), dtype=torch.uint8)
    tokens = table[codes.long()]
    return tokens[tokens >= 0]
