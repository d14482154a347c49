"""Repeated data while it is trained on: how much, how often, from where, and what its loss is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from dynamo_probe.functional.repetition import (
    CLASSES,
    FRESH,
    UNKNOWN,
    class_name,
    damage_region,
    parameters_without_embeddings,
)
from dynamo_probe.instrument import Probe
from dynamo_probe.observation.first_seen import Places
from dynamo_probe.observation.inputs import Inputs, InputTap
from dynamo_probe.observation.order import Order, Origin, origins_of
from dynamo_probe.observation.sketch import Sketch, looked_at
from dynamo_probe.observation.tally import Tally
from dynamo_probe.probes.repetition_alarms import Alarms, order_alarm
from dynamo_probe.probes.repetition_given import as_batches, check, give_losses
from dynamo_probe.probes.repetition_merge import merge
from dynamo_probe.schedule import Schedule, as_schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable

_ADVISED, _REFUSED = 1e-3, 1e-2
"""Shares of fresh tokens that look repeated: from which more memory is advised, and asked for."""
_LOSSES = {
    "fresh": slice(FRESH, UNKNOWN),
    "repeated": slice(UNKNOWN, CLASSES),
    **{class_name(number): slice(number, number + 1) for number in range(UNKNOWN, CLASSES)},
}
"""{tag: classes of tokens that the loss is of}."""


class Repetition(Probe):
    """Detect repeated data in the training's own batches, live and in fixed memory.

    Every update is looked at; the readings, at every `every`-th, are of all tokens since the last:

    - `repetition/fraction`: the share of tokens that lie in a run of `ngram` tokens that came
      before, in an earlier batch or earlier in this one. A stretch of `2 * ngram - 1` tokens or
      more that came before is found at any offset, but for up to `ngram - 1` tokens at each of its
      ends; whether a shorter one is found depends on where it lies;
    - `repetition/repeats=2`, `=3-4`, `=5-8`, ...: the share of tokens by how often their text has
      been seen by then, itself included. Counts are exact for a sample of the text, chosen by
      content; the share of the rest is `repetition/repeats=unknown`;
    - `repetition/tokens`: tokens looked at. Padding and pieces of fewer than 8 tokens are left out;
    - `repetition/false`: the share of fresh tokens that the filter takes for repeated by now, by
      arithmetic. Above 1 % nothing is read any more: give more memory;
    - `repetition/loss/fresh`, `/repeated`, `/repeats=2`, ...: the next-token cross-entropy of this
      update's tokens, from the logits that the model returned anyway.

    Alarms, as events `alert` and as warnings: the data loader replays an earlier stretch after a
    resume; an epoch comes in the order of an earlier one (a forgotten `set_epoch`); repeat counts
    lie where Hernandez et al. (2022) found damage, for 3 % of the tokens or more; the loss on
    repeated tokens is near 0 while the held-out loss rises. `origins` says which rows of the newest
    update were seen before, and where.

    The tokens are those of the forward passes that a backward pass reaches: `input_ids`, or the
    first argument of whole numbers. Where a mask `attention_mask` is given, what it leaves out is
    padding. A loss that shows a batch to the model twice makes it repeated: give `tokens=` then.
    With several ranks each sees its own rows, and at every reading all learn what the
    others have seen: a repeat across ranks between two readings is found from the next one on.
    """

    name = "repetition"
    observes = "the tokens of the training's own forward passes, at every update"

    def __init__(
        self,
        every: int | Schedule = 100,
        *,
        tokens: Callable[[], Any] | None = None,
        ngram: int = 32,
        memory: int = 8 << 20,
        pad: int | None = None,
        losses: Callable[[], Any] | bool = True,
        held_out: Callable[[], float | None] | None = None,
        parameters: float | None = None,
    ) -> None:
        """Set what is looked at, and with how much memory.

        Args:
            every: period of the readings in updates, or a schedule.
            tokens: called once after each update, returns its tokens: whole numbers [rows, T], or
                a list of such, one for each micro-batch. None takes them from the forward passes.
            ngram: tokens in a run that counts as repeated.
            memory: bytes; a checkpoint grows by as much. 8 MiB keep the share of fresh tokens that
                look repeated below 0.1 % for 9e7 fresh tokens at 32 tokens a run, for 7e7 where
                short repeats cut the text into pieces; that number grows with the memory.
            pad: the token that is padding.
            losses: a callable that returns the loss of each token of the update that has ended,
                [rows, T], NaN where there is none; it is called at readings only. True takes the
                losses from the model's logits, which is right for a causal language model; False
                takes none.
            held_out: returns the newest held-out loss, or None while there is none.
            parameters: N of the damage region; None counts the model's, without embeddings.

        Raises:
            ValueError: when a number is out of range.
            TypeError: when `tokens` or `held_out` cannot be called.
        """
        super().__init__(as_schedule(every))
        check(tokens, ngram, memory, pad, losses, held_out, parameters)
        self.tokens, self.losses, self.held_out = tokens, losses, held_out
        self.ngram, self.memory, self.pad = ngram, int(memory), pad
        self.parameters = parameters
        self.origins: tuple[Origin, ...] = ()
        self._tap = InputTap() if tokens is None else None
        self._tally = Tally()
        self._order = Order()
        self._alarms = Alarms()
        self._rows = 0
        self._seen = 0
        self._short = 0
        self._resumed: int | None = None
        self._updates = 0
        self._failed: str | None = None
        self._told: set[str] = set()

    def attach(self, site: Site) -> None:
        """Make the memory, and ask to see every update.

        Raises:
            ValueError: when `pad` is no token of the model.
        """
        tables = [m.num_embeddings for m in site.model.modules() if isinstance(m, nn.Embedding)]
        if self.pad is not None and self._tap is not None and self.pad >= max(tables, default=1e9):
            raise ValueError(f"pad is {self.pad} and the model has tokens 0 to {max(tables) - 1}")
        self._sketch = Sketch(self.memory, self.ngram, shared=site.process_group is not None)
        if self.parameters is None:
            self.parameters = parameters_without_embeddings(site.model)
        if self._tap is None and self.losses is True:
            reason = (
                "with tokens= the model's output is not looked at: give losses=, or losses=False"
            )
            self._skip(site, "loss", reason)
        site.follow(self, self._follow, self._tap)
        self._prepare(0)

    def _prepare(self, step: int) -> None:
        """Ask for losses if the update that comes next has a reading."""
        if self._tap is not None:
            self._tap.read_losses = self.losses is True and self.schedule.after(step) == step + 1

    def _follow(self, site: Site) -> None:
        if self._failed is None:
            try:
                self._look(site)
            except Exception as error:
                if site.process_group is None:
                    raise
                # The other ranks wait for this one at the next reading; there all stop together.
                self._failed = f"{type(error).__name__}: {error}"
        self._prepare(site.step)

    def _look(self, site: Site) -> None:
        """See the tokens of the update that has ended."""
        batches = self._batches(site.step)
        if not batches and self._tap is not None and self._tap.problem is not None:
            self._skip(site, "tokens", self._tap.problem)
        rows = sum(len(batch.tokens) for batch in batches)
        rank, ranks = site.rank, site.ranks
        row, repeated = rank * rows, 0
        origins: list[Origin] = []
        for batch in batches:
            tokens = batch.tokens.numpy()
            if tokens.min() < 0:
                raise ValueError(
                    f"token {tokens.min()} occurs; token ids are 0 or more. Give tokens=, a "
                    "callable that returns the ids before anything is masked with a negative one"
                )
            valid = self._valid(tokens, batch)
            number = np.arange(row, row + len(tokens))
            places = Places(np.full(len(tokens), site.step), number, self._rows + number)
            seen = self._sketch.see(tokens, valid, places)
            self._tally.add(seen.measured, seen.short, seen.classes)
            self._add_losses(site, batch, seen.classes, valid)
            again, known = origins_of(seen, valid, places)
            repeated += again
            origins += known
            row += len(tokens)
        self._rows += ranks * rows
        self._updates = site.step
        self.origins = tuple(origins)
        if self._order.see(site.step, rows, repeated, origins, self._resumed):
            order_alarm(site, self.name, self._order, self._resumed)

    def _batches(self, step: int) -> list[Inputs]:
        if self._tap is not None:
            batches = self._tap.take()
        else:
            assert self.tokens is not None
            batches = [Inputs(one) for one in as_batches(self.tokens())]
        if callable(self.losses) and self.schedule.after(step - 1) == step:
            give_losses(batches, self.losses())
        return batches

    def _valid(self, tokens: np.ndarray, batch: Inputs) -> np.ndarray | None:
        valid = None if batch.mask is None else batch.mask.numpy()
        if self.pad is not None:
            kept = tokens != self.pad
            valid = kept if valid is None else valid & kept
        return None if valid is None or valid.all() else valid

    def _add_losses(
        self, site: Site, batch: Inputs, classes: np.ndarray | None, valid: np.ndarray | None
    ) -> None:
        if batch.no_losses is not None:
            self._skip(site, "loss", batch.no_losses)
        if batch.losses is None:
            return
        losses = batch.losses.numpy()
        which = np.isfinite(losses) & looked_at(losses.shape, valid)
        self._tally.add_losses(losses[which], None if classes is None else classes[which])

    def fire(self, site: Site) -> None:
        """Give the readings of the updates since the last."""
        tally, failed, lost = self._tally, self._failed, 0
        if site.process_group is not None:
            tally, failed, lost = merge(site, tally, self._sketch, failed)
        self._tally = Tally()
        if failed is not None:
            raise RuntimeError(f"on one of the ranks: {failed}")
        if lost:
            reason = f"{lost} blocks were not told to the other ranks: read more often (every=)"
            self._skip(site, "ranks", reason)
        total = int(tally.tokens.sum())
        self._seen, self._short = self._seen + total, self._short + tally.short
        if total == 0:
            raise NotMeasurable(self._why_nothing(tally))
        false = self._sketch.false_share()
        site.emit(f"{self.name}/false", false)
        site.emit(f"{self.name}/tokens", total)
        if false > _ADVISED:
            self._skip(site, "memory", self._fuller(false), kind="note")
        if false > _REFUSED:
            raise NotMeasurable(f"the memory is full: give memory={2 * self.memory} or more")
        site.emit(f"{self.name}/fraction", tally.repeated / total, total)
        for number in range(UNKNOWN, CLASSES):
            if tally.tokens[number]:
                share = tally.tokens[number] / total
                site.emit(f"{self.name}/{class_name(number)}", float(share), total)
        for name, which in _LOSSES.items():
            loss, samples = tally.mean_loss(which)
            if samples:
                site.emit(f"{self.name}/loss/{name}", loss, samples)
        assert self.parameters is not None
        self._alarms.damage(site, self.name, tally.tokens, self.parameters)
        if self.held_out is not None:
            self._alarms.memorised(site, self.name, tally, self.held_out())

    def _why_nothing(self, tally: Tally) -> str:
        if tally.short:
            return "all pieces between padding are shorter than 8 tokens"
        if self._tap is not None and self._tap.problem is not None:
            return self._tap.problem
        if self._tap is None:
            return "tokens= returned no tokens since the last reading"
        return (
            "no forward pass of the model was seen that a backward pass reaches: watch the module "
            "that the loop calls, or give tokens=, a callable that returns the update's tokens"
        )

    def _fuller(self, false: float) -> str:
        return (
            f"about {false:.2%} of fresh tokens look repeated by now; give more memory "
            f"(memory={2 * self.memory}) to a run of this length"
        )

    def _skip(self, site: Site, what: str, reason: str, kind: str = "skipped") -> None:
        if what not in self._told:
            self._told.add(what)
            site.note(kind, f"{self.name}: {what}", reason=reason)

    def report(self) -> list[str]:
        """Say what was seen, what the memory still holds, and what N the damage region is for."""
        assert self.parameters is not None
        left, right = damage_region(self.parameters)
        lines = [
            f"{self._seen} tokens in {self._updates} updates; {self._sketch.bloom.inserted} blocks "
            f"of {self.ngram} in {self._sketch.nbytes / (1 << 20):.3g} MiB",
            f"of fresh tokens {self._sketch.false_share():.2g} look repeated by now",
            f"damage region for N = {self.parameters:.3g} parameters: repeat counts {left:.0f} to "
            f"{right:.0f}",
        ]
        if self._short:
            lines.append(f"{self._short} tokens not looked at: in pieces shorter than 8")
        if self._tap is not None and self._tap.problem is not None:
            lines.append(f"skipped: {self._tap.problem}")
        return lines

    def state_dict(self) -> dict[str, Any]:
        """Return the memory, what was counted since the last reading, and what alarms know."""
        return {
            "sketch": self._sketch.state_dict(),
            "tally": self._tally.state_dict(),
            "order": self._order.state_dict(),
            "alarms": self._alarms.state_dict(),
            "rows": self._rows,
            "seen": self._seen,
            "short": self._short,
            "updates": self._updates,
            "failed": self._failed,
            "told": sorted(self._told),
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse a memory of another size.

        Raises:
            ValueError: when `memory` or `ngram` is another.
        """
        here, there = len(self._sketch.bloom.words), len(state["sketch"]["words"])
        if here != there or self.ngram != state["sketch"]["n"]:
            raise ValueError(
                f"the state of {self.name} is of ngram={state['sketch']['n']} and a filter of "
                f"{there} words, here are ngram={self.ngram} and {here}: give the ngram= and "
                "memory= it was saved with"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._sketch.load_state_dict(state["sketch"])
        self._tally.load_state_dict(state["tally"])
        self._order.load_state_dict(state["order"])
        self._alarms.load_state_dict(state["alarms"])
        self._rows, self._seen, self._short = state["rows"], state["seen"], state["short"]
        self._updates = self._resumed = state["updates"]
        self._failed, self._told = state["failed"], set(state["told"])
        self._prepare(self._updates)
