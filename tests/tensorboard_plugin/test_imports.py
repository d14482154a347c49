"""What TensorBoard has to wait for."""

from __future__ import annotations

import subprocess
import sys


def test_the_tab_and_the_command_line_do_without_torch_and_tensorflow() -> None:
    script = (
        "import sys\n"
        "import dynamo_probe.tensorboard_plugin.plugin, dynamo_probe.cli\n"
        "print([name for name in ('torch', 'tensorflow', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
