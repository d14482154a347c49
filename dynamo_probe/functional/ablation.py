"""Taking attention heads out of a model for a while, to see what they are for."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.anatomy.attention import AttentionCall
from dynamo_probe.anatomy.heads import UNSEEN, HeadTap
from dynamo_probe.anatomy.twin import eager, untouched_randomness, unwrap
from dynamo_probe.functional.unmeasurable import Unmeasurable

Kind = Literal["zero", "mean", "resample"]
Head = tuple[int | str, int]
"""A layer, by its number among those that `head_scores` gives or by its name, and a head."""


@contextmanager
def ablate_heads(
    model: nn.Module,
    heads: Sequence[Head],
    kind: Kind = "zero",
    freeze_patterns: bool = False,
    *,
    generator: torch.Generator | None = None,
) -> Generator[nn.Module, None, None]:
    """Run a model without some of its heads, while this lasts.

    The output of a head is replaced where attention is called, before any output projection, so
    that grouped queries and fused projections need no care. Nothing of the model is changed.

    Args:
        model: whose forward pass is changed. Other models that are run meanwhile are not.
        heads: which ones, `(layer, head)`: the layer as in `HeadScores`, by number or by name.
        kind: what takes the place of a head's output: `zero`; `mean`, over the sequences and
            positions of the batch at hand; `resample`, the output on another sequence of the batch.
        freeze_patterns: let every head attend to what it attends to without the ablation, so that
            only the direct effect of the outputs remains. It takes a second forward pass.
        generator: on the CPU, draws the sequences of `resample`; None takes one with seed 0.

    Yields:
        The model.

    Raises:
        TypeError: when `heads` are not pairs.
        ValueError: at the forward pass, when there is no such layer or head, or `resample` meets a
            batch of one sequence.
        Unmeasurable: (a ValueError) when a forward pass calls no attention that could be seen, or
            merges batch and heads into one axis, so that heads cannot be told apart.

    Source: Olsson et al. 2022, *In-context Learning and Induction Heads*, head ablations (zero, and
    pattern-preserving, which is `zero` with `freeze_patterns`).

    Example:
        >>> attention = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), attention).eval()
        >>> tokens = torch.arange(10)[None]
        >>> with ablate_heads(model, [(0, 2)]):
        ...     without = model(tokens)
        >>> bool((without == model(tokens)).all())
        False
    """
    if kind not in ("zero", "mean", "resample"):
        raise ValueError(f"kind is {kind!r}; give 'zero', 'mean' or 'resample'")
    inner = unwrap(model)
    ablation = _Ablation(inner, _checked(heads), kind, generator)
    tap = HeadTap(inner, ablation.visit)
    hooks = [
        inner.register_forward_pre_hook(
            lambda module, args, kwargs: ablation.begin(tap, args, kwargs, freeze_patterns),
            with_kwargs=True,
        ),
        inner.register_forward_hook(lambda module, args, output: ablation.end()),
    ]
    try:
        with eager(), tap.on():
            yield model
    finally:
        for hook in hooks:
            hook.remove()


def _checked(heads: Sequence[Head]) -> dict[int | str, list[int]]:
    found: dict[int | str, list[int]] = {}
    for pair in heads:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[1], int)):
            raise TypeError(f"{pair!r} is no head; give pairs (layer, head), such as (1, 3)")
        if not isinstance(pair[0], (int, str)) or pair[1] < 0 or pair[0] in range(-99, 0):
            raise ValueError(f"{pair!r} is no head; layers and heads are counted from 0")
        found.setdefault(pair[0], []).append(pair[1])
    return found


class _Ablation:
    """Replaces outputs in one forward pass after the other."""

    def __init__(
        self,
        model: nn.Module,
        heads: dict[int | str, list[int]],
        kind: Kind,
        generator: torch.Generator | None,
    ) -> None:
        self._model = model
        self._heads = heads
        self._kind = kind
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._shape: tuple[int, int] | None = None
        self._layer = 0
        self._met: set[int | str] = set()
        self._recording = False
        self._recorded: list[AttentionCall] | None = None
        self._shift = 0

    def begin(
        self, tap: HeadTap, args: tuple[Any, ...], kwargs: dict[str, Any], freeze: bool
    ) -> None:
        """Make ready for a forward pass; with frozen patterns, record one without ablation."""
        self._shape = _token_shape(args, kwargs)
        self._layer, self._met, self._shift, self._recorded = 0, set(), 0, None
        if freeze:
            self._recording, self._recorded = True, []
            try:
                with torch.no_grad(), untouched_randomness(self._model), tap.passing():
                    self._model.forward(*args, **kwargs)
            finally:
                self._recording = False
            self._layer = 0

    def end(self) -> None:
        """Look whether the ablation took place."""
        self._recorded = None
        missing = self._heads.keys() - self._met
        if self._layer == 0:
            raise Unmeasurable(UNSEEN)
        if missing:
            raise ValueError(
                f"there is no layer {next(iter(missing))!r}: attention over tokens was seen in "
                f"{self._layer} layers"
            )

    def visit(self, call: AttentionCall) -> Tensor | None:
        """Return what takes the place of a call's output; None where nothing does."""
        length = call.positions[0] if self._shape is None else self._shape[1]
        if call.why_not_over(length) is not None:
            return None
        layer, self._layer = self._layer, self._layer + 1
        if self._recording:
            assert self._recorded is not None
            self._recorded.append(call)
            return None
        output = call.output
        if self._recorded is not None:
            output = _with_pattern_of(self._recorded[layer], call)
        heads = self._heads.get(layer, []) + self._heads.get(call.name, [])
        self._met |= {layer, call.name}
        if heads:
            output = self._without(call, output, heads)
        return None if output is call.output else output

    def _without(self, call: AttentionCall, output: Tensor, heads: list[int]) -> Tensor:
        batch, axes = self._split(call)
        split = output.reshape(*axes, *output.shape[-2:])
        if max(heads) >= axes[1]:
            raise ValueError(f"{call.name} has {axes[1]} heads; there is no head {max(heads)}")
        chosen = split[:, heads]
        if self._kind == "zero":
            instead = torch.zeros_like(chosen)
        elif self._kind == "mean":
            instead = chosen.mean(dim=(0, 2), keepdim=True).expand_as(chosen)
        else:
            if batch < 2:
                raise ValueError("resample takes the output on another sequence: give 2 or more")
            if self._shift == 0:
                self._shift = int(torch.randint(1, batch, (), generator=self._generator))
            instead = chosen.roll(self._shift, 0)
        index = torch.tensor(heads, device=output.device)
        return split.index_copy(1, index, instead).reshape(output.shape)

    def _split(self, call: AttentionCall) -> tuple[int, tuple[int, int]]:
        """Return the batch, and batch and heads as axes."""
        leading = call.leading
        batch = self._shape[0] if self._shape is not None else max(1, *leading[:1])
        whole = torch.Size(leading).numel()
        alike = call.kind == "softmax" and len(leading) > 1 and leading[0] == leading[1] > 1
        if batch > 1 and (leading[:1] != (batch,) or alike):
            raise Unmeasurable(
                f"{call.name} computes attention over axes {leading} for a batch of {batch}: which "
                "of them are heads cannot be told. Run one sequence at a time, or another number"
            )
        return batch, (batch, whole // batch)


def _with_pattern_of(recorded: AttentionCall, call: AttentionCall) -> Tensor:
    """Return the output of a call's values under the attention pattern of another."""
    if recorded.pattern is not None:
        return recorded.pattern @ call.value
    assert recorded.query is not None and recorded.key is not None
    return F.scaled_dot_product_attention(
        recorded.query,
        recorded.key,
        call.value,
        attn_mask=recorded.mask,
        is_causal=recorded.causal,
        scale=recorded.scale,
        enable_gqa=recorded.query.dim() > 3 and recorded.query.shape[-3] != recorded.key.shape[-3],
    )


def _token_shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int] | None:
    """Return number and length of the sequences among the arguments; None where unknown."""
    given = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)]
    for part in given:
        whole = not part.is_floating_point() and not part.is_complex() and part.dtype != torch.bool
        if whole and part.dim() == 2:
            return part.shape[0], part.shape[1]
        if whole and part.dim() == 1:
            return 1, part.shape[0]
    return None
