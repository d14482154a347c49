"""Readings and events as TensorBoard's records. Imports TensorBoard, so it is imported late."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars
from torch.utils.tensorboard.summary import histogram as histogram_summary
from torch.utils.tensorboard.summary import text as text_summary

from dynamo_probe.instrument import Event
from dynamo_probe.logs.reading import PLUGIN, TAG

__all__ = [
    "SummaryWriter",
    "Value",
    "escaped",
    "histogram",
    "layout",
    "log",
    "note",
    "picture",
    "scalar",
    "start",
    "summary",
    "texts",
]

Value: TypeAlias = Any
"""One tag's part of a record: a `Summary.Value`, whose class is made at run time."""

# Generated modules name their classes at run time only, which no type checker sees.
_event_pb2: Any = event_pb2
_summary_pb2: Any = summary_pb2
_tensor_pb2: Any = tensor_pb2
_STRING: Any = types_pb2.DT_STRING  # pyright: ignore[reportAttributeAccessIssue]

EVENTS_SHOWN = 24
"""The events of one kind that are written out at one update; the others are counted."""

_FACT_LENGTH = 200
_BINS = 64


def summary(values: Sequence[Value]) -> Any:
    """Return one record with all these values."""
    return _summary_pb2.Summary(value=values)


def start() -> Any:
    """Return the record that hides everything from its step on which stands before it."""
    return _event_pb2.Event(session_log=_event_pb2.SessionLog(status=_event_pb2.SessionLog.START))


def scalar(tag: str, value: float) -> Value:
    """Return one figure. TensorBoard keeps 32 bits; NaN and infinities stay what they are."""
    return _summary_pb2.Summary.Value(tag=tag, simple_value=value)


def histogram(tag: str, values: np.ndarray) -> Value | None:
    """Return a histogram in 64 equal bins from 0; None when no value is finite.

    Args:
        tag: the name it is shown under.
        values: `[units]`; what is not finite has no place in a histogram and is left out.
    """
    values = values[np.isfinite(values)].astype(np.float64)
    if not values.size:
        return None
    low, high = min(0.0, values.min()), max(0.0, values.max())
    if high == low:
        high = 1.0  # all zero
    return histogram_summary(tag, values, np.linspace(low, high, _BINS + 1)).value[0]


def picture(tag: str, pixels: np.ndarray) -> Value:
    """Return an image, uint8 `[height, width, 3]`, as PNG."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG")
    height, width, channels = pixels.shape
    image = _summary_pb2.Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=encoded.getvalue()
    )
    return _summary_pb2.Summary.Value(tag=tag, image=image)


def texts(events: Iterable[Event]) -> list[Value]:
    """Return one text for each kind of event, under `events/<kind>`, as a list in markdown."""
    kinds: dict[str, list[Event]] = {}
    for event in events:
        kinds.setdefault(event.kind, []).append(event)
    values = []
    for kind, group in kinds.items():
        lines = [_line(event) for event in group[:EVENTS_SHOWN]]
        if len(group) > EVENTS_SHOWN:
            lines.append(f"- and {len(group) - EVENTS_SHOWN} more: see `watch.events`")
        values.append(note(f"events/{kind}", "\n".join(lines)))
    return values


def note(tag: str, markdown: str) -> Value:
    """Return one text."""
    return text_summary(tag, markdown).value[0]


def escaped(text: str) -> str:
    """Return text that markdown shows as it is, on one line."""
    text = re.sub(r"([\\`*_{}\[\]()#+\-.!])", r"\\\1", " ".join(text.split()))
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        text = text.replace(sign, entity)
    return text


def log(packed: bytes) -> Value:
    """Return the log of the run so far, for the tab and the report."""
    tensor = _tensor_pb2.TensorProto(dtype=_STRING, string_val=[packed])
    plugin = _summary_pb2.SummaryMetadata.PluginData(plugin_name=PLUGIN)
    metadata = _summary_pb2.SummaryMetadata(
        plugin_data=plugin, data_class=_summary_pb2.DATA_CLASS_TENSOR
    )
    return _summary_pb2.Summary.Value(tag=TAG, metadata=metadata, tensor=tensor)


def layout(tau: str | None) -> Value:
    """Return the charts of the custom scalars tab. Tags are matched by regular expressions.

    Args:
        tau: the threshold shown by layer; None for all.
    """
    by_layer = re.escape(tau) if tau is not None else "[^/]+"
    charts: dict[str, Sequence[Any]] = {
        "dormant fraction": ["Multiline", [r"dormancy/tau=[^/]+$"]],
        "dormant fraction by layer": ["Multiline", [rf"dormancy/layer/.+/tau={by_layer}$"]],
        "recycled units": ["Multiline", [r"[^/]+/recycled$"]],
        "rank": ["Multiline", [r"rank/.+$"]],
    }
    return custom_scalars({"dynamo_probe": charts}).value[0]


def _line(event: Event) -> str:
    facts = [f"{key}: {value}" for key, value in event.detail.items()]
    short = [fact if len(fact) <= _FACT_LENGTH else fact[:_FACT_LENGTH] + "..." for fact in facts]
    subject = escaped(event.subject)
    return f"- **{subject}**" + (f": {escaped(', '.join(short))}" if short else "")
