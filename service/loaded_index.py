"""An index with the model that built it."""

from dataclasses import dataclass

from image_search.calibration import Calibration
from image_search.embedding import Embedder
from image_search.index import VectorIndex


@dataclass(frozen=True, eq=False)
class LoadedIndex:
    """An open index, the model that it was built with, and what turns its scores to confidences."""

    index: VectorIndex
    embedder: Embedder
    calibration: Calibration | None
