"""Above which score two pictures are the same picture, saved again.

usage: python -m benchmarks.duplicates CIFAR10 PHOTOS

CIFAR10 is CIFAR-10's archive, PHOTOS a folder or archive with the splits train and val. Ten edits
of each of 200 images are searched for among 3,000 images, of which these are part. The threshold
is the one with the best F1 among copies of one half of the 200; precision and recall are those of
the other half.
"""

import argparse
import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.measure import Table, normalised
from benchmarks.recipes import BATCH, FITS, DataSet, load, opened, seen_by_network
from image_search.embedding import to_pixels
from image_search.recipe import Recipe
from image_search.values import PLAIN_POOLING, Embeddings, Pixels
from worker.recipes import form_for

INDEXED = 3_000
EDITED = 200
THRESHOLDS = np.arange(0.5, 1, 0.01)


def saved(image: Image.Image, file_format: str, quality: int) -> Image.Image:
    """Written to a file and read again."""
    file = io.BytesIO()
    image.save(file, file_format, quality=quality)
    return Image.open(file).convert("RGB")


def scaled(image: Image.Image, x: float, y: float) -> Image.Image:
    """In another size."""
    return image.resize((max(1, round(x * image.width)), max(1, round(y * image.height))))


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without so much of each side."""
    width, height = image.size
    return image.crop(
        (
            round(share * width),
            round(share * height),
            width - round(share * width),
            height - round(share * height),
        )
    )


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 75": lambda image: saved(image, "JPEG", 75),
    "JPEG, quality 40": lambda image: saved(image, "JPEG", 40),
    "WebP, quality 60": lambda image: saved(image, "WEBP", 60),
    "64 colours": lambda image: image.quantize(64).convert("RGB"),
    "three quarters of the size": lambda image: scaled(image, 0.75, 0.75),
    "half the size": lambda image: scaled(image, 0.5, 0.5),
    "a tenth narrower": lambda image: scaled(image, 0.9, 1),
    "2 % off each side": lambda image: cropped(image, 0.02),
    "5 % off each side": lambda image: cropped(image, 0.05),
    "a tenth brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
}


def measure(data: DataSet, size: int) -> list[Table]:
    """A threshold for each recipe, and the recall of each edit."""
    maxima = data.maxima(size)
    form = form_for(size)
    poolings = (PLAIN_POOLING, form.pooling)
    pictures = opened(data.indexed.items[:INDEXED], size)
    edited = [edit(picture) for edit in EDITS.values() for picture in pictures[:EDITED]]
    known, copied = (
        seen_by_network(batches(some, size), size, maxima, poolings) for some in (pictures, edited)
    )
    recipes: dict[str, Recipe | None] = {
        "none": None,
        **{
            name: fit(known[form.pooling], data.indexed.labels[:INDEXED], form)
            for name, fit in FITS.items()
        },
    }
    rows, recalls = [], []
    for name, recipe in recipes.items():
        make = recipe.apply if recipe else normalised
        pooling = recipe.form.pooling if recipe else PLAIN_POOLING
        similarities = make(copied[pooling]) @ make(known[pooling]).T
        scores = similarities.reshape(len(EDITS), EDITED, -1)
        own = np.arange(EDITED)
        copies = scores[:, own, own]
        others = scores.copy()
        others[:, own, own] = -1
        choosing, reporting = np.arange(EDITED) % 2 == 0, np.arange(EDITED) % 2 == 1
        quality = [_f1(copies[:, choosing], others[:, choosing], at) for at in THRESHOLDS]
        chosen = float(THRESHOLDS[np.argmax(quality)])
        found = copies[:, reporting] >= chosen
        wrong = (others[:, reporting] >= chosen).sum()
        precision = found.sum() / max(found.sum() + wrong, 1)
        rows.append([name, f"{chosen:.2f}", f"{precision:.3f}", f"{found.mean():.3f}"])
        recalls.append([f"{share:.2f}" for share in found.mean(axis=1)])
    by_edit = [
        [edit, *column] for edit, column in zip(EDITS, zip(*recalls, strict=True), strict=True)
    ]
    title = f"{data.name}, {size} pixels"
    return [
        Table(f"Near-duplicates: {title}", ["recipe", "score", "precision", "recall"], rows),
        Table(f"Recall by edit: {title}", ["edit", *recipes], by_edit),
    ]


def _f1(copies: Embeddings, others: Embeddings, threshold: float) -> float:
    found = (copies >= threshold).sum()
    return float(2 * found / (found + (others >= threshold).sum() + copies.size))


def batches(pictures: list[Image.Image], size: int) -> Iterator[Pixels]:
    """uint8 [n, size, size, 3], a few at a time."""
    for start in range(0, len(pictures), BATCH):
        yield np.array([to_pixels(picture, size) for picture in pictures[start : start + BATCH]])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cifar10", metavar="CIFAR10")
    parser.add_argument("photos", metavar="PHOTOS")
    arguments = parser.parse_args()
    for name, source, size in (
        ("CIFAR-10", arguments.cifar10, 96),
        ("Photos", arguments.photos, 160),
    ):
        for table in measure(DataSet(name, load(source, "train"), None), size):
            print(table, flush=True)


if __name__ == "__main__":
    main()
