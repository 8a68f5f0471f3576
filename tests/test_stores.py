"""One contract, run against every store; scores are compared with NumPy, filters with Python."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any

import numpy as np
import pytest

from image_search.calibration import Calibration
from image_search.errors import IndexNotFoundError, RecordError, UnsupportedError
from image_search.filters import Condition, parse_filter
from image_search.index import (
    Listed,
    Listing,
    Match,
    Page,
    Record,
    Sort,
    VectorIndex,
)
from image_search.manifest import Manifest, ModelSpec
from image_search.provenance import KnownSource
from image_search.recipe import Form, Recipe
from image_search.sample import TEXTURES, ImageSample
from image_search.settings import load_settings
from image_search.stores import create_index, open_index
from image_search.values import DIMENSION, Metadata, Metric, Pooling
from image_search.words import words_of
from tests.support.indexes import (
    IN_A_BUCKET,
    IN_SNAPSHOTS,
    MODEL,
    ON_DISK,
    STRAINED,
    use_store,
)

METRICS: list[Metric] = ["cosine", "euclidean", "dotproduct"]


@pytest.fixture(
    params=[
        "embedded",
        "pinecone",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in (IN_A_BUCKET, IN_SNAPSHOTS, ON_DISK, STRAINED)
        ),
    ],
    autouse=True,
)
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with use_store(request.param, monkeypatch) as name:
        yield name


@pytest.fixture
def many(store: str) -> int:
    """More rows than a store scans one by one; the emulator always does."""
    return 12_000 if store == "embedded" else 1_200


class Indexes:
    """Creates and opens indexes, and closes them in the end."""

    def __init__(self) -> None:
        self._opened: list[VectorIndex] = []

    def __call__(
        self,
        metric: Metric = "cosine",
        namespace: str = "__default__",
        model: ModelSpec = MODEL,
        recipe: Recipe | None = None,
    ) -> VectorIndex:
        settings = load_settings(metric=metric, namespace=namespace)
        self._opened.append(create_index(settings, Manifest.new(model, metric, namespace), recipe))
        return self._opened[-1]

    def open(self) -> VectorIndex:
        self._opened.append(open_index(load_settings()))
        return self._opened[-1]

    def close(self) -> None:
        for index in self._opened:
            index.close()


@pytest.fixture
def create(store: str) -> Iterator[Indexes]:  # noqa: ARG001
    indexes = Indexes()
    yield indexes
    indexes.close()


def vectors(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


def record(
    id_: str,
    embedding: Any = None,
    label: str | None = None,
    metadata: Metadata | None = None,
    thumbnail: bytes = b"jpeg",
) -> Record:
    if embedding is None:
        embedding = vectors(1, seed=sum(id_.encode()))[0]
    return Record(id_, embedding, label, metadata or {}, thumbnail)


def numpy_scores(metric: Metric, rows: Any, query: Any) -> Any:
    rows, query = rows.astype(np.float64), query.astype(np.float64)
    if metric == "euclidean":
        return ((rows - query) ** 2).sum(axis=1)
    products = rows @ query
    if metric == "dotproduct":
        return products
    return products / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)


def ids(matches: list[Match]) -> list[str]:
    return [match.id for match in matches]


# --- queries -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("top_k", [0, 1, 10, 200, 1000])
def test_query_agrees_with_numpy(create: Indexes, metric: Metric, top_k: int) -> None:
    index = create(metric)
    rows = vectors(200)
    index.upsert([record(f"r{i:03d}", row) for i, row in enumerate(rows)])
    for query in vectors(5, seed=1):
        scores = numpy_scores(metric, rows, query)
        sign = 1 if metric == "euclidean" else -1
        best = sign * np.sort(sign * scores)[:top_k]
        matches = index.query(query, top_k)
        found = [match.score for match in matches]
        rows_found = [int(id_[1:]) for id_ in ids(matches)]
        # Ids are compared by their scores: two may differ by less than float32 tells apart.
        for expected in (best, scores[rows_found]):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert len(set(ids(matches))) == min(top_k, 200)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_many_queries_find_what_each_finds_alone(
    create: Indexes, metric: Metric, count: int
) -> None:
    index = create(metric)
    rows = vectors(120)
    index.upsert([record(f"r{i:03d}", row, ["even", "odd"][i % 2]) for i, row in enumerate(rows)])
    queries = vectors(40, seed=1)[:count]
    for top_k, filter_ in ((0, None), (7, None), (7, Condition("label", "$eq", "odd"))):
        found = index.query_many(queries, top_k, filter_)
        assert len(found) == count
        for query, matches in zip(queries, found, strict=True):
            alone = index.query(query, top_k, filter_)
            assert ids(matches) == ids(alone)
            np.testing.assert_allclose(
                [match.score for match in matches], [match.score for match in alone], rtol=1e-5
            )
            assert [match.label for match in matches] == [match.label for match in alone]


@pytest.mark.parametrize("metric", METRICS)
def test_equal_scores_are_ordered_by_id(create: Indexes, metric: Metric) -> None:
    index = create(metric)
    same = vectors(1)[0]
    index.upsert([record(name, same) for name in ("c", "a", "b")])
    assert ids(index.query(same, 3)) == ["a", "b", "c"]


@pytest.mark.long
@pytest.mark.parametrize("metric", METRICS)
def test_query_stays_right_with_a_vector_index_and_with_rows_added_after_it(
    create: Indexes, metric: Metric, many: int
) -> None:
    # Clustered like embeddings.
    centres = vectors(40)
    rows = np.repeat(centres, many // 40, axis=0) + vectors(many, seed=2)
    labels = [f"label {i % 7}" for i in range(len(rows))]
    records = [
        record(f"r{i:05d}", row, label)
        for i, (row, label) in enumerate(zip(rows, labels, strict=True))
    ]
    index = create(metric)
    first, second = many * 5 // 12, many * 11 // 12
    index.upsert(records[:first])
    index.flush()
    index.upsert(records[first:second])
    index.flush()
    index.upsert(records[:100])
    index.flush()
    index.flush()
    index.upsert(records[second:])
    allowed = np.array([label in {"label 3", "label 5"} for label in labels])
    found = wanted = 0
    for query in centres + vectors(40, seed=3):
        scores = numpy_scores(metric, rows, query) * (1 if metric == "euclidean" else -1)
        for filter_, candidates in (
            (None, np.arange(len(rows))),
            ({"label": {"$in": ["label 3", "label 5"]}}, np.flatnonzero(allowed)),
        ):
            best = candidates[np.argsort(scores[candidates])[:10]]
            matches = index.query(query, 10, parse_filter(filter_ or {}))
            found += len({f"r{i:05d}" for i in best} & set(ids(matches)))
            wanted += 10
    assert found / wanted >= 0.99
    assert len({match.id for match in index.query(centres[0], 1_000)}) == 1_000
    index.flush()
    matches = index.query(centres[0], 10)
    rows_found = [int(id_[1:]) for id_ in ids(matches)]
    np.testing.assert_allclose(
        [match.score for match in matches],
        numpy_scores(metric, rows[rows_found], centres[0]),
        rtol=1e-5,
    )


@pytest.mark.slow
def test_a_filter_that_few_records_pass_still_finds_them_all(create: Indexes, many: int) -> None:
    index = create()
    rows = vectors(many)
    index.upsert([record(f"r{i:05d}", row, metadata={"number": i}) for i, row in enumerate(rows)])
    index.flush()
    matches = index.query(rows[0], 10, parse_filter({"number": {"$gte": many - 7}}))
    assert sorted(ids(matches)) == [f"r{i:05d}" for i in range(many - 7, many)]


@pytest.mark.parametrize(
    "embedding",
    [
        np.full(DIMENSION, np.nan, np.float32),
        np.full(DIMENSION, 1e-30, np.float32),
        np.full(DIMENSION, 1e-14, np.float32),
        np.full(DIMENSION, 1e30, np.float32),
        np.eye(1, DIMENSION, dtype=np.float32)[0] * np.float32(1e-30),
        np.full(DIMENSION, np.inf, np.float32),
        np.zeros(DIMENSION, np.float32),
        np.ones(DIMENSION - 1, np.float32),
        np.ones(DIMENSION, np.float64),
        np.ones((1, DIMENSION), np.float32),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(create: Indexes, embedding: Any) -> None:
    index = create()
    with pytest.raises(RecordError, match="'bad'"):
        index.upsert([record("good"), record("bad", embedding)])
    assert index.count() == 0
    with pytest.raises(RecordError):
        index.query(embedding, 1)
    if embedding.shape == (DIMENSION,):
        with pytest.raises(RecordError):
            index.query_many(np.stack([*vectors(3), embedding]), 1)


@pytest.mark.parametrize("length", [1e-11, 1e-3, 1e11])
def test_vectors_of_any_valid_length_are_kept_and_found(create: Indexes, length: float) -> None:
    rows = vectors(3)
    rows *= np.float32(length) / np.linalg.norm(rows, axis=1, keepdims=True)
    index = create()
    index.upsert([record(f"r{i}", row) for i, row in enumerate(rows)])
    for id_, found in index.fetch(["r0", "r1", "r2"]).items():
        expected = rows[int(id_[1:])]
        np.testing.assert_allclose(found.embedding, expected, rtol=1e-5, atol=1e-6 * length)
    assert [ids(index.query(row, 1)) for row in rows] == [["r0"], ["r1"], ["r2"]]


@pytest.mark.parametrize("top_k", [-1, 10_001])
def test_top_k_out_of_range_is_refused(create: Indexes, top_k: int) -> None:
    with pytest.raises(RecordError, match="top_k"):
        create().query(vectors(1)[0], top_k)


# --- filters -----------------------------------------------------------------------------------

VALUES: list[Any] = [
    *("abc", "5", "true", "", "q\"uo'te", "back\\slash", "new\nline", "ünï😀", "\x01\x7f/"),
    *(5, 5.5, -1e20, 0, True, False, 2**53 - 1, 1e-7),
    *(["a", "abc"], ["5"], []),
]
FIELDS = ["plain", "with space", "do.t", "q'u\"o", "back\\slash", "ünï", "a/b[0]", "SELECT"]


def field_records() -> list[Record]:
    return [
        record(
            f"f{f:02d}-{v:02d}",
            vectors(1, seed=100 * f + v)[0],
            [None, "cat", "dog", "5"][v % 4],
            {field: value},
        )
        for f, field in enumerate(FIELDS)
        for v, value in enumerate(VALUES)
    ]


def passes(item: Record, field: str, operator: str, operand: Any) -> Any:
    """Pinecone's meaning of one condition, in plain Python."""
    value: Any = item.label if field == "label" else item.metadata.get(field)

    def equal(one: Any, other: Any) -> bool:
        if isinstance(one, list):
            return any(equal(element, other) for element in one)
        kinds = [(str, bool).index(type(x)) if type(x) in (str, bool) else 2 for x in (one, other)]
        return bool(one is not None and kinds[0] == kinds[1] and one == other)

    number: Any = isinstance(value, int | float) and not isinstance(value, bool)
    match operator:
        case "$eq":
            return equal(value, operand)
        case "$ne":
            return not equal(value, operand)
        case "$in":
            return any(equal(value, element) for element in operand)
        case "$nin":
            return not any(equal(value, element) for element in operand)
        case "$exists":
            return (value is not None) == operand
        case "$gt":
            return number and value > operand
        case "$gte":
            return number and value >= operand
        case "$lt":
            return number and value < operand
        case "$lte":
            return number and value <= operand
    raise AssertionError(operator)


OPERANDS: dict[str, list[Any]] = {
    **{o: [value for value in VALUES if not isinstance(value, list)] for o in ("$eq", "$ne")},
    **{o: [5, 5.5, 0, 1e-7, -1e21] for o in ("$gt", "$gte", "$lt", "$lte")},
    **{o: [["abc", 5], ["ünï😀"], [5.5, "5"], ["cat", "dog"]] for o in ("$in", "$nin")},
    "$exists": [True, False],
}


@pytest.mark.slow
def test_every_operator_on_every_kind_of_value_agrees_with_python(create: Indexes) -> None:
    index = create()
    records = field_records()
    index.upsert(records)
    for field in [*FIELDS, "label", "nowhere"]:
        for operator, operands in OPERANDS.items():
            for operand in operands:
                expected = {item.id for item in records if passes(item, field, operator, operand)}
                found = index.query(
                    records[0].embedding, 1000, parse_filter({field: {operator: operand}})
                )
                assert set(ids(found)) == expected, (field, operator, operand)


def test_conditions_combine(create: Indexes) -> None:
    index = create()
    records = field_records()
    index.upsert(records)

    def query(source: Any) -> set[str]:
        return set(ids(index.query(records[0].embedding, 1000, parse_filter(source))))

    def expected(test: Callable[[Record], bool]) -> set[str]:
        return {item.id for item in records if test(item)}

    assert query({}) == expected(lambda _: True)
    assert query({"label": "cat"}) == expected(lambda item: item.label == "cat")
    assert query({"plain": {"$gte": 0, "$lt": 5.5}, "label": {"$ne": "cat"}}) == expected(
        lambda item: (
            passes(item, "plain", "$gte", 0)
            and passes(item, "plain", "$lt", 5.5)
            and item.label != "cat"
        )
    )
    assert query(
        {"$or": [{"label": "dog"}, {"$and": [{"plain": {"$exists": True}}, {"plain": True}]}]}
    ) == expected(lambda item: item.label == "dog" or item.metadata.get("plain") is True)


# --- records -----------------------------------------------------------------------------------


def test_fetch_returns_what_was_upserted(create: Indexes) -> None:
    index = create()
    full = record("full", label="cat", metadata={"a": 1, "b": 1.5, "c": True, "d": ["x", "ü"]})
    bare = record("bare", thumbnail=b"")
    index.upsert([full, bare])
    found = index.fetch(["full", "bare", "none"])
    assert found.keys() == {"full", "bare"}
    for expected in (full, bare):
        got = found[expected.id]
        np.testing.assert_allclose(got.embedding, expected.embedding, rtol=1e-6, atol=1e-7)
        assert (got.label, got.metadata, got.thumbnail) == (
            expected.label,
            expected.metadata,
            expected.thumbnail,
        )
    [match] = index.query(full.embedding, 1)
    assert (match.id, match.label, match.metadata, match.thumbnail) == (
        "full",
        "cat",
        full.metadata,
        b"jpeg",
    )


def test_thumbnails_may_be_left_out(create: Indexes) -> None:
    index = create()
    one, bare = record("one", label="cat", metadata={"a": 1}), record("bare", thumbnail=b"")
    index.upsert([one, bare])
    [found] = index.fetch(["one"], thumbnails=False).values()
    assert (found.label, found.metadata, found.thumbnail) == ("cat", {"a": 1}, b"")
    np.testing.assert_allclose(found.embedding, one.embedding, atol=1e-6)
    for thumbnails, expected in ((False, b""), (True, b"jpeg")):
        [match] = index.query(one.embedding, 1, thumbnails=thumbnails)
        assert (match.id, match.metadata, match.thumbnail) == ("one", {"a": 1}, expected)
    # A thumbnail that was there before does not stay, and one that is added is shown.
    index.upsert([replace(one, thumbnail=b""), replace(bare, thumbnail=b"new")])
    assert {id_: item.thumbnail for id_, item in index.fetch(["one", "bare"]).items()} == {
        "one": b"",
        "bare": b"new",
    }
    index.delete(["bare"])
    index.upsert([bare])
    assert index.fetch(["bare"])["bare"].thumbnail == b""


def test_thumbnails_are_given_alone(create: Indexes) -> None:
    index = create()
    index.upsert([record("a", thumbnail=b"one"), record("b", thumbnail=b""), record("c")])
    assert index.thumbnails(["c", "b", "a", "none"]) == {"a": b"one", "c": b"jpeg"}
    assert index.thumbnails([]) == {}


def test_records_in_a_state_are_told_without_reading_them(create: Indexes, store: str) -> None:
    index = create()
    assert index.tells_states == (store == "pinecone")
    assert index.held({}) == set()
    assert index.held({"a": "one"}) == set()
    index.upsert([replace(record(id_), state=f"state of {id_}") for id_ in ("a", "b", "c")])
    index.upsert([record("without")])
    known = {"a", "c"} if store == "pinecone" else set()
    assert index.held({"a": "state of a", "b": "other", "c": "state of c", "d": "x"}) == known
    assert index.fetch(["a"])["a"].metadata == {}
    index.upsert([record("a"), replace(record("b"), state="newer")])
    index.delete(["c"])
    known = {"b"} if store == "pinecone" else set()
    assert index.held({"a": "state of a", "b": "newer", "c": "state of c"}) == known


def test_upsert_overwrites_by_id_and_the_last_of_a_batch_wins(create: Indexes) -> None:
    index = create()
    index.upsert([record("a", label="old"), record("b", label="kept")])
    index.upsert([record("a", label="new"), record("a", label="newest")])
    assert index.count() == 2
    assert {id_: item.label for id_, item in index.fetch(["a", "b"]).items()} == {
        "a": "newest",
        "b": "kept",
    }


@pytest.mark.parametrize("id_", ["", "x" * 513, "new\nline", "umläut"])
def test_ids_that_pinecone_would_refuse_are_refused(create: Indexes, id_: str) -> None:
    with pytest.raises(RecordError, match="id"):
        create().upsert([record(id_, vectors(1)[0])])


def generated_ids(count: int) -> list[str]:
    """Ids of all lengths and printable ASCII characters, among them those that addresses escape."""
    random = Random(0)
    printable = [chr(code) for code in range(ord(" "), ord("~") + 1)]
    delicate = list(" +%&=#?/;:@\\\"'.~*(),$")
    ids = {
        "a b",
        "a+b",
        "a%20b",
        "a%2Bb",
        " ",
        "+",
        " a",
        "a ",
        ".",
        "..",
        "a&ids=b",
        "#",
        "~" * 512,
    }
    while len(ids) < count:
        length = random.choice([1, 2, 5, 20, 100, 511, 512])
        ids.add("".join(random.choices(random.choice([printable, delicate]), k=length)))
    return sorted(ids)


@pytest.mark.slow
def test_ids_of_any_spelling_work_everywhere(create: Indexes) -> None:
    ids_ = generated_ids(150)
    rows = vectors(len(ids_))
    index = create()
    index.upsert([record(id_, row) for id_, row in zip(ids_, rows, strict=True)])
    assert index.fetch([*ids_, "none"]).keys() == set(ids_)
    assert list(index.list_ids(limit=1000).ids) == ids_
    assert set(index.ids()) == set(ids_)
    assert set(ids(index.query(rows[0], 1000))) == set(ids_)
    for prefix in [" ", "+", "%", "a ", "a+", "a%", "~", *[id_[:3] for id_ in ids_[::10]]]:
        expected = [id_ for id_ in ids_ if id_.startswith(prefix)]
        assert index.list_ids(prefix=prefix, limit=1000).ids == expected, prefix
    for id_, row in zip(ids_[::30], rows[::30], strict=True):
        assert index.fetch([id_]).keys() == {id_}
        assert ids(index.query(row, 1)) == [id_]
    index.delete(ids_[::2])
    assert index.list_ids(limit=1000).ids == ids_[1::2]


@pytest.mark.slow
@pytest.mark.parametrize("id_", ["it's", 'a "b"', "a/b c%20;--", "x" * 512, "%_*", "a\\b"])
def test_unusual_ids_work(create: Indexes, id_: str) -> None:
    index = create()
    index.upsert([record(id_), record("other")])
    assert index.fetch([id_]).keys() == {id_}
    assert index.list_ids(prefix=id_).ids == [id_]
    index.delete([id_])
    assert index.list_ids().ids == ["other"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"label": "x"},
        {"thumbnail": "x"},
        {"__state__": "x"},
        {"$x": 1},
        {"": 1},
        {"x": None},
        {"x": float("nan")},
        {"x": [1]},
        {"x": {"nested": 1}},
    ],
)
def test_metadata_that_pinecone_would_refuse_is_refused(
    create: Indexes, metadata: dict[str, Any]
) -> None:
    with pytest.raises(RecordError, match=r"'r'.*metadata"):
        create().upsert([record("r", metadata=metadata)])


def test_delete_and_count(create: Indexes) -> None:
    index = create()
    index.upsert([record(f"r{i}") for i in range(5)])
    index.delete(["r1", "r3", "none"])
    index.delete([])
    assert index.count() == 3
    assert index.fetch(["r1", "r2"]).keys() == {"r2"}
    assert set(ids(index.query(vectors(1)[0], 10))) == {"r0", "r2", "r4"}


def test_list_ids_pages_in_order_and_by_prefix(create: Indexes) -> None:
    index = create()
    index.upsert([record(f"{kind}-{i:02d}") for i in range(12) for kind in ("cat", "dog", "ca")])
    cats = [f"cat-{i:02d}" for i in range(12)]
    found: list[str] = []
    sizes: list[int] = []
    cursor = ""
    while not sizes or cursor:
        page = index.list_ids(prefix="cat-", limit=5, cursor=cursor)
        found += page.ids
        sizes.append(len(page.ids))
        cursor = page.cursor
    assert found == cats
    assert sizes == [5, 5, 2]
    assert len(index.list_ids(limit=1000).ids) == 36


def test_pages_go_on_behind_ids_that_were_deleted(create: Indexes) -> None:
    index = create()
    index.upsert([record(f"r{i}") for i in range(6)])
    first = index.list_ids(limit=2)
    index.delete(["r1", "r2"])
    assert index.list_ids(limit=2, cursor=first.cursor).ids == ["r3", "r4"]


# --- listings ----------------------------------------------------------------------------------


def listed(index: VectorIndex, listing: Listing, limit: int = 7) -> list[Listed]:
    """All pages of a listing."""
    found: list[Listed] = []
    cursor = ""
    while True:
        page = index.list_images(listing, limit=limit, cursor=cursor)
        assert len(page.images) <= limit
        found += page.images
        if not page.cursor:
            return found
        assert len(page.images) == limit
        cursor = page.cursor


def ids_of(images: list[Listed]) -> list[str]:
    return [image.id for image in images]


def photos(count: int = 60) -> list[Record]:
    return [
        record(
            f"p/{number:03d}",
            label=["cat", "dog", None][number % 3],
            metadata={"taken": 1000 - 7 * (number % 20), "camera": ["A", "B"][number % 2]},
            thumbnail=b"jpeg%d" % number,
        )
        for number in range(count)
    ]


@pytest.mark.slow
def test_all_images_are_listed_in_the_order_of_their_ids(create: Indexes) -> None:
    index = create()
    assert index.list_images(Listing()) == Page([], "")
    records = photos()
    index.upsert([*reversed(records), record("q")])
    for listing in (Listing(prefix="p/"), Listing(prefix="p/", sort=Sort("id"))):
        assert listed(index, listing) == [
            Listed(one.id, one.label, one.metadata) for one in records
        ]
    assert ids_of(listed(index, Listing())) == [one.id for one in records] + ["q"]
    with_pictures = listed(index, Listing(prefix="p/", thumbnails=True))
    assert [image.thumbnail for image in with_pictures] == [one.thumbnail for one in records]


def test_a_filter_lists_what_a_search_with_it_finds(create: Indexes) -> None:
    index = create()
    records = photos()
    index.upsert(records)
    for source in (
        {"label": "cat"},
        {"taken": {"$gte": 900}, "camera": "B"},
        {"$or": [{"label": {"$in": ["dog"]}}, {"taken": 1000}]},
        {"label": "nothing"},
    ):
        filter_ = parse_filter(source)
        expected = set(ids(index.query(records[0].embedding, 100, filter_)))
        found = listed(index, Listing(filter=filter_, thumbnails=True))
        assert len(found) == len(expected)
        assert set(ids_of(found)) == expected
        by_id = {one.id: one for one in records}
        for image in found:
            one = by_id[image.id]
            assert image == Listed(one.id, one.label, one.metadata, one.thumbnail)


@pytest.mark.slow
def test_a_prefix_and_a_filter_go_together(create: Indexes) -> None:
    index = create()
    index.upsert(photos())
    filter_ = parse_filter({"camera": "A"})
    for limit in (1, 3, 100):
        found = ids_of(listed(index, Listing(filter=filter_, prefix="p/01"), limit))
        assert sorted(found) == [f"p/{number:03d}" for number in range(10, 20, 2)]


def test_pages_are_of_a_listing_and_none_of_another(create: Indexes) -> None:
    index = create()
    index.upsert(photos())
    filtered = Listing(filter=parse_filter({"camera": "A"}))
    first = index.list_images(filtered, limit=10)
    assert len(first.images) == 10
    gone = first.images[-1].id
    index.delete([gone])
    rest: list[str] = []
    cursor = first.cursor
    while cursor:
        page = index.list_images(filtered, limit=10, cursor=cursor)
        rest += ids_of(page.images)
        cursor = page.cursor
    assert not set(rest) & set(ids_of(first.images))
    assert len(rest) == 20


def test_what_a_store_cannot_do_it_says(create: Indexes, store: str) -> None:
    if store == "embedded":
        pytest.skip("it can do all")
    index = create()
    index.upsert(photos(5))
    camera = parse_filter({"camera": "A"})
    for listing, message in (
        (Listing(words=("cat",)), "does not search for words"),
        (Listing(sort=Sort("taken")), "does not sort"),
        (Listing(sort=Sort("id", descending=True)), "does not sort"),
        (Listing(sort=Sort("id"), filter=camera), "does not sort"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            index.list_images(listing)


def odd_values() -> dict[str, Any]:
    values: list[Any] = [*VALUES, None, "Z", "a", "é", "x" * 300 + "a", "x" * 300 + "b", 10, 9.5]
    return {f"v{number:02d}": value for number, value in enumerate(values)}


def place(value: Any) -> Any:
    """Numbers, then texts, then other values as JSON, then what lacks the field."""
    if value is None:
        return 3, 0.0, ""
    if isinstance(value, str):
        return 1, 0.0, value[:100]
    if isinstance(value, bool | list):
        return 2, 0.0, ""  # in any order
    return 0, float(value), ""


@pytest.mark.slow
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("field", ["f", "label", "with \"quote'"])
def test_images_are_sorted_by_a_field_of_any_type(
    create: Indexes, store: str, field: str, *, descending: bool
) -> None:
    if store == "pinecone":
        pytest.skip("it does not sort")
    index = create()
    values = odd_values()
    if field == "label":
        values = {id_: value for id_, value in values.items() if isinstance(value, str | None)}
        index.upsert([record(id_, label=value) for id_, value in values.items()])
    else:
        index.upsert(
            [
                record(id_, metadata={} if value is None else {field: value})
                for id_, value in values.items()
            ]
        )
    for limit in (1, 4, 100):
        found = ids_of(listed(index, Listing(sort=Sort(field, descending)), limit))
        assert sorted(found) == sorted(values)
        kinds = [place(values[id_])[0] for id_ in found]
        assert kinds == sorted(kinds)
        for kind in (0, 1):
            of_kind = [id_ for id_ in values if place(values[id_])[0] == kind]
            expected = sorted(of_kind)
            expected.sort(key=lambda id_: place(values[id_]), reverse=descending)
            assert [id_ for id_ in found if id_ in of_kind] == expected
        missing = [id_ for id_ in found if values[id_] is None]
        assert missing == sorted(missing)


def test_a_cursor_of_another_order_is_refused(create: Indexes, store: str) -> None:
    index = create()
    index.upsert(photos(5))
    sort: Sort | None = Sort("taken")
    cursors = ["p/001", "xx", "W10=", "bnVsbA==", "é", "e30="]
    if store == "pinecone":
        sort, cursors = None, ["p/001", "é"]
    for cursor in cursors:
        with pytest.raises(RecordError, match="cursor"):
            index.list_images(Listing(sort=sort), cursor=cursor)


NAMED: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    # id: what it is in, label, metadata
    "sunset": ("a/IMG_2034%20sunset.jpg", "beach", {"path": "a/IMG_2034 sunset.jpg"}),
    "ete": ("a/%C3%A9t%C3%A9-2.jpg", None, {"note": "Straße nach KÖLN", "sha256": "decade"}),
    "kyoto": ("b/1", "寺", {"tags": ["京都の寺", "カフェ"], "year": 2034}),
    "quote": ("b/2", "it's", {"100%": "a_b \\ c"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sunset", {"sunset"}),
        ("SUN", {"sunset"}),
        ("2034 img", {"sunset"}),
        ("img nothing", set()),
        ("beach", {"sunset"}),
        ("été", {"ete"}),
        ("ETE", {"ete"}),
        ("e\u0301te\u0301", {"ete"}),
        ("strasse", {"ete"}),
        ("koln", {"ete"}),
        ("京都", {"kyoto"}),
        ("寺", {"kyoto"}),
        ("ｶﾌｪ", {"kyoto"}),
        ("it's", {"quote"}),
        ("a_b", {"quote"}),
        ("a%b", set()),
        ("\\", {"quote"}),
        ("decade", set()),
        ("note", set()),
        ("", set(NAMED)),
    ],
)
def test_words_are_found_in_names_labels_and_texts(
    create: Indexes, store: str, words: str, expected: set[str]
) -> None:
    if store == "pinecone":
        pytest.skip("it does not search for words")
    index = create()
    index.upsert([record(id_, label=label, metadata=m) for id_, label, m in NAMED.values()])
    names = {id_: name for name, (id_, _, _) in NAMED.items()}
    found = listed(index, Listing(words=tuple(words_of(words))))
    assert {names[image.id] for image in found} == expected
    for sort in (Sort("path"), Sort("id", descending=True)):
        again = listed(index, Listing(words=tuple(words_of(words)), sort=sort))
        assert sorted(ids_of(again)) == sorted(ids_of(found))
    index.upsert([record("new", metadata={"text": f"{words} and more"})])
    assert "new" in ids_of(listed(index, Listing(words=tuple(words_of(words)))))
    index.upsert([record("new", metadata={"text": "less"})])
    assert ("new" in ids_of(listed(index, Listing(words=tuple(words_of(words)))))) == (not words)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["", "ünï😀", "it's", "a/b", "x" * 2000])
def test_labels_are_told_in_order_and_counted_where_the_store_can(
    create: Indexes, store: str, label: str
) -> None:
    index, other = create(), create(namespace="other")
    assert index.labels() == {}
    index.upsert([record("a", label="cat"), record("b", label=label), record("c")])
    index.upsert([record("d", label="cat"), record("e", label="dog")])
    other.upsert([record("a", label="elsewhere")])
    labels = create.open().labels()
    assert list(labels) == sorted(["cat", "dog", label])
    if store == "embedded":
        assert labels == {"cat": 2, "dog": 1, label: 1}
        index.upsert([record("e", label="cat")])
        index.delete(["a"])
        assert index.labels() == dict(sorted({"cat": 2, label: 1}.items()))
    else:
        assert set(labels.values()) == {None}
    assert list(other.labels()) == ["elsewhere"]
    assert index.count() == {"embedded": 4, "pinecone": 5}[store]


def test_an_empty_index_answers(create: Indexes) -> None:
    index = create()
    index.upsert([])
    index.flush()
    assert index.count() == 0
    assert index.query(vectors(1)[0], 10) == []
    assert index.fetch(["a"]) == {}
    assert index.fetch([]) == {}
    assert index.list_ids().ids == []


# --- index, namespaces, manifest ------------------------------------------------------------------


def test_what_is_created_can_be_opened_with_its_manifest(create: Indexes) -> None:
    with pytest.raises(IndexNotFoundError, match="ingest"):
        create.open()
    created = create("euclidean")
    opened = create.open()
    assert opened.manifest == created.manifest
    assert opened.manifest.model == MODEL
    assert opened.manifest.metric == "euclidean"
    again = create("euclidean")
    assert again.manifest == created.manifest, "creating what exists opens it"


def test_a_recipe_comes_back_as_it_was_stored(create: Indexes) -> None:
    rng = np.random.default_rng(0)
    form = Form(Pooling((3, 5), 2.5), 0.75, unit_blocks=True, weights=(0.5, 1))
    count = sum(form.pooling.channels)
    projection = rng.standard_normal((count, DIMENSION)).astype(np.float16).astype(np.float32)
    recipe = Recipe("neighbours", form, rng.random(count, np.float32), projection)
    model = MODEL.model_copy(
        update={"recipe": recipe.name, "recipe_fingerprint": recipe.fingerprint}
    )
    index = create(model=model, recipe=recipe)
    index.upsert([record("a")])
    for opened in (index, create.open()):
        found = opened.load_recipe()
        assert found is not None
        assert (found.name, found.form) == ("neighbours", form)
        assert found.fingerprint == recipe.fingerprint
        features = rng.random((3, count), np.float32)
        np.testing.assert_array_equal(found.apply(features), recipe.apply(features))
    assert create.open().count() == 1


def test_a_calibration_is_seen_by_who_opens_the_index_next(create: Indexes) -> None:
    index = create()
    before = create.open()
    assert (index.calibration, before.calibration) == (None, None)
    first = Calibration(scores=(0.1, 0.5), confidences=(0.0, 1.0))
    second = Calibration(scores=(0.1, 0.7, 0.8), confidences=(0.25, 0.5, 1.0))
    for calibration in (first, second):
        index.save_calibration(calibration)
        assert index.calibration == calibration
        assert create.open().calibration == calibration
    assert before.calibration is None
    assert create(namespace="other").calibration is None
    assert create().calibration == second
    assert index.count() == 0


def test_an_index_without_a_recipe_has_none(create: Indexes) -> None:
    assert create().load_recipe() is None
    assert create.open().load_recipe() is None


def test_namespaces_are_apart(create: Indexes) -> None:
    first, second = create(namespace="first"), create(namespace="second")
    first.upsert([record("same", label="one")])
    second.upsert([record("same", label="two"), record("more")])
    assert (first.count(), second.count()) == (1, 2)
    assert first.fetch(["same"])["same"].label == "one"
    first.delete(["same"])
    assert second.fetch(["same"])["same"].label == "two"


def test_open_indexes_see_what_others_commit(create: Indexes) -> None:
    writer = create()
    reader = create.open()
    writer.upsert([record("a")])
    assert reader.count() == 1
    assert ids(reader.query(vectors(1)[0], 10)) == ["a"]
    writer.delete(["a"])
    assert reader.count() == 0


@pytest.mark.slow
def test_a_sample_is_seen_by_who_opens_the_index_next(create: Indexes) -> None:
    index = create()
    assert index.load_sample().ids == ()
    versions = {index.sample_version}
    rng = np.random.default_rng(0)
    for count in (30, 300):
        textures = rng.random((count, TEXTURES), np.float32)
        sample = replace(ImageSample().joined([str(n) for n in range(count)], textures), indexed=7)
        index.save_sample(sample)
        loaded = create.open().load_sample()
        assert (loaded.ids, loaded.bound, loaded.indexed) == (sample.ids, sample.bound, 7)
        np.testing.assert_allclose(loaded.textures, sample.textures, rtol=1e-3)
        versions.add(create.open().sample_version)
    assert len(versions) == 3
    assert "" in versions
    assert create(namespace="other").load_sample().ids == ()
    assert create(namespace="other").sample_version == ""
    assert index.count() == 0


@pytest.mark.slow
def test_what_two_add_to_the_sample_is_all_kept(create: Indexes) -> None:
    create()
    opened = [create.open() for _ in range(2)]
    rows = np.ones((50, TEXTURES), np.float32)

    def add(number: int) -> None:
        for start in range(0, 50, 25):
            new = [f"{number}/{n}" for n in range(start, start + 25)]
            opened[number].update_sample(lambda sample: sample.joined(new, rows[:25]))  # noqa: B023

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(add, range(2)))
    expected = {f"{number}/{n}" for number in range(2) for n in range(50)}
    assert set(create.open().load_sample().ids) == expected


def test_all_ids_are_given(create: Indexes) -> None:
    index = create()
    assert list(index.ids()) == []
    ids = [f"{kind}/{number}" for kind in ("a", "b") for number in range(130)]
    index.upsert([record(id_) for id_ in ids])
    assert sorted(index.ids()) == sorted(ids)
    assert sorted(index.ids("b/")) == sorted(ids[130:])


@pytest.mark.slow
def test_an_index_keeps_where_its_sources_are(create: Indexes) -> None:
    index = create()
    assert index.load_sources() == {}
    saved: dict[str, KnownSource] = {}
    time = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for name, source in {
        "pics": KnownSource(place="/a/pics"),
        "Käse~1": KnownSource(place="/c/犬", prefix="K%C3%A4se~1/", ingested_at=time),
    }.items():
        for place in ("/elsewhere", source.place):
            saved[name] = source.model_copy(update={"place": place})
            index.save_source(name, saved[name])
            assert create.open().load_sources() == saved
    assert create(namespace="other").load_sources() == {}
    assert index.count() == 0
    assert index.list_ids().ids == []


@pytest.mark.slow
def test_an_index_keeps_what_was_deleted_for_good(create: Indexes) -> None:
    index = create()
    assert index.load_deletions() == {}
    index.save_deletions({})
    deletions = {f"é'{n}".encode().hex() + '/"': f"{n:064x}" for n in range(300)}
    ids = list(deletions)
    for part in (ids[:200], ids[200:], ids[:10]):
        index.save_deletions({id_: deletions[id_] for id_ in part})
    assert create.open().load_deletions() == deletions
    index.forget_deletions([*ids[:150], "unknown"])
    assert create.open().load_deletions() == {id_: deletions[id_] for id_ in ids[150:]}
    assert create(namespace="other").load_deletions() == {}
    assert index.count() == 0


def test_images_are_found_by_digest(create: Indexes) -> None:
    index = create()
    assert index.find_digests([]) == {}
    assert index.find_digests(["a" * 64]) == {}
    index.upsert(
        [
            replace(record(f"{n}/'{n}"), metadata={"sha256": f"{n // 2:064x}", "n": n})
            for n in range(700)
        ]
    )
    index.upsert([replace(record("none"), metadata={"sha256x": f"{1:064x}"})])
    index.flush()
    wanted = [f"{n:064x}" for n in range(1, 600)]
    found = index.find_digests(wanted)
    assert found.keys() == {f"{n:064x}" for n in range(1, 350)}
    assert sorted(found[f"{7:064x}"]) == ["14/'14", "15/'15"]


@pytest.mark.slow
def test_sources_that_are_saved_at_once_are_all_kept(create: Indexes) -> None:
    index = create()
    sources = {f"album{n}": KnownSource(place=f"/{n}") for n in range(24)}
    with ThreadPoolExecutor(8) as pool:
        opened = [create.open() for _ in range(8)]
        list(
            pool.map(
                lambda n: opened[n % 8].save_source(f"album{n}", sources[f"album{n}"]), range(24)
            )
        )
    assert index.load_sources() == sources
