"""`dynamo-probe doctor CHECKPOINT`: exact counts, and nothing in it is executed."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import dynamo_probe as dp
from dynamo_probe.cli import main
from tests.models import mlp


class Bomb:
    """What runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.trace}'",)


def examine(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", str(path)])
    return code, json.loads(capsys.readouterr().out)


def test_layers_zeros_and_dead_units_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        net[0].weight.fill_(1.0)[2] = 0  # 27 of 108 weights, a whole unit
        net[3].weight.fill_(1.0)[:, 7] = 0  # an input that nothing reads
        net[3].weight[0, 0] = 0
    torch.save({"state": {"net": net.state_dict()}, "epoch": 3}, tmp_path / "c.pt")
    code, found = examine(tmp_path / "c.pt", capsys)
    assert code == 0 and found["trouble"] == []
    (network,) = found["networks"]
    assert network["place"] == "state.net"
    assert network["parameters"] == 4 * 27 + 4 + 16 * 5 + 5
    first, last = network["layers"]
    assert (first["name"], first["looks_like"], first["shape"]) == ("0", "conv2d", [4, 3, 3, 3])
    assert (first["density"], first["zeros"], first["units_without_inputs"]) == (0.75, 27, 1)
    assert (last["looks_like"], last["zeros"], last["inputs_without_units"]) == ("linear", 6, 1)
    assert (first["hidden"], last["hidden"]) == (True, False)
    assert any("activations" in line for line in found["unknown"])


def test_a_mask_of_torchs_pruning_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 2))
    prune.l1_unstructured(net[0], "weight", 0.3)
    torch.save(net.state_dict(), tmp_path / "c.pth")
    _, found = examine(tmp_path / "c.pth", capsys)
    (network,) = found["networks"]
    assert network["masks"] == {"0.weight_mask": pytest.approx(0.7)}
    assert network["layers"][0]["name"] == "0"
    assert network["layers"][0]["density"] == pytest.approx(0.7)
    assert network["parameters"] == 100 + 10 + 20 + 2


def test_the_state_of_a_watch_and_of_an_optimizer_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = mlp(4, 16, 8, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.25)
    with dp.watch(net, optimizer, [dp.Dormancy(every=2), dp.ReDo(every=4, tau=0.9)]) as watch:
        for _ in range(5):
            net(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        state = {"net": net.state_dict(), "opt": optimizer.state_dict(), "w": watch.state_dict()}
    torch.save(state, tmp_path / "c.pt")
    code, found = examine(tmp_path / "c.pt", capsys)
    assert code == 0
    (told,) = found["watches"]
    assert (told["place"], told["updates"], told["instruments"]) == ("w", 5, ["dormancy", "redo"])
    assert told["tags"] == sorted(watch.history.tags())
    assert told["events"] == len(watch.events) > 0
    assert told["last_events"][-1].startswith("update 4: recycled")
    (kept,) = found["optimizers"]
    assert kept == {
        "place": "opt",
        "parameters": 6,
        "keeps": ["step", "exp_avg", "exp_avg_sq"],
        "learning_rates": [0.25],
    }
    assert [one["place"] for one in found["networks"]] == ["net"]


def test_values_that_are_not_finite_are_trouble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = mlp(4, 8, 1)
    with torch.no_grad():
        next(net.parameters())[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    torch.save(net.state_dict(), tmp_path / "c.pt")
    assert main(["doctor", str(tmp_path / "c.pt")]) == 1
    assert "0.weight: 3 of 32 values are not finite" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle"])
def test_a_pickle_bomb_is_refused_and_does_not_go_off(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, path = tmp_path / "went off", tmp_path / "bomb.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": Bomb(trace)}))
    else:
        zipped = kind == "torch"
        torch.save({"model": Bomb(trace)}, path, _use_new_zipfile_serialization=zipped)
    assert main(["doctor", str(path)]) == 1
    out, err = capsys.readouterr()
    assert not trace.exists()
    assert out == "" and err.count("\n") == 1
    assert "could run code" in err and "torch.save(model.state_dict()" in err
    if kind != "pickle":
        assert "posix.system" in err
    with pytest.raises(Exception):  # noqa: B017 - the bomb is one: it does go off elsewhere
        torch.load(path, weights_only=True)


def test_a_whole_module_is_refused_with_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "c.pt")
    assert main(["doctor", str(tmp_path / "c.pt")]) == 1
    assert "torch.nn.modules.container.Sequential" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 torn", b"\x80\x02."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_checkpoint_is_told_in_one_line(
    content: bytes, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    assert main(["doctor", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and str(path) in err


def test_safetensors_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"fc.weight": torch.eye(4)}, tmp_path / "c.safetensors")
    code, found = examine(tmp_path / "c.safetensors", capsys)
    assert code == 0
    assert found["networks"][0]["layers"][0]["density"] == 0.25


def test_odd_kinds_of_tensors_are_counted_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {
        "a.weight": torch.eye(4).bfloat16(),
        "b.weight": torch.eye(4).to(torch.float8_e4m3fn),
        "c.weight": torch.eye(4).to_sparse(),
        "d.weight": torch.eye(4).cfloat(),
        "e.weight": torch.eye(4).to(torch.int8),
        "empty.weight": torch.zeros(0, 4),
        "scalar": torch.tensor(1.0),
    }
    torch.save(state, tmp_path / "c.pt")
    code, found = examine(tmp_path / "c.pt", capsys)
    assert code == 0
    assert [layer["density"] for layer in found["networks"][0]["layers"]] == [0.25] * 5


@pytest.mark.parametrize(
    "name", ["a b.pt", "-x.pt", "$(touch x).pt", "<b>&.pt", "層\u202e.pt", "a\nb.pt", "[red].pt"]
)
def test_hostile_names_of_files_and_layers_are_only_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    layer = "\x1b[2J<script>alert(1)</script>" + "y" * 10_000
    torch.save({f"{layer}.weight": torch.eye(3)}, name)
    assert main(["doctor", "--", name]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[2J<script>" in out and "\u202e" not in out
    assert max(map(len, out.splitlines())) < 500
    assert main(["doctor", "--json", "--", name]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoint"] == name
    assert found["networks"][0]["layers"][0]["name"] == layer
    assert [path.name for path in tmp_path.iterdir()] == [name]
