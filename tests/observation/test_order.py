"""Runs of updates in an earlier order: told of, and only those."""

from dataclasses import replace

import numpy as np

from dynamo_probe.observation.order import Order, Origin

ROWS = 4
EPOCH = 20
"""Updates in an epoch."""


def origins(update: int, firsts) -> list[Origin]:
    """Return origins of the rows of an update, `firsts` being their places in the first epoch."""
    return [
        Origin(update, row, first // ROWS, first % ROWS, update * ROWS + row, first, 1.0)
        for row, first in enumerate(firsts)
    ]


def first_epoch(order: Order) -> None:
    for update in range(EPOCH):
        assert not order.see(update, ROWS, 0, [])


def in_order(update: int) -> range:
    begin = (update % EPOCH) * ROWS
    return range(begin, begin + ROWS)


def test_an_epoch_in_the_same_order_is_told_of_once_at_its_third_update() -> None:
    order = Order()
    first_epoch(order)
    told = [
        update
        for update in range(EPOCH, 4 * EPOCH)
        if order.see(update, ROWS, ROWS, origins(update, in_order(update)))
    ]
    assert told == [EPOCH + 2]
    assert (order.begin, order.first_begin) == (3 * EPOCH, 0)


def test_shuffled_epochs_are_not_told_of() -> None:
    for seed in range(50):
        generator, order = np.random.default_rng(seed), Order()
        first_epoch(order)
        for epoch in range(1, 6):
            shuffled = generator.permutation(EPOCH * ROWS).tolist()
            for i in range(EPOCH):
                update = epoch * EPOCH + i
                firsts = shuffled[i * ROWS : (i + 1) * ROWS]
                known = [o for o in origins(update, firsts) if generator.random() < 0.3]
                assert not order.see(update, ROWS, ROWS, known)


def test_few_known_origins_are_enough_and_their_absence_is_no_evidence() -> None:
    order = Order()
    first_epoch(order)
    told = []
    for update in range(EPOCH, 2 * EPOCH):
        known = origins(update, in_order(update))[::3] if update % 2 == 0 else []
        if order.see(update, ROWS, ROWS, known):
            told.append(update)
    assert told == [EPOCH + 6]  # two rows at every second update: eight at the fourth


def test_after_a_stretch_of_shuffling_it_is_told_of_again() -> None:
    order = Order()
    first_epoch(order)
    told = []
    for update in range(EPOCH, 3 * EPOCH):
        shuffled = EPOCH + 8 <= update < EPOCH + 12
        firsts = [(7 * update + 31 * r) % 80 for r in range(ROWS)] if shuffled else in_order(update)
        if order.see(update, ROWS, ROWS, origins(update, firsts)):
            told.append(update)
    assert told == [EPOCH + 2, EPOCH + 14]


def test_a_replay_is_told_of_even_where_order_is_a_habit() -> None:
    order = Order()
    first_epoch(order)
    for update in range(EPOCH, EPOCH + 10):
        order.see(update, ROWS, ROWS, origins(update, in_order(update)))
    resumed = EPOCH + 9
    told = []
    for update in range(resumed + 1, resumed + 8):  # the loader begins again at the epoch's first
        firsts = in_order(update - resumed - 1)
        if order.see(update, ROWS, ROWS, origins(update, firsts), resumed):
            told.append((update, order.begin, order.first_begin, order.first_end))
    assert told == [(resumed + 3, resumed + 1, 0, 2)] and order.is_replay(resumed)


def test_fresh_rows_and_parts_of_rows_break_a_run() -> None:
    order = Order()
    first_epoch(order)
    for update in range(EPOCH, 2 * EPOCH):
        rows = origins(update, in_order(update))
        fresh = update % 2 == 0
        assert not order.see(update, ROWS, 1 if fresh else ROWS, rows)
    order = Order()
    for update in range(EPOCH, 2 * EPOCH):
        parts = [replace(o, share=0.5) for o in origins(update, in_order(update))]
        assert not order.see(update, ROWS, ROWS, parts)


def test_a_saved_run_goes_on() -> None:
    through, cut = Order(), Order()
    first_epoch(through)
    first_epoch(cut)
    for update in range(EPOCH, 2 * EPOCH):
        rows = origins(update, in_order(update))
        resumed = Order()
        resumed.load_state_dict(cut.state_dict())
        cut = resumed
        assert through.see(update, ROWS, ROWS, rows) == cut.see(update, ROWS, ROWS, rows)
        assert through.state_dict() == cut.state_dict()


def test_an_origin_says_where_in_words() -> None:
    origin = Origin(240, 5, 120, 7, 7685, 3847, 1.0)
    assert str(origin) == (
        "row 5 of update 240 (100% repeated) was seen first as row 7 of update 120"
    )
