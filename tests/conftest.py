"""Fixtures of all modules: no outside, the settings, the real network, a running service."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from pydantic import SecretStr

from image_search.embedding import Embedder
from image_search.index import VectorIndex
from image_search.manifest import Manifest
from image_search.settings import ENV_PREFIX, Settings, load_settings
from image_search.stores import create_index
from tests.support import SHARED
from tests.support.images import draw
from tests.support.indexes import FakeEmbedder, fill, source_of, use_store
from tests.support.servers import SERVICE_KEY, ServiceThread, find_free_port
from worker.sources import Item, sample

# A real HOME may hold the ImageNet weights, and a proxy a way out: tests use neither.
UNREACHABLE_PROXY = "http://127.0.0.1:9"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The real network takes seconds to load, in whichever test is the first to ask for it.
    for item in items:
        if "embedder" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("IMAGE_SEARCH_DATA_DIR", str(tmp_path / "data"))
    # A ninth of the work of what the worker would choose.
    monkeypatch.setenv("IMAGE_SEARCH_INPUT_SIZE", "32")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, UNREACHABLE_PROXY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def settings() -> Settings:
    return load_settings()


@pytest.fixture
def fake_embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture(params=["embedded", "pinecone"])
def index(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fake_embedder: FakeEmbedder
) -> Iterator[VectorIndex]:
    """An empty index, of each store in turn."""
    with use_store(request.param, monkeypatch):
        manifest = Manifest.new(fake_embedder.model, "cosine", "__default__")
        with create_index(load_settings(), manifest) as created:
            yield created


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The real network with the bundled weights."""
    return Embedder.load("bundled", 32)


@pytest.fixture(scope="session")
def cifar10_archive(request: pytest.FixtureRequest) -> Path:
    """Real CIFAR-10 in its official binary layout, made once and kept in pytest's cache."""
    tool = SHARED / "tools" / "cifar10-archive"
    if not tool.exists():
        pytest.skip("real CIFAR-10 is not at hand")
    archive = request.config.cache.mkdir("cifar10") / "cifar-10-binary.tar.gz"
    with FileLock(f"{archive}.lock"):
        if not archive.exists() or archive.stat().st_mtime < tool.stat().st_mtime:
            part = archive.with_suffix(".part")
            subprocess.run([sys.executable, tool, part], check=True, stdout=subprocess.DEVNULL)
            part.replace(archive)
    return archive


@pytest.fixture(scope="session")
def service_url(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running service with 64 drawn images; writing needs SERVICE_KEY."""
    settings = load_settings(
        data_dir=tmp_path_factory.mktemp("live"), api_keys=SecretStr(SERVICE_KEY)
    )
    drawn = [
        Item(f"{kind}/{seed}", kind, np.asarray(draw(kind, seed)), {"seed": seed})
        for kind in sample.KINDS[:8]
        for seed in range(8)
    ]
    fill(settings, embedder, source_of(lambda: iter(drawn), len(drawn)))
    with ServiceThread(settings) as service:
        service.wait_until_ready()
        yield service.url


@pytest.fixture
def free_port() -> int:
    return find_free_port()


_GOOGLE_SERVER = """
import time
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True)
server.start()
print(server._api._httpd.server_address[1], flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def google_server() -> Iterator[str]:
    """The address of a server that answers as Google Cloud Storage does, and is empty."""
    # In a process of its own: pyarrow keeps the lock of Python's threads while it waits.
    with subprocess.Popen(
        [sys.executable, "-c", _GOOGLE_SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server that is empty."""
    # Few tests need it, and it takes long to import.
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
