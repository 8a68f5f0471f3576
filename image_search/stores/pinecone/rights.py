"""What the API key may do, found by requests that change nothing."""

from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from functools import partial
from typing import Any, Final

from pinecone.errors import exceptions as errors

from image_search.errors import StoreError
from image_search.settings import Settings, variable
from image_search.stores.pinecone.api_key import API_KEY_VARIABLE
from image_search.stores.pinecone.connection import look_up, may_not_look_up, requests_to
from image_search.stores.pinecone.errors import errors_of_pinecone, shown
from image_search.stores.pinecone.requests import Requests

_NO_RECORD: Final = "no-such-record"


def explain_rights(settings: Settings, namespace: str) -> str:
    """Say what the key may do: look indexes up, read and write in this namespace.

    Permissions are named as in the console:
    https://docs.pinecone.io/guides/production/security-overview#api-keys
    Raises StoreError with what is missing, whether that matters, and what to do.
    """
    host = settings.pinecone_index_host
    looks_up = f"not needed with {variable('pinecone_index_host')}" if host else "yes"
    if not host:
        with errors_of_pinecone():
            try:
                described = look_up(settings)
            except errors.ForbiddenError as exc:
                raise StoreError(
                    f"{_line('no', 'not tried', 'not tried')}. It {may_not_look_up(settings)}"
                ) from exc
        if described is None or not described.host:
            return f"{_line(looks_up, 'not tried', 'not tried')}, as there is no index yet"
        host = described.host
    with closing(requests_to(settings, host)) as requests:
        read, write = _refused_to_read(requests, namespace), _refused_to_write(requests, namespace)
    line = _line(looks_up, "no" if read else "yes", "no" if write else "yes")
    if read:
        raise StoreError(
            f"{line}. Nothing works without reading: give the key in {API_KEY_VARIABLE} the data "
            "plane's permission ReadWrite, or ReadOnly for a service that only searches",
            details=read,
        )
    if write:
        raise StoreError(
            f"{line}. That is enough for a service that only searches; ingests, PUT and DELETE "
            f"need more: give the key in {API_KEY_VARIABLE} the data plane's permission ReadWrite",
            details=write,
        )
    return line


def _line(looks_up: str, read: str, write: str) -> str:
    return f"look indexes up: {looks_up}; read: {read}; write: {write}"


def _refused_to_read(requests: Requests, namespace: str) -> str:
    return _refused(requests, partial(requests.fetch, [_NO_RECORD], namespace))


def _refused_to_write(requests: Requests, namespace: str) -> str:
    async def delete() -> None:
        # So it answers in a namespace that nothing was written to yet.
        with suppress(errors.NotFoundError):
            await requests.index.delete(ids=[_NO_RECORD], namespace=namespace)

    return _refused(requests, partial(requests.send, "delete", namespace, delete))


def _refused(requests: Requests, request: Callable[[], Awaitable[Any]]) -> str:
    """How Pinecone said that the key may not do this; empty if it may."""

    async def try_it() -> str:
        try:
            await request()
        except errors.ForbiddenError as exc:
            return shown(exc) or "403"
        return ""

    return requests.run(try_it)
