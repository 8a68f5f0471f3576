"""The types and constants that all parts share. It imports nothing of the rest."""

import hashlib
import re
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
# Of a frame of a video: the id that the video's file has, and seconds from the video's start.
VIDEO_FIELD: Final = "video"
TIME_FIELD: Final = "time"
# The length of a frame's video in seconds.
DURATION_FIELD: Final = "duration"
# Of the first frame of a video alone: how its frames were taken.
SAMPLING_FIELD: Final = "sampling"
# Where Pinecone keeps the state of a record.
STATE_FIELD: Final = "__state__"

# Pinecone's limits, kept by every store so that an index can move.
MAX_TOP_K: Final = 10_000
MAX_ID_LENGTH: Final = 512

# --- ids of frames ---

_FRAME: Final = re.compile(r"#t=\d+\.\d{3}")
# What an id of a frame has behind that of its video, for 100 days at most.
_LONGEST_TIME: Final = len("#t=9999999.999")


def frame_id(video: str, time: float) -> str:
    """The id of a video's frame, `time` seconds from its start: `VIDEO#t=12.000`."""
    return f"{frame_stem(video)}#t={time:.3f}"


def frame_stem(video: str) -> str:
    """What the ids of a video's frames begin with, before #t=: its id, cut if it is too long."""
    if len(video) <= MAX_ID_LENGTH - _LONGEST_TIME:
        return video
    digest = hashlib.sha256(video.encode()).hexdigest()
    return f"{video[: MAX_ID_LENGTH - _LONGEST_TIME - len(digest) - 1]}~{digest}"


def item_of(id_: str) -> str:
    """The same for all frames of a video, and another for any other image: the id without #t=."""
    at = id_.rfind("#t=")
    return id_[:at] if at > 0 and _FRAME.fullmatch(id_, at) else id_


def time_of(id_: str) -> float | None:
    """Seconds from the start of the video that the id is a frame of; None for an image's."""
    stem = item_of(id_)
    return None if stem == id_ else float(id_[len(stem) + len("#t=") :])
