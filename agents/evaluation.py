"""Episodes without exploration, beside the training and without a trace in it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboard.compat.proto import summary_pb2
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from agents.environments import Actions, Environments

Policy = Callable[[Tensor], np.ndarray]
"""Takes observations `[environments, *observation]`; returns the actions without exploration."""
# As on Atari: 108,000 frames, four to a step. Some of MinAtar's games need not end at all.
MOST_STEPS = 27_000


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What some episodes gave.

    Attributes:
        returns: undiscounted, `[episodes]`.
        frames: of the first episode, uint8 `[height, width, 3]` each; empty unless asked for.
        cut: how many episodes were cut off at 27,000 steps.
    """

    returns: tuple[float, ...]
    frames: tuple[np.ndarray, ...]
    cut: int


def evaluate(
    policy: Policy,
    env_id: str,
    *,
    actions: Sequence[Actions],
    episodes: int,
    seed: int,
    device: str = "cpu",
    video: bool = False,
) -> Evaluation:
    """Play episodes in an environment of their own.

    Args:
        policy: chooses the actions; it is called without gradients.
        env_id: Gymnasium's name.
        actions: the kinds of actions that the policy gives.
        episodes: how many.
        seed: of the environment.
        device: where the policy takes its observations.
        video: keep the frames of the first episode.
    """
    environments = Environments(env_id, 1, actions, render=video)
    returns: list[float] = []
    frames: list[np.ndarray] = []
    cut = steps = 0
    total = 0.0
    try:
        environments.reset(seed)
        while len(returns) < episodes:
            if video and not returns and (frame := environments.frame()) is not None:
                frames.append(frame)
            with torch.no_grad():
                chosen = policy(torch.from_numpy(environments.observations).to(device))
            step = environments.step(chosen)
            steps, total = steps + 1, total + float(step.rewards[0])
            if step.done[0] or steps == MOST_STEPS:
                returns.append(total)
                if not step.done[0]:
                    cut += 1
                    environments.reset(seed + len(returns))
                steps, total = 0, 0.0
    finally:
        environments.close()
    return Evaluation(tuple(returns), tuple(frames), cut)


def show_video(
    writer: SummaryWriter, tag: str, frames: Sequence[np.ndarray], step: int, *, most: int = 600
) -> None:
    """Put an animation into a TensorBoard log, under Images.

    Args:
        writer: the log.
        tag: what it is.
        frames: uint8 `[height, width, 3]` each.
        step: the environment step it belongs to.
        most: of a longer film so many frames are shown, at equal distances.
    """
    if not frames:
        return
    chosen = frames[:: -(-len(frames) // most)]
    pictures = [Image.fromarray(np.asarray(frame, dtype=np.uint8)) for frame in chosen]
    memory = io.BytesIO()
    pictures[0].save(memory, "GIF", save_all=True, append_images=pictures[1:], duration=40, loop=0)
    height, width = frames[0].shape[:2]
    proto: Any = summary_pb2
    image = proto.Summary.Image(
        height=height, width=width, colorspace=3, encoded_image_string=memory.getvalue()
    )
    summary = proto.Summary(value=[proto.Summary.Value(tag=tag, image=image)])
    writer._get_file_writer().add_summary(summary, step)
