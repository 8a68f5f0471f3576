"""Recipes: how an embedding is made of what VGG16's blocks see.

The plain one is the average of the last block's feature map. A fitted one pools the maps of several
blocks, which costs nothing more, and projects them as was fitted to images of the index.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from image_search import blas
from image_search.values import Features, Pooling, RecipeName

_FINGERPRINT_DIGITS: Final = 16
_FORMAT: Final = 2


@dataclass(frozen=True)
class Form:
    """What is done to features before they are projected.

    Each is raised to `power`, at least zero as they are: below 1 keeps a few strong channels from
    deciding alone, as in "Three things everyone should know to improve object retrieval",
    https://www.robots.ox.ac.uk/~vgg/publications/2012/Arandjelovic12/arandjelovic12.pdf , and
    above 1 strengthens them. With `unit_blocks`, the features of each block then get length 1. The
    projection gives each block a standard deviation in proportion to its weight.
    """

    pooling: Pooling
    power: float
    unit_blocks: bool
    weights: tuple[float, ...]

    def prepare(self, features: Features) -> Features:
        """float32 [n, features] of what the engines compute, of the same shape."""
        powers = np.asarray(np.power(features, self.power), np.float32)
        if not self.unit_blocks:
            return powers
        blocks = np.split(powers, np.cumsum(self.pooling.channels)[:-1], axis=1)
        return np.concatenate([_unit(block) for block in blocks], axis=1)


# Of recipes in the first format, which did not say so.
FIRST_FORM: Final = Form(Pooling((2, 3, 4, 5), 1), 0.5, unit_blocks=False, weights=(1, 1, 1, 1))


@dataclass(frozen=True, eq=False)
class Recipe:
    """A fitted recipe: `mean` is float32 [features], `projection` float32 [features, 512]."""

    name: RecipeName
    form: Form
    mean: Features
    projection: Features

    def apply(self, features: Features) -> Features:
        """float32 [n, 512] of unit length, of [n, features] that were pooled as its form says."""
        centred = self.form.prepare(features) - self.mean
        with blas.one_thread():
            embeddings = np.asarray(centred @ self.projection, np.float32)
        return _unit(embeddings)

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of all that embeddings depend on."""
        digest = hashlib.sha256(self.name.encode())
        if self.form != FIRST_FORM:
            pooling = self.form.pooling
            numbers = [
                pooling.exponent,
                self.form.power,
                self.form.unit_blocks,
                *pooling.blocks,
                *self.form.weights,
            ]
            digest.update(np.array(numbers, "<f8").tobytes())
        for array in (self.mean, self.projection):
            digest.update(array.astype("<f4").tobytes())
        return digest.hexdigest()[:_FINGERPRINT_DIGITS]

    def to_bytes(self) -> bytes:
        """A NumPy .npz file; the projection takes half precision."""
        out = io.BytesIO()
        np.savez(
            out,
            format=_FORMAT,
            name=self.name,
            blocks=self.form.pooling.blocks,
            exponent=self.form.pooling.exponent,
            power=self.form.power,
            unit_blocks=self.form.unit_blocks,
            weights=self.form.weights,
            mean=self.mean,
            projection=self.projection.astype("<f2"),
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Recipe":
        """What `to_bytes` made, of this version or an earlier one.

        Raises ValueError for anything else.
        """
        try:
            with np.load(io.BytesIO(content)) as arrays:
                name, mean, projection = (arrays[key] for key in ("name", "mean", "projection"))
                form = _form(arrays) if "format" in arrays else FIRST_FORM
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as exc:
            raise ValueError(f"not a recipe: {exc}") from exc
        return cls(name.item(), form, mean, projection.astype(np.float32))


def _form(arrays: Mapping[str, Any]) -> Form:
    number = arrays["format"].item()
    if number != _FORMAT:
        raise ValueError(f"its format is {number}, this version reads {_FORMAT}")
    blocks, exponent, power, unit_blocks, weights = (
        arrays[key].tolist() for key in ("blocks", "exponent", "power", "unit_blocks", "weights")
    )
    return Form(Pooling(tuple(blocks), exponent), power, unit_blocks, tuple(weights))


def _unit(rows: Features) -> Features:
    """The rows at length 1; rows of zeros stay so."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths, lengths, 1), np.float32)
