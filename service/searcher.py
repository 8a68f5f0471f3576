"""Search, without HTTP: one model and one index, opened by themselves once they are there."""

import logging
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from image_search.embedding import Embedder
from image_search.errors import ImageSearchError, StoreError
from image_search.filters import Filter
from image_search.index import Match, VectorIndex
from image_search.manifest import Manifest, ModelSpec
from image_search.settings import Settings, Store
from image_search.stores import open_index
from image_search.weights import AUTO, BUNDLED, IMAGENET

_log = logging.getLogger(__name__)

_SECONDS_UNTIL_READY: Final = 1.0
# Each look at Pinecone's manifest is a request that costs.
_SECONDS_BETWEEN_CHECKS: Final[dict[Store, float]] = {"embedded": 1.0, "pinecone": 60.0}


@dataclass(frozen=True)
class SearchResult:
    """Matches, best first, the model that embedded the query, and milliseconds by stage."""

    matches: list[Match]
    model: ModelSpec
    took_ms: dict[str, float]


@dataclass(frozen=True)
class _Ready:
    index: VectorIndex
    embedder: Embedder


class StartingError(ImageSearchError):
    """The model is being loaded."""


class Searcher:
    """Opens the index, loads the model that its manifest names, and follows changes of both.

    Until that has worked, and whenever it no longer does, `search` and `check` raise the reason.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state: _Ready | ImageSearchError = StartingError(
            "the service is starting: try again in a few seconds"
        )
        self._closing = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="index follower", daemon=True)

    def start(self) -> None:
        """Begin to follow the index, in a thread."""
        self._follower.start()

    def close(self) -> None:
        """Stop following."""
        self._closing.set()
        self._follower.join()
        if isinstance(self._state, _Ready):
            self._state.index.close()

    def search(
        self,
        content: bytes,
        top_k: int,
        filter: Filter | None,  # noqa: A002
    ) -> SearchResult:
        """The `top_k` images of the index most similar to an image file.

        Raises NotAnImageError, ImageTooLargeError, and what `check` raises.
        """
        ready = self._ready()
        times = [time.perf_counter()]
        image = ready.embedder.decode(content, max_pixels=self._settings.max_pixels)
        pixels = ready.embedder.pixels(image)
        times.append(time.perf_counter())
        [embedding] = ready.embedder.embed([pixels])
        times.append(time.perf_counter())
        matches = ready.index.query(embedding, top_k, filter)
        times.append(time.perf_counter())
        spans = [*pairwise(times), (times[0], times[-1])]
        stages = ("decode", "embed", "search", "total")
        took_ms = {
            stage: round(1000 * (end - start), 2)
            for stage, (start, end) in zip(stages, spans, strict=True)
        }
        return SearchResult(matches, ready.embedder.model, took_ms)

    def check(self) -> tuple[Manifest, int]:
        """The manifest and the number of images, if a search would succeed now.

        Raises StartingError, IndexNotFoundError, StoreError, WeightsError or IndexMismatchError.
        """
        index = self._ready().index
        return index.manifest, index.count()

    def _ready(self) -> _Ready:
        if isinstance(self._state, ImageSearchError):
            # A new error each time: one that is raised twice collects both tracebacks.
            raise type(self._state)(*self._state.args)
        return self._state

    def _follow(self) -> None:
        while not self._closing.is_set():
            try:
                self._refresh()
            except ImageSearchError as exc:
                self._fail(exc)
            except Exception:
                _log.exception("the index could not be opened")
                self._fail(StoreError("the index could not be opened: see the service's log"))
            ready = isinstance(self._state, _Ready)
            self._closing.wait(
                _SECONDS_BETWEEN_CHECKS[self._settings.store] if ready else _SECONDS_UNTIL_READY
            )

    def _fail(self, error: ImageSearchError) -> None:
        if str(error) != str(self._state):
            _log.warning("not ready: %s", error)
        self._state = error

    def _refresh(self) -> None:
        index = open_index(self._settings)
        state = self._state
        if isinstance(state, _Ready) and state.index.manifest == index.manifest:
            index.close()
            return
        if isinstance(state, _Ready) and state.index.manifest.model == index.manifest.model:
            embedder = state.embedder
        else:
            embedder = self._load(index.manifest)
        self._state = _Ready(index, embedder)
        _log.info("ready: %d images, %s", index.count(), index.manifest.model)

    def _load(self, manifest: Manifest) -> Embedder:
        weights = manifest.model.weights
        if weights not in {IMAGENET, BUNDLED} and self._settings.weights not in {
            AUTO,
            IMAGENET,
            BUNDLED,
        }:
            weights = self._settings.weights  # the path of the file that the manifest names
        embedder = Embedder(weights, manifest.model.input_size)
        manifest.require_model(embedder.model)
        embedder.warm_up()
        return embedder
