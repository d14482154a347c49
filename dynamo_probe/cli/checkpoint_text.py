"""What was found in a checkpoint, in lines for people."""

from __future__ import annotations

from typing import Any

from dynamo_probe.cli.output import printable

_MOST = 12


def checkpoint_lines(found: dict[str, Any]) -> list[str]:
    """Put what `examine_checkpoint` gives into lines."""
    lines = [f"{found['checkpoint']}"]
    for one in found["networks"]:
        lines += ["", *_network_lines(one)]
    for one in found["optimizers"]:
        rates = ", ".join(f"{rate:g}" for rate in one["learning_rates"])
        lines += [
            "",
            f"{_place(one)}: an optimizer's state of {one['parameters']} parameters "
            f"({', '.join(one['keeps']) or 'nothing kept'}), learning rate {rates or 'unknown'}",
        ]
    for one in found["watches"]:
        lines += ["", *_watch_lines(one)]
    lines += ["", "Trouble" if found["trouble"] else "No trouble"]
    lines += [f"  {one}" for one in found["trouble"][:_MOST]]
    if len(found["trouble"]) > _MOST:
        lines.append(f"  and {len(found['trouble']) - _MOST} more (--json has all)")
    lines += ["", "What a checkpoint alone cannot tell"]
    return lines + [f"  {one}" for one in found["unknown"]]


def _place(one: dict[str, Any]) -> str:
    return one["place"] or "(the whole file)"


def _network_lines(one: dict[str, Any]) -> list[str]:
    lines = [
        f"{_place(one)}: looks like a network's state, {one['tensors']} tensors, "
        f"{one['parameters']:,} values"
    ]
    names = [printable(layer["name"], 80) for layer in one["layers"]]
    width = max(map(len, names), default=0)
    for name, layer in zip(names, one["layers"], strict=True):
        shape = " x ".join(str(size) for size in layer["shape"])
        facts = [f"density {layer['density']:.4g}"]
        if layer["units_without_inputs"]:
            facts.append(f"units without inputs (all weights 0): {layer['units_without_inputs']}")
        if layer["inputs_without_units"]:
            facts.append(f"inputs that nothing reads: {layer['inputs_without_units']}")
        if not layer["hidden"]:
            facts.append("the last: perhaps the output")
        kind = layer["looks_like"]
        lines.append(f"  {name:<{width}}  {kind}, {shape}: {', '.join(facts)}")
    if not one["layers"]:
        lines.append("  no weight of a Linear or Conv layer is in it")
    lines += [f"  mask {name}: density {density:.4g}" for name, density in one["masks"].items()]
    return lines


def _watch_lines(one: dict[str, Any]) -> list[str]:
    tags = one["tags"]
    more = f" and {len(tags) - _MOST} more" if len(tags) > _MOST else ""
    return [
        f"{_place(one)}: the state of a watch after {one['updates']} updates, format "
        f"{one['format']}",
        f"  instruments: {', '.join(one['instruments']) or 'none'}",
        f"  history: {', '.join(tags[:_MOST]) or 'empty'}{more}",
        f"  {one['events']} events{': ' if one['last_events'] else ''}"
        f"{'; '.join(one['last_events'])}",
    ]
