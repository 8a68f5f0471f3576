"""`duplicates`: the groups of a whole index, against all pairs in NumPy."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_search.duplicates import NEAR_DUPLICATE_COSINE
from image_search.embedding import Embedder
from image_search.index import Match, Record, VectorIndex
from image_search.manifest import Manifest
from image_search.settings import load_settings
from image_search.stores import create_index
from image_search.values import DIMENSION, Embeddings, Metric
from tests.support.images import encode
from tests.support.indexes import MODEL, fill, source_of, use_store
from tests.support.processes import run
from worker.duplicates import Duplicates, find_duplicates, json_lines
from worker.sources import Item, sample

METRICS: list[Metric] = ["cosine", "euclidean", "dotproduct"]


@pytest.fixture(params=["embedded", "pinecone"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with use_store(request.param, monkeypatch) as name:
        yield name


def index_of(embeddings: Any, metric: Metric = "cosine", label: str | None = None) -> VectorIndex:
    """An index of these embeddings, whose ids are their places."""
    settings = load_settings(metric=metric)
    index = create_index(settings, Manifest.new(MODEL, metric, settings.namespace))
    rows = np.asarray(embeddings, np.float32)
    index.upsert([Record(f"{n:05d}", row, label, {}, b"jpeg") for n, row in enumerate(rows)])
    index.flush()
    return index


def planted(seed: int, others: int, copies: list[int], noise: float = 0.05) -> Any:
    """Random directions, and around some of them so many more, in random order; unit length."""
    rng = np.random.default_rng(seed)
    around = [
        rng.standard_normal(DIMENSION) + noise * rng.standard_normal((count, DIMENSION))
        for count in copies
    ]
    everything = rng.permutation(
        np.concatenate([rng.standard_normal((others, DIMENSION)), *around])
    )
    return everything / np.linalg.norm(everything, axis=1, keepdims=True)


def all_pairs(embeddings: Any, threshold: float) -> list[tuple[list[str], list[float]]]:
    """Connected components of all pairs at or above the threshold, and each one's best cosine."""
    rows = np.asarray(embeddings, np.float32).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1)
    linked = cosines >= threshold
    left = set(np.flatnonzero(linked.any(axis=1)).tolist())
    components = []
    while left:
        group, front = set(), {min(left)}
        while front:
            group |= front
            front = set(np.flatnonzero(linked[sorted(front)].any(axis=0)).tolist()) - group
        left -= group
        best = cosines[sorted(group)].max(axis=1)
        components.append(([f"{n:05d}" for n in sorted(group)], best.tolist()))
    return sorted(components, key=lambda component: (-len(component[0]), component[0][0]))


def assert_same(found: Duplicates, expected: list[tuple[list[str], list[float]]]) -> None:
    assert [[image.id for image in group] for group in found.groups] == [ids for ids, _ in expected]
    for group, (_, scores) in zip(found.groups, expected, strict=True):
        np.testing.assert_allclose([image.score for image in group], scores, atol=1e-5)
    assert found.grouped == sum(len(ids) for ids, _ in expected)


@pytest.mark.long
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("threshold", [0.5, 0.97, 0.9978])
def test_groups_are_those_of_all_pairs(store: str, metric: Metric, threshold: float) -> None:
    embeddings = planted(1, 200, [2, 2, 3, 7, 30])
    with index_of(embeddings, metric) as index:
        found = find_duplicates(index, threshold)
    expected = all_pairs(embeddings, threshold)
    assert_same(found, expected)
    # Of the planted pairs, some are below the highest threshold, and all are above the others.
    assert (len(expected[0][0]) == 30) == (threshold < 0.99), store
    assert (found.images, found.crowded) == (244, 0)


@pytest.mark.slow
def test_more_copies_than_are_asked_for_at_first_are_one_group() -> None:
    embeddings = planted(2, 100, [250])
    with index_of(embeddings) as index:
        found = find_duplicates(index, 0.97)
    assert_same(found, all_pairs(embeddings, 0.97))


def test_a_chain_is_one_group() -> None:
    # Each is near the one before, and the last is far from the first.
    angles = np.arange(40) * 0.2
    embeddings = np.zeros((40, DIMENSION))
    embeddings[:, 0], embeddings[:, 1] = np.cos(angles), np.sin(angles)
    with index_of(embeddings[:16]) as index:
        found = find_duplicates(index, 0.97)
    [group] = found.groups
    assert len(group) == 16


def test_thousands_of_the_same_embedding_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = np.tile(planted(3, 1, []), (3000, 1))
    with index_of(embeddings) as index:
        asked: list[int] = []
        query_many = index.query_many

        def counted(rows: Embeddings, top_k: int, **options: Any) -> list[list[Match]]:
            asked.append(len(rows))
            return query_many(rows, top_k, **options)

        monkeypatch.setattr(index, "query_many", counted)
        found = find_duplicates(index, 0.97)
    [group] = found.groups
    assert len(group) == 3000
    assert {image.score for image in group} == {1.0}
    assert sum(asked) <= 3, "not each of them asked for all the others"


@pytest.mark.long
@pytest.mark.slow
def test_with_a_vector_index_planted_copies_are_found() -> None:
    embeddings = planted(4, 10_000, [2] * 60, noise=0.1)
    with index_of(embeddings) as index:
        found = find_duplicates(index, 0.97)
    # Random directions are far from each other, so that pairs this near are those planted.
    assert [len(group) for group in found.groups] == [2] * 60
    for one, other in found.groups:
        cosine = embeddings[int(one.id)] @ embeddings[int(other.id)]
        assert cosine > 0.98
        assert one.score == other.score == pytest.approx(cosine, abs=1e-5)


def test_plain_embeddings_compared_by_product_may_hide_copies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    embeddings = planted(5, 60, [2])
    with index_of(embeddings, "dotproduct") as index:
        find_duplicates(index, 0.97)
        assert not caplog.records
        index.upsert([Record("long", np.full(DIMENSION, 9, np.float32), None, {}, b"")])
        find_duplicates(index, 0.97)
    assert "some near-duplicates may be missing" in caplog.text


def test_of_lengths_that_differ_the_angle_decides() -> None:
    rng = np.random.default_rng(6)
    embeddings = planted(6, 60, [2, 3]) * rng.uniform(0.8, 1.25, (65, 1))
    with index_of(embeddings, "euclidean") as index:
        assert_same(find_duplicates(index, 0.97), all_pairs(embeddings, 0.97))


def test_none_in_an_empty_index_and_in_one_of_one_image(store: str) -> None:
    with index_of(np.empty((0, DIMENSION))) as index:
        assert find_duplicates(index, 0.97).groups == [], store
        index.upsert([Record("one", np.ones(DIMENSION, np.float32), None, {}, b"")])
        assert find_duplicates(index, 0.97).groups == []


def test_json_has_a_line_for_each_group() -> None:
    embeddings = planted(7, 20, [2, 3])
    with index_of(embeddings, label='a "label"\n') as index:
        found = find_duplicates(index, 0.97)
    lines = [json.loads(line) for line in json_lines(found, None)]
    assert [line["group"] for line in lines] == [1, 2]
    assert [[image["id"] for image in line["images"]] for line in lines] == [
        ids for ids, _ in all_pairs(embeddings, 0.97)
    ]
    assert {frozenset(line) for line in lines} == {frozenset({"group", "images"})}
    for image in lines[0]["images"]:
        assert image.keys() == {"id", "label", "score"}
        assert image["label"] == 'a "label"\n'
        assert 0.97 <= image["score"] <= 1
    assert list(json_lines(found, 1)) == list(json_lines(found, None))[:1]


# --- pictures, as users run it -------------------------------------------------------------------


def copies_of(image: Image.Image) -> dict[str, Image.Image]:
    """The same picture: re-encoded, resized, and lightly cropped."""
    jpeg = Image.open(io.BytesIO(encode(image, "JPEG", quality=85))).convert("RGB")
    width, height = image.size
    return {
        "jpeg": jpeg,
        "smaller": image.resize((3 * width // 4, 3 * height // 4), Image.Resampling.LANCZOS),
        "cropped": image.crop((1, 1, width - 1, height - 1)),
    }


@pytest.fixture
def pictures(embedder: Embedder) -> set[frozenset[str]]:
    """An index of drawings, some with copies; returns the groups that it should have."""
    items, expected = [], set()
    for number, kind in enumerate(sample.KINDS):
        drawing = sample.draw(kind, 7)
        items.append(Item(f"<b>{kind}</b>", "a & b", np.asarray(drawing), {}))
        if number < 4:
            for name, copy in copies_of(drawing).items():
                items.append(Item(f"<b>{kind}</b> {name}", "a & b", np.asarray(copy), {}))
            expected.add(frozenset(item.id for item in items[-4:]))
    fill(load_settings(), embedder, source_of(lambda: iter(items), len(items))).close()
    return expected


class Page(HTMLParser):
    """What a browser would show of a page, and fetch for it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


@pytest.mark.long
def test_copies_of_pictures_are_listed_and_shown(
    pictures: set[frozenset[str]], tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    code, out, err = run("worker", "duplicates", "--json", "--page", str(path))
    assert code == 0, err
    groups = {
        frozenset(image["id"] for image in json.loads(line)["images"]) for line in out.splitlines()
    }
    assert groups == pictures
    assert "4 groups of near-duplicates, 16 of 22 images, with a cosine of " in err
    page = Page(path.read_text())
    assert {*page.text} >= {id_ for group in pictures for id_ in group}, "each id is readable"
    assert "b" not in page.tags, "ids are escaped"
    assert len(page.sources) == 16
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert re.search(r"prefers-color-scheme: dark", path.read_text())

    code, out, _ = run("worker", "duplicates", "--limit", "1")
    assert code == 0
    assert "group 1: 4 images" in out
    assert "group 2" not in out
    assert "only the 1 largest groups are shown: --limit 4 shows all" in out
    code, out, _ = run("worker", "duplicates", "--threshold", "1")
    assert (code, out.split(",")[0]) == (0, "no near-duplicates among 22 images")


@pytest.mark.slow
def test_what_cannot_be_done_says_why(tmp_path: Path) -> None:
    assert "ingest images first" in run("worker", "duplicates")[2]
    for bad in (
        ["--threshold", "0"],
        ["--threshold", "1.1"],
        ["--threshold", "x"],
        ["--limit", "0"],
    ):
        assert run("worker", "duplicates", *bad)[0] == 2
    code, _, err = run("worker", "duplicates", "--page", str(tmp_path / "missing" / "page.html"))
    assert (code, "a folder that exists" in err) == (2, True)


@pytest.mark.slow
def test_a_reader_that_ends_ends_it_without_a_word(pictures: set[frozenset[str]]) -> None:
    command = f"{sys.executable} -m worker duplicates --json | true; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, timeout=120
    )
    assert ended.stdout.split() == ["141"], len(pictures)
    assert "Error" not in ended.stderr
    assert "error" not in ended.stderr


def test_there_is_a_threshold_for_each_recipe() -> None:
    assert all(0 < threshold < 1 for threshold in NEAR_DUPLICATE_COSINE.values())
