"""Two workers that have a half of the images each, and two actors of Ray, against one worker.

usage: python -m benchmarks.shards SOURCE [--images N] [--turns N]

All ways make a new index with the worker's command line, in turns. What a worker does before and
after the images, such as loading the model and fitting confidences, counts. Ray's two nodes are
processes on this machine, and run before. Processor time is that of all processes: on a machine
with other work, its ratio says more than that of the rates. The indexes must have the same records.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.measure import Table, parser
from image_search.index import VectorIndex
from image_search.settings import load_settings
from image_search.stores import open_index

ONE: Final = "one worker"
SHARDS: Final = "two shards"
RAY: Final = "two actors of Ray"
ASKED: Final = {SHARDS: 0.95, RAY: 0.85}
TOLERANCE: Final = 1e-4
AT_ONCE: Final = 10_000


@dataclass
class Spent:
    """Seconds on the clock, and of all processors."""

    wall: float = 0.0
    processor: float = 0.0


def measure(source: str, images: int, turns: int) -> Table:
    """Images a second in each way."""
    ways = [ONE, SHARDS, *([RAY] if find_spec("ray") else [])]
    spent = {way: Spent() for way in ways}
    with tempfile.TemporaryDirectory() as root:
        for turn in range(turns):
            for way in ways if turn % 2 == 0 else ways[::-1]:
                folder = Path(root) / f"{way} {turn}"
                with nodes(way) as address:
                    seconds = ingested(way, source, images, folder, address)
                spent[way].wall += seconds.wall
                spent[way].processor += seconds.processor
                print(f"{way}: {seconds.wall:.1f} s, {seconds.processor:.1f} s", file=sys.stderr)
        for way in ways:
            require_same(Path(root) / f"{ONE} 0", Path(root) / f"{way} {turns - 1}", images)
    ratios = {way: spent[ONE].wall / spent[way].wall for way in ways}
    of_processors = {way: spent[ONE].processor / spent[way].processor for way in ways}
    return Table(
        f"Ingest of {images:,} images by the command, {turns} turns",
        ["", "images/s", "of one worker's", "images/s of a processor", "of one worker's"],
        [
            [
                way,
                f"{turns * images / spent[way].wall:,.0f}",
                f"{ratios[way]:.3f}",
                f"{turns * images / spent[way].processor:,.0f}",
                f"{of_processors[way]:.3f}",
            ]
            for way in ways
        ],
        [
            f"{way}: {ratios[way]:.3f} of one worker's rate (at least {ASKED[way]})"
            for way in ways[1:]
        ]
        + ["the indexes have the same records"],
        {f"{way} / {ONE}": ratios[way] for way in ways[1:]},
    )


@contextmanager
def nodes(way: str) -> Iterator[str]:
    """Two nodes of Ray with a processor each, and their address, where they are needed."""
    if way != RAY:
        yield ""
        return
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, include_dashboard=False)
        yield cluster.address
    finally:
        cluster.shutdown()


def ingested(way: str, source: str, images: int, folder: Path, address: str) -> Spent:
    """Until all workers have ended, which leave an index in the folder."""
    command = [sys.executable, "-m", "worker", "ingest", source, "--limit", str(images)]
    ways: dict[str, list[list[str]]] = {
        ONE: [[]],
        SHARDS: [["--shard", f"{number}/2"] for number in range(2)],
        RAY: [["--on", "ray"]],
    }
    environ = {
        **os.environ,
        "IMAGE_SEARCH_DATA_DIR": str(folder),
        "IMAGE_SEARCH_STORE": "embedded",
        "RAY_ADDRESS": address,
    }
    with processor_time() as spent:
        running = [
            subprocess.Popen([*command, *more], env=environ, stdout=subprocess.DEVNULL)
            for more in ways[way]
        ]
        assert [process.wait() for process in running] == [0] * len(running)
    return spent


@contextmanager
def processor_time() -> Iterator[Spent]:
    """What this and all processes below it have spent until the end, within a tenth of a second."""
    spent = Spent()
    before, seen = times(), dict[int, float]()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.1):
            seen.update(times())

    watching = threading.Thread(target=watch)
    watching.start()
    started = time.perf_counter()
    try:
        yield spent
    finally:
        spent.wall = time.perf_counter() - started
        is_over.set()
        watching.join()
        spent.processor = sum(seconds - before.get(pid, 0.0) for pid, seconds in seen.items())


def times() -> dict[int, float]:
    """Seconds of a processor of each process below this one."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            used = process.cpu_times()
            found[process.pid] = used.user + used.system
    return found


def require_same(one: Path, other: Path, images: int) -> None:
    """Exit unless the indexes in both folders have the same records, vectors but for rounding."""
    with opened(one) as first, opened(other) as second:
        ids = sorted(first.ids())
        assert len(ids) == images
        if ids != sorted(second.ids()):
            sys.exit(f"{other.name} has other images than {one.name}")
        for start in range(0, len(ids), AT_ONCE):
            batch = ids[start : start + AT_ONCE]
            found, expected = second.fetch(batch), first.fetch(batch)
            for id_ in batch:
                a, b = found[id_], expected[id_]
                if (a.label, a.metadata, a.thumbnail) != (b.label, b.metadata, b.thumbnail):
                    sys.exit(f"{id_} differs in {other.name}")
                if np.abs(a.embedding - b.embedding).max() > TOLERANCE:
                    sys.exit(f"{id_} has another embedding in {other.name}")


def opened(folder: Path) -> VectorIndex:
    """The index in a folder."""
    return open_index(load_settings(store="embedded", data_dir=folder))


def main() -> None:
    """Command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--turns", type=int, default=2, metavar="N", help="(%(default)s)")
    chosen = arguments.parse_args()
    print(measure(chosen.source, chosen.images, chosen.turns))


if __name__ == "__main__":
    main()
