"""Videos as items of a source: their frames as items, and which of them an index has.

The records of a video's frames have ids like `VIDEO#t=12.000`, and digests that follow from the
digest of the file and the time, so that a frame is known again under another name or among others.
The first of them also has the sampling that they were taken with. It is written when all others
are: without it, a video is not finished.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from PIL import Image

from image_search import file_metadata
from image_search.embedding import min_side
from image_search.errors import ImageError
from image_search.index import Match, Record, VectorIndex
from image_search.moments import (
    DAMAGE_FIELD,
    DURATION_FIELD,
    SAMPLING_FIELD,
    TIME_FIELD,
    VIDEO_FIELD,
    frame_id,
    frame_prefix,
    frame_stem,
    in_time,
    item_of,
    seconds_of,
)
from image_search.settings import Settings
from image_search.values import DIGEST_FIELD, Embeddings, Metadata, MetadataValue, Pixels
from image_search.videos import Frame, Sampling, VideoFrames, read_frames
from worker.sources import Item
from worker.sources.source import Video

_PIECE_BYTES: Final = 1024 * 1024
_AT_ONCE: Final = 1000
# Of so many nearest, where most are frames of one video.
_MOST_ASKED: Final = 5000
# In place of a picture that is not needed, as the index has a record of it.
NO_PIXELS: Final[Pixels] = np.empty((0, 0, 3), np.uint8)


def digest_of_video(video: Video) -> str:
    """SHA-256 in hex of a video file; raises ImageError where it cannot be read."""
    try:
        video.file.seek(0)
        found = hashlib.sha256()
        while piece := video.file.read(_PIECE_BYTES):
            found.update(piece)
        return found.hexdigest()
    except OSError as exc:
        raise ImageError(f"the file cannot be read: {exc.strerror}") from exc


def digest_of_frame(video_sha256: str, time: float) -> str:
    """What a frame's record has for its digest."""
    return hashlib.sha256(f"{video_sha256}#t={time:.3f}".encode()).hexdigest()


def still(video: Video, input_size: int, max_pixels: int) -> Image.Image:
    """The frame in the middle of a video, which stands for it; raises ImageError."""
    sampling = Sampling(max_frames=1, distinct=False)
    with _read(video, sampling, max_pixels, input_size) as frames:
        for frame in frames:
            return frame.image
    raise ImageError("no picture of the video can be decoded")


def with_stills(items: Iterator[Item], input_size: int, max_pixels: int) -> Iterator[Item]:
    """The items, each video as one picture of it, which need not be read before the next item."""
    for item in items:
        content: Pixels | ImageError
        if not isinstance(item.content, Video):
            yield item
            continue
        try:
            content = np.asarray(still(item.content, input_size, max_pixels))
            sha256 = digest_of_video(item.content)
        except ImageError as exc:
            yield replace(item, content=exc)
        else:
            yield replace(item, content=content, sha256=sha256)


def as_text(sampling: Sampling, settings: Settings) -> str:
    """How the frames of a video were taken, and what was kept of it: as its first record has it."""
    parts = [f"{sampling.frames_per_second:g} a second"]
    if sampling.key_frames:
        parts.append("key frames")
    if sampling.max_frames is not None:
        parts.append(f"at most {sampling.max_frames}")
    if settings.metadata != "default":
        parts.append(f"metadata {settings.metadata}")
    return ", ".join(parts)


def open_frames(
    video: Video, sampling: Sampling, settings: Settings, input_size: int
) -> VideoFrames:
    """The frames of a video, large enough for the network; raises ImageError."""
    return _read(video, sampling, settings.max_pixels, input_size)


def _read(video: Video, sampling: Sampling, max_pixels: int, input_size: int) -> VideoFrames:
    return read_frames(video.file, sampling, max_pixels=max_pixels, min_side=min_side(input_size))


def frame_item(
    video: Item, frame: Frame, frames: VideoFrames, video_sha256: str, settings: Settings
) -> Item:
    """A frame of a video as an item of its own."""
    fields = file_metadata.chosen(frames.fields, settings.metadata)
    return Item(
        frame_id(video.id, frame.time),
        video.label,
        np.asarray(frame.image),
        {**fields, **video.metadata, **_place(video.id, frame.time, frames.duration)},
        modified=video.modified,
        sha256=digest_of_frame(video_sha256, frame.time),
    )


def finished(first: Item, sampling: str, damage: str) -> Item:
    """The first frame of a video of which all others are in the index."""
    of_first = {SAMPLING_FIELD: sampling, **({DAMAGE_FIELD: damage} if damage else {})}
    return replace(first, metadata={**first.metadata, **of_first})


def recorded_item(video: Item, record: Record, settings: Settings) -> Item:
    """The item that a frame's record was made of, as the video's name and metadata are now."""
    time = seconds_of(record.id)
    duration = record.metadata.get(DURATION_FIELD, 0.0)
    fields = file_metadata.chosen(record.metadata, settings.metadata)
    of_first: dict[str, MetadataValue] = {
        name: value
        for name, value in record.metadata.items()
        if name in {SAMPLING_FIELD, DAMAGE_FIELD}
    }
    return Item(
        frame_id(video.id, time),
        video.label,
        NO_PIXELS,
        {**fields, **video.metadata, **_place(video.id, time, duration), **of_first},
        modified=video.modified,
        sha256=str(record.metadata.get(DIGEST_FIELD, "")),
    )


def _place(video: str, time: float, duration: MetadataValue) -> Metadata:
    seconds = round(float(duration), 3) if isinstance(duration, int | float) else 0.0
    return {VIDEO_FIELD: video, TIME_FIELD: time, DURATION_FIELD: seconds}


# --- what an index has of a video -----------------------------------------------------------------


def frame_ids(index: VectorIndex, video: str) -> list[str]:
    """The ids of the frames that the index has of a video, by their times."""
    return in_time(video, index.ids(frame_prefix(video)))


def fetch_all(index: VectorIndex, ids: list[str]) -> Iterator[Record]:
    """The records with these ids, in their order, without thumbnails."""
    for start in range(0, len(ids), _AT_ONCE):
        batch = ids[start : start + _AT_ONCE]
        records = index.fetch(batch, thumbnails=False)
        yield from (records[id_] for id_ in batch if id_ in records)


def first_record(index: VectorIndex, video: str) -> Record | None:
    """That of the first frame that the index has of a video."""
    id_ = frame_id(video, 0.0)
    found = index.fetch([id_], thumbnails=False).get(id_)
    if found is None:
        ids = frame_ids(index, video)[:1]
        found = next(fetch_all(index, ids), None)
    return found


def is_finished(record: Record | None, video_sha256: str, sampling: str) -> bool:
    """Whether the first record of a video says that all frames of this file were taken so."""
    return (
        record is not None
        and record.metadata.get(SAMPLING_FIELD) == sampling
        and is_frame_of(record, video_sha256)
    )


def is_frame_of(record: Record, video_sha256: str) -> bool:
    """Whether the record is one of a frame of this file, under whatever name."""
    is_frame = item_of(record.id) != record.id
    expected = digest_of_frame(video_sha256, seconds_of(record.id))
    return is_frame and record.metadata.get(DIGEST_FIELD) == expected


def copies_of(index: VectorIndex, video: str, video_sha256: str, sampling: str) -> list[str]:
    """The ids of the frames of the same file under another name, where the index has all."""
    digest = digest_of_frame(video_sha256, 0.0)
    stem = frame_stem(video)
    for id_ in sorted(index.find_digests({digest}).get(digest, [])):
        other = item_of(id_)
        if other in {id_, stem}:
            continue
        record = index.fetch([id_], thumbnails=False).get(id_)
        if is_finished(record, video_sha256, sampling):
            return frame_ids(index, other)
    return []


def are_deleted(deletions: Mapping[str, str], video_sha256: str) -> bool:
    """Whether any frame of this file is among the deletions, digests by id."""
    return any(
        sha256 == digest_of_frame(video_sha256, seconds_of(id_))
        for id_, sha256 in deletions.items()
        if item_of(id_) != id_
    )


def stale(ids: Collection[str], kept: Collection[str]) -> list[str]:
    """The frames that the index has of a video, and the video no longer."""
    return sorted(set(ids) - set(kept))


def nearest_items(
    query: Callable[[Embeddings, int], list[list[Match]]],
    embeddings: Embeddings,
    own: Sequence[str | None],
    count: int,
) -> list[list[Match]]:
    """For each row of float32 [n, 512] its `count` nearest images and videos but `own`.

    A video has its best frame. `query` finds so many matches of each row, best first; it is asked
    for more where frames of one video are all that is near.
    """
    found: list[list[Match]] = [[] for _ in own]
    left = list(range(len(own)))
    top_k = count + 1
    while left:
        again = []
        for row, matches in zip(left, query(embeddings[left], top_k), strict=True):
            found[row] = _one_of_each(matches, own[row])[:count]
            if len(found[row]) < count and len(matches) == top_k:
                again.append(row)
        if top_k == _MOST_ASKED:
            break
        left, top_k = again, min(_MOST_ASKED, 10 * top_k)
    return found


def _one_of_each(matches: Sequence[Match], own: str | None) -> list[Match]:
    seen = {own}
    kept = []
    for match in matches:
        item = item_of(match.id)
        if item not in seen:
            seen.add(item)
            kept.append(match)
    return kept
