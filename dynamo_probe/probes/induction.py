"""Induction heads over training: when they form, what they do for copying, what damages them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dynamo_probe.functional.ablation_effect import Effect, ablation_effects, control_heads
from dynamo_probe.functional.copying import CopyLoss, copy_loss
from dynamo_probe.functional.formation import expected_formation
from dynamo_probe.functional.heads import HeadScores, head_scores
from dynamo_probe.functional.repeated_tokens import SCORES, repeated_tokens
from dynamo_probe.functional.token_model import Call
from dynamo_probe.functional.unmeasurable import Unmeasurable
from dynamo_probe.functional.vocabulary import vocabulary_of
from dynamo_probe.instrument import Probe
from dynamo_probe.probes.cadence import Cadence, usual_dense
from dynamo_probe.probes.damage import Damage, Reference
from dynamo_probe.probes.formation import Formation
from dynamo_probe.schedule import Schedule, as_schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable

_RANDOM = "random heads for "
_BROKEN = 2.0


class Induction(Probe):
    """Score every attention head on repeated random tokens, and see what the heads do.

    The model is run apart from training, on tokens of the probe's own that stay the same over the
    run; between two readings nothing of it is there. Readings:

    - `induction/top`: the highest prefix matching of a head (Olsson et al. 2022); `induction/mean`:
      of the `top` highest; `induction/heads`: how many are above the threshold; `induction/sum`:
      over all heads; `induction/chance`: of one head under uniform attention;
    - `induction/previous_token`, `induction/duplicate_token`, `induction/sink`: the highest of
      these scores, and `induction/second_copy`: of prefix matching where there was one copy before;
    - `induction/prefix_matching` and so on for each of the four: arrays [layers * heads];
    - `induction/head/LAYER.HEAD`: prefix matching of heads above the threshold (`heads="top"`: the
      `top` highest of them at that reading) or of all;
    - `induction/copy_loss` on copies 2 and later, `induction/copy_gap` to the first copy, in nats;
    - `induction/damage`: 1 - sum of prefix matching / its highest so far; with a reference run
      `induction/damage_vs_reference`; with baselines `induction/multiplier/METRIC`, effective size
      over size (Hernandez et al. 2022), and `induction/disproportion`, that of copying over that of
      the test loss;
    - `induction/ablation/SET`: rise of the copy loss without the `top` induction heads together
      (`induction`), without the `top` previous-token heads (`previous_token`), their outputs
      replaced by their means; `.../low` and `.../high`: 95 % interval over sequences;
      `induction/ablation/SET_over_random`: that less the rise without random heads of the same
      layers, paired by sequence, with its interval.

    An event `formed` tells when induction heads have formed: the updates at which prefix matching
    and the copy gap rose, beside the one that a published law expects. While scores move, readings
    come at the shorter period `dense`.
    """

    name = "induction"
    observes = "runs the model apart, on repeated random tokens"

    def __init__(
        self,
        every: int | Schedule = 1000,
        heads: Literal["top", "all"] = "top",
        *,
        vocab_size: int | None = None,
        bos: int | None = None,
        period: int = 25,
        copies: int = 4,
        sequences: int = 8,
        top: int = 4,
        ablate: bool = True,
        dense: int | None = None,
        reference: Reference | None = None,
        baselines: Mapping[str, Mapping[float, float]] | None = None,
        size: float | None = None,
        evaluate: Callable[[], float] | None = None,
        batch_size: int | None = None,
        context: int | None = None,
        call: Call | None = None,
    ) -> None:
        """Set times and tokens.

        Args:
            every: period in updates, or a schedule.
            heads: which heads have a scalar of their own.
            vocab_size: random tokens are drawn below it; None takes the rows of the token
                embedding: the only one, or the one with as many rows as there are logits.
            bos: id of the token that begins a sequence in this training; None for none.
            period: mean lag between copies, in tokens.
            copies: length of a sequence, in periods.
            sequences: how many of them; 4 or more for intervals.
            top: how many heads are taken together.
            ablate: measure what the heads do by ablation, in up to 4 more passes.
            dense: period in updates while scores move; None takes an eighth of `every`, 0 never.
            reference: history of a run without damage, or {update: sum of prefix matching}.
            baselines: {metric: {size: value}} of runs without repeated data; metrics are
                `test_loss`, `copy_loss` and `prefix_matching` (the highest).
            size: of this model, in the unit of the baselines.
            evaluate: returns the test loss; what it changes in the model is put back.
            batch_size: sequences of an update, over all ranks; the expected update of formation
                follows from it. None takes those of the first training batch.
            context: tokens of a training sequence; None takes those of the first training batch.
            call: runs the model on tokens, `call(model, tokens)`, where `model(tokens)` does not.

        Raises:
            TypeError: when an argument is of another kind.
            ValueError: when one is out of range.
        """
        base = as_schedule(every, first=True)
        if heads not in ("top", "all"):
            raise ValueError(f"heads is {heads!r}; give 'top' or 'all'")
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise ValueError(f"top is {top!r}; give a whole number of 1 or more")
        if dense is not None and (isinstance(dense, bool) or dense < 0):
            raise ValueError(f"dense is {dense!r}; give a period in updates, or 0 for never")
        chosen = usual_dense(base) if dense is None else dense or None
        self.cadence = Cadence(base, chosen)
        super().__init__(self.cadence)
        self.heads = heads
        self.vocab_size = vocab_size
        self.top = top
        self.ablate = ablate
        self.batch_size, self.context = batch_size, context
        self._tokens = {"bos": bos, "period": period, "copies": copies, "sequences": sequences}
        repeated_tokens(10**6 if vocab_size is None else vocab_size, **self._tokens)
        self._call = call
        self._damage = Damage(reference, baselines, size, evaluate)
        self._formation = Formation()
        self._before: float | None = None
        self._expected: float | None = None
        self._seed = 0
        self._lines: list[str] = []
        self._told: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> Induction:
        """Copy the settings; the functions and the reference stay those of the user."""
        for thing in (self._call, self._damage.evaluate):
            memo[id(thing)] = thing
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def attach(self, site: Site) -> None:
        """Look once whether the model can be scored.

        Raises:
            ValueError: when the size of the vocabulary cannot be known, the model does not run on
                the tokens, or no attention over tokens was seen; with the fix.
        """
        self._seed = int(torch.randint(2**62, (), generator=site.generator(self.name)))
        if self.batch_size is None or self.context is None:
            site.want_batch()
        if any(is_lazy(p) or p.is_meta for p in site.model.parameters()):
            return
        if site.process_group is not None:
            return  # the model is not run: other ranks may attach at another time
        if self.vocab_size is None:
            self.vocab_size = vocabulary_of(site.model, self._call)
        if self.vocab_size is None:
            raise ValueError(
                "the size of the vocabulary cannot be seen: the model has no embedding, or several "
                "none of which has as many rows as there are logits. Give "
                "dp.Induction(vocab_size=...)"
            )
        self._scores(site.model, sequences=1)

    def fire(self, site: Site) -> None:
        """Give the readings of this update."""
        moved, failure = 0.0, None
        try:
            moved = self._measure(site)
        except (Unmeasurable, NotMeasurable) as reason:
            failure = NotMeasurable(str(reason))
        except Exception as error:
            if site.process_group is None:
                raise
            failure = error
        broken = failure is not None and not isinstance(failure, NotMeasurable)
        # No rank decides by itself, neither about its pace nor to stop: the others would wait.
        agreed = site.largest_over_ranks(_BROKEN if broken else moved)
        if agreed == _BROKEN:
            raise failure or RuntimeError("it failed on another rank")
        if agreed:
            self.cadence.stay_dense(site.step)
        if failure is not None:
            raise failure

    def _scores(self, model: nn.Module, **other: Any) -> HeadScores:
        if self.vocab_size is None:
            self.vocab_size = vocabulary_of(model, self._call)
        if self.vocab_size is None:
            raise NotMeasurable("the size of the vocabulary is not known; give vocab_size=")
        generator = torch.Generator().manual_seed(self._seed)
        arguments = {**self._tokens, **other, "generator": generator, "call": self._call}
        return head_scores(model, self.vocab_size, **arguments)

    def _measure(self, site: Site) -> float:
        """Emit everything; return 1.0 where scores have moved since the last reading, else 0.0."""
        scores = self._scores(site.model)
        for name, reason in scores.skipped.items():
            self._tell(site, f"skipped/{name}", "skipped", f"{self.name}/{name}", reason)
        samples = scores.tokens.numel()
        matching = scores.prefix_matching
        best = [float(matching[head]) for head in scores.top(self.top)]
        mean, total = sum(best) / len(best), float(matching.nansum())
        # What counts as an induction head: 0.3, or ten times chance where that is more.
        threshold = min(0.9, max(0.3, 10 * scores.chance))
        site.emit(f"{self.name}/top", best[0], samples)
        site.emit(f"{self.name}/mean", mean, samples)
        site.emit(f"{self.name}/heads", int((matching > threshold).sum()), samples)
        site.emit(f"{self.name}/sum", total, samples)
        self._emit_scores(site, scores, threshold)
        metrics = {"prefix_matching": best[0]}
        figures = {"prefix_matching": mean}
        copied = self._copy_loss(site)
        if copied is not None:
            site.emit(f"{self.name}/copy_loss", copied.loss, samples)
            site.emit(f"{self.name}/copy_gap", copied.gap, samples)
            metrics["copy_loss"], figures["copy_gap"] = copied.loss, copied.gap
        for figure, value in self._damage.drop(total, site.step):
            site.emit(f"{self.name}/{figure}", value)
        self._compare(site, metrics)
        if copied is not None and self.ablate:
            self._ablate(site, scores, copied)
        self._look_for_formation(site, figures, best[0] > threshold)
        before, self._before = self._before, mean
        # A change by a quarter, where there is more than chance to change: forming or damaged.
        moved = before is not None and abs(mean - before) > max(scores.chance, 0.25 * before)
        return float(moved)

    def _emit_scores(self, site: Site, scores: HeadScores, threshold: float) -> None:
        name, samples, matching = self.name, scores.tokens.numel(), scores.prefix_matching
        site.emit(f"{name}/chance", scores.chance, samples)
        at_second = scores.second_copy["prefix_matching"]
        site.emit(f"{name}/second_copy", float(at_second.nan_to_num(-1.0).max()), samples)
        for score in SCORES:
            values = getattr(scores, score)
            if score != "prefix_matching":
                site.emit(f"{name}/{score}", float(values[scores.top(1, score)[0]]), samples)
            site.emit(f"{name}/{score}_by_head", values.flatten().numpy(), samples)
        shown = [h for h in scores.top(self.top) if float(matching[h]) > threshold]
        for layer, head in shown if self.heads == "top" else scores.top(matching.numel()):
            site.emit(f"{name}/head/{layer}.{head}", float(matching[layer, head]), samples)
        layers, heads = matching.shape
        site.emit(f"{name}/layers", float(layers))
        self._lines = [
            f"scores {layers} layers of up to {heads} heads on {len(scores.tokens)} sequences of "
            f"{scores.tokens.shape[1]} tokens: {', '.join(n or 'the model' for n in scores.layers)}"
        ]

    def _copy_loss(self, site: Site) -> CopyLoss | None:
        assert self.vocab_size is not None
        generator = torch.Generator().manual_seed(self._seed)
        try:
            return copy_loss(
                site.model, self.vocab_size, generator=generator, call=self._call, **self._tokens
            )
        except ValueError as reason:
            self._tell(site, "copy_loss", "skipped", f"{self.name}/copy_loss", str(reason))
            return None

    def _compare(self, site: Site, metrics: dict[str, float]) -> None:
        loss = self._damage.test_loss(site.model)
        if loss is not None:
            site.emit(f"{self.name}/test_loss", loss)
            metrics["test_loss"] = loss
        for figure, value, reason in self._damage.multipliers(metrics):
            if reason is None:
                site.emit(f"{self.name}/{figure}", value)
            else:
                self._tell(site, f"{figure}", "skipped", f"{self.name}/{figure}", reason)

    def _ablate(self, site: Site, scores: HeadScores, whole: CopyLoss) -> None:
        assert self.vocab_size is not None
        present = scores.top(scores.prefix_matching.numel())
        induction = present[: self.top]
        previous = [h for h in scores.top(self.top, "previous_token") if h not in induction]
        sets = {"induction": induction}
        if previous:
            sets["previous_token"] = previous
        else:
            reason = "the heads with the highest score are those of the induction set; lower top="
            self._tell(site, "no others", "skipped", f"{self.name}/ablation/previous_token", reason)
        for name, heads in list(sets.items()):
            generator = site.generator(self.name, name)
            drawn = control_heads(present, heads, (*induction, *previous), generator)
            if drawn is None:
                reason = "its layers have too few other heads for a random control of the same size"
                self._tell(site, name, "note", f"{self.name}/ablation/{name}", reason)
            else:
                sets[_RANDOM + name] = drawn
        effects = ablation_effects(
            site.model,
            self.vocab_size,
            sets,
            seed=self._seed,
            call=self._call,
            whole=whole,
            **self._tokens,
        )
        for name in [name for name in sets if not name.startswith(_RANDOM)]:
            self._emit_effect(site, f"{self.name}/ablation/{name}", effects[name])
            control = effects.get(_RANDOM + name)
            if control is not None:
                over = effects[name].over(control)
                self._emit_effect(site, f"{self.name}/ablation/{name}_over_random", over)

    def _emit_effect(self, site: Site, tag: str, effect: Effect) -> None:
        samples = len(effect.differences)
        site.emit(tag, effect.mean, samples)
        if not math.isnan(effect.low):
            site.emit(f"{tag}/low", effect.low, samples)
            site.emit(f"{tag}/high", effect.high, samples)

    def _look_for_formation(self, site: Site, figures: dict[str, float], high: bool) -> None:
        if not self._formation.add(site.step, figures, high):
            return
        at = self._formation.at or {}
        detail: dict[str, Any] = {f"{name}_rose_at": step for name, step in at.items()}
        site.note("formed", self.name, **detail, **self._expectation(site))

    def _expectation(self, site: Site) -> dict[str, Any]:
        """Return when natural text would let heads form, and from which batches that follows."""
        batch, context = self.batch_size, self.context
        # A batch that the user gave to probe with says nothing of the training's.
        seen = () if site.fixed.given is not None else site.fixed.seen.values()
        shapes = [
            tuple(part.shape)
            for given in seen
            for part in (*given.args, *given.kwargs.values())
            if isinstance(part, torch.Tensor) and part.dim() == 2
        ]
        if shapes:
            batch = shapes[0][0] * site.ranks if batch is None else batch
            context = shapes[0][1] if context is None else context
        if batch is None or context is None:
            return {}
        self._expected = expected_formation(batch, context)
        return {"expected": round(self._expected), "batch_size": batch, "context": context}

    def _tell(self, site: Site, key: str, kind: str, subject: str, reason: str) -> None:
        if key not in self._told:
            self._told.add(key)
            site.note(kind, subject, reason=reason)

    def state_dict(self) -> dict[str, Any]:
        """Return the peak, the series and the pace."""
        return {
            "seed": self._seed,
            "before": self._before,
            "damage": self._damage.state_dict(),
            "formation": self._formation.state_dict(),
            "cadence": self.cadence.state_dict(),
            "expected": self._expected,
            "told": sorted(self._told),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._seed, self._before = int(state["seed"]), state["before"]
        self._expected = state["expected"]
        self._damage.load_state_dict(state["damage"])
        self._formation.load_state_dict(state["formation"])
        self.cadence.load_state_dict(state["cadence"])
        self._told = set(state["told"])

    def report(self) -> list[str]:
        """Say what is scored, and when heads formed."""
        at = self._formation.at
        lines = list(self._lines)
        if at is not None:
            rose = ", ".join(f"{name} at update {step}" for name, step in at.items())
            law = f"; expected at {self._expected:.0f}" if self._expected is not None else ""
            lines.append(f"induction heads formed: rise of {rose}{law}")
        return lines
