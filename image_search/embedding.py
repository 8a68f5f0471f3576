"""VGG16 embeddings: images in, 512 float32 numbers an image out."""

import ctypes
import gc
import hashlib
import importlib.util
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Final

import numpy as np
from PIL import Image

from image_search.engines import Forward
from image_search.manifest import ModelSpec
from image_search.progress import Progress
from image_search.recipe import Recipe
from image_search.sample import TEXTURE_BLOCKS, TEXTURES
from image_search.values import (
    PLAIN_POOLING,
    Embeddings,
    Features,
    Pixels,
    Pooling,
)
from image_search.weights import Convolution, fingerprint, load_weights, release_bundled

_log = logging.getLogger(__name__)

# Raise it with every change in images.decode or below that moves embeddings.
PREPROCESSING_VERSION: Final = 2

# Decoding may reduce an image, but not below this multiple of the network's input; beyond three,
# the result cannot be told from resizing the full picture (Pillow's documentation, reducing_gap).
_REDUCING_GAP: Final = 3
# Enough for a thumbnail. Another number would change embeddings a little.
_LEAST_SIDE: Final = 256


class Network:
    """VGG16 without its classifier, on a GPU if there is one, else on the CPU.

    `weights` is `bundled`, `imagenet` or a path; `input_size` in pixels, at least 32. With
    `activation_maxima`, from `measure_activation_maxima`, it computes in int8. Feature maps are
    pooled as `pooling` says. Safe to use from several threads. Raises WeightsError when the weights
    are not available.
    """

    def __init__(
        self,
        weights: str,
        input_size: int,
        activation_maxima: Sequence[float] = (),
        pooling: Pooling = PLAIN_POOLING,
    ) -> None:
        name, convolutions = load_weights(weights)
        self.model = ModelSpec(
            weights=name,
            fingerprint=fingerprint(convolutions),
            input_size=input_size,
            preprocessing=PREPROCESSING_VERSION,
            precision="int8" if activation_maxima else "float32",
        )
        poolings = (pooling, Pooling(TEXTURE_BLOCKS, 1))
        self._features = sum(pooling.channels)
        self._forward = _compile(convolutions, input_size, activation_maxima, poolings)
        self._kept: dict[bytes, Features] = {}

    def outputs(self, batch: Sequence[Pixels] | Pixels) -> tuple[Features, Features]:
        """float32 [n, features] and [n, 384] of uint8 RGB [n, input_size, input_size, 3].

        The second is what `Familiarity` is told by. What `measure` kept is not computed again.
        """
        if self._kept:
            found = [self._kept.pop(_digest(image), None) for image in batch]
            new = [image for image, row in zip(batch, found, strict=True) if row is None]
            computed = iter(self._computed(new))
            rows = np.array([next(computed) if row is None else row for row in found], np.float32)
            rows = rows.reshape(len(found), self._features + TEXTURES)
        else:
            rows = self._computed(batch)
        return rows[:, : self._features], rows[:, self._features :]

    def measure(self, batches: Iterable[Pixels]) -> Features:
        """What recipes are fitted to: float32 [n, features] of batches of uint8 RGB pixels.

        All outputs are kept, 6 kB an image, until `outputs` is asked for them.
        """
        measured = [np.empty((0, self._features), np.float32)]
        for batch in batches:
            rows = self._computed(batch)
            self._kept.update(zip(map(_digest, batch), rows, strict=True))
            measured.append(rows[:, : self._features])
        return np.concatenate(measured)

    def _computed(self, batch: Sequence[Pixels] | Pixels) -> Features:
        if len(batch) == 0:
            return np.empty((0, self._features + TEXTURES), np.float32)
        return self._forward(np.asarray(batch))


class Embedder:
    """Embeddings of images, as a network and a recipe make them.

    Without a recipe they are what the network gives, whose pooling has to be the plain one, and
    otherwise that of the recipe. Safe to use from several threads.
    """

    def __init__(self, network: Network, recipe: Recipe | None = None) -> None:
        self.model = network.model
        if recipe:
            of_recipe = {"recipe": recipe.name, "recipe_fingerprint": recipe.fingerprint}
            self.model = network.model.model_copy(update=of_recipe)
        self._recipe = recipe
        self._network = network

    @classmethod
    def load(
        cls,
        weights: str,
        input_size: int,
        activation_maxima: Sequence[float] = (),
        recipe: Recipe | None = None,
    ) -> "Embedder":
        """With a network of its own; the arguments are those of `Network`."""
        pooling = recipe.form.pooling if recipe else PLAIN_POOLING
        return cls(Network(weights, input_size, activation_maxima, pooling), recipe)

    def pixels(self, image: Image.Image) -> Pixels:
        """uint8 [input_size, input_size, 3] of an RGB image."""
        return to_pixels(image, self.model.input_size)

    def embed(self, batch: Sequence[Pixels] | Pixels) -> Embeddings:
        """float32 [n, 512] of uint8 RGB [n, input_size, input_size, 3]."""
        return self.embed_with_textures(batch)[0]

    def embed_with_textures(self, batch: Sequence[Pixels] | Pixels) -> tuple[Embeddings, Features]:
        """What `embed` gives, and float32 [n, 384]: what `Familiarity` is told by."""
        features, textures = self._network.outputs(batch)
        return self._recipe.apply(features) if self._recipe else features, textures

    def warm_up(self) -> None:
        """Run once, so that the first user does not wait for it."""
        self.embed(np.zeros((1, self.model.input_size, self.model.input_size, 3), np.uint8))
        _release_memory()


def min_side(input_size: int) -> int:
    """The shorter side, in pixels, that decoding must leave for `to_pixels` and a thumbnail."""
    return max(_REDUCING_GAP * input_size, _LEAST_SIDE)


def to_pixels(image: Image.Image, input_size: int) -> Pixels:
    """uint8 [input_size, input_size, 3] of an RGB image."""
    # A bilinear filter, which Pillow spreads over all the pixels that become one.
    return np.asarray(
        image.resize(
            (input_size, input_size), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP
        )
    )


def measure_activation_maxima(weights: str, pixels: Pixels) -> tuple[float, ...]:
    """What int8 needs to know: the largest input of each convolution after the first.

    `pixels` is uint8 [n, input_size, input_size, 3], images like those to come; a few hundred are
    enough. Raises WeightsError when the weights are not available.
    """
    from image_search.engines import openvino

    _, convolutions = load_weights(weights)
    with Progress("measuring activations", len(pixels), "images") as progress:
        return openvino.measure_activation_maxima(convolutions, pixels, progress)


@cache
def has_gpu() -> bool:
    """Whether there is a GPU to embed on; logs a warning where only the software for it is."""
    # The extra `gpu` brings CUDA's libraries as packages of this name.
    if importlib.util.find_spec("nvidia") is None:
        return False
    from image_search.engines import tensorflow

    if not tensorflow.has_gpu():
        _log.warning("no GPU found: embedding on the CPU, which is slower")
        return False
    return True


def _compile(
    convolutions: Sequence[Convolution],
    input_size: int,
    activation_maxima: Sequence[float],
    poolings: Sequence[Pooling],
) -> Forward:
    # Each engine is imported only where it is used: TensorFlow costs seconds and 500 MB.
    if not activation_maxima and has_gpu():
        from image_search.engines import tensorflow

        return tensorflow.compile_forward(convolutions, input_size, poolings)
    from image_search.engines import openvino

    return openvino.compile_forward(convolutions, input_size, activation_maxima, poolings)


def _digest(pixels: Pixels) -> bytes:
    return hashlib.sha256(pixels.tobytes()).digest()


def _release_memory() -> None:
    """Give the weights, and the copies of them that compiling made, back to the system."""
    release_bundled()
    gc.collect()
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
