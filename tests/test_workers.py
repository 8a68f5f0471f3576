"""Several processes on one port: they share it, their counts, and one goes on for another."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import ROOT
from tests.support.images import folder_of
from tests.support.processes import Service, run, start
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

PICTURE = (ROOT / "examples" / "boat.png").read_bytes()
WORKERS = 2


class Workers(Service):
    """A service of several processes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        command = ("service", "--workers", str(WORKERS))
        self.process = start(*command, IMAGE_SEARCH_PORT=str(port))

    def workers(self) -> list[psutil.Process]:
        found = []
        for each in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it has ended, and nobody has waited for it yet
                if "spawn_main" in " ".join(each.cmdline()):
                    found.append(each)
        return found

    def metrics(self) -> dict[tuple[str, str], float]:
        """Values by name and label."""
        text = httpx2.get(f"{self.url}/metrics").text
        return {
            (sample.name, ",".join(sorted(sample.labels.values()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture
def service(free_port: int, tmp_path: Path) -> Iterator[Workers]:
    assert run("worker", "ingest", str(folder_of(tmp_path / "mine", 5)))[0] == 0
    running = Workers(free_port)
    try:
        wait_until(lambda: running.health() == 200)
        yield running
    finally:
        if running.process.poll() is None:
            for each in running.workers():
                each.kill()
            running.process.kill()
        running.process.communicate()


def test_workers_share_a_port_and_their_counts(service: Workers) -> None:
    searches = 20
    for _ in range(searches):
        assert len(service.search(PICTURE, top_k=3)["matches"]) == 3
    for _ in range(5):  # whichever answers
        metrics = service.metrics()
        assert metrics["image_search_requests_total", "/search,200"] == searches
        assert metrics["image_search_stage_seconds_count", "total"] == searches
        assert metrics["image_search_queue_depth", ""] == 0
        assert metrics["image_search_index_images", ""] == 5


def replaced_by_signal(service: Workers) -> None:
    service.process.send_signal(signal.SIGHUP)


def killed(service: Workers) -> None:
    service.workers()[0].kill()


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "stay", "may_fail"), [(replaced_by_signal, 0, 0), (killed, WORKERS - 1, 2)]
)
def test_searches_go_on_while_workers_are_replaced(
    service: Workers, change: Callable[[Workers], None], stay: int, may_fail: int
) -> None:
    before = {each.pid for each in service.workers()}
    answers: Counter[object] = Counter()

    def search() -> None:
        try:
            response = httpx2.post(f"{service.url}/search", files={"image": PICTURE}, timeout=30)
            answers[response.status_code] += 1
        except httpx2.TransportError as exc:  # cut off with its worker
            answers[type(exc).__name__] += 1

    def is_done() -> bool:
        search()
        now = {each.pid for each in service.workers()}
        return len(now) == WORKERS and len(now & before) == stay

    search()
    change(service)
    wait_until(is_done)
    for _ in range(10):
        search()
    failed = answers.total() - answers[200]
    assert failed <= may_fail, answers
    # What the processes that are gone have counted stays.
    counted = service.metrics()["image_search_requests_total", "/search,200"]
    assert answers[200] <= counted <= answers.total()


def test_a_signal_ends_all_in_order(service: Workers) -> None:
    workers = service.workers()
    service.process.terminate()
    _, err = service.process.communicate(timeout=60)
    assert service.process.returncode == 0
    assert "Traceback" not in err
    deadline = time.monotonic() + 30
    assert not psutil.wait_procs(workers, timeout=deadline - time.monotonic())[1]


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_wrong_number_of_workers_is_refused(count: str) -> None:
    code, _, err = run("service", "--workers", count)
    assert code == 2
    assert "--workers" in err
