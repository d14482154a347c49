"""Pure functions: tensors in, tensors or numbers out. All the mathematics lives here."""

from dynamo_probe.functional.densities import erk_densities, exact_counts, uniform_densities
from dynamo_probe.functional.dormancy import (
    constant_units,
    dead_units,
    dormancy_scores,
    dormant_fraction,
    dormant_units,
    normalised_scores,
    saturated_units,
)
from dynamo_probe.functional.gradients import grama_activation_scores, grama_weight_scores
from dynamo_probe.functional.importance import grasp_scores, magnitude_scores
from dynamo_probe.functional.overlap import overlap_coefficient
from dynamo_probe.functional.plasticity import pruning_plasticity
from dynamo_probe.functional.plasticity_report import PlasticityReport
from dynamo_probe.functional.rank import (
    effective_rank,
    participation_ratio,
    rank_summary,
    spectrum,
    srank,
    stable_rank,
)
from dynamo_probe.functional.recycling import RecycleReport, recycle
from dynamo_probe.functional.saturation import (
    SaturationShares,
    gradient_saturated_units,
    saturation,
)
from dynamo_probe.functional.selection import select_exact, select_globally
from dynamo_probe.functional.sparsity import SparsityReport, sparsity_report
from dynamo_probe.functional.trainability import TrainabilityReport, trainability
from dynamo_probe.functional.updates import mean_weight_magnitude, relative_change
from dynamo_probe.functional.utility import contribution_utility, outgoing_magnitude

__all__ = [
    "PlasticityReport",
    "RecycleReport",
    "SaturationShares",
    "SparsityReport",
    "TrainabilityReport",
    "constant_units",
    "contribution_utility",
    "dead_units",
    "dormancy_scores",
    "dormant_fraction",
    "dormant_units",
    "effective_rank",
    "erk_densities",
    "exact_counts",
    "gradient_saturated_units",
    "grama_activation_scores",
    "grama_weight_scores",
    "grasp_scores",
    "magnitude_scores",
    "mean_weight_magnitude",
    "normalised_scores",
    "outgoing_magnitude",
    "overlap_coefficient",
    "participation_ratio",
    "pruning_plasticity",
    "rank_summary",
    "recycle",
    "relative_change",
    "saturated_units",
    "saturation",
    "select_exact",
    "select_globally",
    "sparsity_report",
    "spectrum",
    "srank",
    "stable_rank",
    "trainability",
    "uniform_densities",
]
