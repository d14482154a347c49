"""What a raster's codes say at a threshold."""

from __future__ import annotations

import numpy as np

DORMANT, LIVE, PRUNED, UNREAD = range(4)


def states(codes: np.ndarray, place: int, taus: int) -> np.ndarray:
    """Return the state of each unit at each reading.

    Args:
        codes: those of a raster, uint8 `[rows, columns]`.
        place: the threshold's place among the raster's.
        taus: how many thresholds there are.

    Returns:
        uint8 `[rows, columns]`: 0 dormant, 1 live, 2 pruned, 3 not read.

    Example:
        >>> import numpy as np
        >>> states(np.array([[0, 1, 2, 3, 254, 255]], np.uint8), 1, 3).tolist()
        [[0, 0, 1, 1, 2, 3]]
    """
    found = np.full(codes.shape, UNREAD, np.uint8)
    found[codes <= taus] = LIVE
    if place >= 0:
        found[codes <= place] = DORMANT
    found[codes == 254] = PRUNED
    return found
