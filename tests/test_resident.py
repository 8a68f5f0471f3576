"""Searches from memory and snapshots: what can happen to their files, and what they may miss."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from image_search.filters import Condition
from image_search.index import Record, VectorIndex
from image_search.manifest import Manifest
from image_search.settings import Settings
from image_search.stores import create_index, open_index
from image_search.stores.embedded import index as embedded
from image_search.stores.embedded import resident
from image_search.stores.embedded.local import LocalFiles
from image_search.stores.embedded.snapshot import versions_in
from image_search.values import DIMENSION
from tests.support.indexes import MODEL, snapshots_after_writes

ROWS = 60


@pytest.fixture(autouse=True)
def snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots_after_writes(monkeypatch)


@pytest.fixture
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of the table itself fail."""

    def fail(*_: object) -> None:
        raise AssertionError("the table was searched")

    monkeypatch.setattr(embedded.EmbeddedIndex, "_find", fail)


def records(first: int, count: int = 1, seed: int = 0) -> list[Record]:
    return [
        Record(
            f"r{number:04d}",
            np.random.default_rng((number, seed)).standard_normal(DIMENSION).astype(np.float32),
            f"label {number % 3}",
            {"number": number},
            b"jpeg %d" % number,
        )
        for number in range(first, first + count)
    ]


def create(settings: Settings, count: int = ROWS) -> VectorIndex:
    index = create_index(settings, Manifest.new(MODEL, settings.metric, settings.namespace))
    index.upsert(records(0, count))
    return index


def snapshots_of(settings: Settings) -> Path:
    return LocalFiles.of(settings).snapshots


def newest(settings: Settings) -> Path:
    """The snapshot that there is, which another thread may be writing."""
    deadline = time.monotonic() + 60
    while not (versions := versions_in(snapshots_of(settings))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return snapshots_of(settings) / str(versions[0])


def assert_answers(index: VectorIndex, expected: list[Record]) -> None:
    """As NumPy, with all that is shown of a match."""
    rows = np.stack([record.embedding for record in expected]).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    for query in (expected[0].embedding, *(record.embedding for record in records(9_000, 3))):
        scores = rows @ query / lengths / np.linalg.norm(query)
        best = np.argsort(-scores)[:5]
        matches = index.query(query, 5)
        assert [match.id for match in matches] == [expected[i].id for i in best]
        np.testing.assert_allclose([m.score for m in matches], scores[best], rtol=1e-4, atol=1e-5)
        for match, i in zip(matches, best, strict=True):
            one = expected[i]
            assert (match.label, match.metadata, match.thumbnail) == (
                one.label,
                one.metadata,
                one.thumbnail,
            )


@pytest.mark.usefixtures("no_table")
def test_rows_of_snapshots_and_later_ones_are_found_and_deleted_ones_are_not(
    settings: Settings,
) -> None:
    with create(settings) as index, open_index(settings) as other:
        assert newest(settings).is_dir()
        index.upsert(records(ROWS, 4), keep_up=False)
        index.upsert(records(3, seed=1), keep_up=False)
        index.delete(["r0005"], keep_up=False)
        held = {record.id: record for record in (*records(0, ROWS + 4), *records(3, seed=1))}
        del held["r0005"]
        for one in (index, other):
            assert_answers(one, list(held.values()))
            found = one.query(records(5)[0].embedding, 100, Condition("label", "$eq", "label 2"))
            expected = {record.id for record in held.values() if record.label == "label 2"}
            assert {match.id for match in found} == expected
        index.flush()
        for one in (index, other):
            assert_answers(one, list(held.values()))
        assert len(list(snapshots_of(settings).iterdir())) == 1


def cut(name: str) -> Callable[[Path], object]:
    return lambda place: os.truncate(place / name, (place / name).stat().st_size // 2)


def damage(name: str) -> Callable[[Path], object]:
    return lambda place: (place / name).write_bytes(bytes((place / name).stat().st_size))


def remove(name: str) -> Callable[[Path], object]:
    return lambda place: (place / name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        *map(cut, ("facts.json", "codes.faiss", "addresses.npy", "vectors.npy", "rows.arrow")),
        *map(damage, ("facts.json", "codes.faiss", "addresses.npy", "vectors.npy", "rows.arrow")),
        *map(remove, ("facts.json", "codes.faiss", "addresses.npy", "vectors.npy", "rows.arrow")),
        shutil.rmtree,
    ],
)
def test_a_damaged_snapshot_is_not_used_and_written_anew(
    settings: Settings, spoil: Callable[[Path], object]
) -> None:
    create(settings).close()
    spoil(newest(settings))
    with open_index(settings) as index:
        assert_answers(index, records(0, ROWS))
        index.flush()
        assert_answers(index, records(0, ROWS))
        assert newest(settings).is_dir()


@pytest.mark.parametrize("later", [False, True])
def test_a_snapshot_of_another_table_is_not_used(
    settings: Settings, tmp_path: Path, *, later: bool
) -> None:
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    with create(other) as index:
        if later:
            index.upsert(records(0, 1, seed=1), keep_up=False)
        index.flush()
    with create_index(settings, Manifest.new(MODEL, settings.metric, settings.namespace)) as index:
        index.upsert(records(100, ROWS))
    shutil.rmtree(snapshots_of(settings))
    shutil.copytree(snapshots_of(other), snapshots_of(settings))
    with open_index(settings) as index:
        assert_answers(index, records(100, ROWS))


def test_an_earlier_state_that_is_put_back_is_what_is_found(
    settings: Settings, tmp_path: Path
) -> None:
    with create(settings, 30) as index:
        shutil.copytree(settings.local_dir, tmp_path / "earlier")
        index.upsert(records(30, 40))
        assert_answers(index, records(0, 70))
        saved = tmp_path / "snapshots"
        shutil.copytree(snapshots_of(settings), saved)
    shutil.rmtree(settings.local_dir)
    shutil.copytree(tmp_path / "earlier", settings.local_dir)
    # Its snapshots are of a state that came later; and then there is another state of its number.
    shutil.rmtree(snapshots_of(settings))
    shutil.copytree(saved, snapshots_of(settings))
    with open_index(settings) as index:
        assert_answers(index, records(0, 30))
        index.upsert(records(200, 40), keep_up=False)
        index.delete(["none"], keep_up=False)
        assert_answers(index, [*records(0, 30), *records(200, 40)])


def test_a_full_disk_takes_no_answer_and_no_commit(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, create(settings, 1) as index:
        patch.setattr(resident, "write_snapshot", fail)
        index.upsert(records(1, ROWS - 1), keep_up=False)
        index.flush()
        assert "disk is full" in caplog.text
        assert_answers(index, records(0, ROWS))
    with open_index(settings) as index:
        index.flush()
        assert newest(settings).is_dir()
        assert_answers(index, records(0, ROWS))


def test_what_needs_more_memory_than_is_allowed_is_searched_in_the_table(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "BYTES_A_ROW", 1 << 20)
    small = settings.model_copy(update={"index_memory": ROWS - 1})
    with create(small) as index:
        index.flush()
        assert not snapshots_of(settings).exists()
        assert_answers(index, records(0, ROWS))
        assert not index.is_in_memory
    with open_index(settings) as index:
        index.flush()
        assert newest(settings).is_dir()
        assert_answers(index, records(0, ROWS))
        assert index.is_in_memory


def test_a_commit_that_the_folder_does_not_show_is_seen_within_a_second(settings: Settings) -> None:
    """As where the file system's clock is coarse, or another machine's."""
    with create(settings) as index, open_index(settings) as other:
        versions = LocalFiles.of(settings).versions
        status = versions.stat()
        vector = records(ROWS)[0].embedding
        deadline = time.monotonic() + 60
        assert other.query(vector, 1)[0].id != "r0060"
        index.upsert(records(ROWS), keep_up=False)
        while other.query(vector, 1)[0].id != "r0060":
            os.utime(versions, ns=(status.st_atime_ns, status.st_mtime_ns))
            assert time.monotonic() < deadline


def test_what_a_killed_writer_left_is_removed(settings: Settings) -> None:
    with create(settings) as index:
        left = snapshots_of(settings) / "7.tmp"
        left.mkdir()
        (left / "vectors.npy").write_bytes(b"half")
        index.upsert(records(ROWS, ROWS))
        assert not left.exists()
        assert_answers(index, records(0, 2 * ROWS))


def test_snapshots_go_with_their_index(settings: Settings) -> None:
    create(settings).close()
    files = LocalFiles.of(settings)
    files.remove()
    assert list(files.folder.iterdir()) == []


# --- all at once ----------------------------------------------------------------------

OPERATIONS = 30
# Imports once, and does each line in a new process, which may be killed meanwhile.
WRITER = """
import os, sys
import numpy as np, pytest
from image_search.settings import load_settings
from image_search.stores import open_index
from tests.support.indexes import snapshots_after_writes
from tests.test_resident import change
snapshots_after_writes(pytest.MonkeyPatch())
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        with open_index(load_settings()) as index:
            print(os.getpid(), flush=True)
            change(index, int(line))
        os._exit(0)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def change(index: VectorIndex, seed: int) -> None:
    """An upsert, a delete or a compaction, by `seed`."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice(150, rng.integers(1, 40), replace=False).tolist()
    match seed % 5:
        case 0:
            index.flush()
        case 1:
            index.delete([f"r{number:04d}" for number in numbers])
        case _:
            index.upsert([record for n in numbers for record in records(n, seed=seed)])


@pytest.mark.long
def test_readers_see_what_the_table_has_whatever_a_writer_does_and_is_killed_at(
    settings: Settings,
) -> None:
    create(settings).close()
    rng = np.random.default_rng(0)
    command = [sys.executable, "-W", "ignore", "-c", WRITER]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        open_index(settings) as one,
        open_index(settings) as other,
        open_index(settings.model_copy(update={"index_memory": 0})) as table,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        ) as writer,
    ):
        assert writer.stdin is not None
        assert writer.stdout is not None
        for seed in range(OPERATIONS):
            writer.stdin.write(f"{seed}\n")
            writer.stdin.flush()
            child = int(writer.stdout.readline())
            if rng.random() < 0.4:
                time.sleep(rng.uniform(0, 0.05))
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            assert writer.stdout.readline() == "ended\n"
            held = table.fetch(list(table.ids()))
            for reader in (one, other):
                assert_answers(reader, [held[id_] for id_ in sorted(held)])
        assert len(held) > 100, "some operations were not killed"
        writer.communicate(timeout=300)
