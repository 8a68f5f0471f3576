"""What is sent again, and when. All operations of the service are idempotent."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from image_search_client.errors import (
    ImageSearchError,
    RequestTimeoutError,
    UnavailableError,
    UnreachableError,
)

_FIRST_DELAY: Final = 0.25
_LONGEST_DELAY: Final = 8.0
# Who is asked to wait longer gets the error at once, and can decide for himself.
_LONGEST_RETRY_AFTER: Final = 30.0
# Conditions that only an operator ends.
_LASTING: Final = {"misconfigured", "model_mismatch", "no_index"}


def delay(error: ImageSearchError, attempt: int, retry_after: str | None) -> float | None:
    """Seconds to wait after the failed `attempt` (from 0); None if another one makes no sense.

    As long as `retry_after`, the header's value, says; else exponentially longer. A random part
    keeps clients that failed together from coming back together. What timed out is not sent again:
    the caller has waited as long as he wanted to.
    """
    if isinstance(error, RequestTimeoutError) or error.code in _LASTING:
        return None
    if not isinstance(error, UnreachableError | UnavailableError):
        return None
    backoff = min(_FIRST_DELAY * 2.0**attempt, _LONGEST_DELAY)
    wanted = _seconds(retry_after)
    if wanted is None:
        return backoff * random.uniform(0.5, 1)
    if wanted > _LONGEST_RETRY_AFTER:
        return None
    return wanted + backoff * random.uniform(0, 1)


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds (RFC 9110, 10.2.3: a number of seconds or a date)."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
