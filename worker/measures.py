"""Figures of retrieval and of calibration, by their standard definitions, in NumPy alone.

Precision, recall and average precision are those of Manning, Raghavan and Schütze, Introduction to
Information Retrieval (2008), chapter 8; what is relevant to a query is what has its label.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Enough for the two digits that people read of an interval (Efron and Tibshirani, An Introduction
# to the Bootstrap, 1993, section 13.3).
_RESAMPLES: Final = 1000
_RESAMPLES_AT_ONCE: Final = 50
_INTERVAL: Final = (2.5, 97.5)
_CONFIDENCE_BINS: Final = 15


def precision_at(relevant: NDArray[np.bool_], k: int) -> Floats:
    """float64 [q]: the share of the first `k` matches that is relevant.

    `relevant` is bool [q, n], best match first; matches that are missing count as not relevant.
    n is at least `k`.
    """
    found: Floats = relevant[:, :k].mean(axis=1)
    return found


def recall_at(relevant: NDArray[np.bool_], k: int, totals: NDArray[np.int64]) -> Floats:
    """float64 [q]: the share of the `totals` [q] relevant images that is among the first `k`."""
    found: Floats = relevant[:, :k].sum(axis=1) / totals
    return found


def average_precision(similarities: NDArray[np.floating], relevant: NDArray[np.bool_]) -> float:
    """The mean, over the relevant images, of the precision at the rank of each.

    Both are [n], of everything that there is to find, in any order; one at least is relevant.
    Images of equal similarity share the last of their ranks, so that no order among them is
    assumed.
    """
    positives = np.sort(similarities[relevant])
    everything = np.sort(similarities)
    relevant_until = len(positives) - np.searchsorted(positives, positives)
    all_until = len(everything) - np.searchsorted(everything, positives)
    return float((relevant_until / all_until).mean())


def roc_auc(positives: NDArray[np.int64], negatives: NDArray[np.int64]) -> float:
    """The probability that a positive scores higher than a negative, ties counted half.

    Both are histograms, int64 [bins], over the same bins of rising score. It is the area under the
    ROC curve (Hanley and McNeil, Radiology 143, 1982).
    """
    lower_negatives = np.cumsum(negatives) - negatives
    wins = positives @ (lower_negatives + negatives / 2)
    return float(wins / positives.sum() / negatives.sum())


def reliability(
    confidences: Floats, correct: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Of each of 15 bins of equal width in confidence: count, mean confidence, share correct.

    Both are [n], confidences from 0 to 1; bins that hold none are left out. They make up the
    reliability diagram (Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks,
    ICML 2017, section 2).
    """
    bins = (np.ceil(confidences * _CONFIDENCE_BINS) - 1).clip(0).astype(np.int64)
    counts = np.bincount(bins, minlength=_CONFIDENCE_BINS)
    used = counts > 0
    sums = [
        np.bincount(bins, weights, _CONFIDENCE_BINS)[used] for weights in (confidences, correct)
    ]
    return counts[used], sums[0] / counts[used], sums[1] / counts[used]


def expected_calibration_error(confidences: Floats, correct: NDArray[np.bool_]) -> float:
    """How far confidence and the share correct are apart, weighted by the bins' counts (ibid.)."""
    counts, mean_confidences, shares = reliability(confidences, correct)
    return float(np.average(np.abs(mean_confidences - shares), weights=counts))


def bootstrap_interval(values: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The 95 % confidence interval of the mean of each column of float64 [n, m].

    The rows are resampled; the interval is from percentile to percentile of the means (Efron and
    Tibshirani, 1993, chapter 13). Returns the lower and the upper ends, [m] each.
    """
    count = len(values)
    shares = np.full(count, 1 / count)
    means = [
        rng.multinomial(count, shares, size=_RESAMPLES_AT_ONCE) @ values / count
        for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE)
    ]
    low, high = np.percentile(np.concatenate(means), _INTERVAL, axis=0)
    return low, high
