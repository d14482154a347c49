"""The command line: `dynamo-probe demo | run | report | doctor`.

Exit codes: 0 when all is well, 1 when something failed or trouble was found, 2 for a wrong call;
`run` ends with the code of its script. Nothing here imports torch before a command needs it.
"""

from dynamo_probe.cli.app import main

__all__ = ["main"]
