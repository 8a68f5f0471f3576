"""The files that images came from, over HTTP: ranges, and no way out of their folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import numpy as np
import pytest

from image_search.errors import SettingsError
from image_search.index import Record
from image_search.manifest import Manifest
from image_search.provenance import KnownSource
from image_search.settings import load_settings
from image_search.stores import create_index
from image_search.values import DIMENSION, Metadata
from service.app import create_app
from tests.support.images import QUERY, encode
from tests.support.indexes import FakeEmbedder, serve_fakes
from tests.support.servers import ServiceThread, assert_problem, serve, wait_for

PHOTO = encode(QUERY, "JPEG")
VIDEO = bytes(range(256)) * 40
SECRET = b"nobody may read this"
# Ids that records have, with their metadata.
RECORDS: dict[str, Metadata] = {
    "photos/cat/1.jpg": {"source": "photos", "path": "cat/1.jpg"},
    "photos/%C3%A9t%C3%A9.jpg": {"source": "photos", "path": "été.jpg"},
    "photos/long-1234": {"source": "photos", "path": "cat/1.jpg"},
    "clips/a.mp4#t=1.000": {"video": "clips/a.mp4", "time": 1.0},
    "clips/a.mp4#t=2.000": {"video": "clips/a.mp4", "time": 2.0},
    "films~12345678/b.webm": {"source": "films~12345678", "path": "b.webm"},
    "own/cat/2.jpg": {},
    "photos/inner.jpg": {},
    "photos/page.html": {},
    "photos/drawing.svg": {},
    "photos": {},
    "photos/pipe.jpg": {},
    "photos/gone.jpg": {},
    # Ways out.
    "../secret.jpg": {},
    "photos/../../secret.jpg": {},
    "%2E%2E/secret.jpg": {},
    "photos/%2e%2e/%2e%2e/secret.jpg": {},
    "photos/out.jpg": {},
    "photos/outside/secret.jpg": {},
    "x": {"source": "..", "path": "secret.jpg"},
    "y": {"video": "../secret.jpg", "time": 1.0},
    "z%00.jpg": {},
    "elsewhere/secret.jpg": {"source": "elsewhere", "path": "secret.jpg"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of originals, with links, beside a secret."""
    outside = tmp_path_factory.mktemp("outside")
    root = outside / "own"
    (root / "photos" / "cat").mkdir(parents=True)
    (root / "cat").mkdir()
    (root / "clips").mkdir()
    (root / "films").mkdir()
    (outside / "secret.jpg").write_bytes(SECRET)
    (root / "photos" / "cat" / "1.jpg").write_bytes(PHOTO)
    (root / "photos" / "été.jpg").write_bytes(PHOTO)
    (root / "cat" / "2.jpg").write_bytes(PHOTO)
    (root / "clips" / "a.mp4").write_bytes(VIDEO)
    (root / "films" / "b.webm").write_bytes(VIDEO)
    (root / "photos" / "page.html").write_text("<script>alert(1)</script>")
    (root / "photos" / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (root / "photos" / "unnamed.jpg").write_bytes(PHOTO)
    (root / "photos" / "inner.jpg").symlink_to(root / "photos" / "cat" / "1.jpg")
    (root / "photos" / "out.jpg").symlink_to(outside / "secret.jpg")
    (root / "photos" / "outside").symlink_to(outside)
    os.mkfifo(root / "photos" / "pipe.jpg")
    return root


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    with pytest.MonkeyPatch.context() as patch:
        serve_fakes(patch)
        settings = load_settings(
            data_dir=tmp_path_factory.mktemp("originals"), media_root=str(folder)
        )
        manifest = Manifest.new(FakeEmbedder().model, "cosine", settings.namespace)
        with create_index(settings, manifest) as index:
            vector = np.ones(DIMENSION, np.float32)
            index.upsert([Record(id_, vector, None, RECORDS[id_], b"") for id_ in RECORDS])
            index.save_source("films~12345678", KnownSource(place=str(folder / "films")))
            index.save_source("elsewhere", KnownSource(place=str(folder.parent)))
        # In process, paths would be decoded twice.
        with ServiceThread(settings) as service, httpx2.Client(base_url=service.url) as client:
            service.wait_until_ready()
            yield client


def get(client: httpx2.Client, id_: str, **headers: str) -> Any:
    return client.get(f"/originals/{quote(id_)}", headers=headers)


@pytest.mark.parametrize(
    ("id_", "content", "media_type"),
    [
        ("photos/cat/1.jpg", PHOTO, "image/jpeg"),
        ("photos/%C3%A9t%C3%A9.jpg", PHOTO, "image/jpeg"),
        ("photos/long-1234", PHOTO, "image/jpeg"),
        ("photos/inner.jpg", PHOTO, "image/jpeg"),  # a link that stays within
        ("own/cat/2.jpg", PHOTO, "image/jpeg"),  # the folder is the source
        ("clips/a.mp4#t=2.000", VIDEO, "video/mp4"),
        ("clips/a.mp4", VIDEO, "video/mp4"),
        ("films~12345678/b.webm", VIDEO, "video/webm"),  # by the place of its source
        ("photos/page.html", b"<script>alert(1)</script>", "application/octet-stream"),
        (
            "photos/drawing.svg",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "application/octet-stream",
        ),
    ],
)
def test_a_record_leads_to_its_file(
    client: httpx2.Client, id_: str, content: bytes, media_type: str
) -> None:
    response = get(client, id_)
    assert (response.status_code, response.content) == (200, content)
    assert response.headers["content-type"] == media_type
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in response.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=100-299", slice(100, 300)),
        ("bytes=10000-", slice(10_000, None)),
        ("bytes=-10", slice(-10, None)),
        ("bytes=10000-99999", slice(10_000, None)),
    ],
)
def test_parts_of_a_video_can_be_had(client: httpx2.Client, asked: str, part: slice) -> None:
    response = get(client, "clips/a.mp4#t=1.000", Range=asked)
    assert (response.status_code, response.content) == (206, VIDEO[part])
    start = part.indices(len(VIDEO))[0]
    expected = f"bytes {start}-{start + len(VIDEO[part]) - 1}/{len(VIDEO)}"
    assert response.headers["content-range"] == expected
    assert response.headers["accept-ranges"] == "bytes"


def test_a_part_that_is_not_there_is_refused(client: httpx2.Client) -> None:
    for asked in ("bytes=20000-", "bytes=b-a"):
        response = get(client, "clips/a.mp4", Range=asked)
        assert_problem(response, 416, "range_not_satisfiable")
        assert response.headers["content-range"] == f"bytes */{len(VIDEO)}"


@pytest.mark.parametrize(
    "id_",
    [
        *[id_ for id_ in RECORDS if "secret" in id_ or id_ in {"x", "y", "z%00.jpg"}],
        "photos",
        "photos/out.jpg",
        "photos/pipe.jpg",
        "photos/gone.jpg",
    ],
)
def test_nothing_else_can_be_had(client: httpx2.Client, id_: str) -> None:
    response = client.get(f"/originals/{quote(id_, safe='')}")
    assert SECRET not in response.content
    assert_problem(response, 404, "original_not_found")


@pytest.mark.parametrize(
    "id_", ["photos/unnamed.jpg", "clips", "photos/cat", "/etc/passwd", "../own/photos/unnamed.jpg"]
)
def test_what_no_record_names_is_not_there(client: httpx2.Client, id_: str) -> None:
    response = client.get(f"/originals/{quote(id_, safe='')}")
    assert_problem(response, 404, "image_not_found")


def test_a_link_that_is_put_after_the_check_is_not_followed(
    client: httpx2.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def racing(path: Any, real: Callable[..., str] = os.path.realpath) -> str:
        found = real(path)
        if found == str(folder / "photos" / "out.jpg"):
            raise AssertionError
        return str(folder / "photos" / "out.jpg")

    monkeypatch.setattr("service.originals.os.path.realpath", racing)
    response = get(client, "photos/cat/1.jpg")
    monkeypatch.undo()
    assert SECRET not in response.content
    assert_problem(response, 404, "original_not_found")


@pytest.mark.slow
def test_files_are_closed_again(client: httpx2.Client) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        get(client, "clips/a.mp4", Range="bytes=1-2")
        get(client, "clips/a.mp4", Range="bytes=99999-")
        get(client, "photos/gone.jpg")
    assert len(os.listdir("/proc/self/fd")) <= before + 2


@pytest.mark.slow
def test_without_a_folder_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_fakes(monkeypatch)
    settings = load_settings()
    manifest = Manifest.new(FakeEmbedder().model, "cosine", settings.namespace)
    create_index(settings, manifest).close()
    with serve(settings) as client:
        wait_for(client, 200)
        assert client.get("/health").json()["originals"] is False
        assert_problem(client.get("/originals/a"), 403, "originals_disabled")
    with pytest.raises(SettingsError, match=r"IMAGE_SEARCH_MEDIA_ROOT.*no such folder"):
        create_app(load_settings(media_root=str(tmp_path / "none")))
