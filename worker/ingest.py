"""Ingestion: read, decode, embed and upsert, overlapping, with bounded memory.

    reader thread --(batches of decoded images)--> caller's thread --(records)--> upsert thread
    looks up what is there already, decodes        embeds                         commits

Ids are stable and records carry the SHA-256 of what they were made of, so that a run goes on where
another stopped, and embeds again only what is new or has changed.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from os import cpu_count
from queue import Empty, Full, Queue
from typing import Any, Final, TypeVar

import numpy as np
from PIL import Image

from image_search import file_metadata, images
from image_search.decoding import Decoder
from image_search.embedding import Embedder, min_side
from image_search.errors import ImageError, RecordError
from image_search.index import Record, VectorIndex, check_embedding
from image_search.moments import DAMAGE_FIELD, SAMPLING_FIELD, item_of
from image_search.progress import Progress
from image_search.sample import ImageSample, bound_to_mend, rank
from image_search.settings import Settings
from image_search.values import (
    DIGEST_FIELD,
    Features,
    Metadata,
    Pixels,
)
from image_search.videos import Sampling
from worker import videos
from worker.sources import Item, Source
from worker.sources.names import readable
from worker.sources.source import Video

# What is looked up and decoded at once, bounded by count and by the bytes held. To look 1,024 up
# costs an index that has no vector index yet twice as much as 256.
_CHUNK_ITEMS: Final = 1024
# Small images are decoded faster than the pool hands them out one by one.
_SLICE: Final = 8
_DIGEST_SLICES: Final = 16
_CHUNK_BYTES: Final = 64 * 1024 * 1024
# Frames take long to come: while so many are embedded, the next are decoded.
_CHUNK_FRAMES: Final = 32
# A commit costs about the same for one record as for hundreds, and what is not committed is lost
# in a crash: so many records, or so many seconds of work, go into one.
RECORDS_PER_COMMIT: Final = 2048
_SECONDS_PER_COMMIT: Final = 2.0
_QUEUED_BATCHES: Final = 2
_POLL_SECONDS: Final = 0.1
# Another one where records of the same images are to be made anew.
_STATE_VERSION: Final = 1
_STATE_DIGITS: Final = 32

S = TypeVar("S")
T = TypeVar("T")


@dataclass
class Summary:
    """What one run did. `unreadable` maps ids to reasons."""

    embedded: int = 0
    unchanged: int = 0
    # With another label or other metadata than before, which costs no embedding.
    relabelled: int = 0
    # Under another id than before, which costs no embedding: renamed, moved, or copied.
    moved: int = 0
    # Left out, as they were deleted over HTTP.
    deleted: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    # Videos of which a part was read, and why not all.
    damaged: dict[str, str] = field(default_factory=dict)
    # Of what was embedded: how many are frames, and of how many videos.
    frames: int = 0
    videos: int = 0
    interrupted: bool = False
    # Of what was embedded.
    sample: ImageSample = field(default_factory=ImageSample)

    def add(self, other: "Summary") -> None:
        """Count what another run did, too."""
        for name in ("embedded", "unchanged", "relabelled", "moved", "deleted", "frames", "videos"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.unreadable |= other.unreadable
        self.damaged |= other.damaged
        self.interrupted |= other.interrupted
        sample = other.sample
        self.sample = self.sample.joined(sample.ids, sample.textures, sample.bound)

    @property
    def has_written(self) -> bool:
        """Whether records were added or changed."""
        return bool(self.embedded or self.relabelled or self.moved)


class _Deleted:
    """In place of an image that was deleted over HTTP."""


@dataclass(frozen=True)
class _Known:
    """What the index knows of a chunk: records by id, and by digest those of images like new ones.

    `digests` are those of the chunk, in order; empty for what cannot be read. `held` are the ids of
    those that the index tells to be just as they are, which it does not read.
    """

    digests: list[str]
    held: set[str]
    records: dict[str, Record]
    copies: dict[str, Record]


@dataclass(frozen=True)
class _Decoded:
    id: str
    label: str | None
    metadata: Metadata
    pixels: Pixels
    thumbnail: bytes
    state: str


@dataclass(frozen=True)
class _Embedded:
    """What a batch gives: its records, and the textures of some of their images by their ids."""

    records: list[Record]
    ids: list[str]
    textures: Features


def ingest(
    source: Source,
    index: VectorIndex,
    embedder: Embedder,
    settings: Settings,
    *,
    sampling: Sampling | None = None,
    stop: threading.Event | None = None,
    restore: bool = False,
    is_new: bool | None = None,
    mend: bool = False,
    before_commit: Callable[[ImageSample], None] = lambda _: None,
) -> Summary:
    """Bring the images of `source` into the index; resumable and idempotent.

    What was deleted over HTTP stays out of the index, unless it is to `restore` that. An image that
    the index has under another id is not embedded again. Of a video the frames are taken that
    `sampling` says; one of which the index has these is not decoded again.

    Where it is known whether the index can have any of them, `is_new` says so; else that is seen
    when it begins. After a run that was killed, `mend` embeds those again that the sample of the
    index lacks, at most some 2,000. `before_commit` gets the sample of all that was embedded until
    then.

    `stop` ends it early: the batches in flight are finished and committed. Errors of the source
    and of the store are raised once what was embedded before them is committed, if it can be.
    """
    deletions = _Deletions(index.load_deletions(), restore=restore)
    stop = stop or threading.Event()
    ingestion = _Ingestion(
        index,
        embedder,
        settings,
        stop,
        deletions,
        before_commit,
        sampling,
        is_new=is_new,
        mend=mend,
    )
    summary = ingestion.run(source)
    if deletions.restored:
        index.forget_deletions(deletions.restored)
    return summary


def embed_all(
    source: Source,
    index: VectorIndex,
    embedder: Embedder,
    settings: Settings,
    stop: threading.Event,
    before_commit: Callable[[ImageSample], None],
) -> Summary:
    """Bring every image of `source` into the index, also deleted ones and copies; resumable.

    With what `before_commit` gets, none of the sample is lost to a crash. Else as `ingest`.
    """
    return _Ingestion(index, embedder, settings, stop, None, before_commit).run(source)


class _Deletions:
    """What was deleted over HTTP: digests by id."""

    def __init__(self, digests: Mapping[str, str], *, restore: bool) -> None:
        self.update(digests)
        self._restore = restore
        # Ids of deletions that no longer hold.
        self.restored: set[str] = set()

    def update(self, digests: Mapping[str, str]) -> None:
        """Know what was deleted meanwhile, too."""
        self._digests = digests
        self._ids: dict[str, list[str]] = {}
        for id_, one in digests.items():
            self._ids.setdefault(one, []).append(id_)

    def hold_for(self, item: Item, found: str, *, has_copy: bool) -> bool:
        """Whether the image was deleted under this id, or under another and no copy was kept."""
        if found not in self._ids:
            return False
        if self._restore:
            self.restored.update(self._ids[found])
            return False
        ids = (item.id, item.former_id or item.id)
        return not has_copy or any(self._digests.get(id_) == found for id_ in ids)

    def hold_under(self, item: Item) -> bool:
        """Whether a frame was deleted under its id, and stays so."""
        return not self._restore and self._digests.get(item.id) == item.sha256

    def hold_frames(self, video_sha256: str) -> bool:
        """Whether any frame of this video was deleted, and is not to be restored."""
        return not self._restore and videos.are_deleted(self._digests, video_sha256)

    def restore_frames(self, video_sha256: str) -> bool:
        """Whether any frame of this video was deleted, and is to be restored."""
        return self._restore and videos.are_deleted(self._digests, video_sha256)


class _Ingestion:
    def __init__(
        self,
        index: VectorIndex,
        embedder: Embedder,
        settings: Settings,
        stop: threading.Event,
        deletions: _Deletions | None,
        before_commit: Callable[[ImageSample], None] = lambda _: None,
        sampling: Sampling | None = None,
        *,
        is_new: bool | None = None,
        mend: bool = False,
    ) -> None:
        self._index = index
        self._embedder = embedder
        self._settings = settings
        self._decoder = make_decoder(settings)
        self._stop = stop
        self._summary = Summary()
        self._is_new = is_new
        # Images of a rank below it are embedded again if the sample lacks them.
        self._mended_below = 0.0
        if mend and (bound := bound_to_mend(self._sample, index.count())):
            self._mended_below = bound
            self._summary.sample = ImageSample(bound=bound)
        # None: copies and what was deleted are embedded as others are.
        self._deletions = deletions
        self._before_commit = before_commit
        self._sampling = sampling or Sampling()
        self._sampling_text = videos.as_text(self._sampling, settings)
        # By the id of a video's last record, the ids that the video no longer has.
        self._closing: dict[str, list[str]] = {}
        self._relabelled: set[str] = set()
        # Ids before, by new ids.
        self._moved: dict[str, str] = {}
        self._failed = threading.Event()
        self._errors: list[BaseException] = []
        self._decoded: Queue[list[_Decoded | Record] | None] = Queue(_QUEUED_BATCHES)
        self._embedded: Queue[_Embedded | None] = Queue(_QUEUED_BATCHES)

    def run(self, source: Source) -> Summary:
        with Progress("ingesting", source.total, "images") as progress:
            self._progress = progress
            reader = self._start(lambda: self._read(source), self._decoded)
            upserter = self._start(self._upsert, None)
            try:
                while (batch := self._take(self._decoded)) is not None:
                    self._put(self._embedded, self._embed(batch))
            except BaseException:
                self._failed.set()
                raise
            finally:
                self._put(self._embedded, None)
                reader.join()
                upserter.join()
        if self._errors:
            raise self._errors[0]
        self._summary.interrupted = self._stop.is_set()
        return self._summary

    # --- stages ---

    def _read(self, source: Source) -> None:
        batch: list[_Decoded | Record] = []
        pool = ThreadPoolExecutor(cpu_count())
        is_new = self._index.count() == 0 if self._is_new is None else self._is_new
        try:
            fresh = None if is_new else source.fresh
            items = fresh(self._are_known, None) if fresh else source.items()
            for chunk in chunks_of(self._with_frames(items)):
                known = self._look_up(pool, chunk, is_new=is_new)
                for item, result in zip(chunk, self._decode_all(pool, chunk, known), strict=True):
                    if self._stop.is_set() or self._failed.is_set():
                        return
                    if isinstance(result, _Decoded | Record):
                        batch.append(result)
                        if len(batch) == self._settings.batch_size:
                            self._put(self._decoded, batch)
                            batch = []
                        continue
                    if isinstance(result, ImageError):
                        self._skip(item.id, result)
                        continue
                    if isinstance(result, _Deleted):
                        self._summary.deleted += 1
                    else:
                        self._summary.unchanged += 1
                    self._progress.update(self._counts(item.id))
                # The next frames take long to come.
                if batch and _is_decoded_frame(chunk[-1]):
                    self._put(self._decoded, batch)
                    batch = []
        finally:
            pool.shutdown(cancel_futures=True)
            self._decoder.close()
            if batch:
                self._put(self._decoded, batch)

    def _are_known(self, items: list[Item]) -> list[bool]:
        """Whether the index has the items, which lack their content, as their metadata is."""
        records = self._index.fetch(
            [item.id for item in items if not isinstance(item.content, Video)], thumbnails=False
        )
        known = [
            self._is_known_video(item)
            if isinstance(item.content, Video)
            else self._is_known(item, records.get(item.id))
            for item in items
        ]
        self._summary.unchanged += sum(known)
        self._progress.update(sum(known))
        return known

    def _is_known_video(self, item: Item) -> bool:
        record = videos.first_record(self._index, item.id)
        if record is None or record.metadata.get(SAMPLING_FIELD) != self._sampling_text:
            return False
        is_known = _is_described(item, record)
        if is_known:
            self._tell_damage(item, record.metadata)
        return is_known

    def _is_known(self, item: Item, record: Record | None) -> bool:
        if record is None or self._is_lost(item):
            return False
        is_complete = file_metadata.is_complete(record.metadata, self._settings.metadata)
        return is_complete and _is_described(item, record)

    # --- videos ---

    def _with_frames(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items, each video as its frames: all of them, or none if the index has them so."""
        for item in items:
            if not isinstance(item.content, Video):
                yield item
                continue
            try:
                yield from self._frames(item, item.content)
            except ImageError as exc:
                yield replace(item, content=exc)

    def _frames(self, item: Item, video: Video) -> Iterator[Item]:
        """Raises ImageError where the video cannot be read at all."""
        sha256 = videos.digest_of_video(video)
        restores = self._deletions is not None and self._deletions.restore_frames(sha256)
        first = videos.first_record(self._index, item.id)
        if not restores and videos.is_finished(first, sha256, self._sampling_text):
            assert first is not None  # noqa: S101
            wanted = videos.recorded_item(item, first, self._settings)
            metadata = self._metadata(wanted, {}, wanted.sha256 or "")
            self._tell_damage(item, first.metadata)
            if (first.label, dict(first.metadata)) == (item.label, metadata):
                self._summary.unchanged += 1
                self._progress.update(1)
                return
            yield from self._recorded(item, videos.frame_ids(self._index, item.id))
            return
        if not restores:
            copies = videos.copies_of(self._index, item.id, sha256, self._sampling_text)
            if copies and all(self._can_move(id_, item.id) for id_ in copies):
                for record in videos.fetch_all(self._index, copies[:1]):
                    self._tell_damage(item, record.metadata)
                yield from self._recorded(item, copies)
                return
            is_deleted = self._deletions is not None and self._deletions.hold_frames(sha256)
            if first is None and not copies and is_deleted:
                self._summary.deleted += 1
                self._progress.update(1)
                return
        yield from self._decoded_frames(item, video, sha256)

    def _recorded(self, item: Item, ids: list[str]) -> Iterator[Item]:
        """Frames that the index has, under this name or another, without decoding them."""
        before = videos.frame_ids(self._index, item.id)
        frames = (
            videos.recorded_item(item, record, self._settings)
            for record in videos.fetch_all(self._index, ids)
        )
        yield from self._closed(item, frames, before)

    def _decoded_frames(self, item: Item, video: Video, sha256: str) -> Iterator[Item]:
        before = videos.frame_ids(self._index, item.id)
        size = self._embedder.model.input_size
        with videos.open_frames(video, self._sampling, self._settings, size) as frames:
            name = readable(item.id)
            self._summary.videos += 1

            def made() -> Iterator[Item]:
                for frame in frames:
                    self._progress.note(f"{name} at {frame.time:,.0f} of {frames.duration:,.0f} s")
                    yield videos.frame_item(item, frame, frames, sha256, self._settings)

            yield from self._closed(item, made(), before, lambda: frames.damage)
            self._tell_damage(item, {DAMAGE_FIELD: frames.damage})
        self._progress.note("")

    def _closed(
        self,
        item: Item,
        frames: Iterator[Item],
        before: list[str],
        damage: Callable[[], str] = str,
    ) -> Iterator[Item]:
        """The frames of a video, the first one last, with what says that all are there.

        `damage` tells at the end what is to be told of the file.
        """
        first: Item | None = None
        kept: set[str] = set()
        try:
            for frame in frames:
                if self._stop.is_set() or self._failed.is_set():
                    return
                kept.add(frame.id)
                is_held = self._deletions is not None and self._deletions.hold_under(frame)
                if first is None and not is_held:
                    first = frame
                else:
                    yield frame
        except ImageError as exc:
            if not kept:
                raise
            # What came before is good; the next run tries again.
            reason = f"read in part: {exc}"
            self._summary.damaged[item.id] = reason
            self._progress.message(f"{readable(item.id)}: {reason}")
            self._progress.update(1)
            if first is not None:
                yield first
            return
        if first is None:
            self._progress.update(1)
            return
        self._closing[first.id] = videos.stale(before, kept)
        yield videos.finished(first, self._sampling_text, damage())

    def _tell_damage(self, item: Item, metadata: Metadata) -> None:
        """What the metadata of a video's first frame tells of its file, if it is not whole."""
        damage = metadata.get(DAMAGE_FIELD)
        if damage:
            self._summary.damaged[item.id] = str(damage)
            self._progress.message(f"{readable(item.id)}: {damage}")

    def _counts(self, id_: str) -> int:
        """How many items of the source are done with this record: a video is with its last one."""
        return int(id_ in self._closing or item_of(id_) == id_)

    # --- what is known, and what is new ---

    def _look_up(self, pool: ThreadPoolExecutor, chunk: list[Item], *, is_new: bool) -> _Known:
        digests = list(_in_slices(pool, _digest_or_none, chunk, -(-len(chunk) // _DIGEST_SLICES)))
        if is_new:
            return _Known(digests, set(), {}, {})
        pairs = [
            (item, one)
            for item, one in zip(chunk, digests, strict=True)
            if one and not self._is_lost(item)
        ]
        ids = [id_ for item, _ in pairs for id_ in ids_of(item)]
        if self._index.tells_states:
            states = {
                id_: self._state(item, id_, one) for item, one in pairs for id_ in ids_of(item)
            }
            held = self._index.held(states)
        else:
            # Most have not changed, and need no thumbnails.
            light = self._index.fetch(ids, thumbnails=False)
            held = {
                record.id
                for item, one in pairs
                if (record := record_of(item, one, light)) and self._is_unchanged(item, record, one)
            }
            ids = list(light)
        pairs = [(item, one) for item, one in pairs if held.isdisjoint(ids_of(item))]
        wanted = {id_ for item, _ in pairs for id_ in ids_of(item)}
        records = self._index.fetch([id_ for id_ in ids if id_ in wanted])
        if self._deletions is None:
            return _Known(digests, held, records, {})
        new = {one for item, one in pairs if not record_of(item, one, records)}
        if new:
            # After the records, as what was deleted since the start is among neither.
            self._deletions.update(self._index.load_deletions())
        found = {one: min(ids) for one, ids in self._index.find_digests(new).items()}
        copies = self._index.fetch(list(found.values()))
        return _Known(
            digests,
            held,
            records,
            {one: copies[id_] for one, id_ in found.items() if id_ in copies},
        )

    def _decode_all(
        self, pool: ThreadPoolExecutor, chunk: list[Item], known: _Known
    ) -> Iterator["_Decoded | Record | _Deleted | ImageError | None"]:
        """None for an item that the index holds as it is."""
        are_held = [not known.held.isdisjoint(ids_of(item)) for item in chunk]
        found = zip(chunk, known.digests, are_held, strict=True)
        pairs = [(item, one) for item, one, is_held in found if not is_held]
        results = _in_slices(pool, lambda pair: self._decode(*pair, known), pairs, _SLICE)
        for is_held in are_held:
            yield None if is_held else next(results)

    def _decode(
        self, item: Item, found: str, known: _Known
    ) -> _Decoded | Record | _Deleted | ImageError | None:
        """None for an item that the index holds as it is."""
        try:
            return self._made(item, found, known)
        except ImageError as exc:
            return exc

    def _made(self, item: Item, found: str, known: _Known) -> _Decoded | Record | _Deleted | None:
        """Raises ImageError where the image cannot be read."""
        if isinstance(item.content, ImageError):
            raise item.content
        record = record_of(item, found, known.records)
        if record is not None:
            metadata = self._refreshed(item, record, found)
            if (record.label, record.metadata) == (item.label, metadata):
                return None
            state = self._state(item, record.id, found)
            return replace(record, label=item.label, metadata=metadata, state=state)
        if self._deletions is not None and item.id not in known.records:
            copy = known.copies.get(found)
            if self._deletions.hold_for(item, found, has_copy=copy is not None):
                return _Deleted()
            if copy is not None and self._can_move(copy.id, item.id):
                metadata = self._refreshed(item, copy, found)
                self._moved[item.id] = copy.id
                state = self._state(item, item.id, found)
                return replace(copy, id=item.id, label=item.label, metadata=metadata, state=state)
        image = self._open(item)
        return _Decoded(
            id=item.id,
            label=item.label,
            metadata=self._metadata(item, image.info, found),
            pixels=self._embedder.pixels(image),
            thumbnail=images.thumbnail(image),
            state=self._state(item, item.id, found),
        )

    def _is_unchanged(self, item: Item, record: Record, sha256: str) -> bool:
        """Whether the record is as it would be made now, so far as that is known without reading.

        The record is of the same bytes as the item.
        """
        is_file = isinstance(item.content, bytes)
        if is_file and not file_metadata.is_complete(record.metadata, self._settings.metadata):
            return False
        metadata = self._metadata(item, record.metadata, sha256)
        return (record.label, record.metadata) == (item.label, metadata)

    def _state(self, item: Item, id_: str, sha256: str) -> str:
        """Of a record that was made of this item under this id, and needs no more work."""
        said = [item.label, dict(sorted(item.metadata.items())), item.modified]
        made = [_STATE_VERSION, id_, sha256, self._settings.metadata, said]
        return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:_STATE_DIGITS]

    def _can_move(self, old_id: str, new_id: str) -> bool:
        """Whether the image can get another id without being embedded again.

        It cannot if the index's sample, of what was drawn at random, has to have it and lacks what
        the embedder alone tells.
        """
        sample = self._sample
        is_wanted = sample.is_representative and rank(item_of(new_id)) < sample.bound
        return not is_wanted or item_of(old_id) in self._sampled_items

    def _is_lost(self, item: Item) -> bool:
        """Whether the index's sample should have the image, and does not, after a kill."""
        return (
            rank(item.id) < self._mended_below
            and item.sha256 is None
            and item.id not in self._sampled
        )

    @cached_property
    def _sample(self) -> ImageSample:
        return self._index.load_sample()

    @cached_property
    def _sampled(self) -> dict[str, int]:
        return {id_: row for row, id_ in enumerate(self._sample.ids)}

    @cached_property
    def _sampled_items(self) -> set[str]:
        return set(map(item_of, self._sampled))

    def _refreshed(self, item: Item, record: Record, sha256: str) -> Metadata:
        """The metadata of a record of the same image as the item and the settings have it now.

        Raises ImageError where the image has to be read for it, and cannot be.
        """
        fields: Mapping[Any, Any] = record.metadata
        is_file = isinstance(item.content, bytes)
        if is_file and not file_metadata.is_complete(fields, self._settings.metadata):
            fields = self._open(item).info
        return self._metadata(item, fields, sha256)

    def _metadata(self, item: Item, fields: Mapping[Any, Any], sha256: str) -> Metadata:
        """What the source says of the item wins over the fields of its file."""
        which = self._settings.metadata
        of_file = file_metadata.chosen(fields, which)
        if item.modified is not None and which != "none":
            of_file[file_metadata.MODIFIED] = item.modified
        return {**of_file, **item.metadata, DIGEST_FIELD: sha256}

    def _open(self, item: Item) -> Image.Image:
        if isinstance(item.content, ImageError):
            raise item.content
        if item.content is videos.NO_PIXELS:
            raise ImageError("its record was deleted meanwhile: ingest again")
        return open_image(item.content, self._embedder.model.input_size, self._decoder)

    def _embed(self, batch: list[_Decoded | Record]) -> _Embedded:
        """Records of what was decoded; those that need no embedding stay as they are."""
        records = [one for one in batch if isinstance(one, Record)]
        self._relabelled.update(record.id for record in records if record.id not in self._moved)
        moved = [record.id for record in records if record.id in self._moved]
        if moved:
            moved = [id_ for id_ in moved if self._moved[id_] in self._sampled]
        new = [one for one in batch if isinstance(one, _Decoded)]
        pixels = [decoded.pixels for decoded in new]
        embeddings, textures = self._embedder.embed_with_textures(pixels)
        ids = [decoded.id for decoded in new]
        if moved:
            places = [self._sampled[self._moved[id_]] for id_ in moved]
            textures = np.concatenate([self._sample.textures[places], textures])
        for decoded, embedding in zip(new, embeddings, strict=True):
            try:
                check_embedding(embedding)
            except RecordError as exc:
                self._skip(decoded.id, exc)
                continue
            records.append(
                Record(
                    decoded.id,
                    embedding,
                    decoded.label,
                    decoded.metadata,
                    decoded.thumbnail,
                    decoded.state,
                )
            )
        return _Embedded(records, moved + ids, textures)

    def _skip(self, id_: str, reason: Exception) -> None:
        self._summary.unreadable[id_] = str(reason)
        self._progress.message(f"skipped {readable(id_)}: {reason}")
        self._progress.update(1)

    def _upsert(self) -> None:
        pending: list[Record] = []
        ids: list[str] = []
        textures: list[Features] = []
        due = time.monotonic() + _SECONDS_PER_COMMIT
        last = False
        while not last:
            embedded = self._take(self._embedded)
            last = embedded is None
            if embedded is not None:
                pending += embedded.records
                ids += embedded.ids
                textures.append(embedded.textures)
            enough = len(pending) >= RECORDS_PER_COMMIT or time.monotonic() >= due
            if pending and (last or enough):
                # All at once, as each time costs milliseconds.
                sample = self._summary.sample
                self._summary.sample = sample.joined(ids, np.concatenate(textures))
                ids, textures = [], []
                self._before_commit(self._summary.sample)
                self._commit(pending)
                old = [r.id in self._relabelled or r.id in self._moved for r in pending]
                relabelled = sum(record.id in self._relabelled for record in pending)
                self._summary.relabelled += relabelled
                self._summary.moved += sum(old) - relabelled
                self._summary.embedded += len(pending) - sum(old)
                self._summary.frames += sum(
                    not is_old and item_of(record.id) != record.id
                    for record, is_old in zip(pending, old, strict=True)
                )
                self._progress.update(sum(self._counts(record.id) for record in pending))
                pending = []
                due = time.monotonic() + _SECONDS_PER_COMMIT

    def _commit(self, records: list[Record]) -> None:
        """First all but the last of each video, then what these no longer have, then these."""
        closing = [record for record in records if record.id in self._closing]
        if not closing:
            self._index.upsert(records)
            return
        others = [record for record in records if record.id not in self._closing]
        if others:
            self._index.upsert(others)
        stale = [id_ for record in closing for id_ in self._closing[record.id]]
        for start in range(0, len(stale), _CHUNK_ITEMS):
            self._index.delete(stale[start : start + _CHUNK_ITEMS], keep_up=False)
        self._index.upsert(closing)

    # --- threads and queues; a failure in one stage ends the others ---

    def _start(self, work: Callable[[], None], output: Queue[Any] | None) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as exc:  # raised again in the caller's thread
                self._errors.append(exc)
                if output is None:
                    self._failed.set()
            finally:
                if output is not None:
                    self._put(output, None)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _put(self, queue: "Queue[T | None]", value: T | None) -> None:
        while not self._failed.is_set():
            with suppress(Full):
                queue.put(value, timeout=_POLL_SECONDS)
                return

    def _take(self, queue: "Queue[T | None]") -> T | None:
        while not self._failed.is_set():
            with suppress(Empty):
                return queue.get(timeout=_POLL_SECONDS)
        return None


def digest(content: bytes | Pixels) -> str:
    """SHA-256 in hex of what an image is read from."""
    return hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).hexdigest()


def digest_of(item: Item) -> str:
    """SHA-256 in hex of what an item is made of; raises ImageError where it cannot be read."""
    if item.sha256 is not None:
        return item.sha256
    if isinstance(item.content, ImageError):
        raise item.content
    if isinstance(item.content, Video):
        return videos.digest_of_video(item.content)
    return digest(item.content)


def make_decoder(settings: Settings) -> Decoder:
    """What `open_image` needs, with a process for each core where files are costly to decode."""
    return Decoder(settings.max_pixels, processes=cpu_count() or 1)


def open_image(content: bytes | Pixels | Video, input_size: int, decoder: Decoder) -> Image.Image:
    """An item's content as an upright RGB image; raises ImageError if it cannot be read.

    Of a video, it is the frame in its middle.
    """
    if isinstance(content, bytes):
        return decoder.decode(content, min_side=min_side(input_size))
    if isinstance(content, Video):
        return videos.still(content, input_size, decoder.max_pixels)
    return Image.fromarray(content)


def _digest_or_none(item: Item) -> str:
    return "" if isinstance(item.content, ImageError) else digest_of(item)


def record_of(item: Item, found: str, records: Mapping[str, Record]) -> Record | None:
    """The record of an item, if it was made of the same bytes."""
    for id_ in ids_of(item):
        record = records.get(id_)
        if record is not None and record.metadata.get(DIGEST_FIELD) == found:
            return record
    return None


def _in_slices(
    pool: ThreadPoolExecutor, work: Callable[[S], T], values: Sequence[S], size: int
) -> Iterator[T]:
    """What `work` makes of each value, in order; so many are handed to the pool at once."""
    slices = [values[start : start + size] for start in range(0, len(values), size)]
    return chain.from_iterable(pool.map(lambda part: [work(value) for value in part], slices))


def ids_of(item: Item) -> list[str]:
    """What the item may be found under in the index."""
    return [item.id] if item.former_id is None else [item.id, item.former_id]


def _is_described(item: Item, record: Record) -> bool:
    """Whether the record has the item's label and metadata."""
    return record.label == item.label and all(
        record.metadata.get(name) == value for name, value in item.metadata.items()
    )


def _is_decoded_frame(item: Item) -> bool:
    return item.sha256 is not None and item.content is not videos.NO_PIXELS


def _size(content: bytes | Pixels | Video | ImageError) -> int:
    if isinstance(content, bytes):
        return len(content)
    return content.nbytes if isinstance(content, np.ndarray) else 0


def chunks_of(items: Iterator[Item]) -> Iterator[list[Item]]:
    """The items in parts, bounded by count and by the bytes held; each video is one."""
    chunk: list[Item] = []
    held = 0
    try:
        for item in items:
            if isinstance(item.content, Video):  # open until the next item is asked for
                if chunk:
                    yield chunk
                    chunk, held = [], 0
                yield [item]
                continue
            chunk.append(item)
            held += _size(item.content)
            most = _CHUNK_FRAMES if _is_decoded_frame(item) else _CHUNK_ITEMS
            if len(chunk) >= most or held >= _CHUNK_BYTES:
                yield chunk
                chunk, held = [], 0
    except Exception:
        # What came before an error is kept.
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
