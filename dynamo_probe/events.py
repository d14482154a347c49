"""The list of events, kept within bounds."""

from __future__ import annotations

from dynamo_probe.instrument import Event


def shorten(events: list[Event], most: int) -> None:
    """Let the older half go where there are more than `most` events, and say so in its place.

    What stands in its place is a `note` about `events` with the number that went so far.

    Args:
        events: from the oldest to the newest; shortened in place.
        most: how many are kept at most, at least 4.
    """
    if len(events) <= most:
        return
    newer = len(events) - most // 2
    gone, count = events[:newer], newer
    if gone[0].subject == "events" and "dropped" in gone[0].detail:
        count += gone[0].detail["dropped"] - 1
    events[:newer] = [Event(gone[-1].step, "note", "events", {"dropped": count})]
