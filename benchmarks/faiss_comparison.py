"""Our embedded store and FAISS, with the same records."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Default, normalised, timed
from image_search.filters import Condition
from image_search.index import Record
from image_search.settings import Settings
from image_search.stores import create_index
from image_search.values import DIMENSION, Embeddings

# Its types leave out what its Python classes take.
SEARCH_LIBRARY: Any = faiss
COMMIT = 10_000
THUMBNAIL_BYTES = 1_000
TOP_K = 10
THREADS = 2
# Each record has a rank below it, at random: a filter for ranks below a tenth of it passes a tenth.
RANKS = 1000


class FaissComparison:
    """Our index and a FAISS index with the same records."""

    def __init__(
        self, settings: Settings, default: Default, real: Embeddings, labels: list[str]
    ) -> None:
        faiss.omp_set_num_threads(THREADS)
        self._index = create_index(settings, default.manifest(settings), default.recipe)
        self._flat = faiss.IndexFlatIP(DIMENSION)
        self._rows: list[tuple[str, str, bytes]] = []
        self._ranks = np.empty(0, np.int64)
        self._real, self._labels = real, labels
        self._random = np.random.default_rng(0)

    def grow(self, size: int) -> float:
        """Add records up to `size`; returns the seconds that our index took."""
        seconds = 0.0
        for first in range(len(self._rows), size, COMMIT):
            numbers = np.arange(first, min(first + COMMIT, size))
            vectors = self._vectors(numbers)
            rows = [
                (
                    f"image-{number:07d}",
                    self._labels[number % len(self._labels)],
                    self._random.bytes(THUMBNAIL_BYTES),
                )
                for number in numbers
            ]
            ranks = np.random.default_rng(first).integers(0, RANKS, len(rows))
            self._ranks = np.append(self._ranks, ranks)
            records = [
                Record(id_, vector, label, {"rank": rank}, thumbnail)
                for (id_, label, thumbnail), vector, rank in zip(
                    rows, vectors, ranks.tolist(), strict=True
                )
            ]
            seconds += timed(lambda: self._index.upsert(records))  # noqa: B023
            self._flat.add(normalised(vectors))
            self._rows += rows
        return seconds + timed(self._index.flush)

    def ours(self, queries: Embeddings, ranks: int | None = None) -> list[list[str]]:
        """The ids that our index finds, and with them the rest; only with ranks below `ranks`."""
        filter_ = None if ranks is None else Condition("rank", "$lt", ranks)
        if len(queries) == 1:
            found = [self._index.query(queries[0], TOP_K, filter_)]
        else:
            found = self._index.query_many(queries, TOP_K, filter_)
        return [[match.id for match in matches] for matches in found]

    def faiss(self, queries: Embeddings, ranks: int | None = None) -> list[list[str]]:
        """The ids that FAISS finds, and with them the rest; only with ranks below `ranks`."""
        parameters = None
        if ranks is not None:
            bits = np.packbits(self._ranks < ranks, bitorder="little")
            parameters = SEARCH_LIBRARY.SearchParameters(sel=SEARCH_LIBRARY.IDSelectorBitmap(bits))
        _, numbers = self._flat.search(normalised(queries), TOP_K, params=parameters)
        found = [[self._rows[number] for number in row if number >= 0] for row in numbers.tolist()]
        return [[id_ for id_, _, _ in matches] for matches in found]

    def _vectors(self, numbers: NDArray[np.int64]) -> Embeddings:
        """The real ones; of copies, each number is scaled by up to a half, and gets noise."""
        vectors = self._real[numbers % len(self._real)]
        copies = numbers >= len(self._real)
        shape = (int(copies.sum()), DIMENSION)
        factors = self._random.uniform(0.5, 1.5, shape)
        noise = self._random.normal(0, 0.25, shape) * self._real.std(axis=0)
        vectors[copies] = vectors[copies] * factors + noise
        return vectors
