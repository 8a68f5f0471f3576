"""The types and constants that all parts share. It imports nothing of the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["cosine", "euclidean", "dotproduct"]
Store = Literal["embedded", "pinecone"]
# `whitening` is only in indexes that earlier versions made.
RecipeName = Literal["none", "neighbours", "components", "discriminant", "whitening"]
Precision = Literal["float32", "int8"]

# --- images and embeddings ---

# A larger image is not decoded, whatever the settings say.
MOST_PIXELS: Final = 250_000_000
# uint8 RGB [height, width, 3], or a batch of them.
Pixels = NDArray[np.uint8]
# What the engines compute: float32 [n, features], pooled feature maps.
Features = NDArray[np.float32]
# float32 [512], or [n, 512].
Embeddings = NDArray[np.float32]

DIMENSION: Final = 512
# Convolutions in each of VGG16's blocks, and their output channels; a block ends with a 2x2
# maximum. Configuration D of https://arxiv.org/abs/1409.1556
BLOCKS: Final = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


@dataclass(frozen=True)
class Pooling:
    """Which feature maps are pooled, and how: an engine's output has a number for each channel.

    `blocks`, numbered from 1, end in these maps. The generalised mean of a channel over its map is
    (mean of x^exponent)^(1/exponent): 1 gives the average, and larger exponents come closer to the
    maximum. Equation 3 of "Fine-tuning CNN Image Retrieval with No Human Annotation",
    https://arxiv.org/abs/1711.02512
    """

    blocks: tuple[int, ...]
    exponent: float

    @property
    def channels(self) -> tuple[int, ...]:
        """How many numbers each block gives."""
        return tuple(BLOCKS[block - 1][1] for block in self.blocks)


# The plain embedding, as Keras' pooling="avg" gives it.
PLAIN_POOLING: Final = Pooling((len(BLOCKS),), 1)

# Names of weights that need no path.
AUTO: Final = "auto"
BUNDLED: Final = "bundled"
IMAGENET: Final = "imagenet"

# --- records ---

Scalar = str | float | bool
MetadataValue = str | int | float | bool | list[str]
Metadata = Mapping[str, MetadataValue]
# Which fields records get from their image files.
FileMetadata = Literal["none", "default", "gps"]

LABEL_FIELD: Final = "label"
# The field of a record's metadata that has the SHA-256, in hex, of what the image was read from.
DIGEST_FIELD: Final = "sha256"
THUMBNAIL_FIELD: Final = "thumbnail"
# Where Pinecone keeps the state of a record.
STATE_FIELD: Final = "__state__"

# Pinecone's limits, kept by every store so that an index can move.
MAX_TOP_K: Final = 10_000
MAX_ID_LENGTH: Final = 512
