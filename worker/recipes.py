"""Fitting a recipe to the images that a new index is made for."""

import logging
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from image_search.decoding import Decoder
from image_search.embedding import measure_features, to_pixels
from image_search.errors import ImageError
from image_search.progress import Progress
from image_search.recipe import CHANNELS, Recipe, compressed
from image_search.settings import Settings
from image_search.values import DIMENSION, Features, Pixels, RecipeName
from worker.ingest import make_decoder, open_image
from worker.sources import Item, Source

_log = logging.getLogger(__name__)

# Chosen on one half of CIFAR-10's test images: python -m benchmarks.recipes
IMAGES: Final = {"whitening": 2_000, "discriminant": 10_000}
_LEAST_IMAGES: Final = {"whitening": 100, "discriminant": 500}
_LEAST_IMAGES_PER_LABEL: Final = 20
_WHITENING_POWER: Final = 0.4
_WHITENING_SHRINKAGE: Final = 0.1
# Of the variance within labels: the fewer the images, the less of it is known.
_DISCRIMINANT_SHRINKAGE_IMAGES: Final = 500
_OTHER_DIRECTIONS: Final = 0.2
_BATCH: Final = 32
_ROUNDING: Final = 1e-6

Floats = NDArray[np.float64]


def fit_recipe(
    source: Source,
    weights: str,
    activation_maxima: Sequence[float],
    settings: Settings,
    *,
    limit: int | None,
    stop: threading.Event,
) -> Recipe | None:
    """The recipe of the settings, fitted to a random sample of the source's first `limit` images.

    None where plain embeddings are asked for, or nothing better can be had; then a line says why.
    """
    name: RecipeName = "whitening" if settings.recipe == "auto" else settings.recipe
    if name == "none":
        return None
    labels: list[str | None] = []
    batches = _batches(source, IMAGES[name], settings, limit, stop, labels)
    features = measure_features(weights, settings.input_size, activation_maxima, batches)
    try:
        if name == "discriminant":
            return fit_discriminant(features, labels)
        return fit_whitening(features)
    except TooFewImagesError as exc:
        _log.warning("the index gets plain embeddings (recipe none): %s", exc)
        return None


class TooFewImagesError(ValueError):
    """There are too few images, or labels, to fit a recipe to."""


def fit_whitening(features: Features) -> Recipe:
    """Principal components, partly whitened: divided by their deviations to the power of 0.4.

    `features` is float32 [n, features]. "Negative evidences and co-occurences in image retrieval:
    the benefit of PCA and whitening", https://inria.hal.science/hal-00722622
    Raises TooFewImagesError.
    """
    least = _LEAST_IMAGES["whitening"]
    if len(features) < least:
        raise TooFewImagesError(
            f"{len(features):,} images are too few to fit another, {least:,} are enough"
        )
    scales, centred, mean = _prepared(features)
    values, vectors = _eigen(centred.T @ centred / len(centred))
    projection = vectors * (values + _WHITENING_SHRINKAGE * values.mean()) ** (
        -_WHITENING_POWER / 2
    )
    return _recipe("whitening", mean, scales[:, np.newaxis] * projection)


def fit_discriminant(features: Features, labels: Sequence[str | None]) -> Recipe:
    """Directions in which labels differ most beside the differences within a label.

    `features` is float32 [n, features], `labels` has n. Fisher's discriminants, each weighted by
    the share of a label's own part in it, psi / (psi + 1), as in "Probabilistic Linear Discriminant
    Analysis", https://doi.org/10.1007/11744085_41; the other directions keep a small weight, for
    they tell images of one label apart. Raises TooFewImagesError.
    """
    names, numbers, counts = np.unique(
        [label or "" for label in labels], return_inverse=True, return_counts=True
    )
    usable = (counts >= _LEAST_IMAGES_PER_LABEL) & (names != "")
    kept = usable[numbers]
    least = _LEAST_IMAGES["discriminant"]
    if usable.sum() < 2 or kept.sum() < least:
        raise TooFewImagesError(
            f"{kept.sum():,} images of {usable.sum():,} labels with {_LEAST_IMAGES_PER_LABEL} or "
            f"more are too few to fit another, {least:,} of 2 labels are enough"
        )
    scales, centred, mean = _prepared(features[kept])
    numbers = np.unique(numbers[kept], return_inverse=True)[1]
    means = np.array([centred[numbers == number].mean(axis=0) for number in range(usable.sum())])
    own = means[numbers]
    within = (centred - own).T @ (centred - own) / len(centred)
    values, vectors = np.linalg.eigh(within)
    shrinkage = _DISCRIMINANT_SHRINKAGE_IMAGES / len(centred)
    whitened = vectors / np.sqrt(values + shrinkage * values.mean())
    between = own @ whitened
    ratios, directions = _eigen(between.T @ between / len(between))
    weights = np.sqrt(ratios / (1 + ratios)) + _OTHER_DIRECTIONS
    return _recipe("discriminant", mean, scales[:, np.newaxis] * (whitened @ directions) * weights)


def _prepared(features: Features) -> tuple[Floats, Floats, Features]:
    """A scale for each feature, by which no block outweighs another; rows so scaled and centred.

    And the mean of the rows before they are scaled.
    """
    rows = compressed(features)
    mean = rows.mean(axis=0)
    centred = rows - mean
    blocks = np.split(np.square(centred).mean(axis=0, dtype=np.float64), np.cumsum(CHANNELS)[:-1])
    if min(block.sum() for block in blocks) <= _ROUNDING * np.square(rows).mean():
        raise TooFewImagesError("the images are all the same")
    scales = np.concatenate([np.full(len(block), 1 / np.sqrt(block.sum())) for block in blocks])
    return scales, centred * scales, mean


def _eigen(symmetric: Floats) -> tuple[Floats, Floats]:
    """The largest eigenvalues, as many as an embedding has numbers, and their vectors."""
    values, vectors = np.linalg.eigh(symmetric)
    largest = slice(None, -DIMENSION - 1, -1)
    return np.maximum(values[largest], 0), vectors[:, largest]


def _recipe(name: RecipeName, mean: Features, projection: Floats) -> Recipe:
    # Embeddings are of unit length, so a common factor does not matter.
    halves = (projection / np.abs(projection).max()).astype(np.float16)
    return Recipe(name, mean, halves.astype(np.float32))


def _batches(
    source: Source,
    count: int,
    settings: Settings,
    limit: int | None,
    stop: threading.Event,
    labels: list[str | None],
) -> Iterator[Pixels]:
    """Pixels of images drawn at random, as sources are ordered by label, and their labels."""
    total = source.total if limit is None else min(limit, source.total)
    chosen = set(random.Random(0).sample(range(total), min(count, total)))
    batch: list[Pixels] = []
    with Progress("fitting", len(chosen), "images") as progress, make_decoder(settings) as decoder:
        for item in source.pick(chosen):
            if stop.is_set():
                return
            progress.update(1)
            with suppress(ImageError):  # ingest tells of it
                batch.append(_pixels(item, settings, decoder))
                labels.append(item.label)
            if len(batch) == _BATCH:
                yield np.array(batch)
                batch = []
    if batch:
        yield np.array(batch)


def _pixels(item: Item, settings: Settings, decoder: Decoder) -> Pixels:
    if isinstance(item.content, ImageError):
        raise item.content
    image = open_image(item.content, settings.input_size, decoder)
    return to_pixels(image, settings.input_size)
