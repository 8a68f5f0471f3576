"""The emulator of Pinecone, driven by Pinecone's own client over a real socket."""

import http.client
import json
import math
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from pinecone import Index, Pinecone, ServerlessSpec, errors

from tests.support import SHARED
from tests.support.pinecone import (
    API_KEY,
    DATA_KEY,
    READING_KEY,
    Answer,
    Fault,
    OpenApi,
    PineconeEmulator,
    forget_failures,
    load_openapi,
)

DIMENSION = 8
METRICS = ["cosine", "euclidean", "dotproduct"]


@pytest.fixture(autouse=True)
def _client_without_memory_or_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_failures()
    monkeypatch.setattr("pinecone._internal.http_client._retry_sleep", lambda _: None)


@pytest.fixture(scope="session")
def openapi() -> OpenApi | None:
    return load_openapi(SHARED / "data" / "pinecone")


@pytest.fixture
def emulator(openapi: OpenApi | None) -> Iterator[PineconeEmulator]:
    with PineconeEmulator(openapi=openapi) as emulator:
        yield emulator
    assert emulator.violations == []


@pytest.fixture
def client(emulator: PineconeEmulator) -> Iterator[Pinecone]:
    with closing(Pinecone(API_KEY, host=emulator.host, timeout=10)) as client:
        yield client


@pytest.fixture
def index(emulator: PineconeEmulator, client: Pinecone) -> Iterator[Index]:
    emulator.put_index("images", DIMENSION)
    with client.index("images") as index:
        yield index


def vectors(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


def upsert(index: Index, *ids: str, namespace: str = "", **metadata: Any) -> Any:
    rows = vectors(len(ids)).tolist()
    items = [(id_, row, metadata) for id_, row in zip(ids, rows, strict=True)]
    return index.upsert(vectors=items, namespace=namespace)


def send(
    emulator: PineconeEmulator, method: str, path: str, body: Any = None, key: str = API_KEY
) -> tuple[int, Any]:
    """A request that the client would not send."""
    connection = http.client.HTTPConnection(emulator.host.removeprefix("http://"))
    headers = {"Api-Key": key, "X-Pinecone-Api-Version": "2026-04"}
    with closing(connection):
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        content = answer.read()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(content) if is_json else content.decode()


def create(client: Pinecone, name: str, **options: Any) -> Any:
    spec = ServerlessSpec(cloud="aws", region="us-east-1")
    return client.create_index(name, spec=spec, dimension=DIMENSION, **options)


# --- control plane -----------------------------------------------------------------------------


def test_an_index_is_created_described_configured_and_deleted(client: Pinecone) -> None:
    tags = {"image-search": "1", "label": "a b"}
    created = create(client, "images", metric="euclidean", tags=tags)
    described = client.describe_index("images")
    assert created == described
    assert (described.dimension, described.metric, described.tags) == (8, "euclidean", tags)
    assert described.status.ready
    assert [item.name for item in client.list_indexes()] == ["images"]
    client.indexes.configure("images", tags={"label": "", "more": "c"})
    assert client.describe_index("images").tags == {"image-search": "1", "more": "c"}
    client.delete_index("images")
    assert not client.has_index("images")
    with pytest.raises(errors.NotFoundError):
        client.describe_index("images")


def test_names_of_indexes_are_unique_and_deletion_can_be_refused(client: Pinecone) -> None:
    create(client, "images", deletion_protection="enabled")
    with pytest.raises(errors.ConflictError):
        create(client, "images")
    with pytest.raises(errors.ForbiddenError):
        client.delete_index("images")


def test_a_new_index_is_not_ready_at_once(emulator: PineconeEmulator, client: Pinecone) -> None:
    emulator.describes_until_ready = 2
    created = create(client, "images", timeout=-1)
    assert not created.status.ready
    with client.index(host=created.host) as index, pytest.raises(errors.ServiceError):
        index.describe_index_stats()
    ready = [client.describe_index("images").status.ready for _ in range(3)]
    assert ready == [False, False, True]


def test_an_index_made_by_hand_has_no_tags(emulator: PineconeEmulator, client: Pinecone) -> None:
    emulator.put_index("by-hand", 3, "dotproduct")
    described = client.describe_index("by-hand")
    assert (described.dimension, described.metric, described.tags) == (3, "dotproduct", None)


def test_indexes_have_data_hosts_of_their_own(emulator: PineconeEmulator, client: Pinecone) -> None:
    emulator.put_index("one", DIMENSION)
    with client.index(host=emulator.host) as only, client.index("one") as one:
        upsert(only, "a")
        assert one.describe_index_stats().total_vector_count == 1
        emulator.put_index("two", DIMENSION)
        with client.index("two") as two:
            assert two.describe_index_stats().total_vector_count == 0
        with pytest.raises(errors.NotFoundError):
            only.describe_index_stats()


def test_the_api_key_is_checked(emulator: PineconeEmulator) -> None:
    with closing(Pinecone("other", host=emulator.host)) as stranger:
        with pytest.raises(errors.UnauthorizedError):
            stranger.list_indexes()
        with stranger.index(host=emulator.host) as index, pytest.raises(errors.UnauthorizedError):
            index.describe_index_stats()


# --- data plane --------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_scores_agree_with_numpy(emulator: PineconeEmulator, client: Pinecone, metric: str) -> None:
    emulator.put_index("images", DIMENSION, metric)
    rows, query = vectors(50), vectors(1, seed=1)[0]
    scores = {
        "euclidean": -((rows - query) ** 2).sum(axis=1),
        "dotproduct": rows @ query,
        "cosine": rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query),
    }[metric]
    with client.index("images") as index:
        index.upsert(vectors=[(f"r{i}", row.tolist()) for i, row in enumerate(rows)])
        found = index.query(top_k=10, vector=query.tolist(), include_values=True).matches
        by_id = index.query(top_k=1, id="r7", include_metadata=True).matches
    best = np.argsort(-scores)[:10]
    assert [match.id for match in found] == [f"r{i}" for i in best]
    expected = -scores[best] if metric == "euclidean" else scores[best]
    np.testing.assert_allclose([match.score for match in found], expected, rtol=1e-5)
    np.testing.assert_array_equal([match.values for match in found], rows[best])
    if metric != "dotproduct":
        assert [(match.id, match.metadata) for match in by_id] == [("r7", None)]


def test_records_are_fetched_as_they_were_upserted_last(index: Index) -> None:
    upsert(index, "a", "b", label="old")
    full = {"label": "new", "n": 3, "flag": True, "list": ["x", "ü"], "": "no name"}
    row = vectors(1, seed=5)[0]
    response = index.upsert(vectors=[("a", [1.0] * DIMENSION), ("a", row.tolist(), full)])
    assert response.upserted_count == 2
    fetched = index.fetch(ids=["a", "none"]).vectors
    assert fetched.keys() == {"a"}
    assert fetched["a"].metadata == full
    assert type(fetched["a"].metadata["n"]) is float
    np.testing.assert_array_equal(np.array(fetched["a"].values, np.float32), row)
    assert index.query(top_k=5, id="none").matches == []


@pytest.mark.parametrize("prefix", ["", "cat-", "none"])
@pytest.mark.parametrize("limit", [1, 7, 100])
def test_ids_are_listed_in_order_and_in_pages(index: Index, prefix: str, limit: int) -> None:
    ids = [f"{kind}-{i:02d}" for i in range(9) for kind in ("dog", "cat", "ca")]
    upsert(index, *ids)
    pages = list(index.list(prefix=prefix, limit=limit))
    assert [item.id for page in pages for item in page] == sorted(
        id_ for id_ in ids if id_.startswith(prefix)
    )
    assert all(len(page) <= limit for page in pages)


def test_records_are_deleted_by_id_by_filter_and_all(index: Index) -> None:
    upsert(index, "a", "b", label="cat")
    upsert(index, "c", "d", label="dog")
    index.delete(ids=["a", "none"])
    index.delete(filter={"label": "dog"})
    assert [item.id for page in index.list() for item in page] == ["b"]
    index.delete(delete_all=True)
    assert index.describe_index_stats().total_vector_count == 0
    with pytest.raises(errors.NotFoundError, match="Namespace not found"):
        index.delete(ids=["a"], namespace="never-used")


def test_namespaces_are_apart_and_the_default_one_has_two_names(
    emulator: PineconeEmulator, index: Index
) -> None:
    upsert(index, "a")
    upsert(index, "b", namespace="__default__")
    upsert(index, "c", namespace="other")
    assert index.fetch(ids=["a", "b", "c"]).vectors.keys() == {"a", "b"}
    assert emulator.records("images", "other").keys() == {"c"}
    for name in ("", "__default__"):
        emulator.default_name = name
        stats = index.describe_index_stats()
        assert {key: value.vector_count for key, value in stats.namespaces.items()} == {
            name: 2,
            "other": 1,
        }
        assert (stats.dimension, stats.metric, stats.total_vector_count) == (8, "cosine", 3)
    assert index.query(top_k=1, id="a", namespace="unknown").matches == []


def test_metadata_is_updated_by_id_and_by_filter(index: Index) -> None:
    upsert(index, "a", "b", label="cat", kept=1)
    index.update(id="a", set_metadata={"label": "dog"}, values=[1.0] * DIMENSION)
    matched = index.update(filter={"kept": 1}, set_metadata={"new": "x"}).matched_records
    fetched = index.fetch(ids=["a", "b"]).vectors
    assert matched == 2
    assert fetched["a"].metadata == {"label": "dog", "kept": 1, "new": "x"}
    assert fetched["a"].values == [1.0] * DIMENSION
    assert fetched["b"].metadata == {"label": "cat", "kept": 1, "new": "x"}


RECORDS: dict[str, dict[str, Any]] = {
    "five": {"x": 5},
    "half": {"x": 5.5},
    "text": {"x": "5"},
    "true": {"x": True},
    "one": {"x": 1},
    "list": {"x": ["a", "5"], "y": 1},
    "none": {"y": 2},
}


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({}, "five half text true one list none"),
        ({"x": 5}, "five"),
        ({"x": "5"}, "text list"),
        ({"x": True}, "true"),
        ({"x": {"$eq": 1}}, "one"),
        ({"x": {"$ne": "5"}}, "five half true one none"),
        ({"x": {"$in": ["a", 5, "none"]}}, "five list"),
        ({"x": {"$nin": ["a", 5]}}, "half text true one none"),
        ({"x": {"$gt": 1}}, "five half"),
        ({"x": {"$gte": 1, "$lt": 5.5}}, "five one"),
        ({"x": {"$lte": 5}}, "five one"),
        ({"x": {"$exists": False}}, "none"),
        ({"x": {"$exists": True}, "y": 1}, "list"),
        ({"$or": [{"x": 5}, {"$and": [{"y": {"$gte": 1}}, {"y": {"$lt": 2}}]}]}, "five list"),
    ],
)
def test_filters_have_pinecones_meaning(index: Index, filter_: Any, expected: str) -> None:
    rows = vectors(len(RECORDS)).tolist()
    index.upsert(vectors=[(id_, row, RECORDS[id_]) for id_, row in zip(RECORDS, rows, strict=True)])
    found = index.query(top_k=10, vector=rows[0], filter=filter_).matches
    assert {match.id for match in found} == set(expected.split())


@pytest.mark.parametrize(
    "filter_",
    [
        {"$eq": 1},
        {"$not": [{"x": 1}]},
        {"x": {}},
        {"x": None},
        {"x": ["a"]},
        {"x": {"$like": "a"}},
        {"x": {"$gt": "5"}},
        {"x": {"$gt": True}},
        {"x": {"$in": "a"}},
        {"x": {"$in": []}},
        {"x": {"$in": [True]}},
        {"x": {"$exists": 1}},
        {"$and": []},
        {"$or": {"x": 1}},
    ],
)
def test_other_filters_are_refused(index: Index, filter_: Any) -> None:
    with pytest.raises(errors.ApiError) as caught:
        index.query(top_k=1, vector=[1.0] * DIMENSION, filter=filter_)
    assert caught.value.status_code == 400


# --- limits ------------------------------------------------------------------------------------


def with_vector(**changes: Any) -> dict[str, Any]:
    return {"vectors": [{"id": "a", "values": [1.0] * DIMENSION, **changes}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/vectors/upsert", {"vectors": []}, 400, "1 to 1000"),
        ("/vectors/upsert", {"vectors": with_vector()["vectors"] * 1001}, 400, "1 to 1000"),
        ("/vectors/upsert", with_vector(metadata={"x": "y" * 2**21}), 413, "the limit is: 2097152"),
        ("/vectors/upsert", with_vector(metadata={"x": "y" * 40960}), 400, "limit of 40960 bytes"),
        ("/vectors/upsert", with_vector(metadata={"x": None}), 400, "got 'null' for field 'x'"),
        ("/vectors/upsert", with_vector(metadata={"x": {"y": 1}}), 400, "for field 'x'"),
        ("/vectors/upsert", with_vector(metadata={"x": [1]}), 400, "for field 'x'"),
        ("/vectors/upsert", with_vector(metadata={"$x": 1}), 400, "must not begin with"),
        ("/vectors/upsert", with_vector(values=[1.0] * 9), 400, "9 does not match .* index 8"),
        ("/vectors/upsert", with_vector(values=[0.0] * 8), 400, "'a' contains only zeros"),
        ("/vectors/upsert", with_vector(values=[None, *[1.0] * 7]), 400, "not a number"),
        ("/vectors/upsert", with_vector(values=[1e39, *[1.0] * 7]), 400, "not a 32-bit float"),
        ("/vectors/upsert", with_vector(id=""), 400, "1 to 512"),
        ("/vectors/upsert", with_vector(id="x" * 513), 400, "1 to 512"),
        ("/vectors/upsert", with_vector(id="ü"), 400, "ASCII"),
        ("/vectors/upsert", b'{"vectors": [NaN]}', 400, "JSON"),
        ("/vectors/upsert", b"{", 400, "JSON"),
        ("/vectors/delete", {}, 400, "Exactly one"),
        ("/vectors/delete", {"ids": ["a"] * 1001}, 400, "1 to 1000"),
        ("/query", {"topK": 0, "id": "a"}, 400, "1 to 10000"),
        ("/query", {"topK": 10_001, "id": "a"}, 400, "1 to 10000"),
        ("/query", {"topK": 1}, 400, "Exactly one"),
        ("/query", {"topK": 1, "vector": [1.0]}, 400, "dimension 1 does not match"),
        ("/describe_index_stats", {"filter": {"x": 1}}, 400, "do not support"),
        ("/elsewhere", {}, 404, "No such route"),
    ],
)
def test_what_pinecone_refuses_is_refused(path: str, body: Any, status: int, message: str) -> None:
    with PineconeEmulator() as emulator:
        emulator.put_index("images", DIMENSION)
        answered, problem = send(emulator, "POST", path, body)
        assert emulator.records("images") == {}
    assert answered == status
    assert problem["details"] == []
    assert re.search(message, problem["message"])


def test_urls_and_pages_have_a_limit(emulator: PineconeEmulator, index: Index) -> None:
    upsert(index, *[f"{i:03d}{'x' * 509}" for i in range(30)])
    assert len(index.fetch(ids=[f"{i:03d}{'x' * 509}" for i in range(30)]).vectors) == 30
    with pytest.raises(errors.ApiError) as caught:
        index.fetch(ids=[f"{i:03d}{'x' * 509}" for i in range(40)])
    assert caught.value.status_code == 414
    for limit in ("0", "101", "many"):
        emulator.violations.clear()
        assert send(emulator, "GET", f"/vectors/list?limit={limit}")[0] == 400
    emulator.violations.clear()


def test_results_have_a_limit(index: Index) -> None:
    upsert(index, *[f"r{i}" for i in range(45)], text="x" * 39_000)
    upsert(index, *[f"s{i}" for i in range(45)], text="x" * 39_000)
    upsert(index, *[f"t{i}" for i in range(45)], text="x" * 39_000)
    assert len(index.query(top_k=1000, id="r1").matches) == 135
    with pytest.raises(errors.ApiError, match="the limit is: 4194304") as caught:
        index.query(top_k=1000, id="r1", include_metadata=True)
    assert caught.value.status_code == 400


# --- eventual consistency ----------------------------------------------------------------------


def test_reads_can_be_some_writes_behind(emulator: PineconeEmulator, index: Index) -> None:
    emulator.stale_writes = 1
    first = upsert(index, "a").response_info
    second = upsert(index, "b").response_info
    found = index.query(top_k=5, vector=[1.0] * DIMENSION)
    assert [match.id for match in found.matches] == ["a"]
    assert found.response_info is not None
    assert found.response_info.is_reconciled(first.lsn_committed)
    assert not found.response_info.is_reconciled(second.lsn_committed)
    assert index.fetch(ids=["a", "b"]).vectors.keys() == {"a"}
    emulator.stale_writes = 0
    assert index.fetch(ids=["a", "b"]).vectors.keys() == {"a", "b"}


def test_writes_can_take_some_reads_to_be_seen(emulator: PineconeEmulator, index: Index) -> None:
    emulator.stale_reads = 2
    upsert(index, "a")
    counts = [index.describe_index_stats().total_vector_count for _ in range(4)]
    assert counts == [0, 0, 1, 1]
    index.delete(ids=["a"])
    assert [len(index.fetch(ids=["a"]).vectors) for _ in range(4)] == [1, 1, 0, 0]


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "attempts"),
    [
        (401, errors.UnauthorizedError, 1),
        (403, errors.ForbiddenError, 1),
        (404, errors.NotFoundError, 1),
        (409, errors.ConflictError, 1),
        (413, errors.PayloadTooLargeError, 1),
        (429, errors.RateLimitError, 4),
        (500, errors.ServiceError, 4),
        (503, errors.ServiceError, 4),
    ],
)
def test_errors_have_the_clients_classes(
    emulator: PineconeEmulator,
    client: Pinecone,
    index: Index,
    status: int,
    error: type[errors.ApiError],
    attempts: int,
) -> None:
    emulator.fail(Fault(status), times=2 * attempts)
    with pytest.raises(error):
        upsert(index, "a")
    assert emulator.count("/vectors/upsert", status) == attempts
    with pytest.raises(error):
        client.describe_index("images")
    assert emulator.count("/indexes", status) == attempts
    assert emulator.records("images") == {}
    assert upsert(index, "a").upserted_count == 1


def test_retry_after_reaches_the_client(emulator: PineconeEmulator, index: Index) -> None:
    emulator.fail(Fault(429, retry_after=7), times=4, route="/query")
    upsert(index, "a")
    with pytest.raises(errors.RateLimitError) as caught:
        index.query(top_k=1, id="a")
    assert caught.value.retry_after == 7


def test_a_short_storm_is_ridden_out(emulator: PineconeEmulator, index: Index) -> None:
    emulator.fail(Fault(503), times=3, route="/vectors/upsert")
    assert upsert(index, "a").upserted_count == 1
    assert emulator.count("/vectors/upsert", 503) == 3
    assert emulator.count("/vectors/upsert", 503, 200) == 4


@pytest.mark.parametrize(("cut", "stored"), [("before", set()), ("after", {"a"})])
def test_connections_are_cut_before_or_after_the_work(
    emulator: PineconeEmulator, index: Index, cut: Any, stored: set[str]
) -> None:
    emulator.fail(Fault(cut=cut), times=4)
    with pytest.raises(errors.PineconeConnectionError):
        upsert(index, "a")
    assert emulator.records("images").keys() == stored
    assert emulator.count("POST /vectors/upsert", None) == 4
    emulator.fail(Fault(cut=cut))
    assert upsert(index, "b").upserted_count == 1


def test_an_upsert_may_be_done_in_part(emulator: PineconeEmulator, index: Index) -> None:
    emulator.fail(Fault(keep=2))
    assert upsert(index, "a", "b", "c").upserted_count == 2
    assert emulator.records("images").keys() == {"a", "b"}


def test_batches_fail_apart(emulator: PineconeEmulator, index: Index) -> None:
    emulator.fail(Fault(413), times=1)
    items = [(f"r{i}", row.tolist()) for i, row in enumerate(vectors(40))]
    response = index.upsert(vectors=items, batch_size=10, show_progress=False)
    assert response.failed_item_count == 10
    index.upsert(vectors=response.failed_items)
    assert len(emulator.records("images")) == 40


@pytest.mark.slow
def test_slow_answers_time_out(emulator: PineconeEmulator, client: Pinecone, index: Index) -> None:
    emulator.fail(Fault(delay=60), times=4, route="/query")
    with pytest.raises(errors.PineconeTimeoutError):
        index.query(top_k=1, id="a", timeout=0.05)
    emulator.delay = 60
    with pytest.raises(errors.PineconeTimeoutError):
        index.describe_index_stats(timeout=0.05)
    assert client.describe_index("images").name == "images", "only data requests are slow"


def test_answers_may_be_garbage(emulator: PineconeEmulator, index: Index) -> None:
    emulator.fail(Fault(body=b"<html>"))
    with pytest.raises(errors.ResponseParsingError):
        index.describe_index_stats()


def test_a_seeded_share_of_requests_fails() -> None:
    def statuses(seed: int) -> list[int]:
        with PineconeEmulator(seed=seed) as emulator:
            emulator.put_index("images", DIMENSION)
            emulator.fail_randomly(0.5, [Fault(500), Fault(429)], route="/describe_index_stats")
            answers = [send(emulator, "POST", "/describe_index_stats", {}) for _ in range(40)]
            emulator.fail_randomly(0, [])
            assert send(emulator, "POST", "/describe_index_stats", {})[0] == 200
            return [status for status, _ in answers]

    assert statuses(1) == statuses(1) != statuses(2)
    assert set(statuses(1)) == {200, 429, 500}


def test_an_outage_keeps_port_and_data(emulator: PineconeEmulator, index: Index) -> None:
    upsert(index, "a")
    host = emulator.host
    emulator.stop()
    with pytest.raises(errors.PineconeConnectionError):
        index.fetch(ids=["a"])
    emulator.start()
    assert emulator.host == host
    assert index.fetch(ids=["a"]).vectors.keys() == {"a"}


# --- as strict as Pinecone -----------------------------------------------------------------------


def test_a_plus_in_an_address_is_a_plus(emulator: PineconeEmulator, index: Index) -> None:
    upsert(index, "my cats/a", "a+b")
    path = "/vectors/fetch?ids="
    for sent, found in (("my+cats/a", {}), ("my%20cats/a", {"my cats/a"}), ("a+b", {"a+b"})):
        assert send(emulator, "GET", path + sent)[1]["vectors"].keys() == set(found), sent
    assert send(emulator, "GET", "/vectors/list?prefix=my+")[1]["vectors"] == []
    # So an id with a space is not found by the client, which sends a plus for it.
    assert index.fetch(ids=["my cats/a"]).vectors == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"embedding": {"type": "dense_vector", "dimension": 8, "metric": "cosine"}},
        {"title": {"type": "string"}},
        {
            "one": {"type": "dense_vector", "dimension": 8, "metric": "cosine"},
            "two": {"type": "dense_vector", "dimension": 8, "metric": "cosine"},
        },
    ],
)
def test_document_indexes_refuse_vectors(
    emulator: PineconeEmulator, client: Pinecone, fields: dict[str, Any]
) -> None:
    emulator.put_index("documents", DIMENSION, fields=fields)
    assert client.describe_index("documents").schema.fields.keys() == fields.keys()
    with client.index("documents") as index:
        for call in (
            lambda: upsert(index, "a"),
            lambda: index.query(top_k=1, id="a"),
            lambda: index.fetch(ids=["a"]),
            lambda: index.describe_index_stats(),
        ):
            with pytest.raises(errors.ApiError, match="document indexes"):
                call()


def test_requests_of_a_kind_are_limited_in_each_namespace(
    emulator: PineconeEmulator, index: Index
) -> None:
    now = 100.0
    emulator.clock = lambda: now
    upsert(index, "a", namespace="one")
    body = {"topK": 1, "id": "a", "namespace": "one"}
    answers = [send(emulator, "POST", "/query", body)[0] for _ in range(101)]
    assert answers == [200] * 100 + [429]
    assert send(emulator, "POST", "/query", body | {"namespace": "two"})[0] == 200
    assert send(emulator, "POST", "/vectors/delete", {"ids": ["b"], "namespace": "one"})[0] == 200
    now += 0.9
    assert send(emulator, "POST", "/query", body)[0] == 429
    now += 0.2
    assert send(emulator, "POST", "/query", body)[0] == 200
    # These are limited for all namespaces together.
    emulator.rate_limits["fetch"] = 2
    paths = [f"/vectors/fetch?ids=a&namespace={name}" for name in ("one", "two", "three")]
    assert [send(emulator, "GET", path)[0] for path in paths] == [200, 200, 429]


def test_reads_of_every_kind_lag_by_a_time(emulator: PineconeEmulator, index: Index) -> None:
    now = 100.0
    emulator.clock = lambda: now
    upsert(index, "old")
    now += 2
    emulator.lag = 2
    written = upsert(index, "new").response_info.lsn_committed

    def seen() -> tuple[set[str], ...]:
        found = index.query(top_k=5, vector=[1.0] * DIMENSION)
        assert found.response_info is not None
        fresh = found.response_info.is_reconciled(written)
        assert fresh == ("new" in {match.id for match in found.matches})
        return (
            {match.id for match in found.matches},
            set(index.fetch(ids=["old", "new"]).vectors),
            {item.id or "" for page in index.list() for item in page},
            {"old", "new"} if index.describe_index_stats().total_vector_count == 2 else {"old"},
        )

    assert seen() == ({"old"},) * 4
    now += 1.9
    assert seen() == ({"old"},) * 4
    now += 0.2
    assert seen() == ({"old", "new"},) * 4


def test_quotas_are_refused_with_403(
    emulator: PineconeEmulator, client: Pinecone, index: Index
) -> None:
    emulator.max_indexes = 1
    with pytest.raises(errors.ForbiddenError, match="max serverless indexes"):
        create(client, "more")
    upsert(index, "a")
    emulator.max_namespaces = 1
    with pytest.raises(errors.ForbiddenError, match="max namespaces"):
        upsert(index, "a", namespace="more")
    emulator.max_stored = 10
    with pytest.raises(errors.ForbiddenError, match="max storage"):
        upsert(index, "b")


def test_keys_may_have_few_rights(emulator: PineconeEmulator) -> None:
    emulator.put_index("images", DIMENSION)
    for key, control, write in ((API_KEY, 200, 200), (DATA_KEY, 403, 200), (READING_KEY, 403, 403)):
        assert send(emulator, "GET", "/indexes/images", key=key)[0] == control
        assert send(emulator, "POST", "/vectors/upsert", with_vector(), key)[0] == write
        assert send(emulator, "GET", "/vectors/list", key=key)[0] == 200
    assert send(emulator, "GET", "/vectors/list", key="other") == (401, "Invalid API Key")


def test_a_query_of_zeros_is_answered(index: Index) -> None:
    upsert(index, "a")
    [match] = index.query(top_k=1, vector=[0.0] * DIMENSION).matches
    assert match.score == 0


def test_a_delete_in_an_empty_namespace_is_not_found(index: Index) -> None:
    for namespace in ("", "__default__", "other"):
        with pytest.raises(errors.NotFoundError, match="Namespace not found"):
            index.delete(ids=["a"], namespace=namespace)


def test_a_time_to_come_again_may_be_a_date(emulator: PineconeEmulator, index: Index) -> None:
    at = datetime(2026, 11, 25, 12, tzinfo=UTC)
    emulator.fail(Fault(429, retry_after=at), times=4)
    with pytest.raises(errors.RateLimitError) as caught:
        index.query(top_k=1, id="a")
    assert caught.value.headers is not None
    assert caught.value.headers["retry-after"] == "Wed, 25 Nov 2026 12:00:00 GMT"


def test_an_answer_may_end_in_the_middle(emulator: PineconeEmulator, index: Index) -> None:
    emulator.fail(Fault(cut="middle"), times=4)
    with pytest.raises(errors.PineconeConnectionError):
        upsert(index, "a")
    assert emulator.records("images").keys() == {"a"}, "it was processed"


def test_units_are_counted_as_pinecone_charges_them(
    emulator: PineconeEmulator, index: Index
) -> None:
    ids = [f"r{number:02d}" for number in range(25)]
    upsert(index, *ids, text="x" * 980)
    upsert(index, "r00", text="x" * 980)
    index.query(top_k=3, vector=[1.0] * DIMENSION)
    index.fetch(ids=ids)
    index.list_paginated()
    index.delete(ids=ids)
    units = [(item.write_units, item.read_units) for item in emulator.requests]
    size = len(ids[0]) + 4 * DIMENSION + len('{"text":""}') + 980
    record = 25 * size / 1000
    assert units[-6:] == [
        (math.ceil(record), 0),
        (5, 0),
        (0, 0.25),
        (0, 3),
        (0, 1),
        (math.ceil(record), 0),
    ]


# --- what tests can see ------------------------------------------------------------------------


def test_requests_are_recorded_without_the_key(emulator: PineconeEmulator, index: Index) -> None:
    upsert(index, "a", "b", label="x" * 1000)
    [request] = [item for item in emulator.requests if item.route == "POST /vectors/upsert"]
    assert 2000 < request.bytes < 3000
    assert request.status == 200
    assert request.headers["x-pinecone-api-version"]
    assert API_KEY not in repr(emulator.requests)


def test_wrong_messages_are_violations(emulator: PineconeEmulator, openapi: OpenApi | None) -> None:
    if openapi is None:
        pytest.skip("Pinecone's OpenAPI files are not at hand")
    emulator.put_index("images", DIMENSION)
    for method, path, body in (
        ("POST", "/query", {"topK": "3", "id": "a"}),
        ("POST", "/vectors/upsert", with_vector(metadata=["x"])),
        ("POST", "/indexes", {"name": "x", "schema": {"fields": {"v": {"type": "dense_vector"}}}}),
        ("GET", "/vectors/list?limit=many", None),
        ("GET", "/vectors/list?limit=5&offset=3", None),
        ("GET", "/vectors/fetch?namespace=a", None),
        ("POST", "/no/such/operation", {}),
    ):
        send(emulator, method, path, body)
        assert emulator.violations, path
        emulator.violations.clear()
    for route, answer in (
        ("POST /query", Answer(200, b'{"matches": [{"score": 1}]}')),
        ("POST /query", Answer(400, b'{"message": 1}')),
        ("POST /query", Answer(302)),
        ("GET /indexes", Answer(200, b'{"indexes": [{"name": "x"}]}')),
        ("GET /indexes", Answer(401, b'{"message": "no"}')),
        ("DELETE /indexes/{index_name}", Answer(202, b"{}")),
    ):
        assert openapi.check_answer(route, answer), answer
