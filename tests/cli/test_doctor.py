"""`dynamo-probe doctor SCRIPT`: it is ended before its first step changes anything."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynamo_probe.cli.doctor import is_checkpoint
from dynamo_probe.cli.run import probe_kinds
from dynamo_probe.cli.trial import Network, try_probes
from dynamo_probe.demos.heads import VOCABULARY, Transformer
from dynamo_probe.observation.batch import Batch
from tests.cli.calls import call

PLAIN = """
import argparse, hashlib
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--json", type=float)
print("said by the script", parser.parse_args())
net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.Adam(net.parameters())


def weights():
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters()))


print(weights().hexdigest())
try:
    for _ in range(30):
        net(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        open("stepped", "w").close()
finally:
    print(weights().hexdigest())
"""

ADVERSARIES = """
import torch
from torch import nn

generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))
critic = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
optimizers = [torch.optim.Adam(net.parameters()) for net in (generator, critic)]
for optimizer in optimizers * 9:
    optimizer.zero_grad()
    critic(generator(torch.randn(8, 2))).mean().backward()
    optimizer.step()
"""

STUBBORN = """
import os, time
open("process", "w").write(str(os.getpid()))
while True:
    try:
        time.sleep(100)
    except BaseException:
        pass
"""

CATCHES = """
import torch
from torch import nn

net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(3):
    net(torch.randn(8, 4)).mean().backward()
    try:
        optimizer.step()
    except BaseException:
        pass
"""


def doctor(script: str, *options: str, arguments: tuple[str, ...] = (), cwd: Path) -> Any:
    (cwd / "script.py").write_text(script)
    return call("doctor", *options, "script.py", *arguments, cwd=cwd)


def test_a_script_is_ended_before_its_first_step_and_its_networks_are_told(tmp_path: Path) -> None:
    done = doctor(PLAIN, "--json", arguments=("--json", "3"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # all of it: what the script says goes to standard error
    assert "said by the script Namespace(json=3.0)" in done.stderr
    before, after = [line for line in done.stderr.splitlines() if len(line) == 64]
    assert before == after
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]
    assert (found["target"], found["ended"], found["trouble"]) == (
        "script.py", "ended before its first optimizer step", []
    )  # fmt: skip
    (network,) = found["networks"]
    assert (network["name"], network["parameters"]) == ("net", 4 * 16 + 16 + 16 * 8 + 8 + 9)
    assert network["optimizers"] == ["Adam"]
    assert [(one["name"], one["units"]) for one in network["layers"]] == [("0", 16), ("2", 8)]
    assert [one["name"] for one in network["skipped"]] == ["4"]
    works = {one["name"]: one["works"] for one in network["probes"]}
    assert sorted(works) == sorted(probe_kinds())
    assert {name for name, does in works.items() if not does} == {"induction", "repetition"}
    assert all(one["reason"] for one in network["probes"] if not one["works"])


def test_every_network_is_told_in_words(tmp_path: Path) -> None:
    done = doctor(ADVERSARIES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = {line.split()[0] for line in lines if "parameters, Adam" in line}
    assert names == {"generator", "critic"}
    assert lines.count("    0      8 units, read at the output of 1") == 2
    assert sum(line.split()[:2] == ["dormancy", "works"] for line in lines) == 2


def test_what_does_not_end_is_ended_at_the_time_limit_with_its_process(tmp_path: Path) -> None:
    done = doctor(STUBBORN, "--time-limit", "8", cwd=tmp_path)
    assert done.returncode == 1
    assert "the time limit of 8 s was reached; --time-limit gives it more" in done.stdout
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "process").read_text()), 0)


def test_a_script_that_catches_everything_still_makes_no_step(tmp_path: Path) -> None:
    done = doctor(CATCHES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "it caught that, and went on without steps" in done.stdout
    assert "net (Sequential" in done.stdout


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        ("print('loud')\n1 / 0\n", "failed before any optimizer step: ZeroDivisionError"),
        ("print('loud')\nraise SystemExit(3)\n", "exit code 3"),
        ("import os\nos._exit(7)\n", "ended with exit code 7"),
    ],
)
def test_what_trains_nothing_is_trouble(script: str, ended: str, tmp_path: Path) -> None:
    done = doctor(script, "--quiet", cwd=tmp_path)
    assert done.returncode == 1
    assert ended in done.stdout and "no network was found" in done.stdout
    assert done.stderr == ""


def test_a_module_is_taken_too(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "__init__.py").write_text("")
    (tmp_path / "project" / "train.py").write_text(f"from . import other\n{CATCHES}")
    (tmp_path / "project" / "other.py").write_text("")
    done = call("doctor", "-m", "project.train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("project.train: ended before its first optimizer step")


@pytest.mark.parametrize("words", [["missing.py"], ["missing.pt"], ["."], ["c.pt", "--lr", "1"]])
def test_a_target_that_cannot_be_is_a_wrong_call(words: list[str], tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "c.pt")
    done = call("doctor", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_file_is_taken_for_a_checkpoint_by_its_name_or_its_beginning(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights")
    torch.save({}, tmp_path / "old", _use_new_zipfile_serialization=False)
    (tmp_path / "script").write_text("print()")
    (tmp_path / "named.PT").write_text("print()")
    (tmp_path / "named.py").write_bytes(b"PK")
    found = {path.name for path in tmp_path.iterdir() if is_checkpoint(path)}
    assert found == {"weights", "old", "named.PT"}


# --- the trial of every probe ---------------------------------------------------------------------


def tried(model: nn.Module, *inputs: Any, names: tuple[str, ...] = ()) -> Mapping[str, Any]:
    network = Network("net", model, [], {"": Batch(inputs)})
    kinds = {name: kind for name, kind in probe_kinds().items() if not names or name in names}
    return try_probes(network, kinds)


def test_the_trial_leaves_parameters_and_gradients_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    before = [p.detach().clone() for p in model.parameters()]
    tried(model, torch.randn(8, 4))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_language_model_can_be_scored_for_heads_and_repeats() -> None:
    class Longer(Transformer):
        def __init__(self) -> None:
            super().__init__(torch.Generator().manual_seed(0))
            self.positions = nn.Embedding(128, self.positions.embedding_dim)

    tokens = torch.randint(VOCABULARY, (4, 64))
    found = tried(Longer(), tokens, names=("induction", "repetition", "dormancy"))
    works = {one["name"]: one["works"] for one in found["probes"]}
    assert works == {"dormancy": False, "induction": True, "repetition": True}
    assert found["layers"] == []  # attention alone has no hidden units


def test_inputs_that_belong_to_another_networks_graph_are_cut_off() -> None:
    generator, critic = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    fake = generator(torch.randn(8, 2))
    critic(fake).mean().backward()
    found = tried(critic, fake, names=("dormancy",))
    assert [one["works"] for one in found["probes"]] == [True]


def test_a_network_that_cannot_run_again_is_told() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of data\nand more")

    found = tried(Once(), torch.randn(8, 4))
    assert found["probes"] == []
    assert found["warnings"][0].endswith("no probe was tried: RuntimeError: out of data")


def test_a_network_without_a_hidden_layer_is_refused_with_the_reason() -> None:
    assert "no hidden layer" in tried(nn.Linear(4, 1), torch.randn(8, 4))["trouble"]
