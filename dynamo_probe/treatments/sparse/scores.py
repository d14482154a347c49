"""What decides which connections go and which come: prune scores and grow scores."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynamo_probe.functional.importance import magnitude, saliency

if TYPE_CHECKING:
    from dynamo_probe.anatomy.weights import Weight
    from dynamo_probe.instrument import Instrument
    from dynamo_probe.site import Site


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one weight when its connections are scored. Shapes are the weight's.

    Attributes:
        where: the weight's name and place in the model.
        weight: its values after the optimizer's step.
        active: BoolTensor, the connections that are there.
        generator: random numbers for this weight and update, on the CPU; the same on every rank.
        gradient: dL/dw before masking, summed over the updates that were asked for; None where the
            score did not ask.
        momentum: running mean of the dense dL/dw; None where the score did not ask.
        ever: BoolTensor, the connections that have ever been there; None where not asked for.
    """

    where: Weight
    weight: Tensor
    active: Tensor
    generator: torch.Generator
    gradient: Tensor | None = None
    momentum: Tensor | None = None
    ever: Tensor | None = None


class Score(abc.ABC):
    """Scores connections: those with the highest scores are kept, or grown.

    Derive from it for a criterion of your own.

    Attributes:
        name: the criterion in a word.
        needs_gradient: `Evidence.gradient` is wanted.
        needs_momentum: `Evidence.momentum` is wanted, which costs a copy of the weights and one
            pass over the gradients at every update.
        needs_ever: `Evidence.ever` is wanted.
    """

    name: str = ""
    needs_gradient: bool = False
    needs_momentum: bool = False
    needs_ever: bool = False

    def attach(self, site: Site, instrument: Instrument) -> None:  # noqa: B027 - optional
        """Meet the run; ask the site for what is to be observed."""

    def prepare(self, site: Site) -> None:  # noqa: B027 - optional
        """Get ready for an update of the masks; raise `NotMeasurable` to put it off."""

    @abc.abstractmethod
    def __call__(self, evidence: Evidence) -> Tensor:
        """Return a score for every connection: float32 or better, of the weight's shape."""


class Magnitude(Score):
    """|w| (Han et al. 2015)."""

    name = "magnitude"

    def __call__(self, evidence: Evidence) -> Tensor:
        """Return |w|."""
        return magnitude(evidence.weight)


class Saliency(Score):
    """|w dL/dw| (Molchanov et al. 2017; at initialisation: SNIP, Lee et al. 2019)."""

    name = "saliency"
    needs_gradient = True

    def __call__(self, evidence: Evidence) -> Tensor:
        """Return |w g|, with the gradient of the update that has just been made."""
        assert evidence.gradient is not None
        return saliency(evidence.weight, evidence.gradient)


class Random(Score):
    """Uniform random numbers (as a grow score: SET, Mocanu et al. 2018)."""

    name = "random"

    def __call__(self, evidence: Evidence) -> Tensor:
        """Return numbers in [0, 1)."""
        drawn = torch.rand(evidence.where.shape, generator=evidence.generator)
        return drawn.to(evidence.weight.device)


class RandomUnfired(Random):
    """Random among the connections that have never been there, as long as there are any (ITOP).

    Liu et al. 2021, *Do We Actually Need Dense Over-Parameterization?*
    """

    name = "random-unfired"
    needs_ever = True

    def __call__(self, evidence: Evidence) -> Tensor:
        """Return numbers in [0, 1), and in [2, 3) for connections that were never there."""
        assert evidence.ever is not None
        return Random.__call__(self, evidence) + 2 * (~evidence.ever).float()


class Gradient(Score):
    """|dL/dw| of the dense gradient (Evci et al. 2020, *Rigging the Lottery*; GraNet)."""

    name = "gradient"
    needs_gradient = True

    def __call__(self, evidence: Evidence) -> Tensor:
        """Return |g|."""
        assert evidence.gradient is not None
        return magnitude(evidence.gradient)


class Momentum(Score):
    """|m|, m being a running mean of the dense gradient (SNFS, Dettmers & Zettlemoyer 2019).

    The optimizer's own momentum is of masked gradients, and 0 where something could grow.
    """

    name = "momentum"
    needs_momentum = True

    def __call__(self, evidence: Evidence) -> Tensor:
        """Return |m|."""
        assert evidence.momentum is not None
        return magnitude(evidence.momentum)


_NAMED: Mapping[str, type[Score]] = {
    kind.name: kind for kind in (Magnitude, Saliency, Random, RandomUnfired, Gradient, Momentum)
}


def as_score(given: str | Score, what: str) -> Score:
    """Return the score of a name, or the score itself.

    Raises:
        ValueError: when there is none of that name.
        TypeError: when it is neither.
    """
    if isinstance(given, Score):
        return given
    if isinstance(given, type) and issubclass(given, Score):
        raise TypeError(f"{what} is the class {given.__name__}; call it: {given.__name__}()")
    if not isinstance(given, str):
        raise TypeError(f"{what} is {given!r}; give a name ({', '.join(_NAMED)}) or a Score")
    if given not in _NAMED:
        raise ValueError(f"{what} is {given!r}; give one of {', '.join(_NAMED)}, or a Score")
    return _NAMED[given]()
