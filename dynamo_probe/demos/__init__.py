"""Small trainings that show the library at work: `dynamo-probe demo`, and examples to read.

Each takes seconds on one processor core and writes a log that TensorBoard and
`dynamo-probe report` show. A file each; nothing in them is needed elsewhere.
"""

from dynamo_probe.demos.registry import DEMOS, Demo

__all__ = ["DEMOS", "Demo"]
