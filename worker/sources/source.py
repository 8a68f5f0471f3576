"""What every source is: a repeatable stream of items."""

import lzma
import random
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, Literal, TypeAlias, TypeVar, get_args
from zlib import crc32

from image_search.errors import ImageError, SourceError
from image_search.values import Metadata, Pixels
from worker.sources.names import file_bytes, printable
from worker.sources.skipped import Skipped

Part = TypeVar("Part")

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

# What reading a damaged file or archive raises.
DAMAGE: Final = (
    OSError,
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    UnicodeDecodeError,
)


@dataclass(frozen=True)
class Video:
    """A video file, on a disk and open until the next item is asked for."""

    file: BinaryIO


@dataclass(frozen=True)
class Item:
    """One image or video to ingest, or a frame of a video.

    `content` is an image file's bytes, or uint8 RGB pixels [h, w, 3], or a video, or why it cannot
    be read. `former_id` is the id that versions before 0.2 gave it, where that was another.
    `modified` is when its file was changed, in seconds since 1970, where that is known. `sha256` is
    the digest of a frame; that of anything else is of its content.
    """

    id: str
    label: str | None
    content: bytes | Pixels | Video | ImageError
    metadata: Metadata
    former_id: str | None = None
    modified: int | None = None
    sha256: str | None = None


AreKnown: TypeAlias = Callable[[list[Item]], list[bool]]


@dataclass(frozen=True)
class Source:
    """A named, repeatable stream of `total` items.

    `about` is a line that says which labels were found, and by which rule; `splits` are those that
    there are to choose from, and `skipped` is what was left out.
    """

    name: str
    total: int
    items: Callable[[], Iterator[Item]] = field(repr=False)
    about: str = ""
    splits: tuple[str, ...] = ()
    skipped: Skipped = field(default_factory=Skipped)
    # The items at these positions, in the same order, where that costs less than all.
    some: Callable[[Collection[int]], Iterator[Item]] | None = field(default=None, repr=False)
    # Of a folder, what following it takes; see worker/watch.py.
    listing: "Listing | None" = field(default=None, repr=False)
    # The items, or those at the positions, but for those that the function knows, of which it is
    # given all but the content, in order; where reading costs much, and a version in the metadata
    # tells what has changed.
    fresh: Callable[[AreKnown, Collection[int] | None], Iterator[Item]] | None = field(
        default=None, repr=False
    )
    # What its ids begin with, where it is, and how to name it otherwise, where that is free.
    origin: "Origin | None" = None
    # Where among the items the videos are, as far as names tell.
    videos: frozenset[int] = frozenset()

    def pick(self, positions: Collection[int]) -> Iterator[Item]:
        """The items at these positions, in order."""
        if self.some is not None:
            return self.some(positions)
        stop = max(positions, default=-1) + 1
        items = islice(self.items(), stop)
        return (item for number, item in enumerate(items) if number in positions)

    def limited(self, most: int | None) -> "Source":
        """So many of its items, drawn at random, and the same every time; all without a count.

        A larger count draws the same items and others.
        """
        if most is None or most >= self.total:
            return self
        order = list(range(self.total))
        random.Random(0).shuffle(order)
        return self.at(sorted(order[:most]))

    def shard(self, number: int, shards: int) -> "Source":
        """One of so many parts that have all items between them; the first `number` is 0.

        Files are dealt out by their names, so that a folder may change meanwhile, and others by
        their positions.
        """
        return self.at(self.deal(shards)[number])

    def deal(self, shards: int) -> Sequence[Sequence[int]]:
        """Where the items of each `shard` are among all, rising."""
        if self.listing is None:
            return [range(number, self.total, shards) for number in range(shards)]
        dealt = [array("l") for _ in range(shards)]
        for position, path in enumerate(self.listing.paths):
            dealt[crc32(file_bytes(path)) % shards].append(position)
        return dealt

    def at(self, chosen: Sequence[int]) -> "Source":
        """The items at these positions, which rise."""
        whole_fresh = self.fresh
        within = set(chosen)

        def some(positions: Collection[int]) -> Iterator[Item]:
            return self.pick({chosen[number] for number in positions if number < len(chosen)})

        def fresh(are_known: AreKnown, positions: Collection[int] | None) -> Iterator[Item]:
            assert whole_fresh is not None  # noqa: S101
            own = range(len(chosen)) if positions is None else positions
            return whole_fresh(are_known, {chosen[n] for n in own if n < len(chosen)})

        return replace(
            self,
            total=len(chosen),
            items=lambda: self.pick(within),
            some=some,
            listing=None,
            fresh=fresh if whole_fresh is not None else None,
            videos=frozenset(n for n, position in enumerate(chosen) if position in self.videos),
        )


@dataclass(frozen=True)
class Listing:
    """What the names of files tell alone: paths of the items, in order; ids, former ones, too.

    `places` has what each folder tells of the images in it.
    """

    paths: Sequence[str]
    ids: Callable[[], Iterator[str]]
    places: Mapping[str, object]


@dataclass(frozen=True)
class Origin:
    """What a source is known by: `name`, with which its ids begin, and `place`, a path."""

    name: str
    place: str
    # The same source with another name.
    named: Callable[[str], Source] = field(repr=False, compare=False)


def at_address(address: str, source: Source) -> Source:
    """A source that was downloaded, which is known by its address."""
    origin = source.origin
    if origin is None:
        return source

    def named(name: str) -> Source:
        return at_address(address, origin.named(name))

    return replace(source, name=printable(address), origin=Origin(origin.name, address, named))


def positions_in(
    parts: Iterable[tuple[Part, int]], positions: Collection[int] | None
) -> Iterator[tuple[Part, list[int] | None]]:
    """Those parts of a source that hold any of the positions, and which: in order, from its start.

    `parts` are all, each with its number of items. Without positions, all of each part is meant.
    """
    first = 0
    for part, count in parts:
        if positions is None:
            yield part, None
        elif inside := sorted(n - first for n in positions if first <= n < first + count):
            yield part, inside
        first += count


@contextmanager
def damage_named(path: Path | str) -> Iterator[None]:
    """Turn what reading raises into a SourceError that names the path."""
    try:
        yield
    except DAMAGE as exc:
        reason = str(exc) or "it ends too early"
        name = printable(str(path))
        raise SourceError(f"{name} cannot be read, or is damaged: {printable(reason)}") from exc
