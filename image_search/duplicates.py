"""Near-duplicates: the same picture saved again, in another size or format."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from image_search.values import Embeddings, RecipeName

# Of 300 CIFAR-10 images, copies through JPEG at quality 75 are above these, and none of 4,096 other
# images is: the nearest have 0.968 plain, and 0.844 whitened. Copies that were resized, too,
# are mostly below: at 32 pixels a side they are no nearer than similar images. The
# values of discriminant, neighbours and components are as strict as that of plain ones, and not
# measured yet: python -m benchmarks.duplicates
NEAR_DUPLICATE_COSINE: Final[dict[RecipeName, float]] = {
    "none": 0.97,
    "neighbours": 0.97,
    "components": 0.97,
    "discriminant": 0.97,
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
