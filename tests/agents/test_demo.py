"""The demonstration from end to end, in its short form."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.image
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import demo

TAGS = {
    "digits-base": {"dormancy/tau=0.025", "charts/online_accuracy"},
    "digits-redo": {"dormancy/tau=0.025", "charts/online_accuracy", "redo/recycled"},
    "digits-reference": {"dormancy/tau=0.025", "charts/online_accuracy", "redo/recycled"},
    "digits-stationary": {"dormancy/tau=0.025", "charts/online_accuracy"},
    "cartpole-base": {"dormancy/tau=0.1", "charts/episodic_return"},
    "cartpole-redo": {"dormancy/tau=0.1", "charts/episodic_return", "redo/recycled"},
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[str, Path]:
    """What the demonstration printed, and the directory that it made."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    printed = io.StringIO()
    with redirect_stdout(printed):
        demo.main(demo.Args(fast=True, out=out))
    (made,) = out.iterdir()
    return printed.getvalue(), made


@pytest.mark.parametrize("arm", TAGS)
def test_every_arm_has_a_tensorboard_log(shown, arm: str):
    log = EventAccumulator(str(shown[1] / arm))
    log.Reload()
    assert TAGS[arm] <= set(log.Tags()["scalars"])
    assert ("redo/recycled" in log.Tags()["scalars"]) == arm.endswith(("redo", "reference"))


def test_the_picture_is_a_png_that_shows_something(shown):
    pixels = matplotlib.image.imread(shown[1] / "demo.png")
    assert pixels.shape[0] > 800 and pixels.shape[1] > 1200
    for colour in ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0x55, 0x55, 0x55)):
        near = abs(pixels[..., :3] - [channel / 255 for channel in colour]).max(2) < 0.02
        assert near.sum() > 500, f"nothing is drawn in {colour}"


def test_the_table_says_what_the_log_says(shown):
    printed, made = shown
    for arm, tau in (("digits", 0.025), ("cartpole", 0.1)):
        ends = []
        for name in ("base", "redo"):
            log = EventAccumulator(str(made / f"{arm}-{name}"))
            log.Reload()
            ends.append(f"{log.Scalars(f'dormancy/tau={tau}')[-1].value:.0%}")
        lines = [line for line in printed.splitlines() if "dormant units at the end" in line]
        assert ends == lines[arm == "cartpole"].split()[5:7]


def test_it_says_where_everything_is_and_claims_no_gain_in_return(shown):
    printed, made = shown
    assert str(made / "demo.png") in printed
    assert f"tensorboard --logdir {made.parent}\n" in printed
    assert "none is claimed" in " ".join(printed.split())
    assert "units recycled" in printed
