"""What a checkpoint alone tells of the networks in it. It is read and never executed."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

UNKNOWN = (
    "activations, and with them dormant units, ranks, saturation and attention: give the script, "
    "or a model and a batch to dynamo_probe.functional",
    "which layers follow which, whether a weight is shared, and how many attention heads there are",
)
"""What cannot be known from a checkpoint alone."""
_DEEPEST = 12
_WATCH = {"format", "step", "model", "instruments", "history"}
_CONVOLUTIONS = {3: "conv1d", 4: "conv2d", 5: "conv3d"}


class Unreadable(Exception):
    """The file is no checkpoint, or not one that can be read without running code."""


def examine_checkpoint(path: Path) -> dict[str, Any]:
    """Return what is in a checkpoint, as JSON takes it.

    Args:
        path: a file that `torch.save` or safetensors wrote.

    Returns:
        `checkpoint`; `networks`: what looks like a module's state; `optimizers`; `watches`: states
        of `dp.watch`; `trouble`: what is not sound; `unknown`: what a checkpoint cannot tell.

    Raises:
        Unreadable: with the fix, when the file cannot be read, or only by running code.
    """
    found: dict[str, Any] = {
        "checkpoint": str(path), "networks": [], "optimizers": [], "watches": [], "trouble": [],
        "unknown": list(UNKNOWN),
    }  # fmt: skip
    content = load(path)
    for place, tree in _trees(content, "", 0):
        if _WATCH <= tree.keys():
            found["watches"].append(_watch(place, tree))
        elif {"state", "param_groups"} <= tree.keys():
            found["optimizers"].append(_optimizer(place, tree, found["trouble"]))
        else:
            found["networks"].append(_network(place, tree, found["trouble"]))
    if not found["networks"]:
        found["trouble"].append("nothing in it looks like a module's state_dict")
    return found


def load(path: Path) -> Any:
    """Read a checkpoint onto the processor without running anything that is in it.

    Raises:
        Unreadable: with the fix.
    """
    if path.suffix.lower() == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise Unreadable(f"{path} needs safetensors: pip install safetensors") from None
        try:
            return load_file(path)
        except Exception as error:
            raise Unreadable(f"{path} is no whole safetensors file: {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of old formats: what matters is whether it can be read
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        raise Unreadable(_refusal(path, f"{error}")) from None
    except MemoryError:
        raise
    except Exception as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0].partition(". ")[0]
        raise Unreadable(f"{path} is no whole file of torch.save ({first})") from None


def _refusal(path: Path, message: str) -> str:
    wanted = re.search(r"GLOBAL (\S+)", message)
    what = f" ({wanted[1]})" if wanted else ""
    return (
        f"{path} holds more than tensors and plain values{what}; reading that could run code, so "
        "it is refused, and there is no option to allow it. Where you trust it, load it yourself "
        "and save the rest again: torch.save(model.state_dict(), 'weights.pt')"
    )


def _trees(tree: Any, place: str, depth: int) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the dicts that are the state of something, from the outside in."""
    if depth > _DEEPEST:
        return
    if isinstance(tree, Mapping):
        keys = tree.keys()
        if _WATCH <= keys or {"state", "param_groups"} <= keys or _is_state(tree):
            yield place, tree
            return
        inside: Sequence[tuple[Any, Any]] = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        inside = list(enumerate(tree))
    else:
        return
    for key, one in inside:
        yield from _trees(one, f"{place}.{key}" if place else f"{key}", depth + 1)


def _is_state(tree: Mapping[Any, Any]) -> bool:
    """Whether it maps names to tensors, with little else beside (`_extra_state`)."""
    tensors = [isinstance(one, Tensor) for one in tree.values()]
    named = all(isinstance(key, str) for key in tree)
    weights = any(isinstance(one, Tensor) and one.ndim > 0 for one in tree.values())
    return named and weights and 2 * sum(tensors) > len(tensors)


def _network(place: str, tree: Mapping[str, Any], trouble: list[str]) -> dict[str, Any]:
    tensors = {name: one for name, one in tree.items() if isinstance(one, Tensor)}
    for name, one in tensors.items():
        _complain_of(f"{place}.{name}" if place else name, one, trouble)
    layers = [_layer(name, one, tensors) for name, one in tensors.items() if _is_weight(name, one)]
    if layers:
        layers[-1]["hidden"] = False
    return {
        "place": place,
        "tensors": len(tensors),
        "parameters": sum(one.numel() for name, one in tensors.items() if not _is_mask(name)),
        "layers": layers,
        "masks": {
            name: _density(one) for name, one in tensors.items() if _is_mask(name) and one.numel()
        },
    }


def _is_mask(name: str) -> bool:
    return name.rsplit(".", 1)[-1].endswith("mask")


def _is_weight(name: str, tensor: Tensor) -> bool:
    last = name.rsplit(".", 1)[-1]
    return "weight" in last and not _is_mask(name) and 2 <= tensor.ndim <= 5 and tensor.numel() > 0


def _layer(name: str, weight: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Describe a weight; its first axis is taken for the units, as in Linear and Conv."""
    bias = tensors.get(re.sub(r"weight(_orig)?$", "bias", name))
    kind = _CONVOLUTIONS.get(weight.ndim, "linear" if bias is not None else "linear or embedding")
    present = _nonzero(weight)
    mask = tensors.get(re.sub(r"_orig$", "_mask", name)) if name.endswith("_orig") else None
    if mask is not None and mask.shape == weight.shape:
        present = present & _nonzero(mask)
    return {
        "name": re.sub(r"\.?weight(_orig)?$", "", name) or name,
        "looks_like": kind,
        "shape": list(weight.shape),
        "dtype": f"{weight.dtype}".removeprefix("torch."),
        "hidden": True,
        "density": int(present.sum()) / weight.numel(),
        "zeros": weight.numel() - int(present.sum()),
        "units_without_inputs": int((~present.flatten(1).any(1)).sum()),
        "inputs_without_units": int((~present.transpose(0, 1).flatten(1).any(1)).sum()),
    }


def _dense(tensor: Tensor) -> Tensor:
    """Return plain values that can be compared; quantized and sparse ones are taken out."""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    # The eight-bit kinds know no comparison.
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 2 else tensor


def _nonzero(tensor: Tensor) -> Tensor:
    return _dense(tensor.detach()) != 0


def _density(tensor: Tensor) -> float:
    return int(_nonzero(tensor).sum()) / tensor.numel()


def _complain_of(name: str, tensor: Tensor, trouble: list[str]) -> None:
    """Add how many values are not finite."""
    if tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()):
        return
    bad = int((~torch.isfinite(_dense(tensor.detach()))).sum())
    if bad:
        trouble.append(f"{name}: {bad:,} of {tensor.numel():,} values are not finite")


def _optimizer(place: str, tree: Mapping[str, Any], trouble: list[str]) -> dict[str, Any]:
    states = tree["state"].items() if isinstance(tree["state"], Mapping) else ()
    kept: dict[str, None] = {}
    for index, state in states:
        for key, one in state.items() if isinstance(state, Mapping) else ():
            kept[f"{key}"] = None
            if isinstance(one, Tensor):
                _complain_of(f"{place}.state.{index}.{key}".lstrip("."), one, trouble)
    groups = [one for one in tree["param_groups"] if isinstance(one, Mapping)]
    rates = [float(one["lr"]) for one in groups if isinstance(one.get("lr"), (int, float, Tensor))]
    return {"place": place, "parameters": len(states), "keeps": list(kept), "learning_rates": rates}


def _watch(place: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the state of a `dp.watch`; a version that is not known is told as such."""
    events = tree.get("events")
    history = tree["history"]
    told = [one for one in events if isinstance(one, (list, tuple))] if events else []
    return {
        "place": place,
        "format": tree["format"],
        "updates": tree["step"],
        "instruments": [f"{name}" for name in tree["instruments"]],
        "tags": _tags(history),
        "events": len(told),
        "last_events": [f"update {one[0]}: {one[1]} {one[2]}" for one in told[-3:]],
    }


def _tags(history: Any) -> list[str]:
    parts = [history.get(kind) for kind in ("scalars", "vectors")] if history else []
    return sorted({f"{tag}" for part in parts if isinstance(part, Mapping) for tag in part})
