"""The vector index: records, matches, and the one interface that every store implements."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from image_search.calibration import Calibration
from image_search.errors import RecordError
from image_search.filters import Filter
from image_search.manifest import Manifest
from image_search.recipe import Recipe
from image_search.values import (
    DIMENSION,
    LABEL_FIELD,
    MAX_ID_LENGTH,
    MAX_TOP_K,
    THUMBNAIL_FIELD,
    Embeddings,
    Metadata,
    Metric,
)

_RESERVED_FIELDS: Final = {LABEL_FIELD, THUMBNAIL_FIELD}

# What every JSON library takes.
_MAX_INTEGER: Final = 2**63
_ID: Final = re.compile(rf"[ -~]{{1,{MAX_ID_LENGTH}}}")


@dataclass(frozen=True)
class Record:
    """One image: `embedding` is float32 [512], `thumbnail` a JPEG or empty.

    `id` is 1 to 512 printable ASCII characters. Numbers in `metadata` are finite.
    """

    id: str
    embedding: Embeddings
    label: str | None
    metadata: Metadata
    thumbnail: bytes


@dataclass(frozen=True)
class Match:
    """One result of a query.

    `score` is Pinecone's: cosine similarity or dot product, where more is more similar, or the
    squared euclidean distance, where less is.
    """

    id: str
    score: float
    label: str | None
    metadata: Metadata
    thumbnail: bytes


@dataclass(frozen=True)
class IdPage:
    """Some ids in order, and the `cursor` that leads to the next ones; empty at the end."""

    ids: list[str]
    cursor: str


class VectorIndex(Protocol):
    """One namespace of an index. All methods raise StoreError when the store fails."""

    @property
    def manifest(self) -> Manifest:
        """What the index was built with."""
        ...

    @property
    def calibration(self) -> Calibration | None:
        """What turned scores into confidences when the index was opened; None without labels."""
        ...

    def save_calibration(self, calibration: Calibration) -> None:
        """Replace the calibration, for everyone who opens the index from now on."""
        ...

    def load_recipe(self) -> Recipe | None:
        """What the embeddings were made with, to make an Embedder with; None for plain ones."""
        ...

    @property
    def retries(self) -> int:
        """How many requests to the store had to be sent again so far."""
        ...

    def upsert(self, records: Sequence[Record]) -> None:
        """Insert the records, replacing those whose id exists; of one id given twice, the last.

        When it returns they are durable, all of them; readers never see a part of them.
        Raises RecordError, and writes nothing, if one of them is not valid.
        """
        ...

    def query(
        self,
        embedding: Embeddings,
        top_k: int,
        filter: Filter | None = None,  # noqa: A002
    ) -> list[Match]:
        """The `top_k` (0 to 10,000) records most similar to float32 [512], best first.

        Equal scores are ordered by id. Fewer come back where fewer pass the filter.
        Raises RecordError for a vector or a `top_k` that is not valid.
        """
        ...

    def query_many(
        self,
        embeddings: Embeddings,
        top_k: int,
        filter: Filter | None = None,  # noqa: A002
    ) -> list[list[Match]]:
        """What `query` finds for each row of float32 [n, 512], at less cost for each."""
        ...

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        """The records with these ids; ids that do not exist are left out."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Delete the records with these ids; ids that do not exist do not matter."""
        ...

    def list_ids(self, *, prefix: str = "", limit: int = 100, cursor: str = "") -> IdPage:
        """The first `limit` ids that begin with `prefix`, or those where `cursor` goes on.

        Raises RecordError for a cursor that the store does not know for one of its own.
        """
        ...

    def labels(self) -> dict[str, int | None]:
        """The labels in order, and how many records have each; None where that is not known.

        A store that cannot count may also name labels that no record has any more.
        """
        ...

    def count(self) -> int:
        """How many records there are."""
        ...

    def flush(self) -> None:
        """After many upserts: make queries fast, and wait until they show what was upserted."""
        ...

    def close(self) -> None:
        """Release connections and memory; the index cannot be used afterwards."""
        ...


def best_first(matches: list[Match], metric: Metric) -> list[Match]:
    """The matches by score, as `metric` orders it, and equal scores by id."""
    sign = 1 if metric == "euclidean" else -1
    return sorted(matches, key=lambda match: (sign * match.score, match.id))


def check_records(records: Sequence[Record]) -> None:
    """Raise RecordError, which names the id, unless every record is valid."""
    for record in records:
        if not _ID.fullmatch(record.id):
            raise RecordError(
                f"the id {record.id!r} is not 1 to {MAX_ID_LENGTH} printable ASCII characters"
            )
        try:
            check_embedding(record.embedding)
            _check_metadata(record.metadata)
        except RecordError as exc:
            raise RecordError(f"record {record.id!r}: {exc}") from exc


def check_embedding(embedding: Embeddings) -> None:
    """Raise RecordError unless it is float32 [512], finite and not all zero."""
    if embedding.shape != (DIMENSION,) or embedding.dtype != np.float32:
        raise RecordError(
            f"an embedding is float32 [{DIMENSION}], not {embedding.dtype} {list(embedding.shape)}"
        )
    if not np.isfinite(embedding).all():
        raise RecordError("the embedding holds NaN or infinity")
    if not embedding.any():
        raise RecordError("the embedding is all zeros, which has no direction to compare")


def check_query(embedding: Embeddings, top_k: int) -> None:
    """Raise RecordError unless both can be queried with."""
    check_embedding(embedding)
    if not 0 <= top_k <= MAX_TOP_K:
        raise RecordError(f"top_k is {top_k}; it must be 0 to {MAX_TOP_K:,}")


def _check_metadata(metadata: Metadata) -> None:
    for field, value in metadata.items():
        if not field or field.startswith("$") or field in _RESERVED_FIELDS:
            raise RecordError(
                f"metadata field {field!r}: names are not empty, do not begin with $, and are not "
                + " or ".join(sorted(_RESERVED_FIELDS))
            )
        if isinstance(value, list):
            valid = all(isinstance(item, str) for item in value)
        elif isinstance(value, float):
            valid = math.isfinite(value)
        else:
            small = isinstance(value, int) and abs(value) < _MAX_INTEGER
            valid = small or isinstance(value, str)
        if not valid:
            raise RecordError(
                f"metadata field {field!r} is {value!r}: allowed are strings, finite numbers, "
                "booleans and lists of strings"
            )
