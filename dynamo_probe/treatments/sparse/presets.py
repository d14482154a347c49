"""The methods of the field as settings of one engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from dynamo_probe.schedule import Alternating, Cosine, Cubic, Every, Schedule
from dynamo_probe.treatments.sparse.engine import SparseTraining
from dynamo_probe.treatments.sparse.scores import Score


class GraNet(SparseTraining):
    """Prune gradually, and regenerate at every step of it (Liu et al. 2021, algorithm 1).

    Global magnitude pruning along a cubic schedule; after each pruning a share of each layer's
    connections is exchanged for those with the largest gradients. `initial_density` 1 is
    dense-to-sparse, below 1 (with an ERK mask) sparse-to-sparse.

    Where it differs from the authors' code: the density is the final one exactly at `end` (there
    the last step of the cubic is left out); initial counts are exact and not Bernoulli; and the
    turnover's cosine ends at `stop` (by default `end`), while there it goes on to the end of
    training: give the number of updates as `stop` for that.
    """

    def __init__(
        self,
        final_density: float,
        initial_density: float = 1.0,
        *,
        start: int = 0,
        end: int,
        every: int | Schedule = 100,
        turnover: float = 0.5,
        final_turnover: float = 0.005,
        stop: int | None = None,
        grow: str | Score = "gradient",
        **options: Any,
    ) -> None:
        """Set the schedule.

        Args:
            final_density: share of the connections at `end` and after, in (0, 1].
            initial_density: share at the beginning.
            start: update at which pruning begins.
            end: update at which the final density is reached.
            every: period of the mask updates.
            turnover: share of each layer's connections that is exchanged at first.
            final_turnover: the share at `stop`.
            stop: last update at which connections are exchanged; None takes `end`.
            grow: the score by which connections come.
            **options: further settings of `SparseTraining`.

        Raises:
            ValueError: when a number is out of range, or `end` does not lie after `start`.
        """
        super().__init__(
            Cubic(initial_density, final_density, start, end),
            every=_from(every, start),
            stop=_last(stop, end),
            grow=grow,
            turnover=Cosine(turnover, final_turnover, start, _last(stop, end)),
            **options,
        )


class GradualMagnitudePruning(SparseTraining):
    """Prune gradually by magnitude (Zhu & Gupta 2017, *To prune, or not to prune*).

    Nothing comes back. They prune each layer to the same density: `scope="layer",
    distribution="uniform"`; the default is the global magnitude that GraNet is compared with.
    """

    def __init__(
        self,
        final_density: float,
        initial_density: float = 1.0,
        *,
        start: int = 0,
        end: int,
        every: int | Schedule = 100,
        **options: Any,
    ) -> None:
        """Set the schedule.

        Args:
            final_density: share of the connections at `end` and after, in (0, 1].
            initial_density: share at the beginning.
            start: update at which pruning begins.
            end: update at which the final density is reached.
            every: period of the mask updates.
            **options: further settings of `SparseTraining`.

        Raises:
            ValueError: when a number is out of range, or `end` does not lie after `start`.
        """
        density = Cubic(initial_density, final_density, start, end)
        super().__init__(density, every=_from(every, start), **options)

    @classmethod
    def for_agents(cls, updates: int, final_density: float = 0.05, **options: Any):  # noqa: ANN206
        """Return the schedule that helped value-based agents (Ceron et al. 2024).

        Cubic, from 20 % to 80 % of training, to 5 % of the connections (*In value-based deep
        reinforcement learning, a pruned network is a good network*).

        Args:
            updates: number of optimizer updates of the whole run (not of environment steps).
            final_density: share of the connections in the end.
            **options: further settings, such as `mirror=` for the target network.
        """
        start, end = updates // 5, updates * 4 // 5
        every = options.pop("every", max(1, (end - start) // 100))
        return cls(final_density, start=start, end=end, every=every, **options)


class RigL(SparseTraining):
    """Drop by magnitude, grow by gradient, at a constant density (Evci et al. 2020).

    In the reference a mask update takes the place of an optimizer step; here it follows one.
    """

    def __init__(
        self,
        density: float,
        *,
        stop: int,
        every: int | Schedule = 100,
        turnover: float = 0.3,
        **options: Any,
    ) -> None:
        """Set density and times.

        Args:
            density: share of the connections, in (0, 1].
            stop: last update at which connections are exchanged; they take 75 % of training.
            every: period of the mask updates.
            turnover: share that is exchanged at first; a cosine takes it to 0 at `stop`.
            **options: further settings of `SparseTraining`.

        Raises:
            ValueError: when a number is out of range.
        """
        options = _with(options, scope="layer", grow="gradient")
        super().__init__(
            density, every=every, stop=stop, turnover=Cosine(turnover, 0.0, 0, stop), **options
        )


class SET(SparseTraining):
    """Drop by magnitude, grow at random, at a constant density (Mocanu et al. 2018).

    `grow="random-unfired"` prefers connections that have never been there (ITOP).
    """

    def __init__(
        self,
        density: float,
        *,
        stop: int | None = None,
        every: int | Schedule = 100,
        turnover: float = 0.3,
        **options: Any,
    ) -> None:
        """Set density and times.

        Args:
            density: share of the connections, in (0, 1].
            stop: last update at which connections are exchanged; None for no end.
            every: period of the mask updates.
            turnover: share that is exchanged, always the same.
            **options: further settings of `SparseTraining`.

        Raises:
            ValueError: when a number is out of range.
        """
        options = _with(options, scope="layer", grow="random")
        super().__init__(density, every=every, stop=stop, turnover=turnover, **options)


class SNFS(SparseTraining):
    """Drop by magnitude, grow by momentum, where layers have most of it (Dettmers et al. 2019).

    Sparse networks from scratch. A layer gets back connections in proportion to the mean momentum
    of those that it has.
    """

    def __init__(
        self,
        density: float,
        *,
        stop: int,
        every: int | Schedule = 100,
        turnover: float = 0.5,
        **options: Any,
    ) -> None:
        """Set density and times.

        Args:
            density: share of the connections, in (0, 1].
            stop: last update at which connections are exchanged.
            every: period of the mask updates.
            turnover: share that is exchanged at first; a cosine takes it to 0 at `stop`.
            **options: further settings of `SparseTraining`.

        Raises:
            ValueError: when a number is out of range.
        """
        options = {
            "grow": "momentum",
            "grow_scope": "momentum",
            "distribution": "uniform",
        } | options
        super().__init__(
            density, every=every, stop=stop, turnover=Cosine(turnover, 0.0, 0, stop), **options
        )


class StaticSparse(SparseTraining):
    """A mask that is made once, before training, and stays.

    `random` with an ERK distribution is what lets agents scale in Ma et al. 2025 (*Network sparsity
    unlocks the scaling potential of deep reinforcement learning*). `snip` keeps the largest |w g|
    (Lee et al. 2019), `grasp` the weights on which the gradient flow depends (Wang et al. 2020).
    """

    def __init__(
        self,
        density: float,
        method: Literal["random", "magnitude", "snip", "grasp", "zeros"] = "random",
        *,
        every: int | Schedule = 100,
        loss: Callable[[], Tensor] | None = None,
        **options: Any,
    ) -> None:
        """Set density and method.

        Args:
            density: share of the connections, in (0, 1].
            method: how they are chosen: `random` and `magnitude` within the distribution's count
                for each layer, `snip` and `grasp` anywhere; `zeros` takes the weights that are not
                exactly 0, whatever the density: to go on training what was pruned elsewhere.
            every: period of the readings; the masks do not change.
            loss: computes the loss of a batch, without arguments: needed by `grasp`. `snip` takes
                the gradient of the first update where there is none.
            **options: further settings of `SparseTraining`.

        Raises:
            ValueError: when the method is unknown, or a number is out of range.
        """
        methods = {"snip": "saliency"}
        if method not in ("random", "magnitude", "snip", "grasp", "zeros"):
            raise ValueError(
                f"method is {method!r}; give 'random', 'magnitude', 'snip', 'grasp' or 'zeros'"
            )
        spread = "global" if method in ("snip", "grasp") else "layer"
        super().__init__(
            density,
            every=every,
            initial=methods.get(method, method),
            loss=loss,
            **_with(options, initial_scope=spread),
        )


class ACDC(SparseTraining):
    """Alternate dense and sparse phases (Peste et al. 2021, *AC/DC*).

    At the beginning of a sparse phase the largest weights anywhere are kept; at the beginning of a
    dense one all connections come back, at 0. The last phase, from `end` on, is sparse.
    """

    def __init__(
        self,
        density: float,
        *,
        start: int,
        end: int,
        sparse_for: int,
        dense_for: int,
        **options: Any,
    ) -> None:
        """Set the phases, in updates.

        Args:
            density: share of the connections in sparse phases, in (0, 1].
            start: update at which the first sparse phase begins; it is dense before.
            end: update from which on it is sparse.
            sparse_for: length of a sparse phase.
            dense_for: length of a dense phase.
            **options: further settings of `SparseTraining`.

        Raises:
            ValueError: when a number is out of range.
        """
        phases = Alternating(1.0, density, start, end, sparse_for, dense_for)
        super().__init__(phases, **_with(options, every=min(sparse_for, dense_for)))


def _with(options: dict[str, Any], **preset: Any) -> dict[str, Any]:
    """Return the options with the preset's where the user has none."""
    return preset | options


def _from(every: int | Schedule, start: int) -> int | Schedule:
    return Every(every, start=start) if isinstance(every, int) else every


def _last(stop: int | None, end: int) -> int:
    """Return the last update of the exchange: `end` where nothing was said."""
    if stop is not None and stop < end:
        raise ValueError(f"stop ({stop}) lies before end ({end}): give a later one")
    return end if stop is None else stop
