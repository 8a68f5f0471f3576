"""What tests share: settings without an outside, a fake embedder, servers, real images."""

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from image_search.embedding import Embedder, Embeddings
from image_search.images import Pixels
from image_search.manifest import DIMENSION, ModelSpec
from image_search.settings import ENV_PREFIX, Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent
# Real CIFAR-10 and the original of the bundled weights; tests that need them skip without.
SHARED = ROOT.parent / "shared"
# A real HOME may hold the ImageNet weights, and a proxy a way out: tests use neither.
UNREACHABLE_PROXY = "http://127.0.0.1:9"


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


@pytest.fixture
def free_port() -> int:
    return find_free_port()


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
