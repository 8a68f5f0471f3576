"""Whether a search would succeed: the way that it takes is taken, at most once in a while."""

import asyncio
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

import numpy as np

from image_search.errors import ImageSearchError, StoreError
from image_search.manifest import Manifest
from image_search.values import DIMENSION, Embeddings, Store
from service.errors import DeadlineExceededError
from service.follower import IndexFollower
from service.loaded_index import LoadedIndex

_log = logging.getLogger(__name__)

# How long an answer is good for. Each query to Pinecone is a request that costs.
_SECONDS_OF_CACHE: Final[dict[Store, float]] = {"embedded": 1.0, "pinecone": 30.0}
_SECONDS_OF_FAILURE: Final = 1.0
# Less than the health check of a container waits.
_SECONDS_TO_ANSWER: Final = 4.0


class Health:
    """Asks the index as searches do, in a thread that nobody else needs."""

    def __init__(self, follower: IndexFollower, store: Store) -> None:
        self._follower = follower
        self._store: Store = store
        # A former index is not kept: its files are removed once nobody reads it.
        self._loaded: Callable[[], LoadedIndex | None] = lambda: None
        self._count: Future[int] = Future()
        self._asked_at = 0.0
        self._random = np.random.default_rng(0)

    async def check(self) -> tuple[Manifest, int]:
        """The manifest and the number of images, if a search would succeed now.

        Raises what `IndexFollower.check` raises, and DeadlineExceededError.
        """
        loaded = self._follower.check()
        if loaded is not self._loaded() or self._is_old():
            self._ask(loaded)
        try:
            async with asyncio.timeout(_SECONDS_TO_ANSWER):
                count = await asyncio.shield(asyncio.wrap_future(self._count))
        except TimeoutError:
            raise DeadlineExceededError(
                f"the index did not answer within {_SECONDS_TO_ANSWER:g} seconds"
            ) from None
        except ImageSearchError as exc:
            # A new error each time: one that is raised twice collects both tracebacks.
            raise type(exc)(*exc.args) from None
        return loaded.index.manifest, count

    def doubt(self) -> None:
        """Ask again before the next answer: a search has failed since the last success."""
        if self._count.done() and self._count.exception() is None:
            self._asked_at = -math.inf

    def _is_old(self) -> bool:
        if not self._count.done():
            return False
        failed = self._count.exception() is not None
        seconds = _SECONDS_OF_FAILURE if failed else _SECONDS_OF_CACHE[self._store]
        return time.monotonic() - self._asked_at > seconds

    def _ask(self, loaded: LoadedIndex) -> None:
        self._loaded = weakref.ref(loaded)
        self._count, self._asked_at = Future(), time.monotonic()
        # Another direction each time leads to other images, and the files that they are in.
        embedding = self._random.standard_normal((1, DIMENSION)).astype(np.float32)
        # A thread that never ends keeps the process from nothing.
        threading.Thread(
            target=_query, args=(loaded, embedding, self._count), name="health", daemon=True
        ).start()


def _query(loaded: LoadedIndex, embedding: Embeddings, count: "Future[int]") -> None:
    try:
        loaded.index.query_many(embedding, 1, None)
        count.set_result(loaded.index.count())
    except ImageSearchError as exc:
        count.set_exception(exc)
    except Exception:
        _log.exception("the index cannot be queried")
        count.set_exception(StoreError("the index cannot be queried: see the service's log"))
