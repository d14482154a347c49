"""Functions as steps on the direct path: sums, scaling, norms, products with a matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamo_probe.anatomy.direct_paths import Centre, Linear, Narrow, Path, Scale, Step, exact

Paths = dict[int, Path]
"""How far what each call wrote has come, by the number of the call."""

_ADD = {torch.add, Tensor.add, Tensor.add_}
_SUBTRACT = {torch.sub, torch.subtract, Tensor.sub, Tensor.sub_, Tensor.subtract}
_SUBTRACTED = {torch.rsub, Tensor.__rsub__}
_MULTIPLY = {torch.mul, torch.multiply, Tensor.mul, Tensor.mul_, Tensor.multiply}
_DIVIDE = {torch.div, torch.divide, torch.true_divide}
_DIVIDE |= {Tensor.div, Tensor.div_, Tensor.divide, Tensor.true_divide}
_NEGATE = {torch.neg, torch.negative, Tensor.neg, Tensor.negative}
_MATMUL = {torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}
_ADDMM = {torch.addmm, Tensor.addmm}
_LAYER_NORM = {F.layer_norm, torch.layer_norm}
_RMS_NORM = {F.rms_norm, torch.rms_norm}
_LOG_SOFTMAX = {F.log_softmax, torch.log_softmax, Tensor.log_softmax}
_NORM = ("input", "normalized_shape", "weight", "bias", "eps")


def matrix_of(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor] | None:
    """Return the input and the weight `[out, in]` of a product with a matrix.

    Args:
        func: as it came to `__torch_function__`.
        args: its positional arguments.
        kwargs: its others.

    Returns:
        None where the function is no such product.
    """
    if func is F.linear:
        names = ("input", "weight", "bias")
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        return given["input"], given["weight"]
    if func in _ADDMM and len(args) == 3 and kwargs.get("alpha", 1) == 1:
        return args[1], args[2].T
    if func in _MATMUL and len(args) == 2 and args[1].dim() == 2:
        return args[0], args[1].T
    return None


def terms_of(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[tuple[Any, float]] | None:
    """Return the terms of a sum or difference with their factors; None where it is none."""
    if len(args) != 2 or set(kwargs) - {"alpha"}:
        return None
    alpha = float(kwargs.get("alpha", 1))
    if func in _ADD:
        return [(args[0], 1.0), (args[1], alpha)]
    if func in _SUBTRACT:
        return [(args[0], 1.0), (args[1], -alpha)]
    if func in _SUBTRACTED:
        return [(args[1], 1.0), (args[0], -alpha)]
    return None


def step(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    output: Tensor,
    given: Mapping[int, Paths],
    *,
    changed: bool,
) -> Paths | None:
    """Return how far paths have come with a function.

    Args:
        func: as it came to `__torch_function__`.
        args: its positional arguments.
        kwargs: its others.
        output: what it returned.
        given: paths that have come to its arguments, by the arguments' ids.
        changed: it has changed one of these arguments in place.

    Returns:
        The paths that have come to its output; None where the function is not linear.
    """
    terms = terms_of(func, args, kwargs)
    if terms is not None:
        return _sum(terms, output, given)
    if len(given) != 1:
        return None
    (paths,) = given.values()
    taken = _taken(func, args, kwargs, output, given)
    if taken is None:
        alone = not changed and _left_alone(func, args, kwargs, output, given)
        return paths if alone else None
    steps, norm = taken
    return {index: path.then(*steps, norm=norm) for index, path in paths.items()}


def same_rows(given: Tensor, output: Tensor) -> bool:
    """Whether two tensors are the same features at the same positions, up to a change of type."""
    if given.numel() != output.numel() or not output.dim() or not given.dim():
        return False
    width = output.shape[-1]
    if given.shape[-1] != width:
        return False
    return torch.equal(given.reshape(-1, width).to(output.dtype), output.reshape(-1, width))


def _sum(
    terms: list[tuple[Any, float]], output: Tensor, given: Mapping[int, Paths]
) -> Paths | None:
    found: Paths = {}
    (first, _), (second, factor) = terms
    if factor == -1.0 and id(first) in given and _is_rows(second, output):
        # A difference from one number a position: the first half of a norm, or nothing linear.
        if not _is_mean(second, first, output):
            return None
        return {index: path.then(Centre()) for index, path in given[id(first)].items()}
    for term, factor in terms:
        paths = given.get(id(term))
        if paths is None or not _same_shape(term, output):
            continue
        scale = () if factor == 1 else (_scale(factor),)
        for index, path in paths.items():
            path = path.then(*scale)
            found[index] = found[index].joined(path) if index in found else path
    return found or None


def _taken(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    output: Tensor,
    given: Mapping[int, Paths],
) -> tuple[tuple[Step, ...], bool] | None:
    """Return the steps that a function is, and whether they are a norm; None for no such step."""
    product = matrix_of(func, args, kwargs)
    if product is not None:
        return ((Linear(product[1]),), False) if id(product[0]) in given else None
    if func is Tensor.__getitem__:
        width, kept = args[0].shape[-1], output.shape[-1]
        same = args[0].shape[:-1] == output.shape[:-1] and kept < width
        # A part with the values of the first features: logits that were padded, without the rest.
        return ((Narrow(width),), False) if same and _begins(args[0], output) else None
    if func in _NEGATE:
        return (_scale(-1.0),), False
    if func in _MULTIPLY or func in _DIVIDE:
        if len(args) != 2 or kwargs:
            return None
        followed, other = args if id(args[0]) in given else (args[1], args[0])
        if not _same_shape(followed, output) or (func in _DIVIDE and followed is args[1]):
            return None
        return _factor(other, output, inverse=func in _DIVIDE)
    if func in _LAYER_NORM or func in _RMS_NORM:
        named = dict(zip(_NORM, args, strict=False)) | dict(kwargs)
        shape = named["normalized_shape"]
        if list(shape if isinstance(shape, Sequence) else [shape]) != [output.shape[-1]]:
            return None
        steps: tuple[Step, ...] = (Centre(),) if func in _LAYER_NORM else ()
        weight = named.get("weight")
        return steps + (() if weight is None else (Scale(exact(weight)),)), True
    return None


def _factor(other: Any, output: Tensor, *, inverse: bool) -> tuple[tuple[Step, ...], bool] | None:
    """Return what a product with something is."""
    if isinstance(other, (int, float)):
        return (_scale(1 / other if inverse else float(other)),), False
    if not isinstance(other, Tensor) or not other.is_floating_point():
        return None
    factor = exact(other)
    if other.numel() == 1:
        factor = factor.reshape(())
    elif other.numel() == other.shape[-1] == output.shape[-1]:
        factor = factor.flatten()
    elif _is_rows(other, output) and bool((other > 0).all()):
        return (), True
    else:
        return None
    return (Scale(1 / factor if inverse else factor),), False


def _left_alone(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    output: Tensor,
    given: Mapping[int, Paths],
) -> bool:
    """Whether a function has changed nothing, or nothing but one number for all logits."""
    ((key, paths),) = given.items()
    flat = [part for a in (*args, *kwargs.values()) for part in _parts(a)]
    (followed, *_) = [part for part in flat if id(part) == key]
    if func in _LOG_SOFTMAX and all(path.matrices for path in paths.values()):
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        return dim in (-1, output.dim() - 1)
    return same_rows(followed, output)


def _begins(features: Tensor, output: Tensor) -> bool:
    return torch.equal(features[..., : output.shape[-1]], output)


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _is_rows(other: Any, output: Tensor) -> bool:
    """Whether a tensor has one number for each position."""
    return (
        isinstance(other, Tensor)
        and other.dim() > 1
        and other.shape[-1] == 1
        and other.numel() * output.shape[-1] == output.numel()
    )


def _is_mean(rows: Tensor, features: Tensor, output: Tensor) -> bool:
    mean, size = exact(features).mean(-1), exact(features).abs().amax(-1)
    error = (exact(rows).reshape(mean.shape) - mean).abs()
    return bool((error <= size * torch.finfo(output.dtype).eps * 8).all())


def _same_shape(term: Any, output: Tensor) -> bool:
    return isinstance(term, Tensor) and (
        term.numel() == output.numel() and term.shape[-1:] == output.shape[-1:]
    )


def _scale(factor: float) -> Scale:
    return Scale(torch.tensor(factor, dtype=torch.float64))
