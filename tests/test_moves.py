"""A rename costs no embedding, and what was deleted over HTTP stays deleted."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
from pydantic import SecretStr

from image_search.index import VectorIndex
from image_search.manifest import Manifest
from image_search.settings import Settings, load_settings
from image_search.stores import create_index, open_index
from image_search.values import DIGEST_FIELD
from tests.support.images import folder_of, png
from tests.support.indexes import FakeEmbedder, records, serve_fakes
from tests.support.servers import SERVICE_KEY, ServiceThread
from worker.confidence import draw, save_sample
from worker.ingest import Summary, ingest
from worker.origin import named_in, remember
from worker.prune import SeenSource, prune
from worker.sources import Item, open_source


class Sync:
    """What the worker does, and how many images it pruned."""

    def __init__(self, index: VectorIndex, embedder: FakeEmbedder) -> None:
        self._index, self._embedder = index, embedder
        self.pruned = 0

    def __call__(self, path: Path, *, prune_: bool = True, restore: bool = False) -> Summary:
        source = named_in(self._index, open_source(str(path), data_dir=Path()))
        remember(self._index, source)
        seen = SeenSource(source)
        summary = ingest(seen.source, self._index, self._embedder, load_settings(), restore=restore)
        self.pruned = prune(self._index, seen, 25) if prune_ else 0
        save_sample(self._index, summary.sample, draw(self._index))
        return summary


@pytest.fixture
def sync(index: VectorIndex, fake_embedder: FakeEmbedder) -> Sync:
    return Sync(index, fake_embedder)


def delete(index: VectorIndex, *ids: str) -> None:
    """As the service does."""
    found = index.fetch(ids)
    assert len(found) == len(ids)
    index.save_deletions({id_: str(one.metadata[DIGEST_FIELD]) for id_, one in found.items()})
    index.delete(ids)


@pytest.mark.slow
def test_a_renamed_folder_is_moved_without_embedding(
    sync: Sync, index: VectorIndex, fake_embedder: FakeEmbedder, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", 120)
    sync(folder)
    before = records(index)
    assert fake_embedder.embedded == 120
    (folder / "label0").rename(folder / "cats")
    summary = sync(folder)
    # A third of them have another name, which is more than may be lost, and none is.
    assert (fake_embedder.embedded, summary.embedded) == (120, 0)
    assert (summary.moved, sync.pruned) == (40, 40)
    after = records(index)
    assert len(after) == 120
    for number in range(0, 120, 3):
        old = before[f"pics/label0/{number:04d}.png"]
        new = after[f"pics/cats/{number:04d}.png"]
        assert new.label == "cats"
        assert new.metadata == {**old.metadata, "path": f"cats/{number:04d}.png"}
        assert new.thumbnail == old.thumbnail
        np.testing.assert_allclose(new.embedding, old.embedding, atol=1e-6)
    # The sample is what it would be had they always had these names.
    sample = index.load_sample()
    assert set(sample.ids) == after.keys()
    assert sample.is_representative
    assert sync(folder).unchanged == 120


@pytest.mark.slow
def test_without_prune_both_names_stay(
    sync: Sync, index: VectorIndex, fake_embedder: FakeEmbedder, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", 4)
    sync(folder)
    (folder / "label1" / "0001.png").rename(folder / "label2" / "new.png")
    assert sync(folder, prune_=False).moved == 1
    assert fake_embedder.embedded == 4
    assert {"pics/label1/0001.png", "pics/label2/new.png"} <= records(index).keys()
    sync(folder)
    assert index.count() == 4


@pytest.mark.slow
def test_what_was_deleted_stays_deleted_until_restored(
    sync: Sync, index: VectorIndex, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", 6)
    sync(folder)
    all_ids = records(index).keys()
    delete(index, "pics/label0/0000.png", "pics/label1/0001.png")
    summary = sync(folder)
    assert (summary.deleted, summary.embedded, index.count()) == (2, 0, 4)
    # Under another name it is the same picture, and another picture of its name is not.
    (folder / "label0" / "0000.png").rename(folder / "label0" / "renamed.png")
    (folder / "label1" / "0001.png").write_bytes(png(77))
    summary = sync(folder)
    assert (summary.deleted, summary.embedded) == (1, 1)
    assert records(index).keys() == all_ids - {"pics/label0/0000.png"}
    summary = sync(folder, restore=True)
    assert (summary.deleted, summary.embedded) == (0, 1)
    assert "pics/label0/renamed.png" in records(index)
    # What was restored is no longer deleted.
    index.delete(["pics/label0/renamed.png"])
    assert sync(folder).deleted == 0


@pytest.mark.slow
def test_what_is_deleted_while_an_ingest_runs_stays_deleted(
    index: VectorIndex, fake_embedder: FakeEmbedder, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", 6)
    source = open_source(str(folder), data_dir=Path())
    ingest(source, index, fake_embedder, load_settings())
    all_ids = records(index).keys()

    def items() -> Iterator[Item]:
        delete(index, "pics/label0/0000.png")
        yield from source.items()

    summary = ingest(replace(source, items=items), index, fake_embedder, load_settings())
    assert (summary.deleted, summary.embedded) == (1, 0)
    assert records(index).keys() == all_ids - {"pics/label0/0000.png"}


@pytest.mark.slow
def test_one_of_two_copies_may_be_deleted_and_the_other_moved(
    sync: Sync, index: VectorIndex, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", 6)
    shutil.copy(folder / "label0" / "0000.png", folder / "label0" / "copy.png")
    sync(folder)
    delete(index, "pics/label0/copy.png")
    assert sync(folder).deleted == 1
    (folder / "label0" / "0000.png").rename(folder / "label0" / "moved.png")
    summary = sync(folder)
    assert (summary.deleted, summary.moved) == (1, 1)
    kept = {id_ for id_ in records(index) if id_.startswith("pics/label0/")}
    assert kept == {"pics/label0/moved.png", "pics/label0/0003.png"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_renames_and_deletions(
    sync: Sync, index: VectorIndex, fake_embedder: FakeEmbedder, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    folder = folder_of(tmp_path / "pics", 20)
    sync(folder)
    gone: set[bytes] = set()
    for turn in range(4):
        for file in rng.sample(sorted(folder.rglob("*.png")), 5):
            file.rename(file.with_name(f"{turn}-{file.name}"))
        for id_ in rng.sample(sorted(records(index)), 2):
            file = folder / str(index.fetch([id_])[id_].metadata["path"])
            if not file.exists():  # it was renamed just now
                continue
            gone.add(file.read_bytes())
            delete(index, id_)
        sync(folder)
        expected = {
            f"pics/{file.relative_to(folder)}"
            for file in folder.rglob("*.png")
            if file.read_bytes() not in gone
        }
        assert records(index).keys() == expected
    assert fake_embedder.embedded == 20


@pytest.mark.slow
def test_the_service_remembers_what_it_deletes(
    monkeypatch: pytest.MonkeyPatch, fake_embedder: FakeEmbedder, settings: Settings, tmp_path: Path
) -> None:
    serve_fakes(monkeypatch)
    settings = settings.model_copy(update={"api_keys": SecretStr(SERVICE_KEY)})
    manifest = Manifest.new(fake_embedder.model, "cosine", "__default__")
    index = create_index(settings, manifest)
    sync = Sync(index, fake_embedder)
    folder = folder_of(tmp_path / "pics", 4)
    sync(folder)
    with ServiceThread(settings) as service:
        service.wait_until_ready()
        headers = {"X-API-Key": SERVICE_KEY}
        url = f"{service.url}/images/pics/label0/0000.png"
        assert httpx2.delete(url, headers=headers).status_code == 204
        assert httpx2.delete(url, headers=headers).status_code == 404
    assert set(index.load_deletions()) == {"pics/label0/0000.png"}
    assert sync(folder).deleted == 1
    assert open_index(settings).count() == 3
