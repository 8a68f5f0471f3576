"""The search of a view: FAISS finds candidates, and their scores are computed exactly."""

import json
import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from image_search.filters import Filter
from image_search.index import Match, best_first
from image_search.stores.embedded.resident import Recent, View
from image_search.stores.embedded.scores import scores
from image_search.stores.embedded.search_library import faiss
from image_search.stores.embedded.snapshot import Mask, Positions, Snapshot, flat_index, normalised
from image_search.values import Embeddings, Metric

# Of 400 test images among the 50,000 of CIFAR-10, 0.996 of the ten nearest are found so; with 64
# probes 0.991, and with half as many candidates 0.985. By dot product, partitions tell less of
# their rows.
_PROBES: Final[dict[Metric, int]] = {"cosine": 96, "euclidean": 96, "dotproduct": 192}
# So many of the nearest by codes are compared exactly for each match, and so many at least.
_CANDIDATES_PER_MATCH: Final = 4
_MIN_CANDIDATES: Final = 200
# For more matches than that, all partitions are searched.
_MAX_TOP_K_OF_PROBES: Final = 100
# Where no more rows may be found, all of them are compared exactly.
_MOST_ROWS_COMPARED: Final = 2_000


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
    queries = normalised(embeddings, metric)
    mask, recent_mask = view.passing(filter_)
    recent = _among_recent(view.recent, queries, top_k, recent_mask)
    old: list[Positions] = [_NOWHERE] * len(embeddings)
    if view.snapshot is not None:
        old = _among_old(view.snapshot, metric, queries, top_k, mask)
    return [
        _matches(view, metric, embedding, top_k, *candidates, thumbnails=thumbnails)
        for embedding, *candidates in zip(embeddings, old, recent, strict=True)
    ]


_NOWHERE: Final[Positions] = np.zeros(0, np.intp)


def _among_recent(
    recent: Recent, queries: Embeddings, top_k: int, mask: Mask | None
) -> list[Positions]:
    chosen = np.arange(len(recent)) if mask is None else np.flatnonzero(mask)
    count = max(_MIN_CANDIDATES, _CANDIDATES_PER_MATCH * top_k)
    if len(chosen) <= count:
        return [chosen] * len(queries)
    parameters = None
    if mask is not None:
        parameters = faiss.SearchParameters(sel=_selector(mask))
    _, found = recent.flat.search(queries, count, params=parameters)
    return [row[row >= 0] for row in found]


def _among_old(
    snapshot: Snapshot, metric: Metric, queries: Embeddings, top_k: int, mask: Mask
) -> list[Positions]:
    rows = int(np.count_nonzero(mask))
    count = max(_MIN_CANDIDATES, _CANDIDATES_PER_MATCH * top_k)
    if rows <= count:
        return [np.flatnonzero(mask)] * len(queries)
    if rows <= _MOST_ROWS_COMPARED:
        chosen = np.flatnonzero(mask)
        flat = flat_index(np.asarray(snapshot.vectors[chosen]), metric)
        return list(chosen[flat.search(queries, count)[1]])
    selector = None if rows == len(snapshot) else _selector(mask)
    partitions = snapshot.codes.nlist
    probes = partitions
    if top_k <= _MAX_TOP_K_OF_PROBES:
        probes = min(partitions, math.ceil(_PROBES[metric] * len(snapshot) / rows))
    found = _probe(snapshot.codes, queries, count, probes, selector)
    # Too few where little is near the query that may be found.
    short = [number for number, row in enumerate(found) if len(row) < count]
    if short and probes < partitions:
        again = _probe(snapshot.codes, queries[short], count, partitions, selector)
        for number, row in zip(short, again, strict=True):
            found[number] = row
    return found


def _probe(
    codes: Any, queries: Embeddings, count: int, probes: int, selector: Any
) -> list[Positions]:
    parameters = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
    _, found = codes.search(queries, count, params=parameters)
    return [row[row >= 0] for row in found]


def _selector(mask: Mask) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def _matches(
    view: View,
    metric: Metric,
    embedding: Embeddings,
    top_k: int,
    old: Positions,
    recent: Positions,
    *,
    thumbnails: bool,
) -> list[Match]:
    matches: list[Match] = []
    for part, positions in ((view.snapshot, old), (view.recent, recent)):
        if part is None or len(positions) == 0:
            continue
        vectors = part.vectors[positions]
        computed = scores(metric, np.broadcast_to(embedding, vectors.shape), vectors)
        chosen = _best(computed if metric == "euclidean" else -computed, top_k)
        for position, score in zip(
            positions[chosen].tolist(), computed[chosen].tolist(), strict=True
        ):
            id_, label, metadata, thumbnail = part.rows[position]
            matches.append(
                Match(id_, score, label, json.loads(metadata), thumbnail if thumbnails else b"")
            )
    return best_first(matches, metric)[:top_k]


def _best(costs: NDArray[np.float32], count: int) -> Positions:
    """Where the least costs are: `count` of them, and those that are equal to the last."""
    if len(costs) <= count:
        return np.arange(len(costs))
    return np.flatnonzero(costs <= np.partition(costs, count - 1)[count - 1])
