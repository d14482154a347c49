"""Import a framework, or say how to install it."""

from __future__ import annotations

import importlib
from types import ModuleType


def framework(*names: str, extra: str) -> ModuleType:
    """Import the first of some modules that is there.

    Args:
        *names: one framework under the names it comes in.
        extra: the extra of dynamo-probe that brings it.

    Raises:
        ImportError: when none can be imported; the cause says why, the message says the fix.
    """
    failure: ImportError | None = None
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            failure = failure or error
    raise ImportError(
        f"{names[0]} cannot be imported: pip install 'dynamo-probe[{extra}]'"
    ) from failure
