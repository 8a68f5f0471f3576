"""The index over one namespace of an index at Pinecone."""

import asyncio
import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import numpy as np
from pinecone.errors import exceptions as errors

from image_search.calibration import Calibration
from image_search.errors import RecordError, StoreError, UnsupportedError
from image_search.filters import Filter
from image_search.index import (
    IdPage,
    Listed,
    Listing,
    Match,
    Page,
    Record,
    Sort,
    VectorIndex,
    best_first,
)
from image_search.manifest import Manifest
from image_search.provenance import KnownSource
from image_search.recipe import Recipe
from image_search.sample import ImageSample
from image_search.stores.pinecone.facts import Facts
from image_search.stores.pinecone.records import (
    ANY_VECTOR,
    decode,
    encode,
    json_filter,
    parts,
    room_for_thumbnail,
)
from image_search.stores.pinecone.requests import (
    CONCURRENCY,
    FIRST_DELAY,
    LIST_IDS,
    Requests,
    side_by_side,
)
from image_search.values import DIGEST_FIELD, LABEL_FIELD, MAX_TOP_K, Embeddings

_log = logging.getLogger(__name__)

# Pinecone does not tell which values a field has, so each label is a record of its own here.
_LABELS: Final = "__labels__"

# https://docs.pinecone.io/reference/api/database-limits: 1,000 records a request, 4 MB a result.
# Smaller requests run side by side.
_UPSERT_RECORDS: Final = 128
_MATCHES_WITH_METADATA: Final = 90
_DELETE_IDS: Final = 1_000
_FOUND_DIGESTS: Final = 512


class PineconeIndex(VectorIndex):
    """The index over one namespace of an index at Pinecone."""

    def __init__(
        self,
        requests: Requests,
        facts: Facts,
        namespace: str,
        manifest: Manifest,
        calibration: Calibration | None,
    ) -> None:
        super().__init__(manifest, calibration)
        self._requests = requests
        self._facts = facts
        self._namespace = namespace
        self._labels_written: set[str] = set()

    @property
    def retries(self) -> int:
        return self._requests.retries

    def _save_calibration(self, calibration: Calibration) -> None:
        self._facts.write_calibration(calibration)

    def load_sample(self) -> ImageSample:
        return self._facts.read_sample()

    def save_sample(self, sample: ImageSample) -> None:
        self._facts.write_sample(sample)

    @property
    def sample_version(self) -> str:
        return self._facts.sample_version

    def load_sources(self) -> dict[str, KnownSource]:
        return self._facts.read_sources()

    def save_source(self, name: str, source: KnownSource) -> None:
        self._facts.write_source(name, source)

    def load_deletions(self) -> dict[str, str]:
        return self._facts.read_deletions()

    def save_deletions(self, deletions: Mapping[str, str]) -> None:
        self._facts.write_deletions(deletions)

    def forget_deletions(self, ids: Collection[str]) -> None:
        self._facts.remove_deletions(ids)

    def _load_recipe(self, fingerprint: str) -> Recipe:
        return self._facts.read_recipe(fingerprint)

    def _upsert(self, records: list[Record]) -> None:
        for record in records:
            room_for_thumbnail(record)
        # First: a label without records does less harm than records without their label.
        self._write_labels({record.label for record in records if record.label is not None})
        batches = [
            records[start : start + _UPSERT_RECORDS]
            for start in range(0, len(records), _UPSERT_RECORDS)
        ]

        async def send(batch: list[Record]) -> None:
            # Encoded here, one batch is while others are on their way.
            for part in parts([encode(record) for record in batch]):
                await self._requests.upsert(part, self._namespace)

        # Each batch has its own limit; this one only ends a call that hangs.
        limit = 2 * self._requests.patience * (1 + len(batches) / CONCURRENCY)
        self._requests.run(lambda: side_by_side([partial(send, batch) for batch in batches]), limit)

    def _query(
        self, embeddings: Embeddings, top_k: int, filter_: Filter | None
    ) -> list[list[Match]]:
        grammar = json_filter(filter_) if filter_ else None
        with_metadata = top_k <= _MATCHES_WITH_METADATA

        async def search(embedding: Embeddings) -> list[Match]:
            response = await self._requests.index.query(
                top_k=top_k,
                vector=embedding.tolist(),
                namespace=self._namespace,
                filter=grammar,
                include_metadata=with_metadata,
            )
            if with_metadata:
                holders: dict[str, Any] = {match.id: match for match in response.matches}
            else:
                holders = await self._requests.fetch(
                    [match.id for match in response.matches], self._namespace
                )
            matches = []
            for match in response.matches:
                holder = holders.get(match.id)
                if holder is not None:  # deleted between the two requests otherwise
                    label, metadata, thumbnail = decode(holder.metadata)
                    matches.append(Match(match.id, match.score, label, metadata, thumbnail))
            return best_first(matches, self._manifest.metric)

        return self._requests.run(
            lambda: side_by_side([partial(search, embedding) for embedding in embeddings])
        )

    def _fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        vectors = self._requests.run(
            lambda: self._requests.fetch(ids, self._namespace), self._requests.patience
        )
        records = {}
        for id_, vector in vectors.items():
            label, metadata, thumbnail = decode(vector.metadata)
            embedding = np.asarray(vector.values, np.float32)
            records[id_] = Record(id_, embedding, label, metadata, thumbnail)
        return records

    def _find_digests(self, digests: Collection[str]) -> dict[str, list[str]]:
        wanted = sorted(digests)
        batches = [
            wanted[start : start + _FOUND_DIGESTS]
            for start in range(0, len(wanted), _FOUND_DIGESTS)
        ]

        async def find(batch: list[str]) -> dict[str, Any]:
            response = await self._requests.again(
                partial(
                    self._requests.index.query,
                    top_k=MAX_TOP_K,
                    vector=ANY_VECTOR,
                    namespace=self._namespace,
                    filter={DIGEST_FIELD: {"$in": batch}},
                )
            )
            ids = [match.id for match in response.matches]
            return await self._requests.fetch(ids, self._namespace)

        found: dict[str, list[str]] = {}
        calls = [partial(find, batch) for batch in batches]
        for vectors in self._requests.run(lambda: side_by_side(calls), self._requests.patience):
            for id_, vector in vectors.items():
                digest = vector.metadata[DIGEST_FIELD]
                if isinstance(digest, str):  # records that were made elsewhere may have a list
                    found.setdefault(digest, []).append(id_)
        return found

    def _delete(self, ids: Sequence[str]) -> None:
        parts = [ids[start : start + _DELETE_IDS] for start in range(0, len(ids), _DELETE_IDS)]

        async def delete_all() -> None:
            for part in parts:
                # It answers 404 in a namespace that nothing was written to yet.
                with suppress(errors.NotFoundError):
                    await self._requests.again(
                        partial(
                            self._requests.index.delete, ids=list(part), namespace=self._namespace
                        )
                    )

        self._requests.run(delete_all, seconds=self._requests.patience)

    def list_images(self, listing: Listing, *, limit: int = 100, cursor: str = "") -> Page:
        if listing.words:
            raise UnsupportedError(
                "Pinecone does not search for words: use a filter, or the embedded store"
            )
        if listing.sort is not None and (listing.filter or listing.sort != Sort("id")):
            raise UnsupportedError(
                "Pinecone does not sort images: without a filter they come in the order of their "
                "ids; use the embedded store for others"
            )
        if listing.filter is None:
            page = self.list_ids(prefix=listing.prefix, limit=limit, cursor=cursor)
            vectors = self._requests.run(
                lambda: self._requests.fetch(page.ids, self._namespace), self._requests.patience
            )
            ids = [id_ for id_ in page.ids if id_ in vectors]
            return Page([_listed(id_, vectors[id_], listing) for id_ in ids], page.cursor)
        grammar = json_filter(listing.filter)

        async def read() -> Page:
            images: list[Listed] = []
            token = cursor
            while len(images) < limit:
                try:
                    vectors, token = await self._requests.fetch_by_metadata(
                        grammar, self._namespace, limit - len(images), token
                    )
                except errors.ApiError as exc:
                    raise _about_cursor(exc, token) from exc
                images += [
                    _listed(id_, vector, listing)
                    for id_, vector in vectors.items()
                    if id_.startswith(listing.prefix)
                ]
                if not token:
                    break
            return Page(images, token)

        return self._requests.run(read, seconds=self._requests.patience)

    def list_ids(self, *, prefix: str = "", limit: int = 100, cursor: str = "") -> IdPage:
        async def read() -> IdPage:
            ids: list[str] = []
            token = cursor
            while len(ids) < limit:
                try:
                    page = await self._requests.list_ids(
                        self._namespace, prefix, limit - len(ids), token
                    )
                except errors.ApiError as exc:
                    raise _about_cursor(exc, token) from exc
                ids += page.ids
                token = page.cursor
                if not token:
                    break
            return IdPage(ids, token)

        return self._requests.run(read, seconds=self._requests.patience)

    def labels(self) -> dict[str, int | None]:
        async def read() -> list[str]:
            ids: list[str] = []
            token = ""
            while True:
                page = await self._requests.list_ids(_LABELS, self._label_prefix, LIST_IDS, token)
                ids += page.ids
                token = page.cursor
                if not token:
                    break
            vectors = await self._requests.fetch(ids, _LABELS)
            return [vector.metadata[LABEL_FIELD] for vector in vectors.values()]

        return dict.fromkeys(sorted(self._requests.run(read, seconds=self._requests.patience)))

    def count(self) -> int:
        stats = self._requests.run(
            lambda: self._requests.again(self._requests.index.describe_index_stats)
        )
        names = {self._namespace, ""} if self._namespace == "__default__" else {self._namespace}
        return sum(stats.namespaces[name].vector_count for name in names & stats.namespaces.keys())

    def flush(self) -> None:
        """Wait until queries show what was acknowledged; warn if they do not in time."""
        committed = self._requests.committed.get(self._namespace)
        if committed is None:
            return

        async def wait() -> None:
            while True:
                response = await self._requests.again(
                    partial(
                        self._requests.index.query,
                        top_k=1,
                        vector=ANY_VECTOR,
                        namespace=self._namespace,
                    )
                )
                info = response.response_info
                if info is None or info.lsn_reconciled is None or info.lsn_reconciled >= committed:
                    return
                await asyncio.sleep(FIRST_DELAY)

        try:
            self._requests.run(wait, seconds=self._requests.patience)
        except StoreError as exc:
            _log.warning("Pinecone does not show all that it acknowledged yet: %s", exc)

    def close(self) -> None:
        self._requests.close()

    def _write_labels(self, labels: set[str]) -> None:
        """Store the labels that this object has not stored yet."""
        new = sorted(labels - self._labels_written)
        markers = [
            {"id": self._label_id(label), "values": ANY_VECTOR, "metadata": {LABEL_FIELD: label}}
            for label in new
        ]

        async def write() -> None:
            for part in parts(markers):
                await self._requests.upsert(part, _LABELS)

        if new:
            self._requests.run(write, seconds=self._requests.patience)
            self._labels_written.update(new)

    def _label_id(self, label: str) -> str:
        # Labels may hold more, and other characters, than ids.
        return self._label_prefix + hashlib.sha256(label.encode()).hexdigest()

    @property
    def _label_prefix(self) -> str:
        return f"{self._namespace}/"


def _about_cursor(error: errors.ApiError, cursor: str) -> Exception:
    """The error as it is, unless it may be the cursor's."""
    if cursor and error.status_code == HTTPStatus.BAD_REQUEST:
        return RecordError(f"{cursor!r} is not a cursor of this index")
    return error


def _listed(id_: str, vector: Any, listing: Listing) -> Listed:
    label, metadata, thumbnail = decode(vector.metadata)
    return Listed(id_, label, metadata, thumbnail if listing.thumbnails else b"")
