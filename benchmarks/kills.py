"""An ingest whose workers are killed at random; its index is compared with its files.

usage: python -m benchmarks.kills SOURCE [--images N] [--kills N] [--kind shard|driver|actor|node]

Images of SOURCE, which has pixels, are written as PNG files, and with each thousand a file that
cannot be read. Two shards ingest them, or two actors on two nodes of Ray, which are processes on
this machine. Of these, one is killed with SIGKILL and started again, so often for each kind. What
ends before that begins anew with an empty index. Each time, the index must have each image once,
with the digest of its file, and each file that cannot be read must have been named; a run
afterwards must find all of it unchanged. It ends with exit code 1 where that is not so.
"""

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.measure import Table
from benchmarks.serving import as_png
from image_search.settings import Settings, load_settings
from image_search.stores import open_index
from image_search.values import DIGEST_FIELD
from worker.sources import open_source

KINDS: Final = ("shard", "driver", "actor", "node")
FILES_PER_POISON: Final = 1_000
# The exit codes of an ingest that has come to its end: with all images, or without some that cannot
# be read.
FINISHED: Final = (0, 3)
POISONS: Final = (
    b"\xff\xd8\xff\xe0",
    b"",
    b"no image",
    # A PNG of 60,000 pixels a side.
    bytes.fromhex("89504e470d0a1a0a0000000d494844520000ea600000ea60080200000000000000"),
)
SECONDS_BETWEEN_LOOKS: Final = 0.05
SECONDS_TO_END: Final = 600.0


@dataclass
class Found:
    """What was seen."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pictures:
    """The files: digests by path below the folder, and what cannot be read."""

    folder: Path
    digests: dict[str, str]
    poisons: frozenset[str]


def write_pictures(source: str, images: int, folder: Path) -> Pictures:
    """So many images of a source of pixels, in a folder for each label."""
    opened = open_source(source, split="train", data_dir=load_settings().local_dir)
    digests, poisons = {}, set()
    for number, item in enumerate(islice(opened.items(), images)):
        content = as_png(np.asarray(item.content))
        name = f"{item.label}/{number:06d}.png"
        digests[name] = hashlib.sha256(content).hexdigest()
        put(folder / name, content)
        if number % FILES_PER_POISON == 0:
            kind = number // FILES_PER_POISON % len(POISONS)
            poison = f"{item.label}/{number:06d}-poison.png"
            poisons.add(poison)
            put(folder / poison, POISONS[kind])
    return Pictures(folder, digests, frozenset(poisons))


def put(path: Path, content: bytes) -> None:
    """Write a file in a folder that may not be there."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content)


class Kills:
    """Ingests of the pictures into indexes below a folder, and what was found."""

    def __init__(self, pictures: Pictures, folder: Path, between: float, recipe: str) -> None:
        self._pictures = pictures
        self._folder = folder
        self._between = between
        self._environ = {
            "IMAGE_SEARCH_STORE": "embedded",
            "IMAGE_SEARCH_WEIGHTS": "bundled",
            "IMAGE_SEARCH_RECIPE": recipe,
            "IMAGE_SEARCH_INPUT_SIZE": os.environ.get("IMAGE_SEARCH_INPUT_SIZE", "32"),
        }
        self._chance = random.Random(0)
        self._round = 0
        self.found = Found()

    def run(self, kinds: Sequence[str], kills: int) -> None:
        """Kill so many of each kind; either all are of Ray, or it is shards."""
        left = dict.fromkeys(kinds, kills)
        while any(left.values()):
            self._round += 1
            if "shard" in left:
                self._shards(left)
            else:
                self._cluster(left)

    def _shards(self, left: dict[str, int]) -> None:
        count = 2
        running = [self._start(number, ["--shard", f"{number}/{count}"]) for number in range(count)]
        began = time.monotonic()
        while any(self._goes_on(process, began) for process in running):
            if left["shard"] and self._is_time():
                number = self._chance.randrange(count)
                if running[number].poll() is None:
                    self._kill("shard", running[number].pid, left)
            self._restart(running)
        self._check([str(number) for number in range(count)])

    def _cluster(self, left: dict[str, int]) -> None:
        from ray.cluster_utils import Cluster

        cluster: Any = Cluster()
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False)
            others = [cluster.add_node(num_cpus=1)]
            self._environ["RAY_ADDRESS"] = cluster.address
            running = [self._start("driver", ["--on", "ray"])]
            began = time.monotonic()
            while self._goes_on(running[0], began):
                if any(left.values()) and self._is_time():
                    kind = self._chance.choice([kind for kind, more in left.items() if more])
                    if kind == "driver":
                        self._kill(kind, running[0].pid, left)
                    elif kind == "actor":
                        actors = list(actors_of_ray())
                        if actors:
                            self._kill(kind, self._chance.choice(actors).pid, left)
                    else:
                        cluster.remove_node(others.pop(), allow_graceful=False)
                        self._count(kind, left)
                        others.append(cluster.add_node(num_cpus=1))
                self._restart(running)
        finally:
            cluster.shutdown()
        self._check(["driver"])

    def _is_time(self) -> bool:
        return self._chance.random() < SECONDS_BETWEEN_LOOKS / self._between

    def _kill(self, kind: str, pid: int, left: dict[str, int]) -> None:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            for one in (*process.children(recursive=True), process):
                with suppress(psutil.Error):
                    one.kill()
            self._count(kind, left)

    def _count(self, kind: str, left: dict[str, int]) -> None:
        left[kind] -= 1
        self.found.counts[f"{kind}: killed"] += 1

    @property
    def _data(self) -> Path:
        return self._folder / f"data{self._round}"

    @property
    def _settings(self) -> Settings:
        return load_settings(store="embedded", data_dir=self._data)

    def _start(self, name: object, options: list[str]) -> "subprocess.Popen[bytes]":
        return self._started(
            ["ingest", str(self._pictures.folder), *options], self._folder / f"{name}.err"
        )

    def _started(self, command: list[str], errors: Path) -> "subprocess.Popen[bytes]":
        with errors.open("wb") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "worker", *command],
                env={
                    **os.environ,
                    "IMAGE_SEARCH_DATA_DIR": str(self._data),
                    **self._environ,
                },
                stdout=subprocess.DEVNULL,
                stderr=err,
            )

    def _goes_on(self, process: "subprocess.Popen[bytes]", began: float) -> bool:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        if time.monotonic() - began > SECONDS_TO_END:
            raise TimeoutError("the ingest does not end")
        return process.poll() not in FINISHED

    def _restart(self, running: list["subprocess.Popen[bytes]"]) -> None:
        for number, process in enumerate(running):
            code = process.poll()
            if code is None or code in FINISHED:
                continue
            args = process.args
            assert isinstance(args, list)
            command = [str(one) for one in args[3:]]
            name = "driver" if "--on" in command else str(number)
            if code > 0:
                # As where a killed driver's actors still hold the processors.
                self.found.counts["ended with an error, and was started again"] += 1
                self._require_no_traceback(self._folder / f"{name}.err")
                time.sleep(1)
            running[number] = self._started(command, self._folder / f"{name}.err")

    def _require_no_traceback(self, errors: Path) -> None:
        text = errors.read_text(errors="replace")
        if "Traceback" in text or "unexpected, please report" in text:
            self.found.wrong.append(text)

    # --- what is in the index ---

    def _check(self, names: list[str]) -> None:
        wrong = self.found.wrong
        named = "".join((self._folder / f"{name}.err").read_text() for name in names)
        wrong += [f"{one} was not named" for one in self._pictures.poisons if one not in named]
        for name in names:
            self._require_no_traceback(self._folder / f"{name}.err")
        with open_index(self._settings) as index:
            ids = list(index.ids())
            expected = {
                f"{self._pictures.folder.name}/{name}": digest
                for name, digest in self._pictures.digests.items()
            }
            wrong += [f"{id_} is there twice" for id_, n in Counter(ids).items() if n > 1]
            wrong += [f"{id_} is lost" for id_ in expected.keys() - set(ids)]
            wrong += [f"{id_} is no image" for id_ in set(ids) - expected.keys()]
            for start in range(0, len(ids), FILES_PER_POISON):
                batch = ids[start : start + FILES_PER_POISON]
                wrong += [
                    f"{id_} has another digest"
                    for id_, record in index.fetch(batch, thumbnails=False).items()
                    if record.metadata[DIGEST_FIELD] != expected.get(id_)
                ]
            sample = index.load_sample()
            if not sample.is_representative:
                wrong.append(f"the sample has only {len(sample.ids)} images")
            version, calibrated = len(ids), index.calibration
        if calibrated is None:
            wrong.append("no confidences are fitted")
        again = self._folder / "again.err"
        if self._started(["ingest", str(self._pictures.folder)], again).wait() != FINISHED[1]:
            wrong.append(again.read_text())
        with open_index(self._settings) as index:
            if index.count() != version:
                wrong.append("another run has changed the index")
        self.found.counts["indexes made"] += 1
        shutil.rmtree(self._data)


def actors_of_ray() -> Iterator[psutil.Process]:
    """The processes below this one that embed."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "ray::_Actor" in " ".join(process.cmdline()):
                yield process


def kill_all(
    source: str,
    images: int,
    kinds: Sequence[str],
    kills: int,
    folder: Path,
    *,
    between: float,
    recipe: str = "auto",
) -> Found:
    """Kill so many of each kind, with so many seconds between two of them on average."""
    pictures = write_pictures(source, images, folder / "pictures")
    killing = Kills(pictures, folder, between, recipe)
    killing.run(kinds, kills)
    return killing.found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="CIFAR-10's archive, cifar10 or sample")
    parser.add_argument("--images", type=int, default=20_000, metavar="N", help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--between",
        type=float,
        default=6,
        metavar="SECONDS",
        help="between two kills, on average (%(default)s)",
    )
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all in turn")
    arguments = parser.parse_args()
    problems = 0
    for kind in arguments.kind or KINDS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            found = kill_all(
                arguments.source,
                arguments.images,
                [kind],
                arguments.kills,
                Path(folder),
                between=arguments.between,
            )
        rows = [[name, f"{count:,}"] for name, count in sorted(found.counts.items())]
        rows.append(["differences", f"{len(found.wrong):,}"])
        title = f"{arguments.images:,} images, {time.monotonic() - started:.0f} s: {kind}"
        print(Table(title, ["", ""], rows), flush=True)
        for one in found.wrong[:20]:
            print(one, file=sys.stderr)
        problems += len(found.wrong)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
