"""The one warning of the library, given so that it never ends a training."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress

logger = logging.getLogger("dynamo_probe")


class DynamoProbeWarning(UserWarning):
    """Something about the watch, never about the training: an instrument was disabled, say."""


def warn(message: str, stacklevel: int = 3) -> None:
    """Warn. Where warnings are errors, this one must not become one in the middle of a training."""
    logger.debug(message)
    with suppress(DynamoProbeWarning):
        warnings.warn(message, DynamoProbeWarning, stacklevel=stacklevel)
