"""What ten million and a billion images take, worked out of measured figures and published limits.

usage: python -m benchmarks.scale

No machine was available on which that could be measured. What one core takes to decode a photo and
draw its thumbnail is measured by this program, for 64 JPEG files of 500 x 375 pixels; the other
figures are those of docs/explanation/performance.md and docs/how-to/pinecone.md, which name the
programs that print them. A GPU's rate is its maker's bf16 limit over the operations of VGG16: no
program reaches that, so it is an upper bound, and the hours are a lower one.
"""

import statistics
import time
from typing import Final

from benchmarks.gpu import TERAFLOPS, operations, photos
from benchmarks.measure import Table
from image_search import images
from image_search.embedding import min_side, to_pixels

SIZES: Final = (10_000_000, 1_000_000_000)
INPUT_SIZE: Final = 160
GPUS: Final = (1, 8, 64)
CHIPS: Final = ("L4", "A100", "H100")
HOUR: Final = 3_600
# Images a second on two cores, int8, in batches of 32: docs/explanation/performance.md
TWO_CORES: Final = 50
# Of names that a source lists: seconds and MiB for a million; the same page.
NAME_SECONDS: Final = 6.7e-6
NAME_MEBIBYTES: Final = 339e-6
# Bytes of an image and its thumbnail at Pinecone, and write units: docs/how-to/pinecone.md
RECORD: Final = 2_265
THUMBNAIL: Final = 6_020
WRITE_UNITS: Final = 8.31
# Records a second that one worker upserted, with 32 requests a second; and requests that it sends.
UPSERTED: Final = 9_010
REQUESTS_FOR_THAT: Final = 32
REQUESTS: Final = 85
IDS_PER_LIST: Final = 100
# Of the embedded store: vectors, thumbnails of photos, and as much again for a snapshot.
EMBEDDED: Final = 2 * (4 * 512 + 7_788)
IN_MEMORY: Final = 150
# Amazon's, for each prefix of a bucket:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html
GETS: Final = 5_500
KEYS_PER_LIST: Final = 1_000


def main() -> None:
    """Print the tables."""
    decoding = milliseconds_to_decode()
    for table in (embedding(decoding), pinecone(), embedded(), bucket()):
        print(table, flush=True)


def milliseconds_to_decode() -> float:
    """Of one core, for a photo: the median of all."""
    spent = []
    for content in photos():
        started = time.process_time()
        image = images.decode(content, max_pixels=len(content) * 8, min_side=min_side(INPUT_SIZE))
        to_pixels(image, INPUT_SIZE)
        images.thumbnail(image)
        spent.append(time.process_time() - started)
    return 1_000 * statistics.median(spent)


def embedding(decoding: float) -> Table:
    """Hours to embed, and what else they take."""
    rows = []
    for chip in CHIPS:
        rate = TERAFLOPS[chip] * 1e12 / operations(INPUT_SIZE)
        for gpus in GPUS:
            hours = [f"{count / (gpus * rate) / HOUR:,.2f}" for count in SIZES]
            cores = f"{gpus * rate * decoding / 1_000:,.0f}"
            rows.append([f"{gpus} {chip}", f"{gpus * rate:,.0f}", *hours, cores])
    for machines in GPUS:
        rate = machines * TWO_CORES
        hours = [f"{count / rate / HOUR:,.0f}" for count in SIZES]
        cores = f"{rate * decoding / 1_000:,.1f}"
        rows.append([f"{machines} x two cores, measured", f"{rate:,.0f}", *hours, cores])
    return Table(
        f"Photos at {INPUT_SIZE} pixels: GPUs at their makers' limits, which is an upper bound",
        ["", "images/s", *(f"hours for {count:,}" for count in SIZES), "cores that decode"],
        rows,
        [
            f"an image is {operations(INPUT_SIZE) / 1e9:.1f} billion operations",
            f"a photo costs a core {decoding:.1f} ms to decode, resize and draw small",
            f"a core decodes 10 million photos in {SIZES[0] * decoding / 1_000 / HOUR:,.0f} hours",
        ],
    )


def pinecone() -> Table:
    """Size, units and hours at least."""
    rate = UPSERTED / REQUESTS_FOR_THAT * REQUESTS
    rows = []
    for count in SIZES:
        size = count * (RECORD + THUMBNAIL) / 1e9
        listing = count / IDS_PER_LIST
        rows.append(
            [
                f"{count:,}",
                f"{size:,.0f}",
                f"{count * WRITE_UNITS / 1e6:,.0f}",
                f"{count / UPSERTED / HOUR:,.1f}",
                f"{count / rate / HOUR:,.1f}",
                f"{count * RECORD / 1e9:,.1f}",
                f"{listing:,.0f}",
                f"{listing / REQUESTS / HOUR:,.1f}",
            ]
        )
    return Table(
        "Pinecone, one namespace",
        [
            "images",
            "GB",
            "million write units",
            "hours of upserts, one worker",
            "hours of upserts, all workers",
            "read units of a search",
            "read units to list the ids",
            "hours of that",
        ],
        rows,
        [
            f"{rate:,.0f} records a second at {REQUESTS} requests of as many records as measured",
            "cost = write units x price + GB x price a month + searches x read units x price",
        ],
    )


def embedded() -> Table:
    """Disk and memory of the embedded store, and of whoever lists the names."""
    rows = [
        [
            f"{count:,}",
            f"{count * EMBEDDED / 1e9:,.0f}",
            f"{count * IN_MEMORY / 1e9:,.1f}",
            f"{count * NAME_SECONDS / 60:,.1f}",
            f"{count * NAME_MEBIBYTES / 1024:,.1f}",
        ]
        for count in SIZES
    ]
    header = [
        "images",
        "GB on disk, with a snapshot",
        "GB of memory to search",
        "minutes to list names",
        "GiB to list names",
    ]
    return Table("The embedded store, and a list of names", header, rows)


def bucket() -> Table:
    """Requests of object storage where each image is an object."""
    rows = [
        [
            f"{count:,}",
            f"{count:,}",
            f"{count / KEYS_PER_LIST:,.0f}",
            f"{count / GETS / HOUR:,.1f}",
        ]
        for count in SIZES
    ]
    header = ["images", "GET", "LIST", f"hours at {GETS:,} GET/s, one prefix"]
    return Table("A bucket with an object for each image", header, rows)


if __name__ == "__main__":
    main()
