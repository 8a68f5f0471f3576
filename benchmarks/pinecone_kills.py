"""The worker on Pinecone's strict emulator, killed again and again, against the embedded store.

usage: python -m benchmarks.pinecone_kills ARCHIVE [--images N] [--kills N] [--lag SECONDS]

ARCHIVE is CIFAR-10 in its binary version. Images are written to a folder, ingested, some removed
and pruned; the embedded index is copied to another one of Pinecone, and that back; both are
evaluated. A tenth of all requests to the emulator fail, reads lag, and the worker is killed at
random moments of each command but the last. In the end all four must have the same records.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from image_search.index import Record, VectorIndex
from image_search.settings import load_settings
from image_search.stores import open_index
from tests.support.pinecone import API_KEY, Fault, PineconeEmulator

_SIDE = 32
_ROW = 1 + 3 * _SIDE * _SIDE
_MOST_DIFFERENCE = 1e-6
# Of figures. Those of the bins of confidence may differ more: the confidence is fitted in each
# store to scores that differ by a rounding, which moves it by about a thousandth, and so a match of
# hundreds into the next bin.
_MOST_ROUNDING = 1e-5
_MOST_ROUNDING_OF_BINS = 0.01
_MOST_OVER_EDGE = 0.02
_OF_BINS = "reliability"
_REMOVED = 20  # one image of so many
_AT_ONCE = 1_000
# Names of the indexes that copies make, in either store.
_COPY = "copy"
_COPY_BACK = "back"
_FAULTS = (
    *(Fault(status) for status in (429, 500, 503)),
    Fault(429, retry_after=0.2),
    Fault(cut="before"),
    Fault(cut="after"),
    Fault(cut="middle"),
    Fault(keep=3),
    Fault(body=b"<html>"),
)


def main() -> int:
    """Command line; returns 1 where the stores differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, metavar="ARCHIVE")
    parser.add_argument("--images", type=int, default=10_000, metavar="N")
    parser.add_argument("--kills", type=int, default=8, metavar="N", help="of each command")
    parser.add_argument("--lag", type=float, default=2.0, metavar="SECONDS")
    arguments = parser.parse_args()
    chance = random.Random(0)
    with TemporaryDirectory(prefix="pinecone-kills-") as name, PineconeEmulator() as emulator:
        root = Path(name)
        folder = root / "pictures"
        write_images(arguments.archive, folder, arguments.images)
        emulator.put_index("images")
        emulator.put_index(_COPY)
        emulator.lag = arguments.lag
        emulator.fail_randomly(0.1, _FAULTS, "/vectors|/query|stats")
        common = {
            "IMAGE_SEARCH_INPUT_SIZE": "32",
            "IMAGE_SEARCH_DATA_DIR": str(root / "data"),
            "IMAGE_SEARCH_RECIPE": "none",
        }
        pinecone = {
            **common,
            "IMAGE_SEARCH_STORE": "pinecone",
            "IMAGE_SEARCH_PINECONE_HOST": emulator.host,
            "PINECONE_API_KEY": API_KEY,
        }
        embedded = {**common, "IMAGE_SEARCH_STORE": "embedded"}
        started = time.monotonic()
        ingest = ["ingest", str(folder)]
        for step in (
            ingest,
            [*ingest, "--prune"],
            ["copy", "embedded:images", f"pinecone:{_COPY}"],
            ["copy", f"pinecone:{_COPY}", f"embedded:{_COPY_BACK}"],
        ):
            if "--prune" in step:
                remove_some(folder)
            killed = run_killed(step, pinecone, arguments.kills, chance)
            if step[0] == "ingest":
                run(step, embedded)
            print(
                f"{' '.join(part for part in step if part != str(folder))}: killed {killed} "
                f"times, {time.monotonic() - started:.0f} s so far",
                flush=True,
            )
        figures = []
        for environ in (pinecone, embedded):
            output = root / environ["IMAGE_SEARCH_STORE"]
            run(["evaluate", str(folder), "--queries", "200", "--output", str(output)], environ)
            figures.append(json.loads((output / "figures.json").read_text())["retrieval"])
        emulator.fail_randomly(0, [])
        emulator.lag = 0
        refused = emulator.count("", 429)
        problems = []
        with index_of(embedded) as expected:
            count = expected.count()
            for environ, name in ((pinecone, "images"), (pinecone, _COPY), (embedded, _COPY_BACK)):
                with index_of({**environ, "IMAGE_SEARCH_INDEX": name}) as other:
                    problems += differences(other, expected)
        problems += unlike(*figures)
        moved, matches = moved_between_bins(*figures)
        print(
            f"{count:,} records, {len(emulator.requests):,} requests, {refused:,} refused with "
            f"429; {moved} of {matches:,} matches in another bin of confidence; "
            f"{len(problems)} differences"
        )
        for problem in problems[:20]:
            print(problem, file=sys.stderr)
        return 1 if problems else 0


def write_images(archive: Path, folder: Path, count: int) -> None:
    """The first images of the training split as PNG files, in one folder a label."""
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None or "data_batch" not in member.name:
                continue
            rows = np.frombuffer(content.read(), np.uint8).reshape(-1, _ROW)
            for number, row in enumerate(rows[:count]):
                pixels = row[1:].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
                stem = Path(member.name).stem
                file = folder / f"label {row[0]}" / f"{stem} {number:05d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.ascontiguousarray(pixels)).save(file)
            count -= len(rows[:count])


def remove_some(folder: Path) -> None:
    """Remove some of the files."""
    for file in sorted(folder.rglob("*.png"))[::_REMOVED]:
        file.unlink()


def run_killed(
    command: list[str], environ: dict[str, str], kills: int, chance: random.Random
) -> int:
    """Run a command of the worker, killed and started again so many times; returns how often."""
    killed = 0
    started = time.monotonic()
    while killed < kills:
        process = start(command, environ)
        try:
            process.wait(chance.uniform(2, 20))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        else:
            if process.returncode == 0:
                return killed
        if time.monotonic() - started > 1_800:
            break
    run(command, environ)
    return killed


def run(command: list[str], environ: dict[str, str]) -> None:
    """Run a command of the worker to its end."""
    process = start(command, environ)
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")


def start(command: list[str], environ: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a command of the worker."""
    return subprocess.Popen(
        [sys.executable, "-m", "worker", *command],
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
    )


@contextmanager
def index_of(environ: dict[str, str]) -> Iterator[VectorIndex]:
    """The index with these settings."""
    before = dict(os.environ)
    os.environ.update(environ)
    try:
        with open_index(load_settings()) as index:
            yield index
    finally:
        os.environ.clear()
        os.environ.update(before)


def differences(one: VectorIndex, other: VectorIndex) -> list[str]:
    """What is not the same in both."""
    ids, expected = sorted(one.ids()), sorted(other.ids())
    problems = [f"only in one: {id_}" for id_ in set(ids) ^ set(expected)]
    for start_ in range(0, len(expected), _AT_ONCE):
        batch = expected[start_ : start_ + _AT_ONCE]
        first, second = one.fetch(batch), other.fetch(batch)
        problems += [f"differs: {id_}" for id_ in first if not same(first[id_], second[id_])]
    return problems


def same(one: Record, other: Record) -> bool:
    """Whether both are the same, vectors nearly."""
    return (one.label, one.metadata, one.thumbnail) == (
        other.label,
        other.metadata,
        other.thumbnail,
    ) and bool(np.abs(one.embedding - other.embedding).max() <= _MOST_DIFFERENCE)


def moved_between_bins(one: Any, other: Any) -> tuple[int, int]:
    """How many matches two reports count in different bins of confidence, and of how many."""
    first, second = (
        [row["matches"] for row in report[_OF_BINS]["bins"]] for report in (one, other)
    )
    return sum(abs(a - b) for a, b in zip(first, second, strict=False)) // 2, sum(first)


def unlike(one: Any, other: Any, name: str = "evaluation") -> list[str]:
    """Which figures of two reports differ by more than rounding explains."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            problem
            for key in one.keys() | other.keys()
            for problem in unlike(one.get(key), other.get(key), f"{name}, {key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            problem
            for number, parts in enumerate(zip(one, other, strict=True))
            for problem in unlike(*parts, f"{name} {number}")
        ]
    of_bins = _OF_BINS in name
    if isinstance(one, float) and isinstance(other, float):
        is_same = abs(one - other) < (_MOST_ROUNDING_OF_BINS if of_bins else _MOST_ROUNDING)
    elif of_bins and isinstance(one, int) and isinstance(other, int):
        is_same = abs(one - other) <= _MOST_OVER_EDGE * max(one, other)
    else:
        is_same = one == other
    return [] if is_same else [f"differs: {name}: {one} and {other}"]


if __name__ == "__main__":
    sys.exit(main())
