"""Whether a saved state belongs to a watch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamo_probe.instrument import Instrument
from dynamo_probe.site import Site

FORMAT = 1
"""Version of what `Watch.state_dict` returns."""


def shapes(site: Site) -> dict[str, list[int]]:
    """Return the shape of every parameter by name: what a saved state has to fit."""
    return {name: list(parameter.shape) for name, parameter in site.parameters()}


def check_state(state: dict[str, Any], site: Site, instruments: Sequence[Instrument]) -> None:
    """Refuse a state that was saved by something else.

    Raises:
        ValueError: when it is of another format, another model or other instruments; the message
            says which.
    """
    if state.get("format") != FORMAT:
        raise ValueError(
            f"the state has format {state.get('format')!r}, this version reads {FORMAT}; save it "
            "again with the version of dynamo_probe that made it"
        )
    here, there = shapes(site), state["model"]
    if here != there:
        differing = sorted(here.keys() ^ there.keys()) or sorted(
            name for name in here if here[name] != there[name]
        )
        raise ValueError(
            f"the state was saved for another model: {', '.join(differing[:3])} differ; load "
            "it into a watch of the model it was saved with"
        )
    names = sorted(instrument.name for instrument in instruments)
    if sorted(state["instruments"]) != names:
        raise ValueError(
            f"the state was saved with the instruments {sorted(state['instruments'])}, this watch "
            f"has {names}; give dp.watch the same ones"
        )
    for instrument in instruments:
        instrument.check_state_dict(state["instruments"][instrument.name]["state"])
