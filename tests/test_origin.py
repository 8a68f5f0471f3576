"""Which ids the images of a source get: unique to it, stable, and those that old indexes have."""

import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from image_search.index import VectorIndex
from image_search.settings import load_settings
from tests.support.images import png
from tests.support.indexes import FakeEmbedder, records
from worker.ingest import Summary, ingest
from worker.origin import named_in, remember
from worker.sources import Source, open_source


@pytest.fixture
def run(index: VectorIndex, fake_embedder: FakeEmbedder) -> "Run":
    return Run(index, fake_embedder)


class Run:
    """Ingests a path as the worker does."""

    def __init__(self, index: VectorIndex, embedder: FakeEmbedder) -> None:
        self._index, self._embedder = index, embedder

    def __call__(self, path: Path) -> Summary:
        source = named_in(self._index, self.open(path))
        remember(self._index, source)
        return ingest(source, self._index, self._embedder, load_settings())

    def open(self, path: Path) -> Source:
        return open_source(str(path), data_dir=Path())

    def before(self, path: Path) -> None:
        """As versions did that did not keep where sources are."""
        source = self.open(path)
        items = [replace(item, id=item.former_id or item.id) for item in source.items()]
        ingest(
            Source("old", len(items), lambda: iter(items)),
            self._index,
            self._embedder,
            load_settings(),
        )

    def ids(self) -> set[str]:
        return set(records(self._index))


def album(path: Path, *seeds: int, start: int = 0) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds, start):
        (path / f"IMG_{number}.png").write_bytes(png(seed))
    return path


@pytest.mark.slow
def test_folders_of_one_name_do_not_overwrite_each_other(run: Run, tmp_path: Path) -> None:
    first = album(tmp_path / "2023" / "holiday", 1, 2, 3)
    second = album(tmp_path / "2024" / "holiday", 4, 5, 6)
    third = album(tmp_path / "2025" / "holiday", 7)
    paths = (first, second, third)
    assert [run(path).embedded for path in paths] == [3, 3, 1]
    ids = run.ids()
    assert len(ids) == 7
    assert {"holiday/IMG_0.png", "holiday/IMG_1.png", "holiday/IMG_2.png"} < ids
    # Whatever the order they come in again.
    assert [run(path).embedded for path in reversed(paths)] == [0, 0, 0]
    (second / "IMG_1.png").write_bytes(png(8))
    assert [run(path).embedded for path in paths] == [0, 1, 0]
    assert run.ids() == ids


def test_the_source_in_the_metadata_tells_them_apart(
    run: Run, index: VectorIndex, tmp_path: Path
) -> None:
    for year in ("2023", "2024"):
        run(album(tmp_path / year / "holiday", int(year)))
    found = records(index).values()
    assert len({record.metadata["source"] for record in found}) == 2
    for record in found:
        assert record.id == f"{record.metadata['source']}/{record.metadata['path']}"


def test_a_source_that_moved_is_known_by_its_images(run: Run, tmp_path: Path) -> None:
    first = album(tmp_path / "2023" / "holiday", 1, 2, 3)
    second = album(tmp_path / "2024" / "holiday", 4, 5, 6)
    assert [run(first).embedded, run(second).embedded] == [3, 3]
    ids = run.ids()
    for number, path in enumerate((second, first)):
        moved = tmp_path / f"moved{number}" / "holiday"
        moved.parent.mkdir()
        shutil.move(path, moved)
        (moved / "IMG_0.png").write_bytes(png(10 + number))
        assert run(moved).embedded == 1
        assert run(moved).embedded == 0
    assert run.ids() == ids


def test_an_archive_and_the_folder_it_was_made_of_are_one_source(run: Run, tmp_path: Path) -> None:
    folder = album(tmp_path / "pics", 1, 2, 3)
    for kind in ("zip", "tar"):
        archive = shutil.make_archive(str(tmp_path / kind / "pics"), kind, folder)
        run(Path(archive))
    assert run(folder).unchanged == 3
    assert len(run.ids()) == 3


def test_a_few_images_in_common_do_not_make_one_source(run: Run, tmp_path: Path) -> None:
    run(album(tmp_path / "2023" / "holiday", 1, 2, 3, 4, 5))
    summary = run(album(tmp_path / "2024" / "holiday", 1, 2, 6, 7, 8))
    # Two are copies, which are other images, but need no embedding.
    assert (summary.embedded, summary.moved, summary.unchanged) == (3, 2, 0)
    assert len(run.ids()) == 10


def test_links_and_spellings_of_one_path_are_one_source(run: Run, tmp_path: Path) -> None:
    folder = album(tmp_path / "a" / "pics", 1, 2)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "other").symlink_to(folder)
    assert run(folder).embedded == 2
    assert run(tmp_path / "b" / "other").unchanged == 2
    assert run(tmp_path / "a" / ".." / "a" / "pics").unchanged == 2


# --- indexes of earlier versions ------------------------------------------------------------------


def test_an_old_index_goes_on(run: Run, tmp_path: Path) -> None:
    folder = album(tmp_path / "2023" / "holiday", 1, 2, 3)
    run.before(folder)
    (folder / "IMG_1.png").write_bytes(png(9))
    summary = run(folder)
    assert (summary.embedded, summary.unchanged) == (1, 2)
    assert len(run.ids()) == 3
    assert run(folder).unchanged == 3


def test_another_folder_leaves_the_images_of_an_old_index_alone(
    run: Run, index: VectorIndex, tmp_path: Path
) -> None:
    run.before(album(tmp_path / "2023" / "holiday", 1, 2, 3))
    before = records(index)
    assert run(album(tmp_path / "2024" / "holiday", 4, 5, 6)).embedded == 3
    after = records(index)
    assert len(after) == 6
    for id_, record in before.items():
        assert after[id_].metadata == record.metadata


def test_images_under_old_ids_are_known_and_keep_them(
    run: Run, index: VectorIndex, tmp_path: Path
) -> None:
    folder = tmp_path / "pics"
    for number, name in enumerate(("Käse", "été", "plain")):
        album(folder / unicodedata.normalize("NFD", name), number, 10 + number)
    run.before(folder)
    ids = run.ids()
    assert sum("%CC%8" in id_ for id_ in ids) == 4
    index.upsert([replace(record, label="wrong") for record in records(index).values()])
    summary = run(folder)
    assert (summary.embedded, summary.relabelled, summary.unchanged) == (0, 6, 0)
    assert run(folder).unchanged == 6
    assert run.ids() == ids
    assert {record.label for record in records(index).values()} == {"Käse", "été", "plain"}


def test_another_label_costs_no_embedding(
    run: Run, index: VectorIndex, fake_embedder: FakeEmbedder, tmp_path: Path
) -> None:
    folder = tmp_path / "pics"
    album(folder / "cat", 1, 2)
    album(folder / "dog", 3, start=2)
    run(folder)
    embedded = fake_embedder.embedded
    before = records(index)
    index.upsert([replace(record, label="wrong") for record in before.values()])
    summary = run(folder)
    assert (summary.embedded, summary.relabelled) == (0, 3)
    assert fake_embedder.embedded == embedded
    for id_, record in records(index).items():
        assert record.label == before[id_].label
        assert record.thumbnail == before[id_].thumbnail
        assert (record.embedding == before[id_].embedding).all()


def test_one_image_goes_to_the_others_of_its_folder(run: Run, tmp_path: Path) -> None:
    first = album(tmp_path / "2023" / "holiday", 1, 2, 3)
    second = album(tmp_path / "2024" / "holiday", 1)
    assert run(first).embedded == 3
    assert run(first / "IMG_1.png").unchanged == 1
    # The same picture in another folder is another image, which needs no embedding.
    assert run(second / "IMG_0.png").moved == 1
    album(second, 5, 6, start=1)
    assert (run(second).embedded, run(second).unchanged) == (2, 3)
    assert run(first).unchanged == 3
    assert len(run.ids()) == 6
