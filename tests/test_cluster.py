"""An ingest on a cluster of Ray, of which two nodes are processes on this machine."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import names
from image_search.settings import Settings, load_settings
from image_search.stores import open_index
from tests.support.images import folder_of
from tests.support.indexes import assert_same_records, count
from tests.support.processes import run, start
from tests.support.waiting import wait_until

pytest.importorskip("ray", reason="Ray is not installed")

pytestmark = pytest.mark.long

IMAGES = 4500  # three parts
PLAIN = {"IMAGE_SEARCH_RECIPE": "none", "IMAGE_SEARCH_INPUT_SIZE": "32"}


@pytest.fixture
def nodes() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster()
    try:
        cluster.add_node(num_cpus=1, include_dashboard=False)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = folder_of(tmp_path_factory.mktemp("cluster") / "pics", IMAGES)
    for label in ("label0", "label1"):
        (folder / label / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return folder


def ingest(nodes: Any, folder: Path, *arguments: str) -> Any:
    command = ("worker", "ingest", str(folder), "--on", "ray", *arguments)
    return start(*command, RAY_ADDRESS=nodes.address, **PLAIN)


def actors() -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if "ray::_Actor" in " ".join(_command(p))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_lost_actors_and_nodes_cost_their_parts_alone(
    nodes: Any, folder: Path, settings: Settings
) -> None:
    second = nodes.add_node(num_cpus=1)
    worker = ingest(nodes, folder)
    wait_until(lambda: count(settings) > 0, seconds=120)
    actors()[0].kill()
    wait_until(lambda: count(settings) > 2000, seconds=120)
    nodes.remove_node(second, allow_graceful=False)
    _, err = worker.communicate(timeout=240)
    assert worker.returncode == 3, err  # two images cannot be read
    assert "Traceback" not in err
    assert "an actor was lost" in err
    for label in ("label0", "label1"):
        assert err.count(f"skipped pics/{label}/broken.jpg") == 1

    code, _, err = run("worker", "ingest", str(folder), "--index", "one", **PLAIN)
    assert code == 3, err
    one, several = open_index(load_settings(index="one")), open_index(settings)
    assert several.count() == IMAGES
    assert_same_records(one, several)


def test_it_ends_in_order_and_goes_on(nodes: Any, folder: Path, settings: Settings) -> None:
    worker = ingest(nodes, folder)
    wait_until(lambda: count(settings) > 0, seconds=120)
    worker.send_signal(signal.SIGINT)
    out, err = worker.communicate(timeout=120)
    assert worker.returncode == 130, err
    assert f"stopped {folder}" in out
    kept = count(settings)
    assert 0 < kept < IMAGES
    worker = ingest(nodes, folder)
    out, err = worker.communicate(timeout=240)
    assert worker.returncode == 3, err
    assert f"{IMAGES - kept:,} images embedded, {kept:,} unchanged, 2 unreadable" in out
    assert count(settings) == IMAGES


def test_what_a_cluster_cannot_give_is_told_at_once(nodes: Any, folder: Path) -> None:
    import ray

    ray.init(nodes.address, log_to_driver=False)
    try:
        holder: Any = ray.remote(num_cpus=1)(_Holder)
        holder = holder.remote()
        ray.get(holder.hold.remote())
        began = time.monotonic()
        _, err = (worker := ingest(nodes, folder)).communicate(timeout=60)
        assert (worker.returncode, "0 of its 1 CPUs free" in err) == (2, True), err
        assert time.monotonic() - began < 30
    finally:
        ray.shutdown()
    _, err = (worker := ingest(nodes, folder, "--gpus-per-actor", "1")).communicate(timeout=60)
    assert (worker.returncode, "the cluster has 0 GPUs" in err) == (2, True), err


class _Holder:
    def hold(self) -> None: ...


def test_a_driver_that_lists_many_names_takes_little_memory(tmp_path: Path) -> None:
    # NAMES=1000000 is the full form.
    table = names.measure(int(os.environ.get("NAMES", "20000")), tmp_path)
    assert table.figures["driver, MiB"] < names.ASKED_MEBIBYTES


def test_wrong_usage_is_told(folder: Path) -> None:
    for arguments, message in (
        (["--on", "ray", "--shard", "0/2"], "--on cannot be combined"),
        (["--on", "ray", "--prune"], "--on cannot be combined"),
        (["--on", "spark"], "invalid choice"),
    ):
        code, _, err = run("worker", "ingest", str(folder), *arguments)
        assert (code, message in err) == (2, True), err
    code, _, err = run("worker", "ingest", str(folder), "--on", "ray", RAY_ADDRESS="127.0.0.1:9")
    assert (code, "cannot be reached" in err) == (2, True), err
