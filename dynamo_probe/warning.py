"""The one warning of the library, given so that it never ends a training."""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import suppress

logger = logging.getLogger("dynamo_probe")


class DynamoProbeWarning(UserWarning):
    """Something about the watch, never about the training: an instrument was disabled, say."""


def warn(message: str, stacklevel: int = 3) -> None:
    """Warn. Where warnings are errors, this one must not become one in the middle of a training."""
    logger.debug(message)
    frame = sys._getframe(stacklevel - 1)
    with suppress(DynamoProbeWarning):
        # `warnings.warn` would keep every text for good, and an alert's text names its update.
        warnings.warn_explicit(
            message,
            DynamoProbeWarning,
            frame.f_code.co_filename,
            frame.f_lineno,
            module=frame.f_globals.get("__name__", "__main__"),
        )
