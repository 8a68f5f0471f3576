"""A server of buckets that costs little beside what is measured: objects in memory, read alone.

usage: python -m benchmarks.bucket_server FOLDER

Each folder in FOLDER is a bucket. Prints the address once it answers. A server for tests, written
in Python, takes more of a processor for an object than the engine for a small image.
"""

import asyncio
import re
import sys
from email.utils import formatdate
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_RANGE: Final = re.compile(rb"\r\nrange: bytes=(\d+)-(\d*)", re.IGNORECASE)
_TIME: Final = 1_700_000_000


class _Connection(asyncio.Protocol):
    """Answers GET and HEAD of objects, and lists of them, as Amazon S3 does."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        method, target, _ = head.partition(b"\r\n")[0].decode().split(" ")
        address = urlsplit(target)
        path = unquote(address.path)
        asked = parse_qs(address.query, keep_blank_values=True)
        is_head = method == "HEAD"
        if "list-type" in asked:
            self._send(200, self._list(path.strip("/"), asked.get("prefix", [""])[0]))
        elif path not in self._objects:
            self._send(404, b"", is_head=is_head)
        elif found := _RANGE.search(head):
            content = self._objects[path]
            first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
            where = f"Content-Range: bytes {first}-{last}/{len(content)}\r\n"
            self._send(206, content[first : last + 1], where, is_head=is_head)
        else:
            self._send(200, self._objects[path], is_head=is_head)

    def _list(self, bucket: str, prefix: str) -> bytes:
        start = f"/{bucket}/"
        rows = [
            f"<Contents><Key>{escape(path.removeprefix(start))}</Key>"
            "<LastModified>2023-11-14T22:13:20.000Z</LastModified>"
            f"<Size>{len(content)}</Size></Contents>"
            for path, content in self._objects.items()
            if path.startswith(start + prefix)
        ]
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>false</IsTruncated><KeyCount>{len(rows)}</KeyCount>{''.join(rows)}"
            "</ListBucketResult>"
        ).encode()

    def _send(self, status: int, body: bytes, more: str = "", *, is_head: bool = False) -> None:
        changed = formatdate(_TIME, usegmt=True)
        head = (
            f'HTTP/1.1 {status} -\r\nLast-Modified: {changed}\r\nETag: "1"\r\n'
            f"{more}Content-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + (b"" if is_head else body))


async def _serve(folder: Path) -> None:
    objects = {
        f"/{path.relative_to(folder)}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(objects), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
