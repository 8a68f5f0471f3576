"""An ingest on Ray of a folder with a million names: the driver's memory, and the first records.

usage: python -m benchmarks.names [--names N]

The names are hard links to a thousand small pictures, so that they take little to make. The index
is there already, as a new one is fitted first. Two nodes of Ray are processes on this machine. It
ends once the first records are in the index.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Table
from image_search.settings import load_settings
from image_search.stores import open_index
from tests.support.images import png

PICTURES: Final = 1_000
FOLDERS: Final = 1_000
ASKED_MEBIBYTES: Final = 1_024
ASKED_SECONDS: Final = 20.0
MOST_SECONDS: Final = 600.0


def make_names(folder: Path, names: int) -> None:
    """So many links to pictures of noise, in folders by label."""
    pictures = folder.with_name("pictures")
    pictures.mkdir()
    for number in range(PICTURES):
        (pictures / f"{number}.png").write_bytes(png(number))
    for label in range(FOLDERS):
        (folder / f"label{label:03d}").mkdir(parents=True)
    for number in range(names):
        name = folder / f"label{number % FOLDERS:03d}" / f"{number:07d}.png"
        os.link(pictures / f"{number // FOLDERS % PICTURES}.png", name)


def first_records(folder: Path, data: Path, address: str) -> tuple[float, float]:
    """Seconds until there are more records than before, and the most MiB of the driver."""
    settings = load_settings(store="embedded", data_dir=data)
    environ = {
        **os.environ,
        "IMAGE_SEARCH_STORE": "embedded",
        "IMAGE_SEARCH_DATA_DIR": str(data),
        "IMAGE_SEARCH_INPUT_SIZE": "32",
        "IMAGE_SEARCH_RECIPE": "none",
        "RAY_ADDRESS": address,
    }
    command = [sys.executable, "-m", "worker", "ingest"]
    few = [str(folder / "label000"), "--limit", "1"]
    subprocess.run([*command, *few], env=environ, check=True, stdout=subprocess.DEVNULL)
    index = open_index(settings)
    before = index.count()
    started = time.perf_counter()
    driver = subprocess.Popen(
        [*command, str(folder), "--on", "ray"], env=environ, stdout=subprocess.DEVNULL
    )
    try:
        while index.count() == before:
            if driver.poll() is not None or time.perf_counter() - started > MOST_SECONDS:
                raise SystemExit("the ingest ended without records")
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        status = Path(f"/proc/{driver.pid}/status").read_text()
    finally:
        driver.send_signal(signal.SIGINT)
        driver.wait()
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return seconds, int(kilobytes) / 1024


def measure(names: int, root: Path) -> Table:
    """Files go below the folder."""
    from ray.cluster_utils import Cluster

    folder = root / "names"
    make_names(folder, names)
    cluster: Any = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, include_dashboard=False)
        seconds, mebibytes = first_records(folder, root / "data", cluster.address)
    finally:
        cluster.shutdown()
    return Table(
        f"Ray: a folder of {names:,} names",
        ["the driver, at most resident, MiB", "first records after, s"],
        [[f"{mebibytes:,.0f}", f"{seconds:.1f}"]],
        [
            f"{mebibytes:,.0f} MiB (under {ASKED_MEBIBYTES:,})",
            f"{seconds:.1f} s (at most {ASKED_SECONDS:.0f})",
        ],
        {"driver, MiB": mebibytes, "first records, s": seconds},
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", type=int, default=1_000_000, metavar="N", help="(%(default)s)")
    with tempfile.TemporaryDirectory(prefix="names-") as root:
        print(measure(parser.parse_args().names, Path(root)))


if __name__ == "__main__":
    main()
