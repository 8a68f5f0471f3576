"""What keeps the embedded store fast and safe: restarts, deletes, wrong clocks, kills."""

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from lancedb.query import LanceEmptyQueryBuilder
from lancedb.table import LanceTable

from image_search.index import Record, VectorIndex
from image_search.manifest import Manifest
from image_search.settings import Settings
from image_search.stores import create_index, open_index
from image_search.stores.embedded import upkeep
from image_search.stores.embedded.local import LocalFiles
from image_search.stores.embedded.locks import nobody_writing, writing
from image_search.values import DIMENSION
from tests.support.indexes import MODEL
from tests.support.processes import forks
from tests.support.waiting import wait_until

SECONDS_A_DAY = 86_400


def create(settings: Settings) -> VectorIndex:
    return create_index(settings, Manifest.new(MODEL, settings.metric, settings.namespace))


def records(first: int, count: int = 1) -> list[Record]:
    return [
        Record(
            f"r{number:04d}",
            np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32),
            f"label {number % 3}",
            {"number": number},
            b"jpeg",
        )
        for number in range(first, first + count)
    ]


def table(settings: Settings) -> Any:
    """The table as LanceDB itself opens it."""
    files = LocalFiles.of(settings)
    return lancedb.connect(files.folder).open_table(files.namespace)


def fragments(settings: Settings) -> int:
    return int(table(settings).stats()["fragment_stats"]["num_fragments"])


def assert_holds(settings: Settings, expected: list[Record]) -> None:
    index = open_index(settings)
    found = index.fetch(index.list_ids(limit=10_000).ids)
    assert found.keys() == {record.id for record in expected}
    for record in expected:
        np.testing.assert_array_equal(found[record.id].embedding, record.embedding)
        assert found[record.id].metadata == record.metadata
    for record in expected[:: max(1, len(expected) // 10)]:
        assert index.query(record.embedding, 1)[0].id == record.id


def shift_files(settings: Settings, days: float) -> None:
    """Let all files be older, which is what a clock that many days ahead makes of them."""
    for path in LocalFiles.of(settings).folder.rglob("*"):
        changed = path.stat().st_mtime - days * SECONDS_A_DAY
        os.utime(path, (changed, changed))


# --- what is due is seen in the table -------------------------------------------------


@pytest.mark.slow
def test_commits_of_many_short_processes_are_compacted(settings: Settings) -> None:
    create(settings)
    for start in range(0, 60, 6):
        with open_index(settings) as index:
            for number in range(start, start + 6):
                index.upsert(records(number))
    assert fragments(settings) <= 26
    assert_holds(settings, records(0, 60))


def test_deletes_are_compacted(settings: Settings) -> None:
    index = create(settings)
    index.upsert(records(0, 600))
    for start in range(0, 300, 30):
        with open_index(settings) as other:
            other.delete([record.id for record in records(start, 30)])
    deleted = table(settings).list_versions()[-1]["metadata"]["total_deletion_file_rows"]
    assert int(deleted) <= 100
    assert_holds(settings, records(300, 300))


@pytest.mark.slow
def test_flush_mends_what_others_left(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, create(settings) as index:
        patch.setattr(upkeep, "_MAX_SMALL_FRAGMENTS", 1_000)
        for number in range(30):
            index.upsert(records(number))
        assert fragments(settings) == 30
    with open_index(settings) as index:
        index.flush()
    assert fragments(settings) == 1
    assert_holds(settings, records(0, 30))


def test_old_versions_are_removed_by_whoever_comes_next(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_KEEP_VERSIONS", timedelta(milliseconds=1))
    index = create(settings)
    index.upsert(records(0, 5))
    for _ in range(60):  # neither fragments nor deleted rows
        index.delete(["none"])
    assert len(table(settings).list_versions()) <= 53


@pytest.mark.slow
def test_compaction_keeps_the_partitions_of_the_vector_index(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_ROWS_FOR_INDEXES", 2_000)
    settings = settings.model_copy(update={"index_memory": 0})
    with create(settings) as index:
        index.upsert(records(0, 2_000))
        index.flush()
        before = partitions(settings)
        assert before > 1
        index.flush()
        assert partitions(settings) == before
        for number in range(2_000, 2_030):
            index.upsert(records(number))
        assert fragments(settings) < 30
        assert partitions(settings) >= before


@pytest.mark.slow
def test_a_vector_index_is_built_where_the_table_is_searched(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_ROWS_FOR_INDEXES", 300)
    on_disk = settings.model_copy(update={"index_memory": 0})
    with create(settings) as index:
        index.upsert(records(0, 400))
        index.flush()
    assert indexed(settings) == {"id", "label"}
    assert_holds(on_disk, records(0, 400))
    with open_index(on_disk) as index:
        index.flush()
    assert indexed(settings) == {"id", "label", "embedding"}
    # Once it is there, it is kept up.
    with open_index(settings) as index:
        index.upsert(records(400, 400))
        index.flush()
    [vectors] = [i for i in table(settings).list_indices() if i.columns == ["embedding"]]
    assert vectors.name == "embedding_800"
    assert_holds(on_disk, records(0, 800))
    with create(settings.model_copy(update={"namespace": "large"})) as large:
        monkeypatch.setattr(upkeep, "_ROWS_FOR_VECTOR_INDEX_BESIDE_MEMORY", 400)
        large.upsert(records(0, 400))
        large.flush()
    assert "embedding" in indexed(settings.model_copy(update={"namespace": "large"}))


def indexed(settings: Settings) -> set[str]:
    return {column for index in table(settings).list_indices() for column in index.columns}


def partitions(settings: Settings) -> int:
    opened = table(settings)
    query = opened.search(records(0)[0].embedding, vector_column_name="embedding")
    plan = query.minimum_nprobes(10_000).maximum_nprobes(10_000).analyze_plan()
    return int(plan.split("partitions_searched=")[1].split(",")[0])


@pytest.mark.slow
def test_the_vector_index_has_few_segments(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_ROWS_FOR_INDEXES", 500)
    settings = settings.model_copy(update={"index_memory": 0})
    monkeypatch.setattr(upkeep, "_MAX_SMALL_FRAGMENTS", 4)
    monkeypatch.setattr(upkeep, "_MAX_SEGMENTS", 3)
    with create(settings) as index:
        index.upsert(records(0, 500))
        index.flush()
        for number in range(500, 540):
            index.upsert(records(number))
    [vectors] = [i for i in table(settings).list_indices() if i.columns == ["embedding"]]
    assert vectors.num_segments <= 4
    assert_holds(settings, records(0, 540))


def test_upkeep_that_fails_takes_no_commit_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    index = create(settings)
    monkeypatch.setattr(upkeep, "_is_due", fail)
    index.upsert(records(0))
    index.delete(["none"])
    assert "disk is full" in caplog.text
    assert_holds(settings, records(0))


# --- clocks ---------------------------------------------------------------------------


def test_files_of_a_write_in_flight_are_kept_whatever_the_clock_says(settings: Settings) -> None:
    index = create(settings)
    index.upsert(records(0, 10))
    files = LocalFiles.of(settings)
    [data] = (files.table / "data").iterdir()
    in_flight = data.with_stem("in-flight")
    shutil.copy(data, in_flight)
    shift_files(settings, days=10)
    with writing(files.lock):
        open_index(settings).flush()
        assert in_flight.exists()
    open_index(settings).flush()
    assert not in_flight.exists(), "what a process left that was killed is removed"
    assert_holds(settings, records(0, 10))


@pytest.mark.parametrize("write", ["upsert", "delete", "index"])
def test_every_write_holds_off_the_removal_of_files(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    monkeypatch.setattr(upkeep, "_ROWS_FOR_INDEXES", 300)
    index = create(settings)
    index.upsert(records(0, 300))
    writes: dict[str, Callable[[], None]] = {
        "upsert": lambda: index.upsert(records(300)),
        "delete": lambda: index.delete(["r0000"]),
        "index": lambda: upkeep.tidy(
            table(settings), LocalFiles.of(settings), "cosine", lambda _: False
        ),
    }
    version = table(settings).version
    thread = threading.Thread(target=writes[write])
    with nobody_writing(LocalFiles.of(settings).lock) as nobody:
        assert nobody
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert table(settings).version == version
    thread.join()
    assert table(settings).version > version


@pytest.mark.slow
@pytest.mark.parametrize("days", [0, 10, -10])
def test_writes_wait_for_a_compaction_only_where_the_clock_is_wrong(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    index = create(settings)
    index.upsert(records(0, 10))
    optimize = LanceTable.optimize
    waited: list[bool] = []
    writers: list[threading.Thread] = []

    def optimize_beside_a_writer(self: LanceTable, **options: Any) -> None:
        if not writers:
            writer = threading.Thread(target=open_index(settings).upsert, args=(records(10),))
            writers.append(writer)
            writer.start()
            writer.join(0.5 if days else 60)
            waited.append(writer.is_alive())
        optimize(self, **options)

    monkeypatch.setattr(LanceTable, "optimize", optimize_beside_a_writer)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + days * SECONDS_A_DAY)
    index.flush()
    writers[0].join()
    assert waited == [days != 0]
    assert_holds(settings, records(0, 11))


@pytest.mark.slow
@pytest.mark.parametrize("days", [10, -10])
def test_a_clock_step_loses_nothing(settings: Settings, days: int) -> None:
    index = create(settings)
    other = open_index(settings)
    for start in range(0, 60, 20):
        for number in range(start, start + 20, 2):
            index.upsert(records(number))
            other.upsert(records(number + 1))
        shift_files(settings, days)
        index.delete([f"r{start:04d}"])
        other.flush()
    kept = [record for record in records(0, 60) if int(record.id[1:]) % 20]
    assert_holds(settings, kept)
    assert fragments(settings) == 1


@pytest.mark.long
def test_reading_goes_on_while_all_old_versions_are_removed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a clock that has stepped ahead: no version is kept for its readers."""
    monkeypatch.setattr(upkeep, "_KEEP_VERSIONS", timedelta(milliseconds=1))
    writer = create(settings)
    writer.upsert(records(0, 50))
    reader = open_index(settings)
    done = threading.Event()
    failures: list[Exception] = []

    def read(work: Callable[[], object]) -> None:
        while not done.is_set():
            try:
                work()
            except Exception as exc:
                failures.append(exc)
                return

    vector = records(0)[0].embedding
    threads = [
        threading.Thread(target=read, args=(work,))
        for work in (
            lambda: reader.query(vector, 5),
            lambda: reader.fetch(["r0001", "r0040"]),
            lambda: reader.list_ids(),
            lambda: reader.labels(),
            lambda: reader.count(),
        )
    ]
    for thread in threads:
        thread.start()
    for number in range(50, 110):
        writer.upsert(records(number))
        writer.flush()
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_read_whose_files_were_removed_meanwhile_is_done_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create(settings) as index:
        index.upsert(records(0, 3))
    with open_index(settings) as index:
        removed: list[tuple[Path, bytes]] = []
        for path in (LocalFiles.of(settings).table / "data").iterdir():
            removed.append((path, path.read_bytes()))
            path.unlink()
        tries = 0
        to_arrow = LanceEmptyQueryBuilder.to_arrow

        def restore(query: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal tries
            tries += 1
            if tries == 2:
                for path, content in removed:
                    path.write_bytes(content)
            return to_arrow(query, *arguments, **options)

        monkeypatch.setattr(LanceEmptyQueryBuilder, "to_arrow", restore)
        found = index.fetch(["r0001"])
    assert found.keys() == {"r0001"}
    assert tries == 2


# --- kills ----------------------------------------------------------------------------

KILLS = 20
BATCHES = 120
BATCH = 4
IMPORTS = """
from image_search.settings import load_settings
from image_search.stores import embedded, open_index
from tests.test_upkeep import BATCH, BATCHES, records
batches = [records(BATCH * number, BATCH) for number in range(BATCHES)]
"""
# Goes on where the last one was.
WRITE = """
index = open_index(load_settings())
have = set(index.list_ids(limit=10_000).ids)
open(os.environ["BEGUN"], "w").close()
for batch in batches:
    if not have.issuperset(record.id for record in batch):
        index.upsert(batch)
"""


@pytest.mark.long
def test_kills_within_commits_lose_and_double_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(settings)
    begun = tmp_path / "begun"
    monkeypatch.setenv("BEGUN", str(begun))
    counts = [0]
    rng = random.Random(0)
    with forks(IMPORTS, WRITE) as start_writer:
        for _ in range(KILLS):
            writer = start_writer()
            wait_until(lambda: begun.exists() or not writer.is_running())  # noqa: B023
            time.sleep(rng.uniform(0, 0.1))
            writer.kill()
            begun.unlink(missing_ok=True)
            counts.append(open_index(settings).count())
        start_writer().wait()
    assert counts == sorted(counts), "nothing that was written is lost"
    assert {count % BATCH for count in counts} == {0}, "a commit is all or nothing"
    assert counts[1] < counts[-1], "some were killed after a commit of theirs"
    assert_holds(settings, records(0, BATCHES * BATCH))
