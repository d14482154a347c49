"""The direct path from what a layer writes to the logits, as the linear steps along it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scale:
    """A product with a number, or with one for each feature.

    Attributes:
        factor: `[]` or `[features]`, float64.
    """

    factor: Tensor

    def before(self, rows: Tensor) -> Tensor:
        """Return the rows of what follows, times this step."""
        return rows * self.factor.to(rows.device)


@dataclass(frozen=True, slots=True)
class Centre:
    """The mean over features taken off."""

    def before(self, rows: Tensor) -> Tensor:
        """Return the rows of what follows, times this step."""
        return rows - rows.mean(-1, keepdim=True)


@dataclass(frozen=True, slots=True)
class Linear:
    """A product with a matrix.

    Attributes:
        weight: `[out, in]`.
    """

    weight: Tensor

    def before(self, rows: Tensor) -> Tensor:
        """Return the rows of what follows, times this step."""
        return rows @ exact(self.weight)


@dataclass(frozen=True, slots=True)
class Narrow:
    """The first features alone, as of logits that are padded to a round number.

    Attributes:
        width: number of features before.
    """

    width: int

    def before(self, rows: Tensor) -> Tensor:
        """Return the rows of what follows, times this step."""
        return F.pad(rows, (0, self.width - rows.shape[-1]))


Step = Scale | Centre | Linear | Narrow


@dataclass(frozen=True, slots=True)
class Path:
    """How far something has come from where it was written, by steps that are linear.

    A norm divides each position by a positive number of its own. That number is left out, as it
    changes no ratio of logits at one position, and is counted in `norms`.

    Attributes:
        steps: in the order in which they were taken.
        norms: norms passed, each a positive scale for every position.
        matrices: matrices passed.
        lost: why it cannot be followed as far as this; None where it can.
    """

    steps: tuple[Step, ...] = ()
    norms: int = 0
    matrices: int = 0
    lost: str | None = None

    def then(self, *steps: Step, norm: bool = False) -> Path:
        """Return the path with further steps."""
        return Path(
            self.steps + steps,
            self.norms + norm,
            self.matrices + sum(isinstance(step, Linear) for step in steps),
            TWO_NORMS if self.lost is None and norm and self.norms else self.lost,
        )

    def joined(self, other: Path) -> Path:
        """Return the path by which the sum of two ends is reached from one beginning."""
        if self.matrices != other.matrices and 0 in (self.matrices, other.matrices):
            # What came by a matrix is the work of a later layer; past it leads the direct path.
            return self if self.matrices == 0 else other
        for path in (self, other):
            if path.lost is not None:
                return path
        if self.matrices or other.matrices:
            return replace(self, lost=TWO_MATRICES)
        scales = [step.factor for step in (*self.steps, *other.steps) if isinstance(step, Scale)]
        if self.norms or other.norms or len(scales) != len(self.steps) + len(other.steps):
            return replace(self, lost=TWO_NORMS)
        return Path((Scale(_product(self) + _product(other)),))

    @property
    def gone(self) -> bool:
        """Whether a matrix on the way is in memory no more: sharded ones are there for a moment."""
        return any(isinstance(step, Linear) and freed(step.weight) for step in self.steps)

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows of the product of all steps, float64 `[ids, features]`.

        Args:
            ids: of tokens, which are outputs of the last matrix.
        """
        steps = list(self.steps)
        last = max(i for i, step in enumerate(steps) if isinstance(step, Linear))
        matrix = steps[last]
        assert isinstance(matrix, Linear)
        rows = exact(matrix.weight[ids.to(matrix.weight.device)])
        for step in steps[last + 1 :]:
            if isinstance(step, Scale):  # a mean of all logits taken off is the same for each
                factor = step.factor.to(rows.device)
                rows = rows * (factor[ids.to(rows.device)][:, None] if factor.dim() else factor)
        for step in reversed(steps[:last]):
            rows = step.before(rows)
        return rows


TWO_NORMS = (
    "more than one norm lies between what it writes and the logits (a norm after the block): there "
    "is no direct path that is linear"
)
TWO_MATRICES = (
    "more than one matrix leads in parallel from what it writes to the logits: an adapter"
)


def exact(tensor: Tensor) -> Tensor:
    """Return a tensor as float64, on the CPU where its device has no float64."""
    tensor = tensor.detach()
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def freed(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor have been given back."""
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def _product(path: Path) -> Tensor:
    found = torch.ones((), dtype=torch.float64)
    for step in path.steps:
        assert isinstance(step, Scale)
        found = found.to(step.factor.device) * step.factor
    return found
