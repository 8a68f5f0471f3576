"""Image files made to cost much, sent to a running service while honest clients search.

usage: python -m benchmarks.hostile_images SOURCE [--images N]

Each file is sent alone, some two at once, and all of them eight at once. It takes some minutes,
and sends a bounded number of files to the loopback only.
"""

import io
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice, pairwise

import httpx2
import numpy as np
import psutil
from PIL import Image

from benchmarks.measure import MEBI, Table, load_images, run
from image_search import images
from image_search.decoding import Decoder
from service import memory
from tests.support.costly import png, qoi, repeated_scans, strips, turned
from tests.support.images import encode
from tests.support.processes import run as run_program
from tests.support.processes import service
from tests.support.servers import find_free_port
from tests.support.waiting import wait_until

QUERIES = 100
MOST_PIXELS = 200_000_000
SIDE = 256
AT_ONCE = 8
ROUNDS = 2  # of all files, eight at once
ROUNDS_OF_PRICES = 4
SEARCHES_A_SECOND = 20
HEALTH_A_SECOND = 10
SAMPLES_A_SECOND = 100
CPU_SECONDS = 10.0
MEBI_ALONE, MEBI_OF_TWO = 512, 768


def hostile_files() -> dict[str, bytes]:
    """By name; each within the limits of an upload."""
    square = Image.new("RGBA", (8000, 8000), (200, 30, 60, 128))
    return {
        "progressive JPEG, a scan 1,000 times": repeated_scans(8000, 1000),
        "QOI of 19 MB": qoi(2200),
        "TIFF of 2.4 million strips": strips(2_400_000),
        "PNG, 64 megapixels, RGBA, turned": png(8000, 8000, (b"eXIf", turned()[6:])),
        "WebP, 64 megapixels, RGBA, turned": encode(square, "WEBP", lossless=True, exif=turned()),
        "JPEG 2000, 64 megapixels, RGBA": encode(square, "JPEG2000"),
        "AVIF, 64 megapixels, RGBA, turned": encode(square, "AVIF", speed=10, exif=turned()),
        "progressive JPEG, 64 megapixels": encode(
            square.convert("RGB"), "JPEG", progressive=True, subsampling=0
        ),
        "TIFF, 64 megapixels, LZW, turned": encode(
            square, "TIFF", compression="tiff_lzw", exif=turned()
        ),
        "WebP, 24 megapixels": encode(square.crop((0, 0, 6000, 4000)), "WEBP"),
        "JPEG, 108 megapixels": encode(Image.new("L", (12_000, 9000)), "JPEG"),
    }


def measure(source: str, count: int) -> Iterator[Table]:
    """All of it, over an index of the first `count` images of the train split."""
    queries, _ = load_images(source, "test", QUERIES)
    honest = [encode(Image.fromarray(query)) for query in queries]
    files = hostile_files()
    with tempfile.TemporaryDirectory() as folder:
        code, _, errors = run_program(
            *("worker", "ingest", source, "--limit", str(count)), IMAGE_SEARCH_DATA_DIR=folder
        )
        if code:
            sys.exit(errors)
        with service(find_free_port(), IMAGE_SEARCH_DATA_DIR=folder) as serving:
            target = Target(serving.process.pid, serving.url)
            wait_until(lambda: serving.health() == httpx2.codes.OK, 120)
            for file in honest[:20]:
                target.search(file)
            target.resident = target.process.memory_info().rss
            yield alone(target, files)
            yield two_at_once(target, files)
            yield beside_honest_clients(target, files, honest)
    # In a process as new as a service, with the same settings of memory: one that has run for long
    # has much memory at hand.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), memory.give_back) as pool:
        yield pool.submit(price).result()


def alone(target: "Target", files: dict[str, bytes]) -> Table:
    """Each file by itself."""
    rows, most_mebi, most_cpu = [], 0.0, 0.0
    for name, content in files.items():
        target.wait_until_idle()
        before = target.cpu_seconds()
        with target.peak_memory() as peak:
            answer, seconds = target.search(content)
            target.wait_until_idle()
        cpu = target.cpu_seconds() - before
        mebi = (peak.bytes - target.resident) / MEBI
        most_mebi, most_cpu = max(most_mebi, mebi), max(most_cpu, cpu)
        size = f"{len(content):,}"
        rows.append([name, size, answer, f"{seconds:.1f}", f"{cpu:.1f}", f"{mebi:.0f}"])
    return Table(
        f"Hostile images, one after another; the service holds {target.resident / MEBI:.0f} MiB",
        ["file", "bytes", "answer", "seconds", "CPU seconds", "additional MiB"],
        rows,
        [
            f"{most_cpu:.1f} CPU seconds at most (at most {CPU_SECONDS:.0f})",
            f"{most_mebi:.0f} MiB at most (at most {MEBI_ALONE})",
        ],
    )


def two_at_once(target: "Target", files: dict[str, bytes]) -> Table:
    """Each file beside itself, and beside the next."""
    names = [name for name in files if "64 megapixels" in name]
    pairs = [*zip(names, names, strict=True), *pairwise(names)]
    worst = (0, ("", ""))
    with ThreadPoolExecutor(2) as pool:
        for pair in pairs:
            target.wait_until_idle()
            with target.peak_memory() as peak:
                list(pool.map(target.search, [files[name] for name in pair]))
            worst = max(worst, (peak.bytes, pair))
    mebi = (worst[0] - target.resident) / MEBI
    return Table(
        "Two hostile images at once",
        ["pairs", "MiB more at most", "of"],
        [[str(len(pairs)), f"{mebi:.0f}", " and ".join(sorted(set(worst[1])))]],
        [f"{mebi:.0f} MiB at most (at most {MEBI_OF_TWO})"],
    )


def beside_honest_clients(
    target: "Target", files: dict[str, bytes], honest: Sequence[bytes]
) -> Table:
    """All files eight at once, while others search and ask for /health."""
    stop = threading.Event()
    feed = cycle(honest)

    def search_honestly() -> str:
        return target.search(next(feed))[0]

    before = Beat(), Beat()
    during = Beat(), Beat()
    for searches, health in (before, during):
        stop.clear()
        beats = [
            threading.Thread(target=searches.run, args=(stop, SEARCHES_A_SECOND, search_honestly)),
            threading.Thread(target=health.run, args=(stop, HEALTH_A_SECOND, target.health)),
        ]
        for beat in beats:
            beat.start()
        if searches is during[0]:
            with target.peak_memory() as peak, ThreadPoolExecutor(AT_ONCE) as pool:
                work = islice(cycle(files.values()), ROUNDS * len(files))
                answers = [answer for answer, _ in pool.map(target.search, work)]
        else:
            time.sleep(10)
        stop.set()
        for beat in beats:
            beat.join()
    rows = [
        [name, *before[i].row(), *during[i].row()]
        for i, name in enumerate(("POST /search", "GET /health"))
    ]
    mebi = peak.bytes / MEBI
    return Table(
        f"{ROUNDS * len(files)} hostile images, eight at once, beside honest clients",
        ["honest", "before: p50 ms", "p99 ms", "failed", "during: p50 ms", "p99 ms", "failed"],
        rows,
        [
            "hostile ones were answered "
            + ", ".join(f"{answers.count(answer)} x {answer}" for answer in sorted(set(answers))),
            f"p99 of searches {during[0].p99():.2f} s (at most 2), of /health "
            f"{during[1].p99():.2f} s (at most 1)",
            f"{(mebi - target.resident / MEBI):.0f} MiB more at most, {mebi:.0f} MiB in all; "
            f"{target.process.memory_info().rss / MEBI:.0f} MiB in the service itself afterwards "
            "(at most 1,024)",
        ],
    )


def price() -> Table:
    """What honest files cost more than decoding alone, in this process."""
    chance = np.random.default_rng(0)
    small = Image.fromarray(chance.integers(0, 256, (32, 32, 3), np.uint8))
    coarse = Image.fromarray(chance.integers(0, 256, (300, 400, 3), np.uint8))
    photo = coarse.resize((4000, 3000), Image.Resampling.BICUBIC)
    files = {
        "CIFAR-sized PNG": encode(small),
        "CIFAR-sized JPEG": encode(small, "JPEG"),
        "JPEG of 12 megapixels": encode(photo, "JPEG", quality=90),
        "progressive JPEG of 12 megapixels": encode(photo, "JPEG", quality=90, progressive=True),
        "PNG of 12 megapixels": encode(photo, compress_level=1),
        "WebP of 12 megapixels": encode(photo, "WEBP", quality=90, method=0),
    }
    rows = []
    with Decoder(MOST_PIXELS) as decoder:
        for name, content in files.items():
            bare = partial(images.decode, content, max_pixels=MOST_PIXELS, min_side=SIDE)
            apart = partial(decoder.decode, content, min_side=SIDE)
            calls = 500 if "CIFAR" in name else 3
            took = {"bare": 0.0, "apart": 0.0}
            for _ in range(ROUNDS_OF_PRICES):
                for peer, decode in (("bare", bare), ("apart", apart)):
                    decode()
                    before = own_cpu_seconds()
                    for _ in range(calls):
                        decode()
                    took[peer] += own_cpu_seconds() - before
            each = {
                name: 1000 * seconds / calls / ROUNDS_OF_PRICES for name, seconds in took.items()
            }
            more = each["apart"] - each["bare"]
            rows.append(
                [
                    name,
                    f"{each['bare']:.3f}",
                    f"{each['apart']:.3f}",
                    f"{more:+.3f}",
                    f"{100 * more / each['bare']:+.1f}",
                ]
            )
    return Table(
        "The price for honest images, in ms of CPU time",
        ["file", "images.decode", "Decoder.decode", "difference", "in %"],
        rows,
        ["CIFAR-sized: at most 0.1 ms; 12 megapixels: at most 5 %"],
    )


def own_cpu_seconds() -> float:
    """Of this process and its children: machines are busy, and the clock counts others' work."""
    return time.process_time() + sum(
        sum(child.cpu_times()[:2]) for child in psutil.Process().children()
    )


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Beat:
    """Requests at a rate, whatever else goes on; `seconds` are those of good answers."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0

    def run(self, stop: threading.Event, rate: float, ask: Callable[[], str]) -> None:
        """Until `stop` is set."""
        while not stop.wait(1 / rate):
            started = time.perf_counter()
            if ask() == "200":
                self.seconds.append(time.perf_counter() - started)
            else:
                self.failed += 1

    def p99(self) -> float:
        """Seconds."""
        return float(np.quantile(self.seconds, 0.99))

    def row(self) -> list[str]:
        """p50 and p99 in milliseconds, and how many failed."""
        p50 = float(np.quantile(self.seconds, 0.5))
        return [f"{1000 * p50:.0f}", f"{1000 * self.p99():.0f}", str(self.failed)]


@dataclass
class Peak:
    """The most bytes that the service and its processes held at once."""

    bytes: int = 0


class Target:
    """A service process; `resident` are the bytes that it holds at rest."""

    def __init__(self, pid: int, url: str) -> None:
        self.process = psutil.Process(pid)
        self.resident = 0
        self._url = url

    def cpu_seconds(self) -> float:
        """Of it and of its processes, those that have ended among them."""
        total = sum(self.process.cpu_times()[:4])
        for child in self.process.children():
            with suppress(psutil.Error):
                total += sum(child.cpu_times()[:2])
        return float(total)

    @contextmanager
    def peak_memory(self) -> Iterator[Peak]:
        """Measured a hundred times a second; libraries, which processes share, count once."""
        peak, stop = Peak(), threading.Event()

        def watch() -> None:
            while not stop.wait(1 / SAMPLES_A_SECOND):
                total = self.process.memory_info().rss
                for child in self.process.children():
                    with suppress(psutil.Error):
                        # A child that is being started is a copy of the service for a moment.
                        if "image_search.decoding" in " ".join(child.cmdline()):
                            info = child.memory_info()
                            total += info.rss - getattr(info, "shared", 0)
                peak.bytes = max(peak.bytes, total)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield peak
        finally:
            stop.set()
            thread.join()

    def wait_until_idle(self) -> None:
        """An image goes on being decoded when its client was told that it takes too long."""
        before = -1.0
        while (now := self.cpu_seconds()) != before:
            before = now
            time.sleep(1)

    def search(self, content: bytes) -> tuple[str, float]:
        """The status or code of the answer, and seconds."""
        started = time.perf_counter()
        response = httpx2.post(
            f"{self._url}/search",
            files={"image": io.BytesIO(content)},
            params={"thumbnails": False},
            timeout=120,
            trust_env=False,
        )
        code = "200" if response.is_success else f"{response.status_code} {response.json()['code']}"
        return code, time.perf_counter() - started

    def health(self) -> str:
        """The status of /health."""
        return str(httpx2.get(f"{self._url}/health", timeout=120, trust_env=False).status_code)


if __name__ == "__main__":
    run(measure, __doc__)
