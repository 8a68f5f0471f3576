"""VGG16 embeddings: images in, 512 float32 numbers an image out."""

import ctypes
import gc
import importlib.util
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Final

import numpy as np
from PIL import Image

from image_search import images
from image_search.engines import Forward
from image_search.manifest import ModelSpec
from image_search.recipe import Recipe
from image_search.sample import TEXTURE_BLOCKS, TEXTURES
from image_search.values import (
    DIMENSION,
    PLAIN_POOLING,
    Embeddings,
    Features,
    Pixels,
    Pooling,
)
from image_search.weights import Convolution, fingerprint, load_weights

_log = logging.getLogger(__name__)

# Raise it with every change in images.decode or below that moves embeddings.
PREPROCESSING_VERSION: Final = 2

# Decoding may reduce an image, but not below this multiple of the network's input; beyond three,
# the result cannot be told from resizing the full picture (Pillow's documentation, reducing_gap).
_REDUCING_GAP: Final = 3


class Embedder:
    """VGG16 without its classifier, on a GPU if there is one, else on the CPU.

    `weights` is `bundled`, `imagenet` or a path; `input_size` in pixels, at least 32. Without a
    recipe the last feature map is averaged; with one, embeddings are made as that says. With
    `activation_maxima`, from `measure_activation_maxima`, it computes in int8. Safe to use
    from several threads. Raises WeightsError when the weights cannot be had.
    """

    def __init__(
        self,
        weights: str,
        input_size: int,
        activation_maxima: Sequence[float] = (),
        recipe: Recipe | None = None,
    ) -> None:
        name, convolutions = load_weights(weights)
        self.model = ModelSpec(
            weights=name,
            fingerprint=fingerprint(convolutions),
            input_size=input_size,
            preprocessing=PREPROCESSING_VERSION,
            precision="int8" if activation_maxima else "float32",
            recipe=recipe.name if recipe else "none",
            recipe_fingerprint=recipe.fingerprint if recipe else "",
        )
        self._recipe = recipe
        pooling = recipe.form.pooling if recipe else PLAIN_POOLING
        poolings = (pooling, Pooling(TEXTURE_BLOCKS, 1))
        self._forward = _compile(convolutions, input_size, activation_maxima, poolings)

    def pixels(self, image: Image.Image) -> Pixels:
        """uint8 [input_size, input_size, 3] of an RGB image."""
        return to_pixels(image, self.model.input_size)

    def embed(self, batch: Sequence[Pixels] | Pixels) -> Embeddings:
        """float32 [n, 512] of uint8 RGB [n, input_size, input_size, 3]."""
        return self.embed_with_textures(batch)[0]

    def embed_with_textures(self, batch: Sequence[Pixels] | Pixels) -> tuple[Embeddings, Features]:
        """What `embed` gives, and float32 [n, 384]: what `Familiarity` is told by."""
        if len(batch) == 0:
            return np.empty((0, DIMENSION), np.float32), np.empty((0, TEXTURES), np.float32)
        outputs = self._forward(np.asarray(batch))
        features, textures = outputs[:, :-TEXTURES], outputs[:, -TEXTURES:]
        return self._recipe.apply(features) if self._recipe else features, textures

    def warm_up(self) -> None:
        """Run once, so that the first user does not wait for it."""
        self.embed(np.zeros((1, self.model.input_size, self.model.input_size, 3), np.uint8))
        _release_memory()


def min_side(input_size: int) -> int:
    """The shorter side, in pixels, that decoding must leave for `to_pixels` and a thumbnail."""
    return max(_REDUCING_GAP * input_size, 2 * images.THUMBNAIL_SIDE)


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
    enough. Raises WeightsError when the weights cannot be had.
    """
    from image_search.engines import openvino

    _, convolutions = load_weights(weights)
    return openvino.measure_activation_maxima(convolutions, pixels)


def measure_features(
    weights: str,
    input_size: int,
    activation_maxima: Sequence[float],
    pooling: Pooling,
    batches: Iterable[Pixels],
) -> Features:
    """What recipes are fitted to: float32 [n, features] of batches of uint8 RGB pixels.

    Raises WeightsError when the weights cannot be had.
    """
    _, convolutions = load_weights(weights)
    forward = _compile(convolutions, input_size, activation_maxima, [pooling])
    features = [forward(batch) for batch in batches]
    return np.concatenate([np.empty((0, sum(pooling.channels)), np.float32), *features])


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


def _release_memory() -> None:
    """Give the copies of the weights that compiling made back to the system."""
    gc.collect()
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
