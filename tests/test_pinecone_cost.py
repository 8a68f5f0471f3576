"""What ingests and searches cost at Pinecone: what docs/how-to/pinecone.md extrapolates."""

import functools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from image_search.index import VectorIndex
from image_search.manifest import Manifest
from image_search.settings import load_settings
from image_search.stores import create_index, open_index
from image_search.values import DIMENSION
from tests.support.images import draw
from tests.support.indexes import FakeEmbedder, source_of
from tests.support.pinecone import API_KEY, PineconeEmulator, forget_failures
from worker.confidence import recalibrate
from worker.ingest import ingest
from worker.sources import Item
from worker.sources.sample import KINDS

IMAGES = 1_200
SIDE = 96
SEARCHES = 100
MILLION = 1_000_000
_MB = 1e6


@dataclass(frozen=True)
class Cost:
    """Of some requests: how many, Pinecone's units, and bytes of their bodies and answers."""

    requests: int
    read_units: float
    write_units: float
    sent: int
    read: int

    def line(self, name: str, factor: float) -> str:
        """One line of the table, `factor` times as much."""
        units = f"{self.read_units * factor:14,.0f} {self.write_units * factor:14,.0f}"
        bytes_ = f"{self.sent * factor / _MB:12,.0f} {self.read * factor / _MB:12,.0f}"
        return f"{name:40} {self.requests * factor:12,.0f} {units} {bytes_}"


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[PineconeEmulator]:
    forget_failures()
    with PineconeEmulator() as emulator:
        monkeypatch.setenv("IMAGE_SEARCH_STORE", "pinecone")
        monkeypatch.setenv("IMAGE_SEARCH_PINECONE_HOST", emulator.host)
        monkeypatch.setenv("PINECONE_API_KEY", API_KEY)
        yield emulator


@functools.cache
def pictures() -> Sequence[Item]:
    """Drawn pictures with the metadata that a folder gives."""
    items = []
    for number in range(IMAGES):
        kind = KINDS[number % len(KINDS)]
        drawn = draw(kind, number // len(KINDS)).resize((SIDE, SIDE))
        name = f"photos/{kind}/{number:06d}.jpg"
        items.append(Item(name, kind, np.asarray(drawn), {"source": "photos", "path": name}))
    return items


def spent(emulator: PineconeEmulator) -> Cost:
    """What was spent since it was asked before."""
    requests = list(emulator.requests)
    emulator.requests.clear()
    return Cost(
        len(requests),
        sum(request.read_units for request in requests),
        sum(request.write_units for request in requests),
        sum(request.bytes + request.url_bytes for request in requests),
        sum(request.answer_bytes for request in requests),
    )


def search(index: VectorIndex, *, thumbnails: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(SEARCHES):
        index.query(rng.random(DIMENSION, np.float32), 10, thumbnails=thumbnails)


@pytest.mark.long
def test_what_a_million_images_and_searches_cost(emulator: PineconeEmulator) -> None:
    settings, embedder = load_settings(), FakeEmbedder()
    source = source_of(lambda: iter(pictures()), IMAGES)
    index = create_index(settings, Manifest.new(embedder.model, "cosine", settings.namespace))
    summary = ingest(source, index, embedder, settings)
    index.flush()
    first = spent(emulator)
    recalibrate(index, summary.sample, threading.Event())
    calibration = spent(emulator)
    index.close()
    with open_index(settings) as index:
        again = ingest(source, index, embedder, settings)
        assert (again.embedded, again.unchanged) == (0, IMAGES)
        index.flush()
        second = spent(emulator)
        search(index, thumbnails=True)
        shown = spent(emulator)
        search(index, thumbnails=False)
        plain = spent(emulator)
    namespaces = emulator.indexes["images"].namespaces
    stored = namespaces[""].bytes / IMAGES
    pictures_stored = namespaces["__default__.thumbnails"].bytes / IMAGES

    per_image, per_search = MILLION / IMAGES, MILLION / SEARCHES
    print(
        f"\n{'a million':40} {'requests':>12} {'read units':>14} {'write units':>14}"
        f" {'MB sent':>12} {'MB read':>12}"
    )
    print(first.line("first ingest", per_image))
    print(second.line("second ingest, nothing changed", per_image))
    print(shown.line("searches for 10, with thumbnails", per_search))
    print(plain.line("searches for 10, without", per_search))
    print(calibration.line("calibration after an ingest (once)", 1))
    print(f"stored: {stored:,.0f} bytes an image, and {pictures_stored:,.0f} for its thumbnail")
    print(f"a query among a million images: {stored * MILLION / 1e9:.2f} read units")

    # 50,000 unchanged images: at most 20 MB.
    assert second.read / IMAGES * 50_000 < 20e6
    assert second.write_units == 0
    # The 1,000 images that are compared, and 51 ids with label and metadata for each.
    assert calibration.read < 40e6
    assert shown.requests == 2 * SEARCHES
    assert plain.requests == SEARCHES
    assert plain.read < shown.read / 4
