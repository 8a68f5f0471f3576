"""Recipes: how an embedding is made of what VGG16's blocks see.

The plain one is the average of the last block's feature map. A fitted one takes the averages of
four blocks, which costs nothing more, and projects them as was fitted to images of the index.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from typing import Final

import numpy as np

from image_search import blas
from image_search.values import BLOCKS, Features, RecipeName

# Numbered from 1. Each gives an average for each of its channels.
LAST_BLOCK: Final = (len(BLOCKS),)
FITTED_BLOCKS: Final = (2, 3, 4, 5)
CHANNELS: Final = tuple(BLOCKS[block - 1][1] for block in FITTED_BLOCKS)
FEATURES: Final = sum(CHANNELS)

_FINGERPRINT_DIGITS: Final = 16


@dataclass(frozen=True, eq=False)
class Recipe:
    """A fitted recipe: `mean` is float32 [features], `projection` float32 [features, 512]."""

    name: RecipeName
    mean: Features
    projection: Features

    def apply(self, features: Features) -> Features:
        """float32 [n, 512] of unit length, of the averages of FITTED_BLOCKS, [n, features].

        Square roots, as in the Hellinger kernel, keep a few strong channels from deciding alone:
        https://www.robots.ox.ac.uk/~vgg/publications/2012/Arandjelovic12/arandjelovic12.pdf
        """
        centred = compressed(features) - self.mean
        with blas.one_thread():
            embeddings = centred @ self.projection
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return np.asarray(embeddings / np.where(lengths, lengths, 1))

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of all numbers."""
        digest = hashlib.sha256(self.name.encode())
        for array in (self.mean, self.projection):
            digest.update(array.astype("<f4").tobytes())
        return digest.hexdigest()[:_FINGERPRINT_DIGITS]

    def to_bytes(self) -> bytes:
        """A NumPy .npz file; the projection takes half precision."""
        out = io.BytesIO()
        np.savez(out, name=self.name, mean=self.mean, projection=self.projection.astype("<f2"))
        return out.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Recipe":
        """What `to_bytes` made; raises ValueError for anything else."""
        try:
            with np.load(io.BytesIO(content)) as arrays:
                name, mean, projection = (arrays[key] for key in ("name", "mean", "projection"))
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as exc:
            raise ValueError(f"not a recipe: {exc}") from exc
        return cls(name.item(), mean, projection.astype(np.float32))


def compressed(features: Features) -> Features:
    """The features as recipes are fitted to them."""
    return np.asarray(np.sqrt(features))
