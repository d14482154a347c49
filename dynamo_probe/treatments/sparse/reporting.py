"""What sparse training says of itself: readings, events, and lines for the doctor."""

from __future__ import annotations

from collections.abc import Mapping

from dynamo_probe.connections import Connections
from dynamo_probe.site import Site
from dynamo_probe.treatments.sparse.network import SparseNetwork
from dynamo_probe.treatments.sparse.rules import Rules
from dynamo_probe.warning import warn


def emit_density(site: Site, network: SparseNetwork, connections: Connections) -> dict[str, int]:
    """Emit the density and its target; return {name: how many connections there are}."""
    assert network.masks is not None
    there = network.masks.counts()
    site.emit(f"{connections.owner}/density", sum(there.values()) / network.size)
    if connections.target is not None:
        site.emit(f"{connections.owner}/target", connections.target)
    return there


def note_numbers(site: Site, owner: str, kind: str, numbers: Mapping[str, int]) -> None:
    """Make an event of connections that went or came, if there are any."""
    weights = {name: number for name, number in numbers.items() if number}
    if weights:
        subject = f"{sum(weights.values())} connections"
        site.note(kind, subject, treatment=owner, weights=weights)


def tell_of_zeros(owner: str, network: SparseNetwork) -> None:
    """Warn where a sparse network seems to go on without its masks."""
    parameters = [weight.parameter.detach() for weight in network.weights.values()]
    zeros = sum(int((p == 0).sum()) for p in parameters)
    if network.rules.initial != "zeros" and zeros > network.size // 20:
        warn(
            f"{owner} makes fresh masks for weights of which {zeros / network.size:.0%} are "
            "exactly 0. To resume, load watch.state_dict() into the watch before the first forward "
            "pass; to take the zeros as the masks, give initial='zeros'",
            stacklevel=4,
        )


def describe(
    connections: Connections, network: SparseNetwork | None, rules: Rules, changed: tuple[int, int]
) -> list[str]:
    """Say what is masked, how densely, and what is not, and why.

    Args:
        connections: what is published.
        network: the network; None before it began.
        rules: the settings.
        changed: how many connections were pruned, and how many regrown.
    """
    lines = [f"density: {rules.density}"]
    if network is None or network.masks is None:
        lines.append("the masks are made when the loop first runs the model")
    else:
        there = network.masks.counts()
        total, (pruned, regrown) = sum(there.values()), changed
        lines.append(
            f"{total} of {network.size} connections are there ({total / network.size:.4g}); "
            f"{pruned} were pruned and {regrown} regrown"
        )
        lines += [
            f"masked: {name}, {there[name]} of {weight.parameter.numel()}"
            for name, weight in connections.weights.items()
        ]
    return lines + [f"whole: {name} ({reason})" for name, reason in connections.left.items()]


def unfinished(rules: Rules, update: int) -> str | None:
    """Say so where the training ended before the schedule of the density."""
    last = rules.last_update()
    if last is None or not 0 < update < last:
        return None
    now, then = rules.density.at(update), rules.density.at(last)
    return (
        f"the run ended at update {update}, before the density's schedule did at {last}: the "
        f"density is {now:.4g} and was to become {then:.4g}. "
        "Give an end= of at most the number of updates"
    )
