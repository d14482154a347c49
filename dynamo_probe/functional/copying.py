"""How well a model copies: its loss on tokens that it has seen before in the same sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.functional.logits import token_losses
from dynamo_probe.functional.repeated_tokens import repeated_tokens
from dynamo_probe.functional.token_model import Call, device_of, logits_of, run_on
from dynamo_probe.functional.unmeasurable import Unmeasurable
from dynamo_probe.observation.apart import apart


@dataclass(frozen=True, slots=True)
class CopyLoss:
    """The cross-entropy of repeated tokens, in nats a token.

    Attributes:
        loss: mean over the tokens of copies 2 and later. The first token of copy 2 is among them,
            which no earlier copy could tell of.
        first: mean over the tokens of the first copy.
        gap: `first - loss`, what copying gains.
        by_copy: mean over the tokens of each copy, `[copies]`; a copy that no sequence has in full
            is left out.
        by_sequence: `loss` of each sequence, float64 `[sequences]`.
        tokens: what the model was run on, `[sequences, length]`, on the CPU.
    """

    loss: float
    first: float
    gap: float
    by_copy: Tensor
    by_sequence: Tensor
    tokens: Tensor


def copy_loss(
    model: nn.Module,
    vocab_size: int | None = None,
    *,
    bos: int | None = None,
    period: int = 25,
    copies: int = 4,
    sequences: int = 8,
    generator: torch.Generator | None = None,
    paragraph: Tensor | None = None,
    call: Call | None = None,
) -> CopyLoss:
    """Measure the loss on random tokens that are repeated, or on a paragraph that is.

    On random unique tokens nothing but the earlier copy says what comes next. Hernandez et al.
    repeat a paragraph of text 11 times: give it as `paragraph`, with `copies=11`.

    Args:
        model: takes tokens `[sequences, length]` and returns logits; see `call`.
        vocab_size: random tokens are drawn from 0 to `vocab_size` - 1.
        bos: id of a token to put first; None for none.
        period: mean lag between copies of random tokens.
        copies: length in periods, or how often the paragraph stands there.
        sequences: number of random sequences.
        generator: on the CPU, draws random tokens; None takes the same ones at each call.
        paragraph: ids of a text, `[tokens]`, instead of random ones.
        call: runs the model on tokens, where `model(tokens)` does not.

    Raises:
        ValueError: when an argument is out of range, the model fails, or returns no logits for each
            token.
        Unmeasurable: (a ValueError) when the loss is not finite.

    Source: Olsson et al. 2022 (repeated random tokens); Hernandez et al. 2022, *Scaling Laws and
    Interpretability of Learning from Repeated Data*, section 2 (a paragraph 11 times).
    """
    inner = unwrap(model)
    if paragraph is not None:
        tokens = _repeated(paragraph, copies, bos)
    elif vocab_size is None:
        raise ValueError("give vocab_size, or the ids of a text as paragraph=")
    else:
        tokens = repeated_tokens(
            vocab_size,
            bos=bos,
            period=period,
            copies=copies,
            sequences=sequences,
            generator=generator,
        )
    lags = _lags(tokens, bos is not None, None if paragraph is None else len(paragraph))
    with apart(inner):
        given = tokens.to(device_of(inner))
        losses = token_losses(logits_of(run_on(inner, given, None, call), given), given)
    losses = losses.double().cpu()
    if not losses.isfinite().all():
        raise Unmeasurable("the loss on repeated tokens is not finite")
    return copy_loss_from(losses, lags, tokens, int(bos is not None))


def copy_loss_from(losses: Tensor, lags: list[int], tokens: Tensor, begin: int) -> CopyLoss:
    """Take the means of token losses over copies.

    Args:
        losses: of each token but the first, float64 `[sequences, length - 1]`.
        lags: length of a copy in each sequence.
        tokens: `[sequences, length]`.
        begin: where the first copy begins: 1 behind a start token, else 0.
    """
    later: list[Tensor] = []
    sums: dict[int, list[Tensor]] = {}
    for row, lag in zip(losses, lags, strict=True):
        length = len(row) + 1  # the token at position p has its loss at p - 1
        later.append(row[begin + lag - 1 :])
        for copy, start in enumerate(range(begin, length - lag + 1, lag)):
            sums.setdefault(copy, []).append(row[max(0, start - 1) : start + lag - 1])
    loss = float(torch.cat(later).mean())
    means = torch.stack([torch.cat(parts).mean() for parts in sums.values()])
    first = float(means[0])
    by_sequence = torch.stack([row.mean() for row in later])
    return CopyLoss(loss, first, first - loss, means, by_sequence, tokens)


def _repeated(paragraph: Tensor, copies: int, bos: int | None) -> Tensor:
    if not isinstance(paragraph, Tensor) or paragraph.dim() != 1 or paragraph.is_floating_point():
        raise ValueError("paragraph has to be a tensor of token ids [tokens]")
    if len(paragraph) < 2 or copies < 2:
        raise ValueError("give a paragraph of 2 tokens or more and copies of 2 or more")
    tokens = paragraph.detach().cpu().long().repeat(copies)
    return tokens[None] if bos is None else torch.cat([tokens.new_tensor([bos]), tokens])[None]


def _lags(tokens: Tensor, bos: bool, period: int | None) -> list[int]:
    """Return how long a copy is in each sequence: up to where the first token comes again."""
    if period is not None:
        return [period] * len(tokens)
    begin = int(bos)
    return [int((row[begin + 1 :] == row[begin]).nonzero()[0]) + 1 for row in tokens]
