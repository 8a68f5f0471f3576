"""How many neighbours show the same kind of thing, by what is made of the network's features.

usage: python -m benchmarks.recipes SOURCE [--images N]

Embeddings of train images, searched exactly by cosine for test images. What is fitted is fitted to
train images; what had to be chosen was chosen on one half of the test images, and the table is of
the other half. The cost is that of a query, in CPU time; plain embeddings cost 1.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure import (
    ACTIVATION_IMAGES,
    BATCH,
    INPUT_SIZE,
    Table,
    batches,
    load_images,
    medians,
    normalised,
    run,
    weights,
)
from image_search.embedding import Embedder, measure_activation_maxima, measure_features, to_pixels
from image_search.recipe import CHANNELS
from image_search.values import DIMENSION, Embeddings, Features, Pixels
from worker.recipes import IMAGES, fit_discriminant, fit_whitening

QUERIES = 5000
QUERIES_AT_ONCE = 250
RANKING_QUERIES = 500  # a ranking of all images takes most of the time
COST_ROUNDS = 20
ASKED_POINTS = {"whitening (default)": 5, "discriminant": 15}
LAST_BLOCK = slice(-CHANNELS[-1], None)
PLAIN = "none: the last block's average"
WHITENING = "whitening (default)"
DISCRIMINANT = "discriminant"
MIRRORED = "whitening, mean of the query and its mirror image"
LARGER_SIZE = 48
LARGER = f"whitening, images enlarged to {LARGER_SIZE} pixels"

Labels = NDArray[np.str_]


@dataclass(frozen=True)
class Precision:
    """Shares of the nearest, and of the ten nearest, of the query's kind; mean average precision.

    The last is of the full ranking: "Introduction to Information Retrieval", section 8.4.
    """

    at_1: float
    at_10: float
    mean_average: float


def measure(source: str, images: int) -> list[Table]:
    """Index `images` train images, ask with the reporting half of the test images."""
    pixels, names = load_images(source, "train", images)
    queries, query_names = load_images(source, "test", min(images, QUERIES))
    labels = np.array(names)
    # Sources are ordered by label.
    rng = np.random.default_rng(0)
    order = rng.permutation(len(pixels))
    reported = np.random.default_rng(0).permutation(len(queries))[len(queries) // 2 :]
    queries, query_labels = queries[reported], np.array(query_names)[reported]
    maxima = measure_activation_maxima(weights(), pixels[order[:ACTIVATION_IMAGES]])
    indexed, asked, mirrored = (
        measure_features(weights(), INPUT_SIZE, maxima, batches(batch, BATCH))
        for batch in (pixels, queries, queries[:, :, ::-1])
    )
    fitted_to = order[: IMAGES["whitening"]]
    labelled = order[: IMAGES["discriminant"]]
    whitening = fit_whitening(indexed[fitted_to])
    discriminant = fit_discriminant(indexed[labelled], labels[labelled].tolist())
    last = indexed[fitted_to][:, LAST_BLOCK]
    variants: dict[str, Callable[[Features], Features]] = {
        PLAIN: lambda features: features[:, LAST_BLOCK],
        "the same, centred": lambda features: features[:, LAST_BLOCK] - last.mean(axis=0),
        "the same, square roots, centred": components(np.sqrt(last), 0, np.sqrt),
        "the same, partly whitened": components(np.sqrt(last), 0.4, np.sqrt),
        "four blocks, not whitened": components(*four_blocks(indexed[fitted_to], 0)),
        "four blocks, half whitened": components(*four_blocks(indexed[fitted_to], 0.5)),
        "four blocks, fully whitened": components(*four_blocks(indexed[fitted_to], 1)),
        WHITENING: whitening.apply,
        DISCRIMINANT: discriminant.apply,
    }
    found = {
        name: precision(make(indexed), labels, make(asked), query_labels)
        for name, make in variants.items()
    }
    both = whitening.apply(asked) + whitening.apply(mirrored)
    found[MIRRORED] = precision(whitening.apply(indexed), labels, both, query_labels)
    enlarged, enlarged_queries = enlarge(pixels), enlarge(queries)
    larger_maxima = measure_activation_maxima(weights(), enlarged[order[:ACTIVATION_IMAGES]])
    larger, larger_asked = (
        measure_features(weights(), LARGER_SIZE, larger_maxima, batches(batch, BATCH))
        for batch in (enlarged, enlarged_queries)
    )
    larger_whitening = fit_whitening(larger[fitted_to])
    found[LARGER] = precision(
        larger_whitening.apply(larger), labels, larger_whitening.apply(larger_asked), query_labels
    )
    plain, with_whitening, with_discriminant = (
        Embedder(weights(), INPUT_SIZE, maxima, recipe)
        for recipe in (None, whitening, discriminant)
    )
    with_larger = Embedder(weights(), LARGER_SIZE, larger_maxima, larger_whitening)
    batch = pixels[:BATCH]
    costs = cost(
        {
            PLAIN: lambda: plain.embed(batch),
            WHITENING: lambda: with_whitening.embed(batch),
            DISCRIMINANT: lambda: with_discriminant.embed(batch),
            LARGER: lambda: with_larger.embed(enlarged[:BATCH]),
        }
    )
    costs[MIRRORED] = 2 * costs[WHITENING]
    return [table(found, costs, len(pixels), len(queries))]


def enlarge(pixels: Pixels) -> Pixels:
    """The images at LARGER_SIZE."""
    return np.array([to_pixels(Image.fromarray(image), LARGER_SIZE) for image in pixels])


def components(
    rows: Features, power: float, prepare: Callable[[Features], Features]
) -> Callable[[Features], Features]:
    """Principal components of prepared rows, divided by their deviations to this power."""
    mean = rows.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    largest = slice(None, -DIMENSION - 1, -1)
    variances = np.maximum(values[largest], 0)
    projection = vectors[:, largest] * (variances + 0.1 * variances.mean()) ** (-power / 2)
    projection = projection.astype(np.float32)

    def make(features: Features) -> Features:
        prepared = prepare(features if features.shape[1] == len(mean) else features[:, LAST_BLOCK])
        return np.asarray((prepared - mean) @ projection)

    return make


def four_blocks(
    features: Features, power: float
) -> tuple[Features, float, Callable[[Features], Features]]:
    """Arguments of `components` for square roots of all blocks, as much variance in each."""
    variances = np.sqrt(features).var(axis=0)
    scales = np.concatenate(
        [
            np.full(len(block), block.sum() ** -0.5, np.float32)
            for block in np.split(variances, np.cumsum(CHANNELS)[:-1])
        ]
    )
    return np.sqrt(features) * scales, power, lambda rows: np.sqrt(rows) * scales


def precision(
    indexed: Embeddings, labels: Labels, asked: Embeddings, query_labels: Labels
) -> Precision:
    """Of an exact search by cosine."""
    rows = normalised(indexed)
    first, ten = [], []
    average: list[float] = []
    for number, batch in enumerate(batches(normalised(asked), QUERIES_AT_ONCE)):
        similarities = batch @ rows.T
        wanted = query_labels[QUERIES_AT_ONCE * number :][: len(batch), np.newaxis]
        nearest = np.argpartition(similarities, -10, axis=1)[:, -10:]
        ten.append((labels[nearest] == wanted).mean(axis=1))
        first.append(labels[similarities.argmax(axis=1)] == wanted[:, 0])
        if len(average) < RANKING_QUERIES:
            for row, label in zip(similarities, wanted[:, 0], strict=True):
                ranks = 1 + np.flatnonzero(labels[np.argsort(-row)] == label)
                average.append(float(np.mean(np.arange(1, len(ranks) + 1) / ranks)))
    return Precision(
        float(np.concatenate(first).mean()),
        float(np.concatenate(ten).mean()),
        float(np.mean(average)),
    )


def cost(embedders: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """CPU time of an image of a batch, as multiples of that of plain embeddings."""
    seconds: dict[str, list[float]] = {name: [] for name in embedders}
    for _ in range(COST_ROUNDS):
        for name, embed in embedders.items():
            started = time.process_time()
            embed()
            seconds[name].append(time.process_time() - started)
    times = medians(seconds)
    return {name: times[name] / times[PLAIN] for name in embedders}


def table(
    found: Mapping[str, Precision], costs: Mapping[str, float], images: int, queries: int
) -> Table:
    """A line a variant, and the gains against what was asked."""
    rows, notes, figures = [], [], {}
    for name, figure in found.items():
        times = f"{costs[name]:.2f}" if name in costs else ""
        rows.append(
            [
                name,
                *(f"{value:.3f}" for value in (figure.at_1, figure.at_10, figure.mean_average)),
                times,
            ]
        )
        figures[f"precision@10, {name}"] = figure.at_10
        figures[f"mAP, {name}"] = figure.mean_average
        asked = ASKED_POINTS.get(name)
        if asked is not None:
            gain = 100 * (figure.at_10 - found[PLAIN].at_10)
            notes.append(f"{name}: {gain:+.1f} points of precision@10 (at least {asked})")
    notes.append(
        f"{images:,} images, {queries:,} queries, of which {min(queries, RANKING_QUERIES):,} for "
        "the mean average precision; int8"
    )
    header = ["variant", "precision@1", "precision@10", "mAP", "cost of a query"]
    return Table("Recipes: exact search, held-out queries", header, rows, notes, figures)


if __name__ == "__main__":
    run(measure, __doc__)
