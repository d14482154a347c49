"""What scoring attention heads costs, against the project's bounds, on a narrow model.

A narrow model, because there a forward pass is mostly attention: what `head_scores` spares is the
patterns, not the matrix products. `python -m benchmarks.overhead.heads` has GPT-2's own width.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.overhead.heads import actions, between_probes, peak
from benchmarks.overhead.interleaved import ratios, seconds

NOISE = 0.04


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def test_scores_at_2048_tokens_take_a_third_of_the_time_of_stored_patterns(benchmark) -> None:
    compared = actions(192, 2, 2048)
    compared.pop("TransformerLens", None)
    found = benchmark.pedantic(seconds, args=(compared, 5), rounds=1, iterations=1)
    result = ratios(found, "forward pass")
    benchmark.extra_info |= {name: round(ratio, 2) for name, ratio in result.items()}
    print("\n" + ", ".join(f"{name} {ratio:.2f}" for name, ratio in result.items()))
    assert result["eager, patterns stored"] >= 3 * result["head_scores"] * (1 - NOISE)


def test_scores_take_a_fiftieth_of_the_memory_of_patterns() -> None:
    compared = actions(192, 2, 2048)
    bare, scored, stored = (
        peak(compared[name]) for name in ("forward pass", "head_scores", "eager, patterns stored")
    )
    print(f"\nbeyond a forward pass: {scored - bare:.1f} MiB, stored {stored - bare:.1f} MiB")
    assert stored - bare >= 50 * max(scored - bare, 0.1)


def test_training_between_probes_costs_nothing(benchmark) -> None:
    result = benchmark.pedantic(between_probes, args=(31,), rounds=1, iterations=1)
    print("\n" + ", ".join(f"{name} {ratio:.3f}" for name, ratio in result.items()))
    assert result["after a probe"] <= 1 + NOISE
