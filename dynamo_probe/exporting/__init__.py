"""Take a sparse network out of training: the same function, stored or wired so that zeros pay.

`export` gives a new model, and a report of what that brought on this machine and what it did not.
"""

from dynamo_probe.exporting.formats import Export, Format, export
from dynamo_probe.exporting.report import ExportReport

__all__ = ["Export", "ExportReport", "Format", "export"]
