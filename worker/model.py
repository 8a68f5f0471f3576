"""The model that an index is made with: chosen and fitted for a new one, loaded for another."""

import logging
import random
import statistics
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from image_search.embedding import Embedder, Network, has_gpu, measure_activation_maxima, to_pixels
from image_search.errors import ImageError
from image_search.index import VectorIndex
from image_search.manifest import Manifest
from image_search.recipe import Recipe
from image_search.settings import Settings
from image_search.stores import create_index
from image_search.values import AUTO
from image_search.weights import choose_weights, load_weights
from worker.ingest import make_decoder, open_image
from worker.recipes import fit_recipe, fitted_positions
from worker.sources import Source

_log = logging.getLogger(__name__)

# Chosen by measurement: python -m benchmarks.recipes
_SMALL_INPUT: Final = 96
_LARGE_INPUT: Final = 160
# Images with a shorter side below this show too little for the large input to be worth its cost.
_SMALL_IMAGE: Final = 80
_DRAWN_IMAGES: Final = 100
# 256 gave the same precision@10 and mAP: python -m benchmarks.recipes
_ACTIVATION_IMAGES: Final = 64


@dataclass(frozen=True)
class NewModel:
    """A model that was fitted to images, and the manifest of the index that it is for."""

    embedder: Embedder
    manifest: Manifest
    recipe: Recipe | None


@dataclass(frozen=True)
class NewIndex:
    """An index that was created, and its model.

    `fitted` are the positions in the source that the model was fitted to: their embeddings cost
    nothing more. They are empty if another worker has created the index meanwhile.
    """

    embedder: Embedder
    index: VectorIndex
    fitted: Sequence[int]


def create_index_for(source: Source, settings: Settings, stop: threading.Event) -> NewIndex | None:
    """A new index for the images of a source, and its model, fitted to them.

    None when `stop` was set meanwhile. Raises WeightsError, StoreError and what the source raises.
    """
    new = fit_model(source, settings, stop)
    if new is None:
        return None
    index = create_index(settings, new.manifest, new.recipe)
    if index.manifest != new.manifest:  # another worker has created it meanwhile
        return NewIndex(load_embedder(index, settings), index, ())
    fitted = fitted_positions(source.total) if new.recipe else ()
    return NewIndex(new.embedder, index, fitted)


def fit_model(source: Source, settings: Settings, stop: threading.Event) -> NewModel | None:
    """The model of the settings, fitted to the images of a source.

    None when `stop` was set meanwhile. Raises WeightsError and what the source raises.
    """
    weights = choose_weights(settings.weights)
    load_weights(weights)  # what is wrong with them is told before images are read
    is_int8 = settings.precision == "int8" or (settings.precision == "auto" and not has_gpu())
    needs_images = is_int8 or settings.input_size == AUTO
    drawn = draw_images(source, settings) if needs_images else []
    input_size, reason = choose_input_size(drawn, settings)
    maxima: tuple[float, ...] = ()
    if drawn and is_int8:
        pixels = [to_pixels(image, input_size) for image in drawn[:_ACTIVATION_IMAGES]]
        maxima = measure_activation_maxima(weights, np.array(pixels))
    fitted = fit_recipe(source, weights, input_size, maxima, settings, stop)
    if stop.is_set():
        return None
    recipe, network = fitted or (None, Network(weights, input_size, maxima))
    embedder = Embedder(network, recipe)
    manifest = Manifest.new(embedder.model, settings.metric, settings.namespace, maxima, reason)
    return NewModel(embedder, manifest, recipe)


def load_embedder(index: VectorIndex, settings: Settings) -> Embedder:
    """The model that the index was built with.

    What is set has to fit the index, or IndexMismatchError is raised; what is not set is as the
    index has it. Raises WeightsError when its weights are not available.
    """
    built_with = index.manifest
    if "metric" in settings.model_fields_set:
        built_with.require_metric(settings.metric)
    model = built_with.model
    weights = model.weights if settings.weights == AUTO else settings.weights
    size = model.input_size if settings.input_size == AUTO else settings.input_size
    if settings.precision != "auto":
        built_with.require_model(model.model_copy(update={"precision": settings.precision}))
    if settings.recipe not in {"auto", model.recipe}:
        if model.recipe != "none":
            built_with.require_model(model.model_copy(update={"recipe": settings.recipe}))
        _log.warning("the index has plain embeddings (recipe none), and keeps them")
    embedder = Embedder.load(weights, size, built_with.activation_maxima, index.load_recipe())
    built_with.require_model(embedder.model)
    return embedder


def draw_images(source: Source, settings: Settings) -> list[Image.Image]:
    """Up to 100 images of a source, drawn at random, upright, and those that can be read.

    Each may be reduced, but not below what any input size that can be chosen takes.
    """
    largest = _LARGE_INPUT if settings.input_size == AUTO else settings.input_size
    count = min(_DRAWN_IMAGES, source.total)
    images = []
    with make_decoder(settings) as decoder:
        for item in source.pick(set(random.Random(0).sample(range(source.total), count))):
            if isinstance(item.content, ImageError):
                continue
            with suppress(ImageError):  # ingest reports it
                images.append(open_image(item.content, largest, decoder))
    random.Random(0).shuffle(images)  # a source may be in the order of its labels
    return images


def choose_input_size(images: Sequence[Image.Image], settings: Settings) -> tuple[int, str]:
    """The input size of a new index for such images, and why.

    Without a setting, the median of their shorter sides decides.
    """
    if settings.input_size != AUTO:
        return settings.input_size, "as set"
    if not images:
        return _LARGE_INPUT, "as no image could be read to choose another"
    median = int(statistics.median(min(image.size) for image in images))
    kind = "small" if median < _SMALL_IMAGE else "large"
    size = _SMALL_INPUT if median < _SMALL_IMAGE else _LARGE_INPUT
    return size, f"for {kind} images: the median of the shorter sides is {median} pixels"
