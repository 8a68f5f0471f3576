"""What every source is: a repeatable stream of items."""

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Literal, get_args

from image_search.errors import ImageError, SourceError
from image_search.values import Metadata, Pixels
from worker.sources.names import printable
from worker.sources.skipped import Skipped

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
class Item:
    """One image to ingest.

    `content` is an image file's bytes, or uint8 RGB pixels [h, w, 3], or why it cannot be read.
    `former_id` is the id that versions before 0.2 gave it, where that was another.
    """

    id: str
    label: str | None
    content: bytes | Pixels | ImageError
    metadata: Metadata
    former_id: str | None = None


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

    def pick(self, positions: Collection[int]) -> Iterator[Item]:
        """The items at these positions, in order."""
        if self.some is not None:
            return self.some(positions)
        stop = max(positions, default=-1) + 1
        items = islice(self.items(), stop)
        return (item for number, item in enumerate(items) if number in positions)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what reading raises into a SourceError that names the path."""
    try:
        yield
    except DAMAGE as exc:
        reason = str(exc) or "it ends too early"
        name = printable(str(path))
        raise SourceError(f"{name} cannot be read, or is damaged: {printable(reason)}") from exc
