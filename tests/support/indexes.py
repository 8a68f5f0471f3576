"""Indexes of either store, filled with a model that needs no network, and compared."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import pytest

from image_search.embedding import Embedder
from image_search.errors import IndexNotFoundError
from image_search.index import Record, VectorIndex
from image_search.manifest import Manifest, ModelSpec
from image_search.sample import TEXTURES
from image_search.settings import Settings
from image_search.stores import create_index, open_index
from image_search.stores.pinecone import requests
from image_search.values import DIMENSION, Embeddings, Features, Pixels
from tests.support.images import KINDS, PER_KIND, drawn
from tests.support.object_storage import s3_emulator
from tests.support.pinecone import API_KEY, Fault, PineconeEmulator
from worker.ingest import ingest
from worker.sources import Item, Source

MODEL: Final = ModelSpec(
    weights="fake", fingerprint="0" * 16, input_size=32, preprocessing=1, precision="float32"
)


class FakeEmbedder(Embedder):
    """Deterministic embeddings without a network: random numbers seeded by the pixels."""

    def __init__(self) -> None:
        self.model = MODEL
        self.embedded = 0

    def embed(self, batch: Sequence[Pixels] | Pixels) -> Embeddings:
        return self.embed_with_textures(batch)[0]

    def embed_with_textures(self, batch: Sequence[Pixels] | Pixels) -> tuple[Embeddings, Features]:
        self.embedded += len(batch)
        seeds = [int(hashlib.sha256(image.tobytes()).hexdigest(), 16) for image in batch]
        rows = np.array(
            [np.random.default_rng(seed).random(DIMENSION + TEXTURES) for seed in seeds], np.float32
        ).reshape(-1, DIMENSION + TEXTURES)
        return rows[:, :DIMENSION], rows[:, DIMENSION:]


def serve_fakes(
    patch: pytest.MonkeyPatch, make: Callable[..., Embedder] = lambda *_: FakeEmbedder()
) -> None:
    """Let services make their embedders so."""
    patch.setattr(Embedder, "load", make)


# The embedded store, with all but a few rows in snapshots; and without a copy in memory.
IN_SNAPSHOTS: Final = "embedded-in-snapshots"
ON_DISK: Final = "embedded-on-disk"
# The embedded store in a bucket of a server on loopback.
IN_A_BUCKET: Final = "embedded-in-a-bucket"
# Pinecone with reads that lag, and with a tenth of all requests to the index failing.
STRAINED: Final = "pinecone-strained"
_PASSING_FAULTS: Final = (
    *(Fault(status) for status in (401, 404, 409, 429, 500, 503)),
    Fault(429, retry_after=0.05),
    Fault(cut="before"),
    Fault(cut="after"),
    Fault(cut="middle"),
    Fault(keep=1),
    Fault(body=b"<html>"),
)


@contextmanager
def use_store(name: str, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Settings are those of this store: a folder, a bucket, or an emulator of Pinecone.

    On the strained one, whoever writes waits until it is seen. PINECONE_LAG are the seconds.
    """
    if name in {"embedded", IN_SNAPSHOTS, ON_DISK}:
        patch.setenv("IMAGE_SEARCH_STORE", "embedded")
        if name == ON_DISK:
            patch.setenv("IMAGE_SEARCH_INDEX_MEMORY", "0")
        if name == IN_SNAPSHOTS:
            snapshots_after_writes(patch)
        yield "embedded"
        return
    if name == IN_A_BUCKET:
        with in_a_bucket(patch):
            yield "embedded"
        return
    with PineconeEmulator() as emulator:
        patch.setenv("IMAGE_SEARCH_STORE", "pinecone")
        patch.setenv("IMAGE_SEARCH_PINECONE_HOST", emulator.host)
        patch.setenv("PINECONE_API_KEY", API_KEY)
        # Nobody waits here for what test_pinecone_store.py tests.
        emulator.rate_limits = dict.fromkeys(emulator.rate_limits, 10_000)
        patch.setattr(requests, "_LIMITS", emulator.rate_limits)
        if name == STRAINED:
            emulator.lag = float(os.environ.get("PINECONE_LAG", "0.05"))
            emulator.fail_randomly(0.1, _PASSING_FAULTS, "/vectors|/query|stats")
            _flush_after_writes(patch)
        yield "pinecone"


@contextmanager
def in_a_bucket(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """The data folder is in a new bucket, whose address is given."""
    from image_search.stores.embedded import resident

    server = s3_emulator()
    bucket = server.new_bucket()
    with tempfile.TemporaryDirectory() as caches:
        # What others write is seen at once, as in a folder.
        patch.setattr(resident, "_MOST_SECONDS_BEHIND", 0.0)
        patch.setenv("XDG_CACHE_HOME", caches)
        for variable, value in server.environment.items():
            patch.setenv(variable, value)
        patch.setenv("IMAGE_SEARCH_STORE", "embedded")
        patch.setenv("IMAGE_SEARCH_DATA_DIR", f"{bucket}/data")
        yield bucket


def snapshots_after_writes(patch: pytest.MonkeyPatch) -> None:
    """Let indexes have snapshots of all but a few rows."""
    from image_search.stores.embedded import resident
    from image_search.stores.embedded.index import EmbeddedIndex

    def keep_up(index: EmbeddedIndex, keep_up: Any = EmbeddedIndex.keep_up) -> None:
        keep_up(index)
        index._resident.refresh_snapshot()

    patch.setattr(resident, "_MOST_ROWS_IN_MEMORY", 16)
    patch.setattr(EmbeddedIndex, "keep_up", keep_up)


def _flush_after_writes(patch: pytest.MonkeyPatch) -> None:
    from image_search.stores.pinecone.index import PineconeIndex

    def upsert(
        index: PineconeIndex, records: list[Record], write: Any = PineconeIndex._upsert
    ) -> None:
        write(index, records)
        index.flush()

    def delete(
        index: PineconeIndex, ids: Sequence[str], write: Any = PineconeIndex._delete
    ) -> None:
        write(index, ids)
        index.flush()

    patch.setattr(PineconeIndex, "_upsert", upsert)
    patch.setattr(PineconeIndex, "_delete", delete)


def source_of(items: Callable[[], Iterator[Item]], total: int) -> Source:
    return Source("test", total, items)


def fill(settings: Settings, embedder: Embedder, source: Source | None = None) -> VectorIndex:
    """Make the index of a source, by default of `drawn`."""
    manifest = Manifest.new(embedder.model, settings.metric, settings.namespace)
    index = create_index(settings, manifest)
    source = source or source_of(drawn, len(KINDS) * PER_KIND)
    ingest(source, index, embedder, settings)
    return index


def count(settings: Settings) -> int:
    """How many records the index has; none where there is no index."""
    try:
        return open_index(settings).count()
    except IndexNotFoundError:
        return 0


def records(index: VectorIndex) -> dict[str, Record]:
    return index.fetch(index.list_ids(limit=100_000).ids)


def assert_same_records(one: VectorIndex, other: VectorIndex) -> None:
    first, second = records(one), records(other)
    assert first.keys() == second.keys()
    for id_, expected in first.items():
        found = second[id_]
        np.testing.assert_allclose(found.embedding, expected.embedding, rtol=1e-4, atol=1e-4)
        assert (found.label, found.metadata, found.thumbnail) == (
            expected.label,
            expected.metadata,
            expected.thumbnail,
        )
