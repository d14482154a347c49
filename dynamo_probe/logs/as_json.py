"""Views and panels as plain values for JSON: NaN becomes None, arrays become lists."""

from __future__ import annotations

import base64
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from dynamo_probe.logs.panels import Bars, Grid, Lines, Map, Raster

_KINDS = {Lines: "lines", Map: "map", Raster: "raster", Grid: "grid", Bars: "bars"}
_DIGITS = 5


def plain(value: Any) -> Any:
    """Return a view, a panel or a part of one as values that JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {one.name: plain(getattr(value, one.name)) for one in fields(value)}
        if isinstance(value, Raster):
            found["codes"] = _bytes(value.codes)
        kind = _KINDS.get(type(value))
        return found if kind is None else {"kind": kind, **found}
    if isinstance(value, np.ndarray):
        return _numbers(value)
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _bytes(codes: np.ndarray) -> dict[str, Any]:
    rows, columns = codes.shape
    text = base64.b64encode(np.ascontiguousarray(codes, dtype=np.uint8).tobytes()).decode()
    return {"rows": rows, "columns": columns, "base64": text}


def _numbers(array: np.ndarray) -> list[Any]:
    if array.dtype.kind != "f":
        return array.tolist()
    # Float32 tables are pictures: five digits after the point are more than can be seen.
    shown = array.astype(np.float64)
    shown = shown.round(_DIGITS) if array.dtype == np.float32 else shown
    listed = shown.astype(object)
    listed[~np.isfinite(shown)] = None
    return listed.tolist()
