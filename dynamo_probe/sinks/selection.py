"""What TensorBoard is spared: which scalar tags are written, and when a picture is."""

from __future__ import annotations

from collections.abc import Iterable


class ScalarTags:
    """Which scalar tags are written. A tag that was written once is always written.

    Tags with fewer slashes come first. A quarter of the room is held back for tags with at most one
    slash, which may be read for the first time late in a run.

    Args:
        most: the most tags that are written.

    Attributes:
        admitted: the tags that are written.
        refused: the tags that are not.
        told: whether the user knows of the refused ones.
    """

    def __init__(self, most: int) -> None:
        """Start with no tags."""
        self.most = most
        self.admitted: set[str] = set()
        self.refused: set[str] = set()
        self.told = False

    def admit(self, tags: Iterable[str], tau: str | None) -> None:
        """Decide about tags that were not seen before.

        Args:
            tags: the tags of one update.
            tau: the primary threshold; its tags come first among those with as many slashes, so
                that every layer is there once rather than a few layers at every threshold.
        """
        new = {tag for tag in tags if tag not in self.admitted and tag not in self.refused}
        for tag in sorted(new, key=lambda t: (t.count("/"), not t.endswith(f"/tau={tau}"), t)):
            pooled = tag.count("/") <= 1
            room = self.most if pooled else self.most - self.most // 4
            (self.admitted if len(self.admitted) < room else self.refused).add(tag)

    def news(self) -> str | None:
        """Return what to tell the user about refused tags; None when there is nothing new."""
        if self.told or not self.refused:
            return None
        return (
            f"{len(self.refused)} scalar tags, such as {min(self.refused)}, are beyond "
            f"max_scalar_tags={self.most} and are not written to TensorBoard; they are in "
            "watch.history, and layers are in the heatmap"
        )


class ImageTimes:
    """When a picture is written: 10, later 5, then 2 times a decade of updates; 39 times at most.

    With the one at the end of the run there are 40, however long the run is.
    """

    most = 39

    def __init__(self) -> None:
        """Start with a picture due at once."""
        self.count = 0
        self.next = 0

    def due(self, step: int) -> bool:
        """Return whether a picture is due at an update."""
        return step >= self.next and self.count < self.most

    def drawn(self, step: int) -> None:
        """Take note that one was written."""
        self.count += 1
        per_decade = 10 if self.count < 20 else 5 if self.count < 30 else 2
        self.next = max(step + 1, round(step * 10 ** (1 / per_decade)))


def primary_tau(taus: Iterable[str]) -> str:
    """Return 0.1 when it is among the thresholds, otherwise the largest.

    Args:
        taus: thresholds as they stand in tags; at least one.
    """

    def order(tau: str) -> tuple[bool, float]:
        try:
            threshold = float(tau)
        except ValueError:
            threshold = float("-inf")
        return threshold == 0.1, threshold

    return max(taus, key=order)
