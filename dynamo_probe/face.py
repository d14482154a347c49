"""Every public name. `import dynamo_probe` gives them; this module is where they are gathered."""

from dynamo_probe import alerts
from dynamo_probe.attach import watch, watched
from dynamo_probe.exporting import Export, ExportReport, export
from dynamo_probe.instrument import Event, Instrument, Probe, Reading, Treatment
from dynamo_probe.probes.alert import Alert
from dynamo_probe.probes.dormancy import Dormancy
from dynamo_probe.probes.gradients import Gradients
from dynamo_probe.probes.induction import Induction
from dynamo_probe.probes.plasticity import PruningPlasticity
from dynamo_probe.probes.rank import Rank
from dynamo_probe.probes.repetition import Repetition
from dynamo_probe.probes.saturation import Saturation
from dynamo_probe.probes.topology import Topology
from dynamo_probe.probes.trainability import Trainability
from dynamo_probe.probes.updates import Updates
from dynamo_probe.probes.utility import ContinualBackpropUtility
from dynamo_probe.schedule import (
    AfterReadings,
    Alternating,
    Constant,
    Cosine,
    Cubic,
    Every,
    LogSpaced,
    Schedule,
)
from dynamo_probe.sinks.memory import History
from dynamo_probe.sinks.sink import Sink
from dynamo_probe.sinks.tensorboard import TensorBoard
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable
from dynamo_probe.sweeps.sweep import SweepFailed, SweepResult, sweep
from dynamo_probe.treatments.continual_backprop import ContinualBackprop
from dynamo_probe.treatments.l2_init import L2Init
from dynamo_probe.treatments.layer_reset import LayerReset
from dynamo_probe.treatments.normalize_and_project import NormalizeAndProject
from dynamo_probe.treatments.plasticity_injection import Injectable, PlasticityInjection
from dynamo_probe.treatments.redo import ReDo
from dynamo_probe.treatments.regrama import ReGraMa
from dynamo_probe.treatments.shrink_and_perturb import ShrinkAndPerturb
from dynamo_probe.treatments.sparse import (
    ACDC,
    SET,
    SNFS,
    GradualMagnitudePruning,
    GraNet,
    RigL,
    SparseTraining,
    StaticSparse,
)
from dynamo_probe.watch import DynamoProbeWarning, Watch

__all__ = [
    "ACDC",
    "SET",
    "SNFS",
    "AfterReadings",
    "Alert",
    "Alternating",
    "Constant",
    "ContinualBackprop",
    "ContinualBackpropUtility",
    "Cosine",
    "Cubic",
    "Dormancy",
    "DynamoProbeWarning",
    "Event",
    "Every",
    "Export",
    "ExportReport",
    "GraNet",
    "Gradients",
    "GradualMagnitudePruning",
    "History",
    "Induction",
    "Injectable",
    "Instrument",
    "L2Init",
    "LayerReset",
    "LogSpaced",
    "NormalizeAndProject",
    "NotMeasurable",
    "PlasticityInjection",
    "Probe",
    "PruningPlasticity",
    "Rank",
    "ReDo",
    "ReGraMa",
    "Reading",
    "Repetition",
    "RigL",
    "Saturation",
    "Schedule",
    "ShrinkAndPerturb",
    "Sink",
    "Site",
    "SparseTraining",
    "StaticSparse",
    "SweepFailed",
    "SweepResult",
    "TensorBoard",
    "Topology",
    "Trainability",
    "Treatment",
    "Updates",
    "Watch",
    "alerts",
    "export",
    "sweep",
    "watch",
    "watched",
]
