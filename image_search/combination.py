"""One query of several examples."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from image_search.errors import RecordError
from image_search.index import check_embedding
from image_search.values import Embeddings

# Rocchio's weight of what is not wanted, less than that of what is: Rocchio, "Relevance feedback in
# information retrieval", 1971; here relative to a weight of 1.
_NEGATIVE_WEIGHT: Final = 0.5
# float32 holds about seven digits: what is left of unit vectors that cancel each other is noise.
_NOTHING_LEFT: Final = 1e-6


def combine(positive: Sequence[Embeddings], negative: Sequence[Embeddings]) -> Embeddings:
    """float32 [512]: the mean of the positive ones, less half the mean of the negative ones.

    It is taken of unit vectors, and the result is as long as the positive ones are on average, so
    that it can be compared by any metric. One positive alone is itself.
    Raises RecordError for one that is not valid, and where they cancel each other.
    """
    for embedding in (*positive, *negative):
        check_embedding(embedding)
    if len(positive) == 1 and not negative:
        return positive[0]
    lengths = [float(np.linalg.norm(embedding)) for embedding in positive]
    direction = _mean_direction(positive)
    if negative:
        direction = direction - _NEGATIVE_WEIGHT * _mean_direction(negative)
    length = np.linalg.norm(direction)
    if length < _NOTHING_LEFT:
        raise RecordError("the examples cancel each other: leave one of them out")
    return (direction * (np.mean(lengths) / length)).astype(np.float32)


def _mean_direction(embeddings: Sequence[Embeddings]) -> Embeddings:
    rows = np.stack(embeddings).astype(np.float64)
    return np.asarray((rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0))
