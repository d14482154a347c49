"""Alerts: the latch against a naive state machine, when they look, resuming, callbacks."""

import copy
import io
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dynamo_probe as dp
from tests.models import mlp, plant_dead
from tests.training import everything, identical, seeded, train

pytestmark = pytest.mark.filterwarnings("ignore::dynamo_probe.DynamoProbeWarning")


def loss(net: torch.nn.Module) -> torch.Tensor:
    return net(torch.randn(8, 4)).square().mean()


def small() -> tuple[torch.nn.Sequential, torch.optim.Adam]:
    torch.manual_seed(0)
    net = mlp(4, 8, 6, 1)
    return net, torch.optim.Adam(net.parameters(), 1e-2)


class Script(dp.Probe):
    """Emits what it was told to, one row of {tag: value} at each of its updates."""

    name = "script"

    def __init__(self, rows: Sequence[dict[str, object]], every: int = 1) -> None:
        super().__init__(every)
        self.rows = list(rows)

    def fire(self, site: dp.Site) -> None:
        for tag, value in self.rows[site.step // self.schedule.n - 1].items():  # type: ignore
            site.emit(tag, value)  # type: ignore[arg-type]


class Emitting(dp.Treatment):
    """Emits 1 at every update, or finds nothing to treat."""

    name = "emitting"

    def __init__(self, every: int = 1, *, idle: bool = False) -> None:
        super().__init__(every)
        self.idle = idle
        self.log: list[int] = []

    def fire(self, site: dp.Site) -> None:
        self.log.append(len(site.events))
        if self.idle:
            raise dp.NotMeasurable("nothing to do")
        site.emit("emitting/recycled_total", 1.0)


def run(instruments: Sequence[dp.Instrument], updates: int, on_error: str = "raise") -> dp.Watch:
    net, optimizer = small()
    with dp.watch(net, optimizer, instruments, on_error=on_error) as watch:  # type: ignore
        train(net, optimizer, loss, updates)
    return watch


def transitions(watch: dp.Watch) -> list[tuple[int, str]]:
    kinds = {"alert": "raised", "note": "ended"}
    return [(e.step, kinds[e.kind]) for e in watch.events if "rule" in e.detail]


def judged(values: Sequence[float], alert: dp.Alert, every: int = 1) -> list[tuple[int, str]]:
    """Feed values to an alert through a bare site, and return what it did."""
    site = dp.Site(torch.nn.Identity(), [], None, None, 0)
    for number, value in enumerate(values, 1):
        site.step = number * every
        site.fresh = [dp.Reading(site.step, "x", value)]
        alert.fire(site)
    kinds = {"alert": "raised", "note": "ended"}
    return [(e.step, kinds[e.kind]) for e in site.events]


def naive(
    values: Sequence[float], above: float, clear: float, lasting: int, every: int
) -> list[tuple[int, str]]:
    """Say the same by looking back over all readings at each one, from the definition."""
    found: list[tuple[int, str]] = []
    seen = [(k * every, v) for k, v in enumerate(values, 1) if not math.isnan(v)]
    raised = False
    for place, (step, value) in enumerate(seen):
        row = []
        for earlier in reversed(seen[: place + 1]):
            if not earlier[1] > above:
                break
            row.append(earlier[0])
        if not raised and row and step - min(row) >= lasting:
            raised = True
            found.append((step, "raised"))
        elif raised and value <= clear:
            raised = False
            found.append((step, "ended"))
    return found


levels = st.sampled_from([-math.inf, 0.0, 0.1, 0.2, 0.25, 0.3, 0.31, 1.0, math.inf, math.nan])


@given(st.lists(levels, max_size=40), st.sampled_from([0.1, 0.2, 0.3]), st.integers(0, 50),
       st.sampled_from([1, 10]))  # fmt: skip
def test_the_latch_does_what_a_search_through_all_readings_says(
    values: list[float], clear: float, lasting: int, every: int
) -> None:
    alert = dp.Alert("x", above=0.3, clear=clear, for_updates=lasting)
    assert judged(values, alert, every) == naive(values, 0.3, clear, lasting, every)


@given(st.lists(levels, max_size=40), st.sampled_from([0.1, 0.2, 0.3]), st.integers(0, 5))
def test_below_is_above_of_the_negative(values: list[float], clear: float, lasting: int) -> None:
    alert = dp.Alert("x", below=-0.3, clear=-clear, for_updates=lasting)
    assert judged([-v for v in values], alert) == naive(values, 0.3, clear, lasting, 1)


@given(
    st.lists(levels, max_size=30), st.integers(0, 30), st.sampled_from(["first", "median", None])
)
def test_it_goes_on_from_a_saved_state_as_if_nothing_had_happened(
    values: list[float], cut: int, relative_to: str | None
) -> None:
    def fresh() -> dp.Alert:
        return dp.Alert(
            "x", above=1.2, clear=1, for_updates=3, relative_to=relative_to, window=3  # type: ignore
        )  # fmt: skip

    def at(alert: dp.Alert, start: int, part: Sequence[float]) -> list[str]:
        site = dp.Site(torch.nn.Identity(), [], None, None, 0)
        for step, value in enumerate(part, start):
            site.step, site.fresh = step, [dp.Reading(step, "x", value)]
            alert.fire(site)
        return list(map(str, site.events))

    whole = fresh()
    expected = at(whole, 1, values)
    first, second = fresh(), fresh()
    found = at(first, 1, values[:cut])
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second.load_state_dict(torch.load(saved, weights_only=True))
    assert found + at(second, 1 + len(values[:cut]), values[cut:]) == expected
    assert second.report() == whole.report()


def test_the_readings_behind_a_median_are_part_of_the_state() -> None:
    first, second = (dp.Alert("x", above=4, relative_to="median", window=3) for _ in range(2))
    assert judged([1.0, 1.0, 1.0], first) == []
    second.load_state_dict(first.state_dict())
    assert judged([5.0], second) == [(1, "raised")]
    assert judged([5.0], dp.Alert("x", above=4, relative_to="median", window=3)) == []


def test_a_watch_saved_in_the_middle_of_a_wait_raises_at_the_same_update() -> None:
    rows = [{"x": float(step >= 3)} for step in range(1, 13)]

    def instruments() -> list[dp.Instrument]:
        return [Script(rows), dp.Alert("x", above=0.5, for_updates=5)]

    net, optimizer = small()
    with dp.watch(net, optimizer, instruments(), on_error="raise") as first:
        train(net, optimizer, loss, 5)
        saved = copy.deepcopy(first.state_dict())
    with dp.watch(net, optimizer, instruments(), on_error="raise") as second:
        second.load_state_dict(saved)
        train(net, optimizer, loss, 7)
    assert transitions(first) == []
    assert transitions(second) == transitions(run(instruments(), 12)) == [(8, "raised")]


def test_it_sees_this_updates_readings_before_treatments_act_and_theirs_after() -> None:
    seen: list[tuple[int, str]] = []
    treatment = Emitting()
    alerts = [
        dp.Alert("x", above=0, then=lambda e: seen.append((e.step, e.subject))),
        dp.Alert("emitting/*", above=0, then=lambda e: seen.append((e.step, e.subject))),
    ]
    run([treatment, *alerts, Script([{"x": 1.0}, {"x": 1.0}])], 2)
    assert seen == [(1, "x"), (1, "emitting/recycled_total")]
    assert treatment.log[0] == 1  # the alert on x was raised before the treatment fired


def test_at_updates_without_readings_the_watch_does_no_work_for_it() -> None:
    alert = dp.Alert("x", above=0.5)
    net, optimizer = small()
    with dp.watch(net, optimizer, [Script([{"x": 0.0}] * 3, every=100), alert]) as watch:
        train(net, optimizer, loss, 2)
        assert watch._agenda.wake == 100
        train(net, optimizer, loss, 298)
    report = {one.name: (one.fired, one.last) for one in watch.doctor().instruments}
    assert report["alert/x"] == (3, 300)
    assert "fired 3 times; last at update 300, next with the readings" in str(watch.doctor())


def test_a_raised_alert_is_told_once_as_event_warning_and_call() -> None:
    called: list[dp.Event] = []
    alert = dp.Alert("dormancy/tau=0.1", above=0.3, for_updates=2, then=called.append)
    net, optimizer = small()
    plant_dead(net[0], 0, 1, 2, 3, 4)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with dp.watch(net, optimizer, [dp.Dormancy(every=1), alert], on_error="raise") as watch:
            train(net, optimizer, loss, 6)
    [event] = [e for e in watch.events if e.kind == "alert"]
    assert called == [event]
    steps, values = watch.history.series("dormancy/tau=0.1")
    assert (event.step, event.subject) == (3, "dormancy/tau=0.1")
    assert event.detail["value"] == values[steps == 3][0] and event.detail["since"] == 1
    [warning] = caught
    assert warning.category is dp.DynamoProbeWarning
    assert "update 3: alert dormancy/tau=0.1" in str(warning.message)


@pytest.mark.filterwarnings("error")
def test_a_callback_that_raises_is_told_once_and_training_and_alert_go_on() -> None:
    calls: list[int] = []

    def then(event: dp.Event) -> None:
        calls.append(event.step)
        raise OSError("no route to host")

    rows = [{"x": float(step % 2)} for step in range(1, 7)]
    watch = run([Script(rows), dp.Alert("x", above=0.5, then=then)], 6)
    assert watch.step == 6
    assert calls == [1, 3, 5]
    told = [e for e in watch.events if "callback failed" in str(e.detail.get("reason"))]
    assert [e.step for e in told] == [1]
    assert not any(e.kind == "disabled" for e in watch.events)


def test_a_callback_may_end_the_training_and_the_readings_are_kept() -> None:
    def then(event: dp.Event) -> None:
        raise SystemExit(7)

    net, optimizer = small()
    watch = dp.watch(net, optimizer, [Script([{"x": 1.0}] * 3), dp.Alert("x", above=0, then=then)])
    with pytest.raises(SystemExit), watch:
        train(net, optimizer, loss, 3)
    assert watch.step == 1
    assert watch.history.latest("x") == 1.0
    assert [e.kind for e in watch.events] == ["alert"]


def test_a_star_judges_each_tag_by_itself() -> None:
    rows = [{"a/1": 1.0, "a/2": 0.0, "b": 9.0}, {"a/1": 1.0, "a/2": 1.0, "b": 9.0}]
    watch = run([Script(rows), dp.Alert("a/*", above=0.5)], 2)
    assert [(e.step, e.subject) for e in watch.events] == [(1, "a/1"), (2, "a/2")]


def test_other_signs_in_a_tag_stand_for_themselves() -> None:
    rows = [{"x[0].y": 1.0, "x0.y": 1.0, "x[0]zy": 1.0}]
    watch = run([Script(rows), dp.Alert("x[0].y", above=0.5)], 1)
    assert [e.subject for e in watch.events] == ["x[0].y"]


def test_a_tag_that_nothing_reads_is_in_the_doctors_report() -> None:
    watch = run([Script([{"x": 1.0}]), dp.Alert("y", above=0.5)], 1)
    assert "nothing was read under 'y' yet" in str(watch.doctor())


def test_a_run_with_alerts_is_bit_identical_to_the_run_without() -> None:
    runs = []
    for watched in (False, True):
        seeded()
        net, optimizer = small()
        instruments = [
            dp.Dormancy(every=2),
            dp.Rank(every=3),
            dp.Alert("dormancy/*", above=-1.0),
            dp.alerts.rank_collapse(0.99),
            dp.alerts.non_finite(),
        ]
        watch = dp.watch(net, optimizer, instruments, on_error="raise") if watched else None
        train(net, optimizer, loss, 20)
        if watch is not None:
            watch.close()
            assert any(e.kind == "alert" for e in watch.events)
        runs.append(everything([net], [optimizer]))
    assert identical(*runs)


def test_a_copy_made_by_the_decorator_calls_the_users_own_object() -> None:
    class Pager:
        def __init__(self) -> None:
            self.pages = 0

        def page(self, event: dp.Event) -> None:
            self.pages += 1

    pager = Pager()

    @dp.watched([dp.Dormancy(every=1), dp.Alert("dormancy/samples", above=0, then=pager.page)])
    def fit(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        train(net, optimizer, loss, 2)

    fit(*small())
    fit(*small())
    assert pager.pages == 2


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "either above= or below="),
        ({"above": 1, "below": 0}, "either above= or below="),
        ({"above": 1, "clear": 2}, "at most 1"),
        ({"below": 1, "clear": 0}, "at least 1"),
        ({"above": math.nan}, "give a number"),
        ({"above": 1, "for_updates": -1}, "for_updates"),
        ({"above": 1, "window": 1}, "window"),
        ({"above": 1, "relative_to": "mean"}, "'first', 'median'"),
    ],
)
def test_what_cannot_be_meant_is_refused(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.Alert("x", **keywords)  # type: ignore[arg-type]


# --- the ready-made rules -------------------------------------------------------------------------


def test_dead_layer_names_the_layer_whose_units_are_all_dead() -> None:
    net, optimizer = small()
    plant_dead(net[2], *range(6))  # type: ignore[arg-type]
    with dp.watch(net, optimizer, [dp.Dormancy(every=1), dp.alerts.dead_layer()]) as watch:
        train(net, optimizer, loss, 2)
    assert [(e.kind, e.subject) for e in watch.events] == [("alert", "dormancy/layer/2/tau=0.0")]


def test_rank_collapse_compares_with_the_first_reading_of_each_layer() -> None:
    rows = [
        {"rank/0/effective": 8.0, "rank/2/effective": 2.0, "rank/0/stable": 8.0},
        {"rank/0/effective": 4.1, "rank/2/effective": 2.0, "rank/0/stable": 1.0},
        {"rank/0/effective": 3.9, "rank/2/effective": 2.0, "rank/0/stable": 1.0},
        {"rank/0/effective": 4.3, "rank/2/effective": 2.0, "rank/0/stable": 1.0},
        {"rank/0/effective": 4.5, "rank/2/effective": 0.9, "rank/0/stable": 1.0},
    ]
    watch = run([Script(rows), dp.alerts.rank_collapse(0.5)], 5)
    assert [(e.step, e.kind, e.subject) for e in watch.events] == [
        (3, "alert", "rank/0/effective"),
        (5, "note", "rank/0/effective"),
        (5, "alert", "rank/2/effective"),
    ]


def test_damage_and_repeated_data_are_told_and_end_at_half() -> None:
    rows = [
        {"induction/damage": damage, "repetition/fraction": fraction}
        for damage, fraction in ((0.0, 0.0), (0.29, 0.1), (0.31, 0.11), (0.2, 0.06), (0.1, 0.04))
    ]
    alerts = [dp.alerts.induction_damage(), dp.alerts.repeated_data()]
    watch = run([Script(rows), *alerts], 5)
    assert [(e.step, e.kind, e.subject) for e in watch.events] == [
        (3, "alert", "induction/damage"),
        (3, "alert", "repetition/fraction"),
        (5, "note", "induction/damage"),
        (5, "note", "repetition/fraction"),
    ]


def test_a_gradient_spike_is_judged_against_the_median_of_the_readings_before_it() -> None:
    generator = np.random.default_rng(0)
    values = np.exp(generator.normal(size=200))
    values[[50, 120, 121]] *= 40
    expected, raised = [], False
    for place in range(8, 200):
        ratio = values[place] / np.median(values[place - 8 : place])
        if not raised and ratio > 10:
            expected.append((place + 1, "raised"))
            raised = True
        elif raised and ratio <= 5:
            expected.append((place + 1, "ended"))
            raised = False
    alert = dp.alerts.gradient_spike(10, tag="x", window=8)
    assert judged(values.tolist(), alert) == expected
    assert {51, 121} <= {step for step, what in expected if what == "raised"}


def test_a_gradient_spike_is_seen_before_clipping_hides_it() -> None:
    net, optimizer = small()
    x = torch.randn(8, 4)
    instruments = [dp.Gradients(every=1), dp.alerts.gradient_spike(window=4)]
    with dp.watch(net, optimizer, instruments, on_error="raise") as watch:
        for update in range(1, 9):
            optimizer.zero_grad()
            (net(x).square().mean() * (1000 if update == 7 else 1)).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
            optimizer.step()
    assert [e.step for e in watch.events if e.kind == "alert"] == [7]


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.array([1.0, -math.inf, math.nan])])
def test_non_finite_values_are_told_in_numbers_and_in_figures_per_unit(bad: object) -> None:
    fine = np.ones(3) if isinstance(bad, np.ndarray) else 1.0
    watch = run([Script([{"x": fine}, {"x": bad}, {"x": bad}, {"x": fine}]),
                 dp.alerts.non_finite()], 4)  # fmt: skip
    assert transitions(watch) == [(2, "raised"), (4, "ended")]
    assert watch.events[0].detail["value"] == (2 if isinstance(bad, np.ndarray) else 1)


def test_units_whose_activations_are_not_finite_are_told() -> None:
    net, optimizer = small()
    with torch.no_grad():
        net[0].weight[0] = math.nan  # type: ignore[index]
    instruments = [dp.Dormancy(every=1), dp.alerts.non_finite("dormancy/nonfinite")]
    with dp.watch(net, optimizer, instruments) as watch:
        train(net, optimizer, loss, 1)
    [event] = [e for e in watch.events if e.subject == "dormancy/nonfinite"]
    assert event.detail["value"] == 7  # one unit of the first layer, and all six behind it


@pytest.mark.parametrize(
    ("treatment", "expected"),
    [
        (Emitting(every=3), []),
        (Emitting(every=3, idle=True), [(10, "raised")]),
        (Emitting(every=10**6), [(10, "raised")]),
    ],
)
def test_a_treatment_that_never_treats_is_told_even_if_it_is_never_due(
    treatment: Emitting, expected: list[tuple[int, str]]
) -> None:
    rule = dp.alerts.idle_treatment("emitting", for_updates=10)
    watch = run([copy.deepcopy(treatment), rule], 25)
    assert transitions(watch) == expected


def test_a_redo_that_never_finds_a_dormant_unit_is_told() -> None:
    instruments = [dp.ReDo(every=2, tau=0.0), dp.alerts.idle_treatment(for_updates=6)]
    watch = run(instruments, 12)
    assert watch.history.latest("redo/recycled_total") == 0
    assert transitions(watch) == [(6, "raised")]
