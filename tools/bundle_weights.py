"""Make the bundled weights from a Keras .h5 file: int8, one scale per output channel.

usage: python tools/bundle_weights.py VGG16-NOTOP.h5 OUT.npz
"""

import sys
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

INT8_MAX = 127


def quantize(kernel: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 values of a [3, 3, in, out] kernel and float32 scales [out], of least squared error.

    The scale of each channel is searched between 0.6 and 1.0 of the one that clips nothing.
    """
    columns = kernel.reshape(-1, kernel.shape[-1])
    widest = np.abs(columns).max(axis=0) / INT8_MAX
    best_scale = widest
    best_error = np.full(widest.shape, np.inf)
    for share in np.linspace(0.6, 1.0, 21):
        scale = (widest * share).astype(np.float32)
        rounded = np.clip(np.round(columns / scale), -INT8_MAX, INT8_MAX)
        error = ((rounded * scale - columns) ** 2).sum(axis=0)
        best_scale = np.where(error < best_error, scale, best_scale)
        best_error = np.minimum(error, best_error)
    values = np.clip(np.round(columns / best_scale), -INT8_MAX, INT8_MAX).astype(np.int8)
    return values.reshape(kernel.shape), best_scale.astype(np.float32)


def main() -> None:
    """Command line."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    network = keras.applications.VGG16(weights=None, include_top=False)
    network.load_weights(sys.argv[1])
    arrays: dict[str, NDArray[Any]] = {}
    for number, (kernel, bias) in enumerate(
        layer.get_weights() for layer in network.layers if layer.weights
    ):
        values, scales = quantize(kernel)
        arrays |= {f"kernel_{number}": values, f"scale_{number}": scales, f"bias_{number}": bias}
    np.savez_compressed(sys.argv[2], allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
