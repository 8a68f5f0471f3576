"""The API key, which the environment gives and nothing shows."""

import os
from typing import Final

from image_search.errors import SettingsError

API_KEY_VARIABLE: Final = "PINECONE_API_KEY"


def api_key() -> str:
    """The key; raises SettingsError if there is none."""
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    if not key:
        raise SettingsError(f"{API_KEY_VARIABLE} is not set: Pinecone needs an API key")
    return key
