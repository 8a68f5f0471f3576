"""Near-duplicates: the same picture saved again, in another size or format."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from image_search.values import Embeddings, RecipeName

# For each recipe the score that tells copies of an image from other images best, on CIFAR-10 or on
# photos, whichever is stricter, and 0.01 more, as most indexes have more images than were searched:
# python -m benchmarks.duplicates
NEAR_DUPLICATE_COSINE: Final[dict[RecipeName, float]] = {
    "none": 0.92,
    "neighbours": 0.86,
    "components": 0.87,
    "discriminant": 0.92,
    "whitening": 0.9,
}


def distinct(embeddings: Embeddings, recipe: RecipeName) -> NDArray[np.bool_]:
    """Which rows of float32 [n, 512] are no near-duplicates of an earlier row that is kept."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similar = unit @ unit.T >= NEAR_DUPLICATE_COSINE[recipe]
    kept = np.zeros(len(embeddings), np.bool_)
    for row in range(len(embeddings)):
        kept[row] = not (similar[row, :row] & kept[:row]).any()
    return kept
