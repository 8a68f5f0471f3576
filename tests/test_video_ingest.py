"""Videos in sources: their frames as records that come, stay, move and go with the video."""

import os
import re
import shutil
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import worker.videos
from image_search import moments, videos
from image_search.index import Match, Record, VectorIndex
from image_search.manifest import Manifest
from image_search.moments import (
    DAMAGE_FIELD,
    DURATION_FIELD,
    SAMPLING_FIELD,
    TIME_FIELD,
    VIDEO_FIELD,
    frame_id,
    item_of,
)
from image_search.sample import TEXTURES, ImageSample
from image_search.settings import Settings, load_settings
from image_search.stores import create_index
from image_search.values import DIGEST_FIELD, MAX_ID_LENGTH
from image_search.videos import Sampling
from tests.support import ROOT
from tests.support.images import png
from tests.support.indexes import FakeEmbedder, assert_same_records, records
from tests.support.processes import run
from tests.support.videos import scene, write_video
from worker.confidence import draw, save_sample
from worker.duplicates import find_duplicates
from worker.ingest import Summary, ingest
from worker.origin import named_in, remember
from worker.prune import SeenSource, prune
from worker.sources import open_source
from worker.sources.skipped import Kind
from worker.videos import nearest_items

pytestmark = pytest.mark.slow

# Coded in milliseconds, and decoded everywhere.
CHEAP: Final[dict[str, Any]] = {"codec": "mpeg4", "rate": 5}


class Sync:
    """What the worker does with a source."""

    def __init__(self, index: VectorIndex, embedder: FakeEmbedder) -> None:
        self._index, self._embedder = index, embedder

    def __call__(
        self, path: Path, sampling: Sampling | None = None, *, restore: bool = False
    ) -> Summary:
        source = named_in(self._index, open_source(str(path), data_dir=Path()))
        remember(self._index, source)
        seen = SeenSource(source)
        seen.see_all()
        summary = ingest(
            seen.source,
            self._index,
            self._embedder,
            load_settings(batch_size=1),
            sampling=sampling,
            restore=restore,
        )
        prune(self._index, seen, 100)
        save_sample(self._index, summary.sample, draw(self._index))
        return summary


@pytest.fixture
def sync(index: VectorIndex, fake_embedder: FakeEmbedder) -> Sync:
    return Sync(index, fake_embedder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 4, 3 and 2 seconds, that nobody changes."""
    folder = tmp_path_factory.mktemp("made")
    for seconds in (2, 3, 4):
        write_video(folder / f"{seconds}.mp4", seconds=seconds, **CHEAP)
    return folder


@pytest.fixture
def album(tmp_path: Path, made: Path) -> Path:
    folder = tmp_path / "album"
    for name, number in (("cats/a.mp4", 4), ("dogs/b.mp4", 3)):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(made / f"{number}.mp4", folder / name)
    (folder / "cats" / "p.png").write_bytes(png(1))
    return folder


def ids(video: str, *times: float) -> set[str]:
    return {frame_id(video, time) for time in times}


@pytest.fixture
def _no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a video is decoded")

    monkeypatch.setattr(worker.videos, "read_frames", refuse)


def test_frames_are_records_and_are_not_read_again(
    sync: Sync,
    index: VectorIndex,
    album: Path,
    fake_embedder: FakeEmbedder,
    request: pytest.FixtureRequest,
) -> None:
    summary = sync(album)
    assert (summary.embedded, summary.frames, summary.videos) == (8, 7, 2)
    found = records(index)
    a, b = ids("album/cats/a.mp4", 0, 1, 2, 3), ids("album/dogs/b.mp4", 0, 1, 2)
    assert found.keys() == {"album/cats/p.png", *a, *b}
    record = found["album/cats/a.mp4#t=2.000"]
    assert record.label == "cats"
    assert record.metadata == {
        "modified": int((album / "cats" / "a.mp4").stat().st_mtime),
        DIGEST_FIELD: record.metadata[DIGEST_FIELD],
        "source": "album",
        "path": "cats/a.mp4",
        "video": "album/cats/a.mp4",
        "time": 2,
        "duration": 4,
        "width": 64,
        "height": 48,
        "format": "mp4",
    }
    assert record.thumbnail.startswith(b"\xff\xd8")
    assert len({one.metadata[DIGEST_FIELD] for one in found.values()}) == 8
    request.getfixturevalue("_no_decoding")
    again = sync(album)
    assert (again.embedded, again.unchanged, again.videos) == (0, 3, 0)
    # Renamed and in another folder: neither decoded nor embedded.
    (album / "cats" / "a.mp4").rename(album / "dogs" / "c.mp4")
    moved = sync(album)
    assert (moved.embedded, moved.moved) == (0, 4)
    after = records(index)
    assert after.keys() == {"album/cats/p.png", *ids("album/dogs/c.mp4", 0, 1, 2, 3), *b}
    assert after["album/dogs/c.mp4#t=2.000"].label == "dogs"
    assert after["album/dogs/c.mp4#t=2.000"].metadata["video"] == "album/dogs/c.mp4"
    assert fake_embedder.embedded == 8
    assert sync(album).unchanged == 3
    # Touched: all frames get the new time.
    os.utime(album / "dogs" / "c.mp4", (1, 1))
    assert (summary := sync(album)).relabelled == 4
    assert summary.embedded == 0
    assert {
        record.metadata["modified"] for id_, record in records(index).items() if "c.mp4" in id_
    } == {1}
    (album / "dogs" / "c.mp4").unlink()
    sync(album)
    assert records(index).keys() == {"album/cats/p.png", *b}


@pytest.fixture
def embedded(settings: Settings, fake_embedder: FakeEmbedder) -> Iterator[VectorIndex]:
    with create_index(settings, Manifest.new(fake_embedder.model, "cosine", "__default__")) as made:
        yield made


@pytest.fixture
def alone(embedded: VectorIndex, fake_embedder: FakeEmbedder) -> Sync:
    """With the embedded store alone."""
    return Sync(embedded, fake_embedder)


@pytest.mark.long
def test_another_sampling_or_another_video_takes_the_place_of_what_was_there(
    alone: Sync, embedded: VectorIndex, album: Path, made: Path, fake_embedder: FakeEmbedder
) -> None:
    alone(album, Sampling(frames_per_second=0.5))
    video = "album/cats/a.mp4"
    of_video = {id_ for id_ in records(embedded) if item_of(id_) == video}
    assert of_video == ids(video, 0, 2)
    summary = alone(album)
    # What was there stays, and is not embedded again.
    assert (summary.embedded, summary.frames) == (3, 3)
    assert {id_ for id_ in records(embedded) if item_of(id_) == video} == ids(video, 0, 1, 2, 3)
    alone(album, Sampling(max_frames=2))
    assert {id_ for id_ in records(embedded) if item_of(id_) == video} == ids(video, 1, 3)
    alone(album)
    shutil.copy(made / "2.mp4", album / "cats" / "a.mp4")
    before = fake_embedder.embedded
    alone(album)
    assert fake_embedder.embedded == before + 2
    assert {id_ for id_ in records(embedded) if item_of(id_) == video} == ids(video, 0, 1)
    assert alone(album).unchanged == 3


class CrashError(Exception):
    """In place of kill -9."""


@pytest.mark.long
def test_a_run_that_ends_anywhere_inside_videos_goes_on(
    fake_embedder: FakeEmbedder, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All writes but the first n are lost, for each n: the same records in the end."""
    monkeypatch.setattr("worker.ingest._SECONDS_PER_COMMIT", 0.0)
    manifest = Manifest.new(fake_embedder.model, "cosine", "__default__")
    folder = tmp_path / "album"
    folder.mkdir()

    def new(name: str) -> VectorIndex:
        index = create_index(load_settings(data_dir=tmp_path / name), manifest)
        # Another video was there before: its frames go.
        shutil.copy(made / "4.mp4", folder / "a.mp4")
        Sync(index, fake_embedder)(folder)
        shutil.copy(made / "3.mp4", folder / "a.mp4")
        os.utime(folder / "a.mp4", (1, 1))
        return index

    undisturbed = new("undisturbed")
    Sync(undisturbed, fake_embedder)(folder)
    for writes in range(20):
        index = new(str(writes))
        left = [writes]

        def count(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise CrashError

        def upsert(batch: Sequence[Record], *, write: Any = index.upsert) -> None:
            count()
            write(batch)

        def delete(
            batch: Sequence[str], *, keep_up: bool = True, write: Any = index.delete
        ) -> None:
            count()
            write(batch, keep_up=keep_up)

        with monkeypatch.context() as patch:
            patch.setattr(index, "upsert", upsert)
            patch.setattr(index, "delete", delete)
            try:
                Sync(index, fake_embedder)(folder)
            except CrashError:
                pass
            else:
                break
        Sync(index, fake_embedder)(folder)
        assert_same_records(index, undisturbed)
        index.close()
    else:
        pytest.fail("it never came to its end")
    assert len(records(undisturbed)) == 3
    assert writes == 4
    undisturbed.close()


def delete(index: VectorIndex, *deleted: str) -> None:
    """As the service does."""
    found = index.fetch(deleted)
    assert len(found) == len(deleted)
    index.save_deletions({id_: str(one.metadata[DIGEST_FIELD]) for id_, one in found.items()})
    index.delete(deleted)


def test_what_was_deleted_stays_out_until_it_is_restored(
    alone: Sync, embedded: VectorIndex, album: Path
) -> None:
    alone(album)
    everything = records(embedded).keys()
    # The first frame, which says that the video is finished, one in the middle; and all of one.
    a, b = ids("album/cats/a.mp4", 0, 2), ids("album/dogs/b.mp4", 0, 1, 2)
    delete(embedded, *a, *b)
    summary = alone(album)
    assert summary.embedded == 0
    assert records(embedded).keys() == everything - a - b
    assert alone(album).videos == 0
    alone(album, restore=True)
    assert records(embedded).keys() == everything
    assert embedded.load_deletions() == {}


def test_videos_in_archives_and_tables(
    alone: Sync, embedded: VectorIndex, album: Path, tmp_path: Path
) -> None:
    alone(album)
    expected = {id_.partition("/")[2] for id_ in records(embedded)}
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(album.rglob("*.*")):
            archive.write(file, file.relative_to(album))
    shutil.make_archive(str(tmp_path / "t"), "gztar", album)
    table = tmp_path / "rows.csv"
    rows = [f"album/{name},{name[:4]}" for name in ("cats/a.mp4", "dogs/b.mp4", "cats/p.png")]
    table.write_text("path,label\n" + "\n".join(rows))
    for path, prefix in (
        (tmp_path / "z.zip", "z/"),
        (tmp_path / "t.tar.gz", "t/"),
        (table, "rows/album/"),
    ):
        assert len(open_source(str(path), data_dir=tmp_path).videos) == 2
        # The same files: no picture is embedded again.
        summary = alone(path)
        assert (summary.embedded, summary.unreadable, summary.moved) == (0, {}, 8)
        found = records(embedded)
        assert {id_.removeprefix(prefix) for id_ in found if id_.startswith(prefix)} == expected
        assert {found[f"{prefix}dogs/b.mp4#t=1.000"].label} == {"dogs"}


@pytest.mark.parametrize("column", ["video", "of datasets"])
def test_videos_in_parquet_files(
    alone: Sync, embedded: VectorIndex, album: Path, tmp_path: Path, column: str
) -> None:
    names = ("cats/a.mp4", "dogs/b.mp4", "cats/p.png")
    contents: list[Any] = [(album / name).read_bytes() for name in names]
    if column == "of datasets":
        contents = [{"bytes": one, "path": "a.mp4"} for one in contents[:2]]
    labels = [name[:4] for name in names[: len(contents)]]
    pq.write_table(pa.table({column: contents, "label": labels}), tmp_path / "rows.parquet")
    summary = alone(tmp_path / "rows.parquet")
    assert (summary.frames, summary.videos, summary.unreadable) == (7, 2, {})
    found = records(embedded)
    a, b = ids("rows/000000", 0, 1, 2, 3), ids("rows/000001", 0, 1, 2)
    assert found.keys() == a | b | ({"rows/000002"} if column == "video" else set())
    assert {found[id_].label for id_ in b} == {"dogs"}
    assert found["rows/000001#t=2.000"].metadata["video"] == "rows/000001"
    again = alone(tmp_path / "rows.parquet")
    assert (again.embedded, again.videos, again.unchanged) == (0, 0, len(contents))


@pytest.mark.long
def test_damaged_videos_give_what_they_have_and_are_told(
    alone: Sync,
    embedded: VectorIndex,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    content = write_video(tmp_path / "a.mkv", seconds=6, **CHEAP).read_bytes()
    (folder / "cut.mkv").write_bytes(content[: len(content) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.webm").write_text("no video")
    (folder / "good.mp4").write_bytes((made / "2.mp4").read_bytes())
    summary = alone(folder)
    err = capsys.readouterr().err
    assert summary.damaged.keys() == {"damaged/cut.mkv"}
    assert "damaged/cut.mkv: it ends early or is damaged: read up to 0:0" in err
    assert " of 0:06" in err
    assert summary.unreadable.keys() == {"damaged/empty.mp4", "damaged/text.webm"}
    assert "damaged/empty.mp4: the file is empty" in err
    found = {item_of(id_) for id_ in records(embedded)}
    assert found == {"damaged/cut.mkv", "damaged/good.mp4"}
    [line] = [line for line in err.splitlines() if "cut.mkv" in line]
    # It is told each time, also where the file is not decoded again, and under another name.
    again = alone(folder)
    assert (again.embedded, again.videos, again.damaged) == (0, 0, summary.damaged)
    assert line in capsys.readouterr().err.splitlines()
    (folder / "cut.mkv").rename(folder / "b.mkv")
    moved = alone(folder)
    assert (moved.embedded, moved.moved > 0) == (0, True)
    assert moved.damaged == {"damaged/b.mkv": summary.damaged["damaged/cut.mkv"]}
    assert alone(folder).damaged == moved.damaged


def test_without_pyav_videos_are_left_out_and_it_is_told(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos, "is_available", lambda: False)
    source = open_source(str(album), data_dir=Path())
    assert source.total == 1
    assert source.skipped.counts == {Kind.VIDEO: 2}
    assert "image-search[video]" in "".join(source.skipped.lines())


def test_names_that_are_as_long_as_ids_may_be(
    alone: Sync, embedded: VectorIndex, tmp_path: Path, made: Path
) -> None:
    folder = tmp_path / "long"
    for number in (2, 3):
        deep = folder / ("a" * 200) / ("b" * 200)
        deep.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / f"{number}.mp4", deep / f"{'c' * 180}{number}.mp4")
    alone(folder)
    found = records(embedded)
    assert len(found) == 5
    assert max(map(len, found)) <= MAX_ID_LENGTH
    assert alone(folder).unchanged == 2
    assert records(embedded).keys() == found.keys()


def test_a_stop_in_a_video_leaves_it_for_the_next_run(
    embedded: VectorIndex, fake_embedder: FakeEmbedder, album: Path
) -> None:
    stop = threading.Event()

    class Stopping(FakeEmbedder):
        def embed_with_textures(self, batch: Any) -> Any:
            stop.set()
            return super().embed_with_textures(batch)

    source = open_source(str(album), data_dir=Path())
    settings = load_settings(batch_size=2)
    assert ingest(source, embedded, Stopping(), settings, stop=stop).interrupted
    ingest(source, embedded, fake_embedder, settings)
    assert len(records(embedded)) == 8
    assert ingest(source, embedded, fake_embedder, settings).unchanged == 3


def test_frames_are_embedded_while_others_are_decoded(
    embedded: VectorIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [scene(number) for number in range(100)]
    write_video(tmp_path / "a.mp4", pictures, codec="mpeg4", rate=1)
    begun = threading.Event()

    class Beginning(FakeEmbedder):
        def embed_with_textures(self, batch: Any) -> Any:
            begun.set()
            return super().embed_with_textures(batch)

    class Waiting(videos.VideoFrames):
        def __iter__(self) -> Iterator[videos.Frame]:
            for number, frame in enumerate(super().__iter__()):
                assert number != 90 or begun.wait(60), "all was decoded first"
                yield frame

    def read_frames(file: Any, sampling: Sampling, *, max_pixels: int, min_side: int) -> Any:
        return Waiting(file, sampling, max_pixels, min_side, videos.VideoLimits())

    monkeypatch.setattr(worker.videos, "read_frames", read_frames)
    source = open_source(str(tmp_path / "a.mp4"), data_dir=Path())
    summary = ingest(source, embedded, Beginning(), load_settings(batch_size=8))
    assert summary.frames == 100


def test_of_each_video_one_frame_is_sampled_and_compared(
    alone: Sync, embedded: VectorIndex, album: Path
) -> None:
    alone(album)
    drawn = draw(embedded)
    assert drawn.count == 3
    assert sorted(map(item_of, drawn.ids)) == [
        "album/cats/a.mp4",
        "album/cats/p.png",
        "album/dogs/b.mp4",
    ]
    assert set(embedded.load_sample().ids) == set(drawn.ids)
    assert embedded.load_sample().indexed == 3
    found = find_duplicates(embedded, 0.999)
    assert found.images == 3
    # Frames of one video are alike in a still one; with each other they are no duplicates.
    for group in found.groups:
        assert len({item_of(image.id) for image in group}) == len(group)


def test_the_page_on_videos_is_what_the_worker_does() -> None:
    page = (ROOT / "docs" / "how-to" / "video.md").read_text()
    section = page.partition("## What is read")[2].partition("\n- ")[0]
    assert set(re.findall(r"`(\.\w+)`", section)) == videos.file_suffixes() | {".ts"}
    help_ = run("worker", "ingest", "--help")[1]
    options = re.findall(r"^\| `(--[\w-]+)`", page, re.MULTILINE)
    assert len(options) == 3
    assert all(option in help_ for option in options)
    fields = re.findall(r"^\| `(\w+)` \| (?:string|number)", page, re.MULTILINE)
    named = {VIDEO_FIELD, TIME_FIELD, DURATION_FIELD, SAMPLING_FIELD, DAMAGE_FIELD, DIGEST_FIELD}
    assert set(fields) == named


def test_the_sample_has_the_same_frame_of_a_video_however_it_comes() -> None:
    textures = np.ones((40, TEXTURES), np.float32)
    frames = [frame_id(f"v{number % 4}", number) for number in range(40)]
    at_once = ImageSample().joined(frames, textures)
    parts = ImageSample()
    for start in range(0, 40, 7):
        parts = parts.joined(frames[start : start + 7], textures[start : start + 7])
    assert at_once.ids == parts.ids
    assert sorted(map(item_of, at_once.ids)) == ["v0", "v1", "v2", "v3"]


def test_frames_of_one_video_are_no_matches_of_each_other() -> None:
    def match(id_: str, score: float) -> Match:
        return Match(id_, score, None, {}, b"")

    own = [match(frame_id("v", second), 1 - second / 1000) for second in range(300)]
    other = [match(frame_id("w", second), 0.5 - second / 1000) for second in range(50)]
    everything = [*own, *other, match("p", 0.1)]
    asked: list[int] = []

    def query(rows: Any, top_k: int) -> list[list[Match]]:
        asked.append(top_k)
        return [everything[:top_k] for _ in rows]

    [found] = nearest_items(query, np.ones((1, 512), np.float32), ["v"], 2)
    assert [one.id for one in found] == ["w#t=0.000", "p"]
    assert asked == [3, 30, 300, 3000]
    assert moments.frame_stem("v") == "v"
