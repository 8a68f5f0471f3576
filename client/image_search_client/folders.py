"""The images of a folder, and their ids."""

import hashlib
import mimetypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from image_search_client.errors import UnreadableImageError

# What the mimetypes of Python 3.11 do not know.
_MORE: Final = {".avif", ".heic", ".heif", ".jfif", ".webp"}
# What the worker leaves as it is in ids, apart from letters, digits and "_.-~/".
_KEPT: Final = " !#$&'()+,;=@[]{}^`/"


class FolderImage(NamedTuple):
    """An image of a folder: its file, its id in the index, and the folder that it is in."""

    path: Path
    id: str
    label: str | None


def prefix_of(folder: Path) -> str:
    """What ids of a folder's images begin with, as the worker's do: its name, and a slash."""
    return quote(folder.resolve().name, safe=_KEPT) + "/"


def images_of(folder: Path, prefix: str, *, labels: bool) -> tuple[list[FolderImage], int]:
    """The images below a folder, sorted, and how many other files there are.

    Hidden files and folders are passed over. Raises UnreadableImageError when a folder cannot be
    read.
    """
    images, others = [], 0
    try:
        files = list(_files(folder))
    except OSError as exc:
        raise UnreadableImageError.of_file(exc) from exc
    for path in files:
        if not _is_image(path):
            others += 1
            continue
        relative = path.relative_to(folder)
        label = relative.parent.name or None
        id_ = prefix + quote(os.fsencode(relative.as_posix()), safe=_KEPT)
        images.append(FolderImage(path, id_, label if labels else None))
    return images, others


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises UnreadableImageError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise UnreadableImageError.of_file(exc) from exc


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in _MORE:
        return True
    kind = mimetypes.guess_type(path.name)[0] or ""
    return kind.startswith("image/") and kind != "image/svg+xml"
