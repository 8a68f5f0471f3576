"""Whether a picture is like anything in an index: how near its textures are to a sample's.

Textures are the averages of low blocks, which tell drawings, noise and photographs apart, where
high blocks see the things that they resemble. Their logarithms are whitened, and the distance to
the nearest image of the sample is ranked among the same distances of the sample's own images: a
conformal p-value, as in "Testing for Outliers with Conformal p-values",
https://doi.org/10.1214/22-AOS2244.
"""

from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from image_search import blas
from image_search.sample import ImageSample
from image_search.values import Features

# A query is unfamiliar where fewer of the index's own images are as far from the others:
# python -m benchmarks.familiarity
UNFAMILIAR_BELOW: Final = 0.03

# Of the mean texture, and of the mean deviation and variance: below, it is noise.
_LEAST_TEXTURE: Final = 0.01
_SHRINKAGE: Final = 0.1
_COMPONENTS: Final = 100
_ROUNDING: Final = 1e-6

Floats = NDArray[np.float64]


def is_familiar(p_value: float | None) -> bool | None:
    """Whether a picture with this p-value is like something in the index; None for None."""
    return None if p_value is None else p_value >= UNFAMILIAR_BELOW


class Familiarity:
    """Tells how familiar pictures are to the index that the sample was drawn from."""

    def __init__(self, sample: ImageSample) -> None:
        textures = sample.textures
        # Half of the images decide what is whitened; the other half, which that is not fitted to,
        # stands for queries. Ids in the order of their hashes are in random order.
        half = len(textures) // 2
        self._least = np.float32(_LEAST_TEXTURE * textures.mean(axis=0).mean())
        rows = self._logarithms(textures)
        self._mean = rows[:half].mean(axis=0)
        deviations = rows[:half].std(axis=0)
        scales = 1 / (deviations + _SHRINKAGE * deviations.mean() + _ROUNDING)
        _, sizes, directions = np.linalg.svd(
            (rows[:half] - self._mean) * scales, full_matrices=False
        )
        kept = min(_COMPONENTS, half // 2)
        variances = sizes[:kept] ** 2 / half + _ROUNDING
        directions = directions[:kept].T / np.sqrt(variances + _SHRINKAGE * variances.mean())
        self._projection = np.asarray(scales[:, np.newaxis] * directions, np.float32)
        self._images = (rows - self._mean) @ self._projection
        self._squares = np.square(self._images).sum(axis=1)
        own = self._squared_distances(self._images[half:])
        own[np.arange(len(own)), half + np.arange(len(own))] = np.inf  # from itself
        self._distances = np.sort(own.min(axis=1))

    @classmethod
    def of(cls, sample: ImageSample) -> Self | None:
        """None where the sample does not stand for the index."""
        return cls(sample) if sample.is_representative else None

    def p_values(self, textures: Features) -> Floats:
        """float64 [n], 0 to 1, of float32 [n, 384]: how many own images are as far off."""
        with blas.one_thread():
            rows = (self._logarithms(textures) - self._mean) @ self._projection
            found = self._squared_distances(rows).min(axis=1)
        farther = len(self._distances) - np.searchsorted(self._distances, found)
        return np.asarray((1 + farther) / (1 + len(self._distances)))

    def _logarithms(self, textures: Features) -> Features:
        return np.asarray(np.log(textures + self._least), np.float32)

    def _squared_distances(self, rows: Features) -> Features:
        """Of each row to each image of the sample."""
        squares = np.square(rows).sum(axis=1)[:, np.newaxis] + self._squares
        return np.asarray(squares - 2 * rows @ self._images.T)
