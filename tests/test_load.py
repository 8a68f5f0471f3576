"""The service under load: shared batches, bounds, engines that fail, and what /metrics says."""

import base64
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from image_search.decoding import Decoder, Limits
from image_search.embedding import Embedder
from image_search.filters import Condition, Filter
from image_search.index import Match
from image_search.settings import Settings, load_settings
from image_search.stores import open_index
from image_search.stores.embedded.index import EmbeddedIndex
from image_search.values import LABEL_FIELD, Embeddings, Features, Pixels
from service import admission, bodies, follower, health, pipeline
from service.admission import MAX_REQUESTS
from service.batching import Stage
from service.follower import IndexFollower
from service.metrics import Metrics
from service.pipeline import MAX_BATCH
from tests.support.costly import qoi
from tests.support.images import KINDS, PER_KIND, draw, encode
from tests.support.indexes import FakeEmbedder, fill, serve_fakes
from tests.support.servers import ServiceThread, assert_problem
from tests.support.waiting import wait_until

IMAGES = [(f"{kind}-{seed:02d}", draw(kind, seed)) for kind in KINDS for seed in range(12)]
FILES = [encode(image) for _, image in IMAGES]


class Gate:
    """Where threads stop while it is closed; `entered` are the sizes of what came to it."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self._open = threading.Event()
        self.open()

    def open(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.entered.clear()
        self._open.clear()

    def enter(self, size: int) -> None:
        self.entered.append(size)
        assert self._open.wait(60), "the gate stayed closed"


class GatedEmbedder(FakeEmbedder):
    """A fake with gates in decoding and before embedding; it raises `error` if there is one."""

    def __init__(self, gates: "dict[str, Gate]") -> None:
        super().__init__()
        self.gates = gates
        self.error: BaseException | None = None
        self.zeros: Pixels | None = None

    def pixels(self, image: Image.Image) -> Pixels:
        self.gates["decode"].enter(1)
        return super().pixels(image)

    def embed_with_textures(self, batch: Sequence[Pixels] | Pixels) -> tuple[Embeddings, Features]:
        self.gates["embed"].enter(len(batch))
        if self.error:
            raise self.error
        embeddings, textures = super().embed_with_textures(batch)
        for pixels, embedding in zip(batch, embeddings, strict=True):
            if self.zeros is not None and np.array_equal(pixels, self.zeros):
                embedding[:] = 0
        return embeddings, textures


class Server:
    """A real server in a thread, its gates, and the embedders that it made.

    The next `bad_loads` embedders fail.
    """

    def __init__(self, settings: Settings) -> None:
        self.gates = {name: Gate() for name in ("load", "decode", "embed", "query")}
        self.embedders: list[GatedEmbedder] = []
        self.bad_loads = 0
        self.others = set(threading.enumerate())
        self._pool = ThreadPoolExecutor(MAX_REQUESTS + 2)
        self.service = ServiceThread(settings, backlog=MAX_REQUESTS + 2)
        self.client = httpx2.Client(
            base_url=self.service.url,
            timeout=60,
            limits=httpx2.Limits(max_connections=MAX_REQUESTS + 2),
        )

    def close(self) -> None:
        for gate in self.gates.values():
            gate.open()
        self.service.terminate()
        self._pool.shutdown()
        self.client.close()
        self.service.close()

    def embedder(self, *_: object) -> GatedEmbedder:
        self.gates["load"].enter(1)
        new = GatedEmbedder(self.gates)
        if self.bad_loads:
            self.bad_loads -= 1
            new.error = RuntimeError("boom")
        self.embedders.append(new)
        return new

    def search(self, number: int, **parameters: Any) -> Any:
        """Search for one of IMAGES."""
        files = {"image": ("q", FILES[number], "image/png")}
        return self.client.post("/search", files=files, params={"thumbnails": False, **parameters})

    def begin(self, number: int, **parameters: Any) -> "Future[Any]":
        """Search in another thread."""
        return self._pool.submit(self.search, number, **parameters)

    def send(self, number: int, *, cut: int = 0) -> socket.socket:
        """Send a search, without its last `cut` bytes, and read no answer."""
        request = self.client.build_request("POST", "/search", files={"image": FILES[number]})
        body = request.read()
        lines = [f"{name}: {value}" for name, value in request.headers.items()]
        head = "\r\n".join(["POST /search HTTP/1.1", *lines, "", ""]).encode()
        connection = socket.create_connection(self.service.address, timeout=60)
        connection.sendall(head + body[: len(body) - cut])
        return connection

    def health(self) -> tuple[int, str | None]:
        response = self.client.get("/health")
        return response.status_code, response.json().get("code")

    def metrics(self) -> dict[str, float]:
        """Samples by name and the labels' values."""
        return samples(self.client.get("/metrics").text)

    def until_queued(self, depth: int) -> None:
        """Wait until so many searches wait for the engine."""
        wait_until(lambda: self.metrics()["image_search_queue_depth"] == depth)

    def until_entered(self, gate: str, number: int) -> None:
        """Wait until so many images have come to a gate."""
        wait_until(lambda: sum(self.gates[gate].entered) == number)


def samples(text: str) -> dict[str, float]:
    return {
        " ".join([sample_.name, *sample_.labels.values()]): sample_.value
        for family in text_string_to_metric_families(text)
        for sample_ in family.samples
    }


@contextmanager
def serving(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(settings)
    query_many = EmbeddedIndex.query_many

    def gated(
        self: EmbeddedIndex,
        embeddings: Embeddings,
        top_k: int,
        filter_: Filter | None,
        **options: Any,
    ) -> list[list[Match]]:
        server.gates["query"].enter(len(embeddings))
        return query_many(self, embeddings, top_k, filter_, **options)

    monkeypatch.setattr(EmbeddedIndex, "query_many", gated)
    serve_fakes(monkeypatch, server.embedder)
    server.service.start()
    try:
        wait_until(lambda: server.health() == (200, None))
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def fake_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = load_settings(data_dir=tmp_path_factory.mktemp("load"))
    fill(settings, FakeEmbedder())
    return settings


@pytest.fixture
def server(fake_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(fake_settings, monkeypatch) as server:
        yield server


def best(response: Any) -> str:
    assert response.status_code == 200, response.text
    match = response.json()["matches"][0]
    assert match["score"] == pytest.approx(1, abs=1e-3)
    return str(match["id"])


def block_engine(server: Server) -> "Future[Any]":
    """Let the engine be busy with one search."""
    server.gates["embed"].close()
    blocker = server.begin(0)
    server.until_entered("embed", 1)
    return blocker


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_waits_shares_a_batch_and_each_gets_its_own_answer(server: Server) -> None:
    answers = [block_engine(server), *(server.begin(number) for number in range(1, 11))]
    server.until_queued(10)
    server.gates["embed"].open()
    assert [best(answer.result()) for answer in answers] == [id_ for id_, _ in IMAGES[:11]]
    assert server.gates["embed"].entered == [1, 10]


@pytest.mark.slow
def test_a_search_that_comes_alone_waits_for_no_other(server: Server) -> None:
    server.gates["embed"].entered.clear()
    for number in range(3):
        assert best(server.search(number)) == IMAGES[number][0]
    assert server.gates["embed"].entered == [1, 1, 1]


@pytest.mark.slow
def test_batches_are_bounded(server: Server) -> None:
    answers = [block_engine(server), *(server.begin(number) for number in range(1, 43))]
    server.until_queued(42)
    server.gates["embed"].open()
    assert [best(answer.result()) for answer in answers] == [id_ for id_, _ in IMAGES[:43]]
    assert server.gates["embed"].entered == [1, MAX_BATCH, 42 - MAX_BATCH]


@pytest.mark.slow
def test_the_real_network_answers_each_its_own(
    embedder: Embedder, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings, embedder)
    server = Server(settings)
    serve_fakes(monkeypatch, lambda *_: embedder)
    server.service.start()
    try:
        wait_until(lambda: server.health() == (200, None))
        answers = [server.begin(number) for number in range(len(IMAGES))]
        assert [best(answer.result()) for answer in answers] == [id_ for id_, _ in IMAGES]
        # Some have shared a batch.
        assert server.metrics()["image_search_batch_size_count"] < len(IMAGES)
    finally:
        server.close()


@pytest.mark.slow
def test_queries_that_ask_alike_share_a_call(server: Server, fake_settings: Settings) -> None:
    asked: list[tuple[int, dict[str, Any]]] = [
        (1, {"top_k": 3}),
        (2, {"top_k": 5}),
        (3, {"top_k": 3}),
        (4, {"top_k": 20, "label": [KINDS[1], KINDS[2]]}),
        (5, {"top_k": 20, "label": [KINDS[1], KINDS[2]]}),
        (6, {"top_k": 20, "label": [KINDS[3]]}),
    ]
    blocker = block_engine(server)
    server.gates["query"].entered.clear()
    answers = []
    for depth, (number, parameters) in enumerate(asked):
        answers.append(server.begin(number, **parameters))
        server.until_queued(depth + 1)
    server.gates["embed"].open()
    blocker.result()
    responses = [answer.result() for answer in answers]
    # The blocker, and then three pairs and singles.
    assert Counter(server.gates["query"].entered) == Counter([1, 2, 1, 2, 1])
    index = open_index(fake_settings)
    for (number, parameters), response in zip(asked, responses, strict=True):
        embedder = FakeEmbedder()
        [embedding] = embedder.embed([embedder.pixels(IMAGES[number][1])])
        labels = parameters.get("label")
        expected = index.query(
            embedding,
            parameters["top_k"],
            Condition(LABEL_FIELD, "$in", tuple(labels)) if labels else None,
        )
        matches = response.json()["matches"]
        assert [match["id"] for match in matches] == [match.id for match in expected]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "parameters"),
    [
        pytest.param(0, {}, id="on disk"),
        pytest.param(None, {"label": [KINDS[0]]}, id="with a filter"),
        pytest.param(None, {"deduplicate": True}, id="without duplicates"),
    ],
)
def test_queries_that_may_take_long_keep_no_picture_from_being_decoded(
    fake_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    memory: int | None,
    parameters: dict[str, Any],
) -> None:
    settings = fake_settings
    if memory is not None:
        settings = settings.model_copy(update={"index_memory": memory})
    with serving(settings, monkeypatch) as server:
        assert best(server.search(0)) == IMAGES[0][0]
        server.gates["query"].close()
        slow = server.begin(0, **parameters)
        server.until_entered("query", 1)
        server.gates["decode"].close()
        answers = []
        for number in range(STAGES["decode"]):
            answers.append(server.begin(number))
            server.until_entered("decode", number + 1)
        server.gates["decode"].open()
        server.gates["query"].open()
        assert slow.result().status_code == 200
        assert [best(answer.result()) for answer in answers] == [id_ for id_, _ in IMAGES[:2]]


@pytest.mark.slow
def test_one_bad_image_fails_alone(server: Server) -> None:
    [embedder] = server.embedders
    embedder.zeros = embedder.pixels(IMAGES[5][1])
    answers = [block_engine(server), *(server.begin(number) for number in range(1, 11))]
    bad = server.client.post("/search", files={"image": b"no picture"})
    assert_problem(bad, 422, "not_an_image")
    server.until_queued(10)
    server.gates["embed"].open()
    responses = [answer.result() for answer in answers]
    assert_problem(responses.pop(5), 422, "invalid_parameters")
    assert all(response.status_code == 200 for response in responses)


@pytest.mark.slow
def test_the_time_in_the_queue_is_told(server: Server) -> None:
    blocker, answer = block_engine(server), server.begin(1)
    server.until_queued(1)
    started = time.perf_counter()
    time.sleep(0.05)
    held = 1000 * (time.perf_counter() - started)
    server.gates["embed"].open()
    assert blocker.result().json()["took_ms"]["embed"] >= held
    took = answer.result().json()["took_ms"]
    assert took["queue"] >= held
    assert 2 * took["total"] == pytest.approx(sum(took.values()), abs=0.03)


# --- too much ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_beyond_the_bound_searches_are_refused_at_once_and_the_rest_succeed(server: Server) -> None:
    block = block_engine(server)
    answers = [block, *(server.begin(n % len(FILES)) for n in range(1, MAX_REQUESTS))]
    server.until_queued(MAX_REQUESTS - 1)
    for _ in range(2):  # twice on one connection: the refused body is read away
        response = server.client.post("/search", files={"image": bytes(1_000_000)})
        assert_problem(response, 503, "overloaded")
        assert response.headers["Retry-After"] == "1"
    with socket.create_connection(server.service.address, timeout=60) as connection:
        connection.sendall(
            b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\nExpect: 100-continue\r\n\r\n"
        )
        # No "100 Continue" comes before: the body is not asked for.
        assert connection.recv(65536).startswith(b"HTTP/1.1 503 ")
    assert server.health() == (200, None)
    assert server.metrics()["image_search_rejections_total overloaded"] == 3
    server.gates["embed"].open()
    assert [best(answer.result()) for answer in answers] == [
        IMAGES[n % len(FILES)][0] for n in range(MAX_REQUESTS)
    ]
    assert best(server.search(7)) == IMAGES[7][0]


# Where the threads of a stage are all busy, and how many those are.
STAGES = {"decode": 2, "embed": 1, "query": 2}


@contextmanager
def busy(server: Server, stage: str) -> Iterator[None]:
    """All threads of a stage are busy within it; the searches succeed."""
    server.gates[stage].close()
    blockers = []
    for number in range(STAGES[stage]):
        blockers.append(server.begin(number))
        server.until_entered(stage, number + 1)
    yield
    server.gates[stage].open()
    assert [best(blocker.result()) for blocker in blockers] == [
        id_ for id_, _ in IMAGES[: STAGES[stage]]
    ]
    assert best(server.search(9)) == IMAGES[9][0]  # all that was before it is done
    assert sum(server.gates[stage].entered) == STAGES[stage] + 1, "it cost something"


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each search that comes to a stage."""
    put, put_or_do, seen = Stage.put, Stage.put_or_do, list[int]()

    def counted(self: Stage[Any], jobs: Sequence[Any]) -> None:
        put(self, jobs)
        seen.extend([0] * len(jobs))

    def counted_one(self: Stage[Any], job: Any, work: Callable[[list[Any]], Any]) -> Any:
        result = put_or_do(self, job, work)
        seen.append(0)
        return result

    monkeypatch.setattr(Stage, "put", counted)
    monkeypatch.setattr(Stage, "put_or_do", counted_one)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_has_gone_costs_nothing_more(
    server: Server, stage: str, puts: list[int]
) -> None:
    with busy(server, stage):
        before = len(puts)
        connection = server.send(20)
        wait_until(lambda: len(puts) == before + list(STAGES).index(stage) + 1)
        connection.close()
        wait_until(lambda: server.metrics()["image_search_rejections_total disconnected"] == 1)
    assert server.metrics()["image_search_requests_total /search 499"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_what_waits_too_long_is_answered_and_costs_nothing_more(
    server: Server, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with busy(server, stage):
        with monkeypatch.context() as patch:
            patch.setattr(admission, "DEADLINE_SECONDS", 0.3)
            response = server.search(20)
        assert_problem(response, 503, "deadline_exceeded")
        assert response.headers["Retry-After"]
    assert server.metrics()["image_search_rejections_total deadline_exceeded"] == 1


@pytest.mark.slow
def test_uploads_that_do_not_end_give_their_place_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "DEADLINE_SECONDS", 0.3)
    with ExitStack() as stack:
        connections = [stack.enter_context(server.send(0, cut=1)) for _ in range(MAX_REQUESTS)]
        for connection in connections:
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"deadline_exceeded" in answer
    monkeypatch.setattr(admission, "DEADLINE_SECONDS", 60)
    with server.send(0, cut=1):
        pass
    wait_until(lambda: server.metrics()["image_search_rejections_total disconnected"] == 1)
    assert best(server.search(0)) == IMAGES[0][0]


@pytest.mark.slow
def test_a_slow_body_gives_its_place_to_one_that_comes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "DEADLINE_SECONDS", 60)
    monkeypatch.setattr(admission, "_GRACE_SECONDS", 0)
    monkeypatch.setattr(admission, "MAX_READING", MAX_REQUESTS)
    with ExitStack() as stack:
        slowest = stack.enter_context(server.send(0, cut=len(FILES[0])))
        slow = [stack.enter_context(server.send(0, cut=1)) for _ in range(MAX_REQUESTS - 1)]
        # All places are taken, and no body came as slowly as the first.
        wait_until(lambda: best_of(server) == IMAGES[0][0] and overloaded(server) == 1)
        answer = b""
        while not answer.endswith(b"}"):
            answer += slowest.recv(65536)
        assert b"overloaded" in answer
        assert b"too slowly" in answer
        assert best_of(server) == IMAGES[0][0]
        for connection in slow:
            connection.settimeout(0)
        silent = 0
        for connection in slow:
            try:
                connection.recv(1)
            except BlockingIOError:
                silent += 1
        assert silent >= MAX_REQUESTS - 2


@pytest.mark.slow
def test_bodies_that_are_being_read_take_no_place_of_searches(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many come anew all the time, so that none of them can be called slow."""
    monkeypatch.setattr(admission, "DEADLINE_SECONDS", 60)
    monkeypatch.setattr(admission, "_GRACE_SECONDS", 60)
    with ExitStack() as stack:
        for _ in range(MAX_REQUESTS + 1):
            stack.enter_context(server.send(0, cut=1))
        for number in range(3):
            assert best(server.search(number)) == IMAGES[number][0]
    assert overloaded(server) == 0


def best_of(server: Server) -> str | None:
    response = server.search(0)
    return best(response) if response.status_code == 200 else None


@pytest.mark.slow
def test_large_bodies_have_a_budget_and_small_ones_go_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "DEADLINE_SECONDS", 60)
    monkeypatch.setattr(admission, "MAX_LARGE_BYTES", 5_000_000)
    monkeypatch.setattr(admission, "_GRACE_SECONDS", 0)
    large = FILES[0] + bytes(3_000_000)

    def send(cut: int) -> socket.socket:
        request = server.client.build_request("POST", "/search", files={"image": large})
        body = request.read()
        lines = [f"{name}: {value}" for name, value in request.headers.items()]
        head = "\r\n".join(["POST /search HTTP/1.1", *lines, "", ""]).encode()
        connection = socket.create_connection(server.service.address, timeout=60)
        connection.sendall(head + body[: len(body) - cut])
        return connection

    with send(1) as first, send(1) as second, send(1) as third:
        wait_until(lambda: overloaded(server) == 1)
        assert best_of(server) == IMAGES[0][0]
        answers = []
        for connection in (first, second, third):
            connection.settimeout(0.2)
            try:
                answers.append(connection.recv(65536))
            except TimeoutError:
                answers.append(b"")
        assert sum(b"overloaded" in answer for answer in answers) == 1
    response = server.client.post("/search", files={"image": large})
    assert best(response) == IMAGES[0][0]


@pytest.mark.slow
def test_large_json_is_parsed_one_after_another(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes several times its memory."""
    at_once, most = [0], [0]
    parsed = bodies._parsed

    def counted(content: list[bytes]) -> Any:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.05)  # for others to come
        at_once[0] -= 1
        return parsed(content)

    monkeypatch.setattr(bodies, "_parsed", counted)
    large = base64.b64encode(FILES[0] + bytes(1_000_000)).decode()
    with ThreadPoolExecutor(6) as pool:
        for answer in pool.map(
            lambda _: server.client.post("/query", json={"image": large}), "a" * 6
        ):
            assert best(answer) == IMAGES[0][0]
    assert most == [1]


def overloaded(server: Server) -> float:
    return server.metrics()["image_search_rejections_total overloaded"]


@pytest.mark.slow
def test_what_is_in_flight_is_finished_when_the_service_stops(server: Server) -> None:
    answers = [block_engine(server), server.begin(1)]
    server.until_queued(1)
    server.service.terminate()

    def refused() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(server.service.address) != 0

    wait_until(refused)
    server.gates["embed"].open()
    assert [best(answer.result()) for answer in answers] == [id_ for id_, _ in IMAGES[:2]]
    server.service.join()
    ended = {"decode", "engine", "query"}
    left = set(threading.enumerate()) - server.others
    assert not ended & {thread.name for thread in left}


# --- images that cost much -----------------------------------------------------------------------


@pytest.fixture
def tight_server(fake_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    limits = Limits(cpu_seconds=1, wall_seconds=60)
    monkeypatch.setattr(pipeline, "Decoder", partial(Decoder, limits=limits))
    monkeypatch.setattr(admission, "DEADLINE_SECONDS", 60)
    with serving(fake_settings, monkeypatch) as server:
        yield server


def post(server: Server, content: bytes) -> Any:
    return server.client.post("/search", files={"image": content})


@pytest.mark.long
def test_searches_go_on_beside_images_that_cost_much(tight_server: Server) -> None:
    with ThreadPoolExecutor(6) as pool:
        costly = [pool.submit(post, tight_server, qoi(2000)) for _ in range(6)]
        wait_until(lambda: bool(decoding_processes()))
        done = 0
        while not all(answer.done() for answer in costly):
            assert best(tight_server.search(done % len(FILES))) == IMAGES[done % len(FILES)][0]
            done += 1
    for answer in costly:
        assert_problem(answer.result(), 422, "image_too_costly")
    assert done > 6


@pytest.mark.slow
def test_an_image_that_costs_much_does_not_keep_the_service_from_stopping(
    fake_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = decoding_processes()
    limits = Limits(cpu_seconds=600, wall_seconds=600)
    monkeypatch.setattr(pipeline, "Decoder", partial(Decoder, limits=limits))
    monkeypatch.setattr(admission, "DEADLINE_SECONDS", 0.5)
    with serving(fake_settings, monkeypatch) as server:
        # Its client is told, and it is still being decoded.
        assert_problem(post(server, qoi(2200)), 503, "deadline_exceeded")
        assert decoding_processes() - others
        server.service.terminate()
        server.service.join()
        assert not decoding_processes() - others


def decoding_processes() -> set[psutil.Process]:
    return set(psutil.Process().children())


# --- engines that fail ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit("boom")])
def test_an_engine_that_fails_is_told_and_recovers(
    server: Server, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [block_engine(server), server.begin(1), server.begin(2)]
    server.until_queued(2)
    server.gates["load"].close()
    server.embedders[0].error = error
    server.gates["embed"].open()
    for answer in answers:
        response = answer.result()
        assert_problem(response, 503, "engine_failed")
        assert response.headers["Retry-After"]
        assert "boom" not in response.text
    assert server.health() == (503, "engine_failed")
    assert_problem(server.search(3), 503, "engine_failed")
    assert any(record.exc_info for record in caplog.records)
    server.bad_loads = 1
    server.gates["load"].open()
    wait_until(lambda: len(server.embedders) == 2)
    while (health := server.health()) != (200, None):
        assert health == (503, "engine_failed")
    assert len(server.embedders) == 3
    assert best(server.search(3)) == IMAGES[3][0]
    assert server.metrics()["image_search_rejections_total engine_failed"] == 4
    assert server.embedders[-1].embedded == 2, "once to warm up"


@pytest.mark.slow
def test_health_sees_a_thread_that_has_ended_without_a_word(
    fake_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IndexFollower, "_engine_failed", lambda *_: None)
    monkeypatch.setattr(follower, "_SECONDS_BETWEEN_CHECKS", {"embedded": 2.0})
    with serving(fake_settings, monkeypatch) as server:
        [embedder] = server.embedders
        embedder.error = SystemExit("boom")
        assert_problem(server.search(0), 503, "engine_failed")
        assert server.health() == (503, "engine_failed")
        embedder.error = None
        wait_until(lambda: server.health() == (200, None))
        assert best(server.search(0)) == IMAGES[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["decode", "embed", "query"])
def test_health_sees_a_stage_that_no_search_gets_through(
    server: Server, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with busy(server, stage):
        if stage != "query":
            assert server.health() == (200, None), "busy is not stuck"
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "_SECONDS_UNTIL_STUCK", 0.0)
            assert server.health() == (503, "deadline_exceeded")
    wait_until(lambda: server.health() == (200, None))


@pytest.mark.slow
def test_health_does_not_wait_for_ever(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_SECONDS_TO_ANSWER", 0.2)
    monkeypatch.setattr(health, "_SECONDS_OF_CACHE", {"embedded": -1.0})
    server.gates["query"].close()
    assert server.health() == (503, "deadline_exceeded")
    # The thread that waits is the only one.
    assert server.health() == (503, "deadline_exceeded")
    assert sum(thread.name == "health" for thread in threading.enumerate()) == 1
    server.gates["query"].open()
    wait_until(lambda: server.health() == (200, None))


def test_the_pauses_between_restarts_grow(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    failing = IndexFollower(settings, Metrics())

    def pause() -> float:
        failing._count_failure()
        return failing._restart_at - now

    assert [pause() for _ in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    now += 121
    assert [pause() for _ in range(2)] == [0, 1]


def test_a_stage_goes_on_after_an_error_and_can_be_started_again_after_an_end() -> None:
    errors: dict[str, BaseException] = {"error": ValueError(), "end": SystemExit()}
    done: list[tuple[list[str], BaseException | None]] = []
    alive: list[bool] = []

    def work(jobs: list[str]) -> None:
        if jobs[0] in errors:
            raise errors[jobs[0]]
        done.append((jobs, None))

    def fail(jobs: list[str], error: BaseException) -> None:
        alive.append(stage.alive)
        done.append((jobs, error))

    stage = Stage("test", work, fail, threads=1, max_batch=2)
    stage.put(["a", "b", "c"])
    assert (stage.alive, len(stage)) == (False, 3)
    stage.start()
    assert stage.alive
    wait_until(lambda: len(done) == 2)
    stage.put(["error"])
    wait_until(lambda: len(done) == 3)
    assert stage.alive
    stage.put(["end"])
    wait_until(lambda: len(done) == 4)
    assert not stage.alive
    stage.put(["d"])
    stage.start()
    stage.close()  # does what still waits
    assert done == [
        (["a", "b"], None),
        (["c"], None),
        (["error"], errors["error"]),
        (["end"], errors["end"]),
        (["d"], None),
    ]
    assert alive == [True, False], "whoever is told can start another at once"


# --- metrics -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_metrics_count_what_was_done(server: Server) -> None:
    for number in range(3):
        assert server.search(number).status_code == 200
    assert server.client.post("/search", files={"image": b"no picture"}).status_code == 422
    assert server.client.get("/nothing").status_code == 404
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    metrics = samples(response.text)
    assert metrics["image_search_requests_total /search 200"] == 3
    assert metrics["image_search_requests_total /search 422"] == 1
    assert metrics["image_search_requests_total /health 200"] >= 1
    assert not any("nothing" in name for name in metrics)
    assert metrics["image_search_requests_total other 404"] == 1
    for stage in ("decode", "queue", "embed", "search", "total"):
        assert metrics[f"image_search_stage_seconds_count {stage}"] == 3
    total = metrics["image_search_stage_seconds_sum total"]
    assert 0 < metrics["image_search_stage_seconds_sum embed"] < total < 60
    assert metrics["image_search_batch_size_count"] == 3
    assert metrics["image_search_batch_size_sum"] == 3
    assert metrics["image_search_batch_size_bucket 1.0"] == 3
    assert metrics["image_search_queue_depth"] == 0
    assert metrics["image_search_index_images"] == len(KINDS) * PER_KIND
    for reason in ("overloaded", "deadline_exceeded", "disconnected", "engine_failed"):
        assert metrics[f"image_search_rejections_total {reason}"] == 0
    if Path("/proc").exists():
        assert metrics["process_resident_memory_bytes"] > 0


@pytest.mark.slow
def test_applications_do_not_share_their_numbers(server: Server, tmp_path: Path) -> None:
    server.search(0)
    other = Server(load_settings(data_dir=tmp_path))
    other.service.start()
    try:
        wait_until(lambda: other.health() == (503, "no_index"))
        assert_problem(other.search(0), 503, "no_index")
        metrics = other.metrics()
    finally:
        other.close()
    assert "image_search_requests_total /search 200" not in metrics
    assert metrics["image_search_requests_total /search 503"] == 1
    assert metrics["image_search_rejections_total no_index"] == 1
    assert metrics["image_search_batch_size_count"] == 0
    assert math.isnan(metrics["image_search_index_images"])
    assert server.metrics()["image_search_requests_total /search 200"] == 1


@pytest.mark.slow
def test_metrics_are_documented_as_text(server: Server) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    assert list(paths["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
