"""`python -m worker copy`: an index moves with all that belongs to it."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_search.calibration import Calibration
from image_search.errors import (
    ImageSearchError,
    IndexMismatchError,
    IndexNotFoundError,
    SettingsError,
    StoreError,
)
from image_search.index import Record, VectorIndex
from image_search.manifest import Manifest
from image_search.provenance import KnownSource
from image_search.recipe import FIRST_FORM, Recipe
from image_search.sample import TEXTURES, ImageSample
from image_search.settings import load_settings
from image_search.stores import create_index, open_index, succession
from image_search.values import DIMENSION
from tests.support.indexes import MODEL, assert_same_records, records, use_store
from tests.support.processes import run
from worker import copying
from worker.copying import copy, parse_end

COUNT = 90
STOP = threading.Event()
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with use_store("pinecone", monkeypatch):
        monkeypatch.setenv("IMAGE_SEARCH_STORE", "embedded")
        yield


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_RECORDS_AT_ONCE", 16)


def some_records() -> list[Record]:
    return [
        Record(
            f"pics/{n:03d} {'%C3%A9' * (n % 3)}.jpg",
            RNG.standard_normal(DIMENSION).astype(np.float32),
            None if n % 5 == 0 else f"Käse {n % 3}",
            {"n": n, "x": n / 3, "is": n % 2 == 0, "tags": ["a", "b'"], "text": 'é\n"'},
            bytes(range(n % 7)) * 9,
        )
        for n in range(COUNT)
    ]


@pytest.fixture
def index() -> Iterator[VectorIndex]:
    count = sum(FIRST_FORM.pooling.channels)
    projection = RNG.standard_normal((count, DIMENSION)).astype(np.float16).astype(np.float32)
    recipe = Recipe("neighbours", FIRST_FORM, RNG.random(count, np.float32), projection)
    model = MODEL.model_copy(
        update={"recipe": recipe.name, "recipe_fingerprint": recipe.fingerprint}
    )
    manifest = Manifest.new(model, "cosine", "__default__", (1.0, 2.0), "as set")
    with create_index(load_settings(), manifest, recipe) as index:
        index.upsert(some_records())
        index.save_calibration(Calibration(scores=(0.1, 0.9), confidences=(0.2, 0.8)))
        sample = ImageSample().joined(list(index.ids()), np.ones((COUNT, TEXTURES), np.float32))
        index.save_sample(replace(sample, indexed=COUNT))
        known = KnownSource(place="/a/pics", prefix="pics/", ingested_at=datetime.now(UTC))
        index.save_source("pics", known)
        index.save_deletions({"pics/x": "1" * 64})
        yield index


def end(text: str, tmp_path: Path) -> str:
    return str(tmp_path / text) if text.endswith(".parquet") else text


WAYS = [
    ("images", "other"),
    ("images", "images/two"),
    ("images", "backup.parquet", "restored"),
    ("images", "pinecone:images", "back"),
    ("images", "pinecone:images", "pinecone:images/two", "backup.parquet", "pinecone:new", "back"),
]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=" to ".join)
def test_an_index_comes_the_whole_way(
    index: VectorIndex, way: tuple[str, ...], tmp_path: Path
) -> None:
    for source, target in pairwise(end(one, tmp_path) for one in way):
        copied = copy(parse_end(source), parse_end(target), STOP)
        assert (copied.written, copied.unchanged) == (COUNT, 0)
    last = parse_end(way[-1])
    assert not isinstance(last, Path)
    with open_index(last) as arrived:
        if any(one.startswith("pinecone") for one in way):
            assert_same_records(index, arrived)
        else:
            for id_, record in records(index).items():
                other = arrived.fetch([id_])[id_]
                np.testing.assert_array_equal(record.embedding, other.embedding)
                assert replace(record, embedding=other.embedding) == other
            assert arrived.count() == COUNT
        namespace = last.namespace
        assert arrived.manifest == index.manifest.model_copy(update={"namespace": namespace})
        recipe, expected = arrived.load_recipe(), index.load_recipe()
        assert recipe is not None
        assert expected is not None
        assert recipe.fingerprint == expected.fingerprint
        assert arrived.calibration == index.calibration
        assert arrived.load_sample().fingerprint == index.load_sample().fingerprint
        assert arrived.load_sources() == index.load_sources()
        assert arrived.load_deletions() == index.load_deletions()
    # Again, nothing has to be written.
    if not way[-1].endswith(".parquet"):
        again = copy(parse_end(end(way[-2], tmp_path)), parse_end(way[-1]), STOP)
        assert (again.written, again.unchanged) == (0, COUNT)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["backup.parquet", "other", "pinecone:images"])
def test_a_copy_that_was_stopped_goes_on(index: VectorIndex, target: str, tmp_path: Path) -> None:
    to = parse_end(end(target, tmp_path))
    stopped = threading.Event()
    stopped.set()
    for _ in range(2):
        assert copy(parse_end("images"), to, stopped).interrupted
    if isinstance(to, Path):
        assert not to.exists()
    copied = copy(parse_end("images"), to, STOP)
    assert copied.written + copied.unchanged == COUNT
    assert 0 < copied.unchanged < COUNT
    if isinstance(to, Path):
        assert os.listdir(tmp_path / "data") == ["indexes"]
        assert [path.name for path in tmp_path.glob("backup*")] == ["backup.parquet"]
        copy(to, parse_end("restored"), STOP)
        with open_index(load_settings(index="restored")) as restored:
            assert_same_records(index, restored)
    # What has changed meanwhile is copied, too.
    [record] = index.fetch(["pics/000 .jpg"]).values()
    index.upsert([replace(record, label="changed")])
    copied = copy(parse_end("images"), to, STOP)
    assert copied.written == (COUNT if isinstance(to, Path) else 1)


def replace_index(name: str) -> None:
    """What `refit` does: another index takes the place of one, here with one picture more."""
    model = MODEL.model_copy(update={"fingerprint": "1" * 16})
    [one] = some_records()[:1]
    with succession(load_settings(index=name)) as place:
        with place.create(Manifest.new(model, "cosine", "__default__"), None) as successor:
            successor.upsert([*some_records(), replace(one, id="pics/1")])
        with place.writers_waiting():
            place.put_in_use()


def in_the_middle(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Do something after some records were compared."""
    are_same = copying._are_same
    calls = 0

    def patched(*arguments: Any, **keywords: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls == COUNT // 2:
            do()
        return are_same(*arguments, **keywords)

    monkeypatch.setattr(copying, "_are_same", patched)


def test_what_is_replaced_while_it_is_copied_is_copied_as_it_was(
    index: VectorIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_middle(monkeypatch, lambda: replace_index("images"))
    assert copy(parse_end("images"), parse_end("other"), STOP).written == COUNT
    assert "FROM was replaced meanwhile" in caplog.text
    with open_index(load_settings(index="other")) as other:
        assert_same_records(index, other)
        assert other.manifest.model == index.manifest.model
    # What there is now is not mixed with that.
    with pytest.raises(IndexMismatchError, match="was built with"):
        copy(parse_end("images"), parse_end("other"), STOP)


def test_a_target_that_is_replaced_meanwhile_is_told(
    index: VectorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()
    stopped.set()
    assert copy(parse_end("images"), parse_end("other"), stopped).interrupted
    in_the_middle(monkeypatch, lambda: replace_index("other"))
    for match in ("was replaced meanwhile", "was built with"):
        with pytest.raises(IndexMismatchError, match=match):
            copy(parse_end("images"), parse_end("other"), STOP)
    assert index.count() == COUNT


def test_a_file_is_begun_anew_where_the_index_was_replaced(
    index: VectorIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "backup.parquet"
    stopped = threading.Event()
    stopped.set()
    assert copy(parse_end("images"), path, stopped).interrupted
    index.delete(list(index.ids()))
    replace_index("images")
    copied = copy(parse_end("images"), path, STOP)
    assert (copied.written, copied.unchanged) == (COUNT + 1, 0)
    assert "starting again" in caplog.text
    copy(path, parse_end("restored"), STOP)
    with (
        open_index(load_settings()) as new,
        open_index(load_settings(index="restored")) as restored,
    ):
        assert_same_records(new, restored)


@pytest.mark.slow
def test_a_damaged_file_is_told(index: VectorIndex, tmp_path: Path) -> None:
    path = tmp_path / "backup.parquet"
    copy(parse_end("images"), path, STOP)
    whole = path.read_bytes()
    told = 0
    for number, offset in enumerate([1000, *range(0, len(whole), len(whole) // 7)]):
        content = bytearray(whole)
        content[offset] ^= 0xFF
        path.write_bytes(content)
        to = load_settings(index=f"restored{number}")
        try:
            copy(path, to, STOP)
        except (StoreError, SettingsError):
            told += 1
        else:  # in what nobody reads, as the schema is there twice
            with open_index(to) as restored:
                assert_same_records(index, restored)
                assert restored.load_recipe() is not None
                assert restored.load_sample().fingerprint == index.load_sample().fingerprint
    assert told >= 2
    path.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"backup\.parquet"):
        copy(path, parse_end("restored"), STOP)
    assert index.count() == COUNT


def test_nothing_is_mixed_or_lost(index: VectorIndex, tmp_path: Path) -> None:
    def refused(source: str, target: str, error: type[ImageSearchError], message: str) -> None:
        with pytest.raises(error, match=message):
            copy(parse_end(source), parse_end(target), STOP)

    refused("images", "embedded:images", SettingsError, "the same")
    refused("nothing", "other", IndexNotFoundError, "no index 'nothing'")
    refused(str(tmp_path / "no.parquet"), "other", IndexNotFoundError, "no file")
    with create_index(load_settings(index="other"), index.manifest) as other:
        other.upsert([replace(some_records()[0], id="mine")])
    refused("images", "other", StoreError, "such as mine")
    model = MODEL.model_copy(update={"fingerprint": "1" * 16})
    create_index(load_settings(index="model"), Manifest.new(model, "cosine", "x")).close()
    refused("images", "model", IndexMismatchError, "was built with")
    manifest = Manifest.new(MODEL, "euclidean", "x")
    create_index(load_settings(index="metric"), manifest).close()
    refused("images", "metric", IndexMismatchError, "euclidean")
    for bad in ("a:b:c", "redis:images", "images/", "", "pinecone:"):
        with pytest.raises(SettingsError, match="names no index"):
            parse_end(bad)
    with pytest.raises(SettingsError, match="INDEX"):
        parse_end("Images")


@pytest.mark.long
def test_the_command(index: VectorIndex, tmp_path: Path) -> None:
    file = str(tmp_path / "backup.parquet")
    code, out, _ = run("worker", "copy", "images", file)
    assert code == 0
    assert "90 images written" in out
    assert run("worker", "copy", file, "pinecone:images")[0] == 0
    code, _, err = run("worker", "copy", file, "wrong:images")
    assert code == 2
    assert "names no index" in err
    assert index.count() == COUNT
