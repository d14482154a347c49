"""The way from a layer's output to its activation function, in a recorded forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from dynamo_probe.anatomy.axes import Axes
from dynamo_probe.anatomy.dataflow import Dataflow, Operation
from dynamo_probe.anatomy.layer import Layer, units_of
from dynamo_probe.anatomy.pointwise import (
    DROPOUTS,
    LINEAR,
    NORMS,
    POOLS,
    PRODUCTS,
    RESHAPES,
    Pointwise,
    region_from,
)
from dynamo_probe.anatomy.taps import Tap

_UNBOUNDED = (float("-inf"), float("inf"))
_CLOSED = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)
_LEARNED_READERS = frozenset(
    "linear matmul mm bmm addmm einsum bilinear lstm gru rnn_tanh rnn_relu conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d conv_transpose3d baddbmm "
    "multi_head_attention_forward".split()
)


class Unreadable(Exception):
    """Carries the reason why a layer's units cannot be read."""


class Search:
    """Follows the output of every producing layer to its activation function."""

    def __init__(
        self, model: nn.Module, flow: Dataflow, whole: bool, axes: Mapping[str, Axes]
    ) -> None:
        """Prepare the look-ups.

        Args:
            model: the model that was recorded.
            flow: what its forward pass did (`Dataflow.live`).
            whole: whether the model's output is the output of the network.
            axes: of modules whose axes the user has named.

        After `run`, `last` has the layers whose units nothing that is learned reads.
        """
        self.modules = dict(model.named_modules())
        self.flow = flow
        self.whole = whole
        self.axes = axes
        self.uses = flow.uses()
        self.weights = flow.weights()
        self.once = {name: calls[0] for name, calls in flow.calls.items() if len(calls) == 1}
        self.last: set[str] = set()
        self.made_in: dict[int, list[str]] = {}
        self.taken_in: dict[int, list[tuple[str, int | str]]] = {}
        for name, call in self.once.items():
            if call.output is not None and call.output not in call.inputs.values():
                self.made_in.setdefault(call.output, []).append(name)
            for argument, number in call.inputs.items():
                self.taken_in.setdefault(number, []).append((name, argument))

    def run(self) -> tuple[dict[str, Layer], dict[str, str]]:
        """Return the readable layers in the order of the pass, and why others are left out."""
        layers: dict[str, Layer] = {}
        skipped: dict[str, str] = {}
        order = {name: position for position, name in enumerate(self.flow.calls)}
        for name, module in sorted(
            self.modules.items(), key=lambda item: order.get(item[0], len(order))
        ):
            shape = self.shape_of(name, module)
            if isinstance(module, torch.jit.ScriptModule):
                outer = self.modules.get(name.rpartition(".")[0])
                if not isinstance(outer, torch.jit.ScriptModule) or not name:
                    skipped[name] = "a scripted module: what happens inside is not visible"
            elif isinstance(module, _CLOSED):
                skipped[name] = f"{type(module).__name__}: its units are inside one fused call"
            elif shape is not None:
                try:
                    layers[name] = self.layer(name, *shape)
                except Unreadable as reason:
                    skipped[name] = str(reason)
        partners = {layer.partner: layer.name for layer in layers.values() if layer.partner}
        for name, gate in partners.items():
            skipped[name] = f"measured together with {gate}: they are the two factors of one unit"
        return layers, skipped

    def shape_of(self, name: str, module: nn.Module) -> tuple[int, int] | None:
        """Return a layer's number of units and their (negative) axis; None for other modules."""
        declared = self.axes.get(name)
        if declared is None:
            return units_of(module)
        outputs = [call.output for call in self.flow.calls.get(name, []) if call.output is not None]
        shape = self.flow.shapes[outputs[0]] if outputs else ()
        return (shape[declared.unit], declared.unit) if len(shape) >= -declared.unit else (0, -1)

    def layer(self, name: str, units: int, axis: int) -> Layer:
        """Return a layer and its tap; raise `Unreadable` where there is no exact one."""
        calls = self.flow.calls.get(name, [])
        outputs = [call.output for call in calls if call.output is not None]
        if outputs and not any(self.reaches_learned(output) for output in outputs):
            self.last.add(name)
        if not calls:
            raise Unreadable("not called by itself in the forward pass")
        if len(calls) > 1:
            raise Unreadable(f"called {len(calls)} times in one forward pass: its units are shared")
        output = calls[0].output
        if output is None:
            raise Unreadable("its output is not a tensor")
        learned_after = name not in self.last
        if self.whole and not learned_after:
            raise Unreadable("an output layer: nothing that is learned reads its units")
        return self.follow(name, units, axis, output, learned_after)

    def reaches_learned(self, start: int) -> bool:
        """Whether a later layer reads the value."""
        seen = {start}
        for operation in self.flow.operations:
            if seen.isdisjoint(operation.inputs):
                continue
            reader = self.modules.get(operation.module)
            reads_weight = not self.weights.isdisjoint(operation.inputs) or (
                # a parametrised weight
                reader is not None
                and (units_of(reader) is not None or operation.module in self.axes)
            )
            if operation.name in _LEARNED_READERS and reads_weight:
                return True
            seen.update(operation.outputs)
        return False

    def follow(self, name: str, units: int, axis: int, start: int, learned_after: bool) -> Layer:
        """Walk from a layer's output to its activation function; choose the simplest exact tap."""
        value, in_place = start, True  # in_place: the units are still on their own axis
        anchor: str | None = name  # the module from whose output the activation can be repeated
        while True:
            if in_place and (makers := [m for m in self.made_in.get(value, ()) if m]):
                anchor = makers[0]
            region = region_from(self.flow, value)
            if region.activation is not None:
                break
            if len(region.exits) != 1:
                raise Unreadable(self.why_not(value, region.exits, learned_after))
            if region.exits[0] != value:  # scaled, shifted or cast on the way
                value, anchor = region.exits[0], None
                continue
            users = self.uses.get(value, [])
            whole_norm = self.norm_module(value)
            if whole_norm is not None:
                value, anchor = whole_norm, None
            elif len(users) != 1 or not users[0].outputs:
                raise Unreadable(self.why_not(value, region.exits, learned_after))
            elif users[0].name in RESHAPES:
                # A pointwise function does not care about order: it may be applied before.
                value, in_place = users[0].outputs[0], False
            elif users[0].name in NORMS | POOLS | DROPOUTS or self.is_shift(users[0], value):
                value, anchor = users[0].outputs[0], None
            else:
                raise Unreadable(self.why_not(value, region.exits, learned_after))
        return self.read_at(name, units, axis, region.activation, anchor, in_place)

    def read_at(
        self,
        name: str,
        units: int,
        axis: int,
        activation: Pointwise,
        anchor: str | None,
        in_place: bool,
    ) -> Layer:
        """Choose the simplest exact tap for an activation function that was found."""
        self.refuse_writes(activation)
        gated = self.gate(name, activation.end)
        if gated is not None:
            product, partner = gated
            tap = self.direct_tap(product, axis) if in_place else None
            if tap is None:
                raise Unreadable("the product of its gate and value is not the input of a module")
            label = f"{activation.name}*product"
            return self.checked(Layer(name, units, tap, label, partner, _UNBOUNDED, product))
        tap = self.direct_tap(activation.end, axis) if in_place else None
        if tap is None and anchor is not None and activation.repeatable:
            tap = Tap(anchor, None, activation, axis)
        if tap is None:
            raise Unreadable(
                f"its activation function ({activation.name}) is neither a module's output nor its "
                "input, and what lies before it cannot be repeated"
            )
        bounds = activation.bounds()
        return self.checked(Layer(name, units, tap, activation.name, None, bounds, activation.end))

    def refuse_writes(self, activation: Pointwise) -> None:
        """Refuse units that are changed behind the record's back, in place through a view."""
        own = {activation.start, *(number for step in activation.steps for number in step.outputs)}
        places = {self.flow.storages[number] for number in own} - {0}
        for number in self.flow.writes:
            if number not in own and self.flow.storages[number] in places:
                raise Unreadable("its units are changed in place through a view")

    def checked(self, layer: Layer) -> Layer:
        """Return the layer if its activations have an axis of its units."""
        shape = self.flow.shapes[layer.value]
        declared = self.axes.get(layer.name)
        if declared is not None:
            layer = self.with_axes(layer, declared)
        if layer.tap.function is None and (
            len(shape) < -layer.tap.axis or shape[layer.tap.axis] != layer.units
        ):
            raise Unreadable(f"its activations have shape {tuple(shape)}: no axis of its units")
        return layer

    def with_axes(self, layer: Layer, declared: Axes) -> Layer:
        """Return the layer with the replicas that its user has named, if its output has the axes.

        They are counted in its output: what follows may see it under another order of axes.
        """
        output = next(c.output for c in self.flow.calls[layer.name] if c.output is not None)
        shape = self.flow.shapes[output]
        if len(shape) < -declared.unit:
            raise Unreadable(f"its output has shape {tuple(shape)}: no axis of its units")
        if declared.replica is None:
            return layer
        if layer.partner is not None:
            raise Unreadable("a gated layer of replicas")
        if len(shape) < -declared.replica:
            raise Unreadable(f"its output has shape {tuple(shape)}: no axis of replicas")
        replicas = int(shape[declared.replica])
        return replace(layer, replicas=replicas, replica_axis=declared.replica)

    def direct_tap(self, value: int, axis: int) -> Tap | None:
        """Return a tap on a module whose output or input is the value, if there is one."""
        for module in reversed(self.made_in.get(value, [])):
            if module:
                return Tap(module, None, None, axis)
        for module, argument in self.taken_in.get(value, []):
            if module:
                return Tap(module, argument, None, axis)
        return None

    def is_shift(self, operation: Operation, value: int) -> bool:
        """Whether an operation adds or multiplies a weight that is no data."""
        others = set(operation.inputs) - {value}
        return (
            operation.name in LINEAR
            and self.weights.issuperset(others)
            and self.flow.shapes[operation.outputs[0]] == self.flow.shapes[value]
        )

    def norm_module(self, value: int) -> int | None:
        """Return the output of a hand-written norm that takes the value, if it does."""
        for module, _ in self.taken_in.get(value, []):
            call = self.once[module]
            kind = type(self.modules[module]).__name__
            inside = all(
                use.module == module or use.module.startswith(f"{module}.")
                for use in self.uses.get(value, [])
            )
            if module and "Norm" in kind and inside and call.output is not None:
                if self.flow.shapes[call.output] == self.flow.shapes[value]:
                    return call.output
        return None

    def gate(self, name: str, end: int) -> tuple[int, str] | None:
        """Return the product and the other layer where the activation is a gate (as in SwiGLU)."""
        users = self.uses.get(end, [])
        if len(users) != 1 or users[0].name not in PRODUCTS or len(users[0].inputs) != 2:
            return None
        (other,) = [number for number in users[0].inputs if number != end] or (end,)
        product = users[0].outputs[0]
        shapes = {self.flow.shapes[number] for number in (end, other, product)}
        partner = self.linear_origin(other)
        if len(shapes) > 1 or partner is None or partner == name:
            return None
        return product, partner

    def linear_origin(self, value: int) -> str | None:
        """Return the layer whose output the value is."""
        for module in self.made_in.get(value, []):
            if units_of(self.modules[module]) is not None:
                return module
        return None

    def why_not(self, value: int, exits: tuple[int, ...], learned_after: bool) -> str:
        """Say why a layer has no activation function of its own."""
        users = [use for number in (exits or (value,)) for use in self.uses.get(number, [])]
        names = list(dict.fromkeys(use.name for use in users))
        if not learned_after or not users:
            return "an output layer: nothing that is learned reads its units"
        if any(use.name in ("add", "sub") and len(use.inputs) > 1 for use in users):
            return "its output is added to a residual stream, which other layers share"
        if "cat" in names or "stack" in names:
            return "its output is joined with others before any activation function"
        if names and set(names) <= {"chunk", "split", "getitem", "unbind", "glu", "tensor_split"}:
            return "its output is split (a fused gate or projection): no activation of whole units"
        if any(use.name in PRODUCTS for use in users):
            return "its output is a factor of a product: no activation function of its own"
        if len(users) > 1:
            return f"its output is used several times ({', '.join(names)}) before one activation"
        return f"no activation function follows it: its output goes to {names[0]}"
