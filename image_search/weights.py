"""VGG16's convolution weights: where they come from, as NumPy arrays."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from image_search.download import download
from image_search.errors import DownloadError, WeightsError
from image_search.values import AUTO, BLOCKS, BUNDLED, IMAGENET

# The file of keras.applications.VGG16(include_top=False), with the checksum that Keras checks:
# keras/src/applications/vgg16.py
_IMAGENET_FILE: Final = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
_IMAGENET_URL: Final = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/" + _IMAGENET_FILE
)
_IMAGENET_MD5: Final = "6d6bbae143d832006294945121d1f1fc"

_BUNDLED_FILE: Final = Path(__file__).parent / "bundled" / "vgg16-imagenet.npz"
_FINGERPRINT_DIGITS: Final = 16

Array = NDArray[np.float32]


class Convolution(NamedTuple):
    """A 3x3 convolution: kernel float32 [3, 3, in, out], bias float32 [out]."""

    kernel: Array
    bias: Array


def choose_weights(choice: str) -> str:
    """What a new index gets where the weights are set to `choice`: `auto` means `bundled`."""
    return BUNDLED if choice == AUTO else choice


def load_weights(weights: str) -> tuple[str, list[Convolution]]:
    """The name to record of `weights` (`imagenet`, `bundled` or a path), and the 13 convolutions.

    The name is the choice itself, or the file's name. Raises WeightsError when the file is missing
    or does not hold VGG16's convolutions, or when Keras' file cannot be downloaded.
    """
    if weights == BUNDLED:
        return BUNDLED, list(_bundled())
    try:
        path = _imagenet() if weights == IMAGENET else Path(weights)
    except DownloadError as exc:
        raise WeightsError(
            f"Keras' file of the ImageNet weights is not available: {exc}; the bundled weights "
            "need no download",
            details=exc.details,
        ) from exc
    if not path.is_file():
        raise WeightsError(
            f"there is no weights file {path.name}: name bundled, imagenet, or the path of a Keras "
            ".h5 or .weights.h5 file",
            details=path,
        )
    try:
        with h5py.File(path) as file:
            arrays = [np.asarray(array, np.float32) for array in _arrays(file)]
    except (OSError, KeyError) as exc:
        raise _not_vgg16(path, "it is not an HDF5 file, or is incomplete") from exc
    shapes = [array.shape for array in arrays]
    if shapes != list(_shapes()):
        raise _not_vgg16(path, f"it holds {len(shapes)} arrays, of the shapes {shapes}")
    convolutions = [Convolution(*arrays[i : i + 2]) for i in range(0, len(arrays), 2)]
    return IMAGENET if weights == IMAGENET else path.name, convolutions


def release_bundled() -> None:
    """Let go of the bundled weights, 59 MB, until they are loaded again."""
    _bundled.cache_clear()


def fingerprint(convolutions: Sequence[Convolution]) -> str:
    """First 16 hex digits of the SHA-256 of all kernels and biases, as little-endian float32."""
    digest = hashlib.sha256()
    for convolution in convolutions:
        for array in convolution:
            digest.update(array.astype("<f4").tobytes())
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


def _not_vgg16(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{path.name} does not hold the weights of keras.applications.VGG16(include_top=False) "
        f"as .h5 or .weights.h5: {reason}",
        details=path,
    )


def _shapes() -> Iterator[tuple[int, ...]]:
    channels = 3
    for convolutions, outputs in BLOCKS:
        for _ in range(convolutions):
            yield (3, 3, channels, outputs)
            yield (outputs,)
            channels = outputs


def _arrays(file: h5py.File) -> Iterator[Any]:
    """Kernel and bias of each layer, in order, of a file in either of Keras' layouts."""
    if "layer_names" in file.attrs:  # .h5
        for layer in file.attrs["layer_names"]:
            for weight in file[layer].attrs["weight_names"]:
                yield file[layer][weight]
        return
    layers = file["layers"]  # .weights.h5: conv2d, conv2d_1, …, conv2d_10, …
    for layer in sorted(layers, key=_numbers):
        variables = layers[layer]["vars"]
        yield from (variables[name] for name in sorted(variables, key=int))


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _imagenet() -> Path:
    keras_home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    return download(_IMAGENET_URL, keras_home / "models" / _IMAGENET_FILE, md5=_IMAGENET_MD5)


# What makes a new index loads them for each of its steps.
@cache
def _bundled() -> tuple[Convolution, ...]:
    convolutions = []
    with np.load(_BUNDLED_FILE) as arrays:
        for number in range(sum(count for count, _ in BLOCKS)):
            steps = np.int16(3) * arrays[f"levels_{number}"] + arrays[f"steps_{number}"]
            kernel = steps * arrays[f"scale_{number}"]
            convolutions.append(Convolution(kernel, arrays[f"bias_{number}"]))
    return tuple(convolutions)
