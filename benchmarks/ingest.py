"""Ingest end to end beside the bare engine, and the worker's memory.

usage: python -m benchmarks.ingest SOURCE [--images N]
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from benchmarks.measure import BATCH, MEBI, Default, Table, embed_all, load_images, run, timed
from image_search.settings import load_settings
from image_search.stores import create_index
from worker.ingest import ingest
from worker.sources import Source, open_source

TURNS = 5
BARE_IMAGES = 2560
ASKED_RATIO = 0.95
ASKED_MEBIBYTES = 2048


def measure(source: str, images: int) -> list[Table]:
    """The worker's default: int8, whitened, the embedded store."""
    return [*against_bare_engine(source, images), worker_memory(source, images)]


def against_bare_engine(source: str, images: int) -> list[Table]:
    """Images a second from the source into new indexes, and of the engine alone, in turns."""
    opened = open_source(source, split="train", data_dir=load_settings().local_dir)
    total = min(images, opened.total)
    pixels, _ = load_images(source, "train", min(BARE_IMAGES, max(BATCH, total // TURNS)))
    default = Default.of(pixels)
    embedder = default.embedder
    # Not timed: what the fit has measured of these images is used once more, then forgotten.
    embed_all(embedder.embed, pixels)
    items = opened.items()
    rows = []
    took = {"ingest": 0.0, "bare": 0.0}
    for turn, count in enumerate(np.diff(np.linspace(0, total, TURNS + 1).astype(int))):
        part = Source(opened.name, int(count), partial(itertools.islice, items, int(count)))
        bare = timed(lambda: embed_all(embedder.embed, pixels))
        with tempfile.TemporaryDirectory() as folder:
            settings = load_settings(store="embedded", data_dir=Path(folder))
            with create_index(settings, default.manifest(settings), default.recipe) as index:

                def ours() -> None:
                    ingest(part, index, embedder, settings)  # noqa: B023
                    index.flush()

                seconds = timed(ours)
        rows.append(row(f"turn {turn + 1}", count / seconds, len(pixels) / bare))
        took["ingest"] += seconds
        took["bare"] += bare
    rate, bare_rate = total / took["ingest"], TURNS * len(pixels) / took["bare"]
    rows.append(row("all", rate, bare_rate))
    table = Table(
        f"Ingest end to end, {total:,} images",
        ["", "ingest with flush, images/s", "bare engine, images/s", "ratio"],
        rows,
        [f"{rate / bare_rate:.3f} of the bare engine's rate (at least {ASKED_RATIO})"],
        {"ingest / bare engine": rate / bare_rate, "ingest, images/s": rate},
    )
    return [table]


def row(name: str, rate: float, bare_rate: float) -> list[str]:
    """A line of the table."""
    return [name, f"{rate:,.0f}", f"{bare_rate:,.0f}", f"{rate / bare_rate:.3f}"]


def worker_memory(source: str, images: int) -> Table:
    """The most memory that a worker process has resident, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker", "ingest", source, "--limit", str(images)],
            env={**os.environ, "IMAGE_SEARCH_STORE": "embedded", "IMAGE_SEARCH_DATA_DIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        process = psutil.Process(worker.pid)
        most = 0.0
        while worker.poll() is None:
            most = max(most, process.memory_info().rss / MEBI)
            time.sleep(0.05)
    if worker.returncode != 0:
        sys.exit(f"the worker ended with exit code {worker.returncode}")
    return Table(
        "Memory of the worker",
        ["", "most resident, MiB"],
        [["worker", f"{most:,.0f}"]],
        [f"{most:,.0f} MiB (under {ASKED_MEBIBYTES:,})"],
        {"worker, MiB": most},
    )


if __name__ == "__main__":
    run(measure, __doc__)
