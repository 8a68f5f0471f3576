"""Sources in buckets and at addresses, of real servers on loopback."""

import http.server
import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

import boto3
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_search.errors import ImageError, SettingsError, SourceError
from image_search.manifest import Manifest
from image_search.progress import Progress
from image_search.settings import Settings
from image_search.stores import create_index
from tests.support.images import folder_of, png
from tests.support.indexes import FakeEmbedder, records
from tests.support.processes import run
from tests.support.servers import Quiet
from tests.support.sources import items
from tests.support.videos import write_video
from worker.ingest import Summary, ingest
from worker.origin import named_in, remember
from worker.prune import SeenSource, prune
from worker.sources import Source, open_source

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


class Bucket(Protocol):
    """A bucket of the test's own; `url` is without a slash at its end."""

    url: str

    def put(self, key: str, content: bytes) -> None: ...

    def delete(self, key: str) -> None: ...

    def open(self, prefix: str, data_dir: Path) -> Source: ...


class AmazonBucket:
    def __init__(self, server: str, name: str) -> None:
        self.name = name
        self.url = f"s3://{name}"
        self._server = server
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=server,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        self._client.create_bucket(Bucket=name)

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def open(self, prefix: str, data_dir: Path) -> Source:
        url = f"{self.url}/{prefix}"
        return open_source(url, data_dir=data_dir, s3_endpoint=self._server)


class GoogleBucket:
    """https://cloud.google.com/storage/docs/json_api/v1"""

    def __init__(self, server: str, name: str) -> None:
        self.url = f"gs://{name}"
        self._objects = f"{server}/storage/v1/b/{name}/o"
        self._uploads = f"{server}/upload/storage/v1/b/{name}/o"
        httpx2.post(f"{server}/storage/v1/b", json={"name": name}).raise_for_status()

    def put(self, key: str, content: bytes) -> None:
        parameters = {"uploadType": "media", "name": key}
        headers = {"Content-Type": "application/octet-stream"}
        httpx2.post(
            self._uploads, params=parameters, content=content, headers=headers
        ).raise_for_status()

    def delete(self, key: str) -> None:
        httpx2.delete(f"{self._objects}/{quote(key, safe='')}").raise_for_status()

    def open(self, prefix: str, data_dir: Path) -> Source:
        return open_source(f"{self.url}/{prefix}", data_dir=data_dir)


@pytest.fixture
def amazon(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AmazonBucket:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return AmazonBucket(s3_server, tmp_path.name.replace("_", "-"))


@pytest.fixture(params=["amazon", "google"])
def bucket(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Bucket:
    """One at each of the two in turn."""
    if request.param == "amazon":
        amazon: AmazonBucket = request.getfixturevalue("amazon")
        return amazon
    server = request.getfixturevalue("google_server")
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", server)
    return GoogleBucket(server, tmp_path.name.replace("_", "-"))


@pytest.mark.slow
def test_a_bucket_gives_what_the_folder_gives(bucket: Bucket, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pics", 9)
    (folder / "label0" / "été 1.png").write_bytes(png(100))
    (folder / "label0" / "IMG_1").write_bytes(png(101))
    (folder / "notes.txt").write_text("notes")
    (folder / "broken.png").write_bytes(b"broken")
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.put(f"my/pics/{file.relative_to(folder)}", file.read_bytes())
    bucket.put("my/pics2/other.png", png(1))
    if isinstance(bucket, AmazonBucket):  # a folder of the console, which the emulator refuses
        bucket.put("my/pics/empty/", b"")
    source = bucket.open("my/pics", tmp_path)
    expected, found = items(open_source(str(folder), data_dir=tmp_path)), items(source)
    assert found.keys() == expected.keys()
    for id_, item in found.items():
        assert (item.label, item.content) == (expected[id_].label, expected[id_].content)
        metadata = dict(item.metadata)
        assert metadata.pop("version")
        assert metadata == expected[id_].metadata
    assert source.skipped.total == 1
    picked = [item.id for item in source.pick({1, 3})]
    assert picked == [id_ for number, id_ in enumerate(found) if number in {1, 3}]
    assert bucket.open("", tmp_path).total == source.total + 1


def sync(source: Source, index: Any, embedder: FakeEmbedder, settings: Settings) -> Summary:
    source = named_in(index, source)
    remember(index, source)
    seen = SeenSource(source)
    seen.see_all()
    summary = ingest(seen.source, index, embedder, settings)
    prune(index, seen, 50)
    return summary


@pytest.mark.slow
def test_what_has_not_changed_is_not_read_again(
    bucket: Bucket, settings: Settings, fake_embedder: FakeEmbedder, tmp_path: Path
) -> None:
    for number in range(12):
        bucket.put(f"pics/{number:02d}.png", png(number))
    index = create_index(settings, Manifest.new(fake_embedder.model, "cosine", "__default__"))
    assert sync(bucket.open("pics", tmp_path), index, fake_embedder, settings).embedded == 12
    bucket.put("pics/03.png", png(103, (21, 10)))
    bucket.put("pics/new.png", png(104))
    bucket.delete("pics/05.png")
    source = bucket.open("pics", tmp_path)
    # Now they could not be read any more.
    for number in set(range(12)) - {3, 5}:
        bucket.delete(f"pics/{number:02d}.png")
    summary = sync(source, index, fake_embedder, settings)
    assert (summary.embedded, summary.unchanged, summary.unreadable) == (2, 10, {})
    names = [*(f"{number:02d}" for number in range(12) if number != 5), "new"]
    assert records(index).keys() == {f"pics/{name}.png" for name in names}


@pytest.mark.slow
def test_what_is_gone_is_told(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(3):
        bucket.put(f"pics/{number}.png", png(number))
    source = bucket.open("pics", tmp_path)
    bucket.delete("pics/1.png")
    contents = [item.content for item in source.items()]
    assert [isinstance(content, ImageError) for content in contents] == [False, True, False]
    with pytest.raises(SourceError, match="nothing at"):
        bucket.open("nothing", tmp_path)
    with pytest.raises(SourceError, match="names no bucket"):
        open_source(bucket.url.partition("//")[0] + "//", data_dir=tmp_path)
    with pytest.raises(SettingsError, match="S3_ENDPOINT"):
        open_source("s3://a/b", data_dir=tmp_path, s3_endpoint="localhost:1")


def test_archives_and_parquet_files_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "pics"), "zip", folder_of(tmp_path / "made", 6))
    bucket.put("one/pics.zip", Path(archive).read_bytes())
    source = bucket.open("one/pics.zip", tmp_path)
    assert items(source).keys() == items(open_source(archive, data_dir=tmp_path)).keys()
    assert source.origin is not None
    assert source.origin.place == f"{bucket.url}/one/pics.zip"

    out = io.BytesIO()
    pq.write_table(pa.table({"image": [png(1), png(2)], "label": ["a", "b"]}), out)
    for split in ("train", "test"):
        bucket.put(f"beans/data/{split}-00000.parquet", out.getvalue())
    beans = bucket.open("beans", tmp_path)
    assert items(beans).keys() == {
        f"beans/data/{split}-00000/{n:06d}" for split in ("train", "test") for n in range(2)
    }
    assert beans.origin is not None
    assert beans.origin.place == f"{bucket.url}/beans"

    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for name, content in {"1.png": png(1), "1.cls": b"cat"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for number in range(2):
        bucket.put(f"pets/train-000{number}.tar", shard.getvalue())
    pets = items(bucket.open("pets", tmp_path))
    assert pets.keys() == {"pets/train-0000/1.png", "pets/train-0001/1.png"}
    # Nothing is written elsewhere than to the folder of downloads. The emulator refuses such names.
    if isinstance(bucket, AmazonBucket):
        bucket.put("odd/../../../../elsewhere.parquet", out.getvalue())
        with pytest.raises(SourceError):
            bucket.open("odd", tmp_path)
        assert not list(tmp_path.parent.rglob("elsewhere.parquet"))
    # What was downloaded is downloaded again when it has changed.
    bucket.put("one/pics.zip", b"damaged")
    with pytest.raises(SourceError, match="damaged"):
        bucket.open("one/pics.zip", tmp_path)


def test_a_download_that_broke_goes_on(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = shutil.make_archive(str(tmp_path / "pics"), "zip", folder_of(tmp_path / "made", 30))
    content = Path(archive).read_bytes()
    bucket.put("one/pics.zip", content)
    monkeypatch.setattr("worker.sources.bucket._PIECE_BYTES", 1000)
    received = 0

    class Breaking(Progress):
        def update(self, count: int) -> None:
            nonlocal received
            received += count
            if received == 5000:
                raise OSError("the connection broke")

    monkeypatch.setattr("worker.sources.bucket.Progress", Breaking)
    with pytest.raises(SourceError, match="broke"):
        bucket.open("one/pics.zip", tmp_path)
    assert bucket.open("one/pics.zip", tmp_path).total == 30
    assert received == len(content)
    downloads = [path.name for path in (tmp_path / "downloads").rglob("*") if path.is_file()]
    assert sorted(downloads) == [".pics.zip.version", "pics.zip"]
    # Of what has changed meanwhile, nothing is joined to what came before.
    received = 0
    bucket.put("one/pics.zip", content[:9000])
    with pytest.raises(SourceError, match="broke"):
        bucket.open("one/pics.zip", tmp_path)
    other = shutil.make_archive(str(tmp_path / "pics"), "zip", folder_of(tmp_path / "made", 31))
    content = Path(other).read_bytes()
    bucket.put("one/pics.zip", content)
    assert bucket.open("one/pics.zip", tmp_path).total == 31
    assert received == 5000 + len(content)


def test_a_download_needs_room(
    amazon: AmazonBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    amazon.put("one/pics.zip", bytes(5000))
    usage = shutil.disk_usage(tmp_path)._replace(free=4000)
    monkeypatch.setattr("worker.sources.bucket.shutil.disk_usage", lambda _: usage)
    with pytest.raises(SourceError, match=r"5,000 bytes to download, .* 4,000 free"):
        amazon.open("one/pics.zip", tmp_path)


@pytest.mark.long
def test_a_bucket_as_users_ingest_it(amazon: AmazonBucket, s3_server: str) -> None:
    for number in range(4):
        amazon.put(f"pics/{number}.png", png(number))
    url = f"{amazon.url}/pics"
    for embedded in (4, 0):
        code, out, err = run("worker", "ingest", url, "--prune", IMAGE_SEARCH_S3_ENDPOINT=s3_server)
        assert code == 0, err
        assert f"{embedded} images embedded" in out
    code, out, _ = run("worker", "sources")
    assert url in out


# --- http -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_videos_in_buckets_and_at_addresses(
    bucket: Bucket,
    site: tuple[str, Path],
    settings: Settings,
    fake_embedder: FakeEmbedder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, root = site
    video = write_video(root / "a.mp4", seconds=2, codec="mpeg4", rate=5)
    bucket.put("films/cats/a.mp4", video.read_bytes())
    bucket.put("films/cats/p.png", png(1))
    (root / "list.txt").write_text(f"{url}/a.mp4\n{url}/gone.mp4\n")
    frames = ["#t=0.000", "#t=1.000"]
    with create_index(
        settings, Manifest.new(fake_embedder.model, "cosine", "__default__")
    ) as index:
        sync(bucket.open("films", tmp_path), index, fake_embedder, settings)
        expected = [*(f"films/cats/a.mp4{at}" for at in frames), "films/cats/p.png"]
        assert sorted(records(index)) == expected
        listed = open_source(str(root / "list.txt"), data_dir=tmp_path)
        summary = sync(listed, index, fake_embedder, settings)
        # The same file: its frames are not embedded again.
        assert (summary.moved, summary.embedded) == (2, 0)
        assert [one.rpartition("/")[2] for one in summary.unreadable] == ["gone.mp4"]
        assert f"list/{url}/a.mp4#t=1.000" in map(unquote, records(index))

        def refuse(*_: Any) -> None:
            raise AssertionError("the video is downloaded")

        monkeypatch.setattr("worker.sources.bucket._Bucket.open", refuse)
        again = sync(bucket.open("films", tmp_path), index, fake_embedder, settings)
        assert (again.unchanged, again.unreadable) == (2, {})


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    root = tmp_path / "site"
    root.mkdir()
    handler = partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", root
        server.shutdown()


@pytest.mark.slow
def test_archives_and_lists_at_addresses(site: tuple[str, Path], tmp_path: Path) -> None:
    url, root = site
    folder = folder_of(root / "pics", 6)
    archive = shutil.make_archive(str(root / "pics"), "zip", folder)
    source = open_source(f"{url}/pics.zip", data_dir=tmp_path)
    assert items(source).keys() == items(open_source(archive, data_dir=tmp_path)).keys()
    assert source.origin is not None
    assert source.origin.place == f"{url}/pics.zip"
    lines = [f"{url}/pics/label0/0000.png", "# a comment", "pics/label1/0001.png", "", "gone.png"]
    (root / "list.txt").write_text("\n".join(lines))
    (root / "secret.png").write_bytes(png(9))
    contents = [item.content for item in open_source(f"{url}/list.txt", data_dir=tmp_path).items()]
    assert contents[:2] == [png(0), png(1)]
    assert isinstance(contents[2], ImageError)
    # A table of a stranger reads nothing from this machine.
    (root / "table.csv").write_text(
        f"path,label\npics/label0/0000.png,a\n{root}/secret.png,b\nfile://{root}/secret.png,c\n"
    )
    table = list(open_source(f"{url}/table.csv", data_dir=tmp_path).items())
    assert table[0].content == png(0)
    assert all(isinstance(item.content, ImageError) for item in table[1:])
    # The same list as a file.
    (tmp_path / "list.txt").write_text(f"{url}/pics/label0/0000.png\n{folder}/label1/0001.png\n")
    local = open_source(str(tmp_path / "list.txt"), data_dir=tmp_path)
    assert [item.content for item in local.items()] == [png(0), png(1)]
    # Who reads the list of sources learns no passwords.
    secret = f"{url.replace('//', '//me:secret@')}/pics.zip?X-Amz-Signature=secret"
    signed = open_source(secret, data_dir=tmp_path)
    assert signed.origin is not None
    assert signed.origin.place == signed.name == f"{url}/pics.zip"
    with pytest.raises(SourceError, match="404"):
        open_source(f"{url}/none.zip", data_dir=tmp_path)
    with pytest.raises(SourceError, match="names no file"):
        open_source(url, data_dir=tmp_path)
