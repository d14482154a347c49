"""Names and numbers as short, harmless text."""

from __future__ import annotations

import math


def visible(text: object, most: int = 80) -> str:
    r"""Write a name so that it can neither hide nor break anything.

    What has no glyph of its own (control characters, marks that turn the direction of writing,
    lone surrogates) is written as Python escapes it; of a long text the beginning and the end stay.

    Args:
        text: anything.
        most: the most characters that come back, at least 3.

    Example:
        >>> visible("layer\x1b[31m\nfc1")
        'layer\\x1b[31m\\nfc1'
        >>> visible("a" * 40 + "/weight", most=20)
        'aaaaaaaaaaaaa…weight'
    """
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)
    )
    if len(shown) <= most:
        return shown
    end = most // 3
    return f"{shown[: most - end - 1]}…{shown[len(shown) - end :]}"


def number(value: float) -> str:
    """Write a figure: counts in full, everything else with five digits.

    Example:
        >>> [number(x) for x in (12345.0, 0.123456, -0.0, float("nan"), float("-inf"))]
        ['12,345', '0.12346', '0', 'nan', '-inf']
    """
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.5g}"
