"""The Pinecone store, over Pinecone's own SDK."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from image_search.errors import IndexMismatchError, IndexNotFoundError, StoreError
from image_search.manifest import Manifest
from image_search.program import program
from image_search.recipe import Recipe
from image_search.settings import Settings
from image_search.stores.pinecone.connection import Connection, connect, create
from image_search.stores.pinecone.facts import Facts
from image_search.stores.pinecone.index import PineconeIndex
from image_search.stores.pinecone.requests import Requests
from image_search.stores.pinecone.rights import explain_rights

# No namespace of the settings has a dot.
_SCRATCH: Final = "scratch.doctor"


def open_index(settings: Settings) -> PineconeIndex:
    """Open the index; raises IndexNotFoundError when there is none, or none with a manifest."""
    requests, metric = _connected(settings)
    with _closed_on_error(requests):
        facts = Facts(requests, settings.index, settings.namespace)
        known = facts.read()
        if known is None:
            raise IndexNotFoundError(
                f"Pinecone's index {settings.index!r} has no manifest for the namespace "
                f"{settings.namespace!r} yet: the first ingest, "
                f"{program('worker')} ingest SOURCE, writes it"
            )
        manifest, calibration = known
        if metric is not None:
            manifest.require_metric(metric)
        return PineconeIndex(requests, facts, settings.namespace, manifest, calibration)


def _connected(settings: Settings) -> Connection:
    connection = connect(settings)
    if connection is None:
        raise IndexNotFoundError(
            f"there is no index {settings.index!r} at Pinecone yet: ingest images first, "
            f"{program('worker')} ingest SOURCE"
        )
    return connection


@contextmanager
def scratch_index(settings: Settings, manifest: Manifest) -> Iterator[PineconeIndex]:
    """A namespace of its own in the index, without a manifest; a namespace ends when it is empty.

    Raises IndexNotFoundError before the first ingest, which creates the index.
    """
    requests, _ = _connected(settings)
    facts = Facts(requests, settings.index, _SCRATCH)
    with PineconeIndex(requests, facts, _SCRATCH, manifest, None) as index:
        yield index


def rights(settings: Settings) -> str:
    """Say what the key may do; raises StoreError with what is missing and what to do."""
    return explain_rights(settings, _SCRATCH)


def create_index(
    settings: Settings, manifest: Manifest, recipe: Recipe | None = None
) -> PineconeIndex:
    """Create a serverless index, or adopt the one there is; without a manifest it gets this one.

    Raises IndexMismatchError when dimension or metric of an existing index do not fit.
    """
    connection = connect(settings)
    if connection is None:
        create(settings, manifest.metric)
        connection = connect(settings)
    if connection is None:
        raise StoreError(f"Pinecone created the index {settings.index!r} but does not show it")
    requests, metric = connection
    with _closed_on_error(requests):
        facts = Facts(requests, settings.index, settings.namespace)
        known = facts.read()
        if known is None:
            if metric not in {None, manifest.metric}:
                raise IndexMismatchError(
                    f"Pinecone's index {settings.index!r} has the metric {metric}, but "
                    f"{manifest.metric} was requested: use the index's metric, or another index"
                )
            # First, so that no manifest is seen without its recipe.
            if recipe is not None:
                facts.write_recipe(recipe)
            facts.write_manifest(manifest)
            known = manifest, None
        stored, calibration = known
        if metric is not None:
            stored.require_metric(metric)
        return PineconeIndex(requests, facts, settings.namespace, stored, calibration)


@contextmanager
def _closed_on_error(requests: Requests) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(requests.close)
        yield
        stack.pop_all()
