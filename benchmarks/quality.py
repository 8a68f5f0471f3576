"""What int8 finds beside float32, by exact search for held-out images.

usage: python -m benchmarks.quality SOURCE [--images N]
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import (
    INPUT_SIZE,
    Default,
    Table,
    batches,
    embed_all,
    load_images,
    normalised,
    run,
    weights,
)
from image_search.embedding import Embedder
from image_search.values import Embeddings, Pixels

QUERIES = 2000
NEIGHBOURS = 10
QUERIES_AT_ONCE = 200
ASKED_POINTS = 0.5


def measure(source: str, images: int) -> list[Table]:
    """Index `images` training images, ask with test images, in both precisions."""
    pixels, labels = load_images(source, "train", images)
    queries, query_labels = load_images(source, "test", min(images, QUERIES))
    default = Default.of(pixels)
    embedders = {
        "int8 (default)": default.embedder,
        "float32": Embedder.load(weights(), INPUT_SIZE, recipe=default.recipe),
    }
    found = {
        name: neighbours(embedder.embed, pixels, queries) for name, embedder in embedders.items()
    }
    int8, float32 = found.values()
    relevant = np.array(query_labels)[:, np.newaxis]
    precisions = {
        name: 100 * (np.array(labels)[numbers] == relevant).mean(axis=1)
        for name, numbers in found.items()
    }
    overlaps = [
        100 * len(np.intersect1d(*pair)) / NEIGHBOURS for pair in zip(int8, float32, strict=True)
    ]
    int8_precisions, float32_precisions = precisions.values()
    lost = float32_precisions - int8_precisions
    error = lost.std() / len(lost) ** 0.5
    return [
        Table(
            f"int8 beside float32: {len(pixels):,} images, {len(queries):,} held-out queries",
            ["precision", f"precision@{NEIGHBOURS}, %", f"overlap@{NEIGHBOURS} with float32, %"],
            [
                ["float32", f"{float32_precisions.mean():.2f}", "100"],
                ["int8 (default)", f"{int8_precisions.mean():.2f}", f"{np.mean(overlaps):.2f}"],
            ],
            [
                f"int8 loses {lost.mean():.2f} points of precision@{NEIGHBOURS} (at most "
                f"{ASKED_POINTS}), standard error {error:.2f}"
            ],
            {
                f"precision@{NEIGHBOURS}, float32": float(float32_precisions.mean()),
                f"precision@{NEIGHBOURS}, int8": float(int8_precisions.mean()),
                f"overlap@{NEIGHBOURS}": float(np.mean(overlaps)),
            },
        )
    ]


def neighbours(
    embed: Callable[[Pixels], Embeddings], pixels: Pixels, queries: Pixels
) -> NDArray[np.intp]:
    """The numbers of the images nearest to each query by cosine, [queries, 10], in no order."""
    rows = normalised(embed_all(embed, pixels))
    asked = normalised(embed_all(embed, queries))
    nearest = [
        np.argpartition(batch @ rows.T, -NEIGHBOURS)[:, -NEIGHBOURS:]
        for batch in batches(asked, QUERIES_AT_ONCE)
    ]
    return np.concatenate(nearest)


if __name__ == "__main__":
    run(measure, __doc__)
