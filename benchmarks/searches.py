"""Searches over HTTP: ours, the obvious way, and another commit, in turns; `wrk` is the client.

usage: python -m benchmarks.searches SOURCE [--images N] [--other FOLDER] [--data FOLDER]

The other commit is a checkout with its own environment in `.venv`. All embed at 32 pixels, or at
IMAGE_SEARCH_INPUT_SIZE, each with an index of the same images of its own; the obvious way,
`benchmarks.obvious`, reads ours.
`wrk` has one thread, on the same processors.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import psutil

from benchmarks.measure import MEBI, Table, parser
from benchmarks.serving import as_png, image_form
from worker.sources import open_source

OURS, PEER, OTHER = "ours", "the obvious way", "the other commit"
PORTS = {OURS: 8765, PEER: 8766, OTHER: 8767}
INPUT_SIZE = int(os.environ.get("IMAGE_SEARCH_INPUT_SIZE", 32))
IMAGES = 1_000
CONCURRENCIES = (1, 32)
SECONDS = {1: 5, 32: 8}  # in a turn, by clients
ROUNDS = 5
STARTS = 3
AT_ONCE = 32
SECONDS_UNTIL_READY = 300

SCRIPT = """
local folder, count = "{folder}", {count}
local requests, number = {{}}, 0
function init(arguments)
  for each = 1, count do
    local file = io.open(folder .. "/" .. each .. ".form", "rb")
    local headers = {{["Content-Type"] = "{content_type}"}}
    requests[each] = wrk.format("POST", "/search", headers, file:read("*a"))
    file:close()
  end
end
function request()
  number = number % count + 1
  return requests[number]
end
function done(summary, latency)
  local failed = summary.errors
  io.write(string.format(
    '{{"searches": %d, "failed": %d, "seconds": %f, "p50": %f, "p99": %f}}\\n', summary.requests,
    failed.connect + failed.read + failed.write + failed.status + failed.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
"""

# Prints the core-seconds that an image takes at the batch size given.
ENGINE = """
import sys, time
import numpy
from image_search.embedding import Embedder
from image_search.settings import load_settings
from image_search.stores import open_index
with open_index(load_settings()) as index:
    model, maxima = index.manifest.model, index.manifest.activation_maxima
    embedder = Embedder.load(model.weights, model.input_size, maxima, index.load_recipe())
size = model.input_size
pixels = numpy.random.default_rng(0).integers(0, 256, (int(sys.argv[1]), size, size, 3), "uint8")
embedder.embed(pixels)
for line in sys.stdin:
    images, started, cores = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < started + 2:
        embedder.embed(pixels)
        images += len(pixels)
    took = time.perf_counter() - started
    print(images / took, (time.process_time() - cores) / images, flush=True)
"""


@dataclass(frozen=True)
class Turn:
    """One server with so many clients: searches a second, seconds, core-seconds a search."""

    rate: float
    p50: float
    p99: float
    cores: float


def measure(source: str, images: int, other: Path | None, data: Path) -> list[Table]:
    """All of it; the indexes stay in the folder."""
    script = write_forms(source, data)
    with ExitStack() as running:
        all_servers = [
            Server(name, command, environ, folder)
            for name, command, environ, folder in commands(source, images, other, data)
        ]
        for _ in range(STARTS - 1):
            for server in all_servers:
                with server.running():
                    pass
        servers = {each.name: running.enter_context(each.running()) for each in all_servers}
        engine = running.enter_context(engine_process(environ_of(data / "ours")))
        turns: dict[tuple[str, int], list[Turn]] = {}
        engines: list[tuple[float, float]] = []
        order = random.Random(0)
        for clients in CONCURRENCIES:
            for name in servers:  # not counted
                turn_of(servers[name], PORTS[name], script, clients, seconds=2)
            for _ in range(ROUNDS):
                engines.append(engine_turn(engine))
                for name in order.sample(list(servers), len(servers)):
                    turn = turn_of(servers[name], PORTS[name], script, clients, SECONDS[clients])
                    turns.setdefault((name, clients), []).append(turn)
        resident = {name: memory_of(servers[name]) for name in servers}
    return [
        start_table(all_servers, resident),
        *(
            table(images, clients, {name: turns[name, clients] for name in servers}, engines)
            for clients in CONCURRENCIES
        ),
    ]


def write_forms(source: str, data: Path) -> Path:
    """The script for `wrk`, beside the bodies of requests with images of the test split."""
    folder = data / "forms"
    folder.mkdir(parents=True, exist_ok=True)
    content_type, number = "", 0
    items = open_source(source, split="test", data_dir=data).items()
    for number, item in zip(range(1, IMAGES + 1), items, strict=False):
        content = item.content
        if not isinstance(content, bytes):
            content = as_png(np.asarray(content))
        body, content_type = image_form(content)
        (folder / f"{number}.form").write_bytes(body)
    script = folder / "search.lua"
    script.write_text(SCRIPT.format(folder=folder, count=number, content_type=content_type))
    return script


def commands(
    source: str, images: int, other: Path | None, data: Path
) -> Iterator[tuple[str, list[str], dict[str, str], Path]]:
    """Name, command, environment and folder of each server; its index is made first."""
    here = Path(__file__).parents[1]
    environ = environ_of(data / "ours")
    make_index(sys.executable, source, images, environ, here)
    serve = ["-m", "service"]
    yield OURS, [sys.executable, *serve], environ, here
    port = str(PORTS[PEER])
    uvicorn = ["-m", "uvicorn", "benchmarks.obvious:app", "--port", port, "--log-level", "warning"]
    yield PEER, [sys.executable, *uvicorn, "--no-access-log"], environ, here
    if other is not None:
        python = str(other.absolute() / ".venv" / "bin" / "python")
        environ = environ_of(data / "other") | {"PYTHONPATH": str(other.absolute())}
        make_index(python, source, images, environ, other)
        yield OTHER, [python, *serve], environ, other


def environ_of(data: Path) -> dict[str, str]:
    """The environment of a process with its index in `data`."""
    others = {
        name: value for name, value in os.environ.items() if not name.startswith("IMAGE_SEARCH_")
    }
    return {
        **others,
        "IMAGE_SEARCH_DATA_DIR": str(data.absolute()),
        "IMAGE_SEARCH_INPUT_SIZE": str(INPUT_SIZE),
    }


def make_index(
    python: str, source: str, images: int, environ: Mapping[str, str], folder: Path
) -> None:
    """Ingest the first images of the source, unless the index is there."""
    data = Path(environ["IMAGE_SEARCH_DATA_DIR"])
    done = data / f"{images}.done"
    if done.exists():
        return
    named = str(Path(source).absolute()) if Path(source).exists() else source
    worker = [python, "-m", "worker", "ingest", named]
    worker += ["--limit", str(images)]
    subprocess.run(worker, env=environ, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    done.touch()


class Server:
    """A process that answers POST /search."""

    def __init__(self, name: str, command: list[str], environ: Mapping[str, str], folder: Path):
        self.name = name
        self._port = PORTS[name]
        self._command, self._folder = command, folder
        self._environ = {**environ, "IMAGE_SEARCH_PORT": str(self._port)}
        # Of each start: until it answered, and resident then.
        self.seconds: list[float] = []
        self.mebibytes: list[float] = []

    @contextmanager
    def running(self) -> Iterator[psutil.Process]:
        """It, once it answers."""
        started = time.perf_counter()
        process = subprocess.Popen(
            self._command, env=self._environ, cwd=self._folder, stderr=subprocess.DEVNULL
        )
        try:
            while not self._answers():
                if process.poll() is not None:
                    sys.exit(f"a server ended: {' '.join(self._command)}")
                if time.perf_counter() - started > SECONDS_UNTIL_READY:
                    sys.exit(f"a server does not answer: {' '.join(self._command)}")
                time.sleep(0.02)
            self.seconds.append(time.perf_counter() - started)
            self.mebibytes.append(memory_of(psutil.Process(process.pid)))
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()

    def _answers(self) -> bool:
        form, content_type = image_form(as_png(np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)))
        try:
            return httpx2.post(
                f"http://127.0.0.1:{self._port}/search",
                content=form,
                headers={"Content-Type": content_type},
            ).is_success
        except httpx2.TransportError:
            return False


@contextmanager
def engine_process(environ: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The bare engine, which measures itself for each line that it is sent."""
    command = [sys.executable, "-c", ENGINE, str(AT_ONCE)]
    with subprocess.Popen(
        command, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def engine_turn(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Images a second, and core-seconds an image."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(file=process.stdin, flush=True)
    rate, cores = process.stdout.readline().split()
    return float(rate), float(cores)


def turn_of(process: psutil.Process, port: int, script: Path, clients: int, seconds: int) -> Turn:
    """What `wrk` sees, and what it costs the server."""
    before = cpu_seconds(process)
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}", "--timeout", "10", "-s", str(script)]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}"], check=True, capture_output=True, text=True
    )
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    if figures["failed"] or not figures["searches"]:
        sys.exit(f"searches failed on port {port}: {figures}")
    cores = (cpu_seconds(process) - before) / figures["searches"]
    rate = figures["searches"] / figures["seconds"]
    return Turn(rate, figures["p50"], figures["p99"], cores)


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process and its children."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def memory_of(process: psutil.Process) -> float:
    """MiB resident, of a process and its children."""
    every = (process, *process.children(recursive=True))
    return sum(each.memory_info().rss for each in every) / MEBI


def start_table(servers: Sequence[Server], resident: Mapping[str, float]) -> Table:
    """Time to ready, and memory: medians of all starts."""
    rows, figures = [], {}
    ours = servers[0]
    for each in servers:
        seconds, mebibytes = statistics.median(each.seconds), statistics.median(each.mebibytes)
        rows.append(
            [each.name, f"{seconds:.1f}", f"{mebibytes:,.0f}", f"{resident[each.name]:,.0f}"]
        )
        figures[f"{each.name}: seconds to ready"] = seconds
        figures[f"{each.name}: MiB"] = mebibytes
        figures[f"{each.name}: MiB after all searches"] = resident[each.name]
        figures[f"seconds to ready, over {each.name}'s"] = statistics.median(ours.seconds) / seconds
        figures[f"MiB, over {each.name}'s"] = statistics.median(ours.mebibytes) / mebibytes
    header = ["", "seconds to ready", "MiB resident then", "after all searches"]
    note = f"medians of {STARTS} starts in turns"
    return Table("Start and memory", header, rows, [note], figures)


def table(
    images: int,
    clients: int,
    turns: Mapping[str, Sequence[Turn]],
    engines: Sequence[tuple[float, float]],
) -> Table:
    """Medians of the turns, and of the ratios within each round."""
    engine = statistics.median(cores for _, cores in engines)
    rows, figures = [], {}
    for name, own in turns.items():
        rate, p50, p99, cores = (
            statistics.median(getattr(turn, field) for turn in own)
            for field in ("rate", "p50", "p99", "cores")
        )
        pairs = list(zip(turns[OURS], own, strict=True))
        faster = statistics.median(mine.rate / its.rate for mine, its in pairs)
        of_p50 = statistics.median(mine.p50 / its.p50 for mine, its in pairs)
        rows.append(
            [
                name,
                f"{rate:,.0f}",
                f"{1000 * p50:.1f}",
                f"{1000 * p99:.1f}",
                f"{1000 * cores:.2f}",
                f"{cores / engine:.2f}",
                f"{faster:.2f}",
                f"{of_p50:.2f}",
            ]
        )
        figures[f"{name}: searches/s @ {clients}"] = rate
        figures[f"{name}: p50, ms @ {clients}"] = 1000 * p50
        figures[f"{name}: core-ms @ {clients}"] = 1000 * cores
        figures[f"{name}: core-ms over the engine's @ {clients}"] = cores / engine
        figures[f"rate over {name}'s @ {clients}"] = faster
        figures[f"p50 over {name}'s @ {clients}"] = of_p50
    header = ["", "searches/s", "p50 ms", "p99 ms", "core-ms a search"]
    header += ["of the engine's", "ours: times its rate", "ours: p50 over its"]
    rate = statistics.median(rate for rate, _ in engines)
    note = f"the bare engine at batch {AT_ONCE}, in turns: {rate:,.0f} images/s, "
    note += f"{1000 * engine:.2f} core-ms each"
    title = f"POST /search, clients: {clients}, images: {images:,}"
    return Table(title, header, rows, [note], figures)


def main() -> None:
    """Command line."""
    arguments: argparse.ArgumentParser = parser(__doc__)
    arguments.add_argument("--other", type=Path, metavar="FOLDER", help="a checkout with .venv")
    arguments.add_argument("--data", type=Path, metavar="FOLDER", help="keep the indexes here")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = chosen.data or Path(folder)
        for each in measure(chosen.source, chosen.images, chosen.other, data):
            print(each, flush=True)


if __name__ == "__main__":
    main()
