"""The score of two embeddings, as every store computes it for its matches."""

import numpy as np
from numpy.typing import NDArray

from image_search.values import Embeddings, Metric


def pair_scores(left: Embeddings, right: Embeddings, metric: Metric) -> NDArray[np.float64]:
    """float64 [n, m]: the scores of float32 [n, 512] with float32 [m, 512].

    Cosine similarity, dot product or squared euclidean distance, as Pinecone defines its metrics:
    https://docs.pinecone.io/guides/index-data/indexing-overview#distance-metrics
    """
    rows, columns = left.astype(np.float64), right.astype(np.float64)
    products = rows @ columns.T
    if metric == "dotproduct":
        return np.asarray(products)
    row_squares = np.square(rows).sum(axis=1)[:, None]
    column_squares = np.square(columns).sum(axis=1)[None]
    if metric == "cosine":
        return np.asarray(products / np.sqrt(row_squares * column_squares))
    # Rounding may leave less than zero of equal vectors.
    return np.asarray(np.maximum(row_squares + column_squares - 2 * products, 0))
