"""Our embedded store beside FAISS, which searches exactly and in memory.

usage: python -m benchmarks.stores SOURCE [--images N] [--sizes N …]

The vectors are embeddings of the source's images, and beyond those jittered copies of them. Both
answer with ids, labels, scores and thumbnails; FAISS takes them from a Python list.
"""

import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.faiss_comparison import RANKS, THREADS, TOP_K, FaissComparison
from benchmarks.measure import (
    INPUT_SIZE,
    Default,
    Table,
    batches,
    embed_all,
    in_turns,
    load_images,
    medians,
    parser,
    ready_process,
)
from benchmarks.searches import OURS as SERVICE
from benchmarks.searches import STARTS, Server, environ_of
from image_search.settings import load_settings
from image_search.values import Embeddings

SIZES = (50_000, 200_000, 1_000_000)
QUERIES = 1000
OURS, FAISS = "ours", "FAISS"
AT_ONCE = 32
ROUNDS = {1: 15, AT_ONCE: 8}  # by queries at once
CALLS = {1: 10, AT_ONCE: 2}  # timed in a turn
TITLES = {
    1: f"Embedded store: one query, top {TOP_K}",
    AT_ONCE: f"Embedded store: {AT_ONCE} queries at once, top {TOP_K}",
}

# Of all records, those that filters let through.
SHARES = (0.1, 0.01, 0.001)
FILTER_QUERIES = 200

READER_PROCESS = """
import sys
from pathlib import Path
import numpy
from image_search.settings import load_settings
from image_search.stores import open_index
index = open_index(load_settings(store="embedded", data_dir=Path(sys.argv[1])))
for query in numpy.load(sys.argv[2])[:200]:
    index.query(query, 10)
"""


@dataclass(frozen=True)
class Result:
    """Of one size; `p50` in seconds, by queries at once and store.

    `filtered` is that of ours by queries at once and share that passes, `recalls` by share.
    """

    size: int
    p50: dict[int, dict[str, float]]
    recall: float
    build_seconds: float
    reader_mebibytes: float
    reader_own_mebibytes: float
    service_seconds: float
    service_mebibytes: float
    filtered: dict[int, dict[float | None, float]]
    recalls: dict[float, float]


def measure(source: str, images: int, sizes: Sequence[int] = SIZES) -> Iterator[Table]:
    """One index grows from size to size; at each, both are queried in turns.

    After each, the tables are those of all sizes so far.
    """
    pixels, labels = load_images(source, "train", images)
    default = Default.of(pixels)
    real = embed_all(default.embedder.embed, pixels)
    queries = embed_all(
        default.embedder.embed, load_images(source, "test", min(images, QUERIES))[0]
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(store="embedded", metric="cosine", data_dir=Path(folder))
        both = FaissComparison(settings, default, real, labels)
        file = Path(folder) / "queries.npy"
        np.save(file, queries)
        results: list[Result] = []
        for size in sizes:
            seconds = both.grow(size) + (results[-1].build_seconds if results else 0)
            print(f"{size:,} vectors: built in {seconds:.0f} s", flush=True)
            recall = recall_of(both, queries)
            p50 = {
                at_once: medians(in_turns(askers(both, queries, at_once), ROUNDS[at_once], calls))
                for at_once, calls in CALLS.items()
            }
            filtered = {
                at_once: medians(
                    in_turns(filterers(both, queries, at_once), ROUNDS[at_once], calls)
                )
                for at_once, calls in CALLS.items()
            }
            recalls = {
                share: recall_of(both, queries[:FILTER_QUERIES], ranks_of(share))
                for share in SHARES
            }
            _, mebibytes, own = ready_process(READER_PROCESS, folder, str(file))
            service = start_service(Path(folder))
            results.append(
                Result(size, p50, recall, seconds, mebibytes, own, *service, filtered, recalls)
            )
            yield from (query_table(results, at_once) for at_once in CALLS)
            yield filter_table(results)
            yield build_table(results)


def start_service(data: Path) -> tuple[float, float]:
    """Seconds until the service answers, and its MiB resident then: medians of some starts."""
    environ = environ_of(data) | {"IMAGE_SEARCH_INPUT_SIZE": str(INPUT_SIZE)}
    server = Server(SERVICE, [sys.executable, "-m", "service"], environ, Path(__file__).parents[1])
    for _ in range(STARTS):
        with server.running():
            pass
    return statistics.median(server.seconds), statistics.median(server.mebibytes)


def ranks_of(share: float | None) -> int | None:
    """The ranks that a share of the records are below."""
    return None if share is None else round(share * RANKS)


def asker(
    ask: Callable[[Embeddings], object], queries: Embeddings, at_once: int
) -> Callable[[], object]:
    """What asks the next queries at each call."""
    upcoming = itertools.cycle(batches(queries[: len(queries) // at_once * at_once], at_once))
    return lambda: ask(next(upcoming))


def askers(
    both: FaissComparison, queries: Embeddings, at_once: int
) -> dict[str, Callable[[], object]]:
    """For each store, what asks it."""
    return {
        name: asker(ask, queries, at_once)
        for name, ask in zip((OURS, FAISS), (both.ours, both.faiss), strict=True)
    }


def filterers(
    both: FaissComparison, queries: Embeddings, at_once: int
) -> dict[float | None, Callable[[], object]]:
    """For each share of the records that may pass, and for no filter, what asks our store."""
    return {
        share: asker(partial(both.ours, ranks=ranks_of(share)), queries, at_once)
        for share in (None, *SHARES)
    }


def recall_of(both: FaissComparison, queries: Embeddings, ranks: int | None = None) -> float:
    """The part of FAISS's exact answers that our index finds."""
    found, exact = (
        [ids for batch in batches(queries, AT_ONCE) for ids in ask(batch, ranks)]
        for ask in (both.ours, both.faiss)
    )
    pairs = zip(found, exact, strict=True)
    return statistics.mean(
        len(set(ours) & set(faiss)) / len(faiss) if faiss else float(not ours)
        for ours, faiss in pairs
    )


def query_table(results: Sequence[Result], at_once: int) -> Table:
    """Median times of queries."""
    first = results[0]
    rows = []
    figures: dict[str, float] = {}
    for result in results:
        p50 = result.p50[at_once]
        to_faiss = p50[OURS] / p50[FAISS]
        to_first = p50[OURS] / first.p50[at_once][OURS]
        rows.append(
            [
                f"{result.size:,}",
                *(f"{1000 * seconds:.1f}" for seconds in p50.values()),
                f"{to_faiss:.2f}",
                f"{to_first:.2f}",
                f"{result.recall:.4f}",
            ]
        )
        figures |= {f"{name}, {at_once} at once @ {result.size}": 1000 * p50[name] for name in p50}
        figures[f"recall@{TOP_K}, {result.size} vectors"] = result.recall
    header = ["vectors", "ours, p50 ms", f"FAISS flat, {THREADS} threads, p50 ms"]
    header += ["ours / FAISS", f"ours / ours at {first.size:,}", f"recall@{TOP_K}"]
    return Table(TITLES[at_once], header, rows, [], figures)


def filter_table(results: Sequence[Result]) -> Table:
    """Median times of queries with a filter, and what they find."""
    rows = []
    figures: dict[str, float] = {}
    for result in results:
        for share in SHARES:
            row = [f"{result.size:,}", f"{share:.1%}"]
            for at_once, p50 in result.filtered.items():
                times = p50[share] / p50[None]
                row += [f"{1000 * p50[share]:.1f}", f"{times:.2f}"]
                figures[f"{share:.1%} pass: times without, {at_once} @ {result.size}"] = times
            rows.append([*row, f"{result.recalls[share]:.4f}"])
            figures[f"{share:.1%} pass: recall @ {result.size}"] = result.recalls[share]
    header = ["vectors", "pass"]
    for at_once in CALLS:
        header += [f"{at_once} at once, p50 ms", "times without"]
    title = "Embedded store: queries with a filter"
    return Table(title, [*header, f"recall@{TOP_K}"], rows, [], figures)


def build_table(results: Sequence[Result]) -> Table:
    """What it takes to have the index."""
    rows, figures = [], {}
    for result in results:
        rate = result.size / result.build_seconds
        rows.append(
            [
                f"{result.size:,}",
                f"{result.build_seconds:.1f}",
                f"{rate:,.0f}",
                f"{result.reader_mebibytes:,.0f}",
                f"{result.reader_own_mebibytes:,.0f}",
                f"{result.service_seconds:.1f}",
                f"{result.service_mebibytes:,.0f}",
            ]
        )
        figures[f"seconds to build, {result.size} vectors"] = result.build_seconds
        figures[f"MiB of a reading process, {result.size} vectors"] = result.reader_mebibytes
        figures[f"MiB of its own, {result.size} vectors"] = result.reader_own_mebibytes
        figures[f"service: seconds to ready, {result.size} vectors"] = result.service_seconds
        figures[f"service: MiB, {result.size} vectors"] = result.service_mebibytes
    header = ["vectors", "upserts and flushes so far, s", "vectors/s", "reading process, MiB"]
    header += ["without mapped files", "service: seconds to ready", "MiB resident then"]
    return Table("Embedded store: build and memory", header, rows, [], figures)


def main() -> None:
    """Command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    chosen = arguments.parse_args()
    tables = {table.title: table for table in measure(chosen.source, chosen.images, chosen.sizes)}
    print(*tables.values(), sep="\n")


if __name__ == "__main__":
    main()
