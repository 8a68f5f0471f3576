"""Near-duplicates: the same picture saved again, in another size or format."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from image_search.embedding import Embeddings

NEAR_DUPLICATE_COSINE: Final = 0.97


def distinct(embeddings: Embeddings) -> NDArray[np.bool_]:
    """Which rows of float32 [n, 512] are no near-duplicates of an earlier row that is kept."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similar = unit @ unit.T >= NEAR_DUPLICATE_COSINE
    kept = np.zeros(len(embeddings), np.bool_)
    for row in range(len(embeddings)):
        kept[row] = not (similar[row, :row] & kept[:row]).any()
    return kept
