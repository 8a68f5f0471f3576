"""What can happen to a folder: a crash, a power failure, another index in its place."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from image_search.errors import IndexMismatchError, IndexNotFoundError, StoreError
from image_search.index import Record
from image_search.manifest import Manifest
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
    return settings.data_dir / "indexes" / settings.index / f"{settings.namespace}.lance"


def test_an_index_that_was_replaced_is_not_used_with_the_old_model(settings: Settings) -> None:
    index = create(settings, "old")
    shutil.rmtree(settings.data_dir)
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
    import lancedb

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
