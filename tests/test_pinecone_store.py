"""What Pinecone adds to the contract of the stores: faults, limits, adoption, secrets."""

import base64
import gc
import io
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pinecone import AsyncIndex
from pydantic import SecretStr

from image_search.calibration import Calibration
from image_search.embedding import Embedder
from image_search.errors import (
    IndexMismatchError,
    IndexNotFoundError,
    RecordError,
    SettingsError,
    StoreError,
)
from image_search.index import Record, VectorIndex
from image_search.manifest import Manifest
from image_search.settings import load_settings
from image_search.stores import create_index, open_index
from image_search.values import DIMENSION
from tests.support import SHARED
from tests.support.images import QUERY, encode
from tests.support.indexes import MODEL, FakeEmbedder, fill, source_of
from tests.support.pinecone import (
    API_KEY,
    DATA_KEY,
    READING_KEY,
    Fault,
    PineconeEmulator,
    forget_failures,
    load_openapi,
)
from tests.support.processes import run
from tests.support.servers import SERVICE_KEY, assert_problem, serve, upload, wait_for
from worker.confidence import calibrate
from worker.ingest import ingest
from worker.sources import Item

FAULTS = [
    *(Fault(status) for status in (401, 403, 404, 409, 413, 429, 500, 503)),
    Fault(429, retry_after=0.1),
    Fault(cut="before"),
    Fault(cut="after"),
    Fault(cut="middle"),
    Fault(keep=3),
    Fault(delay=0.2),
    Fault(body=b"<html>"),
]


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[PineconeEmulator]:
    forget_failures()
    folder = SHARED / "data" / "pinecone"
    with PineconeEmulator(openapi=load_openapi(folder) if folder.exists() else None) as emulator:
        monkeypatch.setenv("IMAGE_SEARCH_STORE", "pinecone")
        monkeypatch.setenv("IMAGE_SEARCH_PINECONE_HOST", emulator.host)
        monkeypatch.setenv("IMAGE_SEARCH_STORE_TIMEOUT", "2")
        monkeypatch.setenv("PINECONE_API_KEY", API_KEY)
        yield emulator
        assert emulator.violations == []
    forget_failures()


@pytest.fixture
def unchecked(emulator: PineconeEmulator) -> PineconeEmulator:
    """For many messages of kinds that other tests check against Pinecone's files: that is slow."""
    emulator.openapi = None
    return emulator


@pytest.fixture
def index(emulator: PineconeEmulator) -> Iterator[VectorIndex]:
    emulator.put_index("images")
    index = create()
    yield index
    index.close()


def create() -> VectorIndex:
    return create_index(load_settings(), Manifest.new(MODEL, "cosine", "__default__"))


def records(count: int, thumbnail: bytes = b"jpeg", first: int = 0) -> list[Record]:
    rows = np.random.default_rng(first).standard_normal((count, DIMENSION)).astype(np.float32)
    return [
        Record(f"r{first + i:06d}", row, f"label {i % 10}", {"n": i}, thumbnail)
        for i, row in enumerate(rows)
    ]


def assert_stored(emulator: PineconeEmulator, expected: list[Record]) -> None:
    stored = emulator.records("images", "__default__")
    assert stored.keys() == {record.id for record in expected}
    for record in expected:
        np.testing.assert_allclose(stored[record.id].values, record.embedding, atol=1e-6)
        assert stored[record.id].metadata["n"] == record.metadata["n"]


# --- index and manifest -----------------------------------------------------------------


@pytest.mark.slow
def test_an_index_is_created_serverless_with_the_settings(
    emulator: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_PINECONE_REGION", "eu-west-1")
    index = create_index(load_settings(), Manifest.new(MODEL, "euclidean", "__default__"))
    assert index.manifest.metric == "euclidean"
    index.close()
    created = emulator.indexes["images"]
    assert (created.dimension, created.metric) == (DIMENSION, "euclidean")


@pytest.mark.long
def test_creation_waits_until_the_index_is_ready(emulator: PineconeEmulator) -> None:
    emulator.describes_until_ready = 1
    index = create()
    index.upsert(records(3))
    assert_stored(emulator, records(3))
    index.close()


@pytest.mark.slow
def test_an_index_made_by_hand_is_adopted_by_the_first_ingest(emulator: PineconeEmulator) -> None:
    emulator.put_index("images")
    with pytest.raises(IndexNotFoundError, match="no manifest"):
        open_index(load_settings())
    create().close()
    opened = open_index(load_settings())
    assert opened.manifest.model == MODEL
    assert opened.count() == 0, "the manifest is not among the images"
    assert opened.list_ids().ids == []
    opened.close()


@pytest.mark.slow
def test_a_damaged_calibration_is_told_and_replaced_by_the_next(
    emulator: PineconeEmulator, index: VectorIndex, caplog: pytest.LogCaptureFixture
) -> None:
    calibration = Calibration(scores=(0.1, 0.9), confidences=(0.2, 0.8))
    index.save_calibration(calibration)
    stored = emulator.records("images", "__manifest__")["__default__/calibration"]
    for metadata in ({"calibration": "{"}, {"calibration": "[]"}, {}):
        stored.metadata.clear()
        stored.metadata.update(metadata)
        caplog.clear()
        with open_index(load_settings()) as opened:
            assert opened.calibration is None
            assert "is damaged" in caplog.text
            opened.save_calibration(calibration)
        with open_index(load_settings()) as opened:
            assert opened.calibration == calibration
        stored = emulator.records("images", "__manifest__")["__default__/calibration"]


@pytest.mark.slow
def test_an_index_that_does_not_fit_is_refused_with_both_sides_named(
    emulator: PineconeEmulator,
) -> None:
    emulator.put_index("images", dimension=1536)
    with pytest.raises(IndexMismatchError, match=r"1536.*512"):
        create()
    del emulator.indexes["images"]
    emulator.put_index("images", metric="dotproduct")
    with pytest.raises(IndexMismatchError, match=r"dotproduct.*cosine"):
        create()


@pytest.mark.slow
def test_a_missing_key_is_explained(
    emulator: PineconeEmulator,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PINECONE_API_KEY")
    with pytest.raises(SettingsError, match="PINECONE_API_KEY"):
        create()


# --- upserts ----------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_lost_while_one_request_in_ten_fails_in_any_way(
    unchecked: PineconeEmulator, index: VectorIndex
) -> None:
    emulator = unchecked
    emulator.fail_randomly(0.1, FAULTS)
    # Whatever chance brings.
    emulator.fail(Fault(503), route="/vectors/upsert")
    expected = records(1000)
    for start in range(0, len(expected), 25):
        index.upsert(expected[start : start + 25])
    emulator.fail_randomly(0, [])
    assert_stored(emulator, expected)
    assert index.retries > 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_each_fault_is_survived(
    emulator: PineconeEmulator, index: VectorIndex, fault: Fault
) -> None:
    emulator.fail(fault, route="/vectors/upsert")
    expected = records(20)
    index.upsert(expected)
    assert_stored(emulator, expected)


@pytest.mark.slow
def test_a_permanent_outage_is_an_error_and_the_next_run_goes_on(
    emulator: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_STORE_TIMEOUT", "0.5")
    emulator.put_index("images")
    index = create()
    expected = records(100)
    index.upsert(expected[:50])
    emulator.stop()
    with pytest.raises(StoreError, match="cannot be reached"):
        index.upsert(expected[50:])
    emulator.start()
    forget_failures()
    index.upsert(expected[50:])
    assert_stored(emulator, expected)
    index.close()


@pytest.mark.slow
def test_requests_stay_below_the_limits(emulator: PineconeEmulator, index: VectorIndex) -> None:
    thumbnail = os.urandom(20_000)
    index.upsert(records(300, thumbnail))
    sizes = [request.bytes for request in emulator.requests if "upsert" in request.route]
    assert max(sizes) <= 2_000_000
    found = index.fetch([record.id for record in records(300)])
    assert len(found) == 300
    assert all(record.thumbnail == thumbnail for record in found.values())
    # All thumbnails together are more than one result may hold.
    matches = index.query(records(1)[0].embedding, 300)
    assert len(matches) == 300
    assert all(match.thumbnail == thumbnail for match in matches)


@pytest.mark.slow
def test_a_thumbnail_that_is_too_large_is_made_smaller(index: VectorIndex) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", quality=95)
    assert len(out.getvalue()) > 40_000
    index.upsert(records(1, out.getvalue()))
    [record] = index.fetch(["r000000"]).values()
    assert Image.open(io.BytesIO(record.thumbnail)).size == (200, 200)


@pytest.mark.slow
def test_metadata_that_is_too_large_is_refused_before_anything_is_sent(
    emulator: PineconeEmulator, index: VectorIndex
) -> None:
    good, bad = records(2)
    bad = Record(bad.id, bad.embedding, None, {"text": "x" * 41_000}, b"")
    with pytest.raises(RecordError, match=rf"{bad.id}.*40,960"):
        index.upsert([good, bad])
    assert emulator.records("images", "__default__") == {}


@pytest.mark.slow
def test_flush_waits_until_queries_show_what_was_upserted(
    emulator: PineconeEmulator, index: VectorIndex, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.stale_reads = 4
    index.upsert(records(10))
    index.flush()
    assert len(index.query(records(1)[0].embedding, 10)) == 10
    assert caplog.messages == []


@pytest.mark.slow
def test_flush_of_an_empty_index_waits_for_nothing(
    emulator: PineconeEmulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_STORE_TIMEOUT", "0.5")
    emulator.put_index("images")
    index = create()
    index.flush()
    assert caplog.messages == []
    index.close()


@pytest.mark.slow
def test_flush_says_so_when_the_index_stays_behind(
    emulator: PineconeEmulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_STORE_TIMEOUT", "0.2")
    emulator.put_index("images")
    index = create()
    emulator.stale_writes = 1
    index.upsert(records(10))
    with caplog.at_level(logging.WARNING):
        index.flush()
    assert "does not yet show everything" in caplog.text
    index.close()


@pytest.mark.long
def test_flush_waits_for_the_newest_write_where_an_older_one_is_answered_last(
    unchecked: PineconeEmulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    emulator = unchecked
    # So long it waits, and so long a request may take.
    monkeypatch.setenv("IMAGE_SEARCH_STORE_TIMEOUT", "1")
    emulator.put_index("images")
    index = create()
    emulator.stale_writes = 1
    emulator.fail(Fault(late=0.2), route="/vectors/upsert")
    index.upsert([replace(record, label=None) for record in records(300)])
    with caplog.at_level(logging.WARNING):
        index.flush()
    assert "does not yet show everything" in caplog.text
    index.close()


@pytest.mark.long
def test_the_worker_ingests_while_requests_fail_and_tells_the_retries(
    unchecked: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = unchecked
    monkeypatch.setenv("IMAGE_SEARCH_RECIPE", "none")
    emulator.put_index("images")
    emulator.fail_randomly(0.1, FAULTS, route="/vectors")
    emulator.fail(Fault(503), route="/vectors/upsert")
    code, out, err = run("worker", "ingest", "sample", "--limit", "120")
    emulator.fail_randomly(0, [])
    assert code == 0, err
    assert len(emulator.records("images", "__default__")) == 120
    assert "requests to the store had to be retried" in out
    code, out, _ = run("worker", "ingest", "sample", "--limit", "120")
    assert code == 0
    assert "0 images embedded, 120 unchanged" in out


@pytest.mark.slow
def test_a_permanent_outage_ends_the_worker_with_a_clear_message(
    emulator: PineconeEmulator,
) -> None:
    emulator.put_index("images")
    emulator.stop()
    code, _, err = run("worker", "ingest", "sample", IMAGE_SEARCH_STORE_TIMEOUT="0.5")
    assert code == 1
    assert "Pinecone cannot be reached" in err
    assert API_KEY not in err
    emulator.start()


# --- the service ------------------------------------------------------------------------


@pytest.fixture
def client(emulator: PineconeEmulator, embedder: Embedder) -> Iterator[TestClient]:
    emulator.put_index("images")
    settings = load_settings()
    fill(settings, embedder).close()
    with serve(settings) as client:
        wait_for(client, 200)
        yield client


@pytest.mark.long
def test_the_service_answers_as_on_the_embedded_store(
    client: TestClient, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_pinecone = upload(client, encode(QUERY), label=["boat", "castle"]).json()["matches"]
    assert client.get("/health").json()["store"] == "pinecone"
    monkeypatch.setenv("IMAGE_SEARCH_STORE", "embedded")
    settings = load_settings()
    fill(settings, embedder)
    with serve(settings) as embedded:
        wait_for(embedded, 200)
        expected = upload(embedded, encode(QUERY), label=["boat", "castle"]).json()["matches"]
    assert len(expected) == 10
    for one, other in zip(on_pinecone, expected, strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-4)
        assert one == other


def stop(emulator: PineconeEmulator) -> Callable[[], None]:
    emulator.stop()
    return emulator.start


def slow(emulator: PineconeEmulator) -> Callable[[], None]:
    emulator.delay = 30
    return lambda: setattr(emulator, "delay", 0)


def throttling(emulator: PineconeEmulator) -> Callable[[], None]:
    emulator.fail_randomly(1, [Fault(429, retry_after=60)])
    return lambda: emulator.fail_randomly(0, [])


@pytest.fixture
def strays_collected() -> Iterator[None]:
    """Let connections go that nobody closes, and collect them before another test is blamed for it.

    anyio drops a connection without closing it whose task is cancelled while it is being made. A
    service keeps from the collector all that is there once it has loaded its index.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.unfreeze()
        gc.collect()


@pytest.mark.long
@pytest.mark.usefixtures("strays_collected")
@pytest.mark.parametrize("trouble", [stop, slow, throttling])
def test_the_service_answers_503_in_time_and_recovers(
    client: TestClient,
    emulator: PineconeEmulator,
    trouble: Callable[[PineconeEmulator], Callable[[], None]],
) -> None:
    end = trouble(emulator)
    started = time.monotonic()
    for response in (upload(client, encode(QUERY)), client.get("/health")):
        assert_problem(response, 503, "store_unavailable")
        assert response.headers["Retry-After"]
    # The limit is two seconds a call; the faults would take thirty and more.
    assert time.monotonic() - started < 20
    end()
    forget_failures()
    wait_for(client, 200)
    assert upload(client, encode(QUERY)).status_code == 200


@pytest.mark.long
@pytest.mark.usefixtures("strays_collected")
def test_the_key_is_never_shown(
    client: TestClient,
    emulator: PineconeEmulator,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.DEBUG):
        shown: list[Any] = [client.get("/openapi.json").text, client.get("/health").text]
        emulator.fail_randomly(1, [Fault(401), Fault(403), Fault(500), Fault(body=b"<html>")])
        shown += [upload(client, encode(QUERY)).text for _ in range(4)]
        index = None
        with pytest.raises(StoreError) as caught:
            index = open_index(load_settings())
        emulator.fail_randomly(0, [])
        shown += [str(caught.value), repr(caught.value), repr(load_settings()), repr(index)]
    shown += [caplog.text, *capfd.readouterr()]
    assert all(API_KEY not in text for text in shown)


# --- what was wrong at Pinecone itself ----------------------------------------------------


@pytest.mark.slow
def test_images_in_a_folder_with_a_space_are_found_and_not_embedded_again(
    emulator: PineconeEmulator, index: VectorIndex, fake_embedder: FakeEmbedder
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    items = [Item(f"my cats/{i} +.png", "cat", picture, {}) for i, picture in enumerate(pictures)]
    source = source_of(lambda: iter(items), len(items))
    for embedded in (8, 0):
        summary = ingest(source, index, fake_embedder, load_settings())
        assert (summary.embedded, summary.unchanged) == (embedded, 8 - embedded)
    # Read one by one, as an older index, without states, makes it.
    for stored in emulator.records("images", "__default__").values():
        stored.metadata.pop("__state__")
    assert ingest(source, index, fake_embedder, load_settings()).unchanged == 8


@pytest.mark.slow
def test_a_403_is_the_keys_only_where_pinecone_says_so(
    emulator: PineconeEmulator, index: VectorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.max_stored = 0
    with pytest.raises(StoreError, match="max storage allowed") as caught:
        index.upsert(records(1))
    assert "PINECONE_API_KEY" not in str(caught.value)
    monkeypatch.setenv("PINECONE_API_KEY", READING_KEY)
    monkeypatch.setenv("IMAGE_SEARCH_PINECONE_INDEX_HOST", f"{emulator.host}/data/images")
    with open_index(load_settings()) as reader:
        assert reader.count() == 0
        with pytest.raises(StoreError, match=r"403.*permission.*PINECONE_API_KEY"):
            reader.upsert(records(1))
    monkeypatch.setenv("PINECONE_API_KEY", "unknown")
    with pytest.raises(StoreError, match=r"401.*PINECONE_API_KEY"):
        open_index(load_settings())


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"embedding": {"type": "dense_vector", "dimension": DIMENSION, "metric": "cosine"}},
        {"title": {"type": "string"}},
        {name: {"type": "dense_vector", "dimension": 512, "metric": "cosine"} for name in "ab"},
    ],
)
def test_an_index_for_documents_is_not_adopted(
    emulator: PineconeEmulator, fields: dict[str, Any]
) -> None:
    emulator.put_index("images", fields=fields)
    for call in (create, lambda: open_index(load_settings())):
        with pytest.raises(IndexMismatchError, match=r"documents.*IMAGE_SEARCH_INDEX"):
            call()


@pytest.mark.slow
def test_a_key_for_data_alone_needs_the_host_of_the_index(
    emulator: PineconeEmulator, index: VectorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.upsert(records(3))
    monkeypatch.setenv("PINECONE_API_KEY", DATA_KEY)
    with pytest.raises(StoreError, match="IMAGE_SEARCH_PINECONE_INDEX_HOST"):
        open_index(load_settings())
    monkeypatch.setenv("IMAGE_SEARCH_PINECONE_INDEX_HOST", f"{emulator.host}/data/images")
    asked = emulator.count("/indexes")
    with open_index(load_settings()) as opened:
        assert opened.count() == 3
        opened.upsert(records(1, first=3))
    with create_index(load_settings(), Manifest.new(MODEL, "cosine", "other")) as created:
        assert created.count() == 4
    assert emulator.count("/indexes") == asked, "the control plane is left alone"
    emulator.put_index("narrow", dimension=3)
    monkeypatch.setenv("IMAGE_SEARCH_PINECONE_INDEX_HOST", f"{emulator.host}/data/narrow")
    with pytest.raises(IndexMismatchError, match=r"3.*512"):
        open_index(load_settings())


@pytest.mark.slow
def test_creation_ends_in_time(emulator: PineconeEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image_search.stores.pinecone.connection._CREATION_SECONDS", 1)
    emulator.describes_until_ready = 1000
    with pytest.raises(StoreError, match=r"not ready after 1 s.*try again"):
        create()


@pytest.mark.slow
def test_ids_are_fetched_as_many_at_once_as_fit(
    emulator: PineconeEmulator, index: VectorIndex
) -> None:
    emulator.requests.clear()
    index.fetch([f"{number:03d}/{'x' * 80}" for number in range(128)], thumbnails=False)
    sizes = [request.url_bytes for request in emulator.requests]
    assert len(sizes) == 2
    emulator.requests.clear()
    index.fetch([f"{number:03d}{'# ' * 250}" for number in range(64)], thumbnails=False)
    assert max(request.url_bytes for request in emulator.requests) < 8_000


@pytest.mark.slow
def test_a_search_survives_a_refusal_after_a_storm(
    emulator: PineconeEmulator, index: VectorIndex
) -> None:
    index.upsert(records(3))
    emulator.fail(Fault(503), times=36, route="/vectors/fetch")
    threads = [Thread(target=index.fetch, args=(["r000000"],)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for retry_after in (None, 0.1, datetime.now(UTC) + timedelta(seconds=1)):
        emulator.fail(Fault(429, retry_after=retry_after), route="/query")
        assert len(index.query(records(1)[0].embedding, 3)) == 3


@pytest.mark.slow
def test_a_time_to_come_again_is_kept(emulator: PineconeEmulator, index: VectorIndex) -> None:
    emulator.clock = time.time
    for as_time in (False, True):
        soon = (datetime.now(UTC) + timedelta(seconds=3)).replace(microsecond=0)
        retry_after = soon if as_time else 1
        emulator.requests.clear()
        emulator.fail(Fault(429, retry_after=retry_after), route="/vectors/upsert")
        index.upsert(records(1))
        times = [item.at for item in emulator.requests if item.route == "POST /vectors/upsert"]
        # However slow the machine is, a request that waited comes no earlier.
        due = times[0] + retry_after if isinstance(retry_after, int) else retry_after.timestamp()
        assert times[1] > due - 0.05


@pytest.mark.slow
def test_each_request_is_sent_once_by_the_sdk(
    emulator: PineconeEmulator, index: VectorIndex
) -> None:
    """Its own retries would pass the limits, and spend a budget that the whole process shares."""
    emulator.fail(Fault(503), times=2, route="/vectors/fetch")
    before = index.retries
    index.fetch(["a"])
    assert index.retries - before == emulator.count("/vectors/fetch", 503) == 2


@pytest.mark.long
@pytest.mark.parametrize(("limit", "count"), [(100, 1_000), (30, 250)])
def test_calibration_keeps_to_the_limits(
    unchecked: PineconeEmulator,
    index: VectorIndex,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    count: int,
) -> None:
    """As many queries as PINECONE_QUERIES says: the limit of 30 makes 1,000 wait 40 seconds."""
    sent = watch_sends(monkeypatch, "query")["query"]
    count = int(os.environ.get("PINECONE_QUERIES", count))
    unchecked.rate_limits["query"] = limit
    index.upsert(records(count, b"x" * 2000))
    unchecked.requests.clear()
    ids = [record.id for record in records(count)]
    assert calibrate(index, ids, Event()) is not None
    queries = [request.at for request in unchecked.requests if request.route == "POST /query"]
    assert len(queries) >= count
    refused = unchecked.count("POST /query", 429)
    seconds = queries[-1] - queries[0]
    print(
        f"limit of {limit} a second: {count:,} images calibrated in {seconds:.0f} s with "
        f"{len(queries):,} queries, {refused} of them refused"
    )
    assert refused < 100
    if limit == 100:
        assert_below_the_limit(sent)
    assert unchecked.count("thumbnails") == 0
    read = sum(request.answer_bytes for request in unchecked.requests)
    # 50 matches and one embedding for each image; its thumbnails alone would be 125 KB.
    assert read < 25_000 * count


def watch_sends(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> dict[str, list[float]]:
    """When requests are sent, in seconds: on a busy machine they may arrive together."""
    sent: dict[str, list[float]] = {kind: [] for kind in kinds}

    def watched(kind: str) -> Callable[..., Any]:
        send = getattr(AsyncIndex, kind)

        def watch(*arguments: Any, **options: Any) -> Any:
            sent[kind].append(time.monotonic())
            return send(*arguments, **options)

        return watch

    for kind in kinds:
        monkeypatch.setattr(AsyncIndex, kind, watched(kind))
    return sent


def assert_below_the_limit(times: list[float]) -> None:
    assert len(times) > 100
    assert all(later - one > 1 for one, later in zip(times, times[96:], strict=False))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_more_queries_at_once_than_the_limits_allow_in_time_are_answered(
    index: VectorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for one is two seconds here."""
    sent = watch_sends(monkeypatch, "query")
    index.upsert(records(3))
    rows = np.stack([record.embedding for record in records(300)])
    assert len(index.query_many(rows, 1, thumbnails=False)) == 300
    assert_below_the_limit(sent["query"])


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_requests_of_each_kind_are_spread_below_the_limits(
    index: VectorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = watch_sends(monkeypatch, "query", "fetch")
    rows = np.stack([record.embedding for record in records(150)])
    index.upsert(records(3))
    index.query_many(rows, 1, thumbnails=False)
    index.fetch([f"{number}" for number in range(64 * 120)], thumbnails=False)
    for times in sent.values():
        assert_below_the_limit(times)


@pytest.mark.slow
def test_thumbnails_of_earlier_versions_are_shown(
    emulator: PineconeEmulator, index: VectorIndex
) -> None:
    index.upsert(records(2, b""))
    stored = emulator.records("images", "__default__")["r000000"]
    stored.metadata["thumbnail"] = base64.b64encode(b"jpeg").decode()
    found = index.fetch(["r000000", "r000001"])
    assert {id_: record.thumbnail for id_, record in found.items()} == {
        "r000000": b"jpeg",
        "r000001": b"",
    }
    assert "thumbnail" not in found["r000000"].metadata
    [match] = index.query(records(1)[0].embedding, 1)
    assert match.thumbnail == b"jpeg"
    index.upsert(records(1, b"newer"))
    assert index.fetch(["r000000"])["r000000"].thumbnail == b"newer"


@pytest.mark.slow
def test_what_was_put_just_now_is_deleted_while_reads_lag(
    emulator: PineconeEmulator, embedder: Embedder
) -> None:
    emulator.put_index("images")
    settings = load_settings(api_keys=SecretStr(SERVICE_KEY))
    fill(settings, embedder).close()
    with serve(settings) as client:
        wait_for(client, 200)
        emulator.lag = 60
        headers = {"X-API-Key": SERVICE_KEY}
        files = {"image": ("a.png", encode(QUERY))}
        assert client.put("/images/mine", files=files, headers=headers).status_code == 201
        assert "mine" in emulator.records("images", "__default__")
        client.delete("/images/mine", headers=headers)
        assert "mine" not in emulator.records("images", "__default__")
        assert "mine" not in emulator.records("images", "__default__.thumbnails")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault(404), Fault(503)], ids=str)
def test_no_delete_is_lost_to_a_fault(
    emulator: PineconeEmulator, index: VectorIndex, fault: Fault
) -> None:
    index.upsert(records(3))
    emulator.fail(fault, times=2, route="/vectors/delete")
    index.delete(["r000000", "r000001"])
    for namespace in ("__default__", "__default__.thumbnails"):
        assert emulator.records("images", namespace).keys() == {"r000002"}


def test_a_delete_before_anything_was_written_is_not_sent_again(
    emulator: PineconeEmulator, index: VectorIndex
) -> None:
    index.delete(["none"])
    assert emulator.count("/vectors/delete") == 2  # of records, and of thumbnails
    assert index.retries == 0


@pytest.mark.slow
def test_deletions_are_forgotten_while_reads_lag(
    emulator: PineconeEmulator, index: VectorIndex
) -> None:
    index.save_deletions({"a": "1" * 64, "b": "2" * 64})
    emulator.lag = 0.5
    index.forget_deletions(["a"])
    assert index.load_deletions() == {"b": "2" * 64}


def test_vectors_keep_their_digits_whatever_their_lengths(
    emulator: PineconeEmulator, index: VectorIndex
) -> None:
    scales = (1e-9, 1e-3, 1.0, 1e9)
    scaled = [
        replace(record, embedding=(record.embedding * scale).astype(np.float32))
        for record, scale in zip(records(len(scales)), scales, strict=True)
    ]
    for batch in (scaled, *([record] for record in scaled)):
        index.upsert(batch)
        for record in batch:
            stored = emulator.records("images", "__default__")[record.id].values
            largest = np.abs(record.embedding).max()
            np.testing.assert_allclose(stored, record.embedding, rtol=0, atol=1e-6 * largest)


def test_vectors_are_sent_with_as_few_digits_as_they_need(
    emulator: PineconeEmulator, index: VectorIndex
) -> None:
    unit = [
        replace(one, embedding=one.embedding / np.linalg.norm(one.embedding)) for one in records(50)
    ]
    emulator.requests.clear()
    index.upsert([replace(one, thumbnail=b"") for one in unit])
    [sent] = [
        request
        for request in emulator.requests
        if request.route == "POST /vectors/upsert" and request.namespace == ""
    ]
    # A sign, "0.", seven digits and a comma.
    assert sent.bytes < len(unit) * DIMENSION * 11


@pytest.mark.slow
def test_parts_of_an_original_cost_one_look_into_the_index(
    emulator: PineconeEmulator,
    embedder: Embedder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator.put_index("images")
    (tmp_path / "photos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "photos" / name).write_bytes(bytes(range(256)))
    settings = load_settings(media_root=str(tmp_path), api_keys=SecretStr(SERVICE_KEY))
    names = ("photos/a.mp4", "photos/b.mp4")
    made = [replace(one, id=id_) for one, id_ in zip(records(2), names, strict=True)]
    with fill(settings, embedder) as index, serve(settings) as client:
        index.upsert(made)
        wait_for(client, 200)

        def asked(name: str) -> int:
            return client.get(
                f"/originals/photos/{name}", headers={"Range": "bytes=3-4"}
            ).status_code

        before = emulator.count("GET")
        assert asked("a.mp4") == 206
        once = emulator.count("GET") - before
        assert once > 0
        assert [asked("a.mp4") for _ in range(5)] == [206] * 5
        assert emulator.count("GET") - before == once

        # What this service deletes is gone at once, and what others delete, soon.
        assert asked("b.mp4") == 206
        client.delete("/images/photos/a.mp4", headers={"X-API-Key": SERVICE_KEY})
        assert_problem(client.get("/originals/photos/a.mp4"), 404, "image_not_found")
        assert asked("b.mp4") == 206
        index.delete(["photos/b.mp4"])
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 11)
        monkeypatch.setattr("service.originals.time", later)
        assert_problem(client.get("/originals/photos/b.mp4"), 404, "image_not_found")
