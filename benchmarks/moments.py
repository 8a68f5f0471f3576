"""What grouping the matches by video costs, beside the same search without it.

usage: python -m benchmarks.moments [--frames N]

The embedded store holds frames of videos, made of random numbers: 20 of each, as similar to each
other as the seconds of one scene. Both searches give their matches with thumbnails.
"""

import argparse
import itertools
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measure import Table, in_turns, medians
from image_search.embedding import Embedder
from image_search.index import Record
from image_search.manifest import Manifest
from image_search.moments import frame_id
from image_search.settings import load_settings
from image_search.stores import create_index
from image_search.values import BUNDLED, DIMENSION, Embeddings, Metadata
from service.loaded_index import LoadedIndex
from service.selection import GroupBy, Selection

FRAMES = 60_000
PER_VIDEO = 20
THUMBNAIL = bytes(3_000)
QUERIES = 200
TOP_K = (10, 24, 100)
ROUNDS, CALLS = 15, 4
MOST = 1.5


def records(start: int, count: int) -> list[Record]:
    """Frames of `count` videos."""
    random = np.random.default_rng(start)
    made = []
    for number in range(start, start + count):
        video = f"clips/{number:06d}.mp4"
        scene = random.standard_normal(DIMENSION)
        for second in range(PER_VIDEO):
            frame = (scene + random.standard_normal(DIMENSION)).astype(np.float32)
            metadata: Metadata = {"video": video, "time": float(second)}
            made.append(Record(frame_id(video, second), frame, None, metadata, THUMBNAIL))
    return made


def measure(frames: int) -> Table:
    """Median times, in turns, of both."""
    queries = np.random.default_rng(1).standard_normal((QUERIES, DIMENSION)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(store="embedded", metric="cosine", data_dir=Path(folder))
        embedder = Embedder.load(BUNDLED, 32)
        manifest = Manifest.new(embedder.model, settings.metric, settings.namespace)
        with create_index(settings, manifest) as index:
            for start in range(0, frames // PER_VIDEO, 1_000):
                index.upsert(records(start, min(1_000, frames // PER_VIDEO - start)))
            index.flush()
            loaded = LoadedIndex(index, embedder, None)
            rows, figures = [], {}
            for top_k in TOP_K:
                askers = {
                    group_by: partial(_ask, loaded, itertools.cycle(queries), top_k, group_by)
                    for group_by in ("none", "video")
                }
                seconds = medians(in_turns(askers, ROUNDS, CALLS))
                ratio = seconds["video"] / seconds["none"]
                figures[f"by video / plain, top {top_k}"] = ratio
                times = (f"{1000 * each:.1f}" for each in seconds.values())
                rows.append([str(top_k), *times, f"{ratio:.2f}"])
    header = ["top_k", "plain, p50 ms", "by video, p50 ms", f"by video / plain (aim: {MOST})"]
    return Table(f"Search by video: {frames:,} frames", header, rows, [], figures)


def _ask(
    loaded: LoadedIndex, queries: "itertools.cycle[Embeddings]", top_k: int, by: GroupBy
) -> None:
    selection = Selection(top_k, group_by=by)
    query = next(queries)
    thumbnails = selection.with_thumbnails(loaded.index)
    matches = loaded.index.query(query, selection.candidates, thumbnails=thumbnails)
    found = selection.choose(loaded, None, query, matches).found
    assert len(found) == top_k


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--frames", type=int, default=FRAMES, metavar="N", help="(%(default)s)")
    print(measure(arguments.parse_args().frames))


if __name__ == "__main__":
    main()
