"""What a pure function raises where there is no exact figure to give."""


class Unmeasurable(ValueError):
    """A figure cannot be given, through no fault of the call; carries the reason."""
