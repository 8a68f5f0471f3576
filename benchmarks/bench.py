"""The figures that the project is held to, in one run: what was measured, the goal, and the result.

usage: python -m benchmarks.bench SOURCE [--other FOLDER] [--images N] [--vectors N]

Takes some 20 minutes on two cores: it needs a quiet machine, `wrk`, and 20 GB of disk for a million
vectors. Each part runs in a process of its own: one that fails is named in the table. What is
there is written to docs/benchmarks after each part. FOLDER has another commit: see
`benchmarks.searches`.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import distributions
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from benchmarks import ingest, photo, searches, stores
from benchmarks.measure import Table, parser
from benchmarks.searches import OTHER, OURS, PEER

SPAWN = multiprocessing.get_context("spawn")
FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
LIBRARIES = {"faiss-cpu", "lancedb", "numpy", "openvino"}
SMALL, DEFAULT = 32, 96  # pixels: of the earlier commit, and what `auto` takes for small images
# At the default size, an image takes the network eight times as long.
LESS = 8
AT_ONCE = stores.AT_ONCE
# The goals for the store, by whether it has many vectors: milliseconds, and recall.
ASKED_MS = {1: (1.0, 3.0), AT_ONCE: (8.0, 40.0)}
ASKED_RECALL = (0.99, 0.98)
# Memory of a process that queries them, in MiB: 1.5 times that of commit 42e6778.
ASKED_MEBIBYTES = (400, 970)


@dataclass(frozen=True)
class Part:
    """What one process measures: `measure` with arguments, at an input size."""

    name: str
    measure: Callable[..., Iterable[Table]]
    arguments: tuple[object, ...]
    input_size: int = SMALL


@dataclass
class Outcome:
    """Of one part; `other_work` is what others took of the processors, in cores."""

    started: str
    load: float
    seconds: float = 0.0
    other_work: float = 0.0
    error: str = ""
    tables: dict[str, Table] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """Those of all tables."""
        return {
            name: figure for table in self.tables.values() for name, figure in table.figures.items()
        }


@dataclass(frozen=True)
class Line:
    """Figures of a part, which all have to reach the goal if there is one.

    `form` shows them, and then those `beside`.
    """

    part: str
    name: str
    figures: tuple[str, ...]
    form: str
    goal: str = ""
    at_least: float = float("-inf")
    at_most: float = float("inf")
    beside: tuple[str, ...] = ()

    def row(self, outcome: Outcome | None) -> list[str]:
        """Name, what was measured, goal, and whether it was reached."""
        if outcome is None:
            return [self.name, "", self.goal, "not yet measured"]
        found = [outcome.figures.get(name) for name in (*self.figures, *self.beside)]
        values = [value for value in found if value is not None]
        if len(values) < len(found):
            reason = "its part failed" if outcome.error else "no --other"
            return [self.name, "", self.goal, f"not measured: {reason}"]
        reached = all(self.at_least <= each <= self.at_most for each in values[: len(self.figures)])
        result = ("reached" if reached else "missed") if self.goal else ""
        return [self.name, self.form.format(*values), self.goal, result]


def lines(images: int, vectors: int) -> Iterator[Line]:
    """The table."""
    yield from search_lines(images)
    yield from store_lines(images, vectors)
    for size in (SMALL, DEFAULT):
        yield Line(
            f"ingest at {size} pixels",
            f"ingest at {size} pixels, over the bare engine's rate",
            ("ingest / bare engine",),
            "{:.3f}: {:,.0f} images/s",
            "at least 0.95",
            at_least=0.95,
            beside=("ingest, images/s",),
        )
    yield Line(
        "photo",
        "a photo of 12 megapixels at 160 pixels, one client: p50 over its bare parts",
        ("more than its parts",),
        "{:+.1f} ms of {:.1f} ms",
        "at most +3 ms",
        at_most=3,
        beside=("p50",),
    )


def search_lines(images: int) -> Iterator[Line]:
    """The service over HTTP, at 32 pixels, in turns with the obvious way and another commit."""
    many, one = f"32 clients, {images:,} images", f"one client, {images:,} images"
    for name in (OTHER, PEER):
        yield Line(
            "searches",
            f"{many}: searches a second, times those of {name}",
            (f"rate over {name}'s @ 32",),
            "{:.2f}: {:,.0f} and {:,.0f} a second",
            "at least 2",
            at_least=2,
            beside=(f"{OURS}: searches/s @ 32", f"{name}: searches/s @ 32"),
        )
    yield Line(
        "searches",
        f"{many}: core-milliseconds a search, over the bare engine's at batch 32",
        (f"{OURS}: core-ms over the engine's @ 32",),
        "{:.2f}: {:.2f} ms",
        "at most 2.0",
        at_most=2,
        beside=(f"{OURS}: core-ms @ 32",),
    )
    for name, goal in ((OTHER, 0.45), (PEER, 1.3)):
        yield Line(
            "searches",
            f"{one}: p50, over that of {name}",
            (f"p50 over {name}'s @ 1",),
            "{:.2f}: {:.1f} and {:.1f} ms",
            f"at most {goal}",
            at_most=goal,
            beside=(f"{OURS}: p50, ms @ 1", f"{name}: p50, ms @ 1"),
        )
    for what, form in (("seconds to ready", "{:.1f} and {:.1f} s"), ("MiB", "{:,.0f} and {:,.0f}")):
        yield Line(
            "searches",
            f"start of the service, {images:,} images: {what}, over those of {OTHER}",
            (f"{what}, over {OTHER}'s",),
            f"{{:.2f}}: {form}",
            "at most 1.5",
            at_most=1.5,
            beside=(f"{OURS}: {what}", f"{OTHER}: {what}"),
        )


def store_lines(images: int, vectors: int) -> Iterator[Line]:
    """The embedded store at two sizes."""
    sizes = (images, vectors)
    for at_once, goals in ASKED_MS.items():
        for size, goal in zip(sizes, goals, strict=True):
            yield Line(
                "stores",
                f"{'one query' if at_once == 1 else f'{at_once} queries at once'} of the store, "
                f"{size:,} vectors: p50",
                (f"ours, {at_once} at once @ {size}",),
                "{:.2f} ms",
                f"at most {goal} ms",
                at_most=goal,
            )
    for size, recall in zip(sizes, ASKED_RECALL, strict=True):
        yield Line(
            "stores",
            f"recall@10, {size:,} vectors",
            (f"recall@10, {size} vectors",),
            "{:.4f}",
            f"at least {recall}",
            at_least=recall,
        )
    for size in sizes:
        for share in stores.SHARES:
            name = f"a filter that lets {100 * share:g} % through, {size:,} vectors"
            yield Line(
                "stores",
                f"{name}: recall@10",
                (f"{share:.1%} pass: recall @ {size}",),
                "{:.4f}",
                "at least 0.99",
                at_least=0.99,
            )
            yield Line(
                "stores",
                f"{name}: time over that without, one query and {AT_ONCE} at once",
                tuple(f"{share:.1%} pass: times without, {n} @ {size}" for n in (1, AT_ONCE)),
                "{:.2f} and {:.2f}",
                "at most 2",
                at_most=2,
            )
    yield Line(
        "stores",
        f"start of the service, {vectors:,} vectors: seconds to ready, and MiB resident then",
        (f"service: seconds to ready, {vectors} vectors", f"service: MiB, {vectors} vectors"),
        "{:.1f} s, {:,.0f} MiB",
    )
    for size, mebibytes in zip(sizes, ASKED_MEBIBYTES, strict=True):
        yield Line(
            "stores",
            f"a process after 200 queries of the store, {size:,} vectors: MiB resident, and "
            "without mapped files",
            (f"MiB of a reading process, {size} vectors",),
            "{:,.0f}, {:,.0f}",
            f"at most {mebibytes}",
            at_most=mebibytes,
            beside=(f"MiB of its own, {size} vectors",),
        )


def parts(
    source: str, other: Path | None, images: int, vectors: int, data: Path
) -> tuple[Part, ...]:
    """What has most to build comes last."""
    return (
        Part("searches", searches.measure, (source, images, other, data)),
        Part("photo", photo.measure, ()),
        Part(f"ingest at {SMALL} pixels", ingest.against_bare_engine, (source, images)),
        Part(
            f"ingest at {DEFAULT} pixels",
            ingest.against_bare_engine,
            (source, images // LESS),
            DEFAULT,
        ),
        Part("stores", stores.measure, (source, images, (images, vectors))),
    )


def main() -> None:
    """Command line."""
    arguments: argparse.ArgumentParser = parser(__doc__)
    arguments.add_argument("--other", type=Path, metavar="FOLDER", help="a checkout with .venv")
    arguments.add_argument(
        "--vectors", type=int, default=1_000_000, metavar="N", help="in the store (%(default)s)"
    )
    chosen = arguments.parse_args()
    facts = {
        "commit": commit_of(Path(__file__).parent),
        **({OTHER: commit_of(chosen.other)} if chosen.other else {}),
        "source": Path(chosen.source).name,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load average then": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "Python": platform.python_version(),
        **dict(sorted(versions())),
    }
    print("\n".join(f"{name}: {fact}" for name, fact in facts.items()), flush=True)
    table = list(lines(chosen.images, chosen.vectors))
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(chosen.source, chosen.other, chosen.images, chosen.vectors, Path(folder)):
            outcomes[part.name] = run(part)
            save(facts, table, outcomes)
    print("", lines_table(table, outcomes), parts_table(outcomes), sep="\n")


def run(part: Part) -> Outcome:
    """What a process makes of a part, which it prints as it comes."""
    load = os.getloadavg()[0]
    outcome = Outcome(f"{datetime.now(UTC):%H:%M:%S}", load)
    print(f"\n# {part.name}: {outcome.started} UTC, load average {load:.2f}\n", flush=True)
    started, busy, own = time.perf_counter(), busy_seconds(), own_seconds()
    # Spawned, so that nothing is loaded that another part has; the size is read at import.
    os.environ["IMAGE_SEARCH_INPUT_SIZE"] = str(part.input_size)
    receiving, sending = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=measure_part, args=(part, sending))
    process.start()
    sending.close()
    try:
        while (received := receiving.recv()) is not None:
            if isinstance(received, Table):
                outcome.tables[received.title] = received
                print(received, flush=True)
            else:
                outcome.error = received
    except EOFError:
        outcome.error = "its process ended"
    process.join()
    outcome.seconds = time.perf_counter() - started
    others = busy_seconds() - busy - (own_seconds() - own)
    outcome.other_work = max(0.0, others / outcome.seconds)
    print(
        f"{part.name}: {outcome.error or 'done'}, {outcome.seconds:.0f} s; other work took "
        f"{outcome.other_work:.2f} cores",
        flush=True,
    )
    return outcome


def measure_part(part: Part, results: Connection) -> None:
    """Send its tables, an error if there is one, and None at the end."""
    try:
        for table in part.measure(*part.arguments):
            results.send(table)
    except (Exception, SystemExit) as exc:
        traceback.print_exc()
        results.send(f"{type(exc).__name__}: {exc}".splitlines()[0])
    results.send(None)


def busy_seconds() -> float:
    """Of all processors since the start of the machine."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def own_seconds() -> float:
    """Of this process, and of all that it or its children have waited for."""
    return sum(os.times()[:4])


def commit_of(folder: Path) -> str:
    """That of a checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """Its name, where the system tells it."""
    file = Path("/proc/cpuinfo")
    text = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(": ")[2] for line in text if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> Iterator[tuple[str, str]]:
    """Of the libraries that decide the figures."""
    for distribution in distributions():
        name = distribution.name.replace("_", "-")
        if name in LIBRARIES:
            yield name, distribution.version


def lines_table(table: Sequence[Line], outcomes: Mapping[str, Outcome]) -> Table:
    """All figures and goals."""
    rows = [line.row(outcomes.get(line.part)) for line in table]
    return Table("Figures and goals", ["", "measured", "goal", "result"], rows)


def parts_table(outcomes: Mapping[str, Outcome]) -> Table:
    """How long each part took, and whether the machine was quiet."""
    rows = [
        [
            name,
            outcome.started,
            f"{outcome.seconds:.0f}",
            f"{outcome.load:.2f}",
            f"{outcome.other_work:.2f}",
            outcome.error,
        ]
        for name, outcome in outcomes.items()
    ]
    header = ["part", "started, UTC", "seconds", "load average then", "other work, cores", "error"]
    return Table("Parts", header, rows)


def save(facts: Mapping[str, str], table: Sequence[Line], outcomes: Mapping[str, Outcome]) -> None:
    """Write results.json and results.md."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    judged = lines_table(table, outcomes)
    results = {
        "facts": facts,
        "lines": [dict(zip(("line", *judged.header[1:]), row, strict=True)) for row in judged.rows],
        "parts": {
            name: {
                "started": outcome.started,
                "seconds": outcome.seconds,
                "load average then": outcome.load,
                "other work, cores": outcome.other_work,
                "error": outcome.error,
                "figures": outcome.figures,
            }
            for name, outcome in outcomes.items()
        },
    }
    (FOLDER / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    details = [each for outcome in outcomes.values() for each in outcome.tables.values()]
    text = ["# Results of `python -m benchmarks.bench`\n"]
    text += ["\n".join(f"- {name}: {fact}" for name, fact in facts.items()) + "\n"]
    text += map(str, [judged, parts_table(outcomes), *details])
    (FOLDER / "results.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
