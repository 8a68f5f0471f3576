"""Two workers that have a half of the images each, against one that has all.

usage: python -m benchmarks.shards SOURCE [--images N]

Both ways make a new index with the worker's command line, in turns. What a worker does before and
after the images, such as loading the model and fitting confidences, counts.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Table, run
from image_search.settings import load_settings
from image_search.stores import open_index

TURNS = 2
ASKED_RATIO = 0.95


def measure(source: str, images: int) -> list[Table]:
    """Images a second by one worker and by two."""
    seconds = {1: 0.0, 2: 0.0}
    for turn in range(TURNS):
        for workers in (1, 2) if turn % 2 else (2, 1):
            seconds[workers] += seconds_of(workers, source, images)
    rates = {workers: TURNS * images / spent for workers, spent in seconds.items()}
    ratio = rates[2] / rates[1]
    return [
        Table(
            f"Ingest of {images:,} images by the command, {TURNS} turns",
            ["workers", "images/s"],
            [[str(workers), f"{rate:,.0f}"] for workers, rate in rates.items()],
            [f"two workers have {ratio:.3f} of one's rate (at least {ASKED_RATIO})"],
            {"two workers / one": ratio},
        )
    ]


def seconds_of(workers: int, source: str, images: int) -> float:
    """Until all of them have ended; the index is removed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "worker", "ingest", source, "--limit", str(images)]
        settings = load_settings(store="embedded", data_dir=Path(folder))
        environ = {**os.environ, "IMAGE_SEARCH_DATA_DIR": folder, "IMAGE_SEARCH_STORE": "embedded"}
        started = time.perf_counter()
        running = [
            subprocess.Popen(
                [*command, "--shard", f"{number}/{workers}"],
                env=environ,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(workers)
        ]
        assert [process.wait() for process in running] == [0] * workers
        spent = time.perf_counter() - started
        assert open_index(settings).count() == images
        return spent


if __name__ == "__main__":
    run(measure, __doc__)
