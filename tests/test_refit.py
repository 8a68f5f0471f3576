"""`refit`: a newly fitted index takes the place of the one there is, and nothing is lost."""

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from image_search.errors import IndexNotFoundError, SourceError, StoreError
from image_search.index import Record, VectorIndex
from image_search.moments import item_of
from image_search.settings import Settings, load_settings
from image_search.stores import open_index, succession
from image_search.stores.embedded.index import EmbeddedIndex
from image_search.stores.embedded.succession import Succession
from image_search.values import DIMENSION
from tests.support.images import encode, folder_of, png
from tests.support.indexes import records, use_store
from tests.support.processes import run, service, start
from tests.support.servers import find_free_port, serve, upload, wait_for
from tests.support.videos import scene, write_video
from tests.support.waiting import wait_until
from worker import ingest as ingestion
from worker.confidence import recalibrate
from worker.ingest import chunks_of, ingest
from worker.model import create_index_for, load_embedder
from worker.origin import named_in, remember
from worker.recipes import LEAST_IMAGES
from worker.refit import Refit, refit
from worker.sources import Item, Source, Split, open_source

pytestmark = pytest.mark.slow


def take_in(settings: Settings, path: Path) -> None:
    """What `ingest` does with a folder, without its confidence."""
    take_in_source(settings, open_source(str(path), data_dir=settings.local_dir))


def take_in_source(settings: Settings, source: Source) -> None:
    try:
        index = open_index(settings)
        embedder = load_embedder(index, settings)
    except IndexNotFoundError:
        new = create_index_for(source, settings, threading.Event())
        assert new is not None
        embedder, index = new.embedder, new.index
    with index:
        remember(index, source)
        ingest(named_in(index, source), index, embedder, settings)
        index.flush()


def again(
    settings: Settings,
    *paths: Path,
    drop_others: bool = False,
    stop: threading.Event | None = None,
) -> Refit | None:
    with succession(settings) as place:
        done = refit(
            [named_in(place.former, open_source(str(path), data_dir=Path())) for path in paths],
            place,
            settings,
            drop_others=drop_others,
            stop=stop or threading.Event(),
        )
    place.remove_former()
    return done


def fingerprint(settings: Settings) -> str:
    with open_index(settings) as index:
        return index.manifest.model.recipe_fingerprint


def held(settings: Settings) -> dict[str, Record]:
    with open_index(settings) as index:
        return records(index)


def assert_as_ingested(settings: Settings, tmp_path: Path, *paths: Path) -> None:
    """The index is what a new one of the same folders would be, in every respect."""
    fresh = settings.model_copy(update={"data_dir": tmp_path / "fresh"})
    for path in paths:
        take_in(fresh, path)
    with open_index(settings) as one, open_index(fresh) as other:
        assert one.manifest.model == other.manifest.model
        assert one.manifest.activation_maxima == other.manifest.activation_maxima
        found, expected = records(one), records(other)
        assert found.keys() == expected.keys()
        for id_, record in expected.items():
            np.testing.assert_allclose(found[id_].embedding, record.embedding, atol=1e-5)
            assert replace(found[id_], embedding=record.embedding) == record


def tables(settings: Settings) -> list[str]:
    folder = settings.local_dir / "indexes" / settings.index
    return sorted(path.name for path in folder.glob("*.lance"))


# --- what it makes -------------------------------------------------------------------------------


@pytest.mark.long
def test_a_small_start_as_users_run_it(tmp_path: Path, settings: Settings) -> None:
    folder = folder_of(tmp_path / "pics", 60)
    code, _, err = run("worker", "ingest", str(folder))
    assert (code, "python -m worker refit SOURCE" in err) == (0, True)
    folder_of(folder, 160)
    take_in(settings, folder)
    assert fingerprint(settings) == ""
    before = held(settings)
    code, out, err = run("worker", "refit", str(folder))
    assert code == 0, err
    assert "fitted index images again: 160 images, 160 of them embedded" in out
    assert "recipe neighbours" in out
    assert_as_ingested(settings, tmp_path, folder)
    after = held(settings)
    assert after.keys() == before.keys()
    assert all(after[id_].metadata == before[id_].metadata for id_ in before)
    with open_index(settings) as index:
        assert index.load_sample().is_representative
        assert len(index.load_sample().ids) == 160
        assert index.calibration is not None
        assert index.load_sources().keys() == {"pics"}
    assert tables(settings) == ["__default__.1.lance"], "the former's files are gone"
    # All goes on from there.
    take_in(settings, folder_of(folder, 165))
    done = again(settings, folder)
    assert done is not None
    assert (done.images, done.embedded) == (165, 165)
    assert tables(settings) == ["__default__.2.lance"]
    left = {path.suffix for path in (settings.local_dir / "indexes" / "images").iterdir()}
    recipes = list((settings.local_dir / "indexes" / "images").glob("recipe-*"))
    assert [path.stem for path in recipes] == [f"recipe-{fingerprint(settings)}"], left


def test_settings_decide_and_what_is_not_set_is_chosen_again(
    settings: Settings, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", 20)
    take_in(settings.model_copy(update={"precision": "float32", "metric": "euclidean"}), folder)
    done = again(load_settings(input_size=48), folder)
    assert done is not None
    with open_index(settings) as index:
        assert index.manifest.model == done.model
        assert (done.model.input_size, done.model.precision) == (48, "int8")
        assert index.manifest.metric == "euclidean"


def test_all_sources_of_an_index_have_to_be_named(settings: Settings, tmp_path: Path) -> None:
    one, other = folder_of(tmp_path / "one", 12), folder_of(tmp_path / "other", 5)
    take_in(settings, one)
    take_in(settings, other)
    with pytest.raises(SourceError, match=r"5 of the 17 images .* other/label0/0000.png"):
        again(settings, one)
    assert len(held(settings)) == 17
    done = again(settings, one, other)
    assert done is not None
    assert (done.images, done.dropped) == (17, 0)
    assert tables(settings) == ["__default__.1.lance"]


@pytest.mark.long
def test_data_sets_are_read_with_all_their_splits(settings: Settings) -> None:
    splits: list[Split] = ["train", "test"]
    for split in splits:
        source = open_source("sample", data_dir=settings.local_dir, split=split)
        take_in_source(settings, source.limited(20))
    code, out, err = run("worker", "refit", "sample")
    assert code == 0, err
    assert "40 images" in out
    assert len(held(settings)) == 40


# --- nothing is lost -----------------------------------------------------------------------------


def test_the_frames_of_videos_are_embedded_again(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder_of(folder, 3)
    write_video(folder / "a.mp4", seconds=4, codec="mpeg4")
    # Of one video there are more frames than images that a recipe is fitted to; it counts as one.
    pictures = [scene(number) for number in range(LEAST_IMAGES + 10)]
    write_video(folder / "long.mp4", pictures, codec="mpeg4", rate=1)
    take_in(settings, folder)
    # A frame that somebody deleted does not come back.
    with open_index(settings) as index:
        index.delete(["mixed/a.mp4#t=2.000"])
    before = held(settings)
    assert len(before) == 3 + 3 + LEAST_IMAGES + 10
    done = again(load_settings(input_size=48), folder)
    assert done is not None
    assert (done.images, done.embedded, done.dropped) == (len(before), len(before), 0)
    assert (done.model.input_size, done.model.recipe) == (48, "none")
    after = held(settings)
    assert {id_: (one.label, one.metadata) for id_, one in after.items()} == {
        id_: (one.label, one.metadata) for id_, one in before.items()
    }
    # As a new index of the same folder has them.
    fresh = settings.model_copy(update={"data_dir": tmp_path / "fresh", "input_size": 48})
    take_in(fresh, folder)
    for id_, record in held(fresh).items():
        if id_ != "mixed/a.mp4#t=2.000":
            np.testing.assert_allclose(after[id_].embedding, record.embedding, atol=1e-5)
    with open_index(settings) as index:
        drawn = index.load_sample().ids
    assert len(drawn) == len({item_of(id_) for id_ in drawn}) == 5
    # A video that is gone cannot be embedded again.
    (folder / "a.mp4").unlink()
    with pytest.raises(SourceError, match=r"3 of the .* images of the index cannot be embedded"):
        again(settings, folder)


def by_hand(settings: Settings, id_: str = "by hand", label: str | None = None) -> None:
    with open_index(settings) as index:
        vector = np.ones(DIMENSION, np.float32)
        index.upsert([Record(id_, vector, label, {"source": "api", "sha256": "1" * 64}, b"")])


def test_what_the_source_does_not_have_is_kept_unless_told(
    settings: Settings, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", 12)
    take_in(settings, folder)
    by_hand(settings)
    by_hand(settings, "pics/label0/0000.png")  # replaced over HTTP: not what the source has
    (folder / "label1" / "0001.png").unlink()
    (folder / "label2" / "0002.png").write_bytes(png(1000))
    folder_of(tmp_path / "new", 1)
    before = held(settings)
    code, _, err = run("worker", "refit", str(folder))
    assert code == 2
    assert "4 of the 13 images of the index cannot be embedded again" in err
    for id_ in ("by hand", "pics/label0/0000.png", "pics/label1/0001.png", "--drop-others"):
        assert id_ in err
    assert held(settings).keys() == before.keys()
    assert tables(settings) == ["__default__.lance"]
    code, out, _ = run("worker", "refit", str(folder), "--drop-others")
    assert (code, "4 images that no source has were dropped" in out) == (0, True)
    assert held(settings).keys() == {f"pics/label{n % 3}/{n:04d}.png" for n in range(3, 12)}


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Let something happen once all is embedded, and before the switch."""

    def happens(action: Callable[[], None]) -> None:
        actions = [action]

        def and_then(*arguments: Any) -> None:
            recalibrate(*arguments)
            if actions:
                actions.pop()()

        monkeypatch.setattr("worker.refit.recalibrate", and_then)

    return happens


def test_what_is_deleted_and_relabelled_meanwhile_stays_so(
    settings: Settings, tmp_path: Path, meanwhile: Callable[[Callable[[], None]], None]
) -> None:
    folder = folder_of(tmp_path / "pics", 12)
    take_in(settings, folder)

    def change() -> None:
        with open_index(settings) as index:
            index.delete(["pics/label0/0000.png"])
            one = index.fetch(["pics/label1/0001.png"])["pics/label1/0001.png"]
            index.upsert([replace(one, label="another", metadata={**one.metadata, "n": 1})])

    meanwhile(change)
    done = again(settings, folder)
    assert done is not None
    assert done.images == 11
    after = held(settings)
    assert "pics/label0/0000.png" not in after
    changed = after["pics/label1/0001.png"]
    assert (changed.label, changed.metadata["n"]) == ("another", 1)
    assert fingerprint(settings) == done.model.recipe_fingerprint


def test_what_is_deleted_while_pictures_are_compared_is_not_missed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "pics", 12)
    take_in(settings, folder)

    def after_a_deletion(items: Iterator[Item]) -> Iterator[list[Item]]:
        with open_index(settings) as index:
            index.delete(["pics/label0/0000.png"])
        return chunks_of(items)

    monkeypatch.setattr("worker.refit.chunks_of", after_a_deletion)
    done = again(settings, folder)
    assert done is not None
    assert done.images == 11
    assert "pics/label0/0000.png" not in held(settings)


def test_what_is_put_meanwhile_is_not_lost(
    settings: Settings, tmp_path: Path, meanwhile: Callable[[Callable[[], None]], None]
) -> None:
    folder = folder_of(tmp_path / "pics", 12)
    take_in(settings, folder)
    meanwhile(lambda: by_hand(settings))
    with pytest.raises(SourceError, match=r"1 of the 13 images .* by hand"):
        again(settings, folder)
    assert "by hand" in held(settings)
    # Once it is gone, nothing is embedded again.
    with open_index(settings) as index:
        index.delete(["by hand"])
    done = again(settings, folder)
    assert done is not None
    assert (done.images, done.embedded) == (12, 0)


def test_what_is_ingested_meanwhile_gets_in(
    settings: Settings, tmp_path: Path, meanwhile: Callable[[Callable[[], None]], None]
) -> None:
    folder, other = folder_of(tmp_path / "pics", 12), folder_of(tmp_path / "other", 5)
    take_in(settings, folder)
    meanwhile(lambda: take_in(settings, other))
    done = again(settings, folder, other)
    assert done is not None
    assert (done.images, done.embedded) == (17, 17)
    assert len(held(settings)) == 17


def test_copies_and_what_was_deleted_elsewhere_are_embedded_like_others(
    settings: Settings, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", 6)
    (folder / "label0" / "copy.png").write_bytes(png(0))
    take_in(settings, folder)
    with open_index(settings) as index:
        digest = index.fetch(["pics/label0/copy.png"])["pics/label0/copy.png"].metadata["sha256"]
        index.delete(["pics/label0/0000.png"])
        index.save_deletions({"pics/label0/0000.png": str(digest)})
    assert again(settings, folder) is not None
    assert "pics/label0/copy.png" in held(settings)
    assert len(held(settings)) == 6
    with open_index(settings) as index:
        assert index.load_deletions() == {"pics/label0/0000.png": digest}


# --- stops, kills, and two at once ---------------------------------------------------------------


@pytest.mark.long
def test_a_run_goes_on_where_another_failed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "pics", 150)
    take_in(settings.model_copy(update={"recipe": "none"}), folder)
    small = settings.model_copy(update={"batch_size": 10})
    monkeypatch.setattr(ingestion, "RECORDS_PER_COMMIT", 10)
    upsert = EmbeddedIndex.upsert
    commits: list[int] = []

    def fails(index: VectorIndex, batch: list[Record], **options: bool) -> None:
        if len(commits) == 6:
            raise StoreError("the disk is full")
        commits.append(len(batch))
        upsert(index, batch, **options)

    monkeypatch.setattr(EmbeddedIndex, "upsert", fails)
    with pytest.raises(StoreError, match="full"):
        again(small, folder)
    monkeypatch.setattr(EmbeddedIndex, "upsert", upsert)
    assert fingerprint(settings) == ""
    assert len(held(settings)) == 150
    stopped = threading.Event()
    stopped.set()
    assert again(small, folder, stop=stopped) is None
    done = again(small, folder)
    assert done is not None
    assert done.embedded == 150 - sum(commits)
    assert 0 < sum(commits) < 150
    assert_as_ingested(settings, tmp_path, folder)
    with open_index(settings) as index:
        assert len(index.load_sample().ids) == 150, "also those of the run that failed"
        assert index.load_sample().is_representative


def test_what_was_begun_for_another_model_is_begun_anew(
    settings: Settings, tmp_path: Path, meanwhile: Callable[[Callable[[], None]], None]
) -> None:
    folder = folder_of(tmp_path / "pics", 12)
    take_in(settings, folder)

    def fail() -> None:
        raise StoreError("stopped here")

    meanwhile(fail)
    with pytest.raises(StoreError, match="stopped here"):
        again(settings, folder)
    assert tables(settings) == ["__default__.1.lance", "__default__.lance"]
    done = again(load_settings(input_size=48), folder)
    assert done is not None
    assert (done.model.input_size, done.embedded) == (48, 12)


@pytest.mark.long
def test_kills_at_any_moment_lose_nothing(settings: Settings, tmp_path: Path) -> None:
    rng = random.Random(0)
    folder = folder_of(tmp_path / "pics", 400)
    take_in(settings.model_copy(update={"recipe": "none"}), folder)
    before = held(settings)
    command = ("worker", "refit", str(folder), "--batch-size", "4")
    process = start(*command)
    kills = 0
    while process.poll() is None:
        if not kills:  # so that one is never too late
            wait_until(lambda: len(tables(settings)) == 2)
        try:
            process.wait(rng.uniform(0.0, 0.5) if not kills else rng.uniform(1.0, 5.0))
        except subprocess.TimeoutExpired:
            if kills == 3:
                continue
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            # Whichever of the two it is, it is whole.
            now = held(settings)
            assert now.keys() == before.keys()
            if fingerprint(settings) == "":
                assert all((now[id_].embedding == before[id_].embedding).all() for id_ in now)
                process = start(*command)
    out, err = process.communicate()
    assert kills
    assert process.returncode in {0, -signal.SIGKILL}, (out, err)
    if process.returncode:  # killed after the switch: another run removes what is left
        assert run("worker", "ingest", str(folder))[0] == 0
    assert_as_ingested(settings, tmp_path, folder)
    assert tables(settings) == ["__default__.1.lance"]


def test_only_one_process_makes_a_successor(settings: Settings, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pics", 4)
    take_in(settings, folder)
    with succession(settings):
        code, _, err = run("worker", "refit", str(folder))
    assert (code, "another process is fitting this index again" in err) == (1, True)


# --- those who have the index open ---------------------------------------------------------------


def test_who_reads_the_former_goes_on_and_who_writes_to_it_is_told(
    settings: Settings, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", 12)
    take_in(settings, folder)
    reader = open_index(settings)
    expected = records(reader)
    assert again(settings, folder) is not None
    assert tables(settings) == ["__default__.1.lance", "__default__.lance"]
    one = next(iter(expected.values()))
    assert records(reader).keys() == expected.keys()
    assert reader.query(one.embedding, 1)[0].id == one.id
    with pytest.raises(StoreError, match="replaced by another"):
        reader.upsert([one])
    with pytest.raises(StoreError, match="replaced by another"):
        reader.delete([one.id])
    with open_index(settings) as index:
        index.flush()
        assert len(tables(settings)) == 2, "it is read"
        reader.close()
        index.flush()
    assert tables(settings) == ["__default__.1.lance"]


def test_an_index_that_nobody_closed_does_not_keep_files(
    settings: Settings, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", 4)
    take_in(settings, folder)
    reader = open_index(settings)
    assert reader.count() == 4
    del reader
    assert again(settings, folder) is not None
    assert tables(settings) == ["__default__.1.lance"]


def test_writers_wait_for_the_switch_and_are_told_then(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "pics", 12)
    take_in(settings, folder)
    writer = open_index(settings)
    results: list[str] = []
    begun = threading.Event()

    def write() -> None:
        begun.set()
        try:
            writer.delete(["pics/label0/0000.png"])
            results.append("written")
        except StoreError as exc:
            results.append(str(exc))

    thread = threading.Thread(target=write)
    put_in_use = Succession.put_in_use

    def switch(place: Succession) -> None:
        thread.start()
        begun.wait()
        time.sleep(0.2)
        assert not results, "it does not write between the last look and the switch"
        put_in_use(place)

    monkeypatch.setattr(Succession, "put_in_use", switch)
    assert again(settings, folder) is not None
    thread.join()
    assert results == ["the index was replaced by another: open it again"]
    assert "pics/label0/0000.png" in held(settings)


@pytest.mark.long
def test_a_service_answers_all_the_while_with_one_model_or_the_other(
    settings: Settings, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", 150)
    take_in(settings.model_copy(update={"recipe": "none"}), folder)
    query = encode(Image.open(folder / "label0" / "0003.png").resize((40, 30)))
    answers: list[Any] = []
    done = threading.Event()
    with service(find_free_port()) as running:
        wait_until(lambda: running.health() == 200)

        def search() -> Any:
            answer = running.search(query, top_k=5, thumbnails="false")
            return answer["model"]["recipe_fingerprint"], answer["matches"]

        def ask() -> None:
            while not done.is_set():
                answers.append(search())
                time.sleep(0.02)

        asking = threading.Thread(target=ask)
        before = search()
        asking.start()
        try:
            code, out, err = run("worker", "refit", str(folder))
            assert code == 0, err
            assert "still in use" not in out
            assert tables(settings) == ["__default__.1.lance"], "the service has let go of it"
            new = fingerprint(settings)
            wait_until(lambda: bool(answers) and answers[-1][0] == new)
        finally:
            done.set()
            asking.join()
        after = search()
        assert running.health() == 200
    assert (before[0], after[0]) == ("", new)
    models = [model for model, _ in answers]
    assert models == sorted(models), "first the one, then the other"
    for answer in answers:
        assert [(match["id"], match["score"]) for match in answer[1]] == [
            (match["id"], match["score"]) for match in (before if answer[0] == "" else after)[1]
        ]
    assert len(answers) > 20, out


@pytest.mark.long
def test_a_service_writes_to_the_new_one(settings: Settings, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pics", 12)
    take_in(settings, folder)
    with service(find_free_port(), IMAGE_SEARCH_API_KEYS="key") as running:
        wait_until(lambda: running.health() == 200)
        assert run("worker", "refit", str(folder))[0] == 0
        assert tables(settings) == ["__default__.1.lance"], "also one that only /health asked"

        def put() -> bool:
            response = httpx2.put(
                f"{running.url}/images/mine", files={"image": png(99)}, headers={"X-API-Key": "key"}
            )
            # Until the service has seen that the index was replaced, it says so.
            assert response.status_code in {200, 201, 503}, response.text
            return response.status_code == 201

        wait_until(put)
        assert "mine" in held(settings)


# --- where it cannot be done ---------------------------------------------------------------------


def test_an_index_at_pinecone_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pics", 4)
    with use_store("pinecone", monkeypatch):
        code, _, err = run("worker", "ingest", str(folder))
        assert (code, "ingest them into a new index" in err) == (0, True)
        code, _, err = run("worker", "refit", str(folder))
    assert (code, "ingest its images into a new one (--index NAME)" in err) == (2, True)


@pytest.mark.long
def test_at_pinecone_a_second_index_is_taken_by_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "pics", LEAST_IMAGES)
    with use_store("pinecone", monkeypatch):
        code, _, err = run("worker", "ingest", str(folder), IMAGE_SEARCH_RECIPE="none")
        assert code == 0, err
        with serve(load_settings()) as before:
            wait_for(before, 200)
            code, _, err = run("worker", "ingest", str(folder), "--index", "images2")
            assert code == 0, err
            (folder / "label0" / "0000.png").unlink()
            code, _, err = run("worker", "ingest", str(folder), "--index", "images2", "--prune")
            assert code == 0, err
            with serve(load_settings(index="images2")) as after:
                assert wait_for(after, 200)["count"] == LEAST_IMAGES - 1
                found = [upload(client, png(1)).json() for client in (before, after)]
    former, fitted = (answer["model"]["recipe"] for answer in found)
    assert former == "none" != fitted
    for answer in found:
        assert answer["matches"][0]["id"] == "pics/label1/0001.png"


def test_what_is_missing_is_said(tmp_path: Path, settings: Settings) -> None:
    folder = folder_of(tmp_path / "pics", 4)
    code, _, err = run("worker", "refit", str(folder))
    assert (code, "there is no index" in err) == (1, True)
    take_in(settings, folder)
    other = folder_of(tmp_path / "other", 4)
    code, _, err = run("worker", "refit", str(other), "--drop-others")
    assert (code, "none of the images of the index is in the source" in err) == (2, True)
    assert len(held(settings)) == 4
    number = settings.local_dir / "indexes" / "images" / "__default__.generation"
    number.write_text("x")
    with pytest.raises(StoreError, match="damaged"):
        open_index(settings)
