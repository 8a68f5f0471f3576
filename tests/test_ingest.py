"""The pipeline with a fake embedder: idempotent, resumable, and honest about what failed."""

import io
import itertools
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from image_search.decoding import Decoder, Limits
from image_search.errors import ImageError, SourceError, StoreError
from image_search.index import VectorIndex
from image_search.manifest import Manifest
from image_search.settings import Settings, load_settings
from image_search.stores import create_index
from image_search.values import DIMENSION, Embeddings, Features, Pixels
from tests.support.costly import qoi
from tests.support.images import KINDS, draw, encode, folder_of, png
from tests.support.indexes import FakeEmbedder, records, source_of
from worker.ingest import ingest
from worker.sources import Item, open_source


@pytest.fixture
def index(settings: Settings, fake_embedder: FakeEmbedder) -> VectorIndex:
    return create_index(settings, Manifest.new(fake_embedder.model, "cosine", "__default__"))


def test_every_image_of_a_folder_becomes_a_record(
    index: VectorIndex, fake_embedder: FakeEmbedder, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "photos", 30)
    source = open_source(str(folder), split="train", data_dir=tmp_path)
    summary = ingest(source, index, fake_embedder, load_settings(batch_size=7))
    assert (summary.embedded, summary.unchanged, summary.unreadable) == (30, 0, {})
    found = records(index)
    assert sorted(found) == [
        f"photos/label{k}/{n:04d}.png" for k in range(3) for n in range(k, 30, 3)
    ]
    record = found["photos/label1/0004.png"]
    pixels = fake_embedder.pixels(Image.open(io.BytesIO(png(4))))
    np.testing.assert_allclose(record.embedding, fake_embedder.embed([pixels])[0])
    assert record.label == "label1"
    assert record.metadata["path"] == "label1/0004.png"
    assert Image.open(io.BytesIO(record.thumbnail)).size == (10, 20)


def test_a_second_run_embeds_nothing(
    index: VectorIndex, fake_embedder: FakeEmbedder, settings: Settings, tmp_path: Path
) -> None:
    source = open_source(str(folder_of(tmp_path / "p", 10)), split="train", data_dir=tmp_path)
    ingest(source, index, fake_embedder, settings)
    summary = ingest(source, index, fake_embedder, settings)
    assert (summary.embedded, summary.unchanged, fake_embedder.embedded) == (0, 10, 10)


def test_changed_and_relabelled_and_new_images_are_embedded_again(
    index: VectorIndex, fake_embedder: FakeEmbedder, settings: Settings, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "p", 10)

    def run() -> int:
        source = open_source(str(folder), split="train", data_dir=tmp_path)
        return ingest(source, index, fake_embedder, settings).embedded

    assert run() == 10
    (folder / "label0" / "0000.png").write_bytes(png(99))
    (folder / "label1" / "new.png").write_bytes(png(100))
    assert run() == 2
    assert index.count() == 11


def test_a_larger_limit_goes_on_where_a_smaller_one_ended(
    index: VectorIndex, fake_embedder: FakeEmbedder, settings: Settings, tmp_path: Path
) -> None:
    source = open_source(str(folder_of(tmp_path / "p", 10)), data_dir=tmp_path)
    assert ingest(source.limited(4), index, fake_embedder, settings).embedded == 4
    summary = ingest(source.limited(6), index, fake_embedder, settings)
    assert (summary.embedded, summary.unchanged) == (2, 4)
    assert index.count() == 6


def test_unreadable_images_are_listed_and_do_not_stop_the_rest(
    index: VectorIndex, fake_embedder: FakeEmbedder, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "p", 5)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    (folder / "cut.png").write_bytes(png(1)[:-200])
    (folder / "huge.png").write_bytes(png(1, (40, 40)))
    source = open_source(str(folder), split="train", data_dir=tmp_path)
    summary = ingest(source, index, fake_embedder, load_settings(max_pixels=1000))
    assert summary.embedded == index.count() == 5
    reasons = {id_.removeprefix("p/"): reason for id_, reason in summary.unreadable.items()}
    assert reasons.keys() == {"empty.png", "text.jpg", "cut.png", "huge.png"}
    assert "empty" in reasons["empty.png"]
    assert "not an image" in reasons["text.jpg"]
    assert "damaged" in reasons["cut.png"]
    assert "pixels" in reasons["huge.png"]


@pytest.mark.slow
def test_images_that_cost_much_are_listed(
    index: VectorIndex,
    fake_embedder: FakeEmbedder,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = set(psutil.Process().children())
    limits = Limits(cpu_seconds=0.5, wall_seconds=60)
    monkeypatch.setattr("worker.ingest.Decoder", partial(Decoder, limits=limits))

    def items() -> Iterator[Item]:
        yield Item("costly", None, qoi(1500), {})
        yield Item("apart", None, encode(draw(KINDS[0], 1), "TIFF"), {})
        yield Item("plain", None, encode(draw(KINDS[0], 2)), {})

    summary = ingest(source_of(items, 3), index, fake_embedder, settings)
    assert summary.unreadable.keys() == {"costly"}
    assert "takes more than 0.5 s to decode" in summary.unreadable["costly"]
    assert index.list_ids().ids == ["apart", "plain"]
    assert not set(psutil.Process().children()) - others


def test_an_image_without_an_embedding_is_listed(
    index: VectorIndex, fake_embedder: FakeEmbedder, settings: Settings, tmp_path: Path
) -> None:
    embed = fake_embedder.embed_with_textures

    def first_is_zero(batch: list[Pixels]) -> tuple[Embeddings, Features]:
        embeddings, textures = embed(batch)
        return np.concatenate([np.zeros((1, DIMENSION), np.float32), embeddings[1:]]), textures

    fake_embedder.embed_with_textures = first_is_zero  # type: ignore[assignment, method-assign]
    source = open_source(str(folder_of(tmp_path / "p", 3)), split="train", data_dir=tmp_path)
    summary = ingest(source, index, fake_embedder, settings)
    assert list(summary.unreadable) == ["p/label0/0000.png"]
    assert summary.embedded == index.count() == 2


def test_what_the_source_cannot_read_is_listed(
    index: VectorIndex, fake_embedder: FakeEmbedder, settings: Settings
) -> None:
    def items() -> Iterator[Item]:
        yield Item("gone", None, ImageError("it has gone"), {})
        yield Item("there", None, png(1), {})

    summary = ingest(source_of(items, 2), index, fake_embedder, settings)
    assert summary.unreadable == {"gone": "it has gone"}
    assert index.list_ids().ids == ["there"]


@pytest.mark.slow
def test_stopping_commits_what_was_embedded_and_a_later_run_completes_it(
    index: VectorIndex, fake_embedder: FakeEmbedder
) -> None:
    stop = threading.Event()

    def items() -> Iterator[Item]:
        for number in itertools.count():
            if number == 900 and not stop.is_set():
                stop.set()
            if number == 2000:
                return
            yield Item(f"i{number:04d}", None, np.full((4, 4, 3), number % 256, np.uint8), {})

    settings = load_settings(batch_size=16)
    first = ingest(source_of(items, 2000), index, fake_embedder, settings, stop=stop)
    assert first.interrupted
    assert index.count() == first.embedded == fake_embedder.embedded < 2000
    second = ingest(source_of(items, 2000), index, fake_embedder, settings)
    assert (second.unchanged, second.embedded) == (first.embedded, 2000 - first.embedded)
    assert index.count() == 2000


def test_an_error_of_the_source_is_raised_and_what_came_before_is_kept(
    index: VectorIndex, fake_embedder: FakeEmbedder, settings: Settings
) -> None:
    def items() -> Iterator[Item]:
        for number in range(300):
            yield Item(f"i{number:04d}", None, png(number), {})
        raise SourceError("the archive ends too early")

    with pytest.raises(SourceError, match="too early"):
        ingest(source_of(items, 600), index, fake_embedder, settings)
    assert index.count() == fake_embedder.embedded == 300


@pytest.mark.slow
@pytest.mark.parametrize("method", ["upsert", "fetch"])
def test_an_error_of_the_store_is_raised(
    index: VectorIndex,
    fake_embedder: FakeEmbedder,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    def fail(_: Sequence[object], **_options: bool) -> None:
        raise StoreError("the disk is full")

    def items() -> Iterator[Item]:
        for number in range(5000):
            yield Item(f"i{number:04d}", None, np.full((4, 4, 3), number % 256, np.uint8), {})

    # In an index that is new there is nothing to look up.
    ingest(source_of(items, 5000).limited(1), index, fake_embedder, settings)
    monkeypatch.setattr(index, method, fail)
    with pytest.raises(StoreError, match="disk is full"):
        ingest(source_of(items, 5000), index, fake_embedder, settings)
    assert fake_embedder.embedded < 5000


def test_an_error_of_the_network_is_raised(
    index: VectorIndex, fake_embedder: FakeEmbedder, settings: Settings, tmp_path: Path
) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    fake_embedder.embed_with_textures = fail  # type: ignore[assignment, method-assign]
    source = open_source(str(folder_of(tmp_path / "p", 10)), split="train", data_dir=tmp_path)
    with pytest.raises(MemoryError):
        ingest(source, index, fake_embedder, settings)
