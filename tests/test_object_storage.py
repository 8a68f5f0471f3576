"""An index in object storage: what is told of wrong settings, what survives others and kills."""

import http.server
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lancedb.merge import LanceMergeInsertBuilder

from image_search.errors import (
    IndexMismatchError,
    IndexNotFoundError,
    SettingsError,
    StoreError,
)
from image_search.index import Record
from image_search.manifest import Manifest
from image_search.object_storage import S3Folder
from image_search.provenance import KnownSource
from image_search.settings import Settings, load_settings
from image_search.stores import create_index, open_index, succession
from image_search.stores.embedded import resident
from image_search.values import DIMENSION
from tests.support.images import folder_of, png
from tests.support.indexes import (
    MODEL,
    FakeEmbedder,
    assert_same_records,
    count,
    in_a_bucket,
)
from tests.support.object_storage import KEYS, S3Emulator, s3_emulator
from tests.support.processes import forks, run, service
from tests.support.servers import Quiet, find_free_port
from tests.support.waiting import wait_until

# The server takes long to import.
pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with in_a_bucket(monkeypatch) as address:
        yield address


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


def create(settings: Settings, **manifest: Any) -> Any:
    values = {"metric": settings.metric, "namespace": settings.namespace, **manifest}
    return create_index(settings, Manifest.new(MODEL, **values))


# --- where it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://photos", S3Folder("photos", "")),
        ("s3://photos/", S3Folder("photos", "")),
        ("S3://photos/a/b/", S3Folder("photos", "a/b")),
    ],
)
def test_the_data_folder_can_be_in_a_bucket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: S3Folder
) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_DATA_DIR", text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = load_settings()
    assert settings.data_dir == expected
    assert settings.local_dir == tmp_path / "image-search"


def test_without_a_home_folder_caches_need_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(SettingsError, match="set XDG_CACHE_HOME"):
        _ = load_settings(data_dir="s3://photos").local_dir
    assert load_settings().local_dir == load_settings().data_dir


@pytest.mark.parametrize("text", ["s3://", "s3:///prefix", "gs://photos/index", "https://a/b"])
def test_other_addresses_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_DATA_DIR", text)
    with pytest.raises(SettingsError, match=r"IMAGE_SEARCH_DATA_DIR.*s3://BUCKET/PREFIX"):
        load_settings()


def test_all_of_an_index_is_in_the_bucket(bucket: str, tmp_path: Path) -> None:
    """Another machine, which has nothing but the address, has all of it."""
    settings = load_settings()
    with pytest.raises(IndexNotFoundError):
        open_index(settings)
    with create(settings) as index:
        index.upsert(records(0, 5))
        index.save_source("pics", KnownSource(place="/pics"))
        index.flush()
    keys = s3_emulator().keys(bucket)
    assert all(key.startswith("data/") for key in keys)
    assert not list(tmp_path.rglob("*.lance"))
    with open_index(settings) as index:
        assert index.query(records(3)[0].embedding, 1)[0].id == "r0003"
        assert index.load_sources() == {"pics": KnownSource(place="/pics")}
        index.delete(["r0003"])
        assert index.query(records(3)[0].embedding, 1)[0].id != "r0003"
    with pytest.raises(IndexMismatchError):
        create(settings.model_copy(update={"namespace": "other"}), metric="euclidean")


def test_what_an_index_of_the_name_has_left_is_not_taken_over(bucket: str) -> None:
    settings = load_settings()
    with create(settings) as index:
        index.save_source("pics", KnownSource(place="/pics"))
        index.save_deletions({"a": "0" * 64})
    client, name = s3_emulator().client, bucket.removeprefix("s3://")
    for key in s3_emulator().keys(bucket):
        if ".lance/" in key:
            client.delete_object(Bucket=name, Key=key)
    with create(settings) as index:
        assert (index.load_sources(), index.load_deletions()) == ({}, {})


def test_a_refit_is_refused_and_says_what_to_do(bucket: str) -> None:  # noqa: ARG001
    settings = load_settings()
    create(settings).close()
    with pytest.raises(SettingsError, match=r"no locks: .*--index NAME"), succession(settings):
        pass


# --- wrong settings and servers -------------------------------------------------------------------


class _Server(Quiet):
    """One that holds nothing, and answers `status` and `body` to what it is sent by `methods`."""

    status = 200
    body = b""
    methods = ("GET", "PUT", "POST", "HEAD")

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        listing = b'<?xml version="1.0"?><ListBucketResult></ListBucketResult>'
        status, content = 200, listing if self.command == "GET" else b""
        if self.command in self.methods:
            status, content = self.status, self.body or content
        self.send_response(status)
        self.send_header("ETag", '"etag"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = _answer  # noqa: N815


@contextmanager
def answering(status: int, code: str = "", **attributes: object) -> Iterator[str]:
    """The address of a server that answers so."""
    body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
    handler = type("Handler", (_Server,), {"status": status, "body": body, **attributes})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Settings of an index in a bucket that the test names a server for."""
    monkeypatch.setenv("IMAGE_SEARCH_DATA_DIR", "s3://photos/index")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "InvalidAccessKeyId", "refuses the keys, .*: check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "refuses the keys, .*: check AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", "refuses the keys.* may list, read, write and delete"),
        (403, "RequestTimeTooSkewed", "clock of this machine is wrong"),
        (404, "NoSuchBucket", "bucket does not exist: create it, or set IMAGE_SEARCH_DATA_DIR"),
        (301, "PermanentRedirect", "another region: set AWS_REGION"),
        (503, "SlowDown", "overloaded or broken: try again later"),
        (405, "MethodNotAllowed", "an object of it is missing or damaged"),
    ],
)
def test_what_a_server_refuses_is_explained(
    elsewhere: pytest.MonkeyPatch, status: int, code: str, message: str
) -> None:
    with answering(status, code) as url:
        elsewhere.setenv("IMAGE_SEARCH_S3_ENDPOINT", url)
        with pytest.raises(StoreError, match=message) as caught:
            open_index(load_settings())
    assert "s3://photos" not in str(caught.value)
    assert "s3://photos/index" in caught.value.in_full


def test_a_server_that_is_not_reachable_is_explained(elsewhere: pytest.MonkeyPatch) -> None:
    elsewhere.setenv("IMAGE_SEARCH_S3_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="not reachable: check IMAGE_SEARCH_S3_ENDPOINT"):
        open_index(load_settings())
    elsewhere.setenv("IMAGE_SEARCH_S3_ENDPOINT", "storage")
    with pytest.raises(SettingsError, match=r"IMAGE_SEARCH_S3_ENDPOINT='storage': write"):
        open_index(load_settings())


def test_a_server_that_ignores_conditions_is_refused(elsewhere: pytest.MonkeyPatch) -> None:
    with answering(200) as url:
        elsewhere.setenv("IMAGE_SEARCH_S3_ENDPOINT", url)
        with pytest.raises(StoreError, match=r"ignores the conditions of puts.*use a server that"):
            create(load_settings())


def test_keys_that_may_only_read_make_no_index(elsewhere: pytest.MonkeyPatch) -> None:
    with answering(403, "AccessDenied", methods=("PUT", "POST")) as url:
        elsewhere.setenv("IMAGE_SEARCH_S3_ENDPOINT", url)
        with pytest.raises(IndexNotFoundError):
            open_index(load_settings())
        with pytest.raises(StoreError, match=r"refuses the keys.* may list, read, write"):
            create(load_settings())


@pytest.mark.long
def test_a_server_that_stops_is_explained(elsewhere: pytest.MonkeyPatch) -> None:
    server = S3Emulator()
    for name, value in server.environment.items():
        elsewhere.setenv(name, value)
    elsewhere.setenv("IMAGE_SEARCH_DATA_DIR", f"{server.new_bucket()}/data")
    with create(load_settings()) as index:
        index.upsert(records(0, 5))
        server.stop()
        for use in (
            lambda: index.fetch(["r0000"]),
            lambda: index.upsert(records(5)),
            index.load_sources,
            index.labels,
            lambda: open_index(load_settings()),
        ):
            with pytest.raises(StoreError, match="not reachable: check IMAGE_SEARCH_S3_ENDPOINT"):
                use()


def test_amazons_variables_name_the_server(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create(load_settings()).close()
    monkeypatch.delenv("IMAGE_SEARCH_S3_ENDPOINT")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_emulator().url)
    assert open_index(load_settings()).count() == 0
    assert bucket in str(load_settings().data_dir)


# --- several at once ------------------------------------------------------------------------------


def test_what_many_save_at_once_is_all_kept(bucket: str) -> None:  # noqa: ARG001
    settings = load_settings()
    create(settings).close()

    def save(number: int) -> None:
        with open_index(settings) as index:
            index.save_source(f"s{number}", KnownSource(place=f"/{number}"))
            index.save_deletions({f"d{number}": "0" * 64})
            index.upsert(records(number))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(save, range(6)))
    with open_index(settings) as index:
        assert index.load_sources() == {f"s{n}": KnownSource(place=f"/{n}") for n in range(6)}
        assert index.load_deletions().keys() == {f"d{n}" for n in range(6)}
        assert sorted(index.ids()) == [f"r{n:04d}" for n in range(6)]


def test_a_commit_that_others_come_before_is_made_again(
    bucket: str,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = iter(
        ["Retryable commit conflict for version 3", "Too many concurrent writers. Attempted 10"]
    )
    execute = LanceMergeInsertBuilder.execute

    def fail(*arguments: Any) -> Any:
        text = next(failures, "")
        if text:
            raise RuntimeError(f"lance error: {text}")
        return execute(*arguments)

    with create(load_settings()) as index:
        monkeypatch.setattr(LanceMergeInsertBuilder, "execute", fail)
        index.upsert(records(0, 3))
        assert index.count() == 3
    assert next(failures, "") == ""


def test_searches_see_what_another_wrote_without_looking_for_themselves(
    bucket: str,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resident, "_MOST_SECONDS_BEHIND", 60.0)
    monkeypatch.setattr(resident, "_SECONDS_BETWEEN_LOOKS", 0.02)
    settings = load_settings()
    with create(settings) as index, open_index(settings) as other:
        index.upsert(records(0, 10))
        assert len(index.query(records(0)[0].embedding, 20)) == 10, "its own writes are seen"
        other.upsert(records(10))
        other.delete(["r0000"])
        expected = {f"r{number:04d}" for number in range(1, 11)}
        wait_until(
            lambda: {match.id for match in index.query(records(0)[0].embedding, 20)} == expected
        )
        index.delete(["r0001"])
        found = {match.id for match in index.query(records(0)[0].embedding, 20)}
        assert found == expected - {"r0001"}, "its own writes are seen at once"


IMPORTS = """
from tests.support.indexes import FakeEmbedder
from worker import __main__, ingest
from worker.commands import ingest as command
command.load_embedder = lambda *_: FakeEmbedder()
"""
INGEST = """
ingest._SECONDS_PER_COMMIT = 0
sys.argv[1:] = ["ingest", os.environ["SOURCE"], "--batch-size", "8"]
sys.stdout = sys.stderr
__main__.main()
"""
IMAGES = 240
KILLS = 6


@pytest.mark.long
def test_kill_9_of_two_workers_loses_nothing_and_makes_nothing_twice(
    bucket: str,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE", str(folder_of(tmp_path / "noise", IMAGES)))
    settings = load_settings()
    manifest = Manifest.new(FakeEmbedder().model, "cosine", settings.namespace)
    moments = random.Random(9)
    counts = [0]
    with (
        create_index(settings, manifest) as reader,
        forks(IMPORTS, INGEST) as start_one,
        forks(IMPORTS, INGEST) as start_other,
    ):
        for _ in range(KILLS):
            workers = start_one(), start_other()
            wait_until(
                lambda: count(settings) > counts[-1] or not any(w.is_running() for w in workers)  # noqa: B023
            )
            for worker in workers:
                time.sleep(moments.uniform(0, 0.1))
                worker.kill()
            counts.append(count(settings))
            found = [match.id for match in reader.query(np.ones(DIMENSION, np.float32), IMAGES)]
            assert sorted(found) == sorted(reader.ids()), "what a service shows is what is there"
        assert counts == sorted(counts), "an acknowledged batch was lost"
        assert counts[1] < counts[-1] < IMAGES, "some were killed after a commit of theirs"
        last = start_one(), start_other()
        for worker in last:
            worker.wait()
    with open_index(settings) as index:
        assert len(list(index.ids())) == len(set(index.ids())) == IMAGES
        local = load_settings(data_dir=tmp_path / "local")
        monkeypatch.setenv("IMAGE_SEARCH_DATA_DIR", str(local.data_dir))
        with create_index(local, manifest) as undisturbed, forks(IMPORTS, INGEST) as start_one:
            start_one().wait()
            assert_same_records(undisturbed, index)


@pytest.mark.long
def test_the_programs_work_with_a_bucket(bucket: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pics", 24)
    code, out, err = run("worker", "doctor")
    assert code == 0, out + err
    assert "conditional" not in err
    before = s3_emulator().keys(bucket)
    assert not [key for key in before if "scratch" in key], "nothing of the check stays"

    port = find_free_port()
    with service(port) as running:
        assert "24 images embedded" in run("worker", "ingest", str(folder))[1]
        wait_until(lambda: running.health() == 200)
        picture = (folder / "label0" / "0000.png").read_bytes()
        [match] = running.search(picture, top_k=1)["matches"]
        assert match["id"].endswith("label0/0000.png")
        (folder / "label0" / "new.png").write_bytes(png(999))
        assert "1 images embedded, 24 unchanged" in run("worker", "ingest", str(folder))[1]

        def finds_the_new_one() -> bool:
            matches = running.search(png(999), top_k=1)["matches"]
            return bool(matches[0]["id"].endswith("label0/new.png"))

        wait_until(finds_the_new_one)
    assert "pics" in run("worker", "sources")[1]
    code, out, err = run("worker", "copy", "images", str(tmp_path / "backup.parquet"))
    assert code == 0, err
    code, out, err = run("worker", "copy", str(tmp_path / "backup.parquet"), "other")
    assert code == 0, err
    assert_same_records(open_index(load_settings()), open_index(load_settings(index="other")))
    code, _, err = run("worker", "refit", str(folder))
    assert (code, "no locks" in err) == (2, True), err
    code, _, err = run(
        "worker", "ingest", str(folder), IMAGE_SEARCH_S3_ENDPOINT="http://127.0.0.1:1"
    )
    assert (code, "not reachable" in err) == (1, True), err
