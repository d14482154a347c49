"""One call of attention, as it was seen: what went in, what came out, and over which positions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

FORBIDDEN = -5_000.0
"""An additive mask below this lets nothing through; its exponential is 0 in every float type."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """A call of attention inside a model's forward pass.

    The axes before positions and features, `leading`, are the batch and the heads, in whatever form
    the model has them: (batch, heads), (batch * heads,), or (batch,) for one head.

    Attributes:
        name: qualified name of the module that made the call, with `#2`, `#3` for its later calls.
        kind: `sdpa` for `scaled_dot_product_attention`, which `nn.MultiheadAttention` calls too;
            `softmax` for attention written by hand.
        output: `[*leading, queries, features]`, before any output projection.
        value: what is averaged, `[*leading, keys, features]`.
        query: `[*leading, queries, features]`; None for `softmax`.
        key: `[*leading, keys, features]`; its head axis may be shorter (grouped queries). None for
            `softmax`.
        mask: boolean (True attends) or additive, broadcastable to `[*leading, queries, keys]`.
        causal: a query attends to no later key, counted from the first.
        scale: of the products of queries and keys.
        pattern: the attention weights `[*leading, queries, keys]` where the model computed them.
        logsumexp: of the scaled and masked products, `[*leading, queries]`, where the kernel gave
            it.
        cross: keys and values are known to come from another sequence.
    """

    name: str
    kind: Literal["sdpa", "softmax"]
    output: Tensor
    value: Tensor
    query: Tensor | None = None
    key: Tensor | None = None
    mask: Tensor | None = None
    causal: bool = False
    scale: float = 1.0
    pattern: Tensor | None = None
    logsumexp: Tensor | None = None
    cross: bool = False

    @property
    def leading(self) -> tuple[int, ...]:
        """Sizes of the axes before positions and features."""
        return tuple(self.output.shape[:-2])

    @property
    def positions(self) -> tuple[int, int]:
        """Number of queries and of keys."""
        return self.output.shape[-2], self.value.shape[-2]

    def why_not_over(self, length: int) -> str | None:
        """Return why this is not self-attention over so many tokens; None where it is."""
        queries, keys = self.positions
        if self.cross or (queries == length and keys != length):
            return f"cross-attention: {queries} queries over {keys} keys of another sequence"
        if (queries, keys) != (length, length):
            return (
                f"attention over {queries} x {keys} positions where the model was given {length} "
                "tokens: over channels, patches, windows or added tokens"
            )
        return None

    def by_head(self, batch: int) -> AttentionCall:
        """Return the call with `leading` (batch, heads).

        Raises:
            ValueError: when the first axis is not the batch: batch and heads cannot be told apart.
        """
        leading = self.leading
        if batch == 1:
            heads = (1, math.prod(leading))
        elif leading[0] == batch:
            heads = (batch, math.prod(leading[1:]))
        else:
            raise ValueError(
                f"{self.name} has merged its batch of {batch} and its heads into axes {leading}: "
                "run one sequence at a time to tell them apart"
            )

        def split(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            return tensor.expand(*leading, *tensor.shape[-2:]).reshape(*heads, *tensor.shape[-2:])

        lse, mask = self.logsumexp, self.mask
        return replace(
            self,
            output=self.output.reshape(*heads, *self.output.shape[-2:]),
            value=_grouped(self.value, leading, heads),
            query=split(self.query),
            key=None if self.key is None else _grouped(self.key, leading, heads),
            # A mask may be as large as a pattern: it is left as it is where that will do.
            mask=split(mask) if mask is not None and mask.dim() > 2 and heads != leading else mask,
            pattern=split(self.pattern),
            logsumexp=None if lse is None else lse.reshape(*heads, lse.shape[-1]),
        )


def _grouped(tensor: Tensor, leading: tuple[int, ...], heads: tuple[int, int]) -> Tensor:
    """Return keys or values as [batch, heads, positions, features]; grouped heads stay grouped."""
    own = tensor.shape[:-2]
    wanted = leading if math.prod(own[1:]) == math.prod(leading[1:]) or len(own) < 2 else own
    try:
        tensor = tensor.expand(*wanted, *tensor.shape[-2:])
    except RuntimeError:
        wanted = own
    return tensor.reshape(heads[0], -1, *tensor.shape[-2:])


def attend(arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Call `scaled_dot_product_attention`, by the kernel that it would choose itself.

    Args:
        arguments: its arguments by name.

    Returns:
        The output, and the log-sum-exp of each query's products where that kernel gives it: on the
        CPU the flash kernel does. The output is the same to the bit either way.
    """
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    mask, causal = arguments.get("attn_mask"), bool(arguments.get("is_causal", False))
    scale, grouped = arguments.get("scale"), bool(arguments.get("enable_gqa", False))
    choice = getattr(torch, "_fused_sdp_choice", None)
    if (
        choice is None
        or query.device.type != "cpu"
        or query.dim() != 4
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")  # which casts what goes into torch's own function only
        or torch._C._len_torch_function_stack() > 0  # somebody else looks at, or changes, the call
        or arguments.get("dropout_p", 0.0)
        or int(choice(query, key, value, mask, 0.0, causal, scale=scale, enable_gqa=grouped))
        != _FLASH
    ):
        return F.scaled_dot_product_attention(**arguments), None
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)


_FLASH = 1  # the value of `torch.nn.attention.SDPBackend.FLASH_ATTENTION`
