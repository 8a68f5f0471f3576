"""The Pinecone store, over Pinecone's own SDK.

Label and thumbnail (base64) travel as metadata fields. The manifest is a record of its own, in the
namespace `__manifest__` of the same index with the namespace as its id, and the recipe is there in
parts: a tag of an index holds 120 characters at most, belongs to all namespaces, and is not to be
had with a data-plane key. Pinecone does not tell which values a field has, so each label is a
record of its own, too, in `__labels__`.
"""

import asyncio
import base64
import binascii
import functools
import hashlib
import io
import logging
import os
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeVar

import numpy as np
import orjson
from PIL import Image
from pinecone import AsyncIndex, Pinecone, RetryConfig, ServerlessSpec
from pinecone.errors import exceptions as errors
from pydantic import ValidationError

from image_search.calibration import Calibration
from image_search.errors import (
    IndexMismatchError,
    IndexNotFoundError,
    RecordError,
    SettingsError,
    StoreError,
)
from image_search.filters import Condition, Filter
from image_search.index import IdPage, Match, Record, best_first, check_query, check_records
from image_search.manifest import Manifest
from image_search.recipe import Recipe
from image_search.settings import Settings
from image_search.values import DIMENSION, LABEL_FIELD, MAX_ID_LENGTH, THUMBNAIL_FIELD, Embeddings

_log = logging.getLogger(__name__)

API_KEY_VARIABLE: Final = "PINECONE_API_KEY"
_MANIFESTS: Final = "__manifest__"
_LABELS: Final = "__labels__"

# https://docs.pinecone.io/reference/api/database-limits: 1,000 records and 2 MB a request, 40 KB of
# metadata a record, 4 MB a result. Smaller requests run side by side.
_UPSERT_RECORDS: Final = 128
_UPSERT_BYTES: Final = 1_900_000
_VALUE_BYTES: Final = 16  # at most, with seven decimals and a comma
_METADATA_BYTES: Final = 40 * 1024
_PART: Final = 36_000  # characters of base64, which fit into a record's metadata
_MATCHES_WITH_METADATA: Final = 90
_FETCH_IDS: Final = 64
_FETCH_URL_BYTES: Final = 6_000
_DELETE_IDS: Final = 1_000
_LIST_IDS: Final = 100
_CONCURRENCY: Final = 16

_ANY_VECTOR: Final = [1.0] + [0.0] * (DIMENSION - 1)

# How long one batch is sent again and again, in multiples of the time that a query may take.
_PATIENCE: Final = 12
_FIRST_DELAY: Final = 0.25
_LONGEST_DELAY: Final = 20.0
# These seldom pass by waiting, but do: a new index or key takes a while to be known everywhere.
_SELDOM_PASSES: Final = (
    errors.UnauthorizedError,
    errors.ForbiddenError,
    errors.NotFoundError,
    errors.ConflictError,
    errors.PayloadTooLargeError,
)
_SELDOM_TRIES: Final = 4
_PASSES: Final = (
    errors.RateLimitError,
    errors.ServiceError,
    errors.PineconeConnectionError,
    errors.PineconeTimeoutError,
    errors.ResponseParsingError,
)

T = TypeVar("T")


def open_index(settings: Settings) -> "PineconeIndex":
    """Open the index; raises IndexNotFoundError when there is none, or none with a manifest."""
    index = _connect(settings)
    if index is None:
        raise IndexNotFoundError(
            f"there is no index {settings.index!r} at Pinecone yet: ingest images first, "
            "python -m worker ingest SOURCE"
        )
    with _closed_on_error(index):
        if not index.load_manifest():
            raise IndexNotFoundError(
                f"Pinecone's index {settings.index!r} has no manifest for the namespace "
                f"{settings.namespace!r} yet: the first ingest, python -m worker ingest SOURCE, "
                "writes it"
            )
    return index


def create_index(
    settings: Settings, manifest: Manifest, recipe: Recipe | None = None
) -> "PineconeIndex":
    """Create a serverless index, or adopt the one there is; without a manifest it gets this one.

    Raises IndexMismatchError when dimension or metric of an existing index do not fit.
    """
    index = _connect(settings)
    if index is None:
        with _errors_of_pinecone(), closing(_client(settings)) as client:
            try:
                client.create_index(
                    name=settings.index,
                    spec=ServerlessSpec(
                        cloud=settings.pinecone_cloud, region=settings.pinecone_region
                    ),
                    dimension=DIMENSION,
                    metric=manifest.metric,
                )
            except errors.ConflictError:
                _log.info("another process has just created the index")
        index = _connect(settings)
        if index is None:
            raise StoreError(f"Pinecone created the index {settings.index!r} but does not show it")
    with _closed_on_error(index):
        if not index.load_manifest():
            if index.metric != manifest.metric:
                raise IndexMismatchError(
                    f"Pinecone's index {settings.index!r} has the metric {index.metric}, asked for "
                    f"is {manifest.metric}: use the index's metric, or another index"
                )
            # First, so that no manifest is seen without its recipe.
            if recipe is not None:
                index.write_recipe(recipe)
            index.write_manifest(manifest)
    return index


class PineconeIndex:
    """VectorIndex over one namespace of a Pinecone index.

    Calls of the SDK run in an event loop, where a time limit can end them together with the waiting
    between the SDK's own retries.
    """

    def __init__(self, settings: Settings, host: str, metric: str) -> None:
        self.metric = metric
        self._settings = settings
        self._namespace = settings.namespace
        self._manifest: Manifest | None = None
        self._calibration: Calibration | None = None
        self._calibration_id = f"{self._namespace}/calibration"  # no namespace has a slash
        self._committed: int | None = None
        self._labels_written: set[str] = set()
        self._resent = 0
        self._loop = _event_loop()
        self._index = AsyncIndex(
            host=host,
            api_key=_api_key(),
            timeout=settings.store_timeout,
            connection_pool_maxsize=2 * _CONCURRENCY,
        )

    @property
    def manifest(self) -> Manifest:
        if self._manifest is None:
            raise StoreError("the manifest has not been read")
        return self._manifest

    @property
    def retries(self) -> int:
        return self._resent + _sdk_retries.count

    def load_manifest(self) -> bool:
        """Read the manifest, and the calibration; False when there is no manifest."""
        ids = [self._namespace, self._calibration_id]
        vectors = self._run(lambda: self._fetch(ids, _MANIFESTS))
        vector = vectors.get(self._namespace)
        if vector is None:
            return False
        try:
            self._manifest = Manifest.model_validate_json((vector.metadata or {})["manifest"])
            if (calibration := vectors.get(self._calibration_id)) is not None:
                self._calibration = Calibration.model_validate_json(
                    calibration.metadata["calibration"]
                )
        except (KeyError, TypeError, ValidationError) as exc:
            raise IndexMismatchError(
                f"Pinecone's index {self._settings.index!r} has a manifest that this version does "
                "not read: use another index"
            ) from exc
        self._manifest.require_metric(self.metric)  # type: ignore[arg-type]
        return True

    def write_manifest(self, manifest: Manifest) -> None:
        """Store the manifest, and wait until it can be read."""
        self._write_facts({self._namespace: {"manifest": manifest.model_dump_json()}})
        self._manifest = manifest

    @property
    def calibration(self) -> Calibration | None:
        return self._calibration

    def save_calibration(self, calibration: Calibration) -> None:
        self._write_facts({self._calibration_id: {"calibration": calibration.model_dump_json()}})
        self._calibration = calibration

    def load_recipe(self) -> Recipe | None:
        fingerprint = self.manifest.model.recipe_fingerprint
        if not fingerprint:
            return None

        async def fetch() -> str:
            first = _part_id(fingerprint, 0)
            vectors = await self._fetch([first], _MANIFESTS)
            count = int(vectors[first].metadata["parts"])
            ids = [_part_id(fingerprint, number) for number in range(count)]
            vectors |= await self._fetch(ids[1:], _MANIFESTS)
            return "".join(vectors[id_].metadata["part"] for id_ in ids)

        try:
            return Recipe.from_bytes(base64.b64decode(self._run(fetch, self._patience)))
        except (KeyError, TypeError, ValueError) as exc:
            raise StoreError(
                f"Pinecone's index {self._settings.index!r} lacks the recipe {fingerprint} or a "
                "part of it: use another index"
            ) from exc

    def write_recipe(self, recipe: Recipe) -> None:
        """Store the recipe, in parts as a record holds little, and wait until it can be read."""
        text = base64.b64encode(recipe.to_bytes()).decode()
        parts = [text[start : start + _PART] for start in range(0, len(text), _PART)]
        self._write_facts(
            {
                _part_id(recipe.fingerprint, number): {"part": part, "parts": len(parts)}
                for number, part in enumerate(parts)
            }
        )

    def _write_facts(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Store metadata by id in the namespace of manifests, and wait until it can be read."""
        records = [
            {"id": id_, "values": _ANY_VECTOR, "metadata": metadata}
            for id_, metadata in facts.items()
        ]

        async def write_and_wait() -> None:
            for part in _parts(records):
                await self._send(part, _MANIFESTS)
            while len(await self._fetch(list(facts), _MANIFESTS)) < len(facts):
                await asyncio.sleep(_FIRST_DELAY)

        self._run(write_and_wait, seconds=self._patience)

    def upsert(self, records: Sequence[Record]) -> None:
        check_records(records)
        for record in records:
            _room_for_thumbnail(record)
        unique = list({record.id: record for record in records}.values())
        # First: a label without records does less harm than records without their label.
        self._write_labels({record.label for record in unique if record.label is not None})
        batches = [
            unique[start : start + _UPSERT_RECORDS]
            for start in range(0, len(unique), _UPSERT_RECORDS)
        ]

        async def send(batch: list[Record]) -> None:
            # Encoded here, one batch is while others are on their way.
            for part in _parts([_encode(record) for record in batch]):
                await self._send(part, self._namespace)

        # Each batch has its own limit; this one only ends a call that hangs.
        limit = 2 * self._patience * (1 + len(batches) / _CONCURRENCY)
        self._run(lambda: _side_by_side([partial(send, batch) for batch in batches]), limit)

    def query(
        self,
        embedding: Embeddings,
        top_k: int,
        filter: Filter | None = None,  # noqa: A002
    ) -> list[Match]:
        [matches] = self.query_many(embedding[np.newaxis], top_k, filter)
        return matches

    def query_many(
        self,
        embeddings: Embeddings,
        top_k: int,
        filter: Filter | None = None,  # noqa: A002
    ) -> list[list[Match]]:
        for embedding in embeddings:
            check_query(embedding, top_k)
        if top_k == 0:
            return [[] for _ in embeddings]
        json_filter = _json_filter(filter) if filter else None
        with_metadata = top_k <= _MATCHES_WITH_METADATA

        async def search(embedding: Embeddings) -> list[Match]:
            response = await self._index.query(
                top_k=top_k,
                vector=embedding.tolist(),
                namespace=self._namespace,
                filter=json_filter,
                include_metadata=with_metadata,
            )
            if with_metadata:
                holders: dict[str, Any] = {match.id: match for match in response.matches}
            else:
                holders = await self._fetch([match.id for match in response.matches])
            matches = []
            for match in response.matches:
                holder = holders.get(match.id)
                if holder is not None:  # deleted between the two requests otherwise
                    label, metadata, thumbnail = _decode(holder.metadata)
                    matches.append(Match(match.id, match.score, label, metadata, thumbnail))
            return best_first(matches, self.manifest.metric)

        return self._run(
            lambda: _side_by_side([partial(search, embedding) for embedding in embeddings])
        )

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        vectors = self._run(lambda: self._fetch(ids), seconds=self._patience)
        records = {}
        for id_, vector in vectors.items():
            label, metadata, thumbnail = _decode(vector.metadata)
            embedding = np.asarray(vector.values, np.float32)
            records[id_] = Record(id_, embedding, label, metadata, thumbnail)
        return records

    def delete(self, ids: Sequence[str]) -> None:
        parts = [ids[start : start + _DELETE_IDS] for start in range(0, len(ids), _DELETE_IDS)]

        async def delete_all() -> None:
            for part in parts:
                # It answers 404 in a namespace that nothing was written to yet.
                with suppress(errors.NotFoundError):
                    await self._again(
                        partial(self._index.delete, ids=list(part), namespace=self._namespace)
                    )

        self._run(delete_all, seconds=self._patience)

    def list_ids(self, *, prefix: str = "", limit: int = 100, cursor: str = "") -> IdPage:
        async def read() -> IdPage:
            ids: list[str] = []
            token = cursor
            while len(ids) < limit:
                try:
                    page = await self._list(self._namespace, prefix, limit - len(ids), token)
                except errors.ApiError as exc:
                    if token and exc.status_code == HTTPStatus.BAD_REQUEST:
                        raise RecordError(f"{token!r} is not a cursor of this index") from exc
                    raise
                ids += page.ids
                token = page.cursor
                if not token:
                    break
            return IdPage(ids, token)

        return self._run(read, seconds=self._patience)

    def labels(self) -> dict[str, int | None]:
        async def read() -> list[str]:
            ids: list[str] = []
            token = ""
            while True:
                page = await self._list(_LABELS, self._label_prefix, _LIST_IDS, token)
                ids += page.ids
                token = page.cursor
                if not token:
                    break
            vectors = await self._fetch(ids, _LABELS)
            return [vector.metadata[LABEL_FIELD] for vector in vectors.values()]

        return dict.fromkeys(sorted(self._run(read, seconds=self._patience)))

    def count(self) -> int:
        stats = self._run(lambda: self._again(self._index.describe_index_stats))
        names = {self._namespace, ""} if self._namespace == "__default__" else {self._namespace}
        return sum(stats.namespaces[name].vector_count for name in names & stats.namespaces.keys())

    def flush(self) -> None:
        """Wait until queries show what was acknowledged; warn if they do not in time."""
        committed = self._committed
        if committed is None:
            return

        async def wait() -> None:
            while True:
                response = await self._again(
                    partial(
                        self._index.query, top_k=1, vector=_ANY_VECTOR, namespace=self._namespace
                    )
                )
                info = response.response_info
                if info is None or info.lsn_reconciled is None or info.lsn_reconciled >= committed:
                    return
                await asyncio.sleep(_FIRST_DELAY)

        try:
            self._run(wait, seconds=self._patience)
        except StoreError as exc:
            _log.warning("Pinecone does not show all that it acknowledged yet: %s", exc)

    def close(self) -> None:
        self._run(self._index.close)

    # --- requests ---

    @property
    def _patience(self) -> float:
        return _PATIENCE * self._settings.store_timeout

    def _run(self, work: Callable[[], Awaitable[T]], seconds: float | None = None) -> T:
        limit = seconds or self._settings.store_timeout

        async def limited() -> T:
            async with asyncio.timeout(limit):
                return await work()

        with _errors_of_pinecone(limit):
            return asyncio.run_coroutine_threadsafe(limited(), self._loop).result()

    def _write_labels(self, labels: set[str]) -> None:
        """Store the labels that this object has not stored yet."""
        new = sorted(labels - self._labels_written)
        markers = [
            {"id": self._label_id(label), "values": _ANY_VECTOR, "metadata": {LABEL_FIELD: label}}
            for label in new
        ]

        async def write() -> None:
            for part in _parts(markers):
                await self._send(part, _LABELS)

        if new:
            self._run(write, seconds=self._patience)
            self._labels_written.update(new)

    def _label_id(self, label: str) -> str:
        # Labels may hold more, and other characters, than ids.
        return self._label_prefix + hashlib.sha256(label.encode()).hexdigest()

    @property
    def _label_prefix(self) -> str:
        return f"{self._namespace}/"

    async def _send(self, chunk: list[dict[str, Any]], namespace: str) -> None:
        """Upsert one batch until it is acknowledged as a whole, in halves if it is too large."""
        try:
            response = await self._again(
                partial(self._index.upsert, vectors=chunk, namespace=namespace),
                done=lambda response: response.upserted_count == len(chunk),
            )
        except errors.PayloadTooLargeError:
            if len(chunk) == 1:
                raise
            middle = len(chunk) // 2
            await self._send(chunk[:middle], namespace)
            await self._send(chunk[middle:], namespace)
            return
        info = response.response_info
        # Each namespace has numbers of its own.
        own = namespace == self._namespace
        if own and info is not None and info.lsn_committed is not None:
            self._committed = max(self._committed or 0, info.lsn_committed)

    async def _again(
        self, request: Callable[[], Awaitable[T]], done: Callable[[T], bool] = lambda _: True
    ) -> T:
        """Send a request until it succeeds and is `done`, for a limited time."""
        deadline = self._loop.time() + self._patience
        delay = _FIRST_DELAY
        seldom = 0
        while True:
            wait = 0.0
            try:
                response = await request()
            except _SELDOM_PASSES:
                seldom += 1
                if seldom == _SELDOM_TRIES:
                    raise
            except _PASSES as exc:
                wait = getattr(exc, "retry_after", None) or 0.0
                if self._loop.time() + wait > deadline:
                    raise
            else:
                if done(response):
                    return response
                if self._loop.time() > deadline:
                    raise StoreError("Pinecone stores only a part of a batch, again and again")
            self._resent += 1
            await asyncio.sleep(wait + random.uniform(0, delay))
            delay = min(2 * delay, _LONGEST_DELAY)

    async def _list(self, namespace: str, prefix: str, limit: int, cursor: str) -> IdPage:
        """The next ids, at most `limit`; Pinecone sends at most 100."""
        response = await self._again(
            partial(
                self._index.list_paginated,
                prefix=prefix or None,
                limit=min(_LIST_IDS, limit),
                pagination_token=cursor or None,
                namespace=namespace,
            )
        )
        next_ = (response.pagination and response.pagination.next) or ""
        return IdPage([item.id for item in response.vectors if item.id], next_)

    async def _fetch(self, ids: Sequence[str], namespace: str | None = None) -> dict[str, Any]:
        if not ids:
            return {}
        parts: list[list[str]] = [[]]
        size = 0
        for id_ in ids:
            size += 3 * len(id_) + len("&ids=")  # percent-encoded at worst
            if len(parts[-1]) == _FETCH_IDS or (size > _FETCH_URL_BYTES and parts[-1]):
                parts.append([])
                size = 3 * len(id_)
            parts[-1].append(id_)
        responses = await _side_by_side(
            [
                partial(
                    self._again,
                    partial(self._index.fetch, ids=part, namespace=namespace or self._namespace),
                )
                for part in parts
            ]
        )
        return {id_: vector for response in responses for id_, vector in response.vectors.items()}


async def _side_by_side(calls: "list[Callable[[], Coroutine[Any, Any, T]]]") -> list[T]:
    """Run the calls, some at a time; the first error cancels the rest."""
    free = asyncio.Semaphore(_CONCURRENCY)

    async def one(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with free:
            return await call()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(call)) for call in calls]
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    return [task.result() for task in tasks]


# --- connection ---


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="pinecone", daemon=True).start()
    return loop


def _api_key() -> str:
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    if not key:
        raise SettingsError(f"{API_KEY_VARIABLE} is not set: Pinecone needs an API key")
    return key


def _client(settings: Settings) -> Pinecone:
    return Pinecone(
        api_key=_api_key(),
        host=settings.pinecone_host,
        timeout=settings.store_timeout,
        # The time limit holds for the whole call; the caller comes again anyway.
        retry_config=RetryConfig(max_retries=2, max_wait=settings.store_timeout / 4),
    )


def _connect(settings: Settings) -> PineconeIndex | None:
    """The index, if there is one and its dimension fits."""
    with _errors_of_pinecone(), closing(_client(settings)) as client:
        try:
            described = client.describe_index(settings.index)
        except errors.NotFoundError:
            return None
    dimension, metric = described.dimension, described.metric
    if dimension != DIMENSION:
        raise IndexMismatchError(
            f"Pinecone's index {settings.index!r} has {dimension} dimensions, VGG16's embeddings "
            f"have {DIMENSION}: use another index"
        )
    if not described.status.ready or not described.host:
        raise StoreError(f"Pinecone's index {settings.index!r} is not ready yet: try again")
    return PineconeIndex(settings, described.host, str(metric))


@contextmanager
def _closed_on_error(index: PineconeIndex) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(index.close)
        yield
        stack.pop_all()


@contextmanager
def _errors_of_pinecone(seconds: float | None = None) -> Iterator[None]:
    try:
        yield
    except (errors.UnauthorizedError, errors.ForbiddenError) as exc:
        raise StoreError(
            f"Pinecone refused the API key ({exc.status_code}): check {API_KEY_VARIABLE}"
        ) from exc
    except (errors.PineconeConnectionError, errors.PineconeTimeoutError, TimeoutError) as exc:
        limit = f" within {seconds:g} s" if seconds else ""
        raise StoreError(f"Pinecone cannot be reached, or did not answer{limit}") from exc
    except errors.ApiError as exc:
        raise StoreError(f"Pinecone answered {exc.status_code}: {_shown(exc)}") from exc
    except errors.PineconeError as exc:
        raise StoreError(f"Pinecone's SDK failed: {_shown(exc)}") from exc


def _shown(error: Exception) -> str:
    return str(error).splitlines()[0].replace(_api_key(), "***") if str(error) else ""


class _RetryCounter(logging.Filter):
    """Counts the SDK's own retries, which it tells its debug log alone."""

    count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.DEBUG:
            return True
        if "on attempt" in record.msg or record.msg.startswith("Throttled"):
            self.count += 1
        return False


_sdk_retries = _RetryCounter()
_sdk_log = logging.getLogger("pinecone._internal.http_client")
_sdk_log.addFilter(_sdk_retries)
_sdk_log.setLevel(logging.DEBUG)


# --- records ---


def _encode(record: Record) -> dict[str, Any]:
    metadata = _metadata(record)
    if record.thumbnail:
        metadata[THUMBNAIL_FIELD] = _fitting_thumbnail(record)
    # Seven decimals are as exact as float32 at this size, and half as long.
    values = np.round(record.embedding.astype(np.float64), 7).tolist()
    return {"id": record.id, "values": values, "metadata": metadata}


def _metadata(record: Record) -> dict[str, Any]:
    label = {} if record.label is None else {LABEL_FIELD: record.label}
    return {**record.metadata, **label}


def _room_for_thumbnail(record: Record) -> int:
    """Bytes of metadata that are left; raises RecordError if there are none."""
    used = len(orjson.dumps(_metadata(record))) + len(f',"{THUMBNAIL_FIELD}":""')
    if used > _METADATA_BYTES:
        raise RecordError(
            f"record {record.id!r}: label and metadata take more than Pinecone's "
            f"{_METADATA_BYTES:,} bytes"
        )
    return _METADATA_BYTES - used


def _fitting_thumbnail(record: Record) -> str:
    room = _room_for_thumbnail(record)
    thumbnail = record.thumbnail
    while len(encoded := base64.b64encode(thumbnail).decode()) > room:
        with Image.open(io.BytesIO(thumbnail)) as image:
            if min(image.size) < 2:
                raise RecordError(
                    f"record {record.id!r}: its thumbnail does not fit into Pinecone's "
                    f"{_METADATA_BYTES:,} bytes of metadata"
                )
            out = io.BytesIO()
            image.reduce(2).save(out, "JPEG")
        thumbnail = out.getvalue()
    return encoded


def _decode(metadata: Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any], bytes]:
    """Label, metadata and thumbnail; records that were made elsewhere may lack any of them."""
    rest = dict(metadata or {})
    label = rest.pop(LABEL_FIELD, None)
    try:
        thumbnail = base64.b64decode(rest.pop(THUMBNAIL_FIELD, ""), validate=True)
    except (binascii.Error, TypeError, ValueError):
        thumbnail = b""
    return None if label is None else str(label), rest, thumbnail


def _part_id(fingerprint: str, number: int) -> str:
    return f"recipe/{fingerprint}/{number}"  # no namespace has a slash


def _parts(encoded: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Cut a batch so that no request has too many bytes."""
    parts: list[list[dict[str, Any]]] = [[]]
    size = 0
    for item in encoded:
        item_size = DIMENSION * _VALUE_BYTES + len(orjson.dumps(item["metadata"])) + MAX_ID_LENGTH
        if size + item_size > _UPSERT_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(item)
        size += item_size
    return parts


def _json_filter(filter_: Filter) -> dict[str, Any]:
    if isinstance(filter_, Condition):
        operand = filter_.operand
        value = list(operand) if isinstance(operand, tuple) else operand
        return {filter_.field: {filter_.operator: value}}
    return {filter_.operator: [_json_filter(part) for part in filter_.filters]}
