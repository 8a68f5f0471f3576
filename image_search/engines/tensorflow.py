"""VGG16 with Keras and TensorFlow: the reference, and the engine for GPUs."""

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from image_search.engines import Forward
from image_search.values import Pooling
from image_search.weights import Convolution

_BANNER: Final = re.compile(
    rb"WARNING: All log messages before absl|[IW]\d{4} [\d:.]+ +\d+ "
    rb"|E\d{4} .* failed call to cuInit"
)
# From here on GPUs multiply float16 in tensor cores, several times as fast as float32:
# NVIDIA's guide "Train With Mixed Precision".
_TENSOR_CORES: Final = (7, 0)


def compile_forward(
    convolutions: Sequence[Convolution], input_size: int, poolings: Sequence[Pooling]
) -> Forward:
    """VGG16 as a frozen graph, on a GPU if there is one; may be called from several threads.

    It computes in float32, or in float16 where all GPUs have tensor cores for that.
    """
    keras = import_keras()
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    shape = (input_size, input_size, 3)
    with _precision(keras):
        vgg16 = keras.applications.VGG16(weights=None, include_top=False, input_shape=shape)
        pooled = [
            _pooled(keras, vgg16.get_layer(f"block{block}_pool").output, pooling.exponent)
            for pooling in poolings
            for block in pooling.blocks
        ]
        network = keras.Model(
            vgg16.input,
            keras.ops.concatenate([keras.ops.cast(each, "float32") for each in pooled], axis=1),
        )
    vgg16.set_weights([array for convolution in convolutions for array in convolution])

    def embed(pixels: Any) -> Any:
        preprocessed = keras.applications.vgg16.preprocess_input(tf.cast(pixels, tf.float32))
        return tf.cast(network(preprocessed, training=False), tf.float32)

    # With constant weights oneDNN keeps its own layout of them from call to call.
    graph = convert_variables_to_constants_v2(
        tf.function(
            embed, input_signature=[tf.TensorSpec([None, *shape], tf.uint8)]
        ).get_concrete_function()
    )

    def forward(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        [embeddings] = graph(tf.constant(batch))
        return np.asarray(embeddings.numpy())

    return forward


def _pooled(keras: Any, maps: Any, exponent: float) -> Any:
    """The generalised mean of each channel, [n, channels]."""
    if exponent == 1:
        return keras.layers.GlobalAveragePooling2D()(maps)
    # In float16, powers of activations would overflow.
    powers = keras.ops.power(keras.ops.cast(maps, "float32"), exponent)
    return keras.ops.power(keras.ops.mean(powers, axis=(1, 2)), 1 / exponent)


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    import_keras()
    return bool(_gpus())


def import_keras() -> Any:
    """Import Keras and TensorFlow: seconds, the first time."""
    # TensorFlow logs before its logging can be configured.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with _without_banner():
        import keras
        import tensorflow as tf

        for gpu in _gpus():
            # Take memory as it is needed, and leave the rest to others.
            tf.config.experimental.set_memory_growth(gpu, True)  # noqa: FBT003
        keras.ops.zeros(1)
    return keras


def _gpus() -> Any:
    import tensorflow as tf

    return tf.config.list_physical_devices("GPU")


@contextmanager
def _precision(keras: Any) -> Iterator[None]:
    policy = keras.config.dtype_policy()
    if gpus := _gpus():
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
