"""What LanceDB and object storage raise, as errors of the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from obstore.exceptions import BaseError

from image_search.errors import StoreError

# What object storage and its clients say, in lower case, and what to do.
_REASONS: Final = (
    (
        ("nosuchbucket", "' not found"),
        "its bucket does not exist: create it, or set IMAGE_SEARCH_DATA_DIR to another",
    ),
    (
        ("requesttimetooskewed",),
        "the clock of this machine is wrong: set it",
    ),
    (
        # The last is where a machine at Amazon would be asked for the keys of its role.
        (
            *("accessdenied", "invalidaccesskeyid", "signaturedoesnotmatch", "access_denied"),
            *("403 forbidden", "status: 403", "401 unauthorized", "status: 401"),
            *("credential", "169.254.169.254"),
        ),
        "its bucket refuses the keys, or there are none: check AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, and that they may list, read, write and delete there",
    ),
    (
        ("redirect", "authorizationheadermalformed", "301 moved"),
        "its bucket is in another region: set AWS_REGION",
    ),
    (
        ("error sending request", "network_connection", "timed out"),
        "its object storage is not reachable: check IMAGE_SEARCH_S3_ENDPOINT and the network, and "
        "try again",
    ),
    (
        ("slowdown", "serviceunavailable", "internalerror", "status: 5", "status code: 5"),
        "its object storage is overloaded or broken: try again later",
    ),
)


@contextmanager
def errors_of_the_bucket(place: object) -> Iterator[None]:
    """Raise StoreError, which says what to do, for what goes wrong in object storage."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, BaseError) as exc:
        text = str(exc).lower()
        reason = next(
            (reason for signs, reason in _REASONS if any(sign in text for sign in signs)),
            "an object of it is missing or damaged",
        )
        details = f"{place}: {str(exc).splitlines()[0]}" if str(exc) else place
        raise StoreError(f"the index failed: {reason}", details=details) from exc
