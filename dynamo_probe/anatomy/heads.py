"""Attention heads: the tap on every call of attention while a model runs.

Nothing is put on a model for longer than one forward pass of the library's own. The tap stands
where `scaled_dot_product_attention` and `multi_head_attention_forward` are called, whatever module
calls them and however they were imported, and where a softmax over keys is written by hand.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from dynamo_probe.anatomy.attention import AttentionCall, attend
from dynamo_probe.anatomy.patterns import Patterns

Visit = Callable[[AttentionCall], Tensor | None]
"""Sees a call of attention; what it returns takes the place of the call's output."""

_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Names of the positional arguments of `scaled_dot_product_attention`."""
UNSEEN = (
    "no call of attention was seen. The tap sees scaled_dot_product_attention, "
    "nn.MultiheadAttention and a softmax over the keys; it does not see FlexAttention, the "
    "flash-attn or xformers packages, nor compiled kernels. Let the model use the former while it "
    "is probed (Hugging Face: attn_implementation='sdpa')"
)


class HeadTap(TorchFunctionMode):
    """Shows each call of attention in a model's forward pass to a visitor, in the order of calls.

    Attributes:
        lost: modules with a softmax over keys whose product with values was not seen.
    """

    def __init__(self, model: nn.Module, visit: Visit, *, logsumexp: bool = False) -> None:
        """Name the model and the visitor; `on` puts the tap in place.

        Args:
            model: only calls inside its forward pass are shown.
            visit: sees each call.
            logsumexp: ask the kernel for the log-sum-exp of each query.
        """
        super().__init__()
        self._model = model
        self._visit = visit
        self._logsumexp = logsumexp
        self._stack: list[str] = []
        self._calls: dict[str, int] = {}
        self._patterns = Patterns()
        self._handles: list[RemovableHandle] = []
        self._thread = threading.get_ident()
        self.lost: list[str] = []

    @contextmanager
    def on(self) -> Generator[HeadTap, None, None]:
        """Tap the model while this lasts, in this thread."""
        self._thread = threading.get_ident()
        try:
            for name, module in self._model.named_modules():
                enter = module.register_forward_pre_hook(_Enter(self, name))
                leave = module.register_forward_hook(_Leave(self, name), always_call=True)
                self._handles += [enter, leave]
            with self:
                yield self
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._stack.clear()

    @contextmanager
    def passing(self) -> Generator[None, None, None]:
        """Take what is called while this lasts as a forward pass of the model."""
        self.entered("")
        try:
            yield
        finally:
            self.left("")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Pass every function on, and show the calls of attention."""
        args, kwargs = tuple(args), dict(kwargs or {})
        if not self._stack:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._sdpa(dict(zip(_SDPA, args, strict=False)) | kwargs, cross=False)
        if func is F.multi_head_attention_forward:
            return self._multi_head(args, kwargs)
        output = func(*args, **kwargs)
        found = self._patterns.see(func, args, kwargs, output, self._stack[-1])
        if found is None:
            return output
        call = AttentionCall(
            self._name(),
            "softmax",
            found.output,
            found.value,
            mask=found.mask,
            pattern=found.pattern,
        )
        replaced = self._visit(call)
        return output if replaced is None else found.restored(replaced)

    def _sdpa(self, arguments: dict[str, Any], *, cross: bool) -> Tensor:
        if self._logsumexp:
            output, logsumexp = attend(arguments)
        else:
            output, logsumexp = F.scaled_dot_product_attention(**arguments), None
        query, scale = arguments["query"], arguments.get("scale")
        call = AttentionCall(
            self._name(),
            "sdpa",
            output,
            arguments["value"],
            query=query,
            key=arguments["key"],
            mask=arguments.get("attn_mask"),
            causal=bool(arguments.get("is_causal", False)),
            scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
            logsumexp=logsumexp,
            cross=cross,
        )
        replaced = self._visit(call)
        return output if replaced is None else replaced

    def _multi_head(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the function with our own `scaled_dot_product_attention` in its place of torch's."""
        given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
        cross = given["key"] is not given["query"] and not _same(given["key"], given["query"])
        weights = None
        if given.get("need_weights", True):
            # A computation of the weights has no call of attention in it; the caller gets them
            # beside. It does not heed `is_causal`, only the mask.
            with torch._C.DisableTorchFunction():
                weights = F.multi_head_attention_forward(**given)[1]
            given["is_causal"] = False

        def sdpa(*inner: Any, **named: Any) -> Tensor:
            return self._sdpa(dict(zip(_SDPA, inner, strict=False)) | named, cross=cross)

        run = _with_attention(sdpa)
        return run(**{**given, "need_weights": False})[0], weights

    def _name(self) -> str:
        name = self._stack[-1]
        self._calls[name] = self._calls.get(name, 0) + 1
        return name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"

    def entered(self, name: str) -> None:
        """Take note that a module's forward pass begins."""
        if threading.get_ident() != self._thread:
            return
        if not self._stack:
            if name:
                return  # called by itself, outside the model's forward pass
            self._calls.clear()
        self._stack.append(name)

    def left(self, name: str) -> None:
        """Take note that it ends, also by an exception."""
        if threading.get_ident() != self._thread or self._stack[-1:] != [name]:
            return
        self._stack.pop()
        if not self._stack:
            self.lost = list(dict.fromkeys(self._patterns.lost.values()))
            self._patterns = Patterns()


class _Enter:
    def __init__(self, tap: HeadTap, name: str) -> None:
        self._tap, self._name = tap, name

    def __call__(self, module: nn.Module, args: Any) -> None:
        self._tap.entered(self._name)


class _Leave:
    def __init__(self, tap: HeadTap, name: str) -> None:
        self._tap, self._name = tap, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self._tap.left(self._name)


def _with_attention(sdpa: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return `multi_head_attention_forward` with another attention inside; torch's own stays."""
    plain = _plain_multi_head()
    inside = {**plain.__globals__, "scaled_dot_product_attention": sdpa}
    # Another mode, such as `torch.set_default_device`, would be given torch's own function to run.
    inside["has_torch_function"] = lambda tensors: False
    copied = FunctionType(
        plain.__code__, inside, plain.__name__, plain.__defaults__, plain.__closure__
    )
    copied.__kwdefaults__ = plain.__kwdefaults__
    return copied


@cache
def _plain_multi_head() -> FunctionType:
    found = F.multi_head_attention_forward
    if not isinstance(found, FunctionType) or (
        "scaled_dot_product_attention" not in found.__code__.co_names
    ):
        raise RuntimeError(
            "this version of torch computes multi_head_attention_forward in another way: its heads "
            "cannot be seen. Use a version that dynamo_probe is tested with"
        )
    return found


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are views of the same numbers in the same order."""
    return (
        first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
    )
