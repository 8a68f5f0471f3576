"""Images at https:// and http:// addresses, a few at once."""

import time
from typing import Final

import httpx2

from image_search.errors import ImageError

AT_ONCE: Final = 8
_ATTEMPTS: Final = 4
_FIRST_DELAY: Final = 0.5
_SECONDS: Final = 30.0
_MAX_BYTES: Final = 256 * 1024 * 1024
_TEMPORARY: Final = {408, 425, 429, 500, 502, 503, 504}


def is_remote(path: str) -> bool:
    """Whether it is an address, and no path."""
    return path.lower().startswith(("https://", "http://"))


class Remote:
    """Fetches images over connections that are kept; threads may share it."""

    def __init__(self) -> None:
        self._client = httpx2.Client(timeout=_SECONDS, follow_redirects=True)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def fetch(self, url: str) -> bytes | ImageError:
        """The content, or why there is none; what may pass is tried again, each time later."""
        reason = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_DELAY * 2 ** (attempt - 1))
            try:
                with self._client.stream("GET", url) as response:
                    if response.is_success:
                        return _read(response)
                    reason = f"the server answers with status {response.status_code}"
                    if response.status_code not in _TEMPORARY:
                        break
            except httpx2.TransportError as exc:
                reason = f"the server cannot be reached: {exc}"
            except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
                reason = str(exc)
                break
        return ImageError(f"it cannot be fetched: {reason}")


def _read(response: httpx2.Response) -> bytes | ImageError:
    content = bytearray()
    for piece in response.iter_bytes():
        content += piece
        if len(content) > _MAX_BYTES:
            return ImageError(f"the file has more than {_MAX_BYTES:,} bytes")
    return bytes(content)
