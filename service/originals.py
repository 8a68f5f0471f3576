"""The files that images and videos of the index came from, in one folder of the operator's.

Only what a record names is opened, to read, and only what lies in the folder, wherever links lead.
"""

import errno
import mimetypes
import os
import stat
import threading
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers
from starlette.responses import FileResponse, JSONResponse
from starlette.types import Message, Receive, Scope, Send

from image_search.errors import SettingsError
from image_search.index import VectorIndex
from image_search.moments import frame_prefix, video_of
from image_search.values import Metadata, Store
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
# A player asks for one part of a video after another, and at Pinecone each look into the index is
# three requests that cost, whose answers may be as old anyway.
_SECONDS_REMEMBERED: Final[dict[Store, float]] = {"embedded": 0.0, "pinecone": 10.0}
_MOST_REMEMBERED: Final = 1_000
_LINKS: Final = {errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG}


@dataclass(frozen=True)
class Origin:
    """What a record tells of the file that it came from.

    `place` is where the record's source was when it was ingested, or empty.
    """

    id: str
    metadata: Metadata
    place: str


class Origins:
    """Where images came from, as an index tells it, which is remembered for a while."""

    def __init__(self, store: Store) -> None:
        self._seconds = _SECONDS_REMEMBERED[store]
        self._lock = threading.Lock()
        # In the order of their times, in which they end.
        self._known: dict[tuple[VectorIndex, str], tuple[float, Origin]] = {}

    def find(self, index: VectorIndex, id_: str) -> Origin | None:
        """That of an image, or of a video of which the index has frames. Raises StoreError."""
        key = (index, id_)
        now = time.monotonic()
        with self._lock:
            until, known = self._known.get(key, (now, None))
        if known is not None and now < until:
            return known
        found = _find(index, id_)
        if found is not None and self._seconds:
            with self._lock:
                self._known.pop(key, None)
                self._known[key] = now + self._seconds, found
                if len(self._known) > _MOST_REMEMBERED:
                    del self._known[next(iter(self._known))]
        return found

    def forget(self) -> None:
        """Forget all, as the index has changed."""
        with self._lock:
            self._known.clear()


def _find(index: VectorIndex, id_: str) -> Origin | None:
    found = index.fetch([id_], thumbnails=False).get(id_)
    if found is None:
        frames = index.list_ids(prefix=frame_prefix(id_), limit=1).ids
        found = next(iter(index.fetch(frames, thumbnails=False).values()), None)
    if found is None:
        return None
    source = found.metadata.get("source")
    known = index.load_sources().get(source) if isinstance(source, str) else None
    return Origin(found.id, found.metadata, known.place if known else "")


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

    def open(self, origin: Origin) -> FileResponse | None:
        """The file that a record came from, as an answer; None where the folder has none."""
        if self._root is None:
            return None
        id_ = video_of(origin.metadata) or origin.id
        for path in self._candidates(id_, origin.metadata, origin.place):
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
