"""What a measurement of pruning plasticity found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dynamo_probe.functional.one_shot import Scope


@dataclass(frozen=True, slots=True)
class Curve:
    """Scores along some updates.

    Attributes:
        updates: after how many updates, [points]; the first is 0.
        scores: what `evaluate` gave then, [points].
    """

    updates: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a network took the loss of some of its connections.

    Attributes:
        rate: the pruning rate that was asked for.
        variant: the regeneration, with what it went by, such as `zero-cost by gradient`; `none`.
        label: rate and variant as they stand in tags.
        before: the score before pruning.
        curve: the recovery; entry 0 is just after pruning.
        control: the same of the unpruned network.
        pruned: connections that went, those that were dropped to be regrown among them.
        regrown: connections that were regenerated.
        kept: {weight: connections that were there while it recovered}.
        weights: how many connections the dense network has in these weights.
    """

    rate: float
    variant: str
    label: str
    before: float
    curve: Curve
    control: Curve
    pruned: int
    regrown: int
    kept: Mapping[str, int]
    weights: int

    @property
    def sparsity(self) -> float:
        """The share of the weights that was not there while it recovered; counted."""
        return (self.weights - sum(self.kept.values())) / self.weights

    @property
    def immediate(self) -> float:
        """Score just after pruning - score before it."""
        return self.curve.scores[0] - self.before

    @property
    def after(self) -> float:
        """The score after the last update."""
        return self.curve.scores[-1]

    @property
    def plasticity(self) -> float:
        """Score after the last update - score before pruning; the definition of Liu et al."""
        return self.after - self.before

    @property
    def plasticity_vs_control(self) -> float:
        """Score after the last update - that of the unpruned network after as many updates."""
        return self.after - self.control.scores[-1]


@dataclass(frozen=True, slots=True)
class PlasticityReport:
    """Pruning plasticity at one moment of a training.

    Attributes:
        before: the score of the network before pruning (acc_PRE).
        control: the scores of the unpruned network, trained on for as many updates.
        records: one for each pruning rate and regeneration, in the order asked for.
        skipped: {label of a record that there is not: why}.
        learning_rates: of each group of each optimizer, at the moment of pruning.
        frozen: whether they were held all along.
        updates: how many updates each network was trained on.
        scope: `global` or `uniform`.
        weights: how many weights could be pruned.
        notes: what the user should know.
    """

    before: float
    control: Curve
    records: tuple[Recovery, ...]
    skipped: Mapping[str, str]
    learning_rates: tuple[float, ...]
    frozen: bool
    updates: int
    scope: Scope
    weights: int
    notes: tuple[str, ...]

    def at(self, rate: float, regenerate: str | None = None) -> Recovery:
        """Return the record of a pruning rate and a regeneration.

        Raises:
            KeyError: when there is none; with the reason where it was skipped.
        """
        for record in self.records:
            if record.rate == rate and record.variant.split()[0] == (regenerate or "none"):
                return record
        raise KeyError(
            f"nothing was measured at rate {rate:g} and regenerate={regenerate!r}; there are "
            f"{[record.label for record in self.records]}, skipped {dict(self.skipped)}"
        )

    def final_gap(
        self, rate: float, regenerate: str | None = None, *, final_score: float | None = None
    ) -> float:
        """Return how far the pruned network ends from the unpruned one, on the training's schedule.

        That is acc(CONTRAIN^(T-t)(W_t * m_t, a_[t+1:T])) - acc_FINAL, where the measurement was
        made with `frozen=False` and updates = T - t, and `train_step` steps the schedule.

        Args:
            rate: the pruning rate.
            regenerate: the regeneration.
            final_score: acc_FINAL, the score of the unpruned network after update T; None takes
                the control's, which was trained here.

        Raises:
            ValueError: when learning rates were frozen.
            KeyError: as for `at`.
        """
        if self.frozen:
            raise ValueError(
                "learning rates were frozen, so this is not the end of a training; measure with "
                "frozen=False and updates= those that are left"
            )
        final = self.control.scores[-1] if final_score is None else final_score
        return self.at(rate, regenerate).after - final

    def __str__(self) -> str:
        """Put it into a table."""
        rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(self.learning_rates))
        held = "frozen at" if self.frozen else "scheduled from"
        lines = [
            f"pruning plasticity: {self.updates} updates, learning rate {held} {rates}",
            f"one-shot magnitude pruning, {self.scope}, of {self.weights:,} weights",
            f"before pruning {self.before:.4f}; unpruned, trained on {self.control.scores[-1]:.4f}",
        ]
        head = ("rate", "regeneration", "sparsity", "immediate", "after", "plasticity", "v control")
        rows = [
            (
                f"{r.rate:g}",
                r.variant,
                f"{r.sparsity:.4f}",
                f"{r.immediate:+.4f}",
                f"{r.after:.4f}",
                f"{r.plasticity:+.4f}",
                f"{r.plasticity_vs_control:+.4f}",
            )
            for r in self.records
        ]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        for row in (head, *rows):
            cells = [
                text.ljust(width) if i == 1 else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines += [f"not measured: {label}: {reason}" for label, reason in self.skipped.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
