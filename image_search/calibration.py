"""From scores to confidences: how likely it is that a match shows what the query shows."""

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator


class Calibration(BaseModel):
    """A monotone function through the points (`scores`, `confidences`), straight between them.

    Scores rise. Confidences, from 0 to 1, rise with them, or fall where less is more similar.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: tuple[float, ...]
    confidences: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.scores or len(self.scores) != len(self.confidences):
            raise ValueError("there are as many scores as confidences, and at least one")
        return self

    def confidence(self, score: float) -> float:
        """The estimated probability that a match with this score is of the query's kind."""
        return float(np.interp(score, self.scores, self.confidences))
