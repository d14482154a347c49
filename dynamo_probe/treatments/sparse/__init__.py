"""Sparse training: one engine, and the methods of the field as settings of it."""

from dynamo_probe.treatments.sparse.dormant import KeepsSilent, TowardsDormant
from dynamo_probe.treatments.sparse.engine import SparseTraining
from dynamo_probe.treatments.sparse.presets import (
    ACDC,
    SET,
    SNFS,
    GradualMagnitudePruning,
    GraNet,
    RigL,
    StaticSparse,
)
from dynamo_probe.treatments.sparse.scores import Evidence, Score

__all__ = [
    "ACDC",
    "SET",
    "SNFS",
    "Evidence",
    "GraNet",
    "GradualMagnitudePruning",
    "KeepsSilent",
    "RigL",
    "Score",
    "SparseTraining",
    "StaticSparse",
    "TowardsDormant",
]
