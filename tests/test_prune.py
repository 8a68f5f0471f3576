"""`--prune`: the index loses what the source has lost, and nothing else."""

import logging
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from image_search.errors import SettingsError
from image_search.index import VectorIndex
from image_search.settings import load_settings
from tests.support.images import png
from tests.support.indexes import FakeEmbedder, records
from tests.support.processes import run
from worker.ingest import ingest
from worker.origin import named_in, remember
from worker.prune import SeenSource, check_prune, prune
from worker.sources import open_source

Sync = Callable[..., int]


@pytest.fixture
def sync(index: VectorIndex, fake_embedder: FakeEmbedder) -> Sync:
    """Ingest a path and prune; returns how many images were taken out."""

    def sync_(path: Path, most_percent: int = 25) -> int:
        source = named_in(index, open_source(str(path), data_dir=Path()))
        check_prune(source)
        remember(index, source)
        seen = SeenSource(source)
        ingest(seen.source, index, fake_embedder, load_settings())
        return prune(index, seen, most_percent)

    return sync_


def album(path: Path, count: int, first: int = 0) -> Path:
    for number in range(first, first + count):
        file = path / f"kind{number % 3}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    return path


def expected(*folders: Path) -> set[str]:
    return {
        f"{folder.name}/{file.relative_to(folder)}"
        for folder in folders
        for file in folder.rglob("*.png")
    }


def test_what_is_gone_is_taken_out_of_this_source_alone(
    sync: Sync, index: VectorIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = album(tmp_path / "pics", 12), album(tmp_path / "pics2", 5)
    assert (sync(first), sync(second)) == (0, 0)
    by_hand = replace(next(iter(records(index).values())), id="pics/by hand", metadata={})
    index.upsert([by_hand])
    (first / "kind1" / "4.png").unlink()
    (first / "kind2" / "5.png").rename(first / "kind2" / "new.png")
    shutil.rmtree(second)
    assert sync(first) == 2
    assert "removing 2 of 14 images" in capsys.readouterr().out
    assert set(records(index)) == {
        *expected(first),
        *(f"pics2/kind{n % 3}/{n}.png" for n in range(5)),
        "pics/by hand",
    }
    assert sync(first) == 0


def test_more_than_a_share_is_not_taken_out_unless_told(
    sync: Sync, index: VectorIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = album(tmp_path / "pics", 10)
    sync(folder)
    for number in (0, 3, 6):
        (folder / "kind0" / f"{number}.png").unlink()
    with caplog.at_level(logging.WARNING):
        assert sync(folder) == 0
    assert "3 of its 10 images, more than 25 %" in caplog.text
    assert index.count() == 10
    assert sync(folder, 30) == 3
    assert set(records(index)) == expected(folder)


def test_nothing_is_taken_out_where_the_source_was_not_read_whole(
    sync: Sync, index: VectorIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = album(tmp_path / "pics", 10)
    sync(folder)
    (folder / "kind0" / "0.png").unlink()
    (folder / "elsewhere").symlink_to(tmp_path / "not mounted")
    with caplog.at_level(logging.WARNING):
        assert sync(folder) == 0
    assert "parts of the source could not be read: elsewhere" in caplog.text
    (folder / "elsewhere").unlink()
    # A picture that cannot be read is still there.
    (folder / "kind1" / "1.png").write_bytes(b"damaged")
    assert sync(folder) == 1
    assert "pics/kind1/1.png" in records(index)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_changes_between_runs(
    sync: Sync, index: VectorIndex, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    folder = album(tmp_path / "pics", 20)
    for turn in range(4):
        files = sorted(folder.rglob("*.png"))
        for file in rng.sample(files, 4):
            action = rng.choice(["delete", "rename", "change", "copy"])
            if action == "delete":
                file.unlink()
            elif action == "rename":
                file.rename(file.with_name(f"{turn}-{file.name}"))
            elif action == "change":
                file.write_bytes(png(rng.randrange(1000)))
            else:
                shutil.copy(file, file.with_name(f"copy{turn}-{file.name}"))
        album(folder, rng.randrange(3), first=100 * (turn + 1))
        sync(folder, 100)
        assert set(records(index)) == expected(folder)


def test_a_data_set_does_not_change() -> None:
    with pytest.raises(SettingsError, match="leave it out"):
        check_prune(open_source("sample", data_dir=Path()))


@pytest.mark.long
def test_prune_as_users_run_it(tmp_path: Path) -> None:
    folder = album(tmp_path / "pics", 8)
    assert run("worker", "ingest", str(folder), "--prune")[0] == 0
    os.unlink(folder / "kind0" / "0.png")
    for extra in (["--limit", "3"], ["--split", "train"]):
        code, _, err = run("worker", "ingest", str(folder), "--prune", *extra)
        assert code == 2
        assert "whole source" in err or "no splits" in err
    code, out, _ = run("worker", "ingest", str(folder), "--prune", "10")
    assert (code, "8 images" in out) == (0, True)
    code, out, _ = run("worker", "ingest", str(folder), "--prune")
    assert code == 0
    assert "removing 1 of 8 images" in out
    assert ": 7 images" in out
