"""Scores of attention heads on repeated random tokens, exact, on any model that calls attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.anatomy.attention import AttentionCall
from dynamo_probe.anatomy.heads import HeadTap
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.functional.attention_mass import allowed, keys_allowed, pair_mass
from dynamo_probe.functional.attention_rehearsal import LOST, Seen, rehearse
from dynamo_probe.functional.repeated_tokens import SCORES, Pairs, pairs_of, repeated_tokens
from dynamo_probe.functional.token_model import Call, device_of, run_on
from dynamo_probe.functional.unmeasurable import Unmeasurable
from dynamo_probe.observation.apart import apart


@dataclass(frozen=True, slots=True)
class HeadScores:
    """What each attention head of a model attends to.

    All scores are attention mass per query, from 0 to 1: `Tensor[layers, heads]`, float64, on the
    CPU. Where layers have different numbers of heads, the missing ones are NaN.

    Attributes:
        prefix_matching: mass on all successors of earlier copies of the query's token, over the
            queries that have an earlier copy.
        duplicate_token: mass on the earlier copies themselves.
        previous_token: mass on the position before, over all queries but the first.
        sink: mass on the first position, over all queries but the first.
        second_copy: {score: the same over the queries with exactly one earlier copy}.
        chances: {score: what it is under attention that is uniform over what the mask allows}.
        second_copy_chances: the same for `second_copy`.
        reachable: share of the queries with an earlier copy whose mask lets a successor through.
        layers: name of each layer: the module that calls attention.
        skipped: {name: why its attention is not scored}.
        tokens: what the model was run on, `[sequences, length]`, on the CPU.
    """

    prefix_matching: Tensor
    duplicate_token: Tensor
    previous_token: Tensor
    sink: Tensor
    second_copy: dict[str, Tensor]
    chances: dict[str, Tensor]
    second_copy_chances: dict[str, Tensor]
    reachable: Tensor
    layers: tuple[str, ...]
    skipped: dict[str, str]
    tokens: Tensor

    @property
    def chance(self) -> float:
        """Prefix matching under uniform attention; the mean where masks differ between layers."""
        return float(self.chances["prefix_matching"].nanmean())

    def top(self, count: int, score: str = "prefix_matching") -> list[tuple[int, int]]:
        """Return the (layer, head) of the highest scores, highest first."""
        values: Tensor = getattr(self, score)
        order = values.nan_to_num(-1.0).flatten().argsort(descending=True, stable=True)
        found = [divmod(int(index), values.shape[1]) for index in order]
        return [(la, head) for la, head in found if not values[la, head].isnan()][:count]


def head_scores(
    model: nn.Module,
    vocab_size: int,
    *,
    bos: int | None = None,
    period: int = 25,
    copies: int = 4,
    sequences: int = 8,
    generator: torch.Generator | None = None,
    tokens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    call: Call | None = None,
) -> HeadScores:
    """Score every attention head: prefix matching, duplicate token, previous token, sink.

    The model is run as it is, whatever its implementation of attention, on random tokens that are
    repeated with random lags. No pattern of all pairs is stored. The run leaves no trace: it is in
    evaluation mode, without gradients, eager, and everything is put back.

    Previous-token heads are scored on these random tokens as well; Olsson et al. take a text from
    the training distribution for them. Give one as `tokens` for that.

    Args:
        model: takes tokens `[sequences, length]`; see `call`.
        vocab_size: tokens are drawn from 0 to `vocab_size` - 1.
        bos: id of a token to put first; None for none.
        period: mean lag between the copies of a token.
        copies: length of a sequence, in periods.
        sequences: number of sequences.
        generator: on the CPU, draws the tokens; None takes the same ones at each call.
        tokens: `[sequences, length]`, instead of random ones; copies of a token are then all places
            where it stands.
        attention_mask: `[sequences, length]`, 0 at padding, for `tokens`; handed to the model.
        call: runs the model on tokens, where `model(tokens)` does not.

    Raises:
        ValueError: when an argument is out of range or the model fails on the tokens.
        Unmeasurable: (a ValueError) when no attention over tokens was seen, with advice, or the
            weights are not finite.

    Source: Olsson et al. 2022, *In-context Learning and Induction Heads*, head activation
    evaluators. The mass on all targets of a query is summed and averaged over queries; a mean over
    pairs would have a ceiling below 1.

    Example:
        >>> attention = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), attention)
        >>> head_scores(model, vocab_size=50).prefix_matching.shape
        torch.Size([1, 4])
    """
    inner = unwrap(model)
    if tokens is None:
        if attention_mask is not None:
            raise ValueError("attention_mask belongs to tokens=; random tokens have no padding")
        tokens = repeated_tokens(
            vocab_size,
            bos=bos,
            period=period,
            copies=copies,
            sequences=sequences,
            generator=generator,
        )
    check_tokens(tokens, attention_mask)
    tokens = tokens.detach().cpu()
    kept = None if attention_mask is None else attention_mask.detach().cpu() != 0
    rows = [pairs_of(row, None if kept is None else kept[i]) for i, row in enumerate(tokens)]
    device = device_of(inner)
    given = tokens.to(device)
    mask = None if attention_mask is None else attention_mask.to(device)
    with apart(inner):
        plan = rehearse(inner, given, mask, call)
        scorer = _Scorer(plan, [pairs.to(device) for pairs in rows], given, mask, call)
        if not scorer.runs(inner, [slice(0, len(tokens))]):
            scorer.runs(inner, [slice(i, i + 1) for i in range(len(tokens))])
    return scorer.scores(tokens)


def check_tokens(tokens: Tensor, attention_mask: Tensor | None) -> None:
    """Refuse what are not tokens, or not their mask.

    Raises:
        ValueError: with the fix.
    """
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.is_floating_point():
        raise ValueError("tokens have to be a tensor of whole numbers [sequences, length]")
    if tokens.shape[0] < 1 or tokens.shape[1] < 3:
        raise ValueError(f"tokens have shape {list(tokens.shape)}; give 3 positions or more")
    if attention_mask is not None and attention_mask.shape != tokens.shape:
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)} and tokens "
            f"{list(tokens.shape)}; give one number for each token, 0 at padding"
        )


_VARIES = "the calls of attention differ from one forward pass to the next"


class _Scorer:
    """Sums up what the calls of a pass show."""

    def __init__(
        self,
        plan: Sequence[Seen],
        pairs: Sequence[Pairs],
        tokens: Tensor,
        attention_mask: Tensor | None,
        call: Call | None,
    ) -> None:
        self._plan = plan
        self._pairs = pairs
        self._tokens = tokens
        self._mask = attention_mask
        self._call = call
        self._part = slice(0, 0)
        self._at = 0
        self._merged = False
        self._sums: dict[str, Tensor] = {}
        self._skipped = {one.name: one.skipped for one in plan if one.skipped is not None}

    def runs(self, model: nn.Module, parts: Sequence[slice]) -> bool:
        """Run the model on parts of the batch; return whether batch and heads could be told apart.

        The axis that grows with the batch, and alone does, is the batch.
        """
        self._sums, self._merged = {}, False
        tap = HeadTap(model, self._visit, logsumexp=True)
        with tap.on():
            for self._part in parts:
                self._at = 0
                mask = None if self._mask is None else self._mask[self._part]
                with tap.passing():
                    run_on(model, self._tokens[self._part], mask, self._call)
                if self._at != len(self._plan):
                    self._varies()
                if self._merged:
                    return False
        self._skipped |= dict.fromkeys(tap.lost, LOST)
        return True

    def _visit(self, found: AttentionCall) -> None:
        if self._merged:
            return
        if self._at >= len(self._plan) or self._plan[self._at].name != found.name:
            self._varies()
            return
        seen = self._plan[self._at]
        self._at += 1
        if seen.skipped is not None:
            return
        reason = found.why_not_over(self._tokens.shape[1])
        if reason is not None:
            self._skipped[found.name] = reason
            return
        batch = len(self._tokens[self._part])
        if found.leading != (batch, *seen.leading[1:]) or seen.leading[:1] != (1,):
            if batch > 1:
                self._merged = True
                return
        self._add(found.by_head(batch))

    def _varies(self) -> None:
        """Go on with one sequence at a time, or give up: a model may loop over its batch."""
        if len(self._tokens[self._part]) == 1:
            raise Unmeasurable(_VARIES)
        self._merged = True

    def _add(self, found: AttentionCall) -> None:
        for index, pairs in enumerate(self._pairs[self._part]):
            weights = pair_mass(found, index, pairs.queries, pairs.keys).double()
            free = allowed(found, index, pairs.queries, pairs.keys).double()
            uniform = free / keys_allowed(found, index)[pairs.queries].clamp(min=1)
            figures = torch.stack(
                [
                    pairs.kinds @ weights,
                    (pairs.kinds @ uniform).expand(-1, weights.shape[1]),
                    pairs.reached(free).expand(len(pairs.kinds), weights.shape[1]),
                ]
            )
            before = self._sums.get(found.name)
            self._sums[found.name] = figures if before is None else before + figures

    def scores(self, tokens: Tensor) -> HeadScores:
        """Return the means."""
        if not self._sums:
            raise Unmeasurable("; ".join(f"{n}: {why}" for n, why in self._skipped.items()))
        counts = torch.stack([pairs.counts for pairs in self._pairs]).sum(0).double()
        # A mean over no query is NaN, and says so.
        found = [(sums / counts[:, None]).cpu() for sums in self._sums.values()]
        widest = max(sums.shape[2] for sums in found)
        padded = [F.pad(sums, (0, widest - sums.shape[2]), value=float("nan")) for sums in found]
        for name, sums in zip(self._sums, found, strict=True):
            if not sums[:, counts.cpu() > 0].isfinite().all():
                raise Unmeasurable(f"the attention weights of {name or 'the model'} are not finite")
        mass, chance, reached = torch.stack(padded, dim=2)
        return HeadScores(
            **dict(zip(SCORES, mass, strict=False)),
            second_copy=dict(zip(SCORES, mass[len(SCORES) :], strict=True)),
            chances=dict(zip(SCORES, chance, strict=False)),
            second_copy_chances=dict(zip(SCORES, chance[len(SCORES) :], strict=True)),
            reachable=reached[0],
            layers=tuple(self._sums),
            skipped=self._skipped,
            tokens=tokens,
        )
