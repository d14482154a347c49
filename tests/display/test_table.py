"""What a terminal shows: the same figures, and no name can act on it."""

import io
import re

import numpy as np
import pytest
import rich
from rich.console import Console
from rich.panel import Panel

from dynamo_probe.display.sparkline import ASCII
from dynamo_probe.instrument import Reading
from dynamo_probe.sinks import History
from tests.display.pages import HOSTILE, figure, filled


def printed(what: object, width: int = 200, encoding: str = "utf-8") -> str:
    page = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=page, width=width, force_terminal=False).print(what)
    page.seek(0)
    return page.read()


def cells(page: str, tag: str) -> list[str]:
    plain = [line.strip("| ") for line in page.splitlines()]  # in ASCII, columns have borders
    (line,) = [line for line in plain if line.startswith(tag)]
    return re.split(r"\s+\|\s+|\s{2,}", line)


def test_the_figures_are_those_that_were_read():
    page = printed(filled())
    assert page.splitlines()[0] == "History(81 readings of 5 tags, updates 10 to 200)"
    tag, update, newest, low, high, curve = cells(page, "rank/stable")
    assert update == "200"
    found = [figure(cell) for cell in (newest, low, high)]
    assert found == pytest.approx([12_145.678, 12_145.678, 12_335.678], rel=5e-5)
    assert curve[0] == "█" and curve[-1] == "▁" and len(curve) == 16
    assert cells(page, "redo/recycled_total")[2:5] == ["200,000", "10,000", "200,000"]
    per_unit = cells(page, "dormancy/scores/fc1")
    assert per_unit[1:] == ["200", "6 (2 not finite)", "0.25", "1", "3"]


def test_rich_print_takes_it(capsys):
    rich.print(filled())
    assert "dormancy/tau=0.1" in capsys.readouterr().out


def test_the_plain_repr_is_one_line():
    assert "\n" not in repr(filled())


def test_it_fits_beside_other_things():
    page = printed(Panel.fit(filled()), width=100)
    assert max(map(len, page.splitlines())) <= 100
    assert page.startswith("╭")


@pytest.mark.parametrize("width", [20, 80])
def test_a_narrow_terminal_cuts_lines_and_no_name(width):
    page = printed(filled(), width=width)
    assert max(map(len, page.splitlines())) <= width


def test_a_terminal_that_knows_ascii_alone_gets_ascii_alone():
    history = filled()
    history.add([Reading(10, "слой/" + "層" * 200, 1.0), Reading(20, "loss", float("nan"))])
    page = printed(history, encoding="ascii")
    assert page.isascii()
    assert set(cells(page, "dormancy/tau=0.1")[-1]) <= set(ASCII)
    assert cells(page, "loss")[-1] == "x"


@pytest.mark.parametrize("tag", HOSTILE)
def test_a_hostile_tag_is_text(tag):
    history = History()
    history.add([Reading(1, tag, 0.5), Reading(1, f"{tag}/units", np.ones(2))])
    page = io.StringIO()
    Console(file=page, width=200, force_terminal=True, color_system=None).print(history)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\ud800-\udfff]", page.getvalue())
    if tag.startswith("[red]"):
        assert tag in page.getvalue()


def test_an_empty_history_says_so():
    assert printed(History()) == "History(empty)\n"


def test_thousands_of_tags_are_counted():
    history = History()
    history.add(Reading(1, f"dormancy/layer/{layer}/tau=0.1", 0.1) for layer in range(5_000))
    lines = printed(history).splitlines()
    assert len(lines) < 80
    assert lines[-1] == "and 4,940 more tags: history.tags() lists them"
