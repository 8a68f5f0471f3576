"""The files that images and videos of the index came from, in one folder of the operator's.

Only what a record names is opened, to read, and only what lies in the folder, wherever links lead.
"""

import errno
import mimetypes
import os
import stat
import unicodedata
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers
from starlette.responses import FileResponse, JSONResponse
from starlette.types import Message, Receive, Scope, Send

from image_search.errors import SettingsError
from image_search.moments import video_of
from image_search.values import Metadata
from image_search.videos import file_suffixes
from service import problems

_OTHER_TYPE: Final = "application/octet-stream"
# An SVG is a document that can hold programs.
_DOCUMENTS: Final = {"image/svg+xml"}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-cache",
}
_LINKS: Final = {errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG}


class Originals:
    """The folder of the originals; raises SettingsError where it is none."""

    def __init__(self, root: str) -> None:
        self._root = Path(root).resolve() if root else None
        if self._root is not None and not self._root.is_dir():
            raise SettingsError(f"IMAGE_SEARCH_MEDIA_ROOT={root!r}: there is no such folder")

    @property
    def are_served(self) -> bool:
        """Whether the operator has named a folder."""
        return self._root is not None

    def open(self, id_: str, metadata: Metadata, place: str) -> FileResponse | None:
        """The file of a record, as an answer; None where the folder has none.

        `place` is where the record's source was when it was ingested, or empty.
        """
        if self._root is None:
            return None
        for path in self._candidates(video_of(metadata) or id_, metadata, place):
            # All links are followed first: those that lead out are seen, and others are none.
            real = Path(os.path.realpath(path))
            if real == self._root or not real.is_relative_to(self._root):
                continue
            descriptor = _open_beneath(self._root, real.relative_to(self._root).parts)
            if descriptor is not None:
                return _Original(descriptor, _media_type(real))
        return None

    def _candidates(self, id_: str, metadata: Metadata, place: str) -> Iterator[Path]:
        """Where the file may be: at its source's place, or below the folder by its id."""
        assert self._root is not None  # noqa: S101
        names = [os.fsdecode(unquote_to_bytes(id_))]
        source, path = metadata.get("source"), metadata.get("path")
        if isinstance(source, str) and isinstance(path, str):
            # Of an id that was too long to be a path.
            names.append(f"{source}/{path}")
        for name in names:
            # The other is how old file systems of Apple spell it.
            for spelt in dict.fromkeys((name, unicodedata.normalize("NFD", name))):
                if "\0" in spelt:
                    continue
                first, _, rest = spelt.partition("/")
                if place and rest:
                    yield Path(place) / rest.lstrip("/")
                yield self._root / spelt.lstrip("/")
                # The folder may be the source itself.
                if rest and first == self._root.name:
                    yield self._root / rest.lstrip("/")


class _Original(FileResponse):
    """An open file, which it closes; ranges are Starlette's."""

    def __init__(self, descriptor: int, media_type: str) -> None:
        self._descriptor = descriptor
        super().__init__(
            f"/dev/fd/{descriptor}",
            headers=_HEADERS,
            media_type=media_type,
            stat_result=os.fstat(descriptor),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def start(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] >= HTTPStatus.BAD_REQUEST
            if not refused:
                await send(message)

        try:
            await super().__call__(scope, receive, start)
            if refused:
                await self._refuse(scope, receive, send)
        finally:
            os.close(self._descriptor)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = os.fstat(self._descriptor).st_size
        asked = Headers(scope=scope).get("range", "")
        problem = problems.problem(
            "range_not_satisfiable", f"the file has {size:,} bytes, and no part {asked}"
        )
        headers = {"Content-Range": f"bytes */{size}"}
        await JSONResponse(problem.model_dump(), problem.status, headers, problems.MEDIA_TYPE)(
            scope, receive, send
        )


def _open_beneath(root: Path, parts: tuple[str, ...]) -> int | None:
    """A descriptor of a regular file; None where there is none, or a link was put meanwhile."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as exc:
        if exc.errno in _LINKS:
            return None
        raise
    finally:
        os.close(folder)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    return None


def _media_type(path: Path) -> str:
    """That of an image or video, which a browser shows; all others are only to be saved."""
    guessed = mimetypes.guess_type(path.name)[0] or ""
    if guessed in _DOCUMENTS or not guessed.startswith(("image/", "video/")):
        return "video/mp4" if path.suffix.lower() in file_suffixes() else _OTHER_TYPE
    return guessed
