"""Several services and a worker on one Pinecone index, whose reads lag: processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from tests.support.images import folder_of, png
from tests.support.pinecone import API_KEY, PineconeEmulator
from tests.support.processes import run
from tests.support.servers import SERVICE_KEY, find_free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

IMAGES: Final = 120
LAG: Final = 0.5
# The service looks for a new index each minute; here each second.
_SERVICE: Final = """
import sys
from service import follower
from service.__main__ import main
follower._SECONDS_BETWEEN_CHECKS["pinecone"] = 1.0
sys.exit(main())
"""
_SECONDS: Final = 120
_WRITER: Final = {"X-API-Key": SERVICE_KEY}


@contextmanager
def service(client: httpx2.Client) -> Iterator[str]:
    port = find_free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVICE],
        env={
            **os.environ,
            "IMAGE_SEARCH_PORT": str(port),
            "IMAGE_SEARCH_API_KEYS": SERVICE_KEY,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: health(client, url) is not None, _SECONDS)
        yield url
    finally:
        process.kill()
        process.wait()


def health(client: httpx2.Client, url: str) -> int | None:
    try:
        return client.get(f"{url}/health").status_code
    except httpx2.TransportError:
        return None


def search(client: httpx2.Client, url: str) -> dict[str, Any]:
    answer = client.post(f"{url}/search", files={"image": png(0)})
    return answer.json() if answer.is_success else {"matches": []}


def ids(client: httpx2.Client, url: str) -> set[str]:
    answer = client.get(f"{url}/images", params={"limit": 1000})
    return {image["id"] for image in answer.json()["images"]} if answer.is_success else set()


@pytest.mark.long
def test_all_see_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "pictures", IMAGES)
    with PineconeEmulator() as emulator, ExitStack() as services:
        emulator.put_index("images")
        emulator.lag = LAG
        monkeypatch.setenv("IMAGE_SEARCH_STORE", "pinecone")
        monkeypatch.setenv("IMAGE_SEARCH_PINECONE_HOST", emulator.host)
        monkeypatch.setenv("IMAGE_SEARCH_RECIPE", "none")
        monkeypatch.setenv("PINECONE_API_KEY", API_KEY)
        client = services.enter_context(httpx2.Client(trust_env=False, timeout=30))
        urls = [services.enter_context(service(client)) for _ in range(2)]
        first, second = urls

        def all_see(what: str, is_seen: Any) -> None:
            try:
                wait_until(lambda: all(is_seen(url) for url in urls), _SECONDS)
            except AssertionError as exc:
                raise AssertionError(what) from exc

        assert [health(client, url) for url in urls] == [503, 503]
        code, _, err = run("worker", "ingest", str(folder))
        assert code == 0, err
        all_see("new index", lambda url: health(client, url) == 200)
        all_see("images", lambda url: len(ids(client, url)) == IMAGES)
        all_see(
            "calibration",
            lambda url: (
                search(client, url)["matches"][:1]
                and search(client, url)["matches"][0]["confidence"] is not None
            ),
        )

        put = client.put(f"{first}/images/put", files={"image": png(7)}, headers=_WRITER)
        assert put.status_code == 201
        all_see("put", lambda url: "put" in ids(client, url))
        client.delete(f"{second}/images/put", headers=_WRITER)
        all_see("delete", lambda url: "put" not in ids(client, url))

        for number in range(6):
            (folder / f"label{number % 3}" / f"{number:04d}.png").unlink()
        code, out, err = run("worker", "ingest", str(folder), "--prune")
        assert code == 0, err
        assert "removing 6" in out
        all_see("prune", lambda url: len(ids(client, url)) == IMAGES - 6)

        # Deleted in Pinecone's console and made anew, with another model.
        emulator.put_index("images")
        code, _, err = run("worker", "ingest", str(folder), IMAGE_SEARCH_INPUT_SIZE="64")
        assert code == 0, err
        all_see(
            "new manifest",
            lambda url: search(client, url).get("model", {}).get("input_size") == 64,
        )
        all_see("images again", lambda url: len(ids(client, url)) == IMAGES - 6)
        assert len(search(client, first)["matches"]) == len(search(client, second)["matches"]) == 10
