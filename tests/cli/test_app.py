"""Help, version, completion and wrong calls; and that none of them waits for torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import dynamo_probe as dp
from dynamo_probe.cli import main
from dynamo_probe.cli.app import app
from dynamo_probe.cli.output import printable
from tests.cli.calls import ROOT, call

COMMANDS = ("demo", "run", "report", "doctor")


def test_help_names_every_command_and_the_exit_codes() -> None:
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.output
    assert "Exit codes: 0" in done.output


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example_that_parses(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"], terminal_width=100)
    assert done.exit_code == 0
    examples = [line.split() for line in done.output.splitlines() if "  dynamo-probe " in line]
    assert examples
    click_command = typer.main.get_command(app)
    for words in examples:
        assert words[:2] == ["dynamo-probe", command]
        sub = click_command.commands[command]  # type: ignore[attr-defined]
        assert sub.make_context(command, words[2:]).params


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dynamo-probe {dp.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["doctor", "--help"], ["--version"], ["demo", "x"]]
)
def test_what_needs_no_torch_does_not_wait_for_it(arguments: list[str]) -> None:
    code = (
        f"import sys\nsys.argv[1:] = {arguments!r}\nfrom dynamo_probe.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["--nonsense"], "--nonsense"),
        (["demo", "nonsense"], "give one of dormancy, sparsity, heads, all"),
        (["demo", "--updates", "0"], "--updates"),
        (["report"], "LOGDIR"),
        (["report", ".", "--tau", "-1"], "--tau"),
        (["report", ".", "--tau", "x"], "--tau"),
        (["doctor"], "no script was given"),
        (["doctor", "--time-limit", "0", "x.py"], "give more than 0"),
        (["doctor", "--time-limit", "nan", "x.py"], "give more than 0"),
        (["run", "--probe", "a\nb", "x.py"], "a\\nb"),
    ],
)
def test_a_wrong_call_is_told_in_one_line_with_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err and err.count("\n") == 1 and "--help says more" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell_is_printed(shell: str, tmp_path: Path) -> None:
    disabled = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # no shell runs the tests
    done = call("--show-completion", shell, cwd=tmp_path, **disabled)
    assert done.returncode == 0, done.stderr
    assert "_DYNAMO_PROBE_COMPLETE" in done.stdout and "dynamo-probe" in done.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dynamo-probe ", set(COMMANDS)),
        ("dynamo-probe demo ", {"dormancy", "sparsity", "heads", "all"}),
        ("dynamo-probe run --probe r", {"rank", "repetition"}),
    ],
)
def test_completion_offers_what_can_follow(words: str, offered: set[str], tmp_path: Path) -> None:
    done = call(
        cwd=tmp_path,
        _DYNAMO_PROBE_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split(" ")) - 1),
    )
    assert set(done.stdout.split()) == offered


def test_what_came_from_elsewhere_is_printed_as_one_harmless_line() -> None:
    assert printable("a\n\x1b[31mb\u202e\udcff") == "a\\n\\x1b[31mb\\u202e\\udcff"
    assert printable("ä 層") == "ä 層"
    assert len(printable("x" * 10_000)) == 300
