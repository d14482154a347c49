"""The command line as a user has it: in a process of its own, or in this one."""

import os
import subprocess
import sys
from pathlib import Path

import dynamo_probe

ROOT = Path(dynamo_probe.__file__).parent.parent


def call(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m dynamo_probe` with arguments."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "dynamo_probe", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
