"""How many pictures that are unlike an index are recognised, and how many like it are refused.

usage: python -m benchmarks.familiarity CIFAR10 PHOTOS [--size PIXELS] [--images N] [--queries N]

CIFAR10 is its archive, PHOTOS a folder with the folders `train` and `validation`. Each index is a
random sample of train images, and `own` are held-out images of its kind. Unlike them are those of
the other two, noise (uniform and normal, of three sizes), and pictures of a single colour.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import ACTIVATION_IMAGES, BATCH, Table, batches, weights
from image_search.embedding import Embedder, measure_activation_maxima, to_pixels
from image_search.errors import ImageError
from image_search.familiarity import UNFAMILIAR_BELOW, Familiarity
from image_search.sample import ImageSample
from image_search.settings import load_settings
from image_search.values import Features, Pixels
from worker.ingest import make_decoder, open_image
from worker.sources import Split, open_source

COLOURS = ["black", "white", "grey", "red", "lime", "blue", "yellow", "navy"]
NOISE_SIDES = (32, 64, 240)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cifar10", metavar="CIFAR10")
    parser.add_argument("photos", type=Path, metavar="PHOTOS")
    parser.add_argument("--size", type=int, default=64, metavar="PIXELS", help="(%(default)s)")
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="(%(default)s)")
    parser.add_argument("--queries", type=int, default=500, metavar="N", help="(%(default)s)")
    arguments = parser.parse_args()
    folder: Path = arguments.photos
    kinds: dict[str, tuple[tuple[str, Split], tuple[str, Split]]] = {
        "drawings": (("sample", "train"), ("sample", "test")),
        "CIFAR-10": ((arguments.cifar10, "train"), (arguments.cifar10, "test")),
        "photos": ((str(folder / "train"), "train"), (str(folder / "validation"), "train")),
    }
    size, queries = arguments.size, arguments.queries
    held_out = {name: pixels(*held, size, queries) for name, (_, held) in kinds.items()}
    held_out["noise"] = resized(noise(150), size)
    held_out["one colour"] = resized((Image.new("RGB", (64, 64), c) for c in COLOURS), size)
    rows = []
    for name, (source, _) in kinds.items():
        indexed = pixels(*source, size, arguments.images)
        maxima = measure_activation_maxima(weights(), indexed[:ACTIVATION_IMAGES])
        embedder = Embedder.load(weights(), size, maxima)
        sample = ImageSample().joined(
            [str(n) for n in range(len(indexed))], seen(embedder, indexed)
        )
        familiarity = Familiarity(sample)
        unfamiliar = {
            kind: np.mean(familiarity.p_values(seen(embedder, asked)) < UNFAMILIAR_BELOW)
            for kind, asked in held_out.items()
        }
        own = f"{100 * unfamiliar.pop(name):.1f} %"
        unlike = (f"{kind} {100 * share:.0f} %" for kind, share in unfamiliar.items())
        rows.append([name, f"{len(indexed):,}", own, ", ".join(unlike)])
    header = ["index", "images", "own refused", "unlike it, recognised"]
    print(Table(f"Familiarity at {size} pixels, int8", header, rows))


def pixels(name: str, split: Split, size: int, count: int) -> Pixels:
    """uint8 [n, size, size, 3] of images drawn at random."""
    settings = load_settings()
    decoder = make_decoder(settings)

    def images() -> Iterator[Image.Image]:
        source = open_source(name, split=split, data_dir=settings.local_dir)
        for item in source.limited(count).items():
            if not isinstance(item.content, ImageError):
                yield open_image(item.content, size, decoder)

    try:
        found = resized(images(), size)
    finally:
        decoder.close()
    return np.random.default_rng(0).permutation(found)


def resized(images: Iterator[Image.Image], size: int) -> Pixels:
    """uint8 [n, size, size, 3]."""
    return np.array([to_pixels(image, size) for image in images])


def noise(count: int) -> Iterator[Image.Image]:
    """Uniform and normal noise in turns."""
    rng = np.random.default_rng(0)
    for number in range(count):
        side = NOISE_SIDES[number % len(NOISE_SIDES)]
        shape = (side, side, 3)
        values = rng.integers(0, 256, shape) if number % 2 else rng.normal(128, 40, shape)
        yield Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def seen(embedder: Embedder, images: Pixels) -> Features:
    """The textures of images."""
    found = [embedder.embed_with_textures(batch)[1] for batch in batches(images, BATCH)]
    return np.concatenate(found)


if __name__ == "__main__":
    main()
