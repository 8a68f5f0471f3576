"""A photo of 12 megapixels at 160 pixels, one client: what the service adds to its bare parts.

usage: python -m benchmarks.photo

The index has some of the drawn sample. The parts, decoding, embedding and the query, take turns
with the service, in a process of their own.
"""

import asyncio
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from benchmarks.measure import Table
from benchmarks.serving import PORT, exchange, search_request, service
from image_search.embedding import Embedder, min_side
from image_search.settings import load_settings
from image_search.stores import open_index
from worker.ingest import make_decoder

SIZE = (4000, 3000)
INPUT_SIZE = 160
IMAGES = 200
NOT_COUNTED = 3
TURNS = 40
ASKED_MS = 3


def photo() -> bytes:
    """A JPEG with the detail of a photo: noise of several scales."""
    rng = np.random.default_rng(0)
    total = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    for scale in (2, 8, 40, 200):
        small = rng.normal(0, 20, (SIZE[1] // scale, SIZE[0] // scale, 3))
        layer = Image.fromarray(np.clip(small + 128, 0, 255).astype(np.uint8))
        total += np.asarray(layer.resize(SIZE, Image.Resampling.BICUBIC), np.float32) - 128
    file = io.BytesIO()
    Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def measure() -> list[Table]:
    """Medians of turns."""
    content = photo()
    with tempfile.TemporaryDirectory() as folder:
        environ = {
            **os.environ,
            "IMAGE_SEARCH_DATA_DIR": folder,
            "IMAGE_SEARCH_INPUT_SIZE": str(INPUT_SIZE),
        }
        worker = [sys.executable, "-m", "worker", "ingest", "sample", "--limit", str(IMAGES)]
        subprocess.run(worker, env=environ, check=True, stdout=subprocess.DEVNULL)
        with service(environ):
            took = asyncio.run(in_turns(content, folder))
    p50 = {name: 1000 * statistics.median(seconds[NOT_COUNTED:]) for name, seconds in took.items()}
    parts = [name for name in p50 if name != "POST /search"]
    more = p50["POST /search"] - sum(p50[name] for name in parts)
    table = Table(
        f"A photo of {SIZE[0] * SIZE[1] / 1e6:.0f} megapixels, {len(content) / 1e6:.1f} MB, at "
        f"{INPUT_SIZE} pixels, one client: p50 in ms",
        [*p50, "more than its parts"],
        [[*(f"{milliseconds:.1f}" for milliseconds in p50.values()), f"{more:+.1f}"]],
        [f"{more:+.1f} ms over its parts (at most +{ASKED_MS})"],
        {"p50": p50["POST /search"], "more than its parts": more},
    )
    return [table]


async def in_turns(content: bytes, folder: str) -> dict[str, list[float]]:
    """Seconds of the service, and of each of its parts."""
    settings = load_settings(data_dir=folder)
    took: dict[str, list[float]] = {
        "POST /search": [],
        "decoding": [],
        "embedding": [],
        "query": [],
    }
    request = search_request(content)
    decoder = make_decoder(settings)
    with open_index(settings) as index:
        model, maxima = index.manifest.model, index.manifest.activation_maxima
        embedder = Embedder.load(model.weights, model.input_size, maxima, index.load_recipe())
        connection = await asyncio.open_connection("127.0.0.1", PORT)
        for _ in range(NOT_COUNTED + TURNS):
            times = [time.perf_counter()]
            if await exchange(connection, request) != 200:
                sys.exit("the service did not answer")
            times.append(time.perf_counter())
            pixels = embedder.pixels(decoder.decode(content, min_side=min_side(INPUT_SIZE)))
            times.append(time.perf_counter())
            embedding = embedder.embed(pixels[np.newaxis])[0]
            times.append(time.perf_counter())
            index.query(embedding, 10)
            times.append(time.perf_counter())
            for name, seconds in zip(took, np.diff(times).tolist(), strict=True):
                took[name].append(seconds)
        connection[1].close()
    decoder.close()
    return took


if __name__ == "__main__":
    print(*measure())
