"""One model and one index, opened by themselves once they are there; without HTTP."""

import gc
import logging
import math
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from image_search.embedding import Embedder
from image_search.errors import ImageSearchError, StoreError
from image_search.familiarity import Familiarity
from image_search.index import VectorIndex
from image_search.object_storage import S3Folder
from image_search.settings import Settings
from image_search.stores import open_index
from image_search.values import AUTO, BUNDLED, IMAGENET, Store
from service.errors import DeadlineExceededError, EngineFailedError, StartingError
from service.loaded_index import LoadedIndex
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.writer import Writer

_log = logging.getLogger(__name__)

_SECONDS_UNTIL_READY: Final = 1.0
# Each look at Pinecone's manifest is a request that costs, and those in object storage are several.
_SECONDS_BETWEEN_CHECKS: Final[dict[Store, float]] = {"embedded": 1.0, "pinecone": 60.0}
_SECONDS_BETWEEN_CHECKS_OF_A_BUCKET: Final = 10.0
# The first restart of an engine that failed is at once; when it fails again, the pauses double.
_MOST_SECONDS_BETWEEN_RESTARTS: Final = 60.0
_SECONDS_UNTIL_FORGIVEN: Final = 120.0
# The garbage collector looks after so many new objects, not 700: a search makes some hundred, and
# hardly any of them in a circle.
_NEW_OBJECTS: Final = 10_000
_ENGINE_FAILED: Final = "the model could not be run: the service is loading it again"


class IndexFollower:
    """Opens the index, loads the model that its manifest names, and follows changes of both.

    Until that has worked, and whenever it no longer does, `loaded` and `check` raise the reason.
    A model that could not be run is loaded again.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._state: LoadedIndex | ImageSearchError = StartingError(
            "the service is starting: try again in a few seconds"
        )
        # This thread and the pipeline's change the state.
        self._state_lock = threading.Lock()
        self._failures = 0
        self._failed_at = self._restart_at = -math.inf
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="index follower", daemon=True)
        self.pipeline = Pipeline(settings, metrics, self._engine_failed)
        self.writer = Writer()
        metrics.watch(lambda: self.pipeline.queue_depth, lambda: self.loaded().index.count())

    def start(self) -> None:
        """Begin to follow the index, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Finish what is in flight, and stop following."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        self.pipeline.close()
        self.writer.close()
        if isinstance(self._state, LoadedIndex):
            self._state.index.close()

    def wait_until_known(self, seconds: float) -> None:
        """Wait until the index is open, or it is known why not; no longer than that."""
        self._looked.wait(seconds)

    def loaded(self) -> LoadedIndex:
        """The index and its model.

        Raises StartingError, IndexNotFoundError, StoreError, WeightsError, IndexMismatchError or
        EngineFailedError.
        """
        state = self._state
        if isinstance(state, ImageSearchError):
            # A new error each time: one that is raised twice collects both tracebacks.
            raise type(state)(*state.args)
        return state

    def check(self) -> LoadedIndex:
        """The index and its model, if all threads that search and write do their work.

        Raises what `loaded` raises, and DeadlineExceededError.
        """
        loaded = self.loaded()
        if not (self.pipeline.alive and self.writer.alive):
            raise EngineFailedError(_ENGINE_FAILED)
        if self.pipeline.is_stuck:
            raise DeadlineExceededError("searches do not finish: restart the service")
        return loaded

    def _follow(self) -> None:
        while not self._closing.is_set():
            self.pipeline.start()
            self.writer.start()
            try:
                self._refresh()
            except EngineFailedError as exc:
                self._count_failure()
                self._fail(exc)
            except ImageSearchError as exc:
                self._fail(exc)
            except Exception:
                _log.exception("the index could not be opened")
                self._fail(StoreError("the index could not be opened: see the service's log"))
            self._looked.set()
            ready = isinstance(self._state, LoadedIndex)
            self._wake.wait(self._seconds_between_checks() if ready else _SECONDS_UNTIL_READY)
            self._wake.clear()
            self._closing.wait(max(0, self._restart_at - time.monotonic()))

    def _seconds_between_checks(self) -> float:
        if self._settings.store == "embedded" and isinstance(self._settings.data_dir, S3Folder):
            return _SECONDS_BETWEEN_CHECKS_OF_A_BUCKET
        return _SECONDS_BETWEEN_CHECKS[self._settings.store]

    def _engine_failed(self, failed: set[LoadedIndex]) -> None:
        with self._state_lock:
            if self._state in failed:  # else another has taken its place already
                self._state = EngineFailedError(_ENGINE_FAILED)
                self._count_failure()
        self._wake.set()

    def _count_failure(self) -> None:
        now = time.monotonic()
        if now - self._failed_at > _SECONDS_UNTIL_FORGIVEN:
            self._failures = 0
        pause = min(2.0 ** (self._failures - 1), _MOST_SECONDS_BETWEEN_RESTARTS)
        self._restart_at = now + pause if self._failures else now
        self._failures += 1
        self._failed_at = now

    def _fail(self, error: ImageSearchError) -> None:
        if str(error) != str(self._state):
            _log.warning("not ready: %s", error.in_full)
        self._state = error

    def _refresh(self) -> None:
        state = self._state
        index = open_index(self._settings)
        if isinstance(state, LoadedIndex) and state.index.manifest == index.manifest:
            # Searches in flight use the index that was opened before, so that one stays.
            with index:
                now = (state.calibration, state.sample_version)
                if now != (index.calibration, index.sample_version):
                    self._replace(state, _with_confidence(state, index))
            return
        with ExitStack() as unused:
            unused.callback(index.close)
            loaded = LoadedIndex(index, self._embedder(state, index), None)
            loaded = _with_confidence(loaded, index)
            if self._replace(state, loaded):
                unused.pop_all()
                _let_be()
                _log.info("ready: %d images, %s", index.count(), index.manifest.model)

    def _replace(self, state: LoadedIndex | ImageSearchError, loaded: LoadedIndex) -> bool:
        with self._state_lock:
            if self._state is not state:
                return False  # it failed meanwhile: this may hold the same embedder
            self._state = loaded
            return True

    def _embedder(self, state: LoadedIndex | ImageSearchError, index: VectorIndex) -> Embedder:
        manifest = index.manifest
        if isinstance(state, LoadedIndex):
            now = state.index.manifest
            if (now.model, now.activation_maxima) == (manifest.model, manifest.activation_maxima):
                return state.embedder
        try:
            return self._load(index)
        except ImageSearchError:
            raise
        except Exception as exc:
            _log.exception("the model could not be loaded")
            raise EngineFailedError(_ENGINE_FAILED) from exc

    def _load(self, index: VectorIndex) -> Embedder:
        manifest = index.manifest
        weights = manifest.model.weights
        if weights not in {IMAGENET, BUNDLED} and self._settings.weights not in {
            AUTO,
            IMAGENET,
            BUNDLED,
        }:
            weights = self._settings.weights  # the path of the file that the manifest names
        embedder = Embedder.load(
            weights,
            manifest.model.input_size,
            manifest.activation_maxima,
            index.load_recipe(),
        )
        manifest.require_model(embedder.model)
        embedder.warm_up()
        return embedder


def _let_be() -> None:
    """Let the garbage collector look no more at what is there: most of it stays until the end."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)


def _with_confidence(loaded: LoadedIndex, index: VectorIndex) -> LoadedIndex:
    """With what tells how sure matches are, as `index` has it now."""
    familiarity = loaded.familiarity
    if loaded.sample_version != index.sample_version:
        familiarity = Familiarity.of(index.load_sample())
    return replace(
        loaded,
        calibration=index.calibration,
        familiarity=familiarity,
        sample_version=index.sample_version,
    )
