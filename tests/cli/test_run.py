"""`dynamo-probe run`: the script's output, arguments, exit code and tracebacks stay its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dynamo_probe
from dynamo_probe.cli import main
from dynamo_probe.cli.run import PROBES, probe_kinds

ROOT = Path(dynamo_probe.__file__).parent.parent

PLAIN = '''
"""A script that knows nothing of probes."""
import argparse
import hashlib
import pickle
import sys

import torch
from torch import nn


class Config:
    lr = 1e-2


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=Config.lr)
    parser.add_argument("--every", type=int, default=0)
    parser.add_argument("-m", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
    opt = torch.optim.Adam(net.parameters(), lr=chosen.lr)
    for _ in range(30):
        loss = net(torch.randn(8, 4)).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    weights = b"".join(p.detach().numpy().tobytes() for p in net.parameters())
    print(hashlib.sha256(weights + torch.get_rng_state().numpy().tobytes()).hexdigest())
    print(sys.argv[1:], __name__, __file__, sys.path[0], chosen)
    print(type(pickle.loads(pickle.dumps(Config()))) is sys.modules["__main__"].Config)


if __name__ == "__main__":
    main()
'''

TWO = """
import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))
critic = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
optimizers = [torch.optim.Adam(net.parameters()) for net in (generator, critic)]
for update in range(12):
    for optimizer, sign in zip(optimizers, (-1, 1)):
        if sign == 1 or update % 3 == 0:
            optimizer.zero_grad()
            (sign * critic(generator(torch.randn(8, 2)))).mean().backward()
            optimizer.step()
"""

CRASH = """
import torch
from torch import nn

net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
opt = torch.optim.SGD(net.parameters(), 0.1)


def train(updates):
    for update in range(updates):
        net(torch.randn(8, 4)).mean().backward()
        opt.step()
    raise RuntimeError("out of data")


train(5)
"""


def python(*arguments: str, cwd: Path, watched: bool = True) -> subprocess.CompletedProcess[str]:
    """Run Python, with `-m dynamo_probe run` before the arguments or without."""
    command = ["-m", "dynamo_probe", "run"] if watched else []
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *command, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_plain_script_gives_the_same_bits_and_sees_the_same_world(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    script = tmp_path / "sub" / "train.py"
    script.write_text(PLAIN)
    own = ["sub/train.py", "--lr", "3e-4", "--every", "7", "-m", "x"]
    bare = python(*own, cwd=tmp_path, watched=False)
    options = ["--probe", "dormancy", "--probe", "rank", "--every", "10", "--log-dir", "log"]
    watched = python(*options, *own, cwd=tmp_path)
    assert (bare.returncode, watched.returncode) == (0, 0), watched.stderr
    assert watched.stdout == bare.stdout
    assert "'--lr', '3e-4'" in bare.stdout and "lr=0.0003" in bare.stdout
    assert bare.stdout.endswith("True\n")
    assert watched.stderr.splitlines() == [
        f"dynamo-probe: sequential, 30 updates: {tmp_path / 'log' / 'sequential'}"
    ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "log" / "sequential")).Reload()
    assert [e.step for e in log.Scalars("dormancy/tau=0.1")] == [1, 10, 20, 30]
    assert any(tag.startswith("rank/") for tag in log.Tags()["scalars"])


def test_a_module_is_run_like_python_m(tmp_path: Path) -> None:
    package = tmp_path / "project"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "import sys\nfrom . import helper\nprint(sys.argv, __name__, __package__, __file__)\n"
        "print(__spec__.name, sys.path[0], helper.x)\n"
    )
    (package / "helper.py").write_text("x = 3\n")
    own = ["-m", "project", "--lr", "3e-4"]
    bare = python(*own, cwd=tmp_path, watched=False)
    watched = python("--every", "5", *own, cwd=tmp_path)
    assert bare.returncode == watched.returncode == 0, watched.stderr
    assert watched.stdout == bare.stdout
    assert "no training was seen" in watched.stderr
    assert not (tmp_path / "runs").exists()


def test_two_networks_with_two_optimizers_have_a_log_each(tmp_path: Path) -> None:
    (tmp_path / "gan.py").write_text(TWO)
    done = python("--every", "4", "--log-dir", "log", "gan.py", cwd=tmp_path)
    assert done.returncode == 0
    assert sorted(done.stderr.splitlines()) == [
        f"dynamo-probe: critic, 12 updates: {tmp_path / 'log' / 'critic'}",
        f"dynamo-probe: generator, 4 updates: {tmp_path / 'log' / 'generator'}",
    ]
    assert all(list((tmp_path / "log" / n).glob("events*")) for n in ("critic", "generator"))


def test_a_crash_shows_the_scripts_own_traceback_and_what_was_read_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "crash.py").write_text(CRASH)
    bare = python("crash.py", cwd=tmp_path, watched=False)
    watched = python("--every", "2", "--log-dir", "log", "crash.py", cwd=tmp_path)
    assert watched.returncode == bare.returncode == 1
    ours = f"dynamo-probe: net, 5 updates: {tmp_path / 'log' / 'net'}\n"
    assert watched.stderr == ours + bare.stderr
    assert "RuntimeError: out of data" in bare.stderr
    assert list((tmp_path / "log" / "net").glob("events*"))


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("import sys\nprint('bye')\nsys.exit(3)\n", 3),
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)\n",
            -2,
        ),
        ("def f(:\n", 1),
        ("import sys\nsys.excepthook = lambda *a: print('mine', a[0])\n1 / 0\n", 1),
    ],
    ids=["exit code", "interrupt", "syntax error", "hook of its own"],
)
def test_the_end_of_a_script_is_its_own(tmp_path: Path, source: str, code: int) -> None:
    (tmp_path / "script.py").write_text(source)
    bare = python("script.py", cwd=tmp_path, watched=False)
    watched = python("script.py", cwd=tmp_path)
    assert watched.returncode == bare.returncode == code
    assert watched.stdout == bare.stdout
    lines = watched.stderr.splitlines(keepends=True)
    assert "".join(one for one in lines if "dynamo-probe: no training" not in one) == bare.stderr


# --- what is wrong is said before the script runs -------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "no script was given"),
        (["run", "--every", "0", "x.py"], "give 1 or more"),
        (["run", "--probe", "nothing", "x.py"], "invalid choice"),
        (["run", "--redo", "--tau", "-1", "x.py"], "tau"),
        (["run", "--unknown", "x.py"], "--unknown"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"), [(["no_such_script.py"], 2), (["-m", "no_such_module"], 1)]
)
def test_what_is_not_there_ends_as_in_python(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    assert main(["run", *arguments]) == code
    assert arguments[-1] in capsys.readouterr().err


def test_every_probe_that_needs_no_more_than_a_period_can_be_named() -> None:
    kinds = probe_kinds()
    assert sorted(kinds) == list(PROBES)
    assert {"dormancy", "rank"} <= kinds.keys()
    assert "alert" not in kinds
    assert all(kind(every=7).schedule.after(7) == 14 for kind in kinds.values())  # type: ignore
