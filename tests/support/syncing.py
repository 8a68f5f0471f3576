"""What the worker's ingest does with --prune 100, with a model that needs no network.

As a program it dies in the middle: python -m tests.support.syncing SOURCE CALLS [ENDPOINT]
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from image_search.errors import IndexNotFoundError
from image_search.index import Record, VectorIndex
from image_search.manifest import Manifest
from image_search.settings import Settings, load_settings
from image_search.stores import create_index, open_index
from tests.support.indexes import FakeEmbedder
from worker import ingest as ingestion
from worker.ingest import ingest
from worker.origin import named_in, remember
from worker.prune import SeenSource, prune
from worker.sources import open_source


def sync(path: str, settings: Settings) -> None:
    """Ingest the source, and take out what it no longer has."""
    embedder = FakeEmbedder()
    source = open_source(path, data_dir=settings.local_dir, s3_endpoint=settings.s3_endpoint)
    with suppress(IndexNotFoundError), open_index(settings) as index:
        source = named_in(index, source)
    manifest = Manifest.new(embedder.model, "cosine", settings.namespace)
    with create_index(settings, manifest) as index:
        remember(index, source)
        seen = SeenSource(source)
        seen.see_all()
        ingest(seen.source, index, embedder, settings)
        prune(index, seen, 100)


def die_after(calls: int) -> None:
    """End the process, as kill -9 does, at a call of `upsert` or `delete`."""
    left = calls

    def dying(method: Any) -> Any:
        def call(self: VectorIndex, records: Sequence[Record], **options: bool) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            method(self, records, **options)

        return call

    for name in ("upsert", "delete"):
        setattr(VectorIndex, name, dying(getattr(VectorIndex, name)))


if __name__ == "__main__":
    ingestion.RECORDS_PER_COMMIT = 3  # type: ignore[misc]
    die_after(int(sys.argv[2]))
    sync(sys.argv[1], load_settings(batch_size=3))
