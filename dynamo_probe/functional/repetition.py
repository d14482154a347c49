"""What repeated data means: classes of repeat counts, and where it was found to do damage."""

from __future__ import annotations

import math

import numpy as np
from torch import nn

LEFT = (4.2e6, -0.56)
"""(k, a) of the repeat count E = k N^a at which damage begins (Hernandez et al. 2022, sec. 2)."""
RIGHT = (5.1e7, -0.50)
"""(k, a) of the repeat count at which it ends."""

FRESH, UNKNOWN = 0, 1
"""Classes of tokens: seen for the first time; seen before, nobody knows how often."""
CLASSES = 18
"""FRESH, UNKNOWN, and the repeat counts 2, 3-4, 5-8, ... up to 65535."""


def classes_of(counts: np.ndarray) -> np.ndarray:
    """Return the class of each repeat count: 2 for E = 2, 3 for 3-4, 4 for 5-8 and so on.

    Args:
        counts: how often each was seen, itself included; 1 is `FRESH`, 0 is `UNKNOWN`.

    Returns:
        uint8, in the shape of the counts.

    Example:
        >>> classes_of(np.array([0, 1, 2, 3, 4, 5, 8, 9, 65535])).tolist()
        [1, 0, 2, 3, 3, 4, 4, 5, 17]
    """
    bounds = 1 << np.arange(16)
    found = np.searchsorted(bounds, counts) + 1
    found[counts == 1] = FRESH
    found[counts == 0] = UNKNOWN
    return np.minimum(found, CLASSES - 1).astype(np.uint8)


def bounds_of(number: int) -> tuple[int, int]:
    """Return the smallest and the largest repeat count of a class of repeated tokens.

    Example:
        >>> bounds_of(2), bounds_of(3), bounds_of(4)
        ((2, 2), (3, 4), (5, 8))
    """
    if not UNKNOWN < number < CLASSES:
        raise ValueError(f"class {number} has no repeat count; give 2 to {CLASSES - 1}")
    return (1 << (number - 2)) + 1, 1 << (number - 1)


def class_name(number: int) -> str:
    """Return a class as it stands in tags.

    Example:
        >>> class_name(0), class_name(1), class_name(2), class_name(4)
        ('fresh', 'repeats=unknown', 'repeats=2', 'repeats=5-8')
    """
    if number == FRESH:
        return "fresh"
    if number == UNKNOWN:
        return "repeats=unknown"
    low, high = bounds_of(number)
    return f"repeats={low}" if low == high else f"repeats={low}-{high}"


def damage_region(parameters: float) -> tuple[float, float]:
    """Return the repeat counts between which a model loses half the worst degradation or more.

    E = k N^a, fitted on models of 1.57e6 to 8.05e8 parameters whose training tokens were to 10 %
    repeats (Hernandez et al. 2022, section 2). Outside these sizes it is an extrapolation.

    Args:
        parameters: N.

    Returns:
        The lower and the upper repeat count.

    Raises:
        ValueError: when N is not positive.

    Example:
        >>> [round(e) for e in damage_region(805e6)]
        [43, 1798]
    """
    if not parameters > 0:
        raise ValueError(f"the model has {parameters} parameters; give a positive number")
    return LEFT[0] * parameters ** LEFT[1], RIGHT[0] * parameters ** RIGHT[1]


def parameters_without_embeddings(model: nn.Module) -> int:
    """Count a model's parameters, each once, without embedding tables and what is tied to them.

    This is N as scaling laws count it (Kaplan et al. 2020); that the damage region was fitted on
    the same count is an assumption.
    """
    tables = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    }
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


def inside_region(counts: np.ndarray, parameters: float) -> float:
    """Return the share of tokens whose repeat count lies in the damage region.

    Classes that lie in it as a whole are counted. Tokens whose repeat count is unknown are taken
    to be spread like those whose count is known.

    Args:
        counts: tokens by class, [CLASSES].
        parameters: N.

    Returns:
        A share of all tokens; NaN where tokens were repeated and no repeat count is known.

    Example:
        >>> tokens = np.zeros(CLASSES)
        >>> tokens[[0, 8]] = 90, 10  # repeat counts 65 to 128
        >>> inside_region(tokens, 805e6)
        0.1
    """
    left, right = damage_region(parameters)
    known = counts[UNKNOWN + 1 :]
    repeated = known.sum() + counts[UNKNOWN]
    if repeated == 0:
        return 0.0
    if known.sum() == 0:
        return math.nan
    edges = [bounds_of(number) for number in range(UNKNOWN + 1, CLASSES)]
    within = np.array([left <= low and high <= right for low, high in edges])
    return float(known[within].sum() / known.sum() * repeated / counts.sum())


def false_share(inserted: int, words: int, near: int, probes: int, n: int) -> float:
    """Return the share of fresh tokens that a Bloom filter takes for repeated.

    Each entry sets two bits in one word of 64 bits of a near part, and in `probes - 1` words of the
    rest. A word that has got X entries holds both bits of another one with probability
    1 - 2 c1^X + c2^X, where c1 = 62/64 and c2 = 62 * 61 / (64 * 63) are the chances that an entry
    misses one bit and both; X is Poisson. A token lies in n grams, each of which is looked up.

    Args:
        inserted: entries.
        words: 64-bit words of the filter.
        near: those of them that are the near part.
        probes: words that an entry sets bits in.
        n: tokens in a gram.

    Example:
        >>> false_share(0, 983_040, 131_072, 7, 32)
        0.0
    """

    def holds(load: float) -> float:
        missed = math.exp(-load * (1 - 62 / 64))
        return 1 - 2 * missed + math.exp(-load * (1 - 62 * 61 / (64 * 63)))

    one = holds(inserted / near) * holds(inserted * (probes - 1) / (words - near)) ** (probes - 1)
    return min(1.0, n * one)
