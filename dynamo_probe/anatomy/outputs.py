"""What attention heads write, and the linear steps by which it reaches the logits.

Nothing is found by name. What an attention call returns is followed, from function to function,
through whatever leaves its numbers as they are, into the one product with a matrix that reads it.
What that product gives is followed through sums, scaling, a norm and the unembedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dynamo_probe.anatomy.attention import AttentionCall
from dynamo_probe.anatomy.direct_paths import Path
from dynamo_probe.anatomy.linear_steps import Paths, matrix_of, same_rows, step, terms_of

_JOIN = {torch.cat, torch.concat, torch.concatenate}
_SHAPED = {Tensor.view_as, Tensor.reshape_as, Tensor.expand_as, Tensor.type_as}
"""Take no numbers from their second argument."""
_FRESH = {torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.rand_like}
_FRESH |= {Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full}
"""Take no numbers from their argument at all."""


@dataclass(slots=True)
class HeadOutput:
    """What the heads of one attention call write.

    Attributes:
        name: of the call.
        output: of all heads side by side, `[positions, heads * features]`.
        value: what each head averages, `[heads, positions, features]`.
        weights: the output matrix, `[written, heads * features]`, once for each product that reads
            the heads; None stands for no matrix, where they are added as they are.
        others: functions that read the heads in another way.
        skipped: why they are no heads over the tokens; None where they are.
    """

    name: str
    output: Tensor
    value: Tensor
    weights: list[Tensor | None] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    skipped: str | None = None

    def why_not(self) -> str | None:
        """Return why there is not one output matrix; None where there is."""
        if self.skipped is not None:
            return self.skipped
        if self.others:
            return (
                f"its output goes into {', '.join(dict.fromkeys(self.others))}, not only into a "
                "product with a matrix"
            )
        if not self.weights:
            return "no product of its output with a matrix was seen"
        if len(self.weights) > 1:
            return (
                f"its output goes into {len(self.weights)} products with matrices, as with an "
                "adapter beside the output matrix: merge the adapter"
            )
        return None


@dataclass(frozen=True, slots=True)
class _Followed:
    """A tensor that is followed. It is kept so that no other gets its id.

    Attributes:
        tensor: the tensor.
        version: of its numbers; another one means that they were changed in place.
        heads: calls whose output it is, rearranged.
        paths: how far what calls wrote has come in it.
    """

    tensor: Tensor
    version: int
    heads: tuple[int, ...]
    paths: Paths


class OutputTap(TorchFunctionMode):
    """Follows attention outputs through the functions that a model calls, for one sequence.

    Use it inside a `HeadTap` whose visitor is `saw`.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.calls: list[HeadOutput] = []
        self._followed: dict[int, _Followed] = {}
        self._fresh = False

    def saw(self, call: AttentionCall, length: int) -> None:
        """Take note of an attention call, within the function that it is.

        Args:
            call: of a model that runs on one sequence.
            length: number of tokens in it.
        """
        skipped = call.why_not_over(length)
        if skipped is not None:
            empty = call.output.new_empty(0)
            self.calls.append(HeadOutput(call.name, empty, empty, skipped=skipped))
            return
        by_head = call.by_head(1)
        output, value = by_head.output[0], by_head.value[0]
        heads, groups = output.shape[0], value.shape[0]
        if groups != heads and heads % groups == 0:
            value = value.repeat_interleave(heads // groups, dim=0)
        if value.shape != output.shape:
            skipped = f"its values {list(value.shape)} do not fit its output {list(output.shape)}"
        side_by_side = output.transpose(0, 1).flatten(1).clone()
        self.calls.append(HeadOutput(call.name, side_by_side, value.clone(), skipped=skipped))
        self._fresh = skipped is None

    def path(self, index: int, logits: Tensor) -> Path | None:
        """Return how what a call wrote reaches the logits; None where it does not."""
        found = self._get(logits)
        return None if found is None else found.paths.get(index)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Pass every function on, and look at what it was given and gave."""
        kwargs = dict(kwargs or {})
        self._fresh = False
        read = () if func in _FRESH else args[:1] if func in _SHAPED else (*args, *kwargs.values())
        given = [found for found in map(self._get, _tensors(read)) if found]
        output = func(*args, **kwargs)
        if self._fresh:
            self._begin(func, args, kwargs, output)
        elif given:
            self._follow(func, args, kwargs, output, given)
        return output

    def _begin(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], output: Any
    ) -> None:
        index = len(self.calls) - 1
        if func is F.multi_head_attention_forward:
            bound = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
            self.calls[index].weights.append(bound.arguments["out_proj_weight"])
            self._put(output[0], paths={index: Path()})
        elif isinstance(output, Tensor):
            self._put(output, heads=(index,))

    def _follow(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        output: Any,
        given: list[_Followed],
    ) -> None:
        heads = tuple(dict.fromkeys(index for one in given for index in one.heads))
        changed = any(one.version != one.tensor._version for one in given)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            if any(part.is_floating_point() for part in _tensors((output,))):
                self._read(heads, func)
            return
        if not heads:
            paths = {id(one.tensor): one.paths for one in given}
            found = step(func, args, kwargs, output, paths, changed=changed)
            if found:
                self._put(output, paths=found)
        elif changed:
            self._read(heads, func)
        elif func in _JOIN or (len(given) == 1 and _same_numbers(given[0].tensor, output)):
            self._put(output, heads=heads)
        elif not self._multiply(func, args, kwargs, output, heads, given):
            self._add(func, args, kwargs, output, heads, given)

    def _multiply(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        output: Tensor,
        heads: tuple[int, ...],
        given: list[_Followed],
    ) -> bool:
        """Take a product with the output matrix, if it is one."""
        product = matrix_of(func, args, kwargs)
        if product is None or len(given) != 1 or product[0] is not given[0].tensor:
            return False
        source, weight = product
        found: Paths = {}
        for index in heads:
            columns = _columns(source, self.calls[index].output)
            if columns is None:
                self._read((index,), func)
            else:
                self.calls[index].weights.append(weight[:, columns])
                found[index] = Path()
        self._put(output, paths=found)
        return True

    def _add(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        output: Tensor,
        heads: tuple[int, ...],
        given: list[_Followed],
    ) -> None:
        """Take heads that are added to a sum as they are, without a matrix."""
        paths = {id(one.tensor): one.paths for one in given}
        plain: list[int] = []
        if terms_of(func, args, kwargs) is not None:
            for one in given:
                for index in one.heads:
                    if same_rows(self.calls[index].output, one.tensor):
                        paths[id(one.tensor)] = {index: Path()}
                        plain.append(index)
        self._read(tuple(index for index in heads if index not in plain), func)
        for index in plain:
            self.calls[index].weights.append(None)
        found = step(func, args, kwargs, output, paths, changed=False)
        if found:
            self._put(output, paths=found)

    def _read(self, heads: tuple[int, ...], func: Callable[..., Any]) -> None:
        for index in heads:
            self.calls[index].others.append(getattr(func, "__name__", str(func)))

    def _get(self, tensor: Tensor) -> _Followed | None:
        found = self._followed.get(id(tensor))
        return None if found is None or found.version != tensor._version else found

    def _put(self, tensor: Tensor, heads: tuple[int, ...] = (), paths: Paths | None = None) -> None:
        if not tensor.is_inference():  # of these, nobody knows whether they were changed in place
            found = _Followed(tensor, tensor._version, heads, paths or {})
            self._followed[id(tensor)] = found


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values, and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (part for part in value if isinstance(part, Tensor))


def _same_numbers(given: Tensor, output: Tensor) -> bool:
    """Whether a function has but rearranged what it was given."""
    if given.numel() != output.numel():
        return False
    before, after = given.to(output.dtype).flatten().sort()[0], output.flatten().sort()[0]
    return torch.equal(before, after)


def _columns(source: Tensor, heads: Tensor) -> slice | None:
    """Return which features of the input of a matrix the heads are; None where it is not clear."""
    length, width = heads.shape
    if source.numel() != length * source.shape[-1] or source.shape[-1] < width:
        return None
    rows, wanted = source.reshape(length, -1), heads.to(source.dtype)
    first = rows[:, : rows.shape[1] - width + 1] == wanted[:, :1]
    starts = [int(start) for start in first.all(0).nonzero()[:, 0]]
    found = [start for start in starts if torch.equal(rows[:, start : start + width], wanted)]
    return slice(found[0], found[0] + width) if len(found) == 1 else None
