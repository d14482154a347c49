"""What a treatment does to the network's outputs on the watch's probe batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from dynamo_probe.anatomy.dataflow import tensors_in
from dynamo_probe.site import Site


@contextmanager
def output_change(site: Site) -> Iterator[dict[str, float]]:
    """Measure the largest change of an output on the given probe batch, if there is one."""
    change: dict[str, float] = {}
    if site.fixed.given is None:
        yield change
        return
    batch = site.batches()[""]

    def outputs() -> list[Tensor]:
        with site.apart() as model:
            return [t.detach().double() for t in tensors_in(batch.run(model))]

    before = outputs()
    yield change
    after = outputs()
    differences = [(a - b).abs().max().item() for a, b in zip(after, before, strict=True) if len(a)]
    change["largest"] = max(differences, default=0.0)
