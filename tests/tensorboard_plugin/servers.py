"""TensorBoard itself, started on a directory of logs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SECONDS = 60


class Server:
    """A running TensorBoard."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **query: Any) -> tuple[int, Any]:
        """Return the status and the JSON that the plugin answers with."""
        text = urllib.parse.urlencode(query, doseq=True)
        url = f"{self.address}/data/plugin/dynamo_probe/{path}?{text}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def wait_for(self, runs: int) -> list[str]:
        """Wait until so many runs have been read, and return their names."""
        end = time.monotonic() + _SECONDS
        while True:
            found = [one["run"] for one in self.get("runs")[1]["runs"]]
            if len(found) >= runs:
                return found
            assert time.monotonic() < end, f"TensorBoard has read {found}"
            time.sleep(0.3)


@contextmanager
def tensorboard(logs: Path, *, fast: bool, output: Path) -> Iterator[Server]:
    """Run TensorBoard with the loader in Rust (fast) or that in Python."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", "0"]
    command += ["--load_fast", "true" if fast else "false", "--reload_interval", "1"]
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=dict(os.environ))
    try:
        yield Server(_address(process, output))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], output: Path) -> str:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        found = re.search(r"TensorBoard [\d.]+ at (http://localhost:\d+)/", output.read_text())
        if found:
            return found[1]
        assert process.poll() is None, output.read_text()
        time.sleep(0.1)
    raise AssertionError(f"TensorBoard did not start: {output.read_text()}")
