"""Masks as bits: one thirty-second of the weights, in checkpoints and in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(mask: Tensor) -> Tensor:
    """Return a mask as bits: uint8 [ceil(n / 8)] on the CPU, the first flag in the highest bit."""
    flags = mask.detach().to("cpu").contiguous().flatten().numpy()
    return torch.from_numpy(np.packbits(flags))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the mask of a shape that was packed, on the CPU.

    Raises:
        ValueError: when there are not as many bits as the shape needs.
    """
    size = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.shape != (-(-size // 8),):
        raise ValueError(
            f"a packed mask of shape {tuple(shape)} is {-(-size // 8)} bytes, and this is "
            f"{bits.dtype} of shape {tuple(bits.shape)}: it was saved with another model"
        )
    flags = np.unpackbits(bits.cpu().numpy(), count=size)
    return torch.from_numpy(flags).view(torch.bool).view(tuple(shape))


def packed(mask: Tensor) -> dict[str, Any]:
    """Return a mask as it goes into a checkpoint."""
    return {"shape": list(mask.shape), "bits": pack(mask)}


def unpacked(saved: dict[str, Any]) -> Tensor:
    """Return the mask that `packed` made."""
    return unpack(saved["bits"], saved["shape"])
