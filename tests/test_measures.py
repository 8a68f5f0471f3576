"""The definitions of the figures, against scikit-learn and SciPy."""

import numpy as np
import pytest
import scipy.stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score

from worker import measures


@pytest.mark.parametrize("decimals", [1, 8])
def test_average_precision_is_scikit_learns_also_with_ties(decimals: int) -> None:
    rng = np.random.default_rng(0)
    for share in (0.05, 0.5, 1.0):
        scores = rng.random(200).round(decimals)
        relevant = rng.random(200) < share
        relevant[3] = True
        expected = average_precision_score(relevant, scores)
        assert measures.average_precision(scores, relevant) == pytest.approx(expected)


def test_roc_auc_is_scikit_learns_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    bins = rng.integers(0, 12, 500)
    positive = rng.random(500) < bins / 15
    found = measures.roc_auc(
        np.bincount(bins[positive], minlength=12), np.bincount(bins[~positive], minlength=12)
    )
    assert found == pytest.approx(roc_auc_score(positive, bins))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_precision_and_recall_at_k_are_scikit_learns(k: int) -> None:
    rng = np.random.default_rng(0)
    relevant = rng.random((30, 40)) < 0.3
    relevant[:, 39] = True
    retrieved = np.arange(40) < k
    precisions = measures.precision_at(relevant, k)
    recalls = measures.recall_at(relevant, k, relevant.sum(axis=1))
    for row, precision, recall in zip(relevant, precisions, recalls, strict=True):
        assert precision == pytest.approx(precision_score(row, retrieved))
        assert recall == pytest.approx(recall_score(row, retrieved))


def test_reliability_is_scikit_learns_and_its_error_what_the_bins_say() -> None:
    rng = np.random.default_rng(0)
    confidences = rng.random(400) ** 2
    correct = rng.random(400) < confidences**0.7
    counts, mean_confidences, shares = measures.reliability(confidences, correct)
    expected_shares, expected_confidences = calibration_curve(correct, confidences, n_bins=15)
    np.testing.assert_allclose(mean_confidences, expected_confidences)
    np.testing.assert_allclose(shares, expected_shares)
    gaps = 0.0
    for number in range(15):
        inside = (confidences > number / 15) & (confidences <= (number + 1) / 15)
        if inside.any():
            gaps += inside.sum() * abs(confidences[inside].mean() - correct[inside].mean())
    found = measures.expected_calibration_error(confidences, correct)
    assert found == pytest.approx(gaps / 400)
    assert counts.sum() == 400


def test_confidences_of_none_and_one_have_their_bins() -> None:
    counts, means, shares = measures.reliability(np.array([0.0, 1.0, 1.0]), np.array([0, 1, 0]) > 0)
    assert (counts.tolist(), means.tolist(), shares.tolist()) == ([1, 2], [0, 1], [0, 0.5])


def test_intervals_are_those_of_scipys_bootstrap() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.random(300), rng.exponential(size=300)], axis=1)
    low, high = measures.bootstrap_interval(values, np.random.default_rng(1))
    for column, ends in zip(values.T, zip(low, high, strict=True), strict=True):
        expected = scipy.stats.bootstrap(
            (column,), np.mean, n_resamples=5000, method="percentile", rng=2
        ).confidence_interval
        width = expected.high - expected.low
        np.testing.assert_allclose(ends, expected, atol=0.1 * width)


def test_the_interval_of_equal_values_is_a_point() -> None:
    low, high = measures.bootstrap_interval(np.full((7, 1), 0.25), np.random.default_rng(0))
    np.testing.assert_allclose([*low, *high], 0.25)
