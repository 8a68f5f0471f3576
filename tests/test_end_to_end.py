"""The programs as users run them: processes, signals, kill -9, full disks, real images."""

import base64
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from image_search.embedding import Embedder
from image_search.manifest import Manifest
from image_search.moments import item_of
from image_search.settings import Settings, load_settings
from image_search.stores import create_index, open_index
from tests.support import ROOT
from tests.support.images import folder_of
from tests.support.indexes import FakeEmbedder, assert_same_records, count
from tests.support.processes import forks, run, service, start
from tests.support.servers import find_free_port
from tests.support.videos import scene, write_video
from tests.support.waiting import wait_until
from worker.sources import Item, open_source

pytestmark = pytest.mark.slow

QUERY = ROOT / "examples" / "boat.png"


# --- the worker's command line --------------------------------------------------------------------


def test_help_explains_the_exit_codes() -> None:
    for command in (["worker", "--help"], ["worker", "ingest", "--help"]):
        code, out, _ = run(*command)
        assert code == 0
        for expected in ("exit codes:", "130", "143"):
            assert expected in out


@pytest.mark.long
def test_auto_without_a_network_is_the_sample_and_says_so(settings: Settings) -> None:
    code, out, err = run("worker", "ingest", "--limit", "50", IMAGE_SEARCH_WEIGHTS="auto")
    assert code == 0
    assert "vgg16 with weights bundled" in out
    assert "the drawn sample is ingested" in err
    assert "50 images embedded" in out
    assert set(open_index(settings).list_ids(prefix="sample-").ids) == set(
        open_index(settings).list_ids().ids
    )
    code, out, _ = run("worker", "ingest", "--limit", "60")
    assert "10 images embedded, 50 unchanged" in out


@pytest.mark.long
def test_auto_leaves_an_index_of_other_images_alone(settings: Settings, tmp_path: Path) -> None:
    assert run("worker", "ingest", str(folder_of(tmp_path / "mine", 3)))[0] == 0
    code, out, _ = run("worker", "ingest")
    assert code == 0
    assert "nothing to ingest" in out
    assert count(settings) == 3


def test_unreadable_images_have_their_own_exit_code(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", 3)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    code, out, err = run("worker", "ingest", str(folder))
    assert code == 3
    assert "skipped mine/broken.jpg" in err
    assert "3 images embedded, 0 unchanged, 1 unreadable" in out


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "message"),
    [
        (["missing-folder"], {}, 2, "there is no 'missing-folder'"),
        (["sample", "--limit", "0"], {}, 2, "at least 1"),
        (["sample", "--limit", "x"], {}, 2, "invalid number value"),
        (["sample", "--metric", "manhattan"], {}, 2, "invalid choice"),
        (["sample", "--index", "Not Allowed"], {}, 2, "IMAGE_SEARCH_INDEX"),
        (["sample"], {"IMAGE_SEARCH_BATCH_SIZE": "0"}, 2, "IMAGE_SEARCH_BATCH_SIZE"),
        (["sample"], {"IMAGE_SEARCH_INPUT_SIZ": "64"}, 2, "did you mean IMAGE_SEARCH_INPUT_SIZE"),
        (["sample"], {"IMAGE_SEARCH_WEIGHTS": "missing.h5"}, 1, "there is no weights file"),
        (["sample"], {"IMAGE_SEARCH_WEIGHTS": "imagenet"}, 1, "ImageNet weights is not available"),
        (["cifar10"], {}, 1, "could not be downloaded"),
    ],
)
def test_wrong_usage_is_explained(
    arguments: list[str], environ: dict[str, str], code: int, message: str
) -> None:
    found, _, err = run("worker", "ingest", *arguments, **environ)
    assert message in err
    assert found == code


def test_folders_and_archives_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run("worker", "ingest", str(tmp_path / "empty"))
    assert (code, "has no images" in err) == (2, True)
    archive = tmp_path / "cut.tar.gz"
    folder = folder_of(tmp_path / "mine", 30)
    subprocess.run(["tar", "czf", archive, "-C", folder, "."], check=True)
    archive.write_bytes(archive.read_bytes()[:-2000])
    code, _, err = run("worker", "ingest", str(archive))
    assert (code, "damaged" in err) == (2, True)


def test_an_index_of_another_model_or_metric_is_refused(
    settings: Settings, embedder: Embedder
) -> None:
    other = embedder.model.model_copy(update={"fingerprint": "feed"})
    create_index(settings, Manifest.new(other, "euclidean", settings.namespace))
    code, _, err = run("worker", "ingest", "sample")
    assert code == 1
    assert "build it again" in err
    assert "(feed)" in err
    assert embedder.model.fingerprint in err
    code, _, err = run("worker", "ingest", "sample", "--metric", "cosine")
    assert code == 1
    assert "metric euclidean" in err
    assert "cosine" in err
    assert count(settings) == 0


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs more rights than this test has")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.long
def test_a_full_disk_is_explained_and_what_was_acknowledged_is_kept(tmp_path: Path) -> None:
    data = tmp_path / "small"
    command = ("worker", "ingest", "sample")
    with mounted(data, "size=3m"):
        code, _, _ = run(*command, "--limit", "200", IMAGE_SEARCH_DATA_DIR=str(data))
        assert code == 0
        code, _, err = run(*command, IMAGE_SEARCH_DATA_DIR=str(data))
        assert code == 1
        assert "disk is full" in err
        kept = count(load_settings(data_dir=data))
        assert 200 <= kept < 600
        subprocess.run(["mount", "-o", "remount,size=50m", data], check=True)
        code, out, _ = run(*command, IMAGE_SEARCH_DATA_DIR=str(data))
        assert code == 0
        assert f"{600 - kept} images embedded, {kept} unchanged" in out


@pytest.mark.long
def test_a_write_that_fails_is_explained(settings: Settings) -> None:
    """The same where nothing can be mounted: no file may grow beyond a megabyte."""
    process = subprocess.run(
        [sys.executable, "-m", "worker", "ingest", "sample", "--limit", "400"],
        env={**os.environ, "IMAGE_SEARCH_WEIGHTS": "bundled"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "disk is full" in process.stderr
    assert count(settings) == 0


@pytest.mark.long
def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = ("worker", "ingest", "sample", "--limit", "20")
    with mounted(data, "ro"):
        code, _, err = run(*command, IMAGE_SEARCH_DATA_DIR=str(data))
        assert (code, "cannot be written" in err) == (1, True)
    file = tmp_path / "file"
    file.write_text("")
    code, _, err = run(*command, IMAGE_SEARCH_DATA_DIR=str(file))
    assert (code, str(file) in err) == (1, True)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_worker_in_order(settings: Settings, number: signal.Signals) -> None:
    process = start("worker", "ingest", "sample", IMAGE_SEARCH_RECIPE="none")
    wait_until(lambda: count(settings) > 0)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "stopped sample" in out
    assert "Traceback" not in err
    assert f"{count(settings):,} images embedded" in out


# --- kill -9 --------------------------------------------------------------------------------------


# Commits far more often than users want, so that few images make many moments to kill at.
OFTEN = """
import sys
from worker import __main__, ingest
ingest._SECONDS_PER_COMMIT = 0.1
sys.argv += ["--batch-size", "16"]
sys.exit(__main__.main())
"""
KILLS = 20
KILLED_IMAGES = 1000
# With a network that takes no time to load.
IMPORTS = """
from tests.support.indexes import FakeEmbedder
from worker import __main__, ingest
from worker.commands import ingest as command
command.load_embedder = lambda *_: FakeEmbedder()
"""
INGEST = """
ingest._SECONDS_PER_COMMIT = float(os.environ["SECONDS_PER_COMMIT"])
sys.argv[1:] = ["ingest", os.environ["SOURCE"], "--batch-size", "8"]
sys.stdout = sys.stderr
__main__.main()
"""


@pytest.mark.long
def test_kill_9_of_the_worker_loses_and_breaks_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(folder_of(tmp_path / "noise", KILLED_IMAGES))
    monkeypatch.setenv("SOURCE", source)
    monkeypatch.setenv("SECONDS_PER_COMMIT", "0")
    manifest = Manifest.new(FakeEmbedder().model, "cosine", settings.namespace)
    moments = random.Random(9)
    counts = [0]
    with create_index(settings, manifest), forks(IMPORTS, INGEST) as start_worker:
        for kill in range(KILLS):
            before = set(settings.local_dir.rglob("*"))
            worker = start_worker()

            # Half of the kills hit as soon as anything is written, half after more is committed.
            def is_time(odd: int = kill % 2, before: set[Path] = before) -> bool:
                if odd:
                    return count(settings) > counts[-1]
                return set(settings.local_dir.rglob("*")) != before

            wait_until(lambda: is_time() or not worker.is_running())  # noqa: B023
            time.sleep(moments.uniform(0, 0.1))
            worker.kill()
            counts.append(count(settings))
        start_worker().wait()
    assert counts == sorted(counts), "an acknowledged batch was lost"
    assert counts[1] < counts[-1] < KILLED_IMAGES, "some were killed after a commit of theirs"
    undisturbed = load_settings(data_dir=tmp_path / "undisturbed")
    monkeypatch.setenv("SECONDS_PER_COMMIT", "60")
    monkeypatch.setenv("IMAGE_SEARCH_DATA_DIR", str(undisturbed.data_dir))
    with create_index(undisturbed, manifest), forks(IMPORTS, INGEST) as start_worker:
        start_worker().wait()
    assert count(undisturbed) == KILLED_IMAGES
    assert_same_records(open_index(undisturbed), open_index(settings))


# Ends itself with SIGKILL right after its fifth commit; the next run comes to its end.
INGEST_IN_TWO = """
import signal
commit = ingest._Ingestion._commit
commits = 0
def commit_until_killed(self, records):
    global commits
    commit(self, records)
    commits += 1
    if commits == 5 and not os.path.exists(os.environ["REPORT"]):
        open(os.environ["REPORT"], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
ingest._Ingestion._commit = commit_until_killed
ingest._SECONDS_PER_COMMIT = 0
sys.argv[1:] = ["ingest", os.environ["SOURCE"], "--batch-size", "8"]
out = open(os.environ["REPORT"], "a") if os.path.exists(os.environ["REPORT"]) else sys.stderr
with contextlib.redirect_stdout(out):
    __main__.main()
out.close()
"""


def test_a_small_ingest_that_was_killed_is_not_embedded_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE", str(folder_of(tmp_path / "noise", 100)))
    report = tmp_path / "report.txt"
    monkeypatch.setenv("REPORT", str(report))
    manifest = Manifest.new(FakeEmbedder().model, "cosine", settings.namespace)
    with (
        create_index(settings, manifest) as index,
        forks(f"import contextlib\n{IMPORTS}", INGEST_IN_TWO) as start_worker,
    ):
        start_worker().wait()
        assert report.read_text() == "", "it was not killed"
        assert index.count() == 40
        start_worker().wait()
        assert index.count() == 100
    assert "60 images embedded, 40 unchanged" in report.read_text()


@pytest.mark.long
def test_kill_9_in_the_middle_of_videos(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times inside a video, of which some frames are there and others are not."""
    folder = folder_of(tmp_path / "films", 20)
    frames = {f"films/{number}.mp4": 100 + number for number in range(5)}
    for number, count_ in enumerate(frames.values()):
        pictures = [scene(1000 * number + frame) for frame in range(count_)]
        write_video(folder / f"{number}.mp4", pictures, codec="mpeg4", rate=1)
    total = 20 + sum(frames.values())
    monkeypatch.setenv("SOURCE", str(folder))
    monkeypatch.setenv("SECONDS_PER_COMMIT", "0")
    manifest = Manifest.new(FakeEmbedder().model, "cosine", settings.namespace)
    moments = random.Random(9)
    counts = [0]
    inside = 0
    with create_index(settings, manifest), forks(IMPORTS, INGEST) as start_worker:
        while inside < KILLS // 2:
            worker = start_worker()
            wait_until(lambda: count(settings) > counts[-1] or not worker.is_running())  # noqa: B023
            time.sleep(moments.uniform(0, 0.05))
            worker.kill()
            with open_index(settings) as index:
                found = Counter(map(item_of, index.ids()))
            inside += any(0 < found[video] < whole for video, whole in frames.items())
            counts.append(found.total())
            assert counts[-1] < total, "it came to its end before it was killed often enough"
        start_worker().wait()
    assert counts == sorted(counts), "an acknowledged batch was lost"
    undisturbed = load_settings(data_dir=tmp_path / "undisturbed")
    monkeypatch.setenv("SECONDS_PER_COMMIT", "60")
    monkeypatch.setenv("IMAGE_SEARCH_DATA_DIR", str(undisturbed.data_dir))
    with create_index(undisturbed, manifest), forks(IMPORTS, INGEST) as start_worker:
        start_worker().wait()
    assert count(undisturbed) == total
    assert_same_records(open_index(undisturbed), open_index(settings))


@pytest.mark.long
def test_kill_9_of_a_service_during_queries_breaks_nothing(
    settings: Settings, free_port: int
) -> None:
    assert run("worker", "ingest", "sample", "--limit", "100")[0] == 0
    before = open_index(settings).fetch(open_index(settings).list_ids().ids)
    with service(free_port) as running:
        wait_until(lambda: running.health() == 200)
        clients = [
            subprocess.Popen(
                ["curl", "-s", "-F", f"image=@{QUERY}", f"{running.url}/search"],
                stdout=subprocess.DEVNULL,
            )
            for _ in range(8)
        ]
        time.sleep(0.02)
        running.process.kill()
        for client in clients:
            client.wait()
    after = open_index(settings).fetch(open_index(settings).list_ids().ids)
    assert before.keys() == after.keys()
    with service(free_port) as running:
        wait_until(lambda: running.health() == 200)
        assert len(running.search(QUERY.read_bytes())["matches"]) == 10


# --- the service's process ------------------------------------------------------------------------


@pytest.mark.long
def test_two_services_see_a_running_ingest_and_end_in_order() -> None:
    with service(find_free_port()) as first, service(find_free_port()) as second:
        services = (first, second)
        wait_until(lambda: all(each.health() == 503 for each in services))
        assert run("worker", "ingest", "sample", "--limit", "20")[0] == 0
        wait_until(lambda: all(each.health() == 200 for each in services))
        worker = subprocess.Popen(
            [sys.executable, "-c", OFTEN, "ingest", "sample"],
            env={**os.environ, "IMAGE_SEARCH_WEIGHTS": "bundled"},
        )
        seen: list[set[int]] = [set(), set()]

        def watch() -> bool:
            for each, counts in zip(services, seen, strict=True):
                if each.health() == 200:
                    counts.add(each.count())
                    matches = each.search(QUERY.read_bytes(), top_k=100, thumbnails=False)
                    assert len({match["id"] for match in matches["matches"]}) == min(
                        100, len(matches["matches"])
                    )
            return worker.poll() is not None

        wait_until(watch)
        wait_until(lambda: all(each.health() == 200 and each.count() == 600 for each in services))
        for counts in seen:
            assert any(20 < number < 600 for number in counts), "no progress was seen"
        for each in services:
            each.process.terminate()
            _, err = each.process.communicate(timeout=30)
            assert each.process.returncode == 0
            assert "Traceback" not in err


@pytest.mark.long
def test_a_worker_and_a_service_write_at_once(settings: Settings, free_port: int) -> None:
    assert run("worker", "ingest", "sample", "--limit", "20")[0] == 0
    key = "a secret of the tests"
    picture = QUERY.read_bytes()
    with service(free_port, IMAGE_SEARCH_API_KEYS=key) as running:
        wait_until(lambda: running.health() == 200)
        worker = subprocess.Popen(
            [sys.executable, "-c", OFTEN, "ingest", "sample", "--limit", "400"],
            env={**os.environ, "IMAGE_SEARCH_WEIGHTS": "bundled"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        written = 0
        with httpx2.Client(base_url=running.url, headers={"X-API-Key": key}, timeout=60) as client:
            while worker.poll() is None or written < 60:
                url = f"/images/put-{written:04d}"
                assert client.put(url, files={"image": picture}).status_code == 201
                written += 1
                if written % 3 == 0:
                    assert client.delete(url).status_code == 204
        assert "Traceback" not in worker.communicate()[1]
        assert worker.returncode == 0
    index = open_index(settings)
    stored = index.list_ids(prefix="put-", limit=10_000).ids
    assert stored == [f"put-{number:04d}" for number in range(written) if (number + 1) % 3]
    assert index.count() == 400 + len(stored)
    found = index.fetch(index.list_ids(limit=10_000).ids)
    assert len(found) == index.count()


def test_a_port_in_use_is_explained(free_port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        code, _, err = run("service", IMAGE_SEARCH_PORT=str(free_port))
    assert code == 1
    assert f"port {free_port}" in err
    assert "IMAGE_SEARCH_PORT" in err


def test_a_bad_setting_of_the_service_is_explained() -> None:
    code, _, err = run("service", IMAGE_SEARCH_PORT="http")
    assert (code, "IMAGE_SEARCH_PORT" in err) == (2, True)


def is_complete(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(end) and len(body) == int(length)


def test_an_endless_upload_is_refused_while_it_is_read(free_port: int) -> None:
    with service(free_port, IMAGE_SEARCH_MAX_UPLOAD_BYTES="2000000") as running:
        wait_until(lambda: running.health() == 503)
        with socket.create_connection(("127.0.0.1", free_port), timeout=30) as connection:
            connection.sendall(
                b"POST /search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            )
            head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="q"\r\n\r\n'
            connection.sendall(b"%x\r\n%s\r\n" % (len(head), head))
            answer = b""
            connection.settimeout(0.01)
            for _ in range(10_000):
                try:
                    connection.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
                except OSError:
                    break
                try:
                    answer += connection.recv(65536)
                    break
                except TimeoutError:
                    continue
            connection.settimeout(30)
            while not is_complete(answer):
                part = connection.recv(65536)
                assert part, answer
                answer += part
        assert b"413" in answer.split(b"\r\n")[0]
        assert b"upload_too_large" in answer
        assert running.health() == 503, "it goes on"


# --- real images ----------------------------------------------------------------------------------


@pytest.mark.long
def test_real_cifar10_end_to_end(
    settings: Settings, cifar10_archive: Path, free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = 1000
    code, out, err = run("worker", "ingest", str(cifar10_archive), "--limit", str(limit))
    assert code == 0, err
    assert f"{limit:,} images embedded" in out
    index = open_index(settings)
    ids = index.list_ids(limit=limit + 1).ids
    assert len(ids) == limit
    assert set(ids) < {f"cifar10-train-{n:05d}" for n in range(50_000)}

    queries: dict[str, list[bytes]] = {}
    for item in open_source(str(cifar10_archive), split="test", data_dir=Path()).items():
        assert item.label is not None
        queries.setdefault(item.label, [])
        if len(queries[item.label]) < 10:
            path = settings.local_dir / "query.png"
            Image.fromarray(np.asarray(item.content)).save(path)
            queries[item.label].append(path.read_bytes())
    assert len(queries) == 10

    hits: Counter[str] = Counter()
    with service(free_port) as running:
        wait_until(lambda: running.health() == 200)
        for label, images in queries.items():
            for image in images:
                matches = running.search(image)["matches"]
                assert len(matches) == 10
                thumbnail = base64.b64decode(matches[0]["thumbnail"].partition(",")[2])
                assert thumbnail.startswith(b"\xff\xd8")
                hits[label] += sum(match["label"] == label for match in matches)
    precision = sum(hits.values()) / (10 * 10 * 10)
    with capsys.disabled():
        print(f"\nprecision@10 of 100 test images in {limit:,} images: {precision:.3f}")
        print(json.dumps({label: hits[label] / 100 for label in sorted(hits)}))
    # Chance is 0.1; the bundled weights reach 0.4 to 0.5, the more the larger the index.
    assert precision > 0.25


# --- precision ------------------------------------------------------------------------------------


def drawn(settings: Settings, limit: int) -> Item:
    """One of the images that `ingest sample --limit` ingests."""
    return next(open_source("sample", data_dir=settings.local_dir).limited(limit).items())


@pytest.mark.long
def test_an_index_keeps_the_precision_that_it_was_built_in(settings: Settings) -> None:
    code, out, err = run("worker", "ingest", "sample", "--limit", "40")
    assert (code, "int8" in out) == (0, True), err
    built = open_index(settings)
    assert built.manifest.model.precision == "int8"
    assert len(built.manifest.activation_maxima) == 12
    # Without the setting, and in any other process, embeddings are those of the same numbers.
    again = Embedder.load("bundled", 32, built.manifest.activation_maxima)
    item = drawn(settings, 40)
    [expected] = again.embed([again.pixels(Image.fromarray(np.asarray(item.content)))])
    [match] = built.query(expected, 1)
    assert match.id == item.id
    assert match.score > 0.9999
    code, _, err = run("worker", "ingest", "sample", IMAGE_SEARCH_PRECISION="float32")
    assert code == 1
    assert "int8" in err
    assert "float32" in err
    assert count(settings) == 40


def test_float32_is_taken_when_it_is_asked_for(settings: Settings) -> None:
    code, out, _ = run(
        "worker", "ingest", "sample", "--limit", "40", IMAGE_SEARCH_PRECISION="float32"
    )
    assert (code, "float32" in out) == (0, True)
    assert open_index(settings).manifest.activation_maxima == ()
    code, _, err = run("worker", "ingest", "sample", IMAGE_SEARCH_PRECISION="int8")
    assert (code, "float32" in err) == (1, True)


@pytest.mark.long
def test_an_index_keeps_the_recipe_that_it_was_built_with(settings: Settings) -> None:
    code, out, err = run("worker", "ingest", "sample", "--limit", "120")
    assert (code, "recipe neighbours" in out) == (0, True), err
    built = open_index(settings)
    model = built.manifest.model
    assert model.recipe == "neighbours"
    # Anyone makes the same embeddings of what the index has.
    again = Embedder.load("bundled", 32, built.manifest.activation_maxima, built.load_recipe())
    assert again.model == model
    item = drawn(settings, 120)
    [match] = built.query(
        again.embed([again.pixels(Image.fromarray(np.asarray(item.content)))])[0], 1
    )
    assert match.id == item.id
    assert match.score > 0.9999
    assert built.calibration is not None
    code, _, err = run("worker", "ingest", "sample", IMAGE_SEARCH_RECIPE="none")
    assert code == 1
    assert "neighbours" in err
    assert "none" in err
    assert count(settings) == 120


@pytest.mark.long
def test_an_index_that_began_with_few_images_stays_plain(settings: Settings) -> None:
    code, out, err = run("worker", "ingest", "sample", "--limit", "10")
    assert (code, "recipe none" in out) == (0, True)
    assert "10 images are too few" in err
    code, out, err = run(
        "worker", "ingest", "sample", "--limit", "120", IMAGE_SEARCH_RECIPE="components"
    )
    assert (code, "recipe none" in out) == (0, True)
    assert "keeps them" in err
    assert count(settings) == 120


def test_openvino_tells_its_makers_nothing() -> None:
    program = (
        "import sys, image_search.engines.openvino\n"
        "print(sorted(name for name, module in sys.modules.items()\n"
        "             if name.startswith('openvino_telemetry') and module is not None))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"[]\n"
