"""What is counted of repeated tokens between two readings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dynamo_probe.functional.repetition import CLASSES


class Tally:
    """Sums over tokens, which ranks add up.

    Attributes:
        tokens: tokens by class, int64 [CLASSES].
        short: tokens in pieces too short to be looked at.
        losses: sums of losses by class, float64 [CLASSES].
        lossy: tokens that these are of, int64 [CLASSES].
    """

    __slots__ = ("losses", "lossy", "short", "tokens")

    def __init__(self) -> None:
        """Begin at zero."""
        self.tokens = np.zeros(CLASSES, dtype=np.int64)
        self.losses = np.zeros(CLASSES)
        self.lossy = np.zeros(CLASSES, dtype=np.int64)
        self.short = 0

    @property
    def repeated(self) -> int:
        """Tokens that came before."""
        return int(self.tokens[1:].sum())

    def add(self, measured: int, short: int, classes: np.ndarray | None) -> None:
        """Count tokens of one batch (see `observation.sketch.Seen`)."""
        self.short += short
        if classes is not None:
            found = np.bincount(classes[classes > 0], minlength=CLASSES)
            self.tokens += found
            measured -= int(found.sum())
        self.tokens[0] += measured

    def add_losses(self, losses: np.ndarray, classes: np.ndarray | None) -> None:
        """Add losses by the class of their token.

        Args:
            losses: [tokens], finite.
            classes: [tokens]; None where all are fresh.
        """
        if classes is None:
            classes = np.zeros(len(losses), dtype=np.uint8)
        self.losses += np.bincount(classes, weights=losses, minlength=CLASSES)
        self.lossy += np.bincount(classes, minlength=CLASSES)

    def mean_loss(self, classes: slice) -> tuple[float, int]:
        """Return the mean loss of some classes, and of how many tokens; 0 tokens have NaN."""
        tokens = int(self.lossy[classes].sum())
        return float(self.losses[classes].sum()) / tokens if tokens else float("nan"), tokens

    def words(self) -> np.ndarray:
        """Return everything as int64 [1 + 3 CLASSES]; losses as their bits."""
        parts = [[self.short], self.tokens, self.lossy, self.losses.view(np.int64)]
        return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])

    def add_words(self, words: np.ndarray) -> None:
        """Add what `words` returned elsewhere."""
        self.short += int(words[0])
        tokens, lossy, losses = words[1:].reshape(3, CLASSES)
        self.tokens += tokens
        self.lossy += lossy
        self.losses += losses.copy().view(np.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        return {"words": torch.from_numpy(self.words())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.__init__()
        self.add_words(state["words"].numpy())


WORDS = 1 + 3 * CLASSES
"""Length of `Tally.words`."""
