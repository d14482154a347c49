"""See what happens inside a network while it trains, and act on it.

Example:
    >>> import torch, dynamo_probe as dp
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> optimizer = torch.optim.Adam(net.parameters())
    >>> with dp.watch(net, optimizer, [dp.Dormancy(every=2)]) as watch:
    ...     for _ in range(4):
    ...         net(torch.randn(16, 4)).square().mean().backward()
    ...         optimizer.step()
    >>> watch.step
    4
    >>> watch.history.series("dormancy/samples")[0].tolist()
    [1, 2, 4]
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamo_probe.face import *  # noqa: F403
    from dynamo_probe.face import __all__ as __all__

__version__ = "0.1.0.dev0"


class _Face(ModuleType):
    """A package whose names come when the first of them is asked for: torch takes a second.

    The command line and the tab of TensorBoard need few of them, or none.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep the module `dynamo_probe.watch` from taking the place of the function."""
        if name != "watch" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """Name what can be had, too."""
        return sorted({*vars(self), *importlib.import_module("dynamo_probe.face").__all__})


def __getattr__(name: str) -> Any:
    """Gather the public names when one is asked for that is not there yet."""
    if name == "__all__" or not name.startswith("_"):
        face = importlib.import_module("dynamo_probe.face")
        for one in getattr(face, "__all__", ()):  # it has none while it is itself being imported
            globals()[one] = getattr(face, one)
        if name == "__all__":
            return face.__all__
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = _Face
