"""Names and numbers as a report shows them. Names are data: they may hold anything."""

from __future__ import annotations

import html
import math
import re
import unicodedata

SHOWN = 120
"""Characters of a name that a page shows; the rest is in the title of its element."""
KEPT = 500
"""Characters of a name that are kept at all."""
_PROSE = 2000

_UNSEEN = frozenset("\u061c\u200e\u200f\u2028\u2029\ufeff") | frozenset(
    map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
)
"""Characters that change the order or the lines of the text around them."""


def clean(text: str) -> str:
    """Return a text without what HTML does not allow or what reorders the text around it.

    Example:
        >>> clean("fc1" + chr(10) + "<b>" + chr(0)) == "fc1 <b>" + chr(0xFFFD)
        True
    """
    text = re.sub(r"[\t\n\r\f]+", " ", text)
    return "".join("\ufffd" if _refused(letter) else letter for letter in text)


def _refused(letter: str) -> bool:
    code = ord(letter)
    return (
        letter in _UNSEEN
        or unicodedata.category(letter) in ("Cc", "Cs")
        or 0xFDD0 <= code <= 0xFDEF
        or code & 0xFFFE == 0xFFFE
    )


def cut(text: str, most: int = SHOWN) -> str:
    """Return a clean text of at most `most` characters; an ellipsis says that there was more.

    Example:
        >>> cut("a.long.name", 7)
        'a.long…'
    """
    return clean(text) if len(text) <= most else clean(text[: most - 1]) + "…"


def middle(text: str, most: int) -> str:
    """Return a clean text cut in its middle: names of layers differ at their ends.

    Example:
        >>> middle("transformer.h.11.mlp.fc", 11)
        'trans…lp.fc'
    """
    if len(text) <= most:
        return clean(text)
    head = most // 2
    return clean(text[:head]) + "…" + clean(text[len(text) - (most - 1 - head) :])


def named(text: str) -> str:
    """Return a name as HTML: cut, apart from the direction of the text around it."""
    if len(text) <= SHOWN:
        return f"<bdi>{escaped(text)}</bdi>"
    return f'<bdi title="{escaped(text, KEPT)}">{escaped(text, SHOWN)}</bdi>'


def escaped(text: str, most: int = _PROSE) -> str:
    """Return a text, clean and cut, as HTML that holds nothing but text."""
    return html.escape(cut(text, most), quote=True)


def prose(text: str) -> str:
    """Return sentences as HTML; a word in them that is too long, such as a name, is cut.

    Example:
        >>> len(prose("of " + "x" * 10_000)), prose("a < b")
        (123, 'a &lt; b')
    """
    shorter = re.sub(rf"(\S{{{SHOWN - 1}}})\S\S+", r"\1…", text[: 20 * _PROSE])
    return escaped(shorter)


def slug(key: str) -> str:
    """Return the part of a file's name that a panel's key gives: letters, digits, dashes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", key[:60]).strip("-") or "panel"


def number(value: float) -> str:
    """Return a number as people read it.

    Example:
        >>> [number(x) for x in (12345.0, 0.123456, 2.5e-7, 1234.56, float("nan"))]
        ['12,345', '0.1235', '2.5e-07', '1,234.6', 'not read']
    """
    if math.isnan(value):
        return "not read"
    size = abs(value)
    if math.isinf(value) or size >= 1e12:
        return f"{value:.3g}"
    if value == int(value):
        return f"{int(value):,}"
    if size >= 1000:
        return f"{value:,.1f}"
    return f"{value:.4g}"


def counted(number_of: int, what: str) -> str:
    """Return how many there are of something.

    Example:
        >>> counted(1, "layer"), counted(2000, "unit"), counted(2, "query")
        ('1 layer', '2,000 units', '2 queries')
    """
    if number_of != 1:
        what = f"{what[:-1]}ies" if what.endswith("ry") else f"{what}s"
    return f"{number_of:,} {what}"
