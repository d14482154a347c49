"""ReGraMa: recycle units that get little gradient (Liu et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from dynamo_probe.anatomy import kinds
from dynamo_probe.anatomy.shards import whole
from dynamo_probe.functional.dormancy import check_tau, normalised_scores
from dynamo_probe.functional.gradients import mean_by_unit
from dynamo_probe.functional.moments import Moments
from dynamo_probe.observation.parameters import held_by, to_host
from dynamo_probe.schedule import Schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable, Source
from dynamo_probe.treatments.recycling import Choice, Recycling, check_choice
from dynamo_probe.treatments.redo import period, threshold_report

Score = Literal["activation-gradient", "weight-gradient"]


class ReGraMa(Recycling):
    """Recycle the units whose gradient is small beside their layer's.

    Liu et al. 2025, *Measure gradients, not activations! Enhancing neuronal activity in deep
    reinforcement learning*. The score of a unit is the mean size of its gradient over the mean of
    its layer. It sees units that have stopped to learn although they are active, and it has a
    meaning for any activation function. Everything else is as in `ReDo`: what is drawn, what is
    zeroed, what the optimizer forgets, the readings (`regrama/recycled`, `.../recycled_total`,
    `.../dormant_again`, `.../output_change`) and the events.

    A unit whose outgoing weights are zero gets no gradient either, and a recycled one has zeros
    there: give it time to grow some before it is scored again (a period in the hundreds).
    """

    name = "regrama"

    def __init__(
        self,
        tau: float = 0.01,
        every: int | Schedule = 1000,
        start: int = 0,
        end: int | None = None,
        score: Score = "activation-gradient",
        *,
        choice: Choice = "dormant",
        updates: int = 1,
        init: Literal["own", "xavier"] = "own",
        moments: Moments = "live-mean",
        mirror: nn.Module | Sequence[nn.Module] = (),
        layers: Sequence[str] | None = None,
    ) -> None:
        """Set what is recycled, when and how; see `ReDo`.

        Args:
            tau: threshold of the score, at least 0; 0.01 is the authors'.
            every: period in updates, or a schedule (then without `start` and `end`).
            start: nothing is recycled before this update.
            end: nothing is recycled after this update.
            score: `activation-gradient` is E|dL/dz| with z the output of the unit's layer, before
                norm and activation function, as in the paper. `weight-gradient` is the mean |dL/dW|
                of its incoming weights, in which samples of opposite sign cancel, as in public code
                of the same name; it is read as the optimizer gets it.
            choice: which units: `dormant` those with such a score; `random` and `inverted` (highest
                scores first) are controls that take as many of each layer.
            updates: over how many updates before a firing gradients are gathered; 1 for
                `weight-gradient`.
            init: distribution of the fresh weights.
            moments: what becomes of the optimizer's state at the touched weights.
            mirror: networks of the same shape, such as target networks, that get the same weights.
            layers: names of the layers to treat; None takes all that can be recycled.

        Raises:
            ValueError: when an argument is out of range.
        """
        super().__init__(
            period(every, start, end), init=init, moments=moments, mirror=mirror, layers=layers
        )
        check_tau(tau)
        check_choice(score, ("activation-gradient", "weight-gradient"), "score")
        check_choice(choice, ("dormant", "random", "inverted"), "choice")
        if updates < 1:
            raise ValueError(f"updates is {updates}; give 1 or more")
        if score == "weight-gradient" and updates > 1:
            raise ValueError("a weight-gradient is that of one update; leave updates at 1")
        self.tau = float(tau)
        self.score: Score = score
        self.choice: Choice = choice
        self.updates = updates
        self.source: Source | None = None
        self._rows: dict[str, Tensor] = {}
        self._after_closure = False
        self._firings = 0

    def attach(self, site: Site) -> None:
        """Record the initial distributions and ask for gradients.

        Raises:
            ValueError: when a mirror is not a network of the same shape, a layer that was named
                does not exist, or hooks cannot ride on the training's passes.
        """
        super().attach(site)
        if self.score == "weight-gradient":
            self.observes = "reads the gradients that the optimizer is given"
            site.before_step(self, partial(self._before_step, site))
        elif site.no_riding is not None:
            raise ValueError(
                f"{site.no_riding}, so that no gradient at a unit can be seen; take "
                "score='weight-gradient'"
            )
        else:
            self.source, _ = site.observe_gradients(self)

    def _before_step(self, site: Site, optimizer: Optimizer, closure: bool) -> None:
        if not self.enabled:
            return
        if closure:
            self._after_closure = True
            return
        held, rows = held_by(optimizer), dict[str, Tensor]()
        for name in site.layers:
            module = site.model.get_submodule(name)
            try:
                dim = kinds.own_unit_dim(module)
            except kinds.NoSlice:
                continue  # nor can it be recycled; the wiring says so
            weight = module.get_parameter("weight")
            if id(weight) in held and weight.grad is not None:
                rows[name] = mean_by_unit(whole(weight.grad), dim)
        self._rows |= to_host(rows)

    def fire(self, site: Site) -> None:
        """Score the units, recycle those that are due, and report what was changed."""
        gradients, samples = self._gradients()
        scores = {name: normalised_scores(one) for name, one in gradients.items()}
        self._recycle_dormant(site, scores, self.tau, self.choice, samples)
        self._firings += 1

    def _gradients(self) -> tuple[Mapping[str, Tensor], int | None]:
        """Return the mean size of each unit's gradient by layer, and over how many samples."""
        if self.source is not None:
            sums = self.source.read()
            means = {name: one.mean_magnitude() for name, one in sums.items()}
            return means, min(one.samples for one in sums.values())
        rows, self._rows = self._rows, {}
        if self._after_closure:
            self._after_closure = False
            raise NotMeasurable(
                "the step was given a closure, which makes its gradients inside; take "
                "score='activation-gradient'"
            )
        if not rows:
            raise NotMeasurable("no hidden layer had a gradient at the optimizer's step")
        return rows, None

    def state_dict(self) -> dict[str, Any]:
        """Return ages, counts, and the recorded initial distributions."""
        return {**super().state_dict(), "firings": self._firings, "rows": dict(self._rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state)
        self._firings, self._rows = int(state["firings"]), dict(state["rows"])

    def report(self) -> list[str]:
        """Say what was recycled, and what cannot be."""
        return [*threshold_report(self.total, self._firings, self.tau), f"scores by {self.score}"]
