"""Object storage, a cluster of Ray and the service as containers: make test-docker."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support import ROOT
from tests.support.images import folder_of
from tests.support.servers import find_free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.docker

IMAGES = 40
FILES = ("-f", "docker-compose.yml", "-f", "docker-compose.cluster.yml")


class Cluster:
    """The compose files under a project name of their own, with a folder to ingest."""

    def __init__(self, folder: Path) -> None:
        self.port = find_free_port()
        self._name = f"image-search-cluster-{os.getpid()}"
        self._photos = str(folder)
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        self._program = ["docker-compose"] if plugin.returncode else ["docker", "compose"]

    def compose(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._program, *FILES, "-p", self._name, *arguments],
            cwd=ROOT,
            env={**os.environ, "IMAGE_SEARCH_PORT": str(self.port), "PHOTOS": self._photos},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def exit_code(self, service: str) -> int | None:
        """Of its container; None while it runs."""
        container = self.compose("ps", "--all", "-q", service)
        found = subprocess.run(
            ["docker", "inspect", container], capture_output=True, text=True, check=True
        )
        state = json.loads(found.stdout)[0]["State"]
        return int(state["ExitCode"]) if state["Status"] == "exited" else None

    def count(self) -> int:
        try:
            answer = httpx2.get(f"http://127.0.0.1:{self.port}/health", timeout=10)
        except httpx2.TransportError:
            return 0
        return int(answer.json()["count"]) if answer.status_code == 200 else 0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.skip("no Docker engine is running")
    running = Cluster(folder_of(tmp_path / "photos", IMAGES))
    running.compose("build")
    try:
        yield running
    finally:
        running.compose("down", "--volumes")


def test_a_cluster_ingests_from_a_bucket_into_a_bucket(cluster: Cluster, tmp_path: Path) -> None:
    cluster.compose("up", "--detach")
    wait_until(lambda: cluster.exit_code("worker") is not None, 600)
    log = cluster.compose("logs", "--no-color", "worker")
    assert cluster.exit_code("worker") == 0, log
    assert f"{IMAGES} images embedded" in log
    wait_until(lambda: cluster.count() == IMAGES)
    picture = tmp_path / "photos" / "label0" / "0000.png"
    response = httpx2.post(
        f"http://127.0.0.1:{cluster.port}/search",
        files={"image": picture.read_bytes()},
        timeout=30,
    )
    assert response.json()["matches"][0]["id"].endswith("label0/0000.png")
    program = (
        "import boto3; client = boto3.client('s3', endpoint_url='http://127.0.0.1:5000'); "
        "print(*(one['Key'] for one in client.list_objects_v2(Bucket='index')['Contents']))"
    )
    keys = cluster.compose("exec", "-T", "storage", "python", "-c", program).split()
    assert any(key.startswith("image-search/indexes/images/") for key in keys)
