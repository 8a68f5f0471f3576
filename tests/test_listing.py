"""`python -m worker sources`: what came from where, when, and how many."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from image_search.manifest import Manifest
from image_search.provenance import KnownSource
from image_search.settings import Settings, load_settings
from image_search.stores import create_index, open_index
from tests.support.images import folder_of
from tests.support.indexes import FakeEmbedder, fill, source_of, use_store
from tests.support.processes import run
from worker.ingest import ingest
from worker.listing import as_json, as_text, list_sources
from worker.origin import named_in, remember
from worker.sources import Item, open_source

TIME = datetime(2026, 3, 1, 12, 5, tzinfo=UTC)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["embedded", "pinecone"])
def test_images_are_counted_by_source(
    store: str, monkeypatch: pytest.MonkeyPatch, fake_embedder: FakeEmbedder, tmp_path: Path
) -> None:
    with use_store(store, monkeypatch):
        manifest = Manifest.new(fake_embedder.model, "cosine", "__default__")
        index = create_index(load_settings(), manifest)
        assert list_sources(index) == []
        places = {}
        for count, name in ((3, "a/été"), (4, "b/été"), (2, "my-photos")):
            path = folder_of(tmp_path / name, count)
            source = named_in(index, open_source(str(path), data_dir=tmp_path))
            remember(index, source)
            ingest(source, index, fake_embedder, load_settings())
            remember(index, source, TIME)
            assert source.origin is not None
            places[source.origin.name] = (str(path), count)
        sample = open_source("sample", data_dir=tmp_path).limited(5)
        remember(index, sample, TIME)
        ingest(sample, index, fake_embedder, load_settings())
        pixels = next(iter(sample.items())).content
        by_hand = source_of(lambda: iter([Item("mine", None, pixels, {})]), 1)
        ingest(by_hand, index, fake_embedder, load_settings())
        listed = list_sources(index)
        index.close()
    places |= {"sample": ("", 5), "": ("", 1)}
    assert {one.name or "": (one.place, one.images) for one in listed} == places
    assert [one.ingested_at for one in listed] == [TIME] * 4 + [None]
    text = as_text(listed)
    assert "my-photos" in text
    assert "2026-03-01 12:05 UTC" in text
    assert json.loads(as_json(listed))[-1]["name"] is None


def test_what_an_earlier_version_kept_is_read(
    settings: Settings, fake_embedder: FakeEmbedder
) -> None:
    fill(settings, fake_embedder).close()
    [table] = (settings.local_dir / "indexes" / "images").glob("*.lance")
    table.with_suffix(".sources.json").write_text('{"pics": "/a/pics"}')
    with open_index(settings) as index:
        assert index.load_sources() == {"pics": KnownSource(place="/a/pics")}
        index.save_source("other", KnownSource(place="/b"))
        assert set(index.load_sources()) == {"pics", "other"}


@pytest.mark.long
def test_the_command(tmp_path: Path) -> None:
    code, _, err = run("worker", "sources")
    assert code == 1
    assert "ingest images first" in err
    folder = folder_of(tmp_path / "pics", 3)
    assert run("worker", "ingest", str(folder))[0] == 0
    code, out, _ = run("worker", "sources", "--json")
    assert code == 0
    [source] = json.loads(out)
    assert (source["name"], source["place"], source["images"]) == ("pics", str(folder), 3)
    assert datetime.fromisoformat(source["ingested_at"]) <= datetime.now(UTC)
    # A folder of the same name elsewhere; sources are listed by name.
    (tmp_path / "b").mkdir()
    os.rename(folder, tmp_path / "b" / "pics")
    assert run("worker", "ingest", str(tmp_path / "b" / "pics"))[0] == 0
    code, out, _ = run("worker", "sources")
    assert code == 0
    header, line = out.splitlines()
    assert header.split()[:2] == ["SOURCE", "IMAGES"]
    assert line.split()[:2] == ["pics", "3"]
    assert line.endswith(str(tmp_path / "b" / "pics"))
