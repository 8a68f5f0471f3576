"""The types and constants that all parts share. It imports nothing of the rest."""

from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["cosine", "euclidean", "dotproduct"]
Store = Literal["embedded", "pinecone"]
RecipeName = Literal["none", "whitening", "discriminant"]
Precision = Literal["float32", "int8"]

# --- images and embeddings ---

# A larger image is not decoded, whatever the settings say.
MOST_PIXELS: Final = 250_000_000
# uint8 RGB [height, width, 3], or a batch of them.
Pixels = NDArray[np.uint8]
# What the engines compute: float32 [n, features], averages of feature maps.
Features = NDArray[np.float32]
# float32 [512], or [n, 512].
Embeddings = NDArray[np.float32]

DIMENSION: Final = 512
# Convolutions in each of VGG16's blocks, and their output channels; a block ends with a 2x2
# maximum. Configuration D of https://arxiv.org/abs/1409.1556
BLOCKS: Final = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))

# Names of weights that need no path.
AUTO: Final = "auto"
BUNDLED: Final = "bundled"
IMAGENET: Final = "imagenet"

# --- records ---

Scalar = str | float | bool
MetadataValue = str | int | float | bool | list[str]
Metadata = Mapping[str, MetadataValue]

LABEL_FIELD: Final = "label"
THUMBNAIL_FIELD: Final = "thumbnail"

# Pinecone's limits, kept by every store so that an index can move.
MAX_TOP_K: Final = 10_000
MAX_ID_LENGTH: Final = 512
