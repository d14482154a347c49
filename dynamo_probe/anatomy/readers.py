"""Which layers read a layer's units, and what joins the units on the way: the graph of one pass.

The graph is torch-pruning's: it links the modules of one forward pass through autograd's nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch_pruning.dependency import DependencyGraph, Node
from torch_pruning.ops import OPTYPE

from dynamo_probe.anatomy import kinds

_PRODUCT = "MulBackward0"


class Unwirable(Exception):
    """Says why a layer's units have no private weights that lead in and out."""


@dataclass(frozen=True, slots=True)
class Descent:
    """What autograd's graph shows below a layer.

    Attributes:
        readers: the linear and convolutional layers that read its units.
        partner: the layer whose units its own are multiplied with before they are read.
    """

    readers: frozenset[str]
    partner: str | None = None


class Lineage:
    """The graph of one forward pass of a model.

    Args:
        model: a copy of the user's model that nobody else sees; it is left in `eval()`.
        run: run the model and return the tensors of its output.
    """

    def __init__(self, model: nn.Module, run: Callable[[], list[Tensor]]) -> None:
        """Trace the model once."""
        self.calls: Counter[str] = Counter()
        names = {module: name for name, module in model.named_modules()}
        self._owners = {
            parameter: (module, f"{name}.{own}".lstrip("."))
            for name, module in model.named_modules()
            for own, parameter in module.named_parameters(recurse=False)
        }

        def count(module: nn.Module, *_: Any) -> None:
            self.calls[names[module]] += 1

        outputs: list[Tensor] = []

        def forward(*_: Any) -> Any:
            outputs.extend(tensor for tensor in run() if tensor.grad_fn is not None)
            return outputs

        handles = [module.register_forward_hook(count) for module in names]
        try:
            graph = DependencyGraph().build_dependency(model, (), forward_fn=forward, verbose=False)
        finally:
            for handle in handles:
                handle.remove()
        self.uses = _uses(outputs)
        self._nodes: dict[str, Node] = {
            names[module]: node for module, node in graph.module2node.items() if module in names
        }
        self._names = {id(node): name for name, node in self._nodes.items()}

    def descend(self, layer: str) -> Descent:
        """Follow a layer's units to the layers that read them.

        Raises:
            Unwirable: when they are the output, join other units, or go where they cannot be read.
        """
        descent = self._descend(layer)
        if descent.partner is not None:
            other = self._descend(descent.partner)
            if other.readers != descent.readers or other.partner != layer:
                raise Unwirable(
                    f"its units are multiplied with those of `{descent.partner}`, and the two are "
                    "not read by the same layers"
                )
        return descent

    def _descend(self, layer: str) -> Descent:
        if layer not in self._nodes:
            raise Unwirable("the forward pass does not reach it, or not through its own forward")
        start = self._nodes[layer]
        readers: set[str] = set()
        below = [start]
        reached = {id(start)}
        for node in below:
            if not node.outputs:
                raise Unwirable("its units are the model's output")
            for following in node.outputs:
                if id(following) in reached:
                    continue
                reached.add(id(following))
                if isinstance(following.module, kinds.WEIGHTED):
                    readers.add(self._names[id(following)])
                elif self._has_other_weights(following):
                    name = self._names[id(following)]
                    raise Unwirable(
                        f"its units are read by `{name}` ({type(following.module).__name__}), "
                        "where a unit has no slice of the weights to itself"
                    )
                else:
                    below.append(following)
        partners = {
            name for node in below[1:] for name in self._joining(node, lambda n: id(n) in reached)
        }
        if len(partners) > 1:
            raise Unwirable(f"its units are multiplied with those of {_listed(partners)}")
        return Descent(frozenset(readers), next(iter(partners), None))

    def _joining(self, node: Node, own: Callable[[Node], bool]) -> Iterator[str]:
        """Give the layers whose units are multiplied with the layer's own at this node."""
        if node.type == OPTYPE.CONCAT:
            return  # side by side, not one on another
        for source in node.inputs:
            if own(source):
                continue
            operation = getattr(node.module, "_grad_fn", type(node.module).__name__)
            for above in self._sources(source):
                if isinstance(above.module, nn.Parameter):
                    owner, name = self._owners[above.module]
                    if isinstance(owner, kinds.NORMS):
                        continue
                    raise Unwirable(
                        f"its units meet the parameter `{name}`, which belongs to no layer of a "
                        "known kind"
                    )
                name = self._names[id(above)]
                if operation != _PRODUCT:
                    raise Unwirable(
                        f"its units are joined with those of `{name}` by {operation} before they "
                        "are read (a residual stream, attention or another shared sum), so they "
                        "have no outgoing weights of their own"
                    )
                yield name

    def _sources(self, start: Node) -> list[Node]:
        """Return the nearest layers and parameters at or above a node."""
        sources: list[Node] = []
        above, reached = [start], {id(start)}
        for node in above:
            if isinstance(node.module, (nn.Parameter, *kinds.WEIGHTED)):
                sources.append(node)
            elif self._has_other_weights(node):
                sources.append(node)
            else:
                for source in node.inputs:
                    if id(source) not in reached:
                        reached.add(id(source))
                        above.append(source)
        return sources

    def _has_other_weights(self, node: Node) -> bool:
        passing = isinstance(node.module, (*kinds.NORMS, nn.PReLU, nn.Parameter))
        return id(node) in self._names and not passing


def _uses(outputs: list[Tensor]) -> Counter[Tensor]:
    """Count how often each parameter enters the graph above the outputs."""
    uses: Counter[Tensor] = Counter()
    stack = [tensor.grad_fn for tensor in outputs]
    reached = set(stack)
    while stack:
        node = stack.pop()
        for above, _ in node.next_functions if node is not None else ():
            if above is None:
                continue
            variable = getattr(above, "variable", None)
            if variable is not None:
                uses[variable] += 1
            elif above not in reached:
                reached.add(above)
                stack.append(above)
    return uses


def _listed(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
