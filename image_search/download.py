"""Download a file: progress, continuation of a broken download, checksum."""

import hashlib
import logging
import time
from pathlib import Path
from typing import Final

import httpx2

from image_search.errors import DownloadError
from image_search.progress import Progress

_log = logging.getLogger(__name__)

_ATTEMPTS: Final = 4
_TIMEOUT: Final = httpx2.Timeout(30.0, connect=10.0)


def download(url: str, path: Path, *, md5: str, retry_delay: float = 1.0) -> Path:
    """Fetch `url` to `path`, unless it is there already, and return `path`, its checksum checked.

    What came before a break stays in a `.part` file beside it and is continued, in this call (after
    `retry_delay` seconds, doubled each time) or in a later one. `md5` is the hex checksum that the
    publisher gives. Raises DownloadError when it is not available, or not the one expected.
    """
    part = path.with_name(path.name + ".part")
    try:
        if path.exists():
            _check(path, md5, "delete it to download it again")
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_ATTEMPTS):
            try:
                _fetch(url, part)
                break
            except httpx2.TransportError as exc:
                # With nothing received there is no connection to this server: do not insist.
                if attempt == _ATTEMPTS - 1 or not part.exists():
                    raise
                _log.warning("the download of %s was interrupted (%s); resuming", path.name, exc)
                time.sleep(retry_delay * 2**attempt)
        try:
            _check(part, md5, f"what {url} sent was deleted, try again later")
        except DownloadError:
            part.unlink()
            raise
        return part.replace(path)
    except ImportError as exc:
        raise DownloadError(
            "the environment names a SOCKS proxy (ALL_PROXY, HTTP_PROXY or HTTPS_PROXY): "
            "install httpx2[socks], or name an HTTP proxy"
        ) from exc
    except httpx2.HTTPStatusError as exc:
        raise DownloadError(f"{url} answered {exc.response.status_code}") from exc
    except httpx2.HTTPError as exc:
        raise DownloadError(
            f"{url} could not be downloaded: {str(exc) or type(exc).__name__}"
        ) from exc
    except OSError as exc:
        raise DownloadError(
            f"{path.name} could not be written: {exc.strerror}", details=path
        ) from exc


def _check(path: Path, md5: str, advice: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise DownloadError(
            f"{path.name} has the checksum {found}, not {md5}: {advice}", details=path
        )


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    # The checksum is that of the file as it is, not of a compressed transfer.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with httpx2.stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT
    ) as response:
        if have and response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE:
            return  # nothing is left to fetch; the checksum decides
        response.raise_for_status()
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:
            have = 0
        size = response.headers.get("Content-Length")
        total = have + int(size) if size else None
        with (
            Progress(url.rsplit("/", 1)[-1], total, "B", done=have) as progress,
            part.open("ab" if have else "wb") as file,
        ):
            for chunk in response.iter_raw():
                file.write(chunk)
                progress.update(len(chunk))
