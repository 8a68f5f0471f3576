"""All measurements in turn, as ratios of one run: machines differ, and are busy.

usage: python -m benchmarks.bench SOURCE [--images N]

Prints tables, and saves them with plots in docs/benchmarks. SOURCE is CIFAR-10's archive, cifar10
or sample; real images are what counts.
"""

import json
import multiprocessing
import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import engines, ingest, quality, serving, stores
from benchmarks.measure import Table, parser

PARTS = (engines, quality, ingest, stores, serving)
FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
LIBRARIES = {
    "faiss-cpu",
    "keras",
    "lancedb",
    "numpy",
    "onnxruntime",
    "openvino",
    "tensorflow",
    "tensorflow-cpu",
}

# By the title of a table with curves: the plot's file, its axes, and whether y is logarithmic.
PLOTS = {
    engines.TITLE: ("engines.png", "batch size, images", "images/s", False),
    stores.TITLES[1]: ("store-one-query.png", "vectors", "p50, ms", True),
    stores.TITLES[stores.AT_ONCE]: ("store-many-queries.png", "vectors", "p50, ms", True),
    "POST /search, many clients": ("serving.png", "clients at once", "searches/s", False),
}


def main() -> None:
    """Command line."""
    arguments = parser(__doc__).parse_args()
    facts = {
        "source": Path(arguments.source).name,
        "images": f"{arguments.images:,}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "Python": platform.python_version(),
        **dict(sorted(versions())),
    }
    tables: list[Table] = []
    # Each part in a new process, without what another has loaded.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for part in PARTS:
            for table in pool.submit(part.measure, arguments.source, arguments.images).result():
                print(table, flush=True)
                tables.append(table)
    save(facts, tables)


def processor() -> str:
    """Its name, where the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> Iterator[tuple[str, str]]:
    """Of the libraries that decide the figures."""
    for distribution in distributions():
        name = distribution.name.replace("_", "-")
        if name in LIBRARIES:
            yield name, distribution.version


def save(facts: dict[str, str], tables: Sequence[Table]) -> None:
    """Write results.json, results.md and the plots."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figures = {table.title: table.figures for table in tables}
    results = json.dumps({"facts": facts, "figures": figures}, indent=2)
    (FOLDER / "results.json").write_text(results + "\n")
    text = ["# Results of `python -m benchmarks.bench`\n"]
    text += ["\n".join(f"- {name}: {fact}" for name, fact in facts.items()) + "\n"]
    for table in tables:
        text.append(str(table))
        if table.title in PLOTS:
            file, *_ = PLOTS[table.title]
            draw(table)
            text.append(f"![{table.title}]({file})\n")
    (FOLDER / "results.md").write_text("\n".join(text))


def draw(table: Table) -> None:
    """Plot the curves of a table."""
    file, x_label, y_label, logarithmic = PLOTS[table.title]
    curves: dict[str, dict[float, float]] = {}
    for name, figure in table.figures.items():
        curve, at, x = name.partition(" @ ")
        if at:
            curves.setdefault(curve, {})[float(x)] = figure
    chart = Figure(figsize=(8, 5), layout="constrained")
    axes = chart.subplots()
    for curve, points in curves.items():
        axes.plot(list(points), list(points.values()), marker="o", label=curve)
    ticks = sorted({x for points in curves.values() for x in points})
    axes.set(title=table.title, xlabel=x_label, ylabel=y_label, xscale="log")
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    if logarithmic:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    chart.savefig(FOLDER / file, dpi=120)


if __name__ == "__main__":
    main()
