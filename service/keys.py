"""API keys: who may write, and, where the operator wants it, who may read."""

import hmac
from typing import Final

from starlette.requests import Request

from image_search.errors import SettingsError
from image_search.settings import Settings
from service.problems import ProblemError

HEADER: Final = "X-API-Key"
_READING: Final = {"GET", "HEAD", "POST"}  # POST asks, PUT and DELETE write


class Keys:
    """The keys of the settings; raises SettingsError for keys that cannot be sent in a header."""

    def __init__(self, settings: Settings) -> None:
        text = settings.api_keys.get_secret_value()
        self._keys = [key.strip().encode() for key in text.split(",") if key.strip()]
        self.reading_needs_key = settings.read_needs_key
        if not all(key.isascii() and key.decode().isprintable() for key in self._keys):
            raise SettingsError("IMAGE_SEARCH_API_KEYS: keys are printable ASCII characters")
        if self.reading_needs_key and not self._keys:
            raise SettingsError(
                "IMAGE_SEARCH_READ_NEEDS_KEY is set, but there is no key: set IMAGE_SEARCH_API_KEYS"
            )

    def check(self, request: Request) -> None:
        """Raise ProblemError unless the request may be answered."""
        reading = request.method in _READING
        if reading and not self.reading_needs_key:
            return
        if not self._keys:
            raise ProblemError("writing_disabled")
        given = request.headers.get(HEADER, "").strip(" \t").encode("latin-1")
        # Every key is compared, in constant time: the time tells nothing about any of them.
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        if not any(matches):
            raise ProblemError(
                "unauthorized", headers={"WWW-Authenticate": f'ApiKey in="{HEADER}"'}
            )
