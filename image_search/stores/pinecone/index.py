"""The index over one namespace of an index at Pinecone."""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
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
    check_size,
    decode,
    encode,
    encode_thumbnail,
    json_filter,
    numbers,
    parts,
)
from image_search.stores.pinecone.requests import (
    CONCURRENCY,
    LIST_IDS,
    Requests,
    poll,
    side_by_side,
)
from image_search.values import DIGEST_FIELD, LABEL_FIELD, MAX_TOP_K, STATE_FIELD, Embeddings

_log = logging.getLogger(__name__)

# Pinecone does not tell which values a field has, so each label is a record of its own here.
_LABELS: Final = "__labels__"
# Follows the namespace's name, which has no dot.
_THUMBNAILS: Final = ".thumbnails"

# https://docs.pinecone.io/reference/quotas-and-limits: 1,000 records a request, 1,000 matches with
# their metadata, 10,000 values in a filter. Smaller requests run side by side.
_UPSERT_RECORDS: Final = 256
_MATCHES_WITH_METADATA: Final = 1_000
_DELETE_IDS: Final = 1_000
_FOUND_DIGESTS: Final = 512
_STATES: Final = 2_000


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
        self._thumbnails = namespace + _THUMBNAILS
        self._labels_written: set[str] = set()
        # Of the last request that deleted something, until `flush` has seen that they are gone.
        self._deleted: list[str] = []

    @property
    def retries(self) -> int:
        return self._requests.retries

    def _save_calibration(self, calibration: Calibration) -> None:
        self._facts.write_calibration(calibration)

    def load_sample(self) -> ImageSample:
        return self._facts.read_sample()

    def save_sample(self, sample: ImageSample) -> None:
        self._facts.update_sample(lambda _: sample)

    def update_sample(self, change: Callable[[ImageSample], ImageSample]) -> None:
        self._facts.update_sample(change)

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
            check_size(record)
        # First: a label without records does less harm than records without their label.
        self._write_labels({record.label for record in records if record.label is not None})
        batches = [
            records[start : start + _UPSERT_RECORDS]
            for start in range(0, len(records), _UPSERT_RECORDS)
        ]

        one_by_one = asyncio.Lock()

        async def send(batch: list[Record]) -> None:
            # Thumbnails go first: whoever sees a record finds its thumbnail. Records are encoded
            # meanwhile, in turns, so that this does not keep thumbnails from leaving.
            pictures = asyncio.ensure_future(send_pictures(batch))
            try:
                await asyncio.sleep(0)
                async with one_by_one:
                    encoded = parts(encode(batch))
                    await asyncio.sleep(0)
                await pictures
            finally:
                pictures.cancel()
            for part in encoded:
                await self._requests.upsert(part, self._namespace)

        async def send_pictures(batch: list[Record]) -> None:
            pictures = [encode_thumbnail(record) for record in batch if record.thumbnail]
            for part in parts(pictures):
                await self._requests.upsert(part, self._thumbnails)
            without = [record.id for record in batch if not record.thumbnail]
            await self._delete_ids(without, self._thumbnails)

        # Each batch has its own limit; this one only ends a call that hangs.
        limit = 3 * self._requests.patience * (1 + len(batches) / CONCURRENCY)
        self._requests.run(lambda: side_by_side([partial(send, batch) for batch in batches]), limit)
        self._deleted = []

    def _query(
        self, embeddings: Embeddings, top_k: int, filter_: Filter | None, *, thumbnails: bool
    ) -> list[list[Match]]:
        grammar = json_filter(filter_) if filter_ else None

        async def search(embedding: Embeddings) -> list[Match]:
            vector = numbers(embedding)
            found = await self._described(vector, top_k, grammar)
            if found is None:
                found = await self._find(vector, top_k, grammar, with_metadata=False)
                holders = await self._requests.fetch([match.id for match in found], self._namespace)
            else:
                holders = {match.id: match for match in found}
            pictures = await self._pictures(holders) if thumbnails else {}
            matches = []
            for match in found:
                holder = holders.get(match.id)
                if holder is not None:  # deleted between the two requests otherwise
                    label, metadata, _ = decode(holder.metadata)
                    picture = pictures.get(match.id, b"")
                    matches.append(Match(match.id, match.score, label, metadata, picture))
            return best_first(matches, self._manifest.metric)

        return self._requests.run(
            lambda: side_by_side([partial(search, embedding) for embedding in embeddings]),
            self._requests.time_for(len(embeddings)),
        )

    async def _described(
        self, vector: Sequence[float], top_k: int, grammar: dict[str, Any] | None
    ) -> list[Any] | None:
        """The matches with their metadata; None where that is too much for one answer."""
        if top_k > _MATCHES_WITH_METADATA:
            return None
        try:
            return await self._find(vector, top_k, grammar, with_metadata=True)
        except errors.ApiError as exc:
            # If something else is wrong, it is as wrong without metadata.
            if exc.status_code not in {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}:
                raise
            return None

    async def _find(
        self,
        vector: Sequence[float],
        top_k: int,
        grammar: dict[str, Any] | None,
        *,
        with_metadata: bool,
    ) -> list[Any]:
        response = await self._requests.send(
            "query",
            self._namespace,
            partial(
                self._requests.index.query,
                top_k=top_k,
                vector=vector,
                namespace=self._namespace,
                filter=grammar,
                include_metadata=with_metadata,
            ),
        )
        return list(response.matches)

    async def _pictures(self, holders: Mapping[str, Any]) -> dict[str, bytes]:
        """The thumbnails of records by id, those with them in the metadata as well."""
        pictures = {id_: decode(holder.metadata)[2] for id_, holder in holders.items()}
        apart = await self._requests.fetch(
            [id_ for id_, picture in pictures.items() if not picture], self._thumbnails
        )
        return pictures | {id_: decode(vector.metadata)[2] for id_, vector in apart.items()}

    def _fetch(self, ids: Sequence[str], *, thumbnails: bool) -> dict[str, Record]:
        async def read() -> tuple[dict[str, Any], dict[str, bytes]]:
            vectors = await self._requests.fetch(ids, self._namespace)
            return vectors, await self._pictures(vectors) if thumbnails else {}

        vectors, pictures = self._requests.run(read, self._requests.patience)
        records = {}
        for id_, vector in vectors.items():
            label, metadata, _ = decode(vector.metadata)
            embedding = np.asarray(vector.values, np.float32)
            records[id_] = Record(id_, embedding, label, metadata, pictures.get(id_, b""))
        return records

    @property
    def thumbnails_are_apart(self) -> bool:
        return True

    def _thumbnails_of(self, ids: Sequence[str]) -> dict[str, bytes]:
        async def read() -> dict[str, bytes]:
            apart = await self._requests.fetch(ids, self._thumbnails)
            # Earlier versions have it with the record.
            rest = [id_ for id_ in ids if id_ not in apart]
            holders = apart | await self._requests.fetch(rest, self._namespace)
            return {id_: decode(holder.metadata)[2] for id_, holder in holders.items()}

        found = self._requests.run(read, self._requests.patience)
        return {id_: thumbnail for id_, thumbnail in found.items() if thumbnail}

    def _find_digests(self, digests: Collection[str]) -> dict[str, list[str]]:
        wanted = sorted(digests)
        batches = [
            wanted[start : start + _FOUND_DIGESTS]
            for start in range(0, len(wanted), _FOUND_DIGESTS)
        ]

        async def find(batch: list[str]) -> dict[str, Any]:
            grammar = {DIGEST_FIELD: {"$in": batch}}
            found = await self._described(ANY_VECTOR, _MATCHES_WITH_METADATA, grammar)
            if found is not None and len(found) < _MATCHES_WITH_METADATA:
                return {match.id: match for match in found}
            found = await self._find(ANY_VECTOR, MAX_TOP_K, grammar, with_metadata=False)
            return await self._requests.fetch([match.id for match in found], self._namespace)

        found: dict[str, list[str]] = {}
        calls = [partial(find, batch) for batch in batches]
        for holders in self._requests.run(lambda: side_by_side(calls), self._requests.patience):
            for id_, holder in holders.items():
                digest = holder.metadata[DIGEST_FIELD]
                if isinstance(digest, str):  # records that were made elsewhere may have a list
                    found.setdefault(digest, []).append(id_)
        return found

    @property
    def tells_states(self) -> bool:
        return True

    def _held(self, states: Mapping[str, str]) -> set[str]:
        wanted = list(states.values())

        async def find(part: list[str]) -> list[str]:
            # Each state is of one record, as the id is a part of it.
            matches = await self._find(
                ANY_VECTOR, len(part), {STATE_FIELD: {"$in": part}}, with_metadata=False
            )
            return [match.id for match in matches]

        found = self._requests.run(
            lambda: side_by_side(
                [
                    partial(find, wanted[start : start + _STATES])
                    for start in range(0, len(wanted), _STATES)
                ]
            ),
            self._requests.patience,
        )
        return {id_ for part in found for id_ in part}

    def _delete(self, ids: Sequence[str]) -> None:
        async def delete_all() -> None:
            # What has no record is not looked for: its thumbnail goes last.
            for namespace in (self._namespace, self._thumbnails):
                await self._delete_ids(ids, namespace)

        self._requests.run(delete_all, seconds=self._requests.patience)
        self._deleted = list(ids[-_DELETE_IDS:])

    async def _delete_ids(self, ids: Sequence[str], namespace: str) -> None:
        for start in range(0, len(ids), _DELETE_IDS):
            part = list(ids[start : start + _DELETE_IDS])

            async def delete(part: list[str] = part) -> None:
                try:
                    await self._requests.index.delete(ids=part, namespace=namespace)
                except errors.NotFoundError as exc:
                    # Nothing was written to the namespace yet; every other 404 may pass.
                    if "namespace" not in str(exc).lower():
                        raise

            await self._requests.send("delete", namespace, delete)

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
            records = self._fetch(page.ids, thumbnails=listing.thumbnails) if page.ids else {}
            found = [records[id_] for id_ in page.ids if id_ in records]
            return Page(
                [Listed(one.id, one.label, one.metadata, one.thumbnail) for one in found],
                page.cursor,
            )
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
                holders = {
                    id_: vector for id_, vector in vectors.items() if id_.startswith(listing.prefix)
                }
                pictures = await self._pictures(holders) if listing.thumbnails else {}
                images += [
                    _listed(id_, vector, pictures.get(id_, b"")) for id_, vector in holders.items()
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
            lambda: self._requests.send("stats", "", self._requests.index.describe_index_stats)
        )
        names = {self._namespace, ""} if self._namespace == "__default__" else {self._namespace}
        return sum(stats.namespaces[name].vector_count for name in names & stats.namespaces.keys())

    def flush(self) -> None:
        """Wait until reads show what was acknowledged; warn if they do not in time."""

        async def wait() -> None:
            for namespace, number in list(self._requests.committed.items()):
                await poll(partial(self._shows, namespace, number))
                self._requests.committed.pop(namespace, None)
            # The SDK does not give the number of a write that deletes.
            await poll(self._deleted_are_gone)

        try:
            self._requests.run(wait, seconds=self._requests.patience)
        except StoreError as exc:
            _log.warning("Pinecone does not yet show everything that it has acknowledged: %s", exc)

    async def _shows(self, namespace: str, number: int) -> bool:
        query = partial(self._requests.index.query, top_k=1, vector=ANY_VECTOR, namespace=namespace)
        info = (await self._requests.send("query", namespace, query)).response_info
        return info is None or info.lsn_reconciled is None or info.lsn_reconciled >= number

    async def _deleted_are_gone(self) -> bool:
        self._deleted = list(await self._requests.fetch(self._deleted, self._namespace))
        return not self._deleted

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


def _listed(id_: str, vector: Any, picture: bytes) -> Listed:
    label, metadata, _ = decode(vector.metadata)
    return Listed(id_, label, metadata, picture)
