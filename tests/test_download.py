"""Downloads from a server on the loopback that can be told to misbehave."""

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from image_search.download import download
from image_search.errors import DownloadError
from tests.support.servers import listen

# More than two of the pieces that a download is likely to be read in.
CONTENT: Final = np.random.default_rng(0).bytes(3_000_000)
MD5: Final = hashlib.md5(CONTENT).hexdigest()
CUT: Final = 1_234_567


@dataclass
class Server:
    """What the server is to do, and what it saw and sent."""

    url: str = ""
    content: bytes = CONTENT
    status: int = 200
    cuts: list[int] = field(default_factory=list)  # bytes to send in the next answers
    knows_ranges: bool = True
    gives_length: bool = True
    compresses: bool = False
    ranges: list[str | None] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)

    def get(self, path: Path) -> Path:
        return download(self.url, path, md5=MD5, retry_delay=0)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/files/data.bin")
                self.end_headers()
                return
            asked = self.headers["Range"]
            state.ranges.append(asked)
            start = 0
            if asked and state.knows_ranges:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status = state.status
            if status == 200 and start:
                status = 206 if start < len(state.content) else 416
            body = state.content[start:] if status < 300 else b"an error page"
            zipped = state.compresses and "gzip" in self.headers.get("Accept-Encoding", "")
            self.send_response(status)
            if zipped:
                body = gzip.compress(body)
                self.send_header("Content-Encoding", "gzip")
            if status == 206:
                last = len(state.content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
            if state.gives_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.cuts:
                body = body[: state.cuts.pop(0)]
            state.sent.append(len(body))
            self.wfile.write(body)

    with listen(Files) as http:
        state.url = f"{http.url}/files/data.bin"
        yield state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "data.bin"


def part_of(path: Path) -> Path:
    return path.with_name("data.bin.part")


def assert_complete(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["data.bin"]


@pytest.mark.parametrize("gives_length", ["length", "no length"])
def test_whole_file(server: Server, path: Path, gives_length: str) -> None:
    server.gives_length = gives_length == "length"
    assert server.get(path) == path
    assert_complete(path)
    assert server.ranges == [None]


def test_redirection(server: Server, path: Path) -> None:
    server.url = server.url.replace("/files/data.bin", "/moved")
    assert_complete(server.get(path))


def test_file_that_is_there_is_not_fetched_again(server: Server, path: Path) -> None:
    server.get(path)
    assert server.get(path) == path
    assert_complete(path)
    assert len(server.ranges) == 1


def test_wrong_file_that_is_there_is_reported_and_kept(server: Server, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"data\.bin.*checksum.*delete") as caught:
        server.get(path)
    assert str(path) in caught.value.in_full
    assert (path.read_bytes(), server.ranges) == (b"mine", [])


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [b"", b"something else", CONTENT[:-1], CONTENT + b"x", CONTENT[:-1] + b"x"]
)
def test_wrong_content_leaves_nothing(server: Server, path: Path, content: bytes) -> None:
    server.content = content
    with pytest.raises(DownloadError, match="checksum"):
        server.get(path)
    assert list(path.parent.iterdir()) == []
    server.content = CONTENT
    assert_complete(server.get(path))


def test_broken_download_goes_on_where_it_stopped(server: Server, path: Path) -> None:
    server.cuts = [CUT, 1]
    assert_complete(server.get(path))
    assert server.ranges == [None, f"bytes={CUT}-", f"bytes={CUT + 1}-"]
    assert server.sent == [CUT, 1, len(CONTENT) - CUT - 1]


@pytest.mark.slow
def test_broken_download_goes_on_in_a_later_call(server: Server, path: Path) -> None:
    server.cuts = [CUT, *[0] * 20]
    with pytest.raises(DownloadError, match="could not be downloaded") as caught:
        server.get(path)
    assert server.url in str(caught.value)
    assert not path.exists()
    assert part_of(path).read_bytes() == CONTENT[:CUT]
    server.cuts, server.ranges, server.sent = [], [], []
    assert_complete(server.get(path))
    assert (server.ranges, server.sent) == ([f"bytes={CUT}-"], [len(CONTENT) - CUT])


def test_server_without_ranges(server: Server, path: Path) -> None:
    server.knows_ranges = False
    server.cuts = [CUT, CUT + 5]
    assert_complete(server.get(path))
    assert server.sent == [CUT, CUT + 5, len(CONTENT)]


def test_server_that_would_compress(server: Server, path: Path) -> None:
    server.compresses = True
    server.cuts = [CUT]
    assert_complete(server.get(path))


def test_only_the_checksum_was_left(server: Server, path: Path) -> None:
    part_of(path).parent.mkdir(parents=True)
    part_of(path).write_bytes(CONTENT)
    assert_complete(server.get(path))
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("rest", [b"x" * 10, b"x" * (len(CONTENT) + 1)], ids=["short", "long"])
def test_wrong_part_is_thrown_away(server: Server, path: Path, rest: bytes) -> None:
    part_of(path).parent.mkdir(parents=True)
    part_of(path).write_bytes(rest)
    with pytest.raises(DownloadError, match="checksum"):
        server.get(path)
    assert list(path.parent.iterdir()) == []
    assert_complete(server.get(path))


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_status_is_named_and_a_part_kept(server: Server, path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=f"answered {status}") as caught:
        server.get(path)
    assert server.url in str(caught.value)
    assert list(path.parent.iterdir()) == []
    part_of(path).write_bytes(CONTENT[:CUT])
    with pytest.raises(DownloadError, match=f"answered {status}"):
        server.get(path)
    assert part_of(path).read_bytes() == CONTENT[:CUT]


@pytest.mark.slow
@pytest.mark.parametrize("have", [b"", CONTENT[:CUT]], ids=["nothing", "a part"])
def test_nobody_listens(
    path: Path, free_port: int, caplog: pytest.LogCaptureFixture, have: bytes
) -> None:
    url = f"http://127.0.0.1:{free_port}/data.bin"
    path.parent.mkdir(parents=True)
    if have:
        part_of(path).write_bytes(have)
    with pytest.raises(DownloadError) as caught:
        download(url, path, md5=MD5, retry_delay=0)
    assert f"{url} could not be downloaded: " in str(caught.value)
    assert [file.read_bytes() for file in path.parent.iterdir()] == ([have] if have else [])
    # Only what has worked before is tried again.
    assert any("resuming" in record.message for record in caplog.records) == bool(have)


@pytest.mark.parametrize("below", ["data.bin", "folder/data.bin"])
def test_folder_that_cannot_be_written(server: Server, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    path = tmp_path / "file" / below
    with pytest.raises(DownloadError, match="could not be written") as caught:
        server.get(path)
    assert str(path) in caught.value.in_full
    assert str(tmp_path) not in str(caught.value), "which may be an answer over HTTP"
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_socks_proxy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(DownloadError, match="SOCKS"):
        download("http://example.invalid/x", tmp_path / "x", md5="0" * 32)
