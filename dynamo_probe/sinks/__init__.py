"""Show: where readings go. A sink never slows or stops training."""

from dynamo_probe.sinks.courier import Courier
from dynamo_probe.sinks.function import LogFunction
from dynamo_probe.sinks.memory import History
from dynamo_probe.sinks.sink import Sink
from dynamo_probe.sinks.tensorboard import TensorBoard

__all__ = ["Courier", "History", "LogFunction", "Sink", "TensorBoard"]
