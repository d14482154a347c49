"""Most of the samples repeated 180 times: no induction head forms, and held-out copies suffer.

The margins are wide. In the longer runs of benchmarks/papers/RESULTS.md the best head's prefix
matching was above 0.7 without repeats and below 0.06 with them, and the test loss was 1 nat above
that of a model that only saw the samples that come once.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from einops import rearrange

from benchmarks.papers import repeated_data
from benchmarks.papers import repeated_data_tasks as tasks
from benchmarks.papers.models.gpt import GPT, Shape
from benchmarks.papers.repeated_data_measure import random_copies
from dynamo_probe.functional.heads import head_scores

SETTING = replace(repeated_data.COPY, updates=500, test_samples=256)


def best_head(point) -> float:
    return max(map(max, point.prefix_matching))


@pytest.mark.claims
def test_repeats_keep_induction_heads_from_forming(executor):
    arms = ("d=64", "d=64 90% x180", "d=64 90% unique")
    run = partial(repeated_data.run, seed=1, setting=SETTING)
    fresh, repeated, control = (map if executor is None else executor.map)(run, arms)
    assert best_head(fresh.last) > 0.5 and fresh.formed is not None
    assert best_head(repeated.last) < 0.15 and repeated.formed is None
    assert repeated.last.test > control.last.test > fresh.last.test + 0.5
    assert repeated.last.random_copy > fresh.last.random_copy + 2
    assert repeated.last.repeated is not None and repeated.last.repeated < 0.3


@pytest.mark.parametrize(
    ("arm", "total", "pool", "once"),
    [
        ("d=64", 48_000, 0, 48_000),
        ("d=64 50% x100", 48_000, 240, 24_000),
        ("d=64 90% x1800", 48_000, 24, 4_800),
        ("d=64 90% unique", 4_800, 0, 4_800),
        ("d=32 10% x1200", 48_000, 4, 43_200),
    ],
)
def test_the_name_of_an_arm_gives_its_samples(arm, total, pool, once):
    order, repeated = repeated_data.samples(
        repeated_data.parse(arm), repeated_data.COPY, range(100_000), seed=1
    )
    times = torch.bincount(order.order)
    assert len(order) == total and len(repeated) == pool
    assert int((times == 1).sum()) == once
    assert (times[repeated] > 1).all()


def test_a_text_is_tested_on_files_that_training_has_not_and_its_copies_are_copies():
    task = tasks.load("python", 128, (16, 64), samples=8_000, test_samples=64)
    train = {bytes(row) for row in task.train.tensors[0].to(torch.uint8).numpy()}
    test = {bytes(row) for row in task.test.to(torch.uint8).numpy()}
    assert len(test) == 64 and not test & train
    assert set(task.lags.tolist()) <= set(range(16, 65))
    for row, copy, lag in zip(task.test, task.copies, task.lags, strict=True):
        assert copy.tolist() == [row[place % int(lag)] for place in range(128)]


@pytest.mark.parametrize("rope", [False, True])
def test_the_models_own_queries_and_keys_give_the_scores_of_the_library(rope):
    torch.manual_seed(0)
    model = GPT(Shape(30, 36, width=32, layers=2, heads=4, rope=rope))
    for parameter in model.parameters():
        parameter.data.mul_(2)
    tokens = random_copies(30, period=12, copies=3, sequences=5)
    scores = head_scores(model, 30, tokens=tokens)
    for layer, pattern in enumerate(patterns(model, tokens)):
        for head in range(4):
            mass = 0.0
            for sample in range(5):
                for query in range(12, 36):
                    for key in range(query - 11, 0, -12):
                        mass += pattern[sample, head, query, key].item()
            assert scores.prefix_matching[layer, head].item() == pytest.approx(
                mass / (5 * 24), abs=1e-6
            )


@torch.no_grad()
def patterns(model: GPT, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Each layer's attention, `[batch, head, query, key]`, written out."""
    stream, found = model.embed(tokens), []
    later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
    for block in model.blocks:
        queries, keys, values = block.attention.project(block.attention_norm(stream))
        scores = (queries @ keys.mT) * queries.shape[-1] ** -0.5
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        found.append(weights)
        mixed = rearrange(weights @ values, "batch head time d -> batch time (head d)")
        stream = stream + block.attention.outward(mixed)
        stream = stream + block.mlp(stream)
    return found
