"""What a source leaves out, by kind, with examples: nothing is left out without being told."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from image_search.program import install

_EXAMPLES: Final = 3


class Kind(Enum):
    """Why something is left out, what to do about it, and whether it may have been an image."""

    HIDDEN = "hidden, or a system file", "", False
    NOT_IMAGE = "not an image", "", False
    ARCHIVE = "an archive or data set", "to ingest what is in it, give its path as SOURCE", False
    TABLE = "a table", "for the labels and images in it, give its path as SOURCE", False
    VIDEO = "a video", f"to ingest videos: {install('video')}", False
    LOOP = "a link to a folder that is in the source already", "", False
    UNSUPPORTED = "in a format that cannot be read", "convert it to JPEG or PNG", True
    UNREADABLE = "cannot be opened", "change its permissions", True
    SPECIAL = "a FIFO, socket or device", "only files are read; remove it", True
    BROKEN_LINK = "a broken link", "repair or remove it", True
    ARCHIVE_LINK = "a link to a folder, in an archive", "unpack it and give the folder", True
    NO_PATH = "a row without an image", "fill in its path", True
    REPEATED = "an image that an earlier row names", "give it one row", True
    SAME_NAME = "named like another file, in another spelling", "rename it", True

    def __init__(self, reason: str, advice: str, is_loss: bool) -> None:  # noqa: FBT001
        self.reason = reason
        self.advice = advice
        self.is_loss = is_loss


@dataclass
class Skipped:
    """Counts of what was left out, and the first examples of each kind."""

    counts: dict[Kind, int] = field(default_factory=dict)
    examples: dict[Kind, list[str]] = field(default_factory=dict)

    def add(self, kind: Kind, name: str) -> None:
        """Count something of that kind; `name` is fit to be printed."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(name)

    @property
    def total(self) -> int:
        """How much was left out, of all kinds."""
        return sum(self.counts.values())

    @property
    def lost(self) -> int:
        """How much of it may have been an image."""
        return sum(count for kind, count in self.counts.items() if kind.is_loss)

    def lines(self) -> Iterable[str]:
        """A line for each kind."""
        for kind, count in sorted(self.counts.items(), key=lambda pair: not pair[0].is_loss):
            examples = ", ".join(self.examples[kind])
            more = ", …" if count > len(self.examples[kind]) else ""
            advice = f": {kind.advice}" if kind.advice else ""
            yield f"left out {count:,} ({kind.reason}): {examples}{more}{advice}"
