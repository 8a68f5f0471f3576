"""The kinds of sources beside CIFAR-10's binary archive, and listing and pruning many images.

usage: python -m benchmarks.sources SOURCE [--images N]

The same images are ingested from each kind in turns: as the pixels of SOURCE, and as PNG files in a
parquet file, a tar archive, and a bucket on a server in a process of its own.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.measure import (
    INPUT_SIZE,
    Default,
    Table,
    batches,
    load_images,
    run,
    timed,
    weights,
)
from image_search.embedding import Embedder, Network
from image_search.index import Record
from image_search.manifest import Manifest
from image_search.settings import load_settings
from image_search.stores import create_index
from image_search.values import DIGEST_FIELD, DIMENSION
from worker.ingest import digest, ingest
from worker.prune import SeenSource, prune
from worker.sources import Item, Source, open_source
from worker.sources.source import Origin

IMAGES = 4096
TURNS = 3
LISTED = 1_000_000
KNOWN = 50_000
ASKED_RATIO = 0.9
ASKED_MEBIBYTES = 500
ASKED_RATE = 20_000


def measure(source: str, images: int) -> list[Table]:
    """Rates of kinds, the memory of a listing, and rates where nothing is new."""
    return [kinds(source, min(images, IMAGES)), listing(), nothing_new()]


def kinds(source: str, images: int) -> Table:
    """Images a second from each kind into new indexes."""
    default = Default.of(load_images(source, "train", 2560)[0])
    default.embedder.warm_up()
    opened = open_source(source, split="train", data_dir=load_settings().local_dir)
    items = list(islice(opened.items(), images))
    took: dict[str, float] = {}
    processor: dict[str, float] = {}
    files = {item.id: png_of(item) for item in items}
    with (
        tempfile.TemporaryDirectory() as folder,
        bucket_server(Path(folder) / "buckets", files) as endpoint,
    ):
        path = Path(folder)
        write_tar(path / "images.tar", files)
        write_parquet(path / "images.parquet", files)
        names = ["binary archive", "parquet", "tar", "bucket"]
        places = {"parquet": str(path / "images.parquet"), "tar": str(path / "images.tar")}
        # Once before, as the embedder has the images at hand that its recipe was fitted to.
        for turn in range(-1, TURNS):
            for name in names[turn % 2 :] + names[: turn % 2]:
                if name == "binary archive":
                    one = replace(opened, total=images, items=partial(first, opened, images))
                else:
                    place = places.get(name, "s3://images/all")
                    one = open_source(place, data_dir=path, s3_endpoint=endpoint)
                assert one.total == images
                began = time.process_time()
                seconds = seconds_to_ingest(one, default)
                if turn >= 0:
                    took[name] = took.get(name, 0) + seconds
                    spent = time.process_time() - began
                    processor[name] = processor.get(name, 0) + spent
    rates = {name: TURNS * images / seconds for name, seconds in took.items()}
    base = rates["binary archive"]
    return Table(
        f"Ingest of {images:,} images from each kind of source, {TURNS} turns",
        ["", "images/s", "of the binary archive's rate", "processor, ms an image"],
        [
            [
                name,
                f"{rate:,.0f}",
                f"{rate / base:.3f}",
                f"{1000 * processor[name] / TURNS / images:.2f}",
            ]
            for name, rate in rates.items()
        ],
        [f"at least {ASKED_RATIO} of the binary archive's rate is asked for"],
        {f"{name} / binary archive": rate / base for name, rate in rates.items()},
    )


def first(source: Source, count: int) -> Iterator[Item]:
    """So many of its images."""
    return islice(source.items(), count)


def seconds_to_ingest(source: Source, default: Default) -> float:
    """Into a new index, which is removed."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(store="embedded", data_dir=Path(folder))
        with create_index(settings, default.manifest(settings), default.recipe) as index:
            return timed(lambda: ingest(source, index, default.embedder, settings))


def png_of(item: Item) -> bytes:
    """The pixels as a file."""
    assert isinstance(item.content, np.ndarray)
    out = io.BytesIO()
    Image.fromarray(item.content).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """An archive of image files."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{name}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_parquet(path: Path, files: dict[str, bytes]) -> None:
    """As data sets at Hugging Face have them."""
    rows = [{"bytes": content, "path": f"{name}.png"} for name, content in files.items()]
    pq.write_table(pa.table({"image": rows}), path, row_group_size=1000)


@contextmanager
def bucket_server(folder: Path, files: dict[str, bytes]) -> Iterator[str]:
    """The address of a server of the bucket `images`, which has these below `all`."""
    (folder / "images" / "all").mkdir(parents=True)
    for name, content in files.items():
        (folder / "images" / "all" / f"{name}.png").write_bytes(content)
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    command = [sys.executable, "-m", "benchmarks.bucket_server", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


LIST = """
import re, sys, time
from pathlib import Path
from worker.sources.files import Choice, Chosen, File, open_files

def most_resident():  # getrusage gives that of the process before this one, where it is more
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = most_resident()
started = time.perf_counter()
chosen = Chosen()
for n in range(int(sys.argv[1])):
    name = f"label{n % 1000:03d}/{n:07d}.jpg"
    chosen.add(File(name, name), lambda: b"")
source = open_files(Path("pics"), "pics", chosen, lambda keys: iter(()), Choice())
assert source.total == int(sys.argv[1])
seconds = time.perf_counter() - started
after = most_resident()
print((after - before) / 1024, after / 1024, seconds)
"""


def listing() -> Table:
    """What a million names take."""
    done = subprocess.run(
        [sys.executable, "-c", LIST, str(LISTED)], check=True, capture_output=True, text=True
    )
    added, most, seconds = map(float, done.stdout.split())
    return Table(
        f"Listing {LISTED:,} names",
        ["most resident, MiB", "of it for the names, MiB", "seconds"],
        [[f"{most:,.0f}", f"{added:,.0f}", f"{seconds:.1f}"]],
        [f"{most:,.0f} MiB (under {ASKED_MEBIBYTES})"],
        {"listing, MiB": most},
    )


def nothing_new() -> Table:
    """A run over images of which the index has all, and pruning half of them."""
    pixels = np.random.default_rng(0).integers(0, 255, (KNOWN, 32, 32, 3), np.uint8)
    embedder = Embedder(Network(weights(), INPUT_SIZE))

    def items(count: int) -> Iterator[Item]:
        for number in range(count):
            yield Item(f"pics/{number:06d}", "x", pixels[number], {"source": "pics"})

    def source(count: int) -> Source:
        made = Source("pics", count, partial(items, count))
        return replace(made, origin=Origin("pics", "pics", lambda _: made))

    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(store="embedded", data_dir=Path(folder))
        manifest = Manifest.new(embedder.model, settings.metric, settings.namespace)
        with create_index(settings, manifest) as index:
            for batch in batches(np.arange(KNOWN), 2048):
                part = islice(items(KNOWN), batch[0], batch[-1] + 1)
                index.upsert(list(map(record_of, part)))
            index.flush()
            summary = None

            def again() -> None:
                nonlocal summary
                summary = ingest(source(KNOWN), index, embedder, settings)

            unchanged = timed(again)
            assert summary is not None
            assert summary.unchanged == KNOWN
            seen = SeenSource(source(KNOWN // 2))
            for _ in seen.source.items():
                pass
            pruned = timed(lambda: prune(index, seen, 100))
            assert index.count() == KNOWN // 2
    rates = {"a run with nothing new": KNOWN / unchanged, "pruning half": KNOWN / pruned}
    return Table(
        f"{KNOWN:,} images of 32x32 pixels in the embedded store",
        ["", "images/s"],
        [[name, f"{rate:,.0f}"] for name, rate in rates.items()],
        [f"at least {ASKED_RATE:,} images/s are asked for"],
        {f"{name}, images/s": rate for name, rate in rates.items()},
    )


def record_of(item: Item) -> Record:
    """As an ingest makes it, but for the embedding and the thumbnail."""
    assert isinstance(item.content, np.ndarray)
    metadata = {**item.metadata, DIGEST_FIELD: digest(item.content)}
    embedding = np.random.default_rng(len(item.id)).random(DIMENSION, np.float32)
    return Record(item.id, embedding, item.label, metadata, bytes(2500))


if __name__ == "__main__":
    run(measure, __doc__)
