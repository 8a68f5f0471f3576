"""`--watch`: the index follows a folder."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_search.errors import IndexNotFoundError, SettingsError
from image_search.settings import Settings
from image_search.stores import open_index
from tests.support.images import folder_of, png
from tests.support.indexes import records
from tests.support.processes import run, start
from tests.support.waiting import wait_until
from worker.sources import open_source
from worker.watch import changed_part, changes, check_watch


class Changes:
    """What has changed, as it comes, in a thread."""

    def __init__(self, folder: Path, without: Path) -> None:
        self.stop = threading.Event()
        self.found: list[set[str] | None] = []
        self._folder, self._without = folder, without
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for changed in changes(self._folder, self._without, self.stop):
            if changed is None or changed:
                self.found.append(changed)

    def names(self) -> set[str]:
        return set().union(*(changed for changed in self.found if changed))

    def end(self) -> None:
        self.stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "pics", 6)


@pytest.fixture
def following(folder: Path) -> Iterator[Changes]:
    following = Changes(folder, folder / "data")
    wait_until(lambda: following.found == [None])
    yield following
    following.end()


@pytest.mark.long
def test_what_changes_is_told_once_it_is_at_rest(folder: Path, following: Changes) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "index.png").write_bytes(b"")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "label0" / "new.png").write_bytes(png(7))
    (folder / "label0" / "0000.png").unlink()
    (folder / "label1").rename(folder / "moved")
    expected = {"label0/new.png", "label0/0000.png", "label1", "moved"}
    wait_until(lambda: expected <= following.names())
    assert following.names() == expected | (following.names() & {"label0", "."})
    # While it is being written, a file is not told.
    before = len(following.found)
    with (folder / "slow.png").open("wb") as file:
        for _ in range(15):
            file.write(bytes(1000))
            file.flush()
            os.fsync(file.fileno())
            threading.Event().wait(0.2)
            assert not any("slow.png" in (found or ()) for found in following.found[before:])
    wait_until(lambda: "slow.png" in following.names())


@pytest.mark.slow
def test_a_folder_may_be_gone_for_a_while(folder: Path, following: Changes, tmp_path: Path) -> None:
    folder.rename(tmp_path / "away")
    threading.Event().wait(1)
    (tmp_path / "away").rename(folder)
    wait_until(lambda: following.found.count(None) == 2)
    shutil.rmtree(folder)
    folder_of(folder, 3)
    wait_until(lambda: following.found.count(None) == 3)
    (folder / "new.png").write_bytes(png(7))
    wait_until(lambda: "new.png" in following.names())


def test_only_what_changed_is_read(folder: Path, tmp_path: Path) -> None:
    before = open_source(str(folder), data_dir=tmp_path)
    (folder / "label0" / "new.png").write_bytes(png(7))
    source = open_source(str(folder), data_dir=tmp_path)
    part = changed_part(source, before, {"label0/new.png", "label1", "label2/gone.png"})
    assert [item.id for item in part.items()] == [
        *("pics/label0/new.png", "pics/label1/0001.png", "pics/label1/0004.png")
    ]
    assert part.total == 3
    # Another folder beside a wrapper: all get another label.
    wrapped = folder_of(tmp_path / "wrapped" / "in", 3).parent
    before = open_source(str(wrapped), data_dir=tmp_path)
    (wrapped / "in").rename(wrapped / "one")
    folder_of(wrapped / "two", 3)
    (wrapped / "one").rename(wrapped / "in")
    source = open_source(str(wrapped), data_dir=tmp_path)
    assert changed_part(source, before, {"two"}).total == 6


def test_only_a_folder_is_followed(folder: Path) -> None:
    assert check_watch(str(folder)) == folder
    for path in (str(folder / "label0" / "0000.png"), "sample", "nowhere"):
        with pytest.raises(SettingsError, match="follows a folder"):
            check_watch(path)


def ids(settings: Settings) -> set[str]:
    try:
        with open_index(settings) as index:
            return set(records(index))
    except IndexNotFoundError:
        return set()


def in_folder(folder: Path) -> set[str]:
    return {f"pics/{file.relative_to(folder)}" for file in folder.rglob("*.png")}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_index_follows_a_folder(
    folder: Path, settings: Settings, tmp_path: Path, number: signal.Signals
) -> None:
    worker = start("worker", "ingest", str(folder), "--watch")
    try:
        wait_until(lambda: ids(settings) == in_folder(folder))
        if number == signal.SIGTERM:
            (folder / "label0" / "new.png").write_bytes(png(70))
            (folder / "label1" / "0001.png").unlink()
            (folder / "label2").rename(folder / "renamed")
            wait_until(lambda: ids(settings) == in_folder(folder))
            # All that there is, for a while: nothing is taken out.
            folder.rename(tmp_path / "away")
            threading.Event().wait(2)
            assert len(ids(settings)) == 6
            (tmp_path / "away").rename(folder)
            (folder / "renamed" / "0002.png").rename(folder / "renamed" / "again.png")
            wait_until(lambda: ids(settings) == in_folder(folder))
        worker.send_signal(number)
        out, err = worker.communicate(timeout=60)
    except BaseException:
        worker.kill()
        print(worker.communicate())
        raise
    assert worker.returncode == 128 + number
    assert "Traceback" not in err
    if number == signal.SIGTERM:
        assert "is gone" in err
        assert "moved" in out


@pytest.mark.long
def test_following_goes_on_with_an_index_that_was_fitted_again(
    folder: Path, settings: Settings
) -> None:
    worker = start("worker", "ingest", str(folder), "--watch")
    try:
        wait_until(lambda: ids(settings) == in_folder(folder))
        code, out, err = run("worker", "refit", str(folder))
        assert code == 0, err
        assert "still in use" not in out + err
        (folder / "label0" / "0000.png").unlink()
        (folder / "label0" / "new.png").write_bytes(png(70))
        wait_until(lambda: ids(settings) == in_folder(folder))
        worker.send_signal(signal.SIGTERM)
        out, err = worker.communicate(timeout=60)
    except BaseException:
        worker.kill()
        print(worker.communicate())
        raise
    assert worker.returncode == 128 + signal.SIGTERM
    assert err.count("the index was replaced, as refit does: continuing with the new one") == 1
    assert "1 images embedded" in out


@pytest.mark.slow
def test_what_cannot_be_followed_is_told(folder: Path) -> None:
    for extra in (["--limit", "3"], ["--split", "train"]):
        worker = start("worker", "ingest", str(folder), "--watch", *extra)
        _, err = worker.communicate(timeout=60)
        assert worker.returncode == 2
        assert "--watch needs the whole source" in err or "no splits" in err
