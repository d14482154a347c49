"""Two data sets of seconds: scikit-learn's digits and MNIST-1D, with a test set that stays."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from mnist1d.data import get_dataset_args, make_dataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Data:
    """Samples and their classes.

    Attributes:
        inputs: for training, `[samples, features]`.
        labels: their classes, `[samples]`.
        test_inputs: for the accuracy that is reported.
        test_labels: their classes.
    """

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


@cache
def load(name: str) -> Data:
    """Return `digits` (1,347 and 450 images of 8 x 8) or `mnist1d` (4,000 and 1,000 of 40).

    The split is the same for every seed. Each pixel of the digits has mean 0 and deviation 1 over
    the training images. MNIST-1D, as a whole of mean 0 and deviation 1, is made here, with its own
    default arguments; nothing is downloaded.
    """
    if name == "digits":
        images, classes = load_digits(return_X_y=True)
        seen, unseen, labels, test_labels = train_test_split(
            images, classes, test_size=0.25, stratify=classes, random_state=0
        )
        scale = StandardScaler().fit(seen)
        return _data(scale.transform(seen), labels, scale.transform(unseen), test_labels)
    if name == "mnist1d":
        # It seeds the random numbers of the whole process.
        states = random.getstate(), np.random.get_state()
        made = make_dataset(get_dataset_args())
        random.setstate(states[0])
        np.random.set_state(states[1])
        return _data(made["x"], made["y"], made["x_test"], made["y_test"])
    raise ValueError(f"the data set is {name!r}; give 'digits' or 'mnist1d'")


def _data(
    inputs: np.ndarray, labels: np.ndarray, test_inputs: np.ndarray, test_labels: np.ndarray
) -> Data:
    return Data(
        torch.tensor(inputs, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(test_inputs, dtype=torch.float32),
        torch.tensor(test_labels, dtype=torch.int64),
    )
