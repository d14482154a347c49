"""The detector of repeated data in whole training runs, against what was planted."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.observation.sketch import Sketch
from dynamo_probe.probes.repetition import Repetition
from tests.distributed import RANKS, on_two_ranks
from tests.training import everything, identical, seeded

VOCABULARY, ROWS, LENGTH = 60, 4, 64


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.middle, self.drop, self.out = (
            nn.Linear(8, 8),
            nn.Dropout(0.1),
            nn.Linear(8, VOCABULARY),
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.out(self.drop(torch.relu(self.middle(self.embed(input_ids)))))


def fresh(updates: int, seed: int = 0, rows: int = ROWS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(1, VOCABULARY, (updates, rows, LENGTH), generator=generator))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    optimizer.zero_grad()
    logits = model(batch)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).backward()
    optimizer.step()


def trained(
    batches: Iterable[Tensor], *probes: dp.Probe, state: dict[str, Any] | None = None, **keywords
) -> dp.Watch:
    seeded()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    keywords.setdefault("on_error", "raise")
    with dp.watch(model, optimizer, probes, **keywords) as watch:
        if state is not None:
            watch.load_state_dict(state)
        for batch in batches:
            step(model, optimizer, batch)
    return watch


def alerts(watch: dp.Watch) -> list[tuple[int, str]]:
    return [(e.step, e.subject) for e in watch.events if e.kind == "alert"]


def skipped(watch: dp.Watch) -> list[str]:
    return [e.detail["reason"] for e in watch.events if e.kind == "skipped"]


def series(watch: dp.Watch, tag: str) -> dict[int, float]:
    steps, values = watch.history.series(f"repetition/{tag}")
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def test_fractions_and_repeat_counts_are_those_of_what_was_planted() -> None:
    generator = np.random.default_rng(0)
    pool, stream = fresh(1, seed=1, rows=6)[0], fresh(20)
    counter: Counter[int] = Counter()
    expected: dict[int, Counter[int]] = {}
    for update, batch in enumerate(stream, 1):
        for row in range(int(generator.integers(ROWS + 1))):
            k = int(generator.integers(6))
            batch[row] = pool[k]
            counter[k] += 1
            expected.setdefault(update, Counter())[counter[k]] += 1
    watch = trained(stream, Repetition(every=5))
    fractions = series(watch, "fraction")
    for update in (5, 10, 15, 20):
        counts: Counter[int] = sum(
            (expected.get(update - i, Counter()) for i in range(5)), Counter()
        )
        assert fractions[update] == sum(n for e, n in counts.items() if e > 1) / (5 * ROWS)
        for low, high in ((2, 2), (3, 4), (5, 8), (9, 16)):
            tag = f"repeats={low}" if low == high else f"repeats={low}-{high}"
            found = series(watch, tag) if f"repetition/{tag}" in watch.history.tags() else {}
            wanted = sum(n for e, n in counts.items() if low <= e <= high) / (5 * ROWS)
            assert found.get(update, 0.0) == wanted
    assert "repetition/repeats=unknown" not in watch.history.tags()
    assert set(series(watch, "tokens").values()) == {5 * ROWS * LENGTH}


def test_origins_say_which_row_was_seen_where() -> None:
    stream = fresh(6)
    stream[5][2] = stream[1][3]
    stream[5][3, 20:] = stream[4][0, :44]
    probe = Repetition(every=1)
    trained(stream, probe)
    places = {o.row: (o.first_update, o.first_row, o.share) for o in probe.origins}
    assert places == {2: (2, 3, 1.0), 3: (5, 0, 32 / 64)}


def test_losses_by_repeat_count_are_those_of_the_models_own_logits() -> None:
    stream = fresh(3)
    stream[1][:2] = stream[0][:2]
    stream[2][:3] = torch.stack([stream[0][0], stream[0][1], stream[0][0]])
    seen: list[Tensor] = []

    class Kept(Net):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            logits = super().forward(input_ids)
            seen.append(logits.detach().double().log_softmax(-1))
            return logits

    seeded()
    model = Kept()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    with dp.watch(model, optimizer, Repetition(every=3), on_error="raise") as watch:
        for batch in stream:
            step(model, optimizer, batch)
    rows = -seen[-1][:, :-1].gather(-1, stream[2][:, 1:, None])[..., 0]
    expected = {
        "fresh": rows[3],
        "repeated": rows[:3],
        "repeats=3-4": rows[:3],
    }
    found = {t.split("loss/")[1]: t for t in watch.history.tags() if "loss" in t}
    assert found.keys() == expected.keys()
    for name, tag in found.items():
        assert watch.history.latest(tag) == pytest.approx(float(expected[name].mean()), rel=1e-5)
        assert watch.history.samples(tag) == expected[name].numel()
    assert "repetition/loss/repeats=2" not in found


def test_losses_from_a_callable_and_no_losses() -> None:
    stream = fresh(2)
    stream[1][:2] = stream[0][:2]
    losses = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH).double()
    losses[:, 0] = torch.nan
    watch = trained(stream, Repetition(every=2, losses=lambda: losses))
    assert watch.history.latest("repetition/loss/repeated") == losses[:2, 1:].mean()
    assert watch.history.latest("repetition/loss/fresh") == losses[2:, 1:].mean()
    watch = trained(stream, Repetition(every=2, losses=False))
    assert not [t for t in watch.history.tags() if "loss" in t] and skipped(watch) == []


def test_padding_is_left_out_whether_by_id_or_by_mask() -> None:
    stream = fresh(2)
    stream[1][0] = stream[0][0]
    for batch in stream:
        batch[:, 40:] = 0
    watch = trained(stream, Repetition(every=1, pad=0))
    assert set(series(watch, "tokens").values()) == {ROWS * 40}
    assert series(watch, "fraction") == {1: 0.0, 2: 0.25}

    seeded()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with dp.watch(model, optimizer, Repetition(every=1), on_error="raise") as watch:
        for batch in stream:
            optimizer.zero_grad()
            model(batch, attention_mask=(batch != 0).long()).sum().backward()
            optimizer.step()
    assert series(watch, "fraction") == {1: 0.0, 2: 0.25}
    watch = trained([b[:, 35:] for b in stream], Repetition(every=2, pad=0))
    assert skipped(watch) == ["all pieces between padding are shorter than 8 tokens"]


def test_accumulation_and_evaluation_between_updates() -> None:
    seeded()
    model, stream = Net(), fresh(8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with dp.watch(model, optimizer, Repetition(every=1), on_error="raise") as watch:
        for update in range(4):
            optimizer.zero_grad()
            for batch in stream[2 * update : 2 * update + 2]:
                model(batch).sum().backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                model(stream[-1])
            model(stream[-1])
            model.train()
    assert set(series(watch, "tokens").values()) == {2 * ROWS * LENGTH}
    assert set(series(watch, "fraction").values()) == {0.0}


# --- what it must not do --------------------------------------------------------------------------


def test_training_is_bit_identical_with_and_without_it() -> None:
    found = []
    stream = fresh(6) * 3
    for probes in ([], [Repetition(every=1, held_out=lambda: 1.0, pad=0)]):
        seeded()
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        watch = dp.watch(model, optimizer, probes, on_error="raise") if probes else None
        for batch in stream:
            step(model, optimizer, batch)
        if watch is not None:
            watch.close()
        found.append(everything([model], [optimizer]))
        assert not model._forward_hooks and not model._forward_hooks_with_kwargs
    assert identical(*found)


def repeating(updates: int) -> list[Tensor]:
    generator = np.random.default_rng(4)
    stream = fresh(updates)
    for update in range(1, updates):
        source = stream[int(generator.integers(update))]
        stream[update][: int(generator.integers(ROWS))] = source[0]
    return stream


@pytest.mark.parametrize("cut", [1, 4, 7, 10])
def test_a_run_resumed_at_any_cut_goes_on_bit_identically(cut: int, tmp_path) -> None:
    stream = repeating(12)

    def probe() -> Repetition:
        return Repetition(every=3, memory=1 << 18, held_out=lambda: 2.0)

    whole = trained(stream, probe())
    first = trained(stream[:cut], probe())
    # The model goes on from its beginning: losses apart, nothing here depends on it.
    torch.save(first.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second = trained(stream[cut:], probe(), state=state)
    assert second.history.tags() == whole.history.tags()
    for tag in whole.history.tags():
        if "loss" not in tag:
            a, b = whole.history.series(tag), second.history.series(tag)
            assert (a[0] == b[0]).all() and (a[1] == b[1]).all(), tag
    states = [w.state_dict()["instruments"]["repetition"]["state"] for w in (whole, second)]
    assert list(map(str, whole.events)) == list(map(str, second.events))
    for a, b in zip(*map(_flat, states), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def _flat(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [x for key, value in state.items() if key != "tally" for x in _flat(value)]
    return [state]


def test_a_state_of_another_memory_is_refused() -> None:
    state = trained(fresh(2), Repetition(every=1, memory=1 << 18)).state_dict()
    for probe in (Repetition(every=1), Repetition(every=1, memory=1 << 18, ngram=16)):
        with pytest.raises(ValueError, match="it was saved with"):
            trained([], probe, state=state)


def test_memory_does_not_grow() -> None:
    seeded()
    probe, model = Repetition(every=2, memory=1 << 18), Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sizes = set()
    with dp.watch(model, optimizer, probe, on_error="raise") as watch:
        for batch in fresh(20):
            step(model, optimizer, batch)
            state = watch.state_dict()["instruments"]["repetition"]["state"]
            sizes.add(sum(t.nbytes for t in _flat(state) if isinstance(t, Tensor)))
    assert sizes == {1 << 18}


# --- alarms ---------------------------------------------------------------------------------------


def test_an_epoch_in_the_same_order_raises_an_alarm_and_shuffled_ones_do_not() -> None:
    data = torch.cat(fresh(10))
    same = trained([b for _ in range(4) for b in data.split(ROWS)], Repetition(every=10))
    assert alerts(same) == [(13, "repetition: same order")]
    detail = next(e.detail for e in same.events if e.kind == "alert")
    assert (detail["updates"], detail["first_updates"]) == ([11, 13], [1, 3])
    assert "set_epoch" in detail["reason"]
    odd = torch.cat([data, fresh(1, seed=9)[0][:2]])  # 42 rows: epochs begin inside a batch
    same = trained(torch.cat([odd] * 4).split(ROWS), Repetition(every=10))
    assert alerts(same) == [(14, "repetition: same order")]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(data), generator=generator) for _ in range(6)]
        shuffled = trained([b for o in orders for b in data[o].split(ROWS)], Repetition(every=10))
        assert alerts(shuffled) == []
        assert shuffled.history.latest("repetition/fraction") == 1.0


def test_a_replay_after_a_resume_raises_an_alarm_and_a_right_resume_does_not() -> None:
    stream = fresh(30)
    state = trained(stream[:12], Repetition(every=5)).state_dict()
    right = trained(stream[12:], Repetition(every=5), state=state)
    assert alerts(right) == []
    again = trained(stream[4:], Repetition(every=5), state=state)  # from update 5 on, again
    assert alerts(again) == [(15, "repetition: replay")]
    detail = next(e.detail for e in again.events if e.kind == "alert")
    assert (detail["updates"], detail["first_updates"]) == ([13, 15], [5, 7])
    assert "resume at update 12" in detail["reason"]
    assert alerts(trained(stream, Repetition(every=5))) == []


def test_repeat_counts_in_the_damage_region_raise_an_alarm_once() -> None:
    stream = fresh(60)
    for batch in stream:
        batch[0] = stream[0][0]
    probe = Repetition(every=10, parameters=1e12)  # damage from 0.8 to 51 repeats
    watch = trained(stream, probe)
    assert alerts(watch) == [(10, "repetition: damage region")]
    event = next(e for e in watch.events if e.kind == "alert")
    assert event.detail["fraction"] == pytest.approx(9 / 40)
    few = trained(stream, Repetition(every=10, parameters=805e6))  # from 43 repeats on
    assert few.history.latest("repetition/in_damage_region") == 0.0  # 33 to 64 is not all inside
    assert alerts(trained(fresh(20), Repetition(every=10, parameters=1e12))) == []


def test_learning_by_heart_raises_an_alarm_and_again_only_after_it_has_ended() -> None:
    stream = fresh(1) * 12
    losses = torch.full((ROWS, LENGTH), 0.01)
    held_out = iter([3.0, 2.0, 2.01, 2.1, 2.2, 1.9, 1.9, 1.9, 2.0, 2.0, None, float("nan")])
    watch = trained(
        stream,
        Repetition(every=1, losses=lambda: losses, held_out=lambda: next(held_out)),
    )
    assert alerts(watch) == [
        (4, "repetition: memorisation"),
        (9, "repetition: memorisation"),
    ]
    high = trained(
        stream,
        Repetition(every=1, losses=lambda: losses + 1, held_out=iter(range(1, 99)).__next__),
    )
    assert alerts(high) == []


# --- where it cannot measure ----------------------------------------------------------------------


def test_wrong_settings_are_refused_with_the_fix() -> None:
    for keywords, error, text in (
        ({"ngram": 4}, ValueError, "give 8 or more"),
        ({"memory": 100}, ValueError, "8 << 20"),
        ({"pad": -100}, ValueError, "0 or more, or None"),
        ({"pad": 1.5}, ValueError, "0 or more, or None"),
        ({"tokens": torch.zeros(2, 3)}, TypeError, "give a callable"),
        ({"held_out": 3.0}, TypeError, "give a callable"),
        ({"losses": 3.0}, TypeError, "True, False or a callable"),
        ({"parameters": 0}, ValueError, "give N"),
    ):
        with pytest.raises(error, match=text):
            Repetition(**keywords)
    with pytest.raises(ValueError, match="tokens 0 to 59"):
        trained([], Repetition(pad=VOCABULARY))


def test_a_model_without_tokens_is_skipped_with_advice() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with dp.watch(model, optimizer, Repetition(every=2), on_error="raise") as watch:
        for _ in range(4):
            model(torch.randn(3, 6)).sum().backward()
            optimizer.step()
        assert "give tokens=" in str(watch.doctor())
    assert watch.history.tags() == []
    assert len(skipped(watch)) == 2 and all("give tokens=" in reason for reason in skipped(watch))


def test_no_training_pass_at_all_is_skipped_with_advice() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with dp.watch(model, optimizer, Repetition(every=1), on_error="raise") as watch:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert len(skipped(watch)) == 1 and "no forward pass" in skipped(watch)[0]


@pytest.mark.parametrize("form", ["one", "list", "array"])
def test_tokens_from_a_callable(form: str) -> None:
    stream = fresh(3)
    stream[2][0] = stream[1][0]
    turn = iter(stream)

    def tokens() -> Any:
        batch = next(turn)
        return {"one": batch, "list": list(batch.split(2)), "array": batch.numpy()}[form]

    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with dp.watch(model, optimizer, Repetition(every=1, tokens=tokens), on_error="raise") as watch:
        for _ in range(3):
            model(torch.randn(3, 6)).sum().backward()
            optimizer.step()
    assert series(watch, "fraction") == {1: 0.0, 2: 0.0, 3: 1 / ROWS}
    assert len(skipped(watch)) == 1 and "give losses=" in skipped(watch)[0]


def _wrong(given: Any) -> Repetition:
    return Repetition(every=1, tokens=lambda: given, losses=False)


@pytest.mark.parametrize(
    "given, text",
    [
        (torch.zeros(2, 40), "whole numbers"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), "return \\[rows, T\\]"),
        (-torch.ones(2, 40, dtype=torch.int64), "0 or more"),
        ("text", ""),
    ],
)
def test_wrong_tokens_disable_the_probe_and_training_goes_on(given, text) -> None:
    with pytest.warns(dp.DynamoProbeWarning, match=text):
        watch = trained(fresh(3), _wrong(given), on_error="warn")
    assert watch.step == 3
    assert [e.kind for e in watch.events] == ["disabled"]


def test_a_failure_disables_the_probe_takes_its_hook_off_and_training_goes_on(monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("planted")

    seeded()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with dp.watch(model, optimizer, Repetition(every=1)) as watch:
        step(model, optimizer, fresh(1)[0])
        monkeypatch.setattr(Sketch, "see", fail)
        with pytest.warns(dp.DynamoProbeWarning, match="planted"):
            step(model, optimizer, fresh(1)[0])
        assert not model._forward_hooks
        step(model, optimizer, fresh(1)[0])
        assert watch.step == 3
    assert [(e.step, e.kind) for e in watch.events] == [(2, "disabled")]


def test_losses_that_cannot_be_had_are_skipped_once_and_the_rest_is_read() -> None:
    class Head(Net):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(input_ids).mean(dim=1)

    model = Head()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with dp.watch(model, optimizer, Repetition(every=1), on_error="raise") as watch:
        for batch in fresh(3):
            model(batch).sum().backward()
            optimizer.step()
    assert len(skipped(watch)) == 1 and "losses=" in skipped(watch)[0]
    assert series(watch, "fraction") == {1: 0.0, 2: 0.0, 3: 0.0}


def test_a_full_memory_is_said_and_then_nothing_is_read_any_more() -> None:
    generator = torch.Generator().manual_seed(0)
    stream = list(torch.randint(VOCABULARY, (20, 64, 1024), generator=generator))
    seeded()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    turn = iter(stream)
    probe = Repetition(every=1, memory=1 << 16, losses=False, tokens=lambda: next(turn))
    with dp.watch(model, optimizer, probe, on_error="raise") as watch:
        for _ in stream:
            model(fresh(1)[0]).sum().backward()
            optimizer.step()
    false = series(watch, "false")
    read = series(watch, "fraction")
    assert {step for step, share in false.items() if share <= 1e-2} == set(read)
    assert 0 < len(read) < 20 and max(read.values()) <= 2e-2
    notes = [e for e in watch.events if e.kind in ("note", "skipped")]
    assert [e.kind for e in notes] == ["note", "skipped"]
    assert all(f"memory={2 << 16}" in e.detail["reason"] for e in notes)


# --- compiled, and on several ranks ---------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("late", [False, True])
def test_under_torch_compile_the_wrapper_is_tapped(fresh_compiler, late: bool) -> None:
    seeded()
    model, stream = Net(), repeating(4)
    wrapper = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if late:
        wrapper(stream[0]).sum().backward()
    with pytest.warns(dp.DynamoProbeWarning) if late else contextlib.nullcontext():
        watch = dp.watch(wrapper, optimizer, Repetition(every=1), on_error="raise")
    with watch:
        for batch in stream:
            step(wrapper, optimizer, batch)
    expected = trained(stream, Repetition(every=1))
    assert series(watch, "fraction") == series(expected, "fraction")
    assert "repetition/loss/fresh" in watch.history.tags()


def test_model_compile_hides_the_tokens_and_that_is_said(fresh_compiler) -> None:
    model = Net()
    model.compile(backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(dp.DynamoProbeWarning):
        watch = dp.watch(model, optimizer, Repetition(every=2), on_error="raise")
    with watch:
        for batch in fresh(2):
            step(model, optimizer, batch)
    assert any("torch.compile(model)" in reason for reason in skipped(watch))
    assert watch.history.tags() == []


def test_a_compiled_train_step_is_left_whole(fresh_compiler) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with dp.watch(model, optimizer, Repetition(every=1), on_error="raise") as watch:
        loss = torch.compile(lambda x: model(x).sum(), backend="eager", fullgraph=True)
        for batch in fresh(2):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
    assert watch.history.tags() == [] and len(skipped(watch)) == 1


def shared_stream() -> list[Tensor]:
    """Repeats across updates and ranks, but none across ranks within an update."""
    generator = np.random.default_rng(5)
    stream = fresh(10)
    for update in range(1, 10):
        source = torch.cat(stream[:update])
        which = generator.choice(len(source), size=2, replace=False)
        stream[update][[0, 3]] = source[which]
    return stream


def run_shared(group: Any, stream: Sequence[Tensor]) -> dict[str, Any]:
    seeded()
    model = Net()
    model.drop.p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probe = Repetition(every=1, memory=1 << 20)
    with dp.watch(model, optimizer, probe, process_group=group, on_error="raise") as watch:
        for batch in stream:
            step(model, optimizer, batch)
    found = {t: (watch.history.series(t), watch.history.samples(t)) for t in watch.history.tags()}
    return {"found": found, "sketch": probe._sketch.state_dict(), "events": len(watch.events)}


def on_a_rank(rank: int) -> dict[str, Any]:
    group = torch.distributed.group.WORLD
    result = run_shared(group, [batch.chunk(RANKS)[rank] for batch in shared_stream()])
    seeded()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    turn = iter(fresh(4))

    def tokens() -> Tensor:  # goes wrong on one rank, at the second update
        return torch.zeros(2, 3) if rank == 1 and model.training is False else next(turn)

    probe = Repetition(every=2, tokens=tokens, losses=False)
    with dp.watch(model, optimizer, probe, process_group=group) as watch:
        for update, batch in enumerate(fresh(4)):
            model.train(update != 1)
            step(model, optimizer, batch)
    result["disabled"] = [(e.step, e.kind) for e in watch.events]
    return result


@pytest.mark.filterwarnings("ignore::dynamo_probe.DynamoProbeWarning")
def test_two_ranks_that_read_at_each_update_equal_one_rank_on_the_whole_stream() -> None:
    whole = run_shared(None, shared_stream())
    for one in on_two_ranks(on_a_rank):
        assert one["found"].keys() == whole["found"].keys()
        for tag, ((steps, values), samples) in whole["found"].items():
            (here, there), counted = one["found"][tag]
            assert (here == steps).all() and counted == samples, tag
            np.testing.assert_allclose(
                there, values, rtol=1e-6 if "loss" in tag else 0, err_msg=tag
            )
        for name, tensor in whole["sketch"]["table"].items():
            assert torch.equal(one["sketch"]["table"][name], tensor), name
        assert torch.equal(one["sketch"]["words"], whole["sketch"]["words"])
        assert one["disabled"] == [(2, "disabled")]  # together, so that nobody waits for the other
