"""Recall and time by the partitions and candidates of a snapshot, to choose their numbers.

usage: python -m benchmarks.candidates SOURCE [--queries N]

The index is the one that the settings choose, made of SOURCE's training images; queries are its
test images. Of half of them, recall is for choosing, and of the other half it is to be reported.
Time is that of one processor for 32 queries, in FAISS and for the exact comparison.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import BATCH, Table, batches, normalised
from image_search.errors import ImageError
from image_search.settings import load_settings
from image_search.stores import open_index
from image_search.stores.embedded.index import EmbeddedIndex
from image_search.stores.embedded.scores import scores_at
from image_search.stores.embedded.search_library import faiss
from image_search.stores.embedded.snapshot import Snapshot, open_snapshot, versions_in
from image_search.stores.embedded.table import manifest_json
from image_search.values import Embeddings
from worker.ingest import make_decoder, open_image
from worker.model import load_embedder
from worker.sources import open_source

PARTITIONS: Final = (56, 64, 72, 80, 96)
CANDIDATES: Final = (130, 150, 175, 200)
TOP_K: Final = (10, 24)
AT_ONCE: Final = 32
REPEATED: Final = 3
# 0: FAISS chooses, and scans a partition for all queries at once.
SCANS: Final = {"all at once": 0, "by query": 11}


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("source", metavar="SOURCE")
    arguments.add_argument("--queries", type=int, default=4000, metavar="N", help="(%(default)s)")
    chosen = arguments.parse_args()
    snapshot, queries = prepared(chosen.source, chosen.queries)
    print(measure(snapshot, queries))


def prepared(source: str, count: int) -> tuple[Snapshot, Embeddings]:
    """The snapshot of the index, and embeddings of test images in random order, of length 1."""
    settings = load_settings()
    index = open_index(settings)
    if not isinstance(index, EmbeddedIndex):
        sys.exit("only the embedded store has partitions: set IMAGE_SEARCH_STORE=embedded")
    folder = index.files.snapshots
    versions = versions_in(folder)
    if not versions:
        sys.exit("the index has no snapshot: ingest more than 10,000 images first")
    snapshot = open_snapshot(folder, versions[0], manifest_json(index._table) or b"")
    opened = open_source(source, split="test", data_dir=settings.local_dir)
    numbers = random.Random(0).sample(range(opened.total), min(count, opened.total))
    embedder = load_embedder(index, settings)
    with make_decoder(settings) as decoder:
        size = embedder.model.input_size
        pixels = [
            embedder.pixels(open_image(item.content, size, decoder))
            for item in opened.pick(set(numbers))
            if not isinstance(item.content, ImageError)
        ]
    random.Random(0).shuffle(pixels)
    parts = batches(np.array(pixels), BATCH)
    return snapshot, normalised(np.concatenate([embedder.embed(part) for part in parts]))


def measure(snapshot: Snapshot, queries: Embeddings) -> Table:
    """A row for each way."""
    faiss.omp_set_num_threads(1)
    exact = exactly(snapshot, queries, max(TOP_K))
    rows = []
    for probes, count, scan in product(PARTITIONS, CANDIDATES, SCANS):
        snapshot.codes.implem = SCANS[scan]
        parameters = faiss.SearchParametersIVF(nprobe=probes)

        def find(part: Embeddings) -> Any:
            return snapshot.codes.search(part, count, params=parameters)[1]  # noqa: B023

        found = np.concatenate([find(part) for part in batches(queries, AT_ONCE)])
        some = queries[: 10 * AT_ONCE]

        def compare() -> None:
            for part, positions in zip(
                batches(some, AT_ONCE),  # noqa: B023
                batches(found, AT_ONCE),  # noqa: B023
                strict=False,
            ):
                scores_at("cosine", part, snapshot.vectors, snapshot.lengths, positions)

        searching = seconds(lambda: [find(part) for part in batches(some, AT_ONCE)])  # noqa: B023
        half = len(queries) // 2
        rows.append(
            [
                f"{probes} of {snapshot.codes.nlist}",
                f"{count}",
                scan,
                *(
                    f"{recall(found[part], exact[part, :top_k]):.4f}"
                    for top_k in TOP_K
                    for part in (slice(half), slice(half, None))
                ),
                f"{100 * searching:.2f}",
                f"{100 * seconds(compare):.2f}",
            ]
        )
    header = ["partitions", "candidates", "scanned"]
    header += [f"recall@{top_k}, {half}" for top_k in TOP_K for half in ("to choose", "to report")]
    header += ["FAISS, ms", "exact comparison, ms"]
    return Table(f"{len(snapshot):,} vectors, {AT_ONCE} queries at once", header, rows)


def exactly(snapshot: Snapshot, queries: Embeddings, count: int) -> NDArray[np.intp]:
    """The positions of the nearest rows of each query, best first."""
    rows = normalised(snapshot.vectors)
    best = []
    for part in batches(queries, 8 * AT_ONCE):
        scores = part @ rows.T
        found = np.argpartition(-scores, count, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(scores, found, 1), axis=1)
        best.append(np.take_along_axis(found, order, 1))
    return np.concatenate(best)


def recall(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """The part of the nearest that are among the candidates."""
    pairs = zip(found.tolist(), exact.tolist(), strict=True)
    return sum(len({*row} & {*nearest}) for row, nearest in pairs) / exact.size


def seconds(work: Callable[[], object]) -> float:
    """The least processor time of the thread."""
    took = []
    for _ in range(REPEATED):
        started = time.thread_time()
        work()
        took.append(time.thread_time() - started)
    return min(took)


if __name__ == "__main__":
    main()
