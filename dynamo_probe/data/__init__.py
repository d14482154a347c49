"""Data to measure on: repeated samples in exact counts, and a task that needs induction heads."""

from dynamo_probe.data.copying import CopyTask
from dynamo_probe.data.order import OrderSampler, SampleOrder
from dynamo_probe.data.repetition import RepeatedMixture

__all__ = ["CopyTask", "OrderSampler", "RepeatedMixture", "SampleOrder"]
