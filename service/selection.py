"""From the matches of the store to those that were asked for."""

import asyncio
import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from image_search.duplicates import distinct
from image_search.filters import Filter
from image_search.index import Match
from image_search.values import Embeddings
from service.pipeline import Engine, Pipeline, SearchResult

# Of what the store is asked for at first, duplicates may be so many times the matches wanted.
_SPARE: Final = 2
_MORE: Final = 4
_MOST: Final = 1000


@dataclass(frozen=True)
class Selection:
    """Which matches are asked for. `without` are ids that are left out."""

    top_k: int
    filter: Filter | None = None
    min_score: float | None = None
    min_confidence: float | None = None
    deduplicate: bool = False
    without: frozenset[str] = frozenset()

    @property
    def first_top_k(self) -> int:
        """How many matches to ask the store for at first."""
        wanted = self.top_k * _SPARE if self.deduplicate else self.top_k
        return wanted + len(self.without)


async def select(
    pipeline: Pipeline, engine: Engine, result: SearchResult, selection: Selection
) -> SearchResult:
    """Choose from a result for `first_top_k`; asks the store for more while duplicates fill it."""
    asked = selection.first_top_k
    bounds = replace(selection, without=frozenset())
    while True:
        chosen = _chosen(result.matches, selection, engine)
        if selection.deduplicate:
            chosen = await _distinct(engine, result.embedding, chosen)
        # Where the last one is not similar enough, those after it are not, either.
        last = result.matches[-1:]
        exhausted = len(result.matches) < asked or not _chosen(last, bounds, engine)
        full = len(chosen) >= selection.top_k
        if full or exhausted or not selection.deduplicate or asked >= _MOST:
            return replace(result, matches=chosen[: selection.top_k])
        asked = min(_MORE * asked, _MOST)
        result = await pipeline.query(
            engine, result.embedding, asked, selection.filter, result.timing
        )


def _chosen(matches: list[Match], selection: Selection, engine: Engine) -> list[Match]:
    metric, calibration = engine.index.manifest.metric, engine.calibration
    worst, least = selection.min_score, selection.min_confidence
    if worst is None:
        worst = math.inf if metric == "euclidean" else -math.inf
    return [
        match
        for match in matches
        if match.id not in selection.without
        and (match.score <= worst if metric == "euclidean" else match.score >= worst)
        and (
            least is None
            or (calibration is not None and calibration.confidence(match.score) >= least)
        )
    ]


async def _distinct(engine: Engine, query: Embeddings, matches: list[Match]) -> list[Match]:
    if not matches:
        return []
    records = await asyncio.to_thread(engine.index.fetch, [match.id for match in matches])
    matches = [match for match in matches if match.id in records]
    embeddings = np.stack([query, *(records[match.id].embedding for match in matches)])
    kept = distinct(embeddings, engine.index.manifest.model.recipe)
    # The query is the first, and always kept.
    return [match for match, keep in zip(matches, kept[1:], strict=True) if keep]
