"""What tests of the display share: an independent strict reader of HTML, and histories."""

from __future__ import annotations

from xml.etree.ElementTree import Element

import html5lib
import numpy as np

from dynamo_probe.instrument import Reading
from dynamo_probe.sinks import History

HOSTILE = [
    "<script>alert(1)</script>",
    "</td></table></div><img src=x onerror=alert(1)>",
    "\"'><b onmouseover='x()'>",
    "&lt;b&gt;&amp;&#60;",
    "</title></svg><style>*{display:none}</style>",
    "a\x00b\x07c\x1b[31mred\x1b]0;title\x07",
    "\u202eturned\u2066\ufffe\ud800",
    "[red]not red[/red][link=file:///etc/passwd]x[/link]:smile:",
    "$x^2$ and $\\frac{1}$",
    "../../etc/passwd",
    "x" * 10_000,
    "<b>" * 5_000,
    "_hidden/from a legend",
    "",
    " ",
    "слой/层/طبقة",
]


def parsed(page: str) -> Element:
    """Read a fragment; whatever is not HTML as the standard has it raises."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    top = Element("fragment")
    top.extend(parser.parseFragment(page))
    return top


def text(element: Element) -> str:
    return "".join(element.itertext())


def tables(page: str) -> dict[str, list[list[str]]]:
    """Return the cells of each table under its caption; a picture's text is its title."""
    found = {}
    for table in parsed(page).iter("table"):
        caption = table.find("caption")
        rows = [[text(cell) for cell in row.findall("td")] for row in table.findall("tbody/tr")]
        heads = ["".join(text(head)) for head in table.findall("thead/tr/th")]
        found["" if caption is None else text(caption) or ""] = [heads, *rows]
    return found


def figure(cell: str) -> float:
    return float(cell.replace(",", ""))


def skeleton(page: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the elements and their attributes' names in order, without any text."""
    return [(str(one.tag), tuple(map(str, one.attrib))) for one in parsed(page).iter()]


def filled() -> History:
    history = History()
    for step in range(10, 210, 10):
        history.add(
            [
                Reading(step, "dormancy/tau=0.1", step / 1000),
                Reading(step, "rank/stable", 12_345.678 - step),
                Reading(step, "redo/recycled_total", float(1000 * step)),
                Reading(step, "dormancy/layer/fc1/tau=0.1", 1 / step),
            ]
        )
    scores = np.array([0.25, 3.0, np.nan, 1.5, np.inf, 0.5])
    history.add([Reading(200, "dormancy/scores/fc1", scores, samples=64)])
    return history
