"""Requests to an index at Pinecone: their pace, time limits, retries, and many side by side.

Calls of the SDK run in an event loop, where a time limit can end them together with the waiting
between retries. All retries are made here, and none by the SDK: its budget of retries belongs to
the whole process, so that a busy ingest would take those of a search.
"""

import asyncio
import functools
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

from pinecone import AsyncIndex, Vector
from pinecone.errors import exceptions as errors

from image_search.errors import StoreError
from image_search.index import IdPage
from image_search.stores.pinecone.errors import errors_of_pinecone

_FETCH_IDS: Final = 64
_FETCH_URL_BYTES: Final = 6_000

Kind = Literal["query", "upsert", "delete", "fetch", "list", "stats"]
# https://docs.pinecone.io/reference/quotas-and-limits: requests a second, of each namespace, or of
# the whole index for the last three.
_LIMITS: Final[dict[Kind, int]] = {
    "query": 100,
    "upsert": 100,
    "delete": 100,
    "fetch": 100,
    "list": 200,
    "stats": 100,
}
_OF_INDEX: Final = {"fetch", "list", "stats"}
# So much of it evenly, and so much more at once after a pause, is less than it in any second.
_SHARE: Final = 0.85
_BURST: Final = 0.1
# After a refusal, and after each success until it is as fast as before.
_SLOWER: Final = 0.8
_FASTER: Final = 1.01
_SLOWEST: Final = 2.0
LIST_IDS: Final = 100
CONCURRENCY: Final = 16

# How long one batch is retried, in multiples of the time that a query may take.
_PATIENCE: Final = 12
_FIRST_DELAY: Final = 0.25
# Between looks whether what was written can be read.
_SHORTEST_POLL: Final = 0.05
_LONGEST_POLL: Final = 1.0
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


class _Pace:
    """Lets so many requests start a second, and fewer for a while after a refusal.

    A token bucket: https://en.wikipedia.org/wiki/Token_bucket
    """

    def __init__(self, limit: int) -> None:
        self._most = self._rate = _SHARE * limit
        self._room = self._left = _BURST * limit
        self._seen = 0.0
        self._turn = asyncio.Lock()

    async def wait(self) -> None:
        # One after another: those that all slept until their own times would start at once after
        # a moment in which this process did not run.
        async with self._turn:
            while not self._take():
                await asyncio.sleep((1 - self._left) / self._rate)

    def _take(self) -> bool:
        now = asyncio.get_running_loop().time()
        self._left = min(self._room, self._left + (now - self._seen) * self._rate)
        self._seen = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def refused(self) -> None:
        self._rate = max(self._rate * _SLOWER, _SLOWEST)
        self._left = min(self._left, 0)

    def succeeded(self) -> None:
        self._rate = min(self._rate * _FASTER, self._most)


class Requests:
    """Requests to one index, each within a multiple of `timeout` in seconds."""

    def __init__(self, index: AsyncIndex, timeout: float) -> None:
        self.index = index
        self._timeout = timeout
        self._loop = _event_loop()
        # The last number that Pinecone gave a write, by namespace.
        self.committed: dict[str, int] = {}
        self.retries = 0

    def time_for(self, queries: int) -> float:
        """Seconds that so many queries may take at the pace that they are sent at."""
        return self._timeout + queries / (_SHARE * _LIMITS["query"])

    @property
    def patience(self) -> float:
        """Seconds that one batch is retried."""
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
        # Of its own class the SDK checks least.
        vectors = [Vector(item["id"], item["values"], metadata=item["metadata"]) for item in chunk]
        try:
            response = await self.send(
                "upsert",
                namespace,
                partial(self.index.upsert, vectors=vectors, namespace=namespace),
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

    async def send(
        self,
        kind: Kind,
        namespace: str,
        request: Callable[[], Awaitable[T]],
        done: Callable[[T], bool] = lambda _: True,
    ) -> T:
        """Send a request until it succeeds and is `done`: a query for the time that it may take,
        others for a limited time. Raises what ended it."""
        patience = self._timeout if kind == "query" else self.patience
        deadline = self._loop.time() + patience
        pace = _pace(self.index.host, kind, "" if kind in _OF_INDEX else namespace)
        delay = _FIRST_DELAY
        seldom = 0
        while True:
            wait = 0.0
            await pace.wait()
            try:
                response = await request()
            except _SELDOM_PASSES:
                seldom += 1
                if seldom == _SELDOM_TRIES:
                    raise
            except _PASSES as exc:
                if isinstance(exc, errors.RateLimitError):
                    pace.refused()
                wait = _retry_after(exc)
                if self._loop.time() + wait + delay > deadline:
                    raise
            else:
                pace.succeeded()
                if done(response):
                    return response
                if self._loop.time() > deadline:
                    raise StoreError("Pinecone stores only a part of a batch, again and again")
            self.retries += 1
            await asyncio.sleep(wait + random.uniform(0, delay))
            delay = min(2 * delay, _LONGEST_DELAY)

    async def list_ids(self, namespace: str, prefix: str, limit: int, cursor: str) -> IdPage:
        """The next ids, at most `limit`; Pinecone sends at most 100."""
        response = await self.send(
            "list",
            namespace,
            partial(
                self.index.list_paginated,
                prefix=prefix or None,
                limit=min(LIST_IDS, limit),
                pagination_token=cursor or None,
                namespace=namespace,
            ),
        )
        next_ = (response.pagination and response.pagination.next) or ""
        return IdPage([item.id for item in response.vectors if item.id], next_)

    async def fetch_by_metadata(
        self, filter_: dict[str, Any], namespace: str, limit: int, cursor: str
    ) -> tuple[dict[str, Any], str]:
        """The next vectors that pass the filter, at most `limit`, by id; and the next cursor."""
        response = await self.send(
            "fetch",
            namespace,
            partial(
                self.index.fetch_by_metadata,
                filter=filter_,
                namespace=namespace,
                limit=min(_FETCH_IDS, limit),
                pagination_token=cursor or None,
            ),
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
            added = len("&ids=") + len(quote(id_, safe=""))
            size += added
            if len(parts[-1]) == _FETCH_IDS or (size > _FETCH_URL_BYTES and parts[-1]):
                parts.append([])
                size = added
            parts[-1].append(id_)
        responses = await side_by_side(
            [
                partial(
                    self.send,
                    "fetch",
                    namespace,
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


async def poll(is_done: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again, ever more seldom, until the answer is yes."""
    delay = _SHORTEST_POLL
    while not await is_done():
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LONGEST_POLL)


@functools.cache
def _pace(_host: str, kind: Kind, _scope: str) -> _Pace:
    """The one of this process, whoever has opened the index."""
    return _Pace(_LIMITS[kind])


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="pinecone", daemon=True).start()
    return loop


def _retry_after(error: errors.PineconeError) -> float:
    """Seconds to wait for, as the header Retry-After gives them, or the time; 0 without it."""
    after = (getattr(error, "headers", None) or {}).get("retry-after", "")
    try:
        return max(0.0, float(after))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(after)
    except ValueError:
        return 0.0
    # Without a time zone it is meant as UTC: RFC 9110, section 5.6.7.
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, at.timestamp() - time.time())
