"""What the parts of the benchmark share: images, the default model, timing in turns, tables."""

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any, Self, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from image_search.embedding import Embedder, Network, measure_activation_maxima, to_pixels
from image_search.manifest import Manifest
from image_search.recipe import Recipe
from image_search.settings import Settings, load_settings
from image_search.values import Embeddings, Pixels
from image_search.weights import choose_weights
from worker.recipes import IMAGES, fit_neighbours, form_for
from worker.sources import Split, open_source

# As the worker chooses for CIFAR-10's images, unless IMAGE_SEARCH_INPUT_SIZE says otherwise.
INPUT_SIZE = 96 if load_settings().input_size == "auto" else int(load_settings().input_size)
ACTIVATION_IMAGES = 64  # as many as the worker takes
BATCH = 128
MEBI = 1024 * 1024
Name = TypeVar("Name")


@dataclass(frozen=True)
class Table:
    """What one measurement shows.

    `notes` hold the ratios against what was asked.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """Markdown that can be read on a terminal."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [self.header, ["-" * width for width in widths], *self.rows]
        cells = [
            [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
        ]
        table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join(filter(None, [f"## {self.title}", table, notes])) + "\n"


def run(measure: Callable[[str, int], Iterable[Table]], description: str | None) -> None:
    """The command line of a part that runs alone: prints its tables."""
    arguments = parser(description).parse_args()
    for table in measure(arguments.source, arguments.images):
        print(table, flush=True)


def parser(description: str | None) -> argparse.ArgumentParser:
    """SOURCE and --images."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("source", metavar="SOURCE", help="CIFAR-10's archive, cifar10 or sample")
    result.add_argument("--images", type=int, default=50_000, metavar="N", help="(%(default)s)")
    return result


def load_images(source: str, split: Split, count: int) -> tuple[Pixels, list[str]]:
    """The first `count` images of a source of pixels, and their labels.

    uint8 [n, INPUT_SIZE, INPUT_SIZE, 3].
    """
    pixels, labels = [], []
    opened = open_source(source, split=split, data_dir=load_settings().local_dir)
    for item in islice(opened.items(), count):
        if isinstance(item.content, bytes | Exception):
            sys.exit("the benchmark needs a source of pixels: cifar10, its archive, or sample")
        pixels.append(to_pixels(Image.fromarray(np.asarray(item.content)), INPUT_SIZE))
        labels.append(str(item.label))
    return np.array(pixels), labels


@cache
def weights() -> str:
    """The weights that the settings choose."""
    return choose_weights(load_settings().weights)


@dataclass(frozen=True)
class Default:
    """What the worker makes of images on a CPU: int8, with a recipe fitted to them."""

    embedder: Embedder
    activation_maxima: tuple[float, ...]
    recipe: Recipe

    @classmethod
    def of(cls, pixels: Pixels) -> Self:
        """Of images in random order."""
        maxima = measure_activation_maxima(weights(), pixels[:ACTIVATION_IMAGES])
        fitted_to = batches(pixels[:IMAGES], BATCH)
        form = form_for(INPUT_SIZE)
        network = Network(weights(), INPUT_SIZE, maxima, form.pooling)
        recipe = fit_neighbours(network.measure(fitted_to), form)
        return cls(Embedder(network, recipe), maxima, recipe)

    def manifest(self, settings: Settings) -> Manifest:
        """That of an index of its embeddings."""
        return Manifest.new(
            self.embedder.model, settings.metric, settings.namespace, self.activation_maxima
        )


def timed(work: Callable[[], object]) -> float:
    """The seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(
    peers: Mapping[Name, Callable[[], object]], rounds: int, calls: int
) -> dict[Name, list[float]]:
    """Seconds of each call of each peer.

    In a round every peer has its turn, in random order: a call that is not counted, while the
    threads of the one before come to rest and caches are filled, and then `calls` that are.
    """
    order = random.Random(0)
    seconds: dict[Name, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name in order.sample(list(peers), len(peers)):
            peers[name]()
            seconds[name] += [timed(peers[name]) for _ in range(calls)]
    return seconds


def medians(seconds: Mapping[Name, list[float]]) -> dict[Name, float]:
    """The median of each peer."""
    return {name: statistics.median(times) for name, times in seconds.items()}


def ready_process(code: str, *arguments: str) -> tuple[float, float, float]:
    """Seconds until a Python process that runs `code` prints a line, and its MiB resident then.

    The last are those without mapped files, which the system can drop at any time; on Linux.
    """
    started = time.perf_counter()
    command = [sys.executable, "-c", f"{code}\nprint(flush=True)\ninput()", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline():
            sys.exit("a process to be measured failed")
        seconds = time.perf_counter() - started
        memory = psutil.Process(process.pid).memory_info()
        process.communicate(b"\n")
    return seconds, memory.rss / MEBI, (memory.rss - getattr(memory, "shared", 0)) / MEBI


def batches(rows: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    """The rows in batches of `size`; the last one may be smaller."""
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


def embed_all(embed: Callable[[Pixels], Embeddings], pixels: Pixels) -> Embeddings:
    """float32 [n, 512], computed in batches."""
    return np.concatenate([embed(batch) for batch in batches(pixels, BATCH)])


def normalised(rows: Embeddings) -> Embeddings:
    """The rows at length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
