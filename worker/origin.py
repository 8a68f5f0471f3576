"""Which name a source has in an index: one of its own, and the same every time.

An id begins with the name of its source, which is that of the folder or archive. The index keeps
for each name where its source is, so that another of the same name gets another one.
"""

import hashlib
import os
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final

from image_search.errors import ImageError
from image_search.index import VectorIndex
from image_search.provenance import KnownSource
from worker.ingest import chunks_of, digest_of, ids_of, record_of
from worker.sources import Source
from worker.sources.names import composed, file_bytes, id_of
from worker.sources.source import Video
from worker.videos import first_record, is_frame_of

# So many images are compared to tell whether a source that was somewhere else is the same.
_COMPARED: Final = 64
_DIGITS: Final = 8


def named_in(index: VectorIndex, source: Source) -> Source:
    """The source, under the name that its images have in the index or would get.

    It is known by its place, or, if it was moved, unpacked or ingested by a version that did not
    keep its place, by its images: at least half of its first 64 are there under their ids. Raises
    StoreError, and what reading the source raises.
    """
    origin = source.origin
    if origin is None:
        return source
    places = {name: known.place for name, known in index.load_sources().items() if not known.shard}
    names = [name for name in places if name == origin.name or name.startswith(f"{origin.name}~")]
    for name in names:
        if places[name] == origin.place:
            return origin.named(name)
    if origin.name not in places:
        if not index.list_ids(prefix=prefix_of(source), limit=1).ids:
            return source
        names.append(origin.name)
    for name in names:
        candidate = origin.named(name)
        if not _are_two(places.get(name, ""), origin.place) and _is_in(index, candidate):
            return candidate
    short = hashlib.sha256(origin.place.encode()).hexdigest()[:_DIGITS]
    return origin.named(f"{origin.name}~{short}")


def remember(
    index: VectorIndex,
    source: Source,
    ingested_at: datetime | None = None,
    settled: tuple[str, ...] | None = None,
) -> None:
    """Keep in the index where the source is, and when it was ingested; raises StoreError.

    Without a time, the one that the index has stays, and so does what is settled.
    """
    name, prefix = registered_name(source), prefix_of(source)
    place = source.origin.place if source.origin else ""
    known = index.load_sources().get(name)
    before = known or KnownSource()
    new = before.model_copy(
        update={
            "place": place,
            "prefix": prefix,
            "ingested_at": ingested_at or before.ingested_at,
            "settled": before.settled if settled is None else settled,
        }
    )
    if new != known:
        index.save_source(name, new)


def registered_name(source: Source) -> str:
    """What the index knows the source by; a data set has one name for all its splits."""
    return source.origin.name if source.origin else source.name.partition(" ")[0]


def prefix_of(source: Source) -> str:
    """What the ids of its images begin with."""
    if source.origin is None:
        return f"{registered_name(source)}-"
    return prefix_of_name(source.origin.name)


def prefix_of_name(name: str) -> str:
    """What ids begin with, of a source that is known by this name."""
    return id_of(file_bytes(f"{composed(name)}/"))


def _are_two(place: str, other: str) -> bool:
    """Whether both are there, of one kind, so that neither is what became of the other.

    What has an address, and no path, may be a copy of anything.
    """
    kinds = [Path(one).suffix if os.path.isfile(one) else "" for one in (place, other)]
    return os.path.exists(place) and kinds[0] == kinds[1]


def _is_in(index: VectorIndex, source: Source) -> bool:
    same = count = 0
    for chunk in chunks_of(islice(source.items(), _COMPARED)):
        count += len(chunk)
        records = index.fetch([id_ for item in chunk for id_ in ids_of(item)], thumbnails=False)
        for item in chunk:
            if isinstance(item.content, ImageError):
                continue
            found = digest_of(item)
            if isinstance(item.content, Video):
                first = first_record(index, item.id)
                same += first is not None and is_frame_of(first, found)
            else:
                same += record_of(item, found, records) is not None
    return 2 * same >= count
