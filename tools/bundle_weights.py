"""Make the bundled weights from a Keras .h5 file.

usage: python -m tools.bundle_weights VGG16-NOTOP.h5 OUT.npz

Each output channel of a kernel has one float32 scale, and each weight is one of 763 multiples of
it. They are stored as int8 levels, of three steps each, and the step within a level, as two arrays
with few values each compress well. An engine that computes in int8 makes its 255 levels of the same
scale, so it gets the very levels that the original gives it.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_search.errors import WeightsError
from image_search.weights import fingerprint, load_weights

LEVEL_MAX = 127
STEPS = 3


def quantize(
    kernel: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.float32]]:
    """A [3, 3, in, out] kernel as int8 levels and steps of its shape, and float32 scales [out].

    The kernel is about (3 * levels + steps) * scales.
    """
    scales = np.abs(kernel).max(axis=(0, 1, 2)) / np.float32(STEPS * LEVEL_MAX)
    values = np.round(kernel / scales).astype(np.int16)
    levels = np.round(values / STEPS).astype(np.int8)
    return levels, (values - STEPS * levels.astype(np.int16)).astype(np.int8), scales


def main() -> None:
    """Command line."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    original, out = sys.argv[1:]
    try:
        _, convolutions = load_weights(original)
    except WeightsError as exc:
        sys.exit(f"error: {exc}")
    arrays: dict[str, NDArray[Any]] = {}
    for number, (kernel, bias) in enumerate(convolutions):
        levels, steps, scales = quantize(kernel)
        arrays |= {
            f"levels_{number}": levels,
            f"steps_{number}": steps,
            f"scale_{number}": scales,
            f"bias_{number}": bias,
        }
    np.savez_compressed(out, allow_pickle=False, **arrays)
    print(f"{original} ({fingerprint(convolutions)}): {Path(out).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
