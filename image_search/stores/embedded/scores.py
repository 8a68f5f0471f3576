"""Scores, computed exactly for the candidates that an index finds."""

import numpy as np
from numpy.typing import NDArray

from image_search.stores.embedded.search_library import faiss
from image_search.values import DIMENSION, Embeddings, Metric

Lengths = NDArray[np.float32]


def scores(metric: Metric, queries: Embeddings, rows: Embeddings) -> NDArray[np.float32]:
    """float32 [n] of two [n, 512]: each row's score for the query beside it.

    It is the same wherever a row stands, which a product of matrices would not be.
    """
    if metric == "euclidean":
        differences = queries - rows
        return _products(differences, differences)
    products = _products(queries, rows)
    if metric == "dotproduct":
        return products
    for vectors in (queries, rows):
        products /= lengths_of(vectors)
    return products


def scores_at(
    metric: Metric,
    queries: Embeddings,
    vectors: Embeddings,
    lengths: Lengths,
    positions: NDArray[np.int64],
) -> NDArray[np.float32]:
    """float32 [n, m]: for each of queries [n, 512] the scores of the vectors at positions [n, m].

    `lengths` are those of the vectors, which are read where they are. What is at -1 is undefined.
    As `scores`, but for rounding.
    """
    computed = np.empty(positions.shape, np.float32)
    squares = metric == "euclidean"
    compute = faiss.fvec_L2sqr_by_idx if squares else faiss.fvec_inner_products_by_idx
    arrays = (computed, queries, vectors, np.ascontiguousarray(positions))
    compute(*map(faiss.swig_ptr, arrays), DIMENSION, *positions.shape)
    if metric == "cosine":
        computed /= lengths_of(queries)[:, np.newaxis]
        computed /= lengths[positions]
    return computed


def lengths_of(vectors: Embeddings) -> Lengths:
    """float32 [n] of [n, 512]."""
    return np.asarray(np.sqrt(_products(vectors, vectors)))


def _products(left: Embeddings, right: Embeddings) -> NDArray[np.float32]:
    return np.asarray(np.einsum("ij,ij->i", left, right), np.float32)
