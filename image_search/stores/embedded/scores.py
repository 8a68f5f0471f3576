"""Scores, computed exactly for the candidates that LanceDB finds."""

import numpy as np
from numpy.typing import NDArray

from image_search.values import Embeddings, Metric


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
        products /= np.sqrt(_products(vectors, vectors))
    return products


def _products(left: Embeddings, right: Embeddings) -> NDArray[np.float32]:
    return np.asarray(np.einsum("ij,ij->i", left, right), np.float32)
