"""Pure functions: tensors in, tensors or numbers out. All the mathematics lives here."""

from dynamo_probe.functional.ablation import ablate_heads
from dynamo_probe.functional.ablation_effect import Effect, ablation_effects
from dynamo_probe.functional.change_point import ChangePoint, change_point
from dynamo_probe.functional.copying import CopyLoss, copy_loss
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
from dynamo_probe.functional.effective_size import (
    ComputeEquivalentLoss,
    EffectiveSize,
    compute_equivalent_loss,
    effective_size,
)
from dynamo_probe.functional.formation import expected_formation
from dynamo_probe.functional.gradients import grama_activation_scores, grama_weight_scores
from dynamo_probe.functional.heads import HeadScores, head_scores
from dynamo_probe.functional.importance import grasp_scores, magnitude_scores
from dynamo_probe.functional.in_context import (
    InContextScore,
    in_context_from,
    in_context_learning_score,
)
from dynamo_probe.functional.output_circuit import CopyingScores, copying_scores
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
from dynamo_probe.functional.repetition import damage_region
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
    "ChangePoint",
    "ComputeEquivalentLoss",
    "CopyLoss",
    "CopyingScores",
    "Effect",
    "EffectiveSize",
    "HeadScores",
    "InContextScore",
    "PlasticityReport",
    "RecycleReport",
    "SaturationShares",
    "SparsityReport",
    "TrainabilityReport",
    "ablate_heads",
    "ablation_effects",
    "change_point",
    "compute_equivalent_loss",
    "constant_units",
    "contribution_utility",
    "copy_loss",
    "copying_scores",
    "damage_region",
    "dead_units",
    "dormancy_scores",
    "dormant_fraction",
    "dormant_units",
    "effective_rank",
    "effective_size",
    "erk_densities",
    "exact_counts",
    "expected_formation",
    "gradient_saturated_units",
    "grama_activation_scores",
    "grama_weight_scores",
    "grasp_scores",
    "head_scores",
    "in_context_from",
    "in_context_learning_score",
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
