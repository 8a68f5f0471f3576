"""Pictures: the sample's drawings, noise, and files of them."""

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from worker.sources import Item, sample

# What `drawn` yields.
KINDS: Final = sample.KINDS[:4]
PER_KIND: Final = 12


# A drawing of the sample by kind and seed. It is drawn once, so nobody may change it.
draw: Final = cache(sample.draw)
# A drawing that no index of the tests holds.
QUERY: Final = draw(KINDS[1], 1000)


def drawn() -> Iterator[Item]:
    """PER_KIND drawings of each of KINDS, with ids like `tree-07` and their number as `n`."""
    for kind in KINDS:
        for seed in range(PER_KIND):
            yield Item(f"{kind}-{seed:02d}", kind, np.asarray(draw(kind, seed)), {"n": seed})


def encode(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    """The file of an image."""
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def png(seed: int, size: tuple[int, int] = (20, 10)) -> bytes:
    """The file of a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    return encode(Image.fromarray(pixels))


def folder_of(path: Path, count: int) -> Path:
    """A folder of so many pictures of noise, with three labels."""
    for number in range(count):
        file = path / f"label{number % 3}" / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    return path
