"""When induction heads are expected to form, by a published law."""

from __future__ import annotations

import math

TOKENS = 10**5.7
"""The constant of the law, as fitted on natural text."""


def expected_formation(batch_size: float, context: float) -> float:
    """Return the update at which induction heads are expected to form.

    They form at `10**5.7 * sqrt(batch_size * context)` tokens, whatever the size of the model; an
    update has `batch_size * context` of them.

    Args:
        batch_size: sequences in an update, over all ranks and micro-batches.
        context: tokens in a sequence.

    Returns:
        The update, counted from the beginning of training; not rounded.

    Raises:
        ValueError: when an argument is not a positive number.

    Source: Aoyama et al. 2025 (arXiv 2511.16893), on natural text. On synthetic tasks, where
    copying pays more, heads form sooner.

    Example:
        >>> round(expected_formation(512, 1024))
        692
    """
    for name, given in (("batch_size", batch_size), ("context", context)):
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        if not number or not 0 < given < math.inf:
            raise ValueError(f"{name} is {given!r}; give a positive number")
    return TOKENS / math.sqrt(batch_size * context)
