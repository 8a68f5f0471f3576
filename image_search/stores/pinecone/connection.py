"""Finding, creating and connecting to an index at Pinecone."""

import logging
from contextlib import closing
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pinecone import AsyncIndex, IndexModel, Pinecone, RetryConfig, ServerlessSpec
from pinecone.errors import exceptions as errors

from image_search.errors import IndexMismatchError, SettingsError, StoreError
from image_search.settings import Settings, variable
from image_search.stores.pinecone.api_key import api_key
from image_search.stores.pinecone.errors import errors_of_pinecone
from image_search.stores.pinecone.requests import CONCURRENCY, Requests
from image_search.values import DIMENSION, Metric

_log = logging.getLogger(__name__)

# The field that indexes have which serve vectors, and not documents with a schema of their own.
_VECTOR_FIELD: Final = "_values"
# Serverless indexes are ready within a minute, mostly.
_CREATION_SECONDS: Final = 300


class Connection(NamedTuple):
    """A connection to an index, and the metric that Pinecone says it has; None if it does not."""

    requests: Requests
    metric: Metric | None


def connect(settings: Settings) -> Connection | None:
    """Connect to the index that the settings name; None if there is none.

    Raises IndexMismatchError when it does not fit, StoreError while it is not ready.
    """
    if settings.pinecone_index_host:
        return _connect_directly(settings)
    with errors_of_pinecone():
        try:
            described = look_up(settings)
        except errors.ForbiddenError as exc:
            raise StoreError(f"Pinecone's key {may_not_look_up(settings)}") from exc
    if described is None:
        return None
    field = described.schema.fields.get(_VECTOR_FIELD)
    if field is None:
        raise IndexMismatchError(
            f"Pinecone's index {settings.index!r} is for documents, with a schema of its own: name "
            f"another one in {variable('index')}, which the first ingest creates"
        )
    dimension, metric = getattr(field, "dimension", None), getattr(field, "metric", None)
    _require_dimension(settings, dimension)
    if not described.status.ready or not described.host:
        raise StoreError(f"Pinecone's index {settings.index!r} is not ready yet: try again")
    return Connection(requests_to(settings, described.host), cast("Metric", str(metric)))


def look_up(settings: Settings) -> IndexModel | None:
    """What Pinecone's control plane says of the index that the settings name; None without one.

    Raises what the SDK raises: ForbiddenError where the key may not ask.
    """
    with closing(_client(settings)) as client:
        try:
            return client.describe_index(settings.index)
        except errors.NotFoundError:
            return None


def may_not_look_up(settings: Settings) -> str:
    """What to do where the key may not."""
    return (
        f"may not look the index {settings.index!r} up (403): give it the control plane's "
        f"permission ReadOnly, or set {variable('pinecone_index_host')} to the index's host, which "
        "Pinecone's console shows"
    )


def _connect_directly(settings: Settings) -> Connection:
    """To the host that the settings name: all that is known is what its statistics tell."""
    requests = requests_to(settings, settings.pinecone_index_host)
    try:
        stats = requests.run(
            lambda: requests.send("stats", "", requests.index.describe_index_stats)
        )
        _require_dimension(settings, stats.dimension)
    except BaseException:
        requests.close()
        raise
    return Connection(requests, cast("Metric | None", stats.metric))


def _require_dimension(settings: Settings, dimension: int | None) -> None:
    if dimension != DIMENSION:
        raise IndexMismatchError(
            f"Pinecone's index {settings.index!r} has {dimension} dimensions, VGG16's embeddings "
            f"have {DIMENSION}: use another index"
        )


def create(settings: Settings, metric: Metric) -> None:
    """Create a serverless index, unless another process has just done so.

    Raises StoreError when it is not ready within five minutes.
    """
    with errors_of_pinecone(), closing(_client(settings)) as client:
        try:
            client.create_index(
                name=settings.index,
                spec=ServerlessSpec(cloud=settings.pinecone_cloud, region=settings.pinecone_region),
                dimension=DIMENSION,
                metric=metric,
                timeout=_CREATION_SECONDS,
            )
        except errors.ConflictError:
            _log.info("another process has just created the index")
        except errors.PineconeTimeoutError as exc:
            raise StoreError(
                f"Pinecone's index {settings.index!r} is not ready after {_CREATION_SECONDS} s. "
                "Pinecone may still be making it: try again in some minutes"
            ) from exc


def _client(settings: Settings) -> Pinecone:
    return Pinecone(
        api_key=api_key(),
        host=settings.pinecone_host,
        timeout=settings.store_timeout,
        proxy_url=_proxy_for(settings.pinecone_host),
        # The time limit holds for the whole call; the caller comes again anyway.
        retry_config=RetryConfig(max_retries=2, max_wait=settings.store_timeout / 4),
    )


def requests_to(settings: Settings, host: str) -> Requests:
    """Requests to the index at this host; nothing is sent yet."""
    index = AsyncIndex(
        host=host,
        api_key=api_key(),
        timeout=settings.store_timeout,
        connection_pool_maxsize=2 * CONCURRENCY,
        proxy_url=_proxy_for(host),
    )
    # The SDK has no public way to either. Tests fail where a version of it changes them.
    client = index._http._ensure_client()
    client.event_hooks = {"request": [_spell_spaces]}
    client._transport._config = RetryConfig(max_retries=0)  # type: ignore[attr-defined]
    return Requests(index, settings.store_timeout)


async def _spell_spaces(request: Any) -> None:
    """The SDK writes a space in an address as `+`, which Pinecone takes for a plus.

    https://github.com/pinecone-io/python-sdk/pull/372 mended that in an older SDK. A plus of an id
    is `%2B` here.
    """
    query = request.url.query
    if b"+" in query:
        request.url = request.url.copy_with(query=query.replace(b"+", b"%20"))


def _proxy_for(host: str) -> str | None:
    """The proxy that the environment names for this host, which the SDK does not look for."""
    address = urlsplit(host if "//" in host else f"https://{host}")
    if proxy_bypass(address.netloc):
        return None
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy:
        return None
    if "//" not in proxy:
        return f"http://{proxy}"
    if urlsplit(proxy).scheme not in {"http", "https"}:
        raise SettingsError(
            f"the proxy for {address.hostname} is of the kind {urlsplit(proxy).scheme}, and the "
            "Pinecone store knows http and https: set HTTPS_PROXY, or NO_PROXY to go without"
        )
    return proxy
