"""Taking out of the index what its source no longer has."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from image_search.errors import SettingsError
from image_search.index import VectorIndex
from image_search.moments import frame_stem, item_of
from image_search.values import DIGEST_FIELD
from worker.origin import prefix_of_name
from worker.sources import Item, Source
from worker.sources.names import as_text, composed
from worker.sources.skipped import Kind

_log = logging.getLogger(__name__)

# What may be there, and was not looked at.
_UNSEEN: Final = (Kind.UNREADABLE, Kind.BROKEN_LINK)
_AT_ONCE: Final = 1000


class SeenSource:
    """A source that remembers the ids that pass through it, as numbers, to take less memory."""

    def __init__(self, source: Source) -> None:
        self._items = source.items
        self._seen: set[int] = set()
        self.source = replace(source, items=self._passing)

    def see_all(self) -> None:
        """Take all its ids for seen, as its names alone tell them."""
        if self.source.listing is not None:
            for id_ in self.source.listing.ids():
                self._see(id_)

    def __contains__(self, id_: str) -> bool:
        """Whether an image, or the video of a frame, is in the source."""
        return hash(item_of(id_)) in self._seen or hash(id_) in self._seen

    def _see(self, id_: str) -> None:
        self._seen.add(hash(id_))
        if (stem := frame_stem(id_)) != id_:
            self._seen.add(hash(stem))

    def _passing(self) -> Iterator[Item]:
        for item in self._items():
            self._see(item.id)
            if item.former_id is not None:
                self._see(item.former_id)
            yield item


def check_prune(source: Source) -> None:
    """Raise SettingsError where it would not be known what the source no longer has."""
    if source.origin is None:
        raise SettingsError(
            f"--prune is for sources that can change, and {source.name} does not: leave it out"
        )


def prune(index: VectorIndex, seen: SeenSource, most_percent: int) -> int:
    """Take out the images of the source that were not seen in it; returns how many.

    0, and a line says why, where a part of the source could not be read, or more than
    `most_percent` of the images that the index has of it are lost: not those that the source has
    under another name. Raises StoreError.
    """
    source = seen.source
    if source.origin is None:
        return 0
    unseen = [kind for kind in _UNSEEN if source.skipped.counts.get(kind)]
    if unseen:
        _log.warning(
            "nothing is removed from the index, because parts of the source could not be read: %s",
            source.skipped.examples[unseen[0]][0],
        )
        return 0
    name = source.origin.name
    gone, total = _gone(index, name, seen)
    if not gone:
        return 0
    # A video counts as one, however many frames it has.
    items = len(set(map(item_of, gone)))
    lost = items - _count_moved(index, gone, seen)
    if 100 * lost > most_percent * total:
        _log.warning(
            "nothing is removed from the index: the source no longer has %s of its %s images, more "
            "than %s %%. If that is right: --prune 100",
            f"{lost:,}",
            f"{total:,}",
            most_percent,
        )
        return 0
    frames = sum(item_of(id_) != id_ for id_ in gone)
    of_videos = f" and videos, with {frames:,} frames" if frames else ""
    print(f"removing {items:,} of {total:,} images{of_videos} that the source no longer has")
    ids = list(gone)
    for start in range(0, len(ids), _AT_ONCE):
        index.delete(ids[start : start + _AT_ONCE], keep_up=False)  # a flush follows
    return len(ids)


def _count_moved(index: VectorIndex, gone: Mapping[str, str], seen: SeenSource) -> int:
    """How many of those that are gone, videos as one, the source has under another name."""
    digests = [digest for digest in gone.values() if digest]
    moved: set[str] = set()
    for start in range(0, len(digests), _AT_ONCE):
        found = index.find_digests(set(digests[start : start + _AT_ONCE]))
        moved.update(digest for digest, ids in found.items() if any(id_ in seen for id_ in ids))
    return len({item_of(id_) for id_, digest in gone.items() if digest in moved})


def _gone(index: VectorIndex, name: str, seen: SeenSource) -> tuple[dict[str, str], int]:
    """The source's images that were not seen, digests by id; how many the index has of it.

    What others have put under ids that begin like the source's is not the source's.
    """
    title = composed(as_text(name))
    ids: list[str] = []
    items: set[int] = set()
    for id_ in index.ids(prefix_of_name(name)):
        items.add(hash(item_of(id_)))
        if id_ not in seen:
            ids.append(id_)
    gone: dict[str, str] = {}
    for start in range(0, len(ids), _AT_ONCE):
        for id_, record in index.fetch(ids[start : start + _AT_ONCE], thumbnails=False).items():
            if composed(str(record.metadata.get("source", ""))) == title:
                gone[id_] = str(record.metadata.get(DIGEST_FIELD, ""))
    return gone, len(items)
