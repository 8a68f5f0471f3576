"""What tests share: settings without an outside, a fake embedder, servers, real images."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import numpy as np
import pytest
import uvicorn
from pydantic import SecretStr

from image_search.embedding import Embedder
from image_search.manifest import Manifest, ModelSpec
from image_search.settings import ENV_PREFIX, Settings, load_settings
from image_search.stores import create_index
from image_search.values import DIMENSION, Embeddings, Pixels
from service.app import create_app
from worker.ingest import ingest
from worker.sources import Item, Source, sample

ROOT = Path(__file__).resolve().parent.parent
# Real CIFAR-10 and the original of the bundled weights; tests that need them skip without.
SHARED = ROOT.parent / "shared"
# A real HOME may hold the ImageNet weights, and a proxy a way out: tests use neither.
UNREACHABLE_PROXY = "http://127.0.0.1:9"
SERVICE_KEY = "key of the tests"


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("IMAGE_SEARCH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, UNREACHABLE_PROXY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def settings() -> Settings:
    return load_settings()


class FakeEmbedder(Embedder):
    """Deterministic embeddings without a network: random numbers seeded by the pixels."""

    def __init__(self) -> None:
        self.model = ModelSpec(
            weights="fake",
            fingerprint="0" * 16,
            input_size=32,
            preprocessing=1,
            precision="float32",
        )
        self._min_side = 96
        self.embedded = 0

    def embed(self, batch: Sequence[Pixels] | Pixels) -> Embeddings:
        self.embedded += len(batch)
        seeds = [int(hashlib.sha256(image.tobytes()).hexdigest(), 16) for image in batch]
        return np.array(
            [np.random.default_rng(seed).random(DIMENSION) for seed in seeds], np.float32
        ).reshape(-1, DIMENSION)


@pytest.fixture
def fake_embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The real network with the bundled weights."""
    return Embedder("bundled", 32)


@pytest.fixture(scope="session")
def cifar10_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real CIFAR-10 in its official binary layout."""
    tool = SHARED / "tools" / "cifar10-archive"
    if not tool.exists():
        pytest.skip("real CIFAR-10 is not at hand")
    archive = tmp_path_factory.mktemp("cifar10") / "cifar-10-binary.tar.gz"
    subprocess.run([sys.executable, tool, archive], check=True, stdout=subprocess.DEVNULL)
    return archive


@pytest.fixture(scope="session")
def service_url(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running service with 64 drawn images; writing needs SERVICE_KEY."""
    settings = load_settings(
        data_dir=tmp_path_factory.mktemp("live"), api_keys=SecretStr(SERVICE_KEY)
    )
    index = create_index(settings, Manifest.new(embedder.model, "cosine", "__default__"))
    kinds = sample.KINDS[:8]
    drawn = [
        Item(f"{kind}/{seed}", kind, np.asarray(sample.draw(kind, seed)), {"seed": seed})
        for kind in kinds
        for seed in range(8)
    ]
    ingest(Source("drawn", len(drawn), lambda: iter(drawn)), index, embedder, settings)
    port = find_free_port()
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), port=port, log_level="error", ws="none")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    wait_until_healthy(url)
    yield url
    server.should_exit = True
    thread.join()


def wait_until_healthy(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx2.get(f"{url}/health", trust_env=False).is_success:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{url} does not get ready")


@pytest.fixture
def free_port() -> int:
    return find_free_port()


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
