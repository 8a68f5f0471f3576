"""VGG16's convolution weights: where they come from, and how they get into the network."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np

from image_search.download import download
from image_search.errors import DownloadError, WeightsError

_log = logging.getLogger(__name__)

AUTO: Final = "auto"
IMAGENET: Final = "imagenet"
BUNDLED: Final = "bundled"

# The file of keras.applications.VGG16(include_top=False), with the checksum that Keras checks:
# keras/src/applications/vgg16.py
_IMAGENET_FILE: Final = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
_IMAGENET_URL: Final = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/" + _IMAGENET_FILE
)
_IMAGENET_MD5: Final = "6d6bbae143d832006294945121d1f1fc"

_BUNDLED_FILE: Final = Path(__file__).parent / "bundled" / "vgg16-tiny-imagenet-32.npz"


def choose_weights(choice: str) -> str:
    """Turn `auto` into `imagenet` where those are cached or can be downloaded, else `bundled`."""
    if choice != AUTO:
        return choice
    try:
        _imagenet()
    except DownloadError as exc:
        _log.warning("using the bundled weights, as the ImageNet weights cannot be had: %s", exc)
        return BUNDLED
    return IMAGENET


def load_weights(network: Any, weights: str) -> str:
    """Load `weights` (`imagenet`, `bundled` or a path) into a Keras VGG16 without top.

    Returns the name to record: the choice itself, or the file's name. Raises WeightsError when the
    file is missing or does not hold VGG16's convolutions, or when ImageNet's cannot be downloaded.
    """
    if weights == BUNDLED:
        network.set_weights(_bundled())
        return BUNDLED
    try:
        path = _imagenet() if weights == IMAGENET else Path(weights)
    except DownloadError as exc:
        raise WeightsError(f"the ImageNet weights cannot be had: {exc}") from exc
    if not path.is_file():
        raise WeightsError(
            f"there is no weights file {path}: give imagenet, bundled, or the path of a Keras "
            ".h5 or .weights.h5 file"
        )
    try:
        with warnings.catch_warnings():
            # Keras only warns of layers that keep their random weights.
            warnings.simplefilter("error", UserWarning)
            network.load_weights(path)
    except (OSError, ValueError, KeyError, UserWarning) as exc:
        raise WeightsError(
            f"{path} does not hold the weights of keras.applications.VGG16(include_top=False) "
            f"as .h5 or .weights.h5: {str(exc).splitlines()[0]}"
        ) from exc
    return IMAGENET if weights == IMAGENET else path.name


def _imagenet() -> Path:
    keras_home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    return download(_IMAGENET_URL, keras_home / "models" / _IMAGENET_FILE, md5=_IMAGENET_MD5)


def _bundled() -> list[np.ndarray[Any, Any]]:
    """Kernel and bias of each convolution, in order, as float32."""
    with np.load(_BUNDLED_FILE) as arrays:
        return [
            array
            for number in range(len(arrays.files) // 3)
            for array in (
                arrays[f"kernel_{number}"] * arrays[f"scale_{number}"],
                arrays[f"bias_{number}"],
            )
        ]


if __name__ == "__main__":  # in a Dockerfile: put the weights into the image
    logging.basicConfig(format="%(message)s")
    print(f"weights: {choose_weights(AUTO)}")
