"""Watch an agent of Stable-Baselines3 learn: `agent.learn(..., DynamoProbeCallback([...]))`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynamo_probe.instrument import Instrument
from dynamo_probe.integrations.attachment import Attachment
from dynamo_probe.integrations.framework import framework
from dynamo_probe.watch import Watch

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback
else:
    BaseCallback = framework("stable_baselines3.common.callbacks", extra="sb3").BaseCallback


class DynamoProbeCallback(BaseCallback):
    """Attach to one network of the agent when it begins to learn; close when it has learnt.

    By default that is `q_net` of DQN, the whole `policy` of PPO and A2C, and `critic` of SAC, TD3
    and DDPG. The clock is the network's own optimizer; what the actor's loss sends through a critic
    does not count. Give two callbacks to watch critic and actor. Acting and target networks do not
    count, and no target is changed: copy recycled units of `q_net` to `q_net_target` if you wish.

    `agent.save` knows nothing of a watch. Save `callback.state_dict()` beside it with `torch.save`,
    and give it to `load_state_dict` of a new callback before `learn`. A callback that learns
    the same agent again goes on by itself. If `learn` fails, call `close`.
    """

    def __init__(
        self,
        instruments: Instrument | Iterable[Instrument],
        *,
        log_dir: str | os.PathLike[str] | None = None,
        sinks: Sequence[Any] = (),
        probe_batch: Any = None,
        seed: int = 0,
        model: str | None = None,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        """Set what is watched; see `dynamo_probe.watch` for the other arguments.

        Args:
            instruments: probes and treatments; every call of `learn` gets copies of them.
            log_dir: where to write a TensorBoard log; None takes a folder with the network's name
                in the agent's log, if it was made with `tensorboard_log=`.
            sinks: more places for readings.
            probe_batch: inputs of the watched network. Without it PPO's is one step of acting.
            model: the network, an attribute of the agent's policy such as `"actor"`, or `"policy"`.
            seed: seed of every random choice that an instrument makes.
            on_error: `warn` or `raise`.
        """
        super().__init__()
        self._name = model
        self._attachment = Attachment(instruments, log_dir, sinks, probe_batch, seed, on_error)

    @property
    def watch(self) -> Watch | None:
        """The watch of the newest call of `learn`, open or closed; None before the first."""
        return self._attachment.watch

    def _on_training_start(self) -> None:
        policy: Any = self.model.policy
        usual = [name for name in ("q_net", "critic") if hasattr(policy, name)]
        name = self._name or next(iter(usual), "policy")
        network = policy if name == "policy" else getattr(policy, name)
        own = getattr(network, "optimizer", None) or policy.optimizer
        logs = getattr(self.model, "tensorboard_log", None)
        log_dir = Path(self.logger.dir) / name if logs and self.logger.dir else None
        clocks = {"environment steps": lambda: float(self.num_timesteps)}
        self._attachment.begin(network, own, log_dir=log_dir, clocks=clocks)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the network; may be called again."""
        self._attachment.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the watch's state, to be saved beside the agent."""
        return self._attachment.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back, before `learn`."""
        self._attachment.load_state_dict(state)
