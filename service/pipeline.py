"""Search in three stages beside each other: decode, embed, query. What waits shares a batch.

Images that may be costly to decode wait for others of their kind alone, and have limits.
"""

import asyncio
import hashlib
import io
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, TypeVar

import numpy as np

from image_search import file_metadata, images
from image_search.calibration import Calibration
from image_search.combination import combine
from image_search.decoding import Decoder, is_plain
from image_search.embedding import min_side
from image_search.errors import ImageSearchError, NotAnImageError, RecordError
from image_search.familiarity import is_familiar
from image_search.index import Match, check_embedding
from image_search.program import program
from image_search.settings import Settings
from image_search.values import Embeddings, Metadata, Pixels
from service import tracing
from service.batching import Stage
from service.clips import is_clip, read_clip
from service.errors import EngineFailedError
from service.loaded_index import LoadedIndex
from service.metrics import STAGES, Metrics
from service.selection import Choice, Selection

_log = logging.getLogger(__name__)

MAX_BATCH: Final = 32
_DECODE_THREADS: Final = 2
# Each has a process, so that two costly images take at most the memory that two may take.
_COSTLY_DECODE_THREADS: Final = 2
_STORE_THREADS: Final = 2
# Longer than any image may take, and than anyone waits.
_SECONDS_UNTIL_STUCK: Final = 20.0


class Timing:
    """Seconds of one request by stage."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.spans: list[tuple[str, float, float]] = []
        tracing.note(self)

    def add(self, stage: str, started: float, ended: float) -> None:
        """Count the time of a stage; both are by `perf_counter`."""
        self.seconds[stage] += ended - started
        self.spans.append((stage, started, ended))

    def stop(self) -> None:
        """Whatever time no stage has taken until now was spent in queues."""
        seconds = self.seconds
        seconds["total"] = time.perf_counter() - self._started
        worked = seconds["decode"] + seconds["embed"] + seconds["search"]
        seconds["queue"] = max(0.0, seconds["total"] - worked)

    def milliseconds(self) -> dict[str, float]:
        """Rounded to hundredths."""
        return {stage: round(1000 * self.seconds[stage], 2) for stage in STAGES}


@dataclass(frozen=True)
class EmbeddedImage:
    """The embedding, float32 [512], of an image file; and what a record of it has besides.

    Of a video it is the mean of so many `frames`. `familiarity` is a p-value, or None where it
    cannot be told, as of several frames.
    """

    embedding: Embeddings
    familiarity: float | None
    sha256: str
    thumbnail: bytes
    file_metadata: Metadata
    timing: Timing
    frames: int = 1


@dataclass(frozen=True)
class SearchResult:
    """What was chosen, and what the confidences are made by, if matches get any.

    `familiarity` is a p-value of the query, or None where it cannot be told.
    """

    choice: Choice
    calibration: Calibration | None
    familiarity: float | None
    timing: Timing


@dataclass(eq=False)
class _ImageJob:
    """An image that is to be embedded; unless more is asked for, its embedding is the answer."""

    loaded: LoadedIndex
    file: BinaryIO
    # Whether its hash and thumbnail are wanted.
    for_record: bool = False
    # Cancelled when nobody waits for it any more.
    future: "Future[Any]" = field(default_factory=Future)
    timing: Timing = field(default_factory=Timing)
    sha256: str = ""
    thumbnail: bytes = b""
    file_metadata: Metadata = field(default_factory=dict)
    pixels: Pixels = field(init=False)
    embedding: Embeddings = field(init=False)
    familiarity: float | None = None
    # Of what video it is a frame; its `timing` and `future` are that job's.
    clip: "_Clip | None" = None
    frames: int = 1


class _Clip:
    """Waits until all frames of a video are embedded."""

    def __init__(self, job: _ImageJob, frames: int) -> None:
        self._job = job
        self._missing = frames
        self._embedded: list[_ImageJob] = []

    def join(self, frame: _ImageJob) -> _ImageJob | None:
        """The job of the video, with the mean of its frames, once this frame is the last."""
        self._missing -= 1
        # As a black one may.
        with suppress(RecordError):
            check_embedding(frame.embedding)
            self._embedded.append(frame)
        if self._missing:
            return None
        job, frames = self._job, self._embedded or [frame]
        job.frames = len(frames)
        job.embedding = frames[0].embedding
        if len(frames) > 1:
            job.embedding = combine([each.embedding for each in frames], [])
        else:
            job.familiarity = frames[0].familiarity
        return job


@dataclass(eq=False, kw_only=True)
class _SearchJob(_ImageJob):
    """An image whose matches are the answer."""

    selection: Selection


@dataclass(eq=False)
class _QueryJob:
    """An embedding, float32 [512], whose matches are the answer."""

    loaded: LoadedIndex
    embedding: Embeddings
    selection: Selection
    timing: Timing
    familiarity: float | None = None
    future: "Future[Any]" = field(default_factory=Future)
    # Whether matches get confidences, which are those of single images.
    calibrated: bool = True


_Job = _ImageJob | _QueryJob
Job = TypeVar("Job", bound=_Job)


class Pipeline:
    """The threads that search: two, two and one that decode, one that embeds, two that query.

    `engine_failed` is called with the indexes whose model failed, before that is answered.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        engine_failed: Callable[[set[LoadedIndex]], None],
    ) -> None:
        self._decoder = Decoder(settings.max_pixels, processes=_COSTLY_DECODE_THREADS)
        self._max_pixels = settings.max_pixels
        self._file_metadata = settings.metadata
        self._metrics = metrics
        self._engine_failed = engine_failed
        self._decoding = Stage(
            "decode", self._decode, self._fail, threads=_DECODE_THREADS, max_batch=1
        )
        self._costly_decoding = Stage(
            "costly decode",
            self._decode_costly,
            self._fail,
            threads=_COSTLY_DECODE_THREADS,
            max_batch=1,
        )
        # A video takes more memory than any image: one at a time.
        self._video_decoding = Stage(
            "video decode", self._decode_videos, self._fail, threads=1, max_batch=1
        )
        self._embedding = Stage(
            "engine", self._embed, self._fail_engine, threads=1, max_batch=MAX_BATCH
        )
        self._querying = Stage(
            "query", self._query, self._fail, threads=_STORE_THREADS, max_batch=MAX_BATCH
        )
        self._stages = (
            self._decoding,
            self._costly_decoding,
            self._video_decoding,
            self._embedding,
            self._querying,
        )

    def start(self) -> None:
        """Start the threads, or those that have ended."""
        for stage in self._stages:
            stage.start()

    def close(self) -> None:
        """Finish what is in the stages, but for costly decoding, and end the threads."""
        self._decoder.close()
        for stage in self._stages:
            stage.close()

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        return all(stage.alive for stage in self._stages)

    @property
    def is_stuck(self) -> bool:
        """Whether there is a stage that no search gets through."""
        return any(stage.is_stuck(_SECONDS_UNTIL_STUCK) for stage in self._stages)

    @property
    def queue_depth(self) -> int:
        """How many searches wait to be embedded."""
        return len(self._embedding)

    async def search(
        self, loaded: LoadedIndex, file: BinaryIO, selection: Selection
    ) -> SearchResult:
        """The images of the index that are similar to the image in `file`, as `selection` asks.

        Of a video, it is the mean of at most 32 frames that they are similar to. A search that is
        cancelled costs nothing from the next stage on. Raises NotAnImageError,
        ImageTooLargeError, ImageTooCostlyError, NoVideoSupportError, RecordError, StoreError or
        EngineFailedError.
        """
        job = _SearchJob(loaded, file, selection=selection)
        self._decoding.put([job])
        result: SearchResult = await asyncio.wrap_future(job.future)
        return result

    async def embed(
        self, loaded: LoadedIndex, file: BinaryIO, *, for_record: bool = False
    ) -> EmbeddedImage:
        """The embedding of the image or video in `file`; `for_record` its hash and thumbnail, too.

        Raises what `search` raises, and NotAnImageError for a video that is to be a record.
        """
        job = _ImageJob(loaded, file, for_record)
        self._decoding.put([job])
        embedded: EmbeddedImage = await asyncio.wrap_future(job.future)
        return embedded

    async def query(
        self,
        loaded: LoadedIndex,
        embedding: Embeddings,
        selection: Selection,
        timing: Timing,
        familiarity: float | None = None,
        *,
        calibrated: bool = True,
    ) -> SearchResult:
        """The images of the index that are similar to float32 [512]; goes on with `timing`.

        `familiarity` is that of the image that was embedded, where it is a single one. Not
        `calibrated`, matches get no confidences.
        Raises RecordError or StoreError.
        """
        job = _QueryJob(loaded, embedding, selection, timing, familiarity, calibrated=calibrated)
        self._querying.put([job])
        result: SearchResult = await asyncio.wrap_future(job.future)
        return result

    def _decode(self, jobs: list[_ImageJob]) -> None:
        for job in _wanted(jobs):
            started = time.perf_counter()
            if is_clip(job.file):
                self._video_decoding.put([job])
                continue
            content = _content(job)
            if is_plain(content, _min_side(job)):
                self._decode_to_pixels(job, content, started)
            else:
                self._costly_decoding.put([job])

    def _decode_costly(self, jobs: list[_ImageJob]) -> None:
        for job in _wanted(jobs):
            started = time.perf_counter()
            self._decode_to_pixels(job, _content(job), started)

    def _decode_videos(self, jobs: list[_ImageJob]) -> None:
        for job in _wanted(jobs):
            self._decode_frames(job)

    def _decode_frames(self, job: _ImageJob) -> None:
        started = time.perf_counter()
        if job.for_record:
            raise NotAnImageError(
                "this is a video: add videos to the index with the worker, "
                f"{program('worker')} ingest"
            )
        pixels = read_clip(
            _content(job),
            job.loaded.embedder.pixels,
            max_pixels=self._max_pixels,
            min_side=_min_side(job),
        )
        job.timing.add("decode", started, time.perf_counter())
        clip = _Clip(job, len(pixels))
        frames = []
        for each in pixels:
            frame = _ImageJob(job.loaded, job.file, future=job.future, timing=job.timing, clip=clip)
            frame.pixels = each
            frames.append(frame)
        self._embedding.put(frames)

    def _decode_to_pixels(self, job: _ImageJob, content: bytes, started: float) -> None:
        image = self._decoder.decode(content, min_side=_min_side(job))
        job.pixels = job.loaded.embedder.pixels(image)
        if job.for_record:
            job.sha256 = hashlib.sha256(content).hexdigest()
            job.thumbnail = images.thumbnail(image)
            job.file_metadata = file_metadata.chosen(image.info, self._file_metadata)
        job.timing.add("decode", started, time.perf_counter())
        queries = self._embedding.put_or_do(job, self._embedded)
        if queries:
            self._query_here(queries)

    def _embed(self, jobs: list[_ImageJob]) -> None:
        self._querying.put(self._embedded(jobs))

    def _embedded(self, jobs: list[_ImageJob]) -> list[_QueryJob]:
        """Embed images, and answer those that have no query."""
        self._metrics.queued(self.queue_depth)
        jobs = _wanted(jobs)
        # While the service changes to another index, a batch can hold queries to both.
        for loaded, group in _grouped(jobs, lambda job: job.loaded).items():
            started = time.perf_counter()
            pixels = [job.pixels for job in group]
            embeddings, textures = loaded.embedder.embed_with_textures(pixels)
            if loaded.familiarity is not None:
                p_values = loaded.familiarity.p_values(textures).tolist()
                for job, p_value in zip(group, p_values, strict=True):
                    job.familiarity = p_value
            ended = time.perf_counter()
            self._metrics.batch_size.observe(len(group))
            for job, embedding in zip(group, embeddings, strict=True):
                job.embedding = embedding
            # Frames of one video share theirs.
            for timing in {id(job.timing): job.timing for job in group}.values():
                timing.add("embed", started, ended)
        whole = [job if job.clip is None else job.clip.join(job) for job in jobs]
        queries = []
        for job in _valid([job for job in whole if job is not None]):
            if isinstance(job, _SearchJob):
                queries.append(
                    _QueryJob(
                        job.loaded,
                        job.embedding,
                        job.selection,
                        job.timing,
                        job.familiarity,
                        job.future,
                        calibrated=job.frames == 1,
                    )
                )
            else:
                embedded = EmbeddedImage(
                    job.embedding,
                    job.familiarity,
                    job.sha256,
                    job.thumbnail,
                    job.file_metadata,
                    job.timing,
                    job.frames,
                )
                self._answer(job, embedded)
        self._metrics.queued(self.queue_depth)
        return queries

    def _query_here(self, queries: list[_QueryJob]) -> None:
        """Query in this thread, which decodes, if that takes a moment and nothing waits for it."""
        [query] = queries
        waiting = len(self._decoding) + len(self._embedding)
        if waiting or not query.selection.is_simple or not query.loaded.index.is_in_memory:
            self._querying.put(queries)
        else:
            self._querying.put_or_do(query, self._query)

    def _query(self, jobs: list[_QueryJob]) -> None:
        groups = _grouped(
            _wanted(jobs),
            lambda job: (
                job.loaded,
                job.selection.candidates,
                job.selection.filter,
                job.selection.with_thumbnails(job.loaded.index),
            ),
        )
        for (loaded, candidates, filter_, thumbnails), group in groups.items():
            started = time.perf_counter()
            embeddings = np.stack([job.embedding for job in group])
            try:
                results = loaded.index.query_many(
                    embeddings, candidates, filter_, thumbnails=thumbnails
                )
            except ImageSearchError as exc:
                _fail(group, exc)
                continue
            ended = time.perf_counter()
            for job, matches in zip(group, results, strict=True):
                job.timing.add("search", started, ended)
                self._choose(job, matches)

    def _choose(self, job: _QueryJob, matches: list[Match]) -> None:
        started = time.perf_counter()
        calibration = None
        if job.calibrated:
            calibration = job.loaded.calibration_for(job.selection.filter, job.familiarity)
        try:
            chosen = job.selection.choose(job.loaded, calibration, job.embedding, matches)
        except ImageSearchError as exc:
            _fail([job], exc)
            return
        job.timing.add("search", started, time.perf_counter())
        self._metrics.searched(is_familiar(job.familiarity))
        self._answer(job, SearchResult(chosen, calibration, job.familiarity, job.timing))

    def _answer(self, job: _Job, result: EmbeddedImage | SearchResult) -> None:
        job.timing.stop()
        self._metrics.answered(job.timing.seconds)
        with suppress(InvalidStateError):
            job.future.set_result(result)

    def _fail(self, jobs: Sequence[_Job], error: BaseException) -> None:
        if isinstance(error, Exception):
            _fail(jobs, error)
        else:
            self._fail_engine(jobs, error)  # the thread ends: start again

    def _fail_engine(self, jobs: Sequence[_Job], error: BaseException) -> None:
        _log.error("the model could not be run", exc_info=error)
        self._engine_failed({job.loaded for job in jobs})
        _fail(jobs, EngineFailedError("the model could not be run: try again in a few seconds"))


def _fail(jobs: Sequence[_Job], error: Exception) -> None:
    for job in jobs:
        # A new error each time: one that is raised twice collects both tracebacks.
        known = isinstance(error, ImageSearchError)
        with suppress(InvalidStateError):
            job.future.set_exception(type(error)(*error.args) if known else error)


def _content(job: _ImageJob) -> bytes:
    """Read only by who decodes it, so that no more uploads than threads are held as bytes."""
    # What `tempfile` holds in memory is not copied: to get memory for megabytes takes longer.
    held = getattr(job.file, "_file", job.file)
    if isinstance(held, io.BytesIO):
        return held.getvalue()
    job.file.seek(0)
    return job.file.read()


def _min_side(job: _ImageJob) -> int:
    return min_side(job.loaded.embedder.model.input_size)


def _wanted(jobs: list[Job]) -> list[Job]:
    return [job for job in jobs if not job.future.cancelled()]


def _valid(jobs: list[_ImageJob]) -> list[_ImageJob]:
    """Those that can be searched for; an image whose embedding is zero fails alone."""
    valid = []
    for job in jobs:
        try:
            check_embedding(job.embedding)
        except RecordError as exc:
            _fail([job], exc)
        else:
            valid.append(job)
    return valid


Key = TypeVar("Key", bound=Hashable)


def _grouped(jobs: Iterable[Job], key: Callable[[Job], Key]) -> dict[Key, list[Job]]:
    groups: dict[Key, list[Job]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return groups
