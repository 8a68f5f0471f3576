"""How many bytes thumbnails of photos take, by their longer side, format and quality.

usage: python -m benchmarks.thumbnails FOLDER

What is smaller than a thumbnail stays as it is.
"""

import argparse
import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

from image_search.embedding import min_side
from image_search.images import decode, file_suffixes

SIDES = (128, 160, 200, 240)
QUALITIES = {"JPEG": (60, 75, 85), "WEBP": (60, 75, 85)}
PHOTOS = 300
MATCHES = 24
MOST_PIXELS = 64_000_000


def photos(folder: Path) -> list[Image.Image]:
    """A random sample of the photos of a folder, as they are decoded to be embedded."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in file_suffixes())
    chosen = random.Random(0).sample(files, min(PHOTOS, len(files)))
    least = min_side(160)
    return [decode(path.read_bytes(), max_pixels=MOST_PIXELS, min_side=least) for path in chosen]


def sizes(images: list[Image.Image], side: int, format_: str, quality: int) -> list[int]:
    """The bytes of each thumbnail."""
    found = []
    for image in images:
        small = image.copy()
        small.thumbnail((side, side))
        out = io.BytesIO()
        small.save(out, format_, quality=quality)
        found.append(len(out.getvalue()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thumbnails", description=__doc__)
    parser.add_argument("folder", type=Path)
    images = photos(parser.parse_args().folder)
    sides = [max(image.size) for image in images]
    print(f"{len(images)} photos; longer side: median {np.median(sides):.0f}, least {min(sides)}")
    print(f"| side | format | quality | mean bytes | 95 % below | KB of {MATCHES}, base64 |")
    print("|---|---|---|---|---|---|")
    for side in SIDES:
        for format_, qualities in QUALITIES.items():
            for quality in qualities:
                found = sizes(images, side, format_, quality)
                mean = np.mean(found)
                cells = (mean, np.percentile(found, 95), MATCHES * mean * 4 / 3 / 1000)
                print(f"| {side} | {format_} | {quality} |", *(f"{cell:,.0f} |" for cell in cells))


if __name__ == "__main__":
    main()
