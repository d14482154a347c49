"""The doctor's report: what is observed and how, what is not and why, and what has happened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dynamo_probe.instrument import Instrument, Treatment
from dynamo_probe.schedule import AfterReadings
from dynamo_probe.site import Site


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What can be done with one layer.

    Attributes:
        name: qualified name.
        units: number of units; 0 where it is not measured.
        measured: where its units are read, or why they are not.
        recyclable: whether its units can be recycled; None while nobody asked.
        reason: why they cannot be.
    """

    name: str
    units: int
    measured: str
    recyclable: bool | None
    reason: str


@dataclass(frozen=True, slots=True)
class InstrumentReport:
    """What has become of one instrument; `otherwise` is said where no next update is known."""

    name: str
    schedule: str
    observes: str
    fired: int
    last: int | None
    due: int | None
    lines: tuple[str, ...]
    otherwise: str = "never again"


@dataclass(frozen=True, slots=True)
class Report:
    """What `Watch.doctor` returns; print it.

    Attributes:
        step: updates seen.
        model: the model's class and how it is observed.
        layers: every Linear and Conv layer, and what is closed to measurement.
        instruments: schedule, firings and remarks of each instrument.
        warnings: what would silently not work here, in plain words.
    """

    step: int
    model: str
    layers: tuple[LayerReport, ...]
    instruments: tuple[InstrumentReport, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Write the report as text."""
        lines = [f"{self.model}, after {self.step} updates", "", "Layers"]
        width = max((len(layer.name) for layer in self.layers), default=0)
        for layer in self.layers:
            units = f"{layer.units:>6} units, read at the {layer.measured}"
            units = units if layer.units else layer.measured
            lines.append(f"  {layer.name:<{width}}  {units}")
            if layer.recyclable is not None:
                how = "recyclable" if layer.recyclable else f"not recyclable: {layer.reason}"
                lines.append(f"  {'':<{width}}               {how}")
        lines += ["", "Instruments"]
        for one in self.instruments:
            last = "never" if one.last is None else f"last at update {one.last}"
            due = f"next at {one.due}" if one.due is not None else one.otherwise
            lines.append(f"  {one.name}: {one.schedule}; {one.observes}")
            lines.append(f"    fired {one.fired} times; {last}, {due}")
            lines += [f"    {line}" for line in one.lines]
        lines += ["", "Warnings" if self.warnings else "No warnings"]
        lines += [f"  {warning}" for warning in self.warnings]
        return "\n".join(lines)


Fired = tuple[Instrument, int, int | None, int | None, str | None]


def examine(site: Site, instruments: Sequence[Fired], trouble: Iterable[str]) -> Report:
    """Write the report.

    Args:
        site: the run.
        instruments: (instrument, firings, last, next, why it is disabled) of each.
        trouble: what the sinks complain of.
    """
    wiring = site.known_wiring()
    layers = [
        LayerReport(
            name,
            layer.units,
            str(layer.tap),
            None if name not in wiring else not isinstance(wiring[name], str),
            str(wiring[name]) if isinstance(wiring.get(name), str) else "",
        )
        for name, layer in site.layers.items()
    ]
    layers += [
        LayerReport(name or "(the model)", 0, f"not measured: {reason}", None, "")
        for name, reason in site.skipped.items()
    ]
    reports = [
        InstrumentReport(
            one.name,
            f"{one.schedule}",
            _observes(site, one),
            fired,
            last,
            None if off else due,
            (*one.report(), *([f"disabled: {off}"] if off else [])),
            "next with the readings" if _follows(one) and not off else "never again",
        )
        for one, fired, last, due, off in instruments
    ]
    return Report(
        site.step,
        type(site.model).__name__,
        tuple(layers),
        tuple(reports),
        tuple(_warnings(site, instruments, trouble)),
    )


def _follows(instrument: Instrument) -> bool:
    return isinstance(instrument.schedule, AfterReadings)


def _observes(site: Site, instrument: Instrument) -> str:
    if _follows(instrument):
        return "looks at what the others read"
    where = {s.where for s in site.sources if s.instrument is instrument}
    if "training" in where:
        return "rides on the training's own forward passes"
    if "probe" in where:
        return "runs the model apart, on a fixed batch"
    if any(constraint.instrument is instrument for constraint in site.constraints):
        return "works around every step of the optimizers"
    return instrument.observes or "observes nothing by itself"


def _warnings(site: Site, instruments: Sequence[Fired], trouble: Iterable[str]) -> Iterable[str]:
    if not site.layers:
        yield f"Nothing is measured: {site.why_no_layers()}."
    if site.no_riding is not None:
        yield f"{site.no_riding}."
    for name, times in site.unseen.items():
        yield f"{name} had no sample in {times} readings: no backward pass reached it."
    for one, fired, _, due, off in instruments:
        if off is not None:
            yield f"{one.name} is disabled: {off}"
        elif fired == 0 and _follows(one):
            yield f"{one.name} had nothing to look at: no other instrument has read anything yet."
        elif fired == 0:
            when = "its schedule is over" if due is None else f"it is due at update {due}"
            yield f"{one.name} has never fired; {when}."
        if isinstance(one, Treatment) and not one.enabled:
            yield f"{one.name} is switched off."
    yield from trouble
