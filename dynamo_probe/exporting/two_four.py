"""Weights with at most two of four neighbouring inputs (2:4): check, store, and hand to a GPU."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_HALF = (torch.float16, torch.bfloat16)


def broken_groups(weight: Tensor) -> int:
    """Return how many groups of four neighbouring inputs have more than two non-zero weights.

    Args:
        weight: [units, inputs], the inputs a multiple of 4.

    Example:
        >>> broken_groups(torch.tensor([[1.0, 0, 2, 0, 0, 3, 4, 5]]))
        1
    """
    fours = rearrange(weight != 0, "unit (group four) -> unit group four", four=4)
    return int((fours.sum(-1) > 2).sum())


class PackedLinear(nn.Module):
    """A linear layer that stores a 2:4 weight in about half the bytes, and unpacks it to compute.

    This is storage: every forward pass writes out the dense weight, so it is slower than
    `nn.Linear`. Buffers: `values` [units, inputs / 2] and `places` uint8 [units, inputs / 8,
    rounded up], in which a group of four inputs has four bits, two for the place of each value.

    Attributes:
        in_features, out_features: as in `nn.Linear`.
    """

    values: Tensor
    places: Tensor

    def __init__(self, values: Tensor, places: Tensor) -> None:
        """Take both tensors; `bias` is set by `from_dense`."""
        super().__init__()
        self.out_features, self.in_features = len(values), 2 * values.shape[1]
        self.register_buffer("values", values)
        self.register_buffer("places", places)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None)

    @classmethod
    def from_dense(cls, weight: Tensor, bias: nn.Parameter | None = None) -> PackedLinear:
        """Store a dense weight.

        Args:
            weight: [units, inputs], 2:4.
            bias: [units], taken as it is.

        Raises:
            ValueError: when the weight is not 2:4.
        """
        weight = weight.detach()
        if weight.shape[1] % 4 or broken_groups(weight):
            raise ValueError("the weight is not 2:4; see broken_groups")
        fours = rearrange(weight, "unit (group four) -> unit group four", four=4)
        # Those that are not 0 come first, in their order; a place is never taken twice.
        order = (fours != 0).int().argsort(dim=-1, descending=True, stable=True)[..., :2]
        values = rearrange(fours.gather(-1, order), "unit group two -> unit (group two)")
        nibbles = (order[..., 0] + 4 * order[..., 1]).to(torch.uint8)
        nibbles = F.pad(nibbles, (0, nibbles.shape[1] % 2))
        pairs = rearrange(nibbles, "unit (byte two) -> two unit byte", two=2)
        layer = cls(values.contiguous(), pairs[0] + 16 * pairs[1])
        layer.bias = bias
        return layer

    @property
    def nonzeros(self) -> int:
        """How many weights are not 0."""
        return int(torch.count_nonzero(self.values))

    def matrix(self) -> Tensor:
        """Return the dense weight [units, inputs]."""
        pairs = torch.stack((self.places % 16, self.places // 16))
        nibbles = rearrange(pairs, "two unit byte -> unit (byte two)")[:, : self.in_features // 4]
        order = torch.stack((nibbles % 4, nibbles // 4), dim=-1).long()
        values = rearrange(self.values, "unit (group two) -> unit group two", two=2)
        fours = values.new_zeros(*nibbles.shape, 4).scatter_(-1, order, values)
        return rearrange(fours, "unit group four -> unit (group four)")

    def forward(self, input: Tensor) -> Tensor:
        """Compute `F.linear` with the unpacked weight: [..., inputs] -> [..., units]."""
        return F.linear(input, self.matrix(), self.bias)

    def extra_repr(self) -> str:
        """Say the shape."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


def no_kernel(weight: Tensor) -> str | None:
    """Return why this machine computes nothing with a 2:4 weight as it is; None if it may."""
    if weight.device.type != "cuda":
        return (
            "torch computes 2:4 only on CUDA GPUs of compute capability 8.0 (Ampere) and later, "
            f"and the weight is on {weight.device.type}"
        )
    major, minor = torch.cuda.get_device_capability(weight.device)
    if (major, minor) < (8, 0):
        return f"torch computes 2:4 from compute capability 8.0 on; this GPU has {major}.{minor}"
    if weight.dtype not in _HALF:
        return (
            f"the weight is {weight.dtype}, which the 2:4 kernels do not multiply exactly: "
            "convert the model to float16 or bfloat16 first"
        )
    return None


def accelerated(weight: Tensor) -> nn.Parameter | str:
    """Return a weight in torch's semi-structured form, or why that cannot be used here.

    The form is tried on random inputs against the dense weight before it is given.

    Args:
        weight: [units, inputs], 2:4.
    """
    reason = no_kernel(weight)
    if reason is not None:
        return reason
    dense = weight.detach().contiguous()
    kinds: list[type[torch.sparse.SparseSemiStructuredTensor]] = [
        torch.sparse.SparseSemiStructuredTensorCUTLASS
    ]
    if torch.backends.cusparselt.is_available():
        kinds.insert(0, torch.sparse.SparseSemiStructuredTensorCUSPARSELT)
    generator = torch.Generator(dense.device).manual_seed(0)
    probe = torch.randn(
        64, dense.shape[1], generator=generator, device=dense.device, dtype=dense.dtype
    )
    refused = []
    for kind in kinds:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                # A prototype feature of torch, which the report says.
                warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructured")
                converted = nn.Parameter(kind.from_dense(dense), requires_grad=False)
                found, wanted = F.linear(probe, converted), F.linear(probe, dense)
        except Exception as error:
            refused.append(f"{kind.BACKEND}: {type(error).__name__}: {error}")
            continue
        distance = (found.double() - wanted.double()).abs().max()
        if bool(distance <= 2e-2 * wanted.double().abs().max()):
            return converted
        refused.append(f"{kind.BACKEND}: other results than the dense weight's")
    return f"torch did not take it ({'; '.join(refused)})"
