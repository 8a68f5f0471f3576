"""Images at https:// and http:// addresses, a few at once."""

import hashlib
import time
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import BinaryIO, Final, TypeVar, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx2

from image_search.errors import ImageError, SourceError
from image_search.progress import Progress
from worker.sources.names import printable
from worker.sources.source import damage_named

T = TypeVar("T")

AT_ONCE: Final = 8
_ATTEMPTS: Final = 4
_FIRST_DELAY: Final = 0.5
_SECONDS: Final = 30.0
_MAX_BYTES: Final = 256 * 1024 * 1024
_MAX_VIDEO_BYTES: Final = 64 * 1024 * 1024 * 1024
# In the query of an address that lets whoever has it in.
_SECRETS: Final = ("signature", "token", "key", "sig=", "password")
_NO_SUCH_RANGE: Final = httpx2.codes.RANGE_NOT_SATISFIABLE
_TEMPORARY: Final = {408, 425, 429, 500, 502, 503, 504}


def is_remote(path: str) -> bool:
    """Whether it is an address, and no path."""
    return path.lower().startswith(("https://", "http://"))


def without_secrets(url: str) -> str:
    """The address without user, password and signature, to be shown and kept."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    is_signed = any(word in parts.query.lower() for word in _SECRETS)
    return urlunsplit((parts.scheme, host, parts.path, "" if is_signed else parts.query, ""))


def download_source(url: str, downloads: Path) -> Path:
    """The file at an address; one that has not changed since the last time is not sent again.

    A download that broke off goes on in the next run. Raises SourceError.
    """
    shown = printable(without_secrets(url))
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if name in {"", ".."}:
        raise SourceError(f"{shown} names no file: give the address of one")
    folder = downloads / hashlib.sha256(without_secrets(url).encode()).hexdigest()[:16]
    path, stamp, part = folder / name, folder / f".{name}.etag", folder / f".{name}.part"
    known = ""
    with damage_named(folder), closing(Remote()) as remote:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and stamp.exists():
            known = stamp.read_text()
        etag = remote.save(url, part, known)
        if etag is not None:
            part.replace(path)
            stamp.write_text(etag)
    return path


class Remote:
    """Fetches images over connections that are kept; threads may share it."""

    def __init__(self) -> None:
        self._client = httpx2.Client(timeout=_SECONDS, follow_redirects=True)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def fetch(self, url: str) -> bytes | ImageError:
        """The content, or why there is none; what may pass is tried again, each time later."""
        return self._get(url, _read)

    def fetch_file(self, url: str) -> BinaryIO:
        """The content as a temporary file; raises ImageError where there is none."""
        found = self._get(url, _copied)
        if isinstance(found, ImageError):
            raise found
        return found

    def save(self, url: str, path: Path, known: str) -> str | None:
        """Write the content to a file, and return its ETag or nothing; None if that is `known`.

        What came before a break stays, and only the rest is asked for, in this call or a later one,
        if the server tells versions apart. Raises SourceError.
        """
        begun = path.with_name(f"{path.name}.etag")

        def headers() -> dict[str, str]:
            # Ranges are those of the file as it is, not of a compressed transfer.
            asked = {"Accept-Encoding": "identity"}
            if known:
                asked["If-None-Match"] = known
            if path.exists() and begun.exists():
                asked |= {"Range": f"bytes={path.stat().st_size}-", "If-Range": begun.read_text()}
            return asked

        def write(response: httpx2.Response) -> str | None:
            if response.status_code == httpx2.codes.NOT_MODIFIED:
                return None
            etag = str(response.headers.get("etag", ""))
            done = 0
            if response.status_code == _NO_SUCH_RANGE:
                begun.unlink()
                raise httpx2.RemoteProtocolError("the file is shorter than what came before")
            if response.status_code == httpx2.codes.OK:
                path.unlink(missing_ok=True)
                begun.unlink(missing_ok=True)
                # A weak one is no promise of the same bytes: RFC 9110, section 13.1.5.
                if etag and not etag.startswith("W/"):
                    begun.write_text(etag)
            else:
                done = path.stat().st_size
                if not response.headers.get("content-range", "").startswith(f"bytes {done}-"):
                    begun.unlink()
                    raise httpx2.RemoteProtocolError("it sent a different part than was requested")
            length = response.headers.get("content-length")
            total = done + int(length) if length else None
            with (
                Progress(f"downloading {printable(path.name)}", total, "B", done=done) as progress,
                path.open("ab") as file,
            ):
                for piece in response.iter_bytes():
                    file.write(piece)
                    progress.update(len(piece))
            begun.unlink(missing_ok=True)
            return etag

        found = self._get(url, write, headers, {httpx2.codes.NOT_MODIFIED, _NO_SUCH_RANGE})
        if isinstance(found, ImageError):
            raise SourceError(f"{printable(without_secrets(url))}: {found}")
        return found

    def _get(
        self,
        url: str,
        take: Callable[[httpx2.Response], T],
        headers: Callable[[], dict[str, str]] = dict,
        also_taken: Collection[int] = (),
    ) -> T | ImageError:
        reason = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_DELAY * 2 ** (attempt - 1))
            try:
                with self._client.stream("GET", url, headers=headers()) as response:
                    if response.is_success or response.status_code in also_taken:
                        return take(response)
                    reason = f"the server answers with status {response.status_code}"
                    if response.status_code not in _TEMPORARY:
                        break
            except httpx2.TransportError as exc:
                reason = f"the server cannot be reached: {exc}"
            except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
                reason = str(exc)
                break
        return ImageError(f"it cannot be fetched: {reason}")


def _copied(response: httpx2.Response) -> BinaryIO | ImageError:
    file = cast("BinaryIO", TemporaryFile())  # noqa: SIM115
    try:
        for piece in response.iter_bytes():
            file.write(piece)
            if file.tell() > _MAX_VIDEO_BYTES:
                file.close()
                return ImageError(f"the file has more than {_MAX_VIDEO_BYTES:,} bytes")
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _read(response: httpx2.Response) -> bytes | ImageError:
    content = bytearray()
    for piece in response.iter_bytes():
        content += piece
        if len(content) > _MAX_BYTES:
            return ImageError(f"the file has more than {_MAX_BYTES:,} bytes")
    return bytes(content)
