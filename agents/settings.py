"""The settings that every agent has: its environments, its watch, its log and its checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Every other setting shapes the training: to resume, it has to be as the checkpoint was made.
_FREE = frozenset(
    "total_steps threads device log_dir log_every checkpoint checkpoint_every resume progress "
    "evaluate_every evaluate_episodes video".split()
)


@dataclass(frozen=True)
class RunArgs:
    """What every agent's `Args` begin with."""

    env_id: str = "CartPole-v1"
    """Gymnasium environment; MinAtar/... and ALE/... need the extras minatar and atari."""
    num_envs: int = 1
    """Environments stepped together; a step of each counts."""
    total_steps: int = 8_000
    """Environment steps to train for."""
    seed: int = 1
    """Seed of network, exploration and environments."""
    device: str = "cpu"
    """Where the networks live: cpu, cuda, ..."""
    threads: int = 1
    """Processor threads of torch; one is fastest for small networks."""
    clip_rewards: bool = False
    """Learn from rewards clipped to -1..1, as is usual on Atari; returns are logged unclipped."""

    probe: bool = False
    """Measure the dormant units."""
    probe_every: int = 100
    """Updates between two measurements."""
    redo: bool = False
    """Recycle the dormant units (ReDo, Sokar et al. 2023)."""
    redo_every: int = 1_000
    """Updates between two recyclings."""
    redo_tau: float = 0.1
    """Units with a score of at most this are recycled; 1 is the mean of the layer."""

    log_dir: Path | None = Path("runs/{agent}/{env_id}-seed{seed}-{time}")
    """Directory of the TensorBoard log, these four names filled in; None writes none."""
    log_every: int = 100
    """Environment steps between two rows of the log."""
    evaluate_every: int | None = None
    """Environment steps between two evaluations without exploration; None makes none."""
    evaluate_episodes: int = 10
    """Episodes of an evaluation."""
    video: bool = False
    """Show the first episode of each evaluation in TensorBoard, under Images."""
    checkpoint: Path | None = None
    """File to keep all in that is needed to go on; written at the end of the training, too."""
    checkpoint_every: int | None = None
    """Environment steps between two checkpoints; None writes one at the end only."""
    resume: Path | None = None
    """Checkpoint to go on from; the settings that shape the training have to be the same."""
    progress: bool = True
    """Show a progress bar, on a terminal only."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        self.check_at_least(1, "num_envs threads log_every probe_every redo_every")
        self.check_at_least(1, "evaluate_episodes evaluate_every")
        self.check_at_least(0, "total_steps redo_tau")
        if self.checkpoint_every is not None and (
            self.checkpoint is None or self.checkpoint_every < 1
        ):
            raise ValueError("checkpoint_every needs a file in checkpoint and 1 step or more")
        if self.video and (self.evaluate_every is None or self.log_dir is None):
            raise ValueError("video shows evaluations in the log; give evaluate_every and log_dir")

    def check_at_least(self, least: float, names: str) -> None:
        """Refuse settings that are smaller; None passes.

        Args:
            least: the smallest value that is meant.
            names: of the settings, with spaces between.

        Raises:
            ValueError: names the first one, and its value.
        """
        for name in names.split():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} is {value}; give {least:g} or more")

    def shaping(self) -> dict[str, Any]:
        """Return the settings that shape the training, as plain values."""
        return {name: x for name, x in asdict(self).items() if name not in _FREE}
