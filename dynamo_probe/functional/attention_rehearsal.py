"""Looking at a model's calls of attention before they are scored: which of them are over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.attention import AttentionCall
from dynamo_probe.anatomy.heads import UNSEEN, HeadTap
from dynamo_probe.functional.token_model import Call, run_on
from dynamo_probe.functional.unmeasurable import Unmeasurable

LOST = "a softmax over the keys was seen, but not its product with the values"
LENGTH = 16
"""Most tokens of a rehearsal: enough to tell axes apart, at next to no cost."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A call of attention in a rehearsal: one short sequence.

    Attributes:
        name: of the call.
        leading: its axes before positions and features, for a batch of one.
        skipped: why it is not attention over the tokens; None where it is.
        prints: figures that tell whether what stands at a position has changed, `[positions, 2]`,
            of queries, keys, values and pattern, as far as there are any.
    """

    name: str
    leading: tuple[int, ...]
    skipped: str | None
    prints: dict[str, Tensor] = field(default_factory=dict, repr=False)


def rehearse(
    model: nn.Module, tokens: Tensor, attention_mask: Tensor | None, call: Call | None
) -> list[Seen]:
    """Run a shorter sequence to see which axes of each call are tokens, and whether in their order.

    What has as many channels or patches as there are tokens shows itself: it does not get shorter.
    A second run with another token in one place shows what is shifted or reversed: there something
    else changes than what stands in that place.

    Raises:
        Unmeasurable: when no attention over tokens was seen.
    """
    mask = None if attention_mask is None else attention_mask[:1, :-1]
    given = tokens[:1, :-1] if mask is not None else tokens[:1, : _shorter(tokens.shape[1])]
    seen, lost = _run(model, given, mask, call)
    other, place = _with_another(given, mask)
    if other is not None:
        again, _ = _run(model, other, mask, call)
        if [one.name for one in again] == [one.name for one in seen]:
            seen = [_aligned(one, two, place) for one, two in zip(seen, again, strict=True)]
    if all(one.skipped is not None for one in seen):
        reasons = [f"{one.name or 'the model'}: {one.skipped}" for one in seen]
        reasons += [f"{name or 'the model'}: {LOST}" for name in lost]
        raise Unmeasurable("; ".join(dict.fromkeys(reasons[:3])) if reasons else UNSEEN)
    return seen


def _shorter(length: int) -> int:
    """Return the length of a rehearsal: a power of two suits models that take multiples of one."""
    return LENGTH if length > LENGTH else length - 1


def _run(
    model: nn.Module, tokens: Tensor, mask: Tensor | None, call: Call | None
) -> tuple[list[Seen], list[str]]:
    length = tokens.shape[1]
    seen: list[Seen] = []

    def visit(found: AttentionCall) -> None:
        reason = found.why_not_over(length) or _no_distribution(found)
        prints = {} if reason is not None else _prints(found)
        seen.append(Seen(found.name, found.leading, reason, prints))

    tap = HeadTap(model, visit)
    with tap.on(), tap.passing():
        run_on(model, tokens, mask, call)
    return seen, tap.lost


def _no_distribution(found: AttentionCall) -> str | None:
    """Return why weights that the model computed are no attention; None where they are."""
    if found.pattern is None:
        return None
    pattern = found.pattern if found.pattern.dtype == torch.float64 else found.pattern.float()
    # A pattern may have been in bfloat16 before it came into the type that it has.
    if bool((pattern < 0).any()) or bool((pattern.sum(-1) > 1.01).any()):
        return "its weights are no distribution over the keys: some are negative or sum to over 1"
    return None


def _prints(found: AttentionCall) -> dict[str, Tensor]:
    prints = {}
    for name in ("query", "key", "value", "pattern"):
        part: Tensor | None = getattr(found, name)
        if part is not None:
            row = part.movedim(-2, 0).flatten(1).double()
            prints[name] = torch.stack([row.sum(1), row.square().sum(1)], dim=1)
    return prints


def _with_another(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor | None, int]:
    """Return the tokens with another one in one place, and that place, in the first half."""
    kept = torch.ones_like(tokens[0], dtype=torch.bool) if mask is None else mask[0] != 0
    places = kept.nonzero()[:, 0].tolist()
    place = places[len(places) // 3] if places else 0
    others = tokens[0][kept & (tokens[0] != tokens[0, place])]
    if not len(others) or place in (0, tokens.shape[1] - 1 - place):
        return None, place
    changed = tokens.clone()
    changed[0, place] = others[-1]
    return changed, place


def _aligned(one: Seen, two: Seen, place: int) -> Seen:
    """Return what was seen, skipped where another token in one place changes others only.

    Keys alone may well hold the token before: those of an induction head do.
    """
    elsewhere: dict[str, int] = {}
    for name, before in one.prints.items():
        after = two.prints[name]
        same = ((before == after) | (before.isnan() & after.isnan())).all(1)
        changed: Sequence[int] = (~same).nonzero()[:, 0].tolist()
        if changed and place not in changed:
            elsewhere[name] = changed[0]
    if elsewhere.keys() & {"query", "pattern"} or elsewhere.keys() >= {"key", "value"}:
        reason = (
            f"its positions are not those of the tokens: another token at {place} changes nothing "
            f"there, but at {min(elsewhere.values())}. They are shifted, reversed or of another "
            "sequence"
        )
        return Seen(one.name, one.leading, reason)
    return Seen(one.name, one.leading, one.skipped)
