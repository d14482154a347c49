"""Watch the training of a Hugging Face model: `Trainer(callbacks=[DynamoProbeCallback([...])])`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch.optim import Optimizer

from dynamo_probe.instrument import Instrument
from dynamo_probe.integrations.attachment import Attachment
from dynamo_probe.integrations.framework import framework
from dynamo_probe.warning import warn
from dynamo_probe.watch import Watch

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    TrainerCallback = framework("transformers", extra="transformers").TrainerCallback


class DynamoProbeCallback(TrainerCallback):
    """Attach when training begins, close when it ends, save and resume with the checkpoints.

    One update is one step of the optimizer, whatever `gradient_accumulation_steps` says: the
    trainer's `global_step`, less the steps that a gradient scaler skipped. Evaluation is not
    counted. The trainer tells a callback nothing when training fails: call `close` then.
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
        resume_from: str | os.PathLike[str] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        """Set what is watched; see `dynamo_probe.watch` for the other arguments.

        Args:
            instruments: probes and treatments; every training gets copies of them.
            log_dir: where to write a TensorBoard log; None writes none. The main process writes.
            sinks: more places for readings.
            probe_batch: inputs of the watched module. `torch_compile=True` needs it.
            model: qualified name of the submodule to watch; None watches the whole model.
            resume_from: the checkpoint's directory; None looks for `checkpoint-N` in `output_dir`,
                N being the step that the trainer resumes from.
            seed: seed of every random choice that an instrument makes.
            on_error: `warn` or `raise`.
        """
        self._name = model
        self._resume_from = resume_from
        self._attachment = Attachment(instruments, log_dir, sinks, probe_batch, seed, on_error)

    @property
    def watch(self) -> Watch | None:
        """The watch of the newest training, open or closed; None before the first."""
        return self._attachment.watch

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **kwargs: Any
    ) -> None:
        """Attach to the model and to the optimizer inside Accelerate's, and resume."""
        while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
            optimizer = inner
        step = state.global_step
        directory = Path(self._resume_from or _checkpoint(args, state))
        if step and not self._attachment.load(directory):
            warn(
                f"the run resumes from step {step}, but {directory} holds no state of a watch, "
                "which begins anew. Give the checkpoint's directory as resume_from="
            )
        part = model.get_submodule(self._name or "")
        self._attachment.begin(part, optimizer, writes=state.is_world_process_zero)
        self._attachment.count_from(step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the watch's state into the checkpoint's directory."""
        directory = _checkpoint(args, state)
        if state.is_world_process_zero and directory.is_dir():
            self._attachment.save(directory)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Let go of the model; may be called again."""
        self._attachment.close()


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
