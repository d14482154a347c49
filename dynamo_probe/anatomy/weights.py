"""Prunable weights: which parameters hold connections, and why others are left whole."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from dynamo_probe.anatomy.layer import CONVOLUTIONS
from dynamo_probe.anatomy.shards import is_sharded

_RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NO_GROUND = "it is a {kind} of a {owner}: only weights of linear, convolutional, recurrent and attention layers are pruned"  # noqa: E501


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter whose entries are connections between units.

    Attributes:
        name: qualified name of the parameter, such as `fc1.weight`.
        parameter: the parameter itself; a `DTensor` under `fully_shard`.
        layer: qualified name of the module that it belongs to.
        unit_dim: the dimension that counts the units that it leads into.
        input_dim: the dimension that counts those it comes from.
        aliases: other names of the same parameter, where it is tied.
        groups: of a transposed convolution: so many units share each index along `unit_dim`. 1
            everywhere else, where an index is one unit.
    """

    name: str
    parameter: nn.Parameter
    layer: str
    unit_dim: int
    input_dim: int
    aliases: tuple[str, ...] = ()
    groups: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole weight."""
        return tuple(self.parameter.shape)

    @property
    def units(self) -> int:
        """How many units it leads into."""
        return self.parameter.shape[self.unit_dim]


@dataclass(frozen=True, slots=True)
class Weights:
    """What can be pruned.

    Attributes:
        found: {name: weight}, in the model's order.
        left: {name: why it stays whole}, for every other parameter.
    """

    found: Mapping[str, Weight]
    left: Mapping[str, str]


def find_weights(
    model: nn.Module,
    optimizers: Sequence[Optimizer] | None = None,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    types: type[nn.Module] | Iterable[type[nn.Module]] | None = None,
    outputs: Collection[str] = (),
) -> Weights:
    """Find the weights that can be pruned.

    Those are the weights of linear and convolutional layers (also transposed ones, and the
    transposed linear layer of GPT-2 in transformers), the projections of `nn.MultiheadAttention`
    and the matrices of `nn.RNN`, `nn.LSTM` and `nn.GRU`. Biases, norms and embeddings are not, also
    where a weight is tied to an embedding; nor are weights that another parameter computes.

    Args:
        model: the model.
        optimizers: weights that none of them holds are left whole; None does not ask.
        include: patterns of names (`fnmatch`: `*`, `?`, `[...]`) of weights, or of the layers that
            they belong to; only these are found, output layers among them. None takes all.
        exclude: patterns of those that stay whole.
        types: classes of layers; None takes all kinds.
        outputs: names of output layers, which stay whole unless `include` names them.

    Raises:
        ValueError: when a pattern matches no parameter and no layer of the model.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if types is not None:
        types = (types,) if isinstance(types, type) else tuple(types)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    held = None
    if optimizers is not None:
        held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    _check_patterns((*(include or ()), *exclude), [n for own in names.values() for n in own])
    found: dict[str, Weight] = {}
    left: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        aliases = names[id(parameter)]
        owners = [modules[alias.rpartition(".")[0]] for alias in aliases]
        reason = _unusable(parameter, held)
        kinds = [
            _dims(owner, alias.rpartition(".")[2], parameter)
            for owner, alias in zip(owners, aliases, strict=True)
            if reason is None  # a lazy parameter has no dimensions to ask for
        ]
        layer = name.rpartition(".")[0]
        if reason is None and any(isinstance(kind, str) for kind in kinds):
            reason = next(kind for kind in kinds if isinstance(kind, str))
        if reason is None and types is not None and not isinstance(owners[0], types):
            wanted = ", ".join(kind.__name__ for kind in types)
            reason = f"{type(owners[0]).__name__} is not among the types chosen ({wanted})"
        if reason is None and include is not None and not _matches(aliases, include):
            reason = "no pattern of include= names it"
        if reason is None and _matches(aliases, exclude):
            reason = "a pattern of exclude= names it"
        if (
            reason is None
            and include is None
            and not set(outputs).isdisjoint(alias.rpartition(".")[0] for alias in aliases)
        ):
            reason = "an output layer: it stays whole unless include= names it"
        if reason is not None:
            left[name] = reason
            continue
        (unit_dim, input_dim), *_ = [kind for kind in kinds if not isinstance(kind, str)]
        groups = max(o.groups if isinstance(o, _TRANSPOSED) else 1 for o in owners)
        others = tuple(aliases[1:])
        found[name] = Weight(name, parameter, layer, unit_dim, input_dim, others, groups)
    return Weights(found, left)


def _dims(module: nn.Module, own: str, parameter: Tensor) -> tuple[int, int] | str:
    """Return along which dimensions a parameter of a module has units and inputs, or why none."""
    if own == "bias" or own.startswith("bias_") or own.endswith("_bias"):
        return "a bias"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "an embedding, or tied to one"
    if "Norm" in type(module).__name__:
        return f"it belongs to a norm ({type(module).__name__})"
    if own.endswith("_orig") and hasattr(module, own.removesuffix("_orig") + "_mask"):
        return "torch.nn.utils.prune computes the weight from it: take it off (prune.remove) first"
    computed = own.startswith("weight") and own.endswith(("_g", "_v", "_orig"))
    if isinstance(module, parametrize.ParametrizationList) or computed:
        return "another weight is computed from it (a parametrization): masks would not hold there"
    if parameter.dim() < 2:
        return f"it has {parameter.dim()} dimensions: no connections between units"
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf") and own == "weight":
        return 1, 0  # the transposed linear layer of GPT-2 in transformers
    if isinstance(module, _TRANSPOSED) and own == "weight":
        return 1, 0
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and own == "weight":
        return 0, 1
    cells = (nn.RNNBase, nn.RNNCellBase)
    recurrent = isinstance(module, cells) and _RECURRENT.fullmatch(own) is not None
    attention = isinstance(module, nn.MultiheadAttention) and own.endswith("proj_weight")
    if recurrent or attention:
        return 0, 1
    return _NO_GROUND.format(kind=own, owner=type(module).__name__)


def _unusable(parameter: Tensor, held: set[int] | None) -> str | None:
    """Return why the values of a parameter cannot be masked; None where they can."""
    if is_lazy(parameter):
        return "it has no shape yet (a lazy layer that has not run)"
    if parameter.is_meta:
        return "it is on the meta device: it has no values"
    if not parameter.is_floating_point() or parameter.is_quantized:
        return f"its values are {parameter.dtype}: quantized or complex weights are not trained"
    if parameter.is_sparse or str(parameter.layout) != "torch.strided":
        return f"it is stored as {parameter.layout}"
    if not parameter.requires_grad:
        return "it is frozen (requires_grad is off)"
    if parameter.numel() == 0 and not is_sharded(parameter):
        return "it is empty"
    if held is not None and id(parameter) not in held:
        return "none of the watch's optimizers holds it"
    return None


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    both = [part for name in names for part in (name, name.rpartition(".")[0])]
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in both)


def _check_patterns(patterns: Iterable[str], names: list[str]) -> None:
    for pattern in patterns:
        if not _matches(names, [pattern]):
            raise ValueError(
                f"the pattern {pattern!r} names no parameter and no layer of the model; its "
                f"parameters are {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
            )
