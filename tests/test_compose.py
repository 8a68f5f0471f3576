"""The containers, on a real Docker engine: make test-docker."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from image_search import __version__
from tests.support import ROOT
from tests.support.pinecone import API_KEY, PineconeEmulator
from tests.support.servers import find_free_port
from tests.support.waiting import wait_until
from worker.sources import open_source

pytestmark = pytest.mark.docker

LIMIT = 2000
ARCHIVE = "/import/cifar-10-binary.tar.gz"
QUERY = (ROOT / "examples" / "boat.png").read_bytes()
API, WORKER = f"image-search-api:{__version__}", f"image-search-worker:{__version__}"
CPU_WORKER = f"image-search-worker-cpu:{__version__}"
SERVICES = ("api", "worker", "gateway")


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def inspect(container: str) -> Any:
    return json.loads(docker("inspect", container))[0]


def crash(container: str) -> None:
    """What nobody asked for. `docker kill` counts as the wish to have the container down."""
    os.kill(inspect(container)["State"]["Pid"], signal.SIGKILL)


class Deployment:
    """The compose file under a project name of its own, with CIFAR-10 mounted as local data."""

    def __init__(self, folder: Path, archive: Path) -> None:
        self.port = find_free_port()
        self.name = f"image-search-test-{os.getpid()}"
        self._env = folder / "env"
        self._env.touch()
        self._override = folder / "override.yml"
        worker = {
            "command": ["ingest", ARCHIVE, "--limit", str(LIMIT)],
            "volumes": [f"{archive}:{ARCHIVE}:ro"],
        }
        self._override.write_text(yaml.safe_dump({"services": {"worker": worker}}))
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        self._program = ["docker-compose"] if plugin.returncode else ["docker", "compose"]

    def compose(self, *arguments: str) -> str:
        files = ["-f", "docker-compose.yml", "-f", str(self._override)]
        done = subprocess.run(
            [*self._program, "--env-file", str(self._env), *files, "-p", self.name, *arguments],
            cwd=ROOT,
            env={**os.environ, "IMAGE_SEARCH_PORT": str(self.port)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def configure(self, **variables: str) -> None:
        """Write these to .env."""
        self._env.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))

    def containers(self, service: str) -> list[str]:
        labels = {"project": self.name, "service": service}
        filters = [f"--filter=label=com.docker.compose.{key}={labels[key]}" for key in labels]
        return docker("ps", "--all", "--quiet", *filters).split()

    def container(self, service: str) -> str:
        [container] = self.containers(service)
        return container

    def health(self) -> tuple[int, Any]:
        try:
            response = httpx2.get(f"http://127.0.0.1:{self.port}/health", timeout=10)
        except httpx2.TransportError:
            return 0, {}
        return response.status_code, response.json()

    def count(self) -> int:
        status, answer = self.health()
        return int(answer["count"]) if status == 200 else 0

    def search(self) -> httpx2.Response:
        url = f"http://127.0.0.1:{self.port}/search"
        return httpx2.post(url, files={"image": QUERY}, timeout=30)

    def ids(self) -> set[str]:
        program = (
            "from image_search.settings import load_settings\n"
            "from image_search.stores import open_index\n"
            "print(*open_index(load_settings()).list_ids(limit=10**6).ids)"
        )
        return set(docker("exec", self.containers("api")[0], "python", "-c", program).split())

    def wait_for_worker(self) -> str:
        """Until it has ended; returns its log."""
        worker = self.container("worker")
        wait_until(lambda: inspect(worker)["State"]["Status"] == "exited")
        log = self.compose("logs", "--no-color", "worker")
        assert inspect(worker)["State"]["ExitCode"] == 0, log
        assert "Traceback" not in log
        return log


@pytest.fixture(scope="module")
def deployment(
    cifar10_archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.skip("no Docker engine is running")
    deployment = Deployment(tmp_path_factory.mktemp("compose"), cifar10_archive)
    deployment.compose("-f", "docker-compose.cpu.yml", "build", "worker")
    deployment.compose("build")
    yield deployment
    deployment.compose("down", "--volumes")


@pytest.fixture
def empty(deployment: Deployment) -> Deployment:
    deployment.configure()
    deployment.compose("down", "--volumes")
    return deployment


@pytest.fixture
def serving(deployment: Deployment) -> Deployment:
    deployment.configure()
    deployment.compose("up", "--detach", "--scale", "api=1", "api", "gateway")
    if not deployment.containers("worker"):
        deployment.compose("up", "--detach", "worker")
        deployment.wait_for_worker()
    wait_until(lambda: deployment.count() == LIMIT)
    return deployment


@pytest.fixture(scope="module")
def expected_ids(cifar10_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    source = open_source(str(cifar10_archive), data_dir=tmp_path_factory.mktemp("d"))
    return {item.id for item in source.limited(LIMIT).items()}


class Clients:
    """Four clients that search one image after another, in threads, until the block ends."""

    def __init__(self, deployment: Deployment) -> None:
        self.statuses: list[int] = []
        self._deployment = deployment
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.statuses.append(self._deployment.search().status_code)
            except httpx2.TransportError:
                self.statuses.append(0)

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.statuses) >= 8)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_up_ingests_and_serves_without_a_restart(empty: Deployment, expected_ids: set[str]) -> None:
    empty.compose("up", "--detach", "--no-deps", "api", "gateway")
    wait_until(lambda: empty.health()[1].get("code") == "no_index")
    response = empty.search()
    assert (response.status_code, response.json()["code"]) == (503, "no_index")
    assert "retry-after" in response.headers
    api = empty.container("api")
    empty.compose("up", "--detach")
    log = empty.wait_for_worker()
    assert f"{LIMIT:,} images embedded" in log
    # On a machine without a GPU, that is.
    assert log.count("no GPU found") == 1
    assert "cuInit" not in log
    wait_until(lambda: empty.count() == LIMIT)
    matches = empty.search().json()["matches"]
    assert len(matches) == 10
    assert all(match["thumbnail"].startswith("data:image/jpeg;base64,") for match in matches)
    assert empty.container("api") == api
    assert inspect(api)["RestartCount"] == 0
    assert empty.ids() == expected_ids


def test_a_second_up_finds_the_index_done(serving: Deployment) -> None:
    serving.compose("up", "--detach", "--force-recreate", "--no-deps", "worker")
    log = serving.wait_for_worker()
    assert f"0 images embedded, {LIMIT:,} unchanged" in log


def test_the_volume_survives_down_and_up(serving: Deployment) -> None:
    serving.compose("down")
    serving.compose("up", "--detach", "api", "gateway")
    wait_until(lambda: serving.count() == LIMIT)
    assert len(serving.search().json()["matches"]) == 10


@pytest.mark.parametrize("service", SERVICES)
def test_containers_have_no_more_rights_than_they_need(serving: Deployment, service: str) -> None:
    container = serving.container(service)
    host = inspect(container)["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["LogConfig"]["Config"].keys() == {"max-size", "max-file"}
    image = inspect(container)["Config"]["Image"]
    arguments = ["--rm", "--read-only", "--network", "none", "--entrypoint", "sh", image, "-c"]
    program = "id -u; grep CapEff /proc/self/status; touch /x 2>/dev/null || echo read-only"
    user, capabilities, root = (
        docker("exec", container, "sh", "-c", program)
        if service != "worker"  # which has ended
        else docker("run", "--cap-drop", "ALL", *arguments, program)
    ).splitlines()
    assert int(user) > 0
    assert int(capabilities.split()[1], 16) == 0
    assert root == "read-only"


@pytest.mark.usefixtures("deployment")
@pytest.mark.parametrize("image", [API, WORKER, CPU_WORKER])
def test_images_hold_no_compiler_and_no_cache(image: str) -> None:
    program = (
        "for p in gcc cc make g++; do command -v $p; done; "
        "ls -d /root/.cache /opt/venv/bin/pip /src 2>/dev/null; true"
    )
    assert docker("run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-c", program) == ""


@pytest.mark.usefixtures("deployment")
def test_the_api_image_is_at_most_a_third_of_the_workers() -> None:
    api, worker = (inspect(image)["Size"] for image in (API, WORKER))
    assert api <= worker / 3


@pytest.mark.usefixtures("deployment")
def test_the_worker_for_cpus_adds_little_to_the_api() -> None:
    api, worker = inspect(API), inspect(CPU_WORKER)
    assert worker["Size"] < 1_000_000_000
    assert worker["Size"] - api["Size"] < 120_000_000
    # All but the last, which has what serving alone needs.
    layers = api["RootFS"]["Layers"][:-1]
    assert worker["RootFS"]["Layers"][: len(layers)] == layers


@pytest.mark.parametrize("worker", [WORKER, CPU_WORKER])
def test_without_a_network_all_start(empty: Deployment, worker: str) -> None:
    volume = f"{empty.name}-offline"
    isolated = ["--network", "none", "--read-only", "--tmpfs", "/tmp", "-v", f"{volume}:/data"]
    try:
        out = docker("run", "--rm", *isolated, worker, "ingest", "--limit", "120")
        assert "finished sample: 120 images embedded" in out
        api = docker("run", "--detach", *isolated, API)
        try:
            wait_until(lambda: inspect(api)["State"]["Health"]["Status"] == "healthy")
            assert inspect(api)["State"]["Health"]["Log"][-1]["Output"] == "ok: 120 images\n"
            program = (
                "from image_search.settings import load_settings\n"
                "from image_search.stores import open_index\n"
                "print(open_index(load_settings()).calibration is not None)"
            )
            assert docker("exec", api, "python", "-c", program) == "True"
        finally:
            docker("rm", "--force", api)
    finally:
        docker("volume", "rm", volume)


def test_an_api_container_without_an_index_is_unhealthy_and_says_why(empty: Deployment) -> None:
    empty.compose("up", "--detach", "--no-deps", "api")
    api = empty.container("api")
    wait_until(
        lambda: (
            "no_index: "
            in "".join(entry["Output"] for entry in inspect(api)["State"]["Health"]["Log"])
        )
    )
    assert inspect(api)["State"]["Health"]["Status"] != "healthy"


def test_a_stopped_api_finishes_what_is_in_flight(serving: Deployment) -> None:
    api = serving.container("api")
    with Clients(serving) as clients:
        docker("stop", api)
        state = inspect(api)["State"]
    assert state["ExitCode"] == 0
    # Nobody else was there to answer, but what had been accepted was answered.
    assert set(clients.statuses) <= {200, 502, 503}
    serving.compose("up", "--detach", "--no-deps", "api")
    wait_until(lambda: serving.count() == LIMIT)


def test_an_api_that_crashes_comes_back_by_itself(serving: Deployment) -> None:
    api = serving.container("api")
    with Clients(serving):
        crash(api)
        wait_until(lambda: inspect(api)["RestartCount"] == 1)
    wait_until(lambda: serving.search().status_code == 200)
    assert serving.container("api") == api


def test_an_api_that_is_killed_comes_back_with_the_next_up(serving: Deployment) -> None:
    with Clients(serving):
        docker("kill", serving.container("api"))
        wait_until(lambda: serving.health()[0] == 503)
        assert serving.health()[1]["code"] == "service_unavailable"
        serving.compose("up", "--detach", "--no-deps", "api")
    wait_until(lambda: serving.search().status_code == 200)


def test_of_three_apis_one_may_be_killed_and_no_request_fails(serving: Deployment) -> None:
    serving.compose("up", "--detach", "--no-deps", "--scale", "api=3", "api")
    apis = serving.containers("api")
    assert len(apis) == 3
    wait_until(lambda: all(inspect(api)["State"]["Health"]["Status"] == "healthy" for api in apis))
    with Clients(serving) as clients:
        docker("kill", apis[0])
        done = len(clients.statuses)
        wait_until(lambda: len(clients.statuses) > done + 100)
    assert set(clients.statuses) == {200}


@pytest.mark.parametrize("how", ["crash", "kill"])
def test_a_worker_that_ends_in_the_middle_goes_on_to_the_exact_set(
    empty: Deployment, expected_ids: set[str], how: str
) -> None:
    # A recipe is fitted to all of these, and then they need only be committed.
    empty.configure(IMAGE_SEARCH_RECIPE="none")
    empty.compose("up", "--detach")
    worker = empty.container("worker")
    wait_until(lambda: empty.count() > 0)
    if how == "crash":
        crash(worker)
        wait_until(lambda: inspect(worker)["RestartCount"] == 1)
    else:
        docker("kill", worker)
        assert empty.count() < LIMIT
        empty.compose("up", "--detach")
    log = empty.wait_for_worker()
    assert f"{LIMIT:,} images embedded" not in log
    wait_until(lambda: empty.count() == LIMIT)
    assert empty.ids() == expected_ids


def test_two_lines_of_env_switch_to_pinecone(empty: Deployment, expected_ids: set[str]) -> None:
    empty.compose("up", "--no-start")
    network = json.loads(docker("network", "inspect", f"{empty.name}_default"))[0]
    with PineconeEmulator(address=network["IPAM"]["Config"][0]["Gateway"]) as pinecone:
        empty.configure(
            PINECONE_API_KEY=API_KEY,
            IMAGE_SEARCH_STORE="pinecone",
            IMAGE_SEARCH_PINECONE_HOST=pinecone.host,  # which is not pinecone.io here
        )
        empty.compose("up", "--detach")
        empty.wait_for_worker()
        assert pinecone.records("images").keys() == expected_ids
        wait_until(lambda: empty.count() == LIMIT)
        assert empty.health()[1]["store"] == "pinecone"
        assert len(empty.search().json()["matches"]) == 10
        assert all(API_KEY not in str(inspect(c)["Args"]) for c in empty.containers("api"))
        empty.compose("down", "--volumes")
