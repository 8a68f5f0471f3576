"""The search of a view: FAISS finds candidates, and their scores are computed exactly."""

import json
import math
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from image_search.filters import Filter
from image_search.index import Match, best_first
from image_search.stores.embedded.resident import Recent, View
from image_search.stores.embedded.scores import scores_at
from image_search.stores.embedded.search_library import faiss
from image_search.stores.embedded.snapshot import Mask, Positions, Snapshot, flat_index, normalised
from image_search.values import Embeddings, Metadata, Metric

# Of partitions, so many times the root of their number are searched. With the number of candidates,
# it was chosen by python -m benchmarks.candidates, so that 0.99 of the ten nearest are found among
# CIFAR-10's 50,000 images, as embedded by default. By dot product, partitions tell less of their
# rows.
_PROBES_PER_ROOT: Final[dict[Metric, float]] = {"cosine": 5.0, "euclidean": 5.0, "dotproduct": 7.0}
# So many of the nearest by codes are compared exactly for each match, and so many at least.
_CANDIDATES_PER_MATCH: Final = 8
_MIN_CANDIDATES: Final = 150
# For more matches than that, all partitions are searched.
_MAX_TOP_K_OF_PROBES: Final = 100
# Where no more rows may be found, all of them are compared, and codes are not looked at. For few
# queries that is done where the rows are, and for many in a copy of them.
_MOST_ROWS_COMPARED: Final = 2_000
_MOST_ROWS_COMPARED_IN_PLACE: Final = 4_000


def nearest(
    view: View,
    metric: Metric,
    embeddings: Embeddings,
    top_k: int,
    filter_: Filter | None,
    *,
    thumbnails: bool,
) -> list[list[Match]]:
    """The `top_k` best matches of each row of float32 [n, 512] that pass the filter, best first."""
    # One thread a search, as several may be asked for at once.
    faiss.omp_set_num_threads(1)
    embeddings = np.ascontiguousarray(embeddings)
    queries = normalised(embeddings, metric)
    mask, recent_mask = view.passing(filter_)
    matches: list[list[Match]] = [[] for _ in embeddings]
    if view.snapshot is not None:
        old = _among_old(view.snapshot, metric, queries, top_k, mask)
        _add_best(matches, view.snapshot, metric, embeddings, old, top_k, thumbnails=thumbnails)
    recent = _among_recent(view.recent, queries, top_k, recent_mask)
    _add_best(matches, view.recent, metric, embeddings, recent, top_k, thumbnails=thumbnails)
    return [best_first(found, metric)[:top_k] for found in matches]


# Of each query, a row of positions; -1 are none.
_Candidates = NDArray[np.int64]


def _for_each(chosen: Positions, queries: Embeddings) -> _Candidates:
    return np.tile(chosen.astype(np.int64), (len(queries), 1))


def _among_recent(
    recent: Recent, queries: Embeddings, top_k: int, mask: Mask | None
) -> _Candidates:
    chosen = np.arange(len(recent)) if mask is None else np.flatnonzero(mask)
    count = max(_MIN_CANDIDATES, _CANDIDATES_PER_MATCH * top_k)
    if len(chosen) <= count:
        return _for_each(chosen, queries)
    parameters = None
    if mask is not None:
        parameters = faiss.SearchParameters(sel=_selector(mask))
    _, found = recent.flat.search(queries, count, params=parameters)
    return np.asarray(found)


def _among_old(
    snapshot: Snapshot, metric: Metric, queries: Embeddings, top_k: int, mask: Mask
) -> _Candidates:
    rows = int(np.count_nonzero(mask))
    count = max(_MIN_CANDIDATES, _CANDIDATES_PER_MATCH * top_k)
    if rows <= count or rows * len(queries) <= _MOST_ROWS_COMPARED_IN_PLACE:
        return _for_each(np.flatnonzero(mask), queries)
    if rows <= _MOST_ROWS_COMPARED:
        chosen = np.flatnonzero(mask)
        flat = flat_index(np.asarray(snapshot.vectors[chosen]), metric)
        return np.asarray(chosen[flat.search(queries, count)[1]])
    selector = None if rows == len(snapshot) else _selector(mask)
    partitions = snapshot.codes.nlist
    probes = partitions
    if top_k <= _MAX_TOP_K_OF_PROBES:
        # More where few of their rows pass the filter. With a filter for a label of ten, 0.99 are
        # found so, and 0.998 with one for a tenth at random; the root would take twice as long.
        probes = round(_PROBES_PER_ROOT[metric] * math.sqrt(partitions))
        probes = min(partitions, math.ceil(probes * math.cbrt(len(snapshot) / rows)))
    found = _probe(snapshot.codes, queries, count, probes, selector)
    # Too few where little is near the query that may be found.
    short = np.flatnonzero(found[:, -1] < 0)
    if len(short) and probes < partitions:
        found[short] = _probe(snapshot.codes, queries[short], count, partitions, selector)
    return found


def _probe(codes: Any, queries: Embeddings, count: int, probes: int, selector: Any) -> _Candidates:
    parameters = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
    return np.asarray(codes.search(queries, count, params=parameters)[1])


def _selector(mask: Mask) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def _add_best(
    matches: list[list[Match]],
    part: Snapshot | Recent,
    metric: Metric,
    embeddings: Embeddings,
    candidates: _Candidates,
    top_k: int,
    *,
    thumbnails: bool,
) -> None:
    """Add the best `top_k` of each query's candidates, and those that are equal to the last."""
    if candidates.shape[1] == 0:
        return
    scores = scores_at(metric, embeddings, part.vectors, part.lengths, candidates)
    costs = scores if metric == "euclidean" else -scores
    bounds = np.full((len(costs), 1), np.inf, np.float32)
    if candidates.shape[1] > top_k:
        bounds = np.partition(costs, top_k - 1, axis=1)[:, top_k - 1 : top_k]
    queries, places = np.nonzero((costs <= bounds) & (candidates >= 0))
    for query, position, score in zip(
        queries.tolist(),
        candidates[queries, places].tolist(),
        scores[queries, places].tolist(),
        strict=True,
    ):
        id_, label, metadata, thumbnail = part.rows.read(position, thumbnails=thumbnails)
        matches[query].append(Match(id_, score, label, _parsed(metadata), thumbnail))


def _parsed(metadata: memoryview) -> Metadata:
    fields: Metadata
    try:
        fields = orjson.loads(metadata)
    except orjson.JSONDecodeError:  # half of a surrogate pair, as in a name that is not UTF-8
        fields = json.loads(bytes(metadata))
    return fields
