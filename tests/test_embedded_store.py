"""What can happen to a folder: a crash, a power failure, another index in its place."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lancedb
import numpy as np
import pytest

from image_search.calibration import Calibration
from image_search.errors import (
    IndexMismatchError,
    IndexNotFoundError,
    StoreError,
    UnsupportedError,
    VectorIndexError,
)
from image_search.index import Listing, Record
from image_search.manifest import Manifest
from image_search.provenance import KnownSource
from image_search.sample import TEXTURES, ImageSample
from image_search.settings import Settings
from image_search.stores import create_index, open_index
from image_search.stores.embedded.index import EmbeddedIndex
from image_search.values import DIMENSION
from tests.support.indexes import MODEL

VECTOR = np.ones(DIMENSION, np.float32)


def create(settings: Settings, fingerprint: str = "0" * 16) -> EmbeddedIndex:
    model = MODEL.model_copy(update={"fingerprint": fingerprint})
    manifest = Manifest.new(model, settings.metric, settings.namespace)
    index = create_index(settings, manifest)
    assert isinstance(index, EmbeddedIndex)
    index.upsert([Record("a", VECTOR, None, {}, b"")])
    return index


def table_folder(settings: Settings) -> Path:
    return settings.local_dir / "indexes" / settings.index / f"{settings.namespace}.lance"


def test_an_index_that_was_replaced_is_not_used_with_the_old_model(settings: Settings) -> None:
    index = create(settings, "old")
    shutil.rmtree(settings.local_dir)
    create(settings, "new")
    with pytest.raises(StoreError, match="replaced"):
        index.query(VECTOR, 1)
    with pytest.raises(StoreError, match="replaced"):
        index.upsert([Record("b", VECTOR, None, {}, b"")])
    assert open_index(settings).list_ids().ids == ["a"]


def test_an_empty_newest_version_is_given_up_for_the_one_before(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    index = create(settings)
    index.upsert([Record("b", VECTOR, None, {}, b"")])
    # Versions count down in their names.
    newest = min((table_folder(settings) / "_versions").glob("*.manifest"))
    newest.write_bytes(b"")
    assert open_index(settings).list_ids().ids == ["a"]
    assert "removing the empty version" in caplog.text


def test_a_creation_that_was_cut_off_is_done_again(settings: Settings) -> None:
    table_folder(settings).mkdir(parents=True)
    with pytest.raises(IndexNotFoundError):
        open_index(settings)
    assert create(settings).count() == 1


def test_a_table_of_another_program_is_refused(settings: Settings) -> None:
    folder = table_folder(settings).parent
    folder.mkdir(parents=True)
    lancedb.connect(folder).create_table(settings.namespace, [{"id": "a"}])
    with pytest.raises(IndexMismatchError, match="another program"):
        open_index(settings)


def test_a_second_namespace_needs_the_metric_of_the_first(settings: Settings) -> None:
    create(settings)
    other = settings.model_copy(update={"namespace": "other", "metric": "euclidean"})
    with pytest.raises(IndexMismatchError, match=r"cosine.*euclidean"):
        create(other)


def test_a_damaged_calibration_is_told_and_replaced_by_the_next(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    path = table_folder(settings).with_suffix(".calibration.json")
    for number, content in enumerate((b"", b"{", b"\xff", b"[]", b'{"scores": [1]}', bytes(99))):
        index = create(settings)
        path.write_bytes(content)
        opened = open_index(settings)
        assert opened.calibration is None
        assert opened.query(VECTOR, 1)[0].id == "a"
        assert len(caplog.records) == number + 1
        open_index(settings)
        assert len(caplog.records) == number + 1, "told once, not each time that it is read"
        assert str(path) in caplog.text
        calibration = Calibration(scores=(0.1, 0.9), confidences=(0.2, 0.8))
        index.save_calibration(calibration)
        assert open_index(settings).calibration == calibration


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"PK\x03\x04", bytes(99)])
def test_other_damaged_files_beside_the_table_are_told_and_replaced(
    settings: Settings, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    index = create(settings)
    sample = ImageSample().joined(["a"], np.ones((1, TEXTURES), np.float32))
    index.save_sample(sample)
    place = KnownSource(place="/somewhere")
    index.save_source("a", place)
    written = [path for path in table_folder(settings).parent.iterdir() if path.stat().st_size]
    damaged = [path for path in written if path.is_file()]
    assert len(damaged) == 2
    for path in damaged:
        path.write_bytes(content)
    with open_index(settings) as opened:
        assert (opened.load_sample().ids, opened.load_sources()) == ((), {})
        assert all(str(path) in caplog.text for path in damaged)
        opened.save_sample(sample)
        opened.save_source("a", place)
        assert (opened.load_sample().ids, opened.load_sources()) == (("a",), {"a": place})


def remove_the_table(folder: Path) -> None:
    shutil.rmtree(folder)


def remove_the_data(folder: Path) -> None:
    shutil.rmtree(folder / "data")


def cut_the_data(folder: Path) -> None:
    for path in (folder / "data").iterdir():
        os.truncate(path, path.stat().st_size // 2)


def damage_the_versions(folder: Path) -> None:
    for path in (folder / "_versions").iterdir():
        path.write_bytes(b"damaged")


def put_another_table(folder: Path) -> None:
    shutil.rmtree(folder)
    lancedb.connect(folder.parent).create_table(folder.stem, [{"id": "a"}])


@pytest.mark.parametrize(
    "damage",
    [remove_the_table, remove_the_data, cut_the_data, damage_the_versions, put_another_table],
)
def test_errors_name_folders_to_the_operator_alone(
    settings: Settings, damage: Callable[[Path], None]
) -> None:
    create(settings)
    damage(table_folder(settings))
    with pytest.raises(VectorIndexError) as caught:
        open_index(settings).query(VECTOR, 1)
    assert str(settings.local_dir) not in str(caught.value)
    assert settings.local_dir.name not in str(caught.value).lower().split()
    assert ".lance" not in str(caught.value)
    assert str(settings.local_dir) in caught.value.in_full


@pytest.mark.slow
def test_lancedb_comes_without_its_client_of_remote_catalogues() -> None:
    program = (
        "import sys, image_search.stores.embedded\n"
        "package = 'lance_namespace_urllib3_client'\n"
        "print(package in sys.modules, package + '.api' in sys.modules)\n"
        "from lance_namespace_urllib3_client import TableApi\n"
        "print(TableApi.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"True False\nTableApi\n"


@pytest.mark.slow
def test_words_of_a_table_of_an_earlier_version_are_added_by_the_worker(settings: Settings) -> None:
    settings = settings.model_copy(update={"index_memory": 0})
    index = create(settings)
    rng = np.random.default_rng(0)
    rows = rng.random((12_000, DIMENSION), np.float32)
    index.upsert(
        [
            Record(f"r{n:05d}", row, "cat", {"note": f"No {n}"}, b"jpeg")
            for n, row in enumerate(rows)
        ]
    )
    index.flush()
    table = lancedb.connect(table_folder(settings).parent).open_table(settings.namespace)
    table.drop_columns(["words"])
    listing = Listing(words=("no", "11999"))
    with pytest.raises(UnsupportedError, match="run the worker again"):
        index.list_images(listing)
    index.upsert([Record("new", VECTOR, None, {"note": "no 11999, too"}, b"")])
    before = [match.id for match in index.query(rows[7], 20)]
    manifest = index.manifest
    index.flush()
    opened = open_index(settings)
    for one in (index, opened):
        assert [image.id for image in one.list_images(listing).images] == ["new", "r11999"]
        found = [match.id for match in one.query(rows[7], 20)]
        # The vector index is made anew, and divides the rows in other ways.
        assert found[0] == before[0] == "r00007"
        assert len({*found} & {*before}) >= 10
    assert opened.manifest == manifest
    assert opened.count() == 12_002
    assert opened.fetch(["r00007"])["r00007"].thumbnail == b"jpeg"
    indexed = {name.columns[0] for name in table.list_indices()}
    assert indexed >= {"embedding", "id", "label"}
    stats = table.index_stats(next(i.name for i in table.list_indices() if "embedding_" in i.name))
    assert stats.num_unindexed_rows < 10
