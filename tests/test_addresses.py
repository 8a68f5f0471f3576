"""Files at addresses: what a server that breaks off, changes or knows no ranges leaves of them."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import cast

import pytest

from image_search.errors import SourceError
from tests.support.servers import listen
from worker.sources import open_source, remote


@dataclass
class Server:
    """Serves one file; `cuts` are how many bytes of the next answers are sent."""

    content: bytes = b""
    etag: str = '"1"'
    knows_ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.001)
    state = Server()

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["If-None-Match"] == state.etag:
                self.send_response(304)
                self.end_headers()
                return
            asked = self.headers["Range"]
            is_same = self.headers["If-Range"] == state.etag
            start = 0
            if asked and is_same and state.knows_ranges:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            total = len(state.content)
            if start and start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if state.etag:
                self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            body = body[: state.cuts.pop(0)] if state.cuts else body
            state.sent.append(len(body))
            self.wfile.write(body)

    with listen(Files) as http:
        state.url = f"{http.url}/pics.zip"
        state.content = archive(0)
        yield state


def archive(first: int) -> bytes:
    """A zip of 40 files that are called images."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in files(first).items():
            file.writestr(name, content)
    return out.getvalue()


def files(first: int) -> dict[str, bytes]:
    return {f"{number}.jpg": bytes([number]) * 1000 for number in range(first, first + 40)}


def contents(server: Server, folder: Path) -> dict[str, bytes]:
    source = open_source(server.url, data_dir=folder)
    return {str(item.metadata["path"]): cast("bytes", item.content) for item in source.items()}


def test_a_download_that_breaks_off_goes_on(server: Server, tmp_path: Path) -> None:
    whole = len(server.content)
    server.cuts = [10_000, 0, 5_000]
    assert contents(server, tmp_path) == files(0)
    assert server.sent == [10_000, 0, 5_000, whole - 15_000]
    server.sent.clear()
    assert contents(server, tmp_path) == files(0)
    assert server.sent == []  # it is there


def test_the_next_run_goes_on(server: Server, tmp_path: Path) -> None:
    server.cuts = [5_000, 1_000, 1_000, 1_000]
    with pytest.raises(SourceError, match="cannot be reached"):
        contents(server, tmp_path)
    server.sent.clear()
    assert contents(server, tmp_path) == files(0)
    assert server.sent == [len(server.content) - 8_000]


@pytest.mark.parametrize(
    ("etag", "knows_ranges"), [("", True), ('W/"1"', True), ('"1"', False), ('"2"', True)]
)
def test_what_cannot_go_on_begins_anew(
    server: Server, tmp_path: Path, etag: str, *, knows_ranges: bool
) -> None:
    server.etag = etag.replace("2", "1")
    server.knows_ranges = knows_ranges
    server.cuts = [5_000] * 4
    with pytest.raises(SourceError, match="cannot be reached"):
        contents(server, tmp_path)
    server.etag = etag
    server.content = archive(100)  # with no ETag, or another, it may be another file
    server.sent.clear()
    assert contents(server, tmp_path) == files(100)
    assert server.sent == [len(server.content)]


def test_what_is_too_long_begins_anew(server: Server, tmp_path: Path) -> None:
    server.cuts = [30_000, 0, 0, 0]
    with pytest.raises(SourceError, match="cannot be reached"):
        contents(server, tmp_path)
    server.content = archive(100)[:9_000]
    with pytest.raises(SourceError, match="damaged"):
        contents(server, tmp_path)
    server.content, server.etag = archive(100), '"2"'
    assert contents(server, tmp_path) == files(100)
