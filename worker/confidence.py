"""What scores mean in an index, fitted to its labels by comparing some of its own images."""

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Final

import numpy as np
from numpy.typing import NDArray

from image_search.calibration import PAIR_LEVELS, Calibration, PairScores
from image_search.errors import StoreError
from image_search.index import Match, Record, VectorIndex
from image_search.moments import item_of
from image_search.progress import Progress
from image_search.sample import ImageSample, rank
from image_search.similarity import pair_scores
from image_search.values import Embeddings, Metric
from worker.videos import nearest_items

_log = logging.getLogger(__name__)

_QUERIES: Final = 1000
# In an index where few images have labels, these are looked through for them.
_DRAWN: Final = 10_000
_LEAST_QUERIES: Final = 100
_MATCHES: Final = 50
_TRIES: Final = 6
_SECONDS_BETWEEN_TRIES: Final = 5.0
_BATCH: Final = 8
_KNOTS: Final = 32
_LEAST_PAIRS: Final = 100
# Scores in a calibration need no more digits than float32 holds.
_DIGITS: Final = 7

Floats = NDArray[np.float64]


def recalibrate(index: VectorIndex, ingested: ImageSample, stop: threading.Event) -> None:
    """Fit and save what confidence and familiarity are told by, to a sample of the whole index.

    `ingested` is the sample of what was ingested just now. A line says why where it cannot be done:
    the images are in the index, so that this fails does not make the ingest fail.
    """
    try:
        drawn = draw(index)
        save_sample(index, ingested, drawn)
        calibration = calibrate(index, drawn.ids, stop)
        if calibration is not None:
            index.save_calibration(calibration)
    except StoreError as exc:
        _log.warning("confidences could not be fitted, and stay as they were: %s", exc.in_full)


def save_sample(index: VectorIndex, ingested: ImageSample, drawn: "Drawn | None" = None) -> None:
    """Join what was ingested to the index's sample. Raises StoreError.

    The ids of lowest rank in the index, which are `drawn`, have those of the sample among them.
    Without them its records are read.
    """

    def joined(stored: ImageSample) -> ImageSample:
        sample = stored.joined(ingested.ids, ingested.textures, ingested.bound)
        chosen = drawn
        if chosen is None and any(item_of(id_) != id_ for id_ in sample.ids):
            chosen = draw(index)
        present = set(chosen.ids) if chosen is not None else set()
        # Another worker may have added some since then.
        present.update(index.fetch([i for i in sample.ids if i not in present], thumbnails=False))
        return sample.of_index(present, index.count() if chosen is None else chosen.count)

    index.update_sample(joined)


@dataclass(frozen=True)
class Drawn:
    """Ids in random order, one frame of each video at most; from an index of `count` items."""

    ids: list[str]
    count: int


def draw(index: VectorIndex) -> Drawn:
    """10,000 images and videos, each as likely as any other. Raises StoreError."""
    count = 0
    frames: dict[str, str] = {}

    def one_of_each() -> Iterator[str]:
        nonlocal count
        for id_ in index.ids():
            item = item_of(id_)
            if item == id_:
                count += 1
                yield id_
            else:
                frames[item] = min(id_, frames.get(item, id_), key=rank)
        count += len(frames)
        yield from frames.values()

    return Drawn(nsmallest(_DRAWN, one_of_each(), key=lambda id_: rank(item_of(id_))), count)


def calibrate(index: VectorIndex, ids: Sequence[str], stop: threading.Event) -> Calibration | None:
    """Search for the first 1,000 of these that have labels; see how often matches have theirs.

    Each image is left out of its own matches, and so are the frames of its video; of another video
    the best one counts. None where there are too few labels, or `stop` is
    set meanwhile. Raises StoreError.
    """
    records = _labelled(index, ids)
    if len(records) < _LEAST_QUERIES or len({record.label for record in records}) < 2:
        return None
    scores: list[float] = []
    same: list[bool] = []
    weights: list[float] = []
    with Progress("calibrating", len(records), "images") as progress:
        for start in range(0, len(records), _BATCH):
            if stop.is_set():
                return None
            batch = records[start : start + _BATCH]
            embeddings = np.stack([record.embedding for record in batch])
            found = nearest_items(
                lambda rows, top_k: _query_patiently(index, rows, top_k, stop),
                embeddings,
                [item_of(record.id) for record in batch],
                _MATCHES,
            )
            for record, matches in zip(batch, found, strict=True):
                for place, match in enumerate(matches, start=1):
                    if match.label is not None:
                        scores.append(match.score)
                        same.append(match.label == record.label)
                        weights.append(_weight(place))
            progress.update(len(batch))
    if not scores:
        return None
    metric = index.manifest.metric
    calibration = fit_calibration(
        np.array(scores), np.array(same), np.array(weights), rises=metric != "euclidean"
    )
    pairs = fit_pairs(
        np.stack([record.embedding for record in records]),
        [record.label for record in records],
        metric,
    )
    return calibration.model_copy(update={"pairs": pairs})


def _query_patiently(
    index: VectorIndex, embeddings: Embeddings, top_k: int, stop: threading.Event
) -> list[list[Match]]:
    """The matches of each; a store that is busy for a while does not end it all."""
    for _ in range(_TRIES - 1):
        try:
            return index.query_many(embeddings, top_k, thumbnails=False)
        except StoreError:
            stop.wait(_SECONDS_BETWEEN_TRIES)
    return index.query_many(embeddings, top_k, thumbnails=False)


def _labelled(index: VectorIndex, ids: Sequence[str]) -> list[Record]:
    records: list[Record] = []
    for start in range(0, len(ids), _QUERIES):
        found = index.fetch(ids[start : start + _QUERIES], thumbnails=False).values()
        records += [record for record in found if record.label is not None]
        if len(records) >= _QUERIES:
            break
    return records[:_QUERIES]


def _weight(rank: int) -> float:
    """Few look at all matches, and most at the first."""
    return 1 / rank


def fit_calibration(
    scores: Floats, same: NDArray[np.bool_], weights: Floats, *, rises: bool
) -> Calibration:
    """Isotonic regression of `same` on `scores`, all of them [n], as at most 32 points.

    "Transforming Classifier Scores into Accurate Multiclass Probability Estimates",
    https://doi.org/10.1145/775047.775151. Each point stands for pairs of about the same weight.
    """
    order = np.argsort(scores, kind="stable")
    shares = np.cumsum(weights[order]) / weights.sum()
    bins = np.minimum((shares * _KNOTS).astype(np.int64), _KNOTS - 1)
    total, mean_scores, mean_same = (
        np.bincount(bins, weights[order] * values, _KNOTS)
        for values in (np.ones(len(scores)), scores[order], same[order])
    )
    used = total > 0
    knots = mean_scores[used] / total[used]
    shares_same = mean_same[used] / total[used]
    fitted = _rising((shares_same if rises else -shares_same).tolist(), total[used].tolist())
    fitted = fitted if rises else -fitted
    return Calibration(scores=tuple(knots.tolist()), confidences=tuple(fitted.tolist()))


def _rising(values: Sequence[float], weights: Sequence[float]) -> Floats:
    """The nearest sequence to `values` [n], in weighted squares, in which none is below the last.

    Pool adjacent violators, https://doi.org/10.1007/BF01580873. SciPy has it, in 125 MB.
    """
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        mean, total, count = value, weight, 1
        while pools and pools[-1][0] >= mean:
            below, least, fewer = pools.pop()
            mean = (below * least + mean * total) / (least + total)
            total, count = least + total, fewer + count
        pools.append((mean, total, count))
    return np.repeat([mean for mean, _, _ in pools], [count for _, _, count in pools])


def fit_pairs(
    embeddings: Embeddings, labels: Sequence[str | None], metric: Metric
) -> PairScores | None:
    """Quantiles of the scores of all pairs among float32 [n, 512] with n labels.

    None where there are fewer than 100 pairs with one label, or with two.
    """
    first, second = np.triu_indices(len(labels), k=1)
    scores = pair_scores(embeddings, embeddings, metric)[first, second]
    _, kinds = np.unique(np.array(labels), return_inverse=True)
    same = kinds[first] == kinds[second]
    if min(same.sum(), (~same).sum()) < _LEAST_PAIRS:
        return None
    of_same, of_different = (
        tuple(np.quantile(scores[chosen], PAIR_LEVELS).round(_DIGITS).tolist())
        for chosen in (same, ~same)
    )
    return PairScores(same_kind=of_same, different_kinds=of_different)
