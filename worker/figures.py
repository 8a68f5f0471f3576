"""What an evaluation found: the figures, which are saved as JSON, and the pictures beside them."""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from image_search.manifest import ModelSpec
from image_search.values import Metric, Store
from worker.measures import Floats, bootstrap_interval

# Float32 sums differ in the last digits from machine to machine.
_DIGITS: Final = 6


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Figures):
    """A mean over queries, and its 95 % confidence interval by bootstrap."""

    mean: float
    low: float
    high: float

    @classmethod
    def of_columns(cls, values: dict[str, Floats], rng: np.random.Generator) -> dict[str, Self]:
        """The estimate of each column, [queries], of which the same queries are resampled."""
        table = np.stack(list(values.values()), axis=1)
        ends = bootstrap_interval(table, rng)
        return {
            name: cls(mean=rounded(mean), low=rounded(low), high=rounded(high))
            for name, mean, low, high in zip(values, table.mean(axis=0), *ends, strict=True)
        }


class Setup(_Figures):
    """What was measured, and with what: all that it takes to measure it again."""

    source: str
    queries: int
    images: int
    store: Store
    index: str
    namespace: str
    metric: Metric
    model: ModelSpec
    # Why the index has its input size; empty in indexes of earlier versions.
    input_size_reason: str
    seed: int
    # Queries that are in the index under their own id; each is left out of its own matches.
    left_out: int
    unreadable: int
    # Queries without a label, or with one that nothing else in the index has.
    without_relevant: int


class Group(_Figures):
    """Figures of some queries, those of one label or all: `precision@10` and so on."""

    queries: int
    estimates: dict[str, Estimate]


class Pairs(_Figures):
    """Scores of all pairs of a query and an indexed image, with the same label and without.

    The shares are histograms: of each kind of pairs, the share in each bin; `edges` are scores.
    What compares the two kinds is absent when all pairs have the same label.
    """

    edges: list[float]
    same_shares: list[float]
    different_shares: list[float]
    same: int
    different: int
    same_mean: float
    different_mean: float | None
    roc_auc: float | None


class ScoreBin(_Figures):
    """The matches, of the ten nearest to each query, whose scores are alike."""

    score: float
    precision: float
    matches: int


class ConfidenceBin(_Figures):
    """The matches, of the ten nearest to each query, in one of 15 bins of confidence."""

    confidence: float
    precision: float
    matches: int


class Reliability(_Figures):
    """Whether of the matches of a confidence as large a share is right."""

    expected_calibration_error: float
    bins: list[ConfidenceBin]


class Retrieval(_Figures):
    """What labels tell. `chance` is the precision of matches that are drawn at random.

    `reliability` is absent where the index gives no confidence.
    """

    chance: float
    overall: Group
    by_label: dict[str, Group]
    # Counts of the ten nearest, by label of the query and label of the match.
    confusion: dict[str, dict[str, int]]
    pairs: Pairs
    precision_by_score: list[ScoreBin]
    reliability: Reliability | None


class Stability(_Figures):
    """What a small change of the query image changes.

    `overlap` is the share of the ten nearest images that stay, `cosine` the cosine similarity of
    the embeddings before and after.
    """

    queries: int
    overlap: Estimate
    cosine: Estimate


class Figures(_Figures):
    """All figures. `retrieval` is absent without labels, for the reason `without_labels`."""

    protocol: Setup
    retrieval: Retrieval | None
    without_labels: str | None
    # Of the ten nearest images by exact search, the share that the store's search finds.
    store_recall: Estimate
    stability: dict[str, Stability]


@dataclass(frozen=True)
class Picture:
    """A thumbnail, JPEG, and what is known of it."""

    id: str
    label: str | None
    thumbnail: bytes


@dataclass(frozen=True)
class Strip:
    """A query and its nearest images with their scores; quality only where it has a label."""

    query: Picture
    matches: list[tuple[Picture, float]]
    precision: float | None
    average_precision: float | None


@dataclass(frozen=True)
class EmbeddingMap:
    """float64 [n, 2], and the label of each point."""

    points: NDArray[np.float64]
    labels: list[str | None]


@dataclass(frozen=True)
class Evaluation:
    """Figures, and what only a report shows. `strips` maps a heading to its strips."""

    figures: Figures
    unreadable: dict[str, str]
    strips: dict[str, list[Strip]]
    embedding_map: EmbeddingMap | None


def rounded(value: float) -> float:
    """The value as it is reported."""
    return round(float(value), _DIGITS)
