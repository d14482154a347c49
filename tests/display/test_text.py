"""Names and numbers are written short and harmless."""

import math
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.display.text import number, visible


@given(st.text(st.characters(), max_size=200), st.integers(3, 120))
def test_whatever_is_in_a_name_only_glyphs_and_spaces_come_out_and_not_too_many(name, most):
    shown = visible(name, most)
    assert len(shown) <= most
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not [c for c in shown if unicodedata.category(c) in hidden]
    shown.encode("utf-8")


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=80))
def test_a_plain_name_stays_as_it_is(name):
    assert visible(name) == name


def test_of_a_long_name_both_ends_stay():
    shown = visible("first/" + "x" * 10_000 + "/last")
    assert len(shown) == 80 and shown.startswith("first/x") and shown.endswith("x/last")


def test_escapes_and_turned_writing_are_written_out():
    assert visible("a\x1b[2Jb\u202ec\n\ud800") == r"a\x1b[2Jb\u202ec\n\ud800"


@given(st.floats(-1.797e308, 1.797e308) | st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_number_reads_back_to_five_digits(value):
    read = float(number(value).replace(",", ""))
    if math.isnan(value):
        assert math.isnan(read)
    elif math.isinf(value):
        assert read == value
    else:
        assert abs(read - value) <= 5.1e-5 * abs(value)


@given(st.integers(-(10**14), 10**14))
def test_a_count_is_written_in_full(count):
    assert int(number(float(count)).replace(",", "")) == count
