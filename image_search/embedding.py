"""VGG16 embeddings: uint8 images in, 512 float32 numbers an image out."""

import ctypes
import gc
import hashlib
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from image_search import images
from image_search.images import Pixels
from image_search.manifest import DIMENSION, ModelSpec
from image_search.weights import load_weights

_log = logging.getLogger(__name__)

Embeddings = NDArray[np.float32]

# Raise it with every change in images.decode or in the graph below that moves embeddings.
PREPROCESSING_VERSION: Final = 1

# Decoding may reduce an image, but not below this multiple of the network's input; beyond three,
# the result cannot be told from resizing the full picture (Pillow's documentation, reducing_gap).
_REDUCING_GAP: Final = 3
_M_ARENA_MAX: Final = -8  # malloc.h
_FINGERPRINT_DIGITS: Final = 16
_BANNER: Final = re.compile(
    rb"WARNING: All log messages before absl|[IW]\d{4} [\d:.]+ +\d+ "
    rb"|E\d{4} .* failed call to cuInit"
)
# From here on GPUs multiply float16 in tensor cores, several times as fast as float32:
# NVIDIA's guide "Train With Mixed Precision".
_TENSOR_CORES: Final = (7, 0)


class Embedder:
    """VGG16 without its classifier, with preprocessing and resizing in the compiled graph.

    `weights` is `imagenet`, `bundled` or a path; `input_size` in pixels, at least 32. Where the
    last feature map is larger than 1x1, it is averaged. Safe to use from several threads.
    Raises WeightsError when the weights cannot be had.
    """

    def __init__(self, weights: str, input_size: int) -> None:
        keras = import_keras()
        with _precision(keras):
            network = keras.applications.VGG16(
                weights=None,
                include_top=False,
                pooling="avg",
                input_shape=(input_size, input_size, 3),
            )
        name = load_weights(network, weights)
        self.model = ModelSpec(
            weights=name,
            fingerprint=_fingerprint(network.get_weights()),
            input_size=input_size,
            preprocessing=PREPROCESSING_VERSION,
        )
        self._min_side = _REDUCING_GAP * input_size
        pixels = keras.Input((input_size, input_size, 3), dtype="float32")
        preprocessed = keras.applications.vgg16.preprocess_input(pixels)
        embeddings = keras.ops.cast(network(preprocessed), "float32")
        self._resize, self._forward = _compile(keras, keras.Model(pixels, embeddings), input_size)

    def decode(self, content: bytes, *, max_pixels: int) -> Image.Image:
        """Decode an image file, large enough for `pixels` and a thumbnail; see images.decode."""
        min_side = max(self._min_side, 2 * images.THUMBNAIL_SIDE)
        return images.decode(content, max_pixels=max_pixels, min_side=min_side)

    def pixels(self, image: Image.Image) -> Pixels:
        """uint8 [h, w, 3] of an RGB image, reduced no further than the network can notice."""
        factor = min(image.size) // self._min_side
        return np.asarray(image.reduce(factor) if factor > 1 else image)

    def embed(self, batch: Sequence[Pixels] | Pixels) -> Embeddings:
        """float32 [n, 512] of n uint8 RGB images [h, w, 3], of one or of several sizes."""
        if len(batch) == 0:
            return np.empty((0, DIMENSION), np.float32)
        shapes = {image.shape for image in batch}
        size = self.model.input_size
        if shapes == {(size, size, 3)}:
            inputs = np.asarray(batch, dtype=np.float32)
        elif len(shapes) == 1:
            inputs = self._resize(np.asarray(batch))
        else:
            inputs = np.concatenate([self._resize(image[np.newaxis]) for image in batch])
        return self._forward(inputs)

    def warm_up(self) -> None:
        """Run once, so that the first user does not wait for it."""
        self.embed(np.zeros((1, 1, 1, 3), np.uint8))
        _release_memory()


def import_keras() -> Any:
    """Import Keras and its backend: seconds, the first time."""
    # TensorFlow logs before its logging can be configured.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Threads share two heaps instead of having one each: 150 MB less, measured.
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    with _without_banner():
        import keras

        for gpu in _gpus(keras):
            import tensorflow as tf

            # Take memory as it is needed, and leave the rest to others.
            tf.config.experimental.set_memory_growth(gpu, True)  # noqa: FBT003
        keras.ops.zeros(1)
    return keras


def warn_without_gpu() -> None:
    """Log a warning when TensorFlow is built for CUDA and finds no GPU."""
    keras = import_keras()
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    if tf.sysconfig.get_build_info()["is_cuda_build"] and not _gpus(keras):
        _log.warning("no GPU is to be seen: embedding on the CPU, which is slower")


def _gpus(keras: Any) -> Any:
    if keras.backend.backend() != "tensorflow":
        return []
    import tensorflow as tf

    return tf.config.list_physical_devices("GPU")


@contextmanager
def _precision(keras: Any) -> Iterator[None]:
    """Layers made within it compute in float16 where all GPUs have tensor cores for that."""
    policy = keras.config.dtype_policy()
    if gpus := _gpus(keras):
        import tensorflow as tf

        details = map(tf.config.experimental.get_device_details, gpus)
        if min(gpu.get("compute_capability", (0, 0)) for gpu in details) >= _TENSOR_CORES:
            keras.config.set_dtype_policy("mixed_float16")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


@contextmanager
def _without_banner() -> Iterator[None]:
    """Take the log lines of TensorFlow's C++ side, which no setting stops, out of an import."""
    # Elsewhere than in the main thread, it would hold back what others write meanwhile.
    if "tensorflow" in sys.modules or threading.current_thread() is not threading.main_thread():
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _BANNER.match(line):
                    os.write(2, line)


def _release_memory() -> None:
    """Give the copies of the weights that compiling made back to the system, 200 MB and more."""
    gc.collect()
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _fingerprint(weights: list[NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for array in weights:
        digest.update(array.astype("<f4").tobytes())
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


Compiled = Callable[[NDArray[Any]], NDArray[np.float32]]


def _compile(keras: Any, model: Any, size: int) -> tuple[Compiled, Compiled]:
    """Two functions: [n, h, w, 3] -> [n, size, size, 3], and that -> [n, 512]."""

    def resize(batch: Any) -> Any:
        return keras.ops.image.resize(
            keras.ops.cast(batch, "float32"),
            (size, size),
            interpolation="bilinear",
            antialias=True,
            data_format="channels_last",
        )

    if keras.backend.backend() != "tensorflow":
        return (
            lambda batch: np.asarray(keras.ops.convert_to_numpy(resize(batch))),
            lambda batch: np.asarray(model.predict_on_batch(batch)),
        )

    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    resize_graph = tf.function(
        resize, input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)]
    )
    # With constant weights oneDNN keeps its own layout of them from call to call.
    forward_graph = convert_variables_to_constants_v2(
        tf.function(
            lambda batch: model(batch, training=False),
            input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32)],
        ).get_concrete_function()
    )
    return (
        lambda batch: resize_graph(tf.constant(batch)).numpy(),
        lambda batch: forward_graph(tf.constant(batch))[0].numpy(),
    )
