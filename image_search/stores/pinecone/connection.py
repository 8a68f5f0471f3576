"""Finding, creating and connecting to an index at Pinecone."""

import logging
from contextlib import closing
from typing import NamedTuple, cast

from pinecone import AsyncIndex, Pinecone, RetryConfig, ServerlessSpec
from pinecone.errors import exceptions as errors

from image_search.errors import IndexMismatchError, StoreError
from image_search.settings import Settings
from image_search.stores.pinecone.api_key import api_key
from image_search.stores.pinecone.errors import errors_of_pinecone
from image_search.stores.pinecone.requests import CONCURRENCY, Requests
from image_search.values import DIMENSION, Metric

_log = logging.getLogger(__name__)


class Connection(NamedTuple):
    """A connection to an index, and the metric that Pinecone says it has."""

    requests: Requests
    metric: Metric


def connect(settings: Settings) -> Connection | None:
    """Connect to the index that the settings name; None if there is none.

    Raises IndexMismatchError when its dimension does not fit, StoreError while it is not ready.
    """
    with errors_of_pinecone(), closing(_client(settings)) as client:
        try:
            described = client.describe_index(settings.index)
        except errors.NotFoundError:
            return None
    dimension, metric = described.dimension, described.metric
    if dimension != DIMENSION:
        raise IndexMismatchError(
            f"Pinecone's index {settings.index!r} has {dimension} dimensions, VGG16's embeddings "
            f"have {DIMENSION}: use another index"
        )
    if not described.status.ready or not described.host:
        raise StoreError(f"Pinecone's index {settings.index!r} is not ready yet: try again")
    index = AsyncIndex(
        host=described.host,
        api_key=api_key(),
        timeout=settings.store_timeout,
        connection_pool_maxsize=2 * CONCURRENCY,
    )
    return Connection(Requests(index, settings.store_timeout), cast("Metric", str(metric)))


def create(settings: Settings, metric: Metric) -> None:
    """Create a serverless index, unless another process has just done so."""
    with errors_of_pinecone(), closing(_client(settings)) as client:
        try:
            client.create_index(
                name=settings.index,
                spec=ServerlessSpec(cloud=settings.pinecone_cloud, region=settings.pinecone_region),
                dimension=DIMENSION,
                metric=metric,
            )
        except errors.ConflictError:
            _log.info("another process has just created the index")


def _client(settings: Settings) -> Pinecone:
    return Pinecone(
        api_key=api_key(),
        host=settings.pinecone_host,
        timeout=settings.store_timeout,
        # The time limit holds for the whole call; the caller comes again anyway.
        retry_config=RetryConfig(max_retries=2, max_wait=settings.store_timeout / 4),
    )
