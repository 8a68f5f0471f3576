"""VGG16 on the CPU, with OpenVINO: in float32, or in int8 where its activations were measured.

In int8, a weight is one of 255 levels, symmetric around zero and spread for each output channel,
and the input of a convolution is one of 256 levels from zero to the largest that was measured:
sections 3.1 and 3.2 of "Integer Quantization for Deep Learning Inference",
https://arxiv.org/abs/2004.09602. Sums are exact, and the pooling at the end is float32.
"""

import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from image_search.engines import MEAN_RGB, Forward
from image_search.progress import Progress
from image_search.values import BLOCKS, Pooling
from image_search.weights import Convolution

# OpenVINO would tell its makers of every import, from a forked process.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino import opset13 as ops  # noqa: E402

_ACTIVATION_LEVELS: Final = 256
_WEIGHT_LEVELS: Final = 255
# Of all images that are computed at once: 128 of 96 pixels a side, or 46 of 160. Each million takes
# some 450 MiB, and more at once are no faster.
_PIXELS_AT_ONCE: Final = 128 * 96 * 96
# In float32: 22 of 96 pixels a side, or 8 of 160.
_PIXELS_MEASURED_AT_ONCE: Final = 8 * 160 * 160


def compile_forward(
    convolutions: Sequence[Convolution],
    input_size: int,
    activation_maxima: Sequence[float],
    poolings: Sequence[Pooling],
) -> Forward:
    """VGG16 in int8 with `activation_maxima`, one for each convolution after the first.

    In float32 if there are none. May be called from several threads.
    """
    layers, outputs = _network(convolutions, input_size, activation_maxima)
    pooled = [
        _pooled(outputs[block - 1], pooling.exponent)
        for pooling in poolings
        for block in pooling.blocks
    ]
    request = _compile([ops.concat(pooled, 1).output(0)], layers[0])
    lock = threading.Lock()

    def forward(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        with lock:
            outputs = [request.infer([part])[0].copy() for part in _parts(batch, _PIXELS_AT_ONCE)]
        return np.concatenate(outputs)

    return forward


def measure_activation_maxima(
    convolutions: Sequence[Convolution], pixels: NDArray[np.uint8], progress: Progress
) -> tuple[float, ...]:
    """The largest input of each convolution after the first, over uint8 RGB [n, size, size, 3]."""
    (parameter, _, *inputs), _ = _network(convolutions, pixels.shape[1], ())
    # Here and not in NumPy, so that the activations of no layer are put out.
    largest = [ops.reduce_max(activations, [0, 1, 2, 3]).output(0) for activations in inputs]
    request = _compile(largest, parameter)
    maxima = []
    for part in _parts(pixels, _PIXELS_MEASURED_AT_ONCE):
        maxima.append(list(request.infer([part]).values()))
        progress.update(len(part))
    return tuple(np.max(maxima, axis=0).tolist())


def _parts(batch: NDArray[np.uint8], most_pixels: int) -> list[NDArray[np.uint8]]:
    """Of uint8 [n, size, size, 3], each with so many pixels at most."""
    at_once = max(1, most_pixels // batch.shape[1] ** 2)
    return [batch[start : start + at_once] for start in range(0, len(batch), at_once)]


def _network(
    convolutions: Sequence[Convolution], input_size: int, activation_maxima: Sequence[float]
) -> tuple[list[Any], list[Any]]:
    """The pixels and the input of each convolution, and the output of each block."""
    mean = np.array(MEAN_RGB, np.float32)
    ranges = [(-mean.max(), 255 - mean.min()), *((0.0, most) for most in activation_maxima)]
    pixels = ops.parameter([-1, input_size, input_size, 3], np.uint8, name="pixels")
    channels_first = ops.transpose(ops.convert(pixels, "f32"), [0, 3, 1, 2])
    output = ops.subtract(channels_first, mean.reshape(1, 3, 1, 1)).output(0)
    layers = [pixels]
    outputs = []
    numbers = iter(range(len(convolutions)))
    for count, _ in BLOCKS:
        for number in [next(numbers) for _ in range(count)]:
            layers.append(output)
            # OpenVINO wants [out, in, 3, 3]; the first kernel's channels are blue, green, red.
            kernel = convolutions[number].kernel[:, :, :: 1 if number else -1].transpose(3, 2, 0, 1)
            weights = ops.constant(np.ascontiguousarray(kernel))
            if activation_maxima:
                output = _rounded(output, *ranges[number], _ACTIVATION_LEVELS)
                most = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True)
                weights = _rounded(weights, -most, most, _WEIGHT_LEVELS)
            sums = ops.convolution(output, weights, [1, 1], [1, 1], [1, 1], [1, 1])
            bias = convolutions[number].bias.reshape(1, -1, 1, 1)
            output = ops.relu(ops.add(sums, bias)).output(0)
        output = ops.max_pool(output, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
        outputs.append(output)
    return layers, outputs


def _pooled(maps: Any, exponent: float) -> Any:
    """The generalised mean of each channel, float32 [n, channels]."""
    if exponent == 1:
        return ops.reduce_mean(maps, [2, 3]).output(0)
    powers = ops.power(maps, np.float32(exponent))
    return ops.power(ops.reduce_mean(powers, [2, 3]), np.float32(1 / exponent)).output(0)


def _rounded(values: Any, least: Any, most: Any, levels: int) -> Any:
    bounds = [np.asarray(bound, np.float32) for bound in (least, most)]
    return ops.fake_quantize(values, *bounds, *bounds, levels)


def _compile(outputs: Sequence[Any], pixels: Any) -> Any:
    model = ov.Model(list(outputs), [pixels])
    # Some processors would take bfloat16 otherwise, whose embeddings differ.
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        # Bound to a core each, its threads wait, and actively, for the one whose core is taken.
        "ENABLE_CPU_PINNING": False,
    }
    return ov.Core().compile_model(model, "CPU", settings).create_infer_request()
