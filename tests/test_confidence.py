"""Confidences: fitted to labels through the store, and as often right as they say."""

import threading
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from image_search.calibration import Calibration
from image_search.index import Record, VectorIndex
from image_search.manifest import Manifest
from image_search.sample import ImageSample
from image_search.settings import Settings
from image_search.stores import create_index
from image_search.values import DIMENSION, Metric
from tests.support.indexes import FakeEmbedder
from worker.confidence import calibrate, draw, fit_calibration, recalibrate
from worker.measures import expected_calibration_error

METRICS: list[Metric] = ["cosine", "euclidean", "dotproduct"]
KINDS = 5


def clustered(count: int, seed: int) -> tuple[Any, list[str]]:
    """Unit vectors, half of them near one of five centres, and half anywhere; and their kinds."""
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(0)
    centres, basis = fixed.standard_normal((KINDS, 20)), fixed.standard_normal((20, DIMENSION))
    numbers = rng.integers(0, KINDS, count)
    clear = rng.random((count, 1)) < 0.5
    noise = rng.standard_normal((count, 20))
    rows = np.where(clear, centres[numbers] + 0.4 * noise, noise) @ basis
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [f"kind {number}" for number in numbers]


def fill(settings: Settings, metric: Metric, rows: Any, labels: list[str | None]) -> VectorIndex:
    index = create_index(settings, Manifest.new(FakeEmbedder().model, metric, settings.namespace))
    index.upsert(
        [
            Record(f"{number:04d}", row, label, {}, b"")
            for number, (row, label) in enumerate(zip(rows, labels, strict=True))
        ]
    )
    return index


def calibrated(index: VectorIndex, count: int) -> Calibration | None:
    return calibrate(index, [f"{number:04d}" for number in range(count)], threading.Event())


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("top_k", [1, 10, 50])
def test_confidences_of_held_out_queries_are_right(
    settings: Settings, metric: Metric, top_k: int
) -> None:
    rows, labels = clustered(1500, seed=1)
    index = fill(settings, metric, rows, list(labels))
    calibration = calibrated(index, 600)
    assert calibration is not None
    assert len(calibration.scores) <= 32
    queries, kinds = clustered(300, seed=2)
    confidences, correct = [], []
    for kind, matches in zip(kinds, index.query_many(queries, top_k), strict=True):
        confidences += [calibration.confidence(match.score) for match in matches]
        correct += [match.label == kind for match in matches]
    assert expected_calibration_error(np.array(confidences), np.array(correct)) < 0.05
    assert max(confidences) - min(confidences) > 0.3


def test_confidence_is_a_line_between_points_and_constant_beyond() -> None:
    calibration = Calibration(scores=(0.2, 0.4, 0.8), confidences=(0.1, 0.5, 0.9))
    found = [calibration.confidence(score) for score in (-1, 0.2, 0.3, 0.6, 0.8, 5)]
    np.testing.assert_allclose(found, [0.1, 0.1, 0.3, 0.7, 0.9, 0.9])
    falls = Calibration(scores=(1, 3), confidences=(1, 0))
    np.testing.assert_allclose([falls.confidence(s) for s in (0, 2, 9)], [1, 0.5, 0])


@pytest.mark.parametrize("points", [((), ()), ((0.1, 0.2), (0.5,))])
def test_points_that_are_none_are_refused(points: Any) -> None:
    with pytest.raises(ValueError, match="as many scores"):
        Calibration(scores=points[0], confidences=points[1])


@pytest.mark.parametrize("rises", [True, False])
def test_the_fit_is_isotonic_as_scikit_learns(rises: bool) -> None:  # noqa: FBT001
    rng = np.random.default_rng(0)
    scores = rng.random(4000)
    same = rng.random(4000) < (scores**2 if rises else 1 - scores)
    calibration = fit_calibration(scores, same, np.ones(4000), rises=rises)
    steps = np.diff(calibration.confidences)
    assert (steps >= 0).all() if rises else (steps <= 0).all()
    theirs = IsotonicRegression(increasing=rises).fit(scores, same)
    at = np.linspace(0.05, 0.95, 50)
    ours = [calibration.confidence(score) for score in at]
    assert np.abs(theirs.predict(at) - ours).mean() < 0.03


@pytest.mark.parametrize("rises", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_a_fit_of_few_pairs_is_exactly_scikit_learns(seed: int, rises: bool) -> None:  # noqa: FBT001
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.random(31))  # each is a point of its own
    same = rng.random(31) < 0.5
    found = fit_calibration(scores, same, np.ones(31), rises=rises)
    np.testing.assert_allclose(found.scores, scores)
    theirs = IsotonicRegression(increasing=rises).fit_transform(scores, same)
    np.testing.assert_allclose(found.confidences, theirs, atol=1e-12)


@pytest.mark.parametrize("labels", [[None] * 200, ["one"] * 200, ["a", "b"] * 20 + [None] * 160])
def test_too_few_labels_give_no_calibration(settings: Settings, labels: list[str | None]) -> None:
    rows, _ = clustered(200, seed=1)
    assert calibrated(fill(settings, "cosine", rows, labels), 200) is None


@pytest.mark.slow
def test_random_labels_have_the_confidence_of_chance(settings: Settings) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((1000, DIMENSION)).astype(np.float32)
    labels: list[str | None] = [f"kind {n}" for n in rng.integers(0, 4, 1000)]
    calibration = calibrated(fill(settings, "cosine", rows, labels), 1000)
    assert calibration is not None
    assert np.mean(calibration.confidences) == pytest.approx(0.25, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_shares_of_pairs_are_those_that_are_counted(settings: Settings, metric: Metric) -> None:
    rows, labels = clustered(400, seed=1)
    rows *= np.random.default_rng(2).uniform(0.5, 2, (400, 1)).astype(np.float32)
    calibration = calibrated(fill(settings, metric, rows, list(labels)), 400)
    assert calibration is not None
    pairs = Calibration.model_validate_json(calibration.model_dump_json()).pairs
    assert pairs is not None
    by_kind: dict[bool, list[float]] = {True: [], False: []}
    for (left, kind), (right, other) in combinations(zip(rows, labels, strict=True), 2):
        score = {
            "cosine": left @ right / np.linalg.norm(left) / np.linalg.norm(right),
            "dotproduct": left @ right,
            "euclidean": ((left - right) ** 2).sum(),
        }[metric]
        by_kind[kind == other].append(float(score))
    for same, share in (
        (True, pairs.share_of_same_kind_above),
        (False, pairs.share_of_different_kinds_above),
    ):
        scores = np.array(by_kind[same])
        for level in (0.0005, 0.003, 0.02, 0.5, 0.9, 0.997, 0.9995):
            score = float(np.quantile(scores, level))
            counted = (scores > score).mean()
            # Between quantiles a share is a line, so that small ones are right in their order.
            assert share(score) == pytest.approx(counted, rel=0.01 if counted > 0.01 else 1)
        assert share(scores.max() + 1) == 0
        assert share(scores.min() - 1) == 1


def test_labels_that_hardly_any_images_share_give_no_shares(settings: Settings) -> None:
    rows, _ = clustered(180, seed=1)
    labels: list[str | None] = [f"name {number // 2}" for number in range(180)]
    calibration = calibrated(fill(settings, "cosine", rows, labels), 180)
    assert calibration is not None
    assert calibration.pairs is None


def test_one_that_is_stopped_gives_none(settings: Settings) -> None:
    rows, labels = clustered(300, seed=1)
    index = fill(settings, "cosine", rows, list(labels))
    stop = threading.Event()
    stop.set()
    assert calibrate(index, [f"{number:04d}" for number in range(300)], stop) is None


def test_ids_are_drawn_from_the_whole_index(settings: Settings) -> None:
    rows = np.random.default_rng(0).random((12_000, DIMENSION), np.float32)
    index = fill(settings, "cosine", rows, [None] * 12_000)
    ids = draw(index).ids
    assert len(set(ids)) == 10_000
    # A tenth of the first thousand from each tenth, but for chance.
    shares = np.histogram([int(id_) for id_ in ids[:1000]], bins=10, range=(0, 12_000))[0]
    assert shares.min() > 60
    assert shares.max() < 140
    assert draw(index).ids == ids


@pytest.mark.slow
def test_labels_are_looked_for_where_few_images_have_one(settings: Settings) -> None:
    rows, kinds = clustered(6000, seed=1)
    labels = [kind if number % 20 == 0 else None for number, kind in enumerate(kinds)]
    index = fill(settings, "cosine", rows, labels)
    assert calibrate(index, draw(index).ids, threading.Event()) is not None


@pytest.mark.slow
def test_a_small_second_ingest_does_not_shift_confidences(settings: Settings) -> None:
    rows, kinds = clustered(1500, seed=1)
    index = fill(settings, "cosine", rows, list(kinds))
    recalibrate(index, ImageSample(), threading.Event())
    before = index.calibration
    # Of one kind, all alike.
    copies = rows[:1] + np.random.default_rng(1).normal(0, 1e-3, (60, DIMENSION))
    index.upsert(
        [
            Record(f"copy {n}", row.astype(np.float32), "copy", {}, b"")
            for n, row in enumerate(copies)
        ]
    )
    recalibrate(index, ImageSample(), threading.Event())
    after = index.calibration
    assert before is not None
    assert after is not None
    for score in (0.3, 0.5, 0.7):
        assert after.confidence(score) == pytest.approx(before.confidence(score), abs=0.1)
