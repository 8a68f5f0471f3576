"""Requests to an index at Pinecone: time limits, sending again, many side by side.

Calls of the SDK run in an event loop, where a time limit can end them together with the waiting
between the SDK's own retries.
"""

import asyncio
import functools
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from pinecone import AsyncIndex
from pinecone.errors import exceptions as errors

from image_search.errors import StoreError
from image_search.index import IdPage
from image_search.stores.pinecone.errors import errors_of_pinecone

_FETCH_IDS: Final = 64
_FETCH_URL_BYTES: Final = 6_000
LIST_IDS: Final = 100
CONCURRENCY: Final = 16

# How long one batch is sent again and again, in multiples of the time that a query may take.
_PATIENCE: Final = 12
FIRST_DELAY: Final = 0.25
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


class Requests:
    """Requests to one index, each within a multiple of `timeout` in seconds."""

    def __init__(self, index: AsyncIndex, timeout: float) -> None:
        self.index = index
        self._timeout = timeout
        self._loop = _event_loop()
        # The last number that Pinecone gave a write, by namespace.
        self.committed: dict[str, int] = {}
        self._resent = 0

    @property
    def retries(self) -> int:
        """How many requests were sent again, by the SDK or here."""
        return self._resent + _sdk_retries.count

    @property
    def patience(self) -> float:
        """Seconds that one batch is sent again and again."""
        return _PATIENCE * self._timeout

    def close(self) -> None:
        """Close the connections."""
        self.run(self.index.close)

    def run(self, work: Callable[[], Awaitable[T]], seconds: float | None = None) -> T:
        """Wait for `work`, at most `seconds`, or as long as a query may take."""
        limit = seconds or self._timeout

        async def limited() -> T:
            async with asyncio.timeout(limit):
                return await work()

        with errors_of_pinecone(limit):
            return asyncio.run_coroutine_threadsafe(limited(), self._loop).result()

    async def upsert(self, chunk: list[dict[str, Any]], namespace: str) -> None:
        """Upsert one batch until it is acknowledged as a whole, in halves if it is too large."""
        try:
            response = await self.again(
                partial(self.index.upsert, vectors=chunk, namespace=namespace),
                done=lambda response: response.upserted_count == len(chunk),
            )
        except errors.PayloadTooLargeError:
            if len(chunk) == 1:
                raise
            middle = len(chunk) // 2
            await self.upsert(chunk[:middle], namespace)
            await self.upsert(chunk[middle:], namespace)
            return
        info = response.response_info
        if info is not None and info.lsn_committed is not None:
            before = self.committed.get(namespace, 0)
            self.committed[namespace] = max(before, info.lsn_committed)

    async def again(
        self, request: Callable[[], Awaitable[T]], done: Callable[[T], bool] = lambda _: True
    ) -> T:
        """Send a request until it succeeds and is `done`, for a limited time."""
        deadline = self._loop.time() + self.patience
        delay = FIRST_DELAY
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

    async def list_ids(self, namespace: str, prefix: str, limit: int, cursor: str) -> IdPage:
        """The next ids, at most `limit`; Pinecone sends at most 100."""
        response = await self.again(
            partial(
                self.index.list_paginated,
                prefix=prefix or None,
                limit=min(LIST_IDS, limit),
                pagination_token=cursor or None,
                namespace=namespace,
            )
        )
        next_ = (response.pagination and response.pagination.next) or ""
        return IdPage([item.id for item in response.vectors if item.id], next_)

    async def fetch_by_metadata(
        self, filter_: dict[str, Any], namespace: str, limit: int, cursor: str
    ) -> tuple[dict[str, Any], str]:
        """The next vectors that pass the filter, at most `limit`, by id; and the next cursor."""
        response = await self.again(
            partial(
                self.index.fetch_by_metadata,
                filter=filter_,
                namespace=namespace,
                limit=min(_FETCH_IDS, limit),
                pagination_token=cursor or None,
            )
        )
        next_ = (response.pagination and response.pagination.next) or ""
        return dict(response.vectors), next_

    async def fetch(self, ids: Sequence[str], namespace: str) -> dict[str, Any]:
        """The vectors by id; those that do not exist are left out."""
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
        responses = await side_by_side(
            [
                partial(
                    self.again,
                    partial(self.index.fetch, ids=part, namespace=namespace),
                )
                for part in parts
            ]
        )
        return {id_: vector for response in responses for id_, vector in response.vectors.items()}


async def side_by_side(calls: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
    """Run the calls, some at a time; the first error cancels the rest."""
    free = asyncio.Semaphore(CONCURRENCY)

    async def one(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with free:
            return await call()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(call)) for call in calls]
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    return [task.result() for task in tasks]


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="pinecone", daemon=True).start()
    return loop


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
