"""The vector index: records, matches, and what all stores have in common."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from image_search.calibration import Calibration
from image_search.errors import RecordError
from image_search.filters import Filter
from image_search.manifest import Manifest
from image_search.provenance import KnownSource
from image_search.recipe import Recipe
from image_search.sample import ImageSample
from image_search.values import (
    DIMENSION,
    LABEL_FIELD,
    MAX_ID_LENGTH,
    MAX_TOP_K,
    STATE_FIELD,
    THUMBNAIL_FIELD,
    Embeddings,
    Metadata,
    Metric,
)

_IDS_AT_ONCE: Final = 10_000
_RESERVED_FIELDS: Final = {LABEL_FIELD, STATE_FIELD, THUMBNAIL_FIELD}

# What every JSON library takes.
_MAX_INTEGER: Final = 2**63
# Products of two lengths stay within float32, and keep all of its digits.
_MIN_LENGTH: Final = 1e-12
_MAX_LENGTH: Final = 1e12
# Squares of lengths that are valid whatever float32 has rounded.
_MIN_SURE_SQUARE: Final = 1e-20
_MAX_SURE_SQUARE: Final = 1e20
_ID: Final = re.compile(rf"[ -~]{{1,{MAX_ID_LENGTH}}}")


@dataclass(frozen=True)
class Record:
    """One image: `embedding` is float32 [512], `thumbnail` a JPEG or empty.

    `id` is 1 to 512 printable ASCII characters. Numbers in `metadata` are finite. `state` is empty,
    or a digest of the id and of all that the record was made of: see `VectorIndex.held`.
    """

    id: str
    embedding: Embeddings
    label: str | None
    metadata: Metadata
    thumbnail: bytes
    state: str = ""


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
class Listed:
    """One image of a listing; `thumbnail` is a JPEG, or empty where there is none or not asked."""

    id: str
    label: str | None
    metadata: Metadata
    thumbnail: bytes = b""


@dataclass(frozen=True)
class Sort:
    """An order of images: by `id`, `label`, or a field of their metadata."""

    field: str
    descending: bool = False


@dataclass(frozen=True)
class Page:
    """Some images in order, and the `cursor` that leads to the next ones; empty at the end."""

    images: list[Listed]
    cursor: str


@dataclass(frozen=True)
class Listing:
    """Which images are listed, and in which order.

    Those that pass `filter`, have ids that begin with `prefix`, and contain all of `words` in their
    id, label or text of their metadata, whatever the case and accents. Without `sort` they come in
    the order of their ids, or of the store's own where it has no other.
    """

    filter: Filter | None = None
    prefix: str = ""
    words: tuple[str, ...] = ()
    sort: Sort | None = None
    thumbnails: bool = False


@dataclass(frozen=True)
class IdPage:
    """Some ids in order, and the `cursor` that leads to the next ones; empty at the end."""

    ids: list[str]
    cursor: str


class VectorIndex(ABC):
    """One namespace of an index, and a context manager that closes it.

    Safe to use from several threads. All methods raise StoreError when the store fails, and those
    that write IndexReplacedError, if another index took its place. What every store has to check is
    checked here, and stores implement what begins with an underscore.
    """

    def __init__(self, manifest: Manifest, calibration: Calibration | None) -> None:
        self._manifest = manifest
        self._calibration = calibration

    @property
    def manifest(self) -> Manifest:
        """What the index was built with."""
        return self._manifest

    @property
    def calibration(self) -> Calibration | None:
        """What turned scores into confidences when the index was opened; None without labels."""
        return self._calibration

    def save_calibration(self, calibration: Calibration) -> None:
        """Replace the calibration, for everyone who opens the index from now on."""
        self._save_calibration(calibration)
        self._calibration = calibration

    @abstractmethod
    def _save_calibration(self, calibration: Calibration) -> None: ...

    @abstractmethod
    def load_sample(self) -> ImageSample:
        """The random sample of the index's images that `save_sample` has left; or an empty one."""

    @abstractmethod
    def save_sample(self, sample: ImageSample) -> None:
        """Replace the sample, for everyone who loads it from now on."""

    @abstractmethod
    def update_sample(self, change: Callable[[ImageSample], ImageSample]) -> None:
        """Replace the sample by what is made of it; what two processes add at once is all kept."""

    @property
    @abstractmethod
    def sample_version(self) -> str:
        """Another one when another sample was saved before the index was opened; or empty."""

    @abstractmethod
    def load_sources(self) -> dict[str, KnownSource]:
        """The sources that images came from, by name."""

    @abstractmethod
    def save_source(self, name: str, source: KnownSource) -> None:
        """Add a source, or replace the one of this name; other processes may add others."""

    @abstractmethod
    def load_deletions(self) -> dict[str, str]:
        """Images that were deleted for good, by id, with the SHA-256 of what they were read from.

        At most `MOST_DELETIONS`: those that were deleted first are forgotten.
        """

    @abstractmethod
    def save_deletions(self, deletions: Mapping[str, str]) -> None:
        """Add to what `load_deletions` gives; other processes may add others."""

    @abstractmethod
    def forget_deletions(self, ids: Collection[str]) -> None:
        """Take these ids out of what `load_deletions` gives."""

    def load_recipe(self) -> Recipe | None:
        """What the embeddings were made with, to make an Embedder with; None for plain ones."""
        fingerprint = self._manifest.model.recipe_fingerprint
        return self._load_recipe(fingerprint) if fingerprint else None

    @abstractmethod
    def _load_recipe(self, fingerprint: str) -> Recipe: ...

    @property
    def retries(self) -> int:
        """How many requests to the store had to be sent again so far."""
        return 0

    def upsert(self, records: Sequence[Record], *, keep_up: bool = True) -> None:
        """Insert the records, replacing those whose id exists; of one id given twice, the last.

        When it returns they are durable, all of them; readers never see a part of them. Without
        `keep_up` the caller calls `keep_up` at some time.
        Raises RecordError, and writes nothing, if one of them is not valid.
        """
        for record in records:
            check_record(record)
        if records:
            self._upsert(list({record.id: record for record in records}.values()))
            if keep_up:
                self.keep_up()

    @abstractmethod
    def _upsert(self, records: list[Record]) -> None:
        """`upsert` of one and more valid records, each with an id of its own."""

    def query(
        self,
        embedding: Embeddings,
        top_k: int,
        filter: Filter | None = None,  # noqa: A002
        *,
        thumbnails: bool = True,
    ) -> list[Match]:
        """The `top_k` (0 to 10,000) records most similar to float32 [512], best first.

        Equal scores are ordered by id. Fewer come back where fewer pass the filter. Without
        `thumbnails` they are empty, which costs less.
        Raises RecordError for a vector or a `top_k` that is not valid.
        """
        [matches] = self.query_many(embedding[np.newaxis], top_k, filter, thumbnails=thumbnails)
        return matches

    def query_many(
        self,
        embeddings: Embeddings,
        top_k: int,
        filter: Filter | None = None,  # noqa: A002
        *,
        thumbnails: bool = True,
    ) -> list[list[Match]]:
        """What `query` finds for each row of float32 [n, 512], at less cost for each."""
        if not 0 <= top_k <= MAX_TOP_K:
            raise RecordError(f"top_k is {top_k}; it must be 0 to {MAX_TOP_K:,}")
        check_embeddings(embeddings)
        if top_k == 0 or len(embeddings) == 0:
            return [[] for _ in embeddings]
        return self._query(embeddings, top_k, filter, thumbnails=thumbnails)

    @abstractmethod
    def _query(
        self, embeddings: Embeddings, top_k: int, filter_: Filter | None, *, thumbnails: bool
    ) -> list[list[Match]]:
        """`query_many` of one and more valid embeddings, and a `top_k` of at least 1."""

    def fetch(self, ids: Sequence[str], *, thumbnails: bool = True) -> dict[str, Record]:
        """The records with these ids; ids that do not exist are left out.

        Without `thumbnails` they are empty, which costs less.
        """
        return self._fetch(ids, thumbnails=thumbnails) if ids else {}

    @abstractmethod
    def _fetch(self, ids: Sequence[str], *, thumbnails: bool) -> dict[str, Record]: ...

    @property
    def is_in_memory(self) -> bool:
        """Whether a query without a filter would now be answered from memory, in a moment."""
        return False

    @property
    def thumbnails_are_apart(self) -> bool:
        """Whether reading them with matches costs as much as reading them afterwards."""
        return False

    def thumbnails(self, ids: Sequence[str]) -> dict[str, bytes]:
        """The thumbnails of the records with these ids; ids without one are left out."""
        return self._thumbnails_of(ids) if ids else {}

    def _thumbnails_of(self, ids: Sequence[str]) -> dict[str, bytes]:
        records = self._fetch(ids, thumbnails=True)
        return {id_: record.thumbnail for id_, record in records.items() if record.thumbnail}

    @property
    def tells_states(self) -> bool:
        """Whether `held` can tell any; the embedded store, whose records are at hand, cannot."""
        return False

    def held(self, states: Mapping[str, str]) -> set[str]:
        """Those of the ids, each with its state, that the index has a record of in that state.

        No record is read for it. A store may not know all of them, which `fetch` then finds.
        """
        return self._held(states) if states else set()

    def _held(self, states: Mapping[str, str]) -> set[str]:  # noqa: ARG002
        return set()

    def find_digests(self, digests: Collection[str]) -> dict[str, list[str]]:
        """For each of these SHA-256 that records have in `DIGEST_FIELD` the ids of those."""
        return self._find_digests(digests) if digests else {}

    @abstractmethod
    def _find_digests(self, digests: Collection[str]) -> dict[str, list[str]]: ...

    def delete(self, ids: Sequence[str], *, keep_up: bool = True) -> None:
        """Delete the records with these ids; ids that do not exist do not matter.

        `keep_up` is that of `upsert`.
        """
        if ids:
            self._delete(ids)
            if keep_up:
                self.keep_up()

    @abstractmethod
    def _delete(self, ids: Sequence[str]) -> None: ...

    def keep_up(self) -> None:  # noqa: B027
        """Do what is due after commits; little when nothing is. Others can read and write."""

    @abstractmethod
    def list_images(self, listing: Listing, *, limit: int = 100, cursor: str = "") -> Page:
        """The first `limit` images of a listing, or those where `cursor` goes on.

        An image that is there throughout is on exactly one page, unless it changes its place.
        Raises UnsupportedError for what the store cannot do, and RecordError for a cursor that the
        store does not know for one of its own.
        """

    @abstractmethod
    def list_ids(self, *, prefix: str = "", limit: int = 100, cursor: str = "") -> IdPage:
        """The first `limit` ids that begin with `prefix`, or those where `cursor` goes on.

        Raises RecordError for a cursor that the store does not know for one of its own.
        """

    def ids(self, prefix: str = "") -> Iterator[str]:
        """All ids that begin with `prefix`, in any order."""
        page = self.list_ids(prefix=prefix, limit=_IDS_AT_ONCE)
        while True:
            yield from page.ids
            if not page.cursor:
                return
            page = self.list_ids(prefix=prefix, limit=_IDS_AT_ONCE, cursor=page.cursor)

    @abstractmethod
    def labels(self) -> dict[str, int | None]:
        """The labels in order, and how many records have each; None where that is not known.

        A store that cannot count may also name labels that no record has any more.
        """

    def check_in_use(self) -> None:  # noqa: B027
        """Raise IndexReplacedError if another index took the place of this one, as `refit` does."""

    @abstractmethod
    def count(self) -> int:
        """How many records there are."""

    @abstractmethod
    def flush(self) -> None:
        """After many upserts: make queries fast, and wait until they show what was upserted."""

    @abstractmethod
    def close(self) -> None:
        """Release connections and memory; the index cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def best_first(matches: list[Match], metric: Metric) -> list[Match]:
    """The matches by score, as `metric` orders it, and equal scores by id."""
    sign = 1 if metric == "euclidean" else -1
    return sorted(matches, key=lambda match: (sign * match.score, match.id))


def check_record(record: Record) -> None:
    """Raise RecordError, which names the id, unless the record is valid."""
    if not _ID.fullmatch(record.id):
        raise RecordError(
            f"the id {record.id!r} is not 1 to {MAX_ID_LENGTH} printable ASCII characters"
        )
    try:
        check_embedding(record.embedding)
        _check_metadata(record.metadata)
    except RecordError as exc:
        raise RecordError(f"record {record.id!r}: {exc}") from exc


def check_embeddings(embeddings: Embeddings) -> None:
    """`check_embedding` of each row of float32 [n, 512], at less cost for each."""
    # Most are valid, and are seen to be so at once: a sum of squares tells of NaN and infinity.
    if embeddings.dtype == np.float32 and embeddings.shape[1:] == (DIMENSION,):
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", embeddings, embeddings)
        if ((squares > _MIN_SURE_SQUARE) & (squares < _MAX_SURE_SQUARE)).all():
            return
    for embedding in embeddings:
        check_embedding(embedding)


def check_embedding(embedding: Embeddings) -> None:
    """Raise RecordError unless it is float32 [512], finite, and neither too short nor too long."""
    if embedding.shape != (DIMENSION,) or embedding.dtype != np.float32:
        raise RecordError(
            f"an embedding is float32 [{DIMENSION}], not {embedding.dtype} {list(embedding.shape)}"
        )
    exact = embedding.astype(np.float64)
    length = math.sqrt(exact @ exact)
    if _MIN_LENGTH <= length <= _MAX_LENGTH:
        return
    if not math.isfinite(length):
        raise RecordError("the embedding holds NaN or infinity")
    if not length:
        raise RecordError("the embedding is all zeros, which has no direction to compare")
    raise RecordError(
        f"the embedding's length is {length:.3g}, and float32 compares lengths of "
        f"{_MIN_LENGTH:g} to {_MAX_LENGTH:g}: scale it"
    )


def _check_metadata(metadata: Metadata) -> None:
    for field, value in metadata.items():
        if not field or field.startswith("$") or field in _RESERVED_FIELDS:
            raise RecordError(
                f"metadata field {field!r}: names are not empty, do not start with $, and are not "
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
