"""Image files by name, as folders and archives hold them: ids, labels, and what is skipped."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import quote

from image_search import images
from image_search.errors import ImageError, SourceError
from image_search.values import MAX_ID_LENGTH
from worker.sources.source import DAMAGE, Item, Source, damage_named

# A file this large is no photograph, and would not fit into a worker's memory beside others.
_MAX_FILE_BYTES: Final = 256 * 1024 * 1024


def read_bounded(size: int, content: Callable[[], bytes]) -> bytes | ImageError:
    """The content, or why there is none: one bad file does not stop the rest."""
    try:
        if size > _MAX_FILE_BYTES:
            return ImageError(f"the file has more than {_MAX_FILE_BYTES:,} bytes")
        return content()
    except DAMAGE as exc:
        return ImageError(f"the file cannot be read: {exc}")


def open_files(
    path: Path,
    source_name: str,
    names: Iterable[str],
    read: Callable[[set[str]], Iterator[tuple[str, bytes | ImageError]]],
) -> Source:
    """Image files by their names inside a folder or archive; the first folder is the label."""
    suffixes = images.file_suffixes()
    wanted: dict[str, tuple[str, ...]] = {}
    ignored = 0
    for name in names:
        parts = tuple(part for part in PurePosixPath(name).parts if part not in {"/", ".."})
        # Hidden files, and macOS' resource forks in zips, are no pictures.
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        if PurePosixPath(name).suffix.lower() in suffixes:
            wanted[name] = parts
        else:
            ignored += 1
    if not wanted:
        raise SourceError(
            f"{path} holds no images: expected files such as .jpg or .png, flat or in one "
            "sub-folder a label"
        )
    # An archive made of a folder holds that folder.
    if all(len(parts) > 1 and parts[0] == source_name for parts in wanted.values()):
        wanted = {name: parts[1:] for name, parts in wanted.items()}

    def some(positions: Collection[int]) -> Iterator[Item]:
        return read_items({name for number, name in enumerate(wanted) if number in positions})

    def read_items(names: set[str]) -> Iterator[Item]:
        with damage_named(path):
            for name, content in read(names):
                parts = wanted[name]
                relative = os.fsencode("/".join(parts))
                yield Item(
                    id=_id(os.fsencode(source_name) + b"/" + relative),
                    label=_text(os.fsencode(parts[0])) if len(parts) > 1 else None,
                    content=content,
                    metadata={"source": source_name, "path": _text(relative)},
                )

    return Source(str(path), len(wanted), lambda: read_items(set(wanted)), ignored, some)


def _id(path: bytes) -> str:
    """A path as printable ASCII, percent-encoded where need be, cut to the length of an id."""
    encoded = quote(path, safe="/ !#$&'()+,;=@[]{}~^`")
    if len(encoded) <= MAX_ID_LENGTH:
        return encoded
    digest = hashlib.sha256(path).hexdigest()
    return f"{encoded[: MAX_ID_LENGTH - len(digest) - 1]}~{digest}"


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
