"""What ranks tell each other about repeated data: one reduction, after which all know the same."""

from __future__ import annotations

import numpy as np
import torch

from dynamo_probe.observation.sketch import Sketch
from dynamo_probe.observation.tally import WORDS, Tally
from dynamo_probe.site import Site

_HEAD = 3
"""Whether the rank has failed, entries of its journal, entries that it has lost."""


def merge(
    site: Site, tally: Tally, sketch: Sketch, failed: str | None
) -> tuple[Tally, str | None, int]:
    """Add up what the ranks have counted, and let each learn what the others have seen.

    Each rank writes into a row of its own of one buffer of whole numbers that is zero elsewhere,
    so that one SUM gathers every bit. It takes 16 bytes a journal entry and rank: 2 MiB a rank.

    Args:
        site: the run.
        tally: what this rank has counted since the last time.
        sketch: its memory; learns.
        failed: why this rank has stopped looking.

    Returns:
        The sums, why any rank has stopped, and how many blocks were not told.
    """
    journal = sketch.journal
    assert journal is not None
    own = site.rank
    shared = np.zeros((site.ranks, _HEAD + WORDS + 2 * journal.most), dtype=np.int64)
    entries = journal.entries()
    shared[own, :_HEAD] = failed is not None, len(entries), journal.lost
    shared[own, _HEAD : _HEAD + WORDS] = tally.words()
    told = shared[own, _HEAD + WORDS :].reshape(-1, 2)
    told[: len(entries)] = entries
    device = next(iter(site.model.parameters())).device
    gathered = site.sum_over_ranks(torch.from_numpy(shared).to(device)).cpu().numpy()
    total, lost = Tally(), 0
    for rank, row in enumerate(gathered):
        total.add_words(row[_HEAD : _HEAD + WORDS])
        lost += int(row[2])
        if row[0] and failed is None:
            failed = f"rank {rank} has failed"
        if rank != own:
            sketch.learn(row[_HEAD + WORDS :].reshape(-1, 2)[: int(row[1])])
    journal.clear(site.step)
    return total, failed, lost
