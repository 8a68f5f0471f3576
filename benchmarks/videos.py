"""Ingest of videos: speed, memory, and whether a moment in a long video is found.

usage: python -m benchmarks.videos [speed] [memory] [moments] [--minutes N] [--video FILE]

Speed is that of a worker on a new index with the default engine, beside bare PyAV with the same
sampling and then the bare engine, in turns. Videos are made here: 1080p25 in H.264, panned over
pictures of discs that cover each other, with grain, and a cut each two seconds. A minute is made
and repeated, for speed five times or --minutes. With --video, that file is the minute, or it is
made there.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
from PIL import Image, ImageDraw

from benchmarks.measure import BATCH, MEBI, Table, timed
from image_search.embedding import Embedder, Network, measure_activation_maxima
from image_search.manifest import Manifest
from image_search.moments import seconds_of
from image_search.settings import load_settings
from image_search.stores import create_index
from image_search.values import BUNDLED, Pixels
from image_search.videos import Sampling
from worker.ingest import ingest
from worker.sources import open_source, sample

INPUT_SIZE = 160
SIZE = (1920, 1080)
RATE = 25
SECONDS = 60
MINUTES = 5
TURNS = 3
DISCS = 3000
SMALLEST = 8.0  # pixels, a radius
GRAIN = 3.0  # standard deviation, of 255
ASKED_SPEED = {"one frame a second": 12.0, "key frames": 50.0}
ASKED_RATIO = 0.85
HOUR = 3600
ASKED_MEBIBYTES = 1536
PLANTED = 100
OTHERS = 3  # for each that is planted
SHOWN = 2.3  # seconds
ASKED_FOUND = 98


# --- videos ---------------------------------------------------------------------------------------


def leaves(seed: int, size: tuple[int, int]) -> Pixels:
    """Discs that cover each other, which have edges, surfaces and sizes as photographs have them.

    Dead leaves, https://doi.org/10.1023/A:1011109015675, with radii of a density of r^-3.
    """
    random = np.random.default_rng(seed)
    height = size[1]
    smallest, largest = SMALLEST**-2, (height / 2) ** -2
    radii = (smallest - random.random(DISCS) * (smallest - largest)) ** -0.5
    places = random.random((DISCS, 2)) * size
    colours = random.integers(0, 256, (DISCS, 3)).tolist()
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    for (x, y), radius, colour in zip(places, radii, colours, strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour))
    return np.asarray(image)


def panned(seconds: int) -> Iterator[Pixels]:
    """Frames that move by two pixels, over another picture each two seconds; with grain."""
    width, height = SIZE
    random = np.random.default_rng(0)
    grain = random.normal(0, GRAIN, (height + 64, width + 64, 1)).astype(np.float32)
    for start in range(0, seconds, 2):
        picture = leaves(start, (width + 4 * RATE, height + 2 * RATE))
        for frame in range(min(2, seconds - start) * RATE):
            shown = picture[frame : frame + height, 2 * frame : 2 * frame + width]
            y, x = random.integers(0, 64, 2)
            noisy = shown + grain[y : y + height, x : x + width]
            yield noisy.clip(0, 255).astype(np.uint8)


def write(path: Path, frames: Iterator[Pixels], rate: int, **options: str) -> None:
    """H.264 in MP4."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(frames):
            if number == 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def repeat(source: Path, target: Path, times: int) -> None:
    """The same video so often, one after another, without coding it again."""
    with av.open(str(target), "w") as out:
        stream: Any = None
        offset = 0
        for _ in range(times):
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                if stream is None:
                    stream = out.add_stream_from_template(video)
                end = 0
                for packet in container.demux(video):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = stream
                    out.mux(packet)
                offset += end


# --- speed ----------------------------------------------------------------------------------------


def default_embedder(pixels: Pixels) -> tuple[Embedder, Manifest]:
    """Plain embeddings in int8, as of an index that begins with a video."""
    maxima = measure_activation_maxima(BUNDLED, pixels)
    embedder = Embedder(Network(BUNDLED, INPUT_SIZE, maxima), None)
    return embedder, Manifest.new(embedder.model, "cosine", "__default__", maxima, "as set")


def bare_frames(path: Path, *, key_frames: bool) -> Iterator[Image.Image]:
    """The first frame of each second, as PyAV's examples read them: all threads, no limits."""
    due = 0.0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        if key_frames:
            stream.codec_context.skip_frame = "NONKEY"
        for frame in container.decode(stream):
            if frame.time >= due - 1e-6:
                due = int(frame.time + 1e-6) + 1
                yield Image.fromarray(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))


def minute(video: Path | None, folder: Path) -> Path:
    """The video that is measured with, which is made unless it is there."""
    path = video or folder / "minute.mp4"
    if not path.exists():
        write(path, panned(SECONDS), RATE, preset="veryfast", crf="23")
    return path


def key_share(path: Path) -> tuple[int, float]:
    """Bytes of a key frame, on average, and their share of all."""
    with av.open(str(path)) as container:
        sizes = [(p.is_keyframe, p.size) for p in container.demux(video=0)]
    keys = [size for is_key, size in sizes if is_key and size]
    return sum(keys) // len(keys), sum(keys) / sum(size for _, size in sizes)


def speed(video: Path | None, minutes: int) -> Table:
    """Ingest beside what it is made of, in turns."""
    seconds = minutes * SECONDS
    rows = []
    notes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "videos"
        folder.mkdir()
        path = folder / "a.mp4"
        repeat(minute(video, Path(name)), path, minutes)
        size = path.stat().st_size
        key_size, key_part = key_share(path)
        pictures = np.stack([leaves(n, (INPUT_SIZE, INPUT_SIZE)) for n in range(64)])
        embedder, manifest = default_embedder(pictures)
        embedder.warm_up()
        for what, asked in ASKED_SPEED.items():
            key_frames = what == "key frames"
            sampling = Sampling(key_frames=key_frames)
            read = partial(bare_frames, path, key_frames=key_frames)
            pixels = [embedder.pixels(image) for image in read()]
            took: dict[str, list[float]] = {"ingest": [], "decode": [], "embed": []}
            for turn in range(TURNS):
                settings = load_settings(store="embedded", data_dir=Path(name) / f"{what}{turn}")
                with create_index(settings, manifest) as index:
                    source = open_source(str(folder), data_dir=Path(name))
                    run = partial(ingest, source, index, embedder, settings, sampling=sampling)
                    took["ingest"].append(timed(run))
                    count = index.count()
                took["decode"].append(timed(lambda: deque(read(), maxlen=0)))  # noqa: B023
                took["embed"].append(timed(partial(embed_all, embedder, pixels)))
            ours, decode, embed = (seconds * TURNS / sum(one) for one in took.values())
            bare = 1 / (1 / decode + 1 / embed)
            speeds = [f"{one:.1f}" for one in (ours, bare, decode, embed)]
            rows.append([what, f"{count}", *speeds, f"{ours / bare:.2f}"])
            notes.append(f"{what}: {ours:.1f} times as fast as it plays; asked {asked:g}")
            notes.append(f"{what}: {ours / bare:.2f} of bare PyAV and engine; asked {ASKED_RATIO}")
    bits = size * 8 / seconds / 1e6
    title = f"Ingest of {minutes} min of 1080p25 H.264, {bits:.1f} Mbit/s: times its playing time"
    notes.append(f"a key frame has {key_size / 1000:.0f} kB; all, {key_part:.0%} of the video")
    header = ["frames", "records", "ingest", "bare", "its PyAV", "its engine", "ratio"]
    return Table(title, header, rows, notes)


def embed_all(embedder: Embedder, pixels: list[Pixels]) -> None:
    """As the worker does, in batches."""
    for start in range(0, len(pixels), BATCH):
        embedder.embed(pixels[start : start + BATCH])


# --- memory ---------------------------------------------------------------------------------------


def memory(video: Path | None, _: int) -> Table:
    """The worker's command on an hour of video: the memory of all its processes, meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "videos"
        folder.mkdir()
        repeat(minute(video, Path(name)), folder / "hour.mp4", HOUR // SECONDS)
        seen: list[tuple[float, int]] = []
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "ingest", str(folder)],
            env={**os.environ, "IMAGE_SEARCH_DATA_DIR": str(Path(name) / "data")},
            stdout=subprocess.DEVNULL,
        )
        watching = threading.Thread(target=_watch, args=(process, seen))
        started = time.monotonic()
        watching.start()
        code = process.wait()
        took = time.monotonic() - started
        watching.join()
    if code:
        sys.exit(f"the worker ended with exit code {code}")
    parts = [0.1, 0.25, 0.5, 0.75, 1.0]
    rows = [
        [f"{low:.0%} to {high:.0%}", f"{_peak(seen, low * took, high * took) / MEBI:,.0f}"]
        for low, high in pairwise(parts)
    ]
    most = max(size for _, size in seen) / MEBI
    return Table(
        f"Memory of the worker and its processes over {HOUR // 60} minutes of 1080p25",
        ["part of the run", "most MiB"],
        rows,
        [
            f"at most {most:,.0f} MiB; asked {ASKED_MEBIBYTES:,}",
            f"{HOUR / took:.1f} times as fast as it plays",
        ],
    )


def _watch(process: "subprocess.Popen[bytes]", seen: list[tuple[float, int]]) -> None:
    worker = psutil.Process(process.pid)
    started = time.monotonic()
    while process.poll() is None:
        with suppress(psutil.Error):
            family = [worker, *worker.children(recursive=True)]
            total = sum(one.memory_info().rss for one in family)
            seen.append((time.monotonic() - started, total))
        time.sleep(0.2)


def _peak(seen: list[tuple[float, int]], start: float, end: float) -> int:
    return max(size for at, size in seen if start <= at <= end)


# --- moments --------------------------------------------------------------------------------------


def moments(_: Path | None, __: int) -> Table:
    """Drawn pictures, each for 2.3 s of a video; those that are planted are searched for."""
    kinds = sample.KINDS
    count = PLANTED * (OTHERS + 1)
    pictures = [
        sample.draw(kinds[number % len(kinds)], 10_000 + number).resize((320, 320))
        for number in range(count)
    ]
    order = np.random.default_rng(0).permutation(count)
    rate = 10
    shown = [int(order[int(frame / rate / SHOWN)]) for frame in range(int(count * SHOWN * rate))]
    rows = []
    notes = []
    for what, options in {
        "good quality (crf 20)": {"crf": "20"},
        "coded again, low quality (crf 40)": {"crf": "40"},
    }.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "videos"
            folder.mkdir()
            frames = (np.asarray(pictures[number]) for number in shown)
            write(Path(name) / "good.mp4", frames, rate, preset="veryfast", crf="20")
            if options["crf"] != "20":
                with av.open(str(Path(name) / "good.mp4")) as good:
                    again = (
                        f.to_ndarray(format="rgb24").astype(np.uint8) for f in good.decode(video=0)
                    )
                    write(folder / "a.mp4", again, rate, preset="veryfast", **options)
            else:
                (Path(name) / "good.mp4").rename(folder / "a.mp4")
            embedder = Embedder.load(BUNDLED, INPUT_SIZE)
            settings = load_settings(store="embedded", data_dir=Path(name) / "data")
            manifest = Manifest.new(embedder.model, "cosine", "__default__")
            with create_index(settings, manifest) as index:
                source = open_source(str(folder), data_dir=Path(name))
                ingest(source, index, embedder, settings)
                found = 0
                for number in range(PLANTED):
                    file = io.BytesIO()
                    pictures[number].save(file, "JPEG", quality=90)
                    query = embedder.pixels(Image.open(file).convert("RGB"))
                    [match] = index.query(embedder.embed([query])[0], 1)
                    start = int(np.flatnonzero(order == number)[0]) * SHOWN
                    found += start - 1 <= seconds_of(match.id) <= start + SHOWN + 1
                rows.append([what, f"{index.count()}", f"{found}"])
                notes.append(f"{what}: {found} of {PLANTED}; asked {ASKED_FOUND}")
    minutes = count * SHOWN / 60
    return Table(
        f"{PLANTED} pictures in a video of {minutes:.0f} minutes: found at rank 1 within 1 s",
        ["video", "records", "found"],
        rows,
        notes,
    )


PARTS: dict[str, Callable[[Path | None, int], Table]] = {
    "speed": speed,
    "memory": memory,
    "moments": moments,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART")
    parser.add_argument("--minutes", type=int, default=MINUTES, metavar="N")
    parser.add_argument("--video", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    for part in arguments.parts or PARTS:
        print(PARTS[part](arguments.video, arguments.minutes), flush=True)


if __name__ == "__main__":
    main()
