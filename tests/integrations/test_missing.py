"""Without a framework its callback cannot be imported, and the message says what to install."""

import importlib.util
import sys
from pathlib import Path

import pytest

import dynamo_probe.integrations

CASES = {
    "lightning": ["lightning", "lightning.pytorch", "pytorch_lightning"],
    "transformers": ["transformers"],
    "stable_baselines3": ["stable_baselines3", "stable_baselines3.common.callbacks"],
}


@pytest.mark.parametrize(
    ("name", "extra"), list(zip(CASES, ["lightning", "transformers", "sb3"], strict=True))
)
def test_a_callback_without_its_framework_says_how_to_install_it(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in CASES[name]:
        monkeypatch.setitem(sys.modules, package, None)
    path = Path(dynamo_probe.integrations.__path__[0]) / f"{name}.py"
    spec = importlib.util.spec_from_file_location("without_its_framework", path)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match=rf"pip install 'dynamo-probe\[{extra}\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_package_of_the_callbacks_needs_no_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in [package for packages in CASES.values() for package in packages]:
        monkeypatch.setitem(sys.modules, package, None)
    importlib.reload(dynamo_probe.integrations)
