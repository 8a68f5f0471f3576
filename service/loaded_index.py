"""An index with the model that built it."""

from dataclasses import dataclass

from image_search.calibration import Calibration
from image_search.embedding import Embedder
from image_search.familiarity import Familiarity, is_familiar
from image_search.filters import Filter, chooses_by
from image_search.index import VectorIndex
from image_search.values import LABEL_FIELD


@dataclass(frozen=True, eq=False)
class LoadedIndex:
    """An open index, the model that it was built with, and what tells how sure matches are.

    `sample_version` is that of the sample that `familiarity` was made of.
    """

    index: VectorIndex
    embedder: Embedder
    calibration: Calibration | None
    familiarity: Familiarity | None = None
    sample_version: str = ""

    def calibration_for(self, filter_: Filter | None, p_value: float | None) -> Calibration | None:
        """What turns the scores of a query's matches to confidences; None where they get none.

        Scores were seen to mean something among all images, for queries that are like them. Of a
        query that is like none, they mean nothing; and among the images of one label they depend on
        how often a query shows what its user filters by, which is not known.
        """
        if is_familiar(p_value) is False or chooses_by(filter_, LABEL_FIELD):
            return None
        return self.calibration
