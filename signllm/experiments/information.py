"""Measures of how well one labelling predicts another, from counts: entropy, mutual information, purity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def entropy(labels: NDArray[Any]) -> float:
    """Return the entropy in nats of the distribution of labels (n,); it is 0 for an empty array."""
    share = np.unique(labels, return_counts=True)[1] / max(1, len(labels))
    return float(-(share * np.log(share)).sum())


def mutual_information(first: Ints, second: Ints) -> float:
    """Return the mutual information in nats of two labellings (n,) of the same items.

    I(X; Y) = H(X) + H(Y) - H(X, Y).
    """
    pairs = first * (int(second.max(initial=0)) + 1) + second
    return entropy(first) + entropy(second) - entropy(pairs)


def normalized_information(first: Ints, second: Ints) -> float:
    """Return the mutual information divided by the mean of the two entropies, between 0 and 1.

    It is 1 if the two labellings (n,) are the same up to the names of the labels.
    """
    mean = (entropy(first) + entropy(second)) / 2
    return mutual_information(first, second) / mean if mean > 0 else 0.0


def purity(clusters: Ints, classes: Ints) -> float:
    """Return the share of items (n,) that belong to the most frequent class of their cluster."""
    table = np.zeros((clusters.max(initial=0) + 1, classes.max(initial=0) + 1), np.int64)
    np.add.at(table, (clusters, classes), 1)
    return float(table.max(axis=1).sum() / max(1, len(clusters)))
