"""What Pinecone's SDK raises, as errors of the store, without the API key."""

from collections.abc import Iterator
from contextlib import contextmanager

from pinecone.errors import exceptions as errors

from image_search.errors import StoreError
from image_search.stores.pinecone.api_key import API_KEY_VARIABLE, api_key


@contextmanager
def errors_of_pinecone(seconds: float | None = None) -> Iterator[None]:
    """Raise StoreError for what goes wrong; `seconds` is the limit that the call had."""
    try:
        yield
    except errors.UnauthorizedError as exc:
        raise StoreError(
            f"Pinecone does not know the API key (401): check {API_KEY_VARIABLE}"
        ) from exc
    except errors.ForbiddenError as exc:
        # A quota and deletion protection are refused in the same way.
        message = shown(exc)
        of_key = "key" in message.lower() or "permission" in message.lower()
        hint = f": check the permissions of the key in {API_KEY_VARIABLE}" if of_key else ""
        raise StoreError(f"Pinecone refused this (403): {message}{hint}") from exc
    except (errors.PineconeConnectionError, errors.PineconeTimeoutError, TimeoutError) as exc:
        limit = f" within {seconds:g} s" if seconds else ""
        raise StoreError(f"Pinecone cannot be reached, or did not answer{limit}") from exc
    except errors.ApiError as exc:
        raise StoreError(f"Pinecone answered {exc.status_code}: {shown(exc)}") from exc
    except errors.PineconeError as exc:
        raise StoreError(f"Pinecone's SDK failed: {shown(exc)}") from exc


def shown(error: Exception) -> str:
    """What the error says, in a line, without the key."""
    return str(error).splitlines()[0].replace(api_key(), "***") if str(error) else ""
