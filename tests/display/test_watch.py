"""A watch shows what the doctor and the history say, and showing it changes nothing."""

import io

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.instrument import Event
from tests.display.pages import HOSTILE, figure, parsed, skeleton, tables, text
from tests.models import mlp
from tests.training import everything, identical, seeded, train


def loss(model: nn.Module) -> Tensor:
    x = torch.randn(16, 6)
    return F.mse_loss(model(x), x[:, :2].sin())


class Broken(dp.Probe):
    name = "broken"

    def fire(self, site):
        raise RuntimeError("<b>it</b> broke")

    def report(self):
        return [f"remark {number}" for number in range(6)]


def instruments() -> list[dp.Probe | dp.Treatment]:
    return [dp.Dormancy(every=10), dp.Rank(every=7), dp.ReDo(every=20, tau=0.5)]


def watched(updates: int = 45, *more) -> dp.Watch:
    seeded()
    model = mlp(6, 16, 12, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    watch = dp.watch(model, optimizer, [*instruments(), *more])
    train(model, optimizer, loss, updates)
    return watch


def printed(what: object, width: int = 160) -> str:
    page = io.StringIO()
    Console(file=page, width=width).print(what)
    return page.getvalue()


def test_instruments_layers_and_figures_are_those_of_the_run():
    with watched() as watch:
        page, terminal = watch._repr_html_(), printed(watch)
    shown = tables(page)
    heads, *rows = shown["Instruments"]
    assert heads == ["instrument", "schedule", "fired", "last at", "next at", "remarks"]
    facts = {row[0]: row[2:5] for row in rows}
    assert facts == {
        "dormancy": ["5", "40", "50"],  # at 1, 10, 20, 30, 40
        "rank": ["7", "42", "49"],  # at 1, 7, 14, 21, 28, 35, 42
        "redo": ["2", "40", "60"],
    }
    assert rows[0][1].startswith("every 10 updates and at 1; rides on")
    for row in shown["Newest figures"][1:]:
        assert figure(row[2]) == pytest.approx(watch.history.latest(row[0]), rel=5e-5)
        assert int(row[1]) == watch.history.series(row[0])[0][-1]
    scalars = [tag for tag in watch.history.tags() if not tag.startswith("dormancy/scores/")]
    assert sorted(row[0] for row in shown["Newest figures"][1:]) == scalars
    folds = [text(fold) for fold in parsed(page).iter("summary")]
    assert folds == ["Layers that are read: 2", "Layers that are not: 1"]
    whole = text(parsed(page))
    for words in (
        "Watch(update 45, dormancy, rank, redo) on Sequential",
        "output of 1",
        "an output layer: nothing that is learned reads its units",
        "update 20: recycled ",
    ):
        assert words in whole and words in terminal
    assert "next at 50" in str(watch.doctor())  # the same source


def test_a_closed_watch_says_so_and_expects_nothing():
    watch = watched()
    watch.close()
    rows = tables(watch._repr_html_())["Instruments"][1:]
    assert {row[4] for row in rows} == {"closed"}
    assert "Watch(update 45, dormancy, rank, redo, closed) on" in text(parsed(watch._repr_html_()))
    assert "redo, closed) on Sequential" in printed(watch)
    assert "\n" not in repr(watch)


def test_a_watch_that_has_seen_nothing_is_shown():
    model = mlp(3, 4, 1)
    with dp.watch(model, torch.optim.SGD(model.parameters()), dp.Dormancy(every=10)) as watch:
        page = watch._repr_html_()
        assert tables(page)["Instruments"][1][2:5] == ["0", "never", "1"]
        assert "Nothing is measured: no forward pass" in text(parsed(page))
        assert "History(empty)" in printed(watch)


def test_what_is_disabled_says_why_and_is_text():
    with pytest.warns(dp.DynamoProbeWarning, match="broke"):
        watch = watched(5, Broken(every=5))
    page = watch._repr_html_()
    (row,) = [row for row in tables(page)["Instruments"] if row[0] == "broken"]
    assert row[5].startswith("disabled: ") and "<b>it</b> broke" in row[5]
    assert "remark 2" in row[5] and "remark 3" not in row[5] and row[5].endswith("and 3 more")
    assert "<b>it" not in page
    assert "<b>it</b> broke" in printed(watch)
    watch.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_events_and_instruments_are_text(name):
    def page(words: str) -> str:
        probe = Broken(every=1000)
        probe.name = words
        with watched(1, probe) as watch:
            watch.events.append(Event(1, words, words, {words: [words] * 1000}))
            assert "\x1b" not in printed(watch)
            return watch._repr_html_()

    if name.strip():  # a watch may well refuse a name that is none
        shown = page(name)
        assert skeleton(shown) == skeleton(page("a"))
        assert len(shown) < 40_000


def test_only_the_last_events_and_some_layers_are_shown_and_the_others_counted():
    model = mlp(4, *[5] * 30, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with dp.watch(model, optimizer, dp.Dormancy(every=10)) as watch:
        train(model, optimizer, lambda m: m(torch.randn(8, 4)).square().mean(), 2)
        watch.events += [Event(step, "note", f"subject {step}") for step in range(5_000)]
        page, terminal = watch._repr_html_(), printed(watch)
    whole = text(parsed(page))
    assert "Layers that are read: 30" in whole
    assert "and 10 more: print(watch.doctor())" in whole
    assert "subject 4999" in whole and "subject 4992" in whole and "subject 4991" not in whole
    assert f"{len(watch.events) - 8:,} before these" in whole
    assert "subject 4991" not in terminal and "and 10 more: print(watch.doctor())" in terminal
    assert len(page) < 100_000


def test_showing_it_at_every_update_leaves_the_run_bit_identical():
    runs = []
    for shown in (False, True):
        seeded()
        model = mlp(6, 16, 12, 2)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        with dp.watch(model, optimizer, instruments(), on_error="raise") as watch:

            def look(model: nn.Module, watch=watch, shown=shown) -> Tensor:
                if shown:
                    watch._repr_html_()
                    watch.history._repr_html_()
                    printed(watch)
                    if len(watch.history):
                        from matplotlib.figure import Figure

                        watch.history.plot(ax=Figure().add_subplot())
                return loss(model)

            train(model, optimizer, look, 45)
            state = watch.state_dict()
        runs.append((everything([model], [optimizer]), state, watch))
    (plain, before, first), (seen, after, second) = runs
    assert identical(plain, seen)
    assert [str(event) for event in first.events] == [str(event) for event in second.events]
    assert first.history.tags() == second.history.tags()
    for tag in first.history.tags():
        for a, b in zip(first.history.series(tag), second.history.series(tag), strict=True):
            assert a.tobytes() == b.tobytes()
    assert before["history"]["scalars"].keys() == after["history"]["scalars"].keys()
    assert repr(before["instruments"]) == repr(after["instruments"])
