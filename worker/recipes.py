"""Recipes, fitted to the images that a new index is made for."""

import logging
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from image_search.decoding import Decoder
from image_search.embedding import Network, to_pixels
from image_search.errors import ImageError, SettingsError
from image_search.program import program
from image_search.progress import Progress
from image_search.recipe import Form, Recipe
from image_search.settings import Settings, variable
from image_search.values import DIMENSION, Features, Pixels, Pooling, RecipeName, Store
from worker.ingest import make_decoder, open_image
from worker.sources import Item, Source

_log = logging.getLogger(__name__)

# All that is chosen below was chosen on CIFAR-10 and on photos: python -m benchmarks.recipes
# From this input size on, pictures show enough for the last block to decide nearly alone.
_LARGE_INPUT: Final = 128
_POOLING: Final = Pooling((4, 5), 3)
_SMALL: Final = Form(_POOLING, 0.5, unit_blocks=True, weights=(1, 1))
_LARGE: Final = Form(Pooling((4, 5), 8), 1.4, unit_blocks=True, weights=(0.5, 1))

IMAGES: Final = 10_000
LEAST_IMAGES: Final = 100
_WHEN_THERE_ARE_MORE: Final[dict[Store, str]] = {
    "embedded": f"Once you have ingested more: {program('worker')} refit SOURCE",
    "pinecone": "With more images, ingest them into a new index (--index NAME)",
}
_LEAST_LABELLED_IMAGES: Final = 500
_LEAST_IMAGES_PER_LABEL: Final = 20
_COMPONENT_POWER: Final = 0.25
_NEIGHBOURS: Final = 10
_NEIGHBOUR_POWER: Final = -0.25
_NEIGHBOUR_SHRINKAGE_IMAGES: Final = 1_000
# Of the variance within labels: the fewer the images, the less of it is known.
_DISCRIMINANT_SHRINKAGE_IMAGES: Final = 500
_OTHER_DIRECTIONS: Final = 0.2
_SHRINKAGE: Final = 0.1
_BATCH: Final = 32
_ROWS: Final = 1_000
_ROUNDING: Final = 1e-6

Floats = NDArray[np.float64]


def fitted_positions(total: int, count: int = IMAGES) -> list[int]:
    """Which of `total` items a recipe is fitted to, drawn at random and the same every time."""
    return random.Random(0).sample(range(total), min(count, total))


def form_for(input_size: int) -> Form:
    """What is made of features before they are projected, at this input size."""
    return _SMALL if input_size < _LARGE_INPUT else _LARGE


def fit_recipe(
    source: Source,
    weights: str,
    input_size: int,
    activation_maxima: Sequence[float],
    settings: Settings,
    stop: threading.Event,
) -> tuple[Recipe, Network] | None:
    """The recipe of the settings, fitted to a random sample of the source, and its network.

    The network has kept what it made of these images, so that their embeddings cost nothing more.
    None where plain embeddings are asked for, or there are too few images for another recipe; then
    a line says so. Raises SettingsError for a recipe that is only in older indexes, and
    WeightsError.
    """
    form = form_for(input_size)
    name: RecipeName
    if settings.recipe == "auto":
        name = "neighbours" if form == _SMALL else "components"
    else:
        name = settings.recipe
    if name == "none":
        return None
    if name == "whitening":
        raise SettingsError(
            f"{variable('recipe')}=whitening is for indexes that earlier versions made: use auto "
            "for a new one"
        )
    try:
        # Before a network is compiled for them.
        _require_enough(source.total)
        labels: list[str | None] = []
        batches = _batches(source, IMAGES, input_size, settings, stop, labels)
        network = Network(weights, input_size, activation_maxima, form.pooling)
        features = network.measure(batches)
        if stop.is_set():
            return None
        if name == "discriminant":
            return fit_discriminant(features, labels, form), network
        if name == "components":
            return fit_components(features, form), network
        return fit_neighbours(features, form), network
    except TooFewImagesError as exc:
        _log.warning(
            "the index gets plain embeddings (recipe none), which are less accurate: %s. %s",
            exc,
            _WHEN_THERE_ARE_MORE[settings.store],
        )
        return None


class TooFewImagesError(ValueError):
    """There are too few images, or labels, to fit a recipe to."""


def fit_components(features: Features, form: Form) -> Recipe:
    """Principal components, multiplied by their deviations to the power of 0.25.

    `features` is float32 [n, features], pooled as the form says. The opposite of whitening: photos
    that show the same kind of thing are alike in the strongest components. Raises
    TooFewImagesError.
    """
    scales, centred, mean = _prepared(features, form)
    projection = _components(centred, _COMPONENT_POWER)
    return _recipe("components", form, mean, scales[:, np.newaxis] * projection)


def fit_neighbours(features: Features, form: Form) -> Recipe:
    """Directions in which images differ most beside the differences between near neighbours.

    `features` is float32 [n, features], pooled as the form says. Fisher's discriminants, with pairs
    of images in place of labels: each is among the ten nearest of the other, as most of such pairs
    show the same kind of thing. So no label is needed. Raises TooFewImagesError.
    """
    scales, centred, mean = _prepared(features, form)
    one, other = _mutual_neighbours(centred @ _components(centred, _NEIGHBOUR_POWER))
    differences = (centred[one] - centred[other]) / np.sqrt(2)
    within = differences.T @ differences / len(differences)
    shrinkage = _NEIGHBOUR_SHRINKAGE_IMAGES / len(centred)
    whitened = _whitened(within, shrinkage)
    scattered = centred @ whitened
    ratios, directions = _eigen(scattered.T @ scattered / len(scattered))
    # Directions in which no image differs have no weight, and the weakest other one has none.
    differ = ratios > _ROUNDING * ratios[0]
    weights = np.sqrt(np.where(differ, 1 - ratios[-1] / np.where(differ, ratios, 1), 0))
    return _recipe(
        "neighbours", form, mean, scales[:, np.newaxis] * (whitened @ directions) * weights
    )


def fit_discriminant(features: Features, labels: Sequence[str | None], form: Form) -> Recipe:
    """Directions in which labels differ most beside the differences within a label.

    `features` is float32 [n, features], pooled as the form says; `labels` has n. Fisher's
    discriminants, each weighted by the share of a label's own part in it, psi / (psi + 1), as in
    "Probabilistic Linear Discriminant Analysis", https://doi.org/10.1007/11744085_41; the other
    directions keep a small weight, for they tell images of one label apart. Raises
    TooFewImagesError.
    """
    names, numbers, counts = np.unique(
        [label or "" for label in labels], return_inverse=True, return_counts=True
    )
    usable = (counts >= _LEAST_IMAGES_PER_LABEL) & (names != "")
    kept = usable[numbers]
    if usable.sum() < 2 or kept.sum() < _LEAST_LABELLED_IMAGES:
        raise TooFewImagesError(
            f"{kept.sum():,} images of {usable.sum():,} labels with {_LEAST_IMAGES_PER_LABEL} or "
            "more are too few to fit another recipe; "
            f"{_LEAST_LABELLED_IMAGES:,} of 2 labels are enough"
        )
    scales, centred, mean = _prepared(features[kept], form)
    numbers = np.unique(numbers[kept], return_inverse=True)[1]
    means = np.array([centred[numbers == number].mean(axis=0) for number in range(usable.sum())])
    own = means[numbers]
    within = (centred - own).T @ (centred - own) / len(centred)
    whitened = _whitened(within, _DISCRIMINANT_SHRINKAGE_IMAGES / len(centred))
    between = own @ whitened
    ratios, directions = _eigen(between.T @ between / len(between))
    weights = np.sqrt(ratios / (1 + ratios)) + _OTHER_DIRECTIONS
    return _recipe(
        "discriminant", form, mean, scales[:, np.newaxis] * (whitened @ directions) * weights
    )


def _prepared(features: Features, form: Form) -> tuple[Floats, Floats, Features]:
    """A scale for each feature, which gives blocks their weight; rows so scaled and centred.

    And the mean of the rows before they are scaled. Raises TooFewImagesError.
    """
    _require_enough(len(features))
    rows = form.prepare(features)
    mean = rows.mean(axis=0)
    centred = rows - mean
    ends = np.cumsum(form.pooling.channels)[:-1]
    blocks = np.split(np.square(centred).mean(axis=0, dtype=np.float64), ends)
    if min(block.sum() for block in blocks) <= _ROUNDING * np.square(rows).sum(axis=1).mean():
        raise TooFewImagesError("the images are all the same")
    scales = np.concatenate(
        [
            np.full(len(block), weight / np.sqrt(block.sum()))
            for weight, block in zip(form.weights, blocks, strict=True)
        ]
    )
    return scales, centred * scales, mean


def _require_enough(images: int) -> None:
    if images < LEAST_IMAGES:
        raise TooFewImagesError(
            f"{images:,} images are too few to fit another recipe; {LEAST_IMAGES:,} are enough"
        )


def _components(centred: Floats, power: float) -> Floats:
    """Principal components, multiplied by their deviations to this power."""
    values, vectors = _eigen(centred.T @ centred / len(centred))
    return np.asarray(vectors * (values + _SHRINKAGE * values.mean()) ** (power / 2))


def _mutual_neighbours(rows: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The pairs of rows of which each is among the ten nearest of the other, by cosine."""
    unit = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _ROUNDING)).astype(
        np.float32
    )
    nearest = []
    for start in range(0, len(unit), _ROWS):
        similarities = unit[start : start + _ROWS] @ unit.T
        own = np.arange(len(similarities))
        similarities[own, start + own] = -np.inf
        found = np.argpartition(-similarities, _NEIGHBOURS, axis=1)
        nearest.append(found[:, :_NEIGHBOURS].copy())
    other = np.concatenate(nearest).ravel()
    one = np.arange(len(other)) // _NEIGHBOURS
    mutual = np.intersect1d(one * len(unit) + other, other * len(unit) + one)
    one, other = np.divmod(mutual, len(unit))
    return one[one < other], other[one < other]


def _whitened(scatter: Floats, shrinkage: float) -> Floats:
    """The directions in which this scatter is alike, once it is shrunk towards its mean."""
    values, vectors = np.linalg.eigh(scatter)
    least = shrinkage * max(values.mean(), _ROUNDING)
    return np.asarray(vectors / np.sqrt(np.maximum(values, 0) + least))


def _eigen(symmetric: Floats) -> tuple[Floats, Floats]:
    """The largest eigenvalues, as many as an embedding has numbers, and their vectors."""
    values, vectors = np.linalg.eigh(symmetric)
    largest = slice(None, -DIMENSION - 1, -1)
    return np.maximum(values[largest], 0), vectors[:, largest]


def _recipe(name: RecipeName, form: Form, mean: Features, projection: Floats) -> Recipe:
    # Embeddings are of unit length, so a common factor does not matter.
    halves = (projection / np.abs(projection).max()).astype(np.float16)
    return Recipe(name, form, mean, halves.astype(np.float32))


def _batches(
    source: Source,
    count: int,
    input_size: int,
    settings: Settings,
    stop: threading.Event,
    labels: list[str | None],
) -> Iterator[Pixels]:
    """Pixels of images drawn at random, as sources are ordered by label, and their labels."""
    chosen = set(fitted_positions(source.total, count))
    batch: list[Pixels] = []
    with Progress("fitting", len(chosen), "images") as progress, make_decoder(settings) as decoder:
        for item in source.pick(chosen):
            if stop.is_set():
                return
            progress.update(1)
            with suppress(ImageError):  # ingest reports it
                batch.append(_pixels(item, input_size, decoder))
                labels.append(item.label)
            if len(batch) == _BATCH:
                yield np.array(batch)
                batch = []
    if batch:
        yield np.array(batch)


def _pixels(item: Item, input_size: int, decoder: Decoder) -> Pixels:
    if isinstance(item.content, ImageError):
        raise item.content
    return to_pixels(open_image(item.content, input_size, decoder), input_size)
