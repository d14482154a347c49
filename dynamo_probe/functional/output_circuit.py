"""Whether attention heads copy: what a head writes for a token, as logits of that token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.anatomy.attention import AttentionCall
from dynamo_probe.anatomy.direct_paths import exact, freed
from dynamo_probe.anatomy.heads import HeadTap
from dynamo_probe.anatomy.outputs import HeadOutput, OutputTap
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.functional.attention_rehearsal import LOST, rehearse
from dynamo_probe.functional.repeated_tokens import UniqueTokens, check_counts
from dynamo_probe.functional.token_model import Call, device_of, logits_of, run_on
from dynamo_probe.functional.unmeasurable import Unmeasurable
from dynamo_probe.observation.apart import apart

_UNREACHED = (
    "what it writes does not reach the logits by sums, scaling, one norm and a product with a "
    "matrix. Logits that are capped, masked or given as probabilities are not linear: give "
    "call=lambda model, tokens: ... that returns the plain ones"
)
_NO_UNEMBEDDING = (
    "no product with a matrix leads from what it writes to the model's output: are these logits?"
)
_SHARDED = (
    "its matrices are sharded, and in memory for the forward pass alone: score a copy of the model "
    "that is not sharded"
)
_VARIES = "the calls of attention differ from one forward pass to the next"


@dataclass(frozen=True, slots=True)
class CopyingScores:
    """How much of what each head adds to the logits goes to the token that it reads.

    Attributes:
        ratio: from 0 to 1, `Tensor[layers, heads]`, float64, on the CPU. 1 is a head that raises
            nothing but the token it reads, `chance` one that raises any; below, one that lowers it.
            NaN for a head that adds nothing, and where a layer has fewer heads than another.
        chance: the ratio of a head that raises tokens at random: 1 over the tokens compared.
        layers: name of each layer: the module that calls attention.
        skipped: {name: why its heads are not scored}.
        tokens: what the model was run on, `[sequences, length]`, on the CPU.
    """

    ratio: Tensor
    chance: float
    layers: tuple[str, ...]
    skipped: dict[str, str]
    tokens: Tensor

    @property
    def scaled(self) -> Tensor:
        """The ratio from -1 to 1, as the paper has it. Chance is at `2 * chance - 1`, not at 0."""
        return 2 * self.ratio - 1


def copying_scores(
    model: nn.Module,
    vocab_size: int,
    *,
    bos: int | None = None,
    period: int = 25,
    sequences: int = 8,
    generator: torch.Generator | None = None,
    call: Call | None = None,
) -> CopyingScores:
    """Score whether each attention head copies the tokens that it attends to.

    For every position j of unique random tokens, what a head writes when it attends to j, its value
    there times the output matrix, is taken along the direct path to the logits of these tokens:
    through the last norm, its weight and its mean, and the unembedding, past all later layers. Less
    their mean, and negative ones as 0, it is the share of the logit of the token at j. That is
    averaged over positions and sequences.

    The matrices are found by what the model computes with them, not by name. Layers where that is
    not one linear map are skipped, with the reason.

    Args:
        model: takes tokens `[sequences, length]` and returns logits; see `call`.
        vocab_size: tokens are drawn from 0 to `vocab_size` - 1.
        bos: id of a token to put first, which is not scored; None for none.
        period: number of unique tokens of a sequence, at least 3.
        sequences: how many.
        generator: on the CPU, draws the tokens; None takes the same ones at each call.
        call: runs the model on tokens, where `model(tokens)` does not.

    Returns:
        The ratio of each head, its chance level, and the layers that were skipped.

    Raises:
        ValueError: when an argument is out of range, the model fails, or it returns no logits.
        Unmeasurable: (a ValueError) when no layer can be scored, with each reason, or what is
            computed is not finite.

    Source: Olsson et al. 2022, *In-context Learning and Induction Heads*, head activation
    evaluators, copying. The paper takes what a head writes at each query, all that it attends to at
    once; here each position that can be attended to is taken by itself, so that the score is of the
    head's output circuit alone, whatever it attends to. (Code in circulation takes the value of the
    query, its softmax over the vocabulary, and the token of the largest attention weight.) The mean
    taken off is that of the tokens compared. The biases of value and output: the former belongs to
    the head, the latter to no head.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 16), layer, torch.nn.Linear(16, 50))
        >>> copying_scores(model, vocab_size=50).ratio.shape
        torch.Size([1, 4])
    """
    inner = unwrap(model)
    check_counts(3, period=period)
    check_counts(1, sequences=sequences)
    draw = UniqueTokens(vocab_size, bos, period, generator)
    tokens = draw.begun([draw(period) for _ in range(sequences)])
    begin = tokens.shape[1] - period
    given = tokens.to(device_of(inner))
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    with apart(inner):
        foreign = {seen.name: seen.skipped for seen in rehearse(inner, given, None, call)}
        for row in given:
            tap, logits, lost = _run(inner, row[None], call)
            skipped |= dict.fromkeys(lost, LOST)
            if [one.name for one in tap.calls] != list(foreign):
                raise Unmeasurable(_VARIES)
            for index, found in enumerate(tap.calls):
                reason = foreign[found.name]
                ratio = reason or _ratio(tap, index, logits, row, begin)
                if isinstance(ratio, str):
                    skipped[found.name] = ratio
                    continue
                defined = ~ratio.isnan()
                total = torch.where(defined, ratio, 0.0).sum(1)
                sums[found.name] = sums.get(found.name, torch.zeros_like(total)) + total
                count = defined.sum(1)
                counts[found.name] = counts.get(found.name, torch.zeros_like(count)) + count
    layers = [name for name in sums if name not in skipped]
    if not layers:
        raise Unmeasurable("; ".join(f"{n or 'the model'}: {why}" for n, why in skipped.items()))
    widest = max(len(sums[name]) for name in layers)
    # A mean over no position is NaN, and says so.
    means = [F.pad(sums[n] / counts[n], (0, widest - len(sums[n])), value=_NAN) for n in layers]
    return CopyingScores(torch.stack(means), 1 / period, tuple(layers), skipped, tokens)


_NAN = float("nan")


def _run(
    model: nn.Module, tokens: Tensor, call: Call | None
) -> tuple[OutputTap, Tensor, list[str]]:
    """Run the model on one sequence, and follow what its heads write.

    Returns:
        What was followed, the logits, and modules with attention that was not understood.
    """
    outputs = OutputTap()

    def visit(found: AttentionCall) -> None:
        outputs.saw(found, tokens.shape[1])

    heads = HeadTap(model, visit)
    with heads.on(), heads.passing(), outputs:
        logits = logits_of(run_on(model, tokens, None, call), tokens)
    return outputs, logits, heads.lost


def _ratio(tap: OutputTap, index: int, logits: Tensor, row: Tensor, begin: int) -> Tensor | str:
    """Return the ratio of each head at each position, `[heads, positions]`, or why there is none.

    Where a head raises no token over another, it is NaN.
    """
    found: HeadOutput = tap.calls[index]
    reason = found.why_not()
    if reason is not None:
        return reason
    path = tap.path(index, logits)
    if path is None:
        return _UNREACHED
    if path.lost is not None:
        return path.lost
    if not path.matrices:
        return _NO_UNEMBEDDING
    (weight,) = found.weights
    if path.gone or (weight is not None and freed(weight)):
        return _SHARDED
    rows = path.rows(row[begin:])
    if weight is not None:
        rows = rows @ exact(weight)
    value = exact(found.value[:, begin:])
    written = torch.einsum("thf,hjf->hjt", rows.unflatten(1, (len(value), -1)), value).cpu()
    if not written.isfinite().all():
        raise Unmeasurable(f"what the heads of {found.name or 'the model'} write is not finite")
    raised = (written - written.mean(-1, keepdim=True)).relu()
    return raised.diagonal(dim1=1, dim2=2) / raised.sum(-1)
