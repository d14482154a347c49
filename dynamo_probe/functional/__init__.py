"""Pure functions: tensors in, tensors or numbers out. All the mathematics lives here."""

from dynamo_probe.functional.dormancy import (
    constant_units,
    dead_units,
    dormancy_scores,
    dormant_fraction,
    dormant_units,
    normalised_scores,
    saturated_units,
)
from dynamo_probe.functional.overlap import overlap_coefficient
from dynamo_probe.functional.rank import (
    effective_rank,
    participation_ratio,
    rank_summary,
    spectrum,
    srank,
    stable_rank,
)
from dynamo_probe.functional.recycling import RecycleReport, recycle

__all__ = [
    "RecycleReport",
    "constant_units",
    "dead_units",
    "dormancy_scores",
    "dormant_fraction",
    "dormant_units",
    "effective_rank",
    "normalised_scores",
    "overlap_coefficient",
    "participation_ratio",
    "rank_summary",
    "recycle",
    "saturated_units",
    "spectrum",
    "srank",
    "stable_rank",
]
