"""Image files by name, as folders and archives hold them: what is one, its id, label and split."""

import io
import mimetypes
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import BinaryIO, Final, Literal, cast

from PIL import Image

from image_search import images, videos
from image_search.errors import ImageError, SourceError
from worker.sources.labels import LabelFrom, find_layout, split_of
from worker.sources.names import (
    as_text,
    composed,
    decoded,
    file_bytes,
    id_of,
    is_text,
    legacy_encoding,
    printable,
)
from worker.sources.skipped import Kind, Skipped
from worker.sources.source import (
    DAMAGE,
    Item,
    Listing,
    Origin,
    Source,
    Split,
    Video,
    damage_named,
)

# A file this large is no photograph, and would not fit into a worker's memory beside others.
MAX_FILE_BYTES: Final = 256 * 1024 * 1024
# Of a video that is copied out of an archive, or downloaded.
MAX_VIDEO_BYTES: Final = 64 * 1024 * 1024 * 1024
_PIECE_BYTES: Final = 1024 * 1024
# What recognises an image by its first bytes, where its name does not tell.
START_BYTES: Final = 64
_RECOGNISED: Final = ("AVIF", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
_ARCHIVES: Final = {
    ".parquet",
    ".zip",
    ".tar",
    ".tgz",
    ".gz",
    ".bz2",
    ".tbz2",
    ".xz",
    ".txz",
    ".7z",
    ".rar",
}
# Cameras' own formats, and others that mimetypes does not know.
_PICTURES: Final = {
    *(".arw", ".cr2", ".cr3", ".crw", ".dng", ".heic", ".heif", ".jxl", ".nef", ".nrw", ".orf"),
    *(".pef", ".raf", ".raw", ".rw2", ".sr2", ".srw", ".x3f", ".xcf"),
}
# A transport stream, or the source code of a program.
_AMBIGUOUS: Final = ".ts"
# Folders of Synology's and of others' thumbnails, and of what was deleted.
_OF_SYSTEMS: Final = {"@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information"}
_TABLES: Final = {".csv", ".tsv", ".jsonl", ".ndjson"}
_SHOWN_LABELS: Final = 10
_LOOKED_UP: Final = 1024


@dataclass(frozen=True, slots=True)
class File:
    """A file of a folder or archive.

    `key` is what it is read by, and `name` its path there, with slashes. What is not UTF-8 in
    `name` is as `os.fsdecode` has it.
    """

    key: str
    name: str


Content = bytes | Video | ImageError
# The key of a file, its content, and when it was changed, in seconds since 1970.
Read = tuple[str, Content, int | None]


@dataclass(frozen=True)
class Choice:
    """What to take of a source, and how to label it."""

    split: Split | None = None
    # Whether images to search for are wanted: the test split, where there is one.
    held_out: bool = False
    label_from: LabelFrom = "auto"


class Chosen:
    """Sorts files into images, videos and what is left out, while a folder is listed."""

    def __init__(self) -> None:
        self.files: list[File] = []
        # The keys of those that are videos.
        self.videos: set[str] = set()
        # Archives and alike, which may be what a folder consists of.
        self.parts: list[str] = []
        self.skipped = Skipped()
        self._suffixes = images.file_suffixes()

    def add(self, file: File, start: Callable[[], bytes]) -> None:
        """Take the file if it is an image or a video; `start` reads its first bytes."""
        folder, _, own = file.name.rpartition("/")
        if is_hidden(own) or _is_hidden_folder(folder):
            self.skip(Kind.HIDDEN, file.name)
            return
        kind = self._kind(file.name)
        if kind is None:
            kind = _kind_by_content(start)
        if kind == "video" and not videos.is_available():
            kind = Kind.VIDEO
        if kind in {"image", "video"}:
            self.files.append(file)
            if kind == "video":
                self.videos.add(file.key)
        elif kind == Kind.ARCHIVE:
            self.parts.append(file.key)
        else:
            self.skip(kind if isinstance(kind, Kind) else Kind.NOT_IMAGE, file.name)

    def skip_parts(self, but: Collection[str] = ()) -> None:
        """Leave archives out, all but these."""
        for name in self.parts:
            if name not in but:
                self.skip(Kind.ARCHIVE, name)

    def is_unclear(self, name: str) -> bool:
        """Whether only its content tells if a file is an image."""
        return self._kind(name) is None

    def skip(self, kind: Kind, name: str) -> None:
        """Leave it out, and report it."""
        self.skipped.add(kind, printable(as_text(name)))

    def _kind(self, name: str) -> Kind | Literal["image", "video"] | None:
        """What the suffix tells; None where it tells nothing, as in photo.jpg?size=large."""
        suffix = posixpath.splitext(name)[1].lower()
        if suffix in self._suffixes:
            return "image"
        if suffix in videos.file_suffixes():
            return "video"
        if suffix == _AMBIGUOUS:
            return None
        if suffix in _ARCHIVES:
            return Kind.ARCHIVE
        if suffix in _TABLES:
            return Kind.TABLE
        if suffix in _PICTURES:
            return Kind.UNSUPPORTED
        known = re.fullmatch(r"\.\w+", suffix) and mimetypes.guess_type(f"x{suffix}")[0]
        if not known:
            return None
        return Kind.UNSUPPORTED if known.startswith("image/") else Kind.NOT_IMAGE


@lru_cache(maxsize=1024)
def _is_hidden_folder(path: str) -> bool:
    return any(is_hidden(part) for part in path.split("/"))


def is_hidden(name: str) -> bool:
    """Whether it is hidden, or what a system has made for itself, as macOS in zip archives."""
    if name.startswith((".", "__MACOSX")):
        return name not in {".", ".."}
    return name.lower() in _OF_SYSTEMS


def is_video(name: str) -> bool:
    """Whether a file is a video by its name."""
    return posixpath.splitext(name)[1].lower() in videos.file_suffixes()


def _kind_by_content(start: Callable[[], bytes]) -> Literal["image", "video"] | None:
    try:
        prefix = start()
    except DAMAGE:
        return None
    tests = (Image.OPEN[name][1] for name in _RECOGNISED if name in Image.OPEN)
    if any(test is not None and test(prefix) is True for test in tests):
        return "image"
    return "video" if videos.looks_like_video(prefix) else None


def read_bounded(open_: Callable[[], BinaryIO], size: int = MAX_FILE_BYTES) -> bytes | ImageError:
    """The content, or why there is none: one bad file does not stop the rest.

    It is read in pieces, so that what holds more than its `size` does not fill the memory.
    """
    pieces = []
    limit = left = min(size, MAX_FILE_BYTES)
    try:
        with open_() as file:
            while piece := file.read(_PIECE_BYTES):
                left -= len(piece)
                if left < 0:
                    return ImageError(f"the file has more than {limit:,} bytes")
                pieces.append(piece)
    except DAMAGE as exc:
        return _unreadable(exc)
    return b"".join(pieces)


@contextmanager
def reading(
    open_: Callable[[], BinaryIO],
    *,
    is_video: bool,
    size: int | None = None,
    on_disk: bool = False,
) -> Iterator[Content]:
    """The bytes of an image, as `read_bounded` has them; or a video, open meanwhile.

    What is not `on_disk`, where it can be searched, is copied into a temporary file.
    """
    if not is_video:
        yield read_bounded(open_, MAX_FILE_BYTES if size is None else size)
        return
    try:
        videos.require()
        file = open_() if on_disk else _copied(open_, size)
    except (*DAMAGE, ImageError) as exc:
        yield exc if isinstance(exc, ImageError) else _unreadable(exc)
        return
    with file:
        yield Video(file)


def _copied(open_: Callable[[], BinaryIO], size: int | None) -> BinaryIO:
    limit = left = MAX_VIDEO_BYTES if size is None else min(size, MAX_VIDEO_BYTES)
    copied = cast("BinaryIO", TemporaryFile())  # noqa: SIM115
    try:
        with open_() as file:
            while piece := file.read(_PIECE_BYTES):
                left -= len(piece)
                if left < 0:
                    raise ImageError(f"the file has more than {limit:,} bytes")  # noqa: TRY301
                copied.write(piece)
        copied.flush()
    except BaseException:
        copied.close()
        raise
    return copied


def _unreadable(exc: BaseException) -> ImageError:
    return ImageError(f"the file cannot be read: {printable(str(exc))}")


def modified(file: Path) -> int | None:
    """When the file was changed, in seconds since 1970."""
    try:
        return int(file.stat().st_mtime)
    except OSError:  # reading it reports that
        return None


def open_file(file: Path) -> BinaryIO:
    """Open a file; what is none, such as a FIFO that took its place, is not waited for."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    opened = os.fdopen(os.open(file, flags), "rb")
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise OSError("it is no longer a file")
    return opened


def open_files(
    path: Path | str,
    own_name: str,
    chosen: Chosen,
    read: Callable[[Collection[str]], Iterator[Read]],
    choice: Choice,
    title: str = "",
    *,
    place: str = "",
    versions: Mapping[str, str] | None = None,
) -> Source:
    """Image and video files by their names inside a folder or archive; ids begin with `own_name`.

    `place` is where it is, if it has no path. With `versions` by key, which go into the metadata,
    an image that the index has in its version is not read.
    """
    title = title or printable(as_text(str(path)))
    chosen.skip_parts()
    if not chosen.files:
        left_out = "".join(f"\n{line}" for line in chosen.skipped.lines())
        raise SourceError(
            f"{title} has no images or videos: expected files such as .jpg, .png or .mp4, flat "
            f"or in one sub-folder per label{left_out}"
        )
    entries = _entries(own_name, chosen)
    layout = find_layout(Counter(_folder(entry.text) for entry in entries), choice.label_from)
    splits = sorted({place.split for place in layout.places.values() if place.split})
    is_chosen = matching_split(title, splits, choice)
    if is_chosen:
        entries = [e for e in entries if is_chosen(layout.places[_folder(e.text)].split)]
    counts = Counter(layout.places[_folder(entry.text)].label for entry in entries)
    about = describe(layout.rule, counts, splits)
    by_key = {entry.key: entry for entry in entries}
    place = place or printable(as_text(str(Path(path).resolve())))
    videos_at = frozenset(n for n, entry in enumerate(entries) if entry.key in chosen.videos)
    unread = Video(io.BytesIO())

    def named(name: str) -> Source:
        prefix, source_name = composed(name), composed(as_text(name))

        def ids_of(entry: _Entry) -> tuple[str, str | None]:
            id_ = id_of(file_bytes(f"{prefix}/{entry.name}"))
            former = id_of(file_bytes(f"{own_name}/{entry.former_name}"))
            return id_, former if name == own_name and former != id_ else None

        def ids() -> Iterator[str]:
            for entry in entries:
                yield from filter(None, ids_of(entry))

        def some(positions: Collection[int]) -> Iterator[Item]:
            return items({entries[number].key for number in positions if number < len(entries)})

        def items(keys: Collection[str]) -> Iterator[Item]:
            with damage_named(path):
                for key, content, modified in read(keys):
                    yield item(by_key[key], content, modified)

        def item(entry: _Entry, content: Content, modified: int | None = None) -> Item:
            found = layout.places[_folder(entry.text)]
            metadata = {"source": source_name, "path": entry.text}
            if found.split:
                metadata["split"] = found.split
            if versions is not None:
                metadata["version"] = versions[entry.key]
            id_, former = ids_of(entry)
            return Item(id_, found.label, content, metadata, former, modified)

        def fresh(
            are_known: Callable[[list[Item]], list[bool]], positions: Collection[int] | None
        ) -> Iterator[Item]:
            wanted = entries
            if positions is not None:
                wanted = [entries[n] for n in sorted(positions) if n < len(entries)]
            for start in range(0, len(wanted), _LOOKED_UP):
                part = wanted[start : start + _LOOKED_UP]
                known = are_known(
                    [item(e, unread if e.key in chosen.videos else b"") for e in part]
                )
                new = (entry.key for entry, old in zip(part, known, strict=True) if not old)
                yield from items(set(new))

        return Source(
            title,
            len(entries),
            lambda: items(by_key),
            about,
            tuple(splits),
            chosen.skipped,
            some,
            Listing([entry.key for entry in entries], ids, layout.places),
            fresh if versions is not None else None,
            origin=Origin(name, place, named),
            videos=videos_at,
        )

    return named(own_name)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An image file: what it is read by, its path in ids, and as people read it.

    `former_name` is its path in the ids of versions before 0.2.
    """

    key: str
    name: str
    text: str
    former_name: str


def _entries(own_name: str, chosen: Chosen) -> list[_Entry]:
    """The files in the order of their keys; of names that are alike, one."""
    files = sorted(chosen.files, key=lambda file: file.key)
    names = [_relative(composed(file.name)) for file in files]
    are_keys = all(name == file.key for name, file in zip(names, files, strict=True))
    names = _unwrapped(names, composed(own_name))
    former = _unwrapped([_relative(file.key) for file in files], own_name)
    undecodable = [file_bytes(name) for name in names if not is_text(name)]
    encoding = legacy_encoding(undecodable) if undecodable else "cp1252"
    entries: list[_Entry] = []
    for file, name, former_name in zip(files, names, former, strict=True):
        text = name if is_text(name) else composed(decoded(file_bytes(name), encoding))
        # One string where they are equal, as there may be a million.
        former_name = name if former_name == name else former_name
        entries.append(_Entry(file.key, name, text, former_name))
    if are_keys:  # of which no two are the same
        return entries
    kept: dict[str, _Entry] = {}
    for entry in entries:
        other = kept.setdefault(entry.name, entry)
        if other is not entry:
            # Of two spellings the composed one is kept, whose id was always this.
            kept[entry.name] = entry if entry.former_name is entry.name else other
            chosen.skip(Kind.SAME_NAME, entry.text)
    return list(kept.values())


def _relative(name: str) -> str:
    # Paths of a million files are looked at; few need more.
    if name.startswith(("/", "./", "../")) or "//" in name or "/./" in name or "/../" in name:
        return "/".join(part for part in PurePosixPath(name).parts if part not in {"/", ".."})
    return name


def _unwrapped(names: list[str], source_name: str) -> list[str]:
    """The names without the folder that an archive was made of, which is named like it."""
    wrapper = f"{source_name}/"
    if all(name.startswith(wrapper) for name in names):
        return [name.removeprefix(wrapper) for name in names]
    return names


def matching_split(
    title: str, splits: Collection[str], choice: Choice
) -> Callable[[str | None], bool] | None:
    """Which of the `splits` that a source has are chosen; None for all.

    Raises SourceError if the one that was asked for is not there.
    """
    kinds = set(map(split_of, splits))
    wanted = choice.split or ("test" if choice.held_out and "test" in kinds else None)
    if wanted is None or not splits:
        return None
    if wanted not in kinds:
        raise SourceError(
            f"{title} has no split {wanted}: its splits are {', '.join(map(printable, splits))}"
        )
    return lambda split: split is not None and split_of(split) == wanted


def describe(rule: str, counts: Counter[str | None], splits: Iterable[str]) -> str:
    """A line on the labels that were found, and by which rule, and the splits."""
    unlabelled = counts[None]
    names = sorted(name for name in counts if name is not None)
    shown = ", ".join(f"{printable(name)} ({counts[name]:,})" for name in names[:_SHOWN_LABELS])
    more = f" and {len(names) - _SHOWN_LABELS:,} more" if len(names) > _SHOWN_LABELS else ""
    parts = [f"labels: {rule}; {len(names):,} found: {shown}{more}" if names else "labels: none"]
    if names and unlabelled:
        parts.append(f"{unlabelled:,} images have none")
    if splits:
        parts.append(f"splits: {', '.join(map(printable, splits))}")
    return "; ".join(parts)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
