"""What scores mean in an index, as its labels tell."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

# Hundredths, and finer at the ends, where the scores of similar pictures are.
PAIR_LEVELS: Final = (
    *(0.0, 0.0001, 0.001, 0.005),
    *(percent / 100 for percent in range(1, 100)),
    *(0.995, 0.999, 0.9999, 1.0),
)

_Quantiles = Annotated[
    tuple[float, ...], Field(min_length=len(PAIR_LEVELS), max_length=len(PAIR_LEVELS))
]


class PairScores(BaseModel):
    """The scores of pairs of images of the index: their quantiles at `PAIR_LEVELS`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    same_kind: _Quantiles
    different_kinds: _Quantiles

    def share_of_same_kind_above(self, score: float) -> float:
        """The share, 0 to 1, of pairs with one label whose score is higher."""
        return _share_above(score, self.same_kind)

    def share_of_different_kinds_above(self, score: float) -> float:
        """The share, 0 to 1, of pairs with two labels whose score is higher."""
        return _share_above(score, self.different_kinds)


def _share_above(score: float, quantiles: tuple[float, ...]) -> float:
    return 1 - float(np.interp(score, quantiles, PAIR_LEVELS))


class Calibration(BaseModel):
    """A monotone function through the points (`scores`, `confidences`), straight between them.

    Scores rise. Confidences, from 0 to 1, rise with them, or fall where less is more similar.
    `pairs` is None where it was fitted by an older version, or too few images share a label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: tuple[float, ...]
    confidences: tuple[float, ...]
    pairs: PairScores | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.scores or len(self.scores) != len(self.confidences):
            raise ValueError("there are as many scores as confidences, and at least one")
        return self

    def confidence(self, score: float) -> float:
        """The estimated probability that a match with this score is of the query's kind."""
        return self.confidences_of([score])[0]

    def confidences_of(self, scores: Sequence[float]) -> list[float]:
        """`confidence` of each score, at less cost for each."""
        confidences: list[float] = np.interp(
            scores, _array(self.scores), _array(self.confidences)
        ).tolist()
        return confidences


@lru_cache(maxsize=4)
def _array(values: tuple[float, ...]) -> NDArray[np.float64]:
    """To make it takes longer than all the rest."""
    return np.array(values)
