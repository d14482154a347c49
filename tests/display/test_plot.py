"""What `History.plot` draws is the series, and what it cannot draw it refuses with the fix."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dynamo_probe.instrument import Reading
from dynamo_probe.sinks import History
from tests.display.pages import HOSTILE, filled


@pytest.fixture
def ax():
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def lines(axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): line.get_data() for line in axes.get_lines()}


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_by_default_the_pooled_figures_are_drawn_as_they_were_read(ax):
    history = filled()
    assert history.plot(ax=ax) is ax
    drawn = lines(ax)
    assert list(drawn) == ["dormancy/tau=0.1", "rank/stable", "redo/recycled_total"]
    steps, values = drawn["dormancy/tau=0.1"]
    assert steps.tolist() == list(range(10, 210, 10))
    assert values.tolist() == [step / 1000 for step in range(10, 210, 10)]
    assert ax.get_xlabel() == "updates" and ax.get_ylabel() == "value"
    assert legend(ax) == list(drawn)
    ax.figure.canvas.draw()


def test_one_tag_names_the_axis(ax):
    filled().plot("dormancy/layer/fc1/tau=0.1", ax)
    steps, values = lines(ax)["dormancy/layer/fc1/tau=0.1"]
    assert values.tolist() == [1 / step for step in steps]
    assert ax.get_ylabel() == "dormancy/layer/fc1/tau=0.1"


def test_several_tags_are_drawn_in_the_order_given_and_once(ax):
    filled().plot(["rank/stable", "dormancy/tau=0.1", "rank/*"], ax)
    assert list(lines(ax)) == ["rank/stable", "dormancy/tau=0.1"]


def test_a_pattern_means_tags_with_one_figure(ax):
    history = filled()
    history.add([Reading(1, "dormancy/layer/fc2/tau=0.1", 0.5), Reading(1, "Dormancy/x", 0.5)])
    history.plot("dormancy/*", ax)
    assert list(lines(ax)) == [
        "dormancy/layer/fc1/tau=0.1",
        "dormancy/layer/fc2/tau=0.1",
        "dormancy/tau=0.1",
    ]
    assert ax.get_ylabel() == "dormancy"


def test_a_tag_that_was_read_is_no_pattern(ax):
    history = History()
    history.add([Reading(1, "heads/[0]*", 1.0), Reading(1, "heads/0", 2.0)])
    history.plot("heads/[0]*", ax)
    assert {label: y.tolist() for label, (_, y) in lines(ax).items()} == {"heads/[0]*": [1.0]}


def test_a_logarithmic_axis_has_a_place_for_update_0(ax):
    filled().plot(ax=ax, logx=True)
    assert ax.get_xscale() == "log"
    history = filled()
    history.add(Reading(step, "plasticity/before", 1.0) for step in (0, 10))
    history.plot("plasticity/before", ax, logx=True)
    assert ax.get_xscale() == "symlog"
    ax.figure.canvas.draw()
    assert ax.transData.transform((0, 1.0))[0] < ax.transData.transform((1, 1.0))[0]


def test_what_is_not_finite_is_drawn_as_a_gap(ax):
    history = History()
    values = [1.0, np.nan, 2.0, np.inf, 3.0]
    history.add(Reading(step, "loss", value) for step, value in enumerate(values))
    history.plot("loss", ax)
    np.testing.assert_array_equal(lines(ax)["loss"][1], values)
    ax.figure.canvas.draw()
    assert ax.get_ylim()[1] < 4


def test_an_unknown_tag_is_the_error_of_series(ax):
    with pytest.raises(KeyError, match="did you mean 'rank/stable'"):
        filled().plot("rank/stabel", ax)
    with pytest.raises(KeyError, match="no tag matches 'nothing/\\*'; tags"):
        filled().plot(["rank/stable", "nothing/*"], ax)
    assert not ax.get_lines()


@pytest.mark.parametrize("tags", ["dormancy/scores/fc1", "dormancy/scores/*"])
def test_figures_per_unit_are_refused_with_the_fix(ax, tags):
    with pytest.raises(ValueError, match=r"one figure per unit.*ax\.hist\(history\.latest\('dorm"):
        filled().plot(["rank/stable", tags], ax)
    assert not ax.get_lines()


def test_nothing_to_draw_is_said(ax):
    with pytest.raises(ValueError, match="nothing was read at all so far"):
        History().plot(ax=ax)
    with pytest.raises(ValueError, match="tags is empty"):
        filled().plot([], ax)
    history = History()
    history.add([Reading(1, "loss", 1.0), Reading(1, "scores/fc1", np.ones(2))])
    with pytest.raises(ValueError, match="give tags="):
        history.plot(ax=ax)


def test_many_lines_have_a_short_legend(ax):
    history = History()
    history.add(Reading(1, f"dormancy/layer/{n:03}/tau=0.1", 0.1) for n in range(300))
    history.plot("dormancy/layer/*", ax)
    assert len(lines(ax)) == 300
    assert legend(ax) == [f"dormancy/layer/{n:03}/tau=0.1" for n in range(20)]
    assert ax.get_legend().get_title().get_text() == "the first 20 of 300"


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")  # the tests' font
@pytest.mark.parametrize("tag", [tag for tag in HOSTILE if tag.strip()])
def test_a_hostile_tag_is_drawn_as_text(ax, tag):
    history = History()
    history.add([Reading(1, tag, 1.0), Reading(2, tag, 2.0), Reading(1, "plain/tag", 1.0)])
    history.plot([tag, "plain/tag"], ax)
    assert len(legend(ax)) == 2
    ax.figure.canvas.draw()


def test_without_axes_the_current_ones_of_pyplot_are_used():
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure()
    try:
        first = pyplot.subplot(1, 2, 1)
        assert filled().plot() is first
        assert filled().plot("rank/stable") is first
        assert len(first.get_lines()) == 4
        assert len(figure.get_axes()) == 1
    finally:
        pyplot.close(figure)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"dynamo-probe\[report\]") as error:
        filled().plot()
    assert error.value.name == "matplotlib"


def test_given_axes_need_no_pyplot_and_a_notebook_needs_neither_rich_nor_matplotlib():
    code = """
import sys
from dynamo_probe.instrument import Reading
from dynamo_probe.sinks import History
before = {"rich", "matplotlib", "matplotlib.pyplot"} & set(sys.modules)
history = History()
history.add([Reading(1, "rank/stable", 1.0)])
history._repr_html_(), repr(history)
assert {"rich", "matplotlib", "matplotlib.pyplot"} & set(sys.modules) == before, "notebook"
from matplotlib.figure import Figure
history.plot(ax=Figure().add_subplot())
assert "matplotlib.pyplot" not in sys.modules or "matplotlib.pyplot" in before, "pyplot"
print(sorted(before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
