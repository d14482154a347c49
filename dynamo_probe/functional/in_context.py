"""How much better a model predicts late in a text than early in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.functional.heads import check_tokens
from dynamo_probe.functional.token_model import Call, device_of, logits_of, run_on
from dynamo_probe.functional.unmeasurable import Unmeasurable
from dynamo_probe.observation.apart import apart

EARLY, LATE, LENGTH = 50, 500, 512
"""The tokens that Olsson et al. compare, in texts of so many tokens."""


class InContextScore(float):
    """Loss of a late token less that of an early one, in nats: negative where context helps.

    Attributes:
        early: position of the early token, counted from 0.
        late: position of the late one.
        samples: number of texts that the mean is over.
        left_out: number of texts that have no token at `late`.
    """

    __slots__ = ("early", "late", "left_out", "samples")

    early: int
    late: int
    samples: int
    left_out: int

    def __new__(
        cls, value: float, early: int, late: int, samples: int, left_out: int = 0
    ) -> InContextScore:
        """Make a score."""
        score = super().__new__(cls, value)
        score.early, score.late = early, late
        score.samples, score.left_out = samples, left_out
        return score

    def __reduce__(self) -> tuple[type[InContextScore], tuple[float, int, int, int, int]]:
        """Return what a copy is made from."""
        made_from = float(self), self.early, self.late, self.samples, self.left_out
        return InContextScore, made_from


def in_context_learning_score(
    model: nn.Module,
    tokens: Tensor,
    *,
    early: int = EARLY,
    late: int = LATE,
    attention_mask: Tensor | None = None,
    call: Call | None = None,
    batch_size: int = 16,
) -> InContextScore:
    """Return the loss of a late token less that of an early one, averaged over texts.

    Give the same texts each time: scores of different texts do not compare. In texts of fewer than
    512 tokens, tokens 50 and 500 become those at the same shares of the length; positions that the
    caller names stay what they are.

    Args:
        model: takes tokens `[texts, length]` and returns logits; see `call`.
        tokens: texts, `[texts, length]`, 3 tokens or more.
        early: position of the early token, counted from 0 at a text's first token.
        late: position of the late one.
        attention_mask: `[texts, length]`, 0 at padding, before or behind a text; handed to the
            model. Texts that are padded and end before `late` are left out, and counted.
        call: runs the model on tokens, where `model(tokens)` does not.
        batch_size: texts in a forward pass: as many logits as these texts have are in memory.

    Returns:
        A float with the positions used and the number of texts.

    Raises:
        ValueError: when an argument is out of range, the model fails or returns no logits for each
            token, or no text is long enough.
        Unmeasurable: (a ValueError) when a loss is not finite.

    Source: Olsson et al. 2022, *In-context Learning and Induction Heads*: the loss of token 500
    less that of token 50, over 10,000 texts of 512 tokens.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 9))
        >>> score = in_context_learning_score(model, torch.arange(64)[None] % 9)
        >>> score.early, score.late, score.samples
        (6, 62, 1)
    """
    inner = unwrap(model)
    check_tokens(tokens, attention_mask)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; give a whole number of 1 or more")
    early, late = _positions(early, late, tokens.shape[1])
    tokens = tokens.detach().long()
    starts = _starts(tokens, attention_mask, late)
    rows = (starts >= 0).nonzero()[:, 0]
    if not len(rows):
        raise ValueError(
            f"no text has more than {late} tokens; give longer ones or a smaller late="
        )
    device = device_of(inner)
    found = []
    with apart(inner):
        for part in rows.split(batch_size):
            mask = None if attention_mask is None else attention_mask[part].to(device)
            given = tokens[part].to(device)
            logits = logits_of(run_on(inner, given, mask, call), given)
            at = torch.stack([starts[part] + early, starts[part] + late], dim=1).to(device)
            row = torch.arange(len(part), device=device)[:, None]
            chosen = logits[row, at - 1]
            chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
            losses = F.cross_entropy(
                chosen.flatten(0, 1), given[row, at].flatten(), reduction="none"
            )
            found.append(losses.view(-1, 2).double().cpu())
    return _score(torch.cat(found), early, late, len(tokens) - len(rows))


def in_context_from(losses: Tensor, *, early: int = EARLY, late: int = LATE) -> InContextScore:
    """Return the score from losses that are at hand.

    Args:
        losses: of every token but the first, `[texts, length - 1]`, as from `token_losses`.
        early: position of the early token; see `in_context_learning_score`.
        late: position of the late one.

    Raises:
        ValueError: when an argument is out of range.
        Unmeasurable: (a ValueError) when a loss is not finite.

    Example:
        >>> in_context_from(torch.tensor([[3.0, 2.0, 1.0]]), early=1, late=3)
        -2.0
    """
    if not isinstance(losses, Tensor) or losses.dim() != 2 or not losses.is_floating_point():
        raise ValueError("losses have to be a tensor [texts, length - 1], one for each token")
    if losses.shape[0] < 1 or losses.shape[1] < 2:
        raise ValueError(f"losses have shape {list(losses.shape)}; give 2 positions or more")
    early, late = _positions(early, late, losses.shape[1] + 1)
    chosen = losses.detach()[:, [early - 1, late - 1]].double().cpu()
    return _score(chosen, early, late, 0)


def _positions(early: int, late: int, length: int) -> tuple[int, int]:
    for name, given in (("early", early), ("late", late)):
        if isinstance(given, bool) or not isinstance(given, int):
            raise ValueError(f"{name} is {given!r}; give a position, a whole number")
    if (early, late) == (EARLY, LATE) and length < LENGTH:
        early, late = (round(at * length / LENGTH) for at in (EARLY, LATE))
        return max(1, early), min(length - 1, late)
    if not 1 <= early < late < length:
        raise ValueError(
            f"early is {early} and late {late} in texts of {length} tokens; give "
            f"1 <= early < late <= {length - 1} (the first token, at 0, has no loss)"
        )
    return early, late


def _starts(tokens: Tensor, attention_mask: Tensor | None, late: int) -> Tensor:
    """Return where each text begins, -1 where it ends before `late`; `[texts]`, on the CPU."""
    if attention_mask is None:
        return torch.zeros(len(tokens), dtype=torch.long)
    kept = attention_mask.detach().cpu() != 0
    count, begin = kept.sum(1), kept.int().argmax(1)
    place = torch.arange(kept.shape[1])
    whole = (place >= begin[:, None]) & (place < (begin + count)[:, None])
    torn = (whole != kept).any(1).nonzero()[:, 0].tolist()
    if torn:
        raise ValueError(
            f"the text in row {torn[0]} has padding inside; attention_mask has to be 1 from its "
            "first token to its last"
        )
    return torch.where(count > late, begin, -1).long()


def _score(losses: Tensor, early: int, late: int, left_out: int) -> InContextScore:
    if not losses.isfinite().all():
        raise Unmeasurable(f"the loss of the token at {early} or at {late} is not finite")
    gain = (losses[:, 1] - losses[:, 0]).mean()
    return InContextScore(float(gain), early, late, len(losses), left_out)
