"""How many neighbours show the same kind of thing, by input size and by recipe.

usage: python -m benchmarks.recipes CIFAR10 PHOTOS [--images N]

CIFAR10 is CIFAR-10's archive, PHOTOS a folder or archive with the splits train and val and a folder
for each label. The images of train are indexed, and searched exactly by cosine. What had to be
chosen was chosen with one half of CIFAR-10's test images, and with the photos of train, each left
out of its own matches; the last table is of the other half of CIFAR-10's test images and of the
photos of val. Recipes are fitted to indexed images only. All is in int8 where nothing else is said,
and costs are CPU time on all cores, for batches of 32.
"""

import argparse
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure import ACTIVATION_IMAGES, Table, normalised, weights
from image_search.embedding import measure_activation_maxima, to_pixels
from image_search.engines.openvino import compile_forward
from image_search.recipe import Form, Recipe
from image_search.settings import load_settings
from image_search.values import PLAIN_POOLING, Embeddings, Features, Pixels, Pooling
from image_search.weights import load_weights
from worker.ingest import make_decoder, open_image
from worker.measures import Floats, average_precision, bootstrap_interval, precision_at
from worker.recipes import IMAGES, fit_components, fit_discriminant, fit_neighbours, form_for
from worker.sources import Item, Split, open_source

BATCH = 32
QUERIES_AT_ONCE = 250
RANKING_QUERIES = 500  # a ranking of all images takes most of the time
EXPANSION = 3
RANKED_AGAIN = 100
NEIGHBOURS = 50
CHOOSING_IMAGES = 3_000
CHOOSING_QUERIES = 500
FLOAT32_IMAGES = 1_000
FLOAT32_QUERIES = 300
SIZES = (32, 64, 96, 128, 160)
ACTIVATION_COUNTS = (16, 64, 256)

Labels = NDArray[np.str_]
Expand = Callable[[Embeddings, Embeddings], Embeddings]
Rank = Callable[[Embeddings, Embeddings], NDArray[np.intp]]
Fit = Callable[[Features, Sequence[str | None], Form], Recipe]
FITS: dict[str, Fit] = {
    "neighbours": lambda features, _, form: fit_neighbours(features, form),
    "components": lambda features, _, form: fit_components(features, form),
    "discriminant": fit_discriminant,
}


@dataclass(frozen=True)
class Images:
    """Images as they were read, as their pixels would take more room."""

    items: Sequence[Item]

    @property
    def labels(self) -> list[str | None]:
        """The label of each."""
        return [item.label for item in self.items]

    def pixels(self, size: int) -> Iterator[Pixels]:
        """In batches, uint8 [n, size, size, 3]."""
        for start in range(0, len(self.items), BATCH):
            pictures = opened(self.items[start : start + BATCH], size)
            yield np.array([to_pixels(picture, size) for picture in pictures])


def seen_by_network(
    batches: Iterable[Pixels], size: int, maxima: Sequence[float], poolings: Sequence[Pooling]
) -> dict[Pooling, Features]:
    """Features of pixels, in one pass, pooled in each way."""
    forward = compile_forward(load_weights(weights())[1], size, maxima, poolings)
    rows = np.concatenate([forward(batch) for batch in batches])
    ends = np.cumsum([sum(pooling.channels) for pooling in poolings])[:-1]
    return dict(zip(poolings, np.split(rows, ends, axis=1), strict=True))


@dataclass(frozen=True)
class DataSet:
    """Images to index and to search for; without queries, each searches for the others."""

    name: str
    indexed: Images
    queries: Images | None

    def smaller(self, images: int, queries: int) -> "DataSet":
        """Of the first so many."""
        asked = self.queries and Images(self.queries.items[:queries])
        return DataSet(self.name, Images(self.indexed.items[:images]), asked)

    def maxima(self, size: int, images: int = ACTIVATION_IMAGES) -> tuple[float, ...]:
        """For int8, measured on so many images."""
        drawn = Images(self.indexed.items[:images])
        return measure_activation_maxima(weights(), np.concatenate(list(drawn.pixels(size))))


@dataclass(frozen=True)
class Seen:
    """Features of a data set, pooled in several ways."""

    data: DataSet
    indexed: dict[Pooling, Features]
    asked: dict[Pooling, Features] | None
    milliseconds: float

    @classmethod
    def of(
        cls, data: DataSet, size: int, maxima: Sequence[float], poolings: Sequence[Pooling]
    ) -> "Seen":
        """CPU time is that of the indexed images, with reading and resizing."""
        started = time.process_time()
        indexed = seen_by_network(data.indexed.pixels(size), size, maxima, poolings)
        milliseconds = 1000 * (time.process_time() - started) / len(data.indexed.items)
        asked = None
        if data.queries:
            asked = seen_by_network(data.queries.pixels(size), size, maxima, poolings)
        return cls(data, indexed, asked, milliseconds)

    def fit(self, name: str, form: Form) -> Recipe:
        """To as many of the indexed images as the worker takes."""
        features = self.indexed[form.pooling][:IMAGES]
        return FITS[name](features, self.data.indexed.labels[:IMAGES], form)

    def precision(
        self,
        recipe: Recipe | None,
        expand: Expand = lambda _, asked: asked,
        rank: Rank | None = None,
    ) -> "Precision":
        """Of searches for the queries."""
        make: Callable[[Features], Embeddings] = recipe.apply if recipe else normalised
        pooling = recipe.form.pooling if recipe else PLAIN_POOLING
        rows = make(self.indexed[pooling])
        labels = np.array(self.data.indexed.labels)
        if self.asked is None or self.data.queries is None:
            return search(rows, labels, rows, labels, leave_out=True)
        asked = expand(rows, make(self.asked[pooling]))
        return search(rows, labels, asked, np.array(self.data.queries.labels), rank=rank)


@dataclass(frozen=True)
class Precision:
    """Of each query, float64 [n]; average precision is of the full ranking, of 500 at most.

    "Introduction to Information Retrieval", section 8.4.
    """

    at_1: Floats
    at_10: Floats
    average: Floats

    def cells(self) -> list[str]:
        """Means, with 95 % intervals of the last two."""
        intervals = [
            f"{values.mean():.3f} ({low[0]:.3f} to {high[0]:.3f})"
            for values in (self.at_10, self.average)
            for low, high in [bootstrap_interval(values[:, None], np.random.default_rng(0))]
        ]
        return [f"{self.at_1.mean():.3f}", *intervals]


def search(
    rows: Embeddings,
    labels: Labels,
    asked: Embeddings,
    asked_labels: Labels,
    *,
    leave_out: bool = False,
    rank: Rank | None = None,
) -> Precision:
    """An exact search by cosine; with `leave_out`, row i is no match of query i."""
    again = rank(rows, asked) if rank else None
    at_1, at_10 = [], []
    averages: list[float] = []
    ranked = set(np.linspace(0, len(asked) - 1, min(RANKING_QUERIES, len(asked))).astype(int))
    for start in range(0, len(asked), QUERIES_AT_ONCE):
        similarities = asked[start : start + QUERIES_AT_ONCE] @ rows.T
        count = len(similarities)
        if leave_out:
            similarities[np.arange(count), start + np.arange(count)] = -np.inf
        nearest = np.argpartition(-similarities, 10, axis=1)[:, :10]
        best = np.argsort(-np.take_along_axis(similarities, nearest, axis=1), axis=1)
        nearest = np.take_along_axis(nearest, best, axis=1)
        if again is not None:
            nearest = again[start : start + count]
        wanted = asked_labels[start : start + count, np.newaxis]
        relevant = labels[nearest] == wanted
        at_1.append(precision_at(relevant, 1))
        at_10.append(precision_at(relevant, 10))
        for row in range(count):
            if start + row in ranked:
                kept = similarities[row] > -np.inf
                same = labels[kept] == wanted[row]
                averages.append(average_precision(similarities[row, kept], same))
    return Precision(np.concatenate(at_1), np.concatenate(at_10), np.array(averages))


def expanded(rows: Embeddings, asked: Embeddings) -> Embeddings:
    """The mean of each query and its first three matches.

    "Total Recall: Automatic Query Expansion with a Generative Feature Model for Object Retrieval",
    https://www.robots.ox.ac.uk/~vgg/publications/2007/Chum07b/chum07b.pdf
    """
    return normalised(asked + rows[first_matches(rows, asked, EXPANSION)].sum(axis=1))


def ranked_again(rows: Embeddings, asked: Embeddings) -> NDArray[np.intp]:
    """The best ten of the first hundred matches by how many near neighbours they share, too.

    "Re-ranking Person Re-identification with k-reciprocal Encoding",
    https://arxiv.org/abs/1701.08398, without its weights.
    """
    first = first_matches(rows, asked, RANKED_AGAIN)
    matches, places = np.unique(first, return_inverse=True)
    neighbours = first_matches(rows, rows[matches], NEIGHBOURS + 1)[:, 1:]
    shared = np.array(
        [
            [np.isin(neighbours[place], own[:NEIGHBOURS]).mean() for place in row]
            for own, row in zip(first, places.reshape(first.shape), strict=True)
        ]
    )
    similarities = np.einsum("qd,qmd->qm", asked, rows[first])
    best = np.argsort(-(similarities + shared), axis=1)[:, :10]
    return np.take_along_axis(first, best, axis=1)


def first_matches(rows: Embeddings, asked: Embeddings, count: int) -> NDArray[np.intp]:
    """Of each query, best first: [n, count]."""
    found = []
    for start in range(0, len(asked), QUERIES_AT_ONCE):
        similarities = asked[start : start + QUERIES_AT_ONCE] @ rows.T
        nearest = np.argpartition(-similarities, count, axis=1)[:, :count]
        best = np.argsort(-np.take_along_axis(similarities, nearest, axis=1), axis=1)
        found.append(np.take_along_axis(nearest, best, axis=1))
    return np.concatenate(found)


def sizes(data: DataSet) -> Table:
    """Each input size with each recipe that needs no labels."""
    rows = []
    for size in SIZES:
        seen = Seen.of(data, size, data.maxima(size), (PLAIN_POOLING, form_for(size).pooling))
        found = {"none": seen.precision(None)}
        for name, of in itertools.product(("neighbours", "components"), (96, 160)):
            form = form_for(of)
            found[f"{name}, power {form.power}"] = seen.precision(seen.fit(name, form))
        for name, precision in found.items():
            milliseconds = f"{seen.milliseconds:.1f}"
            rows.append([str(size), name, *precision.cells(), milliseconds])
    header = ["input", "recipe", "P@1", "P@10", "mAP", "core-ms an image"]
    return Table(f"{data.name}: choosing the input size and the recipe", header, rows)


def forms(data: DataSet, size: int, fit: str) -> Table:
    """The form that was chosen, and it with one thing changed."""
    chosen = form_for(size)
    poolings = {exponent: replace(chosen.pooling, exponent=exponent) for exponent in (1, 3, 5, 8)}
    others = {
        "chosen": chosen,
        **{
            f"exponent {exponent}": replace(chosen, pooling=pooling)
            for exponent, pooling in poolings.items()
        },
        "blocks not at unit length": replace(chosen, unit_blocks=False),
        **{f"power {power}": replace(chosen, power=power) for power in (0.5, 1, 1.4, 2)},
        **{
            f"weights {one} and {other}": replace(chosen, weights=(one, other))
            for one, other in ((0.25, 1), (0.5, 1), (1, 1))
        },
    }
    seen = Seen.of(data, size, data.maxima(size), tuple(poolings.values()))
    rows = [[name, *seen.precision(seen.fit(fit, form)).cells()] for name, form in others.items()]
    title = f"{data.name}: choosing what is projected, at {size} pixels, {fit}"
    return Table(title, ["form", "P@1", "P@10", "mAP"], rows)


def precisions(data: DataSet, sizes: Sequence[int]) -> Table:
    """int8 against float32, with the recipe that `auto` takes."""
    rows = []
    for size in sizes:
        name, form = automatic(size)
        found = [
            seen.precision(seen.fit(name, form))
            for maxima in (data.maxima(size), ())
            for seen in [Seen.of(data, size, maxima, (form.pooling,))]
        ]
        difference = 100 * (found[0].at_10 - found[1].at_10)
        low, high = bootstrap_interval(difference[:, None], np.random.default_rng(0))
        means = [f"{precision.at_10.mean():.3f}" for precision in found]
        points = f"{difference.mean():+.2f} ({low[0]:+.2f} to {high[0]:+.2f})"
        rows.append([str(size), name, *means, points])
    header = ["input", "recipe", "P@10 in int8", "in float32", "points"]
    return Table(f"{data.name}: int8 against float32", header, rows)


def activations(data: DataSet, size: int) -> Table:
    """How many images the activations are measured on."""
    name, form = automatic(size)
    rows = []
    for count in ACTIVATION_COUNTS:
        seen = Seen.of(data, size, data.maxima(size, count), (form.pooling,))
        rows.append([str(count), *seen.precision(seen.fit(name, form)).cells()])
    title = f"{data.name}: choosing how many images activations are measured on, at {size} pixels"
    return Table(title, ["images", "P@1", "P@10", "mAP"], rows)


def report(data: DataSet, size: int) -> Table:
    """All recipes at the size that `auto` chooses."""
    chosen, form = automatic(size)
    seen = Seen.of(data, size, data.maxima(size), (PLAIN_POOLING, form.pooling))
    rows = [["none", *seen.precision(None).cells()]]
    for name in FITS:
        marked = f"{name} (default)" if name == chosen else name
        recipe = seen.fit(name, form)
        rows.append([marked, *seen.precision(recipe).cells()])
        if name == chosen:
            rows.append(["and expanded", *seen.precision(recipe, expanded).cells()])
            cells = seen.precision(recipe, rank=ranked_again).cells()
            rows.append(["and ranked again", *cells[:2], "the same"])
    queries = data.queries or data.indexed
    note = (
        f"{len(data.indexed.items):,} images, {len(queries.items):,} queries, {size} pixels, "
        f"{seen.milliseconds:.1f} core-milliseconds an image"
    )
    header = ["recipe", "P@1", "P@10", "mAP"]
    return Table(f"{data.name}: reported", header, rows, [note])


def automatic(size: int) -> tuple[str, Form]:
    """The recipe that `auto` takes at this input size."""
    form = form_for(size)
    return "neighbours" if form == form_for(SIZES[0]) else "components", form


def load(source: str, split: Split) -> Images:
    """All images of a split, in random order."""
    items = list(open_source(source, split=split, data_dir=load_settings().local_dir).items())
    return Images(random.Random(0).sample(items, len(items)))


def opened(items: Sequence[Item], size: int) -> list[Image.Image]:
    """The images of items, large enough for this input size; raises what one cannot be read for."""
    contents = []
    for item in items:
        if isinstance(item.content, Exception):
            raise item.content
        contents.append(item.content)
    with make_decoder(load_settings()) as decoder:
        return [open_image(content, size, decoder) for content in contents]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cifar10", metavar="CIFAR10")
    parser.add_argument("photos", metavar="PHOTOS")
    parser.add_argument("--images", type=int, default=50_000, metavar="N", help="(%(default)s)")
    parser.add_argument("--only-report", action="store_true", help="only the last tables")
    arguments = parser.parse_args()
    small, tests = load(arguments.cifar10, "train"), load(arguments.cifar10, "test").items
    half = len(tests) // 2
    photos, held_out = load(arguments.photos, "train"), load(arguments.photos, "val")
    if not arguments.only_report:
        choosing = [
            (DataSet("CIFAR-10, first half of the test images", small, Images(tests[:half])), 96),
            (DataSet("Photos of train, each left out of its own matches", photos, None), 160),
        ]
        for data, size in choosing:
            subset = data.smaller(CHOOSING_IMAGES, CHOOSING_QUERIES)
            print(sizes(subset), flush=True)
            print(forms(subset, size, automatic(size)[0]), flush=True)
            small_set = data.smaller(FLOAT32_IMAGES, FLOAT32_QUERIES)
            print(precisions(small_set, SIZES), flush=True)
            print(activations(subset, size), flush=True)
    indexed = Images(small.items[: arguments.images])
    print(report(DataSet("CIFAR-10, other half of the tests", indexed, Images(tests[half:])), 96))
    print(report(DataSet("Photos of val", photos, held_out), 160))


if __name__ == "__main__":
    main()
