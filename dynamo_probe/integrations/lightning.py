"""Watch the training of a LightningModule: `Trainer(callbacks=[DynamoProbe([...])])`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dynamo_probe.instrument import Instrument
from dynamo_probe.integrations.attachment import Attachment, trained_by
from dynamo_probe.integrations.framework import framework
from dynamo_probe.integrations.redirection import ignore_redirected_steps
from dynamo_probe.watch import Watch

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    Callback = framework("lightning.pytorch", "pytorch_lightning", extra="lightning").Callback


class DynamoProbe(Callback):
    """Attach when a fit starts, close when it ends or fails, resume from Lightning's checkpoints.

    An update is a step of the (first) optimizer, whatever `accumulate_grad_batches` says: with one
    optimizer the trainer's `global_step`. Validation is not counted. It works in the trainers of
    `lightning.pytorch` and of `pytorch_lightning`.
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
            instruments: probes and treatments; every fit gets copies of them.
            log_dir: where rank 0 writes a TensorBoard log; None: the trainer's, if it has a logger.
            sinks: more places for readings.
            probe_batch: inputs of the watched module. A compiled LightningModule needs it.
            model: name of the submodule to watch, such as `"generator"`; None watches the whole.
            seed: seed of every random choice that an instrument makes.
            on_error: `warn` or `raise`.
        """
        super().__init__()
        self._name = model
        self._early = probe_batch is not None
        self._attachment = Attachment(instruments, log_dir, sinks, probe_batch, seed, on_error)

    @property
    def watch(self) -> Watch | None:
        """The watch of the newest fit, open or closed; None before the first."""
        return self._attachment.watch

    @property
    def state_key(self) -> str:
        """What the state is kept under in a checkpoint: one for each watched submodule."""
        return self._generate_state_key(model=self._name)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach where a probe batch shows the layers: before compiled code runs."""
        if self._early:
            self._begin(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach after the sanity check, whose batch would become the probe batch."""
        if not self._attachment.open:
            self._begin(trainer, pl_module)
        if len(trainer.optimizers) == 1:  # the trainer counts the steps of all
            self._attachment.count_from(trainer.global_step)

    def _begin(self, trainer: Any, pl_module: Any) -> None:
        model = pl_module.get_submodule(self._name or "")
        log_dir = trainer.log_dir if trainer.loggers else None  # asks all ranks
        optimizers = trained_by(model, trainer.optimizers)
        begin, zero = self._attachment.begin, trainer.is_global_zero
        ignore_redirected_steps(begin(model, optimizers, log_dir=log_dir, writes=zero))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close."""
        self._attachment.close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close."""
        self._attachment.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the watch's state for the checkpoint."""
        return self._attachment.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back from the checkpoint that the fit resumes from."""
        self._attachment.load_state_dict(state_dict)
