"""Linear layers that hold the non-zero weights only, in compressed sparse rows (CSR)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn


class CSRLinear(nn.Module):
    """A linear layer whose weight is stored in compressed sparse rows; for inference.

    The weight lies in three buffers, so that `state_dict`, `to`, `torch.save` and copies work:
    `crow_indices` int32 or int64 [units + 1], `col_indices` [n] and `values` [n] for n non-zero
    weights. It takes no gradient. torch calls its CSR tensors a beta feature.

    Attributes:
        in_features, out_features: as in `nn.Linear`.
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor

    def __init__(
        self, crow_indices: Tensor, col_indices: Tensor, values: Tensor, in_features: int
    ) -> None:
        """Take the three tensors of `torch.sparse_csr_tensor`; `bias` is set by `from_dense`."""
        super().__init__()
        self.in_features, self.out_features = in_features, len(crow_indices) - 1
        self.register_buffer("crow_indices", crow_indices)
        self.register_buffer("col_indices", col_indices)
        self.register_buffer("values", values)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None)
        _take_beta_warning()

    @classmethod
    def from_dense(cls, weight: Tensor, bias: nn.Parameter | None = None) -> CSRLinear:
        """Store a dense weight.

        Args:
            weight: [units, inputs].
            bias: [units], taken as it is.

        Example:
            >>> layer = CSRLinear.from_dense(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
            >>> layer.values, layer(torch.tensor([[1.0, 3.0]]))
            (tensor([2.]), tensor([[6., 0.]]))
        """
        weight = weight.detach()
        there = weight != 0
        # MKL counts in 32 bits: with wider indices torch converts them at every call.
        columns = there.nonzero()[:, 1]
        index = torch.int32 if max(len(columns), weight.shape[1]) < 2**31 else torch.int64
        rows = torch.zeros(len(weight) + 1, dtype=torch.int64, device=weight.device)
        torch.cumsum(there.sum(1), 0, out=rows[1:])
        layer = cls(rows.to(index), there.nonzero()[:, 1].to(index), weight[there], weight.shape[1])
        layer.bias = bias
        return layer

    @property
    def nonzeros(self) -> int:
        """How many weights are stored."""
        return self.values.numel()

    def matrix(self) -> Tensor:
        """Return the weight as a sparse CSR tensor [units, inputs] on the buffers."""
        return torch.sparse_csr_tensor(
            self.crow_indices,
            self.col_indices,
            self.values,
            (self.out_features, self.in_features),
            check_invariants=False,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Compute `F.linear`: [..., inputs] -> [..., units]."""
        if torch.is_autocast_enabled(input.device.type):
            # Autocast would ask for a product in half precision, which CSR has not on a CPU.
            with torch.autocast(input.device.type, enabled=False):
                return self._multiply(input)
        return self._multiply(input)

    def _multiply(self, input: Tensor) -> Tensor:
        columns = input.reshape(-1, self.in_features).to(self.values.dtype).t()
        # Sparse x dense: F.linear's dense x sparse is up to ten times slower.
        if self.bias is None:
            made = self.matrix() @ columns
        else:
            made = torch.addmm(self.bias.unsqueeze(1), self.matrix(), columns)
        # As nn.Linear's, so that what follows may take views.
        return made.t().contiguous().view(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Say the shape and the density."""
        share = self.nonzeros / max(1, self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, density={share:.3g}"
        )

    def __setstate__(self, state: Any) -> None:
        """Come back from a copy or a pickle."""
        super().__setstate__(state)
        _take_beta_warning()


def unmultipliable(layer: CSRLinear) -> str | None:
    """Return why torch cannot multiply with the layer's weight here; None if it can."""
    try:
        with torch.no_grad():
            layer(layer.values.new_zeros(1, layer.in_features))
    except (RuntimeError, NotImplementedError) as error:
        kind, device = layer.values.dtype, layer.values.device.type
        return f"torch multiplies no CSR matrix of {kind} on {device} ({error})"
    return None


def _take_beta_warning() -> None:
    """Let torch give its one warning about CSR tensors here, and not in the middle of a forward."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning
        )
        first = torch.zeros(1, dtype=torch.int32)
        torch.sparse_csr_tensor(
            torch.tensor([0, 1], dtype=torch.int32),
            first,
            torch.zeros(1),
            (1, 1),
            check_invariants=False,
        )
