"""Which matches are asked for, and how they are chosen from those of the store."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from image_search.calibration import Calibration
from image_search.duplicates import distinct
from image_search.errors import FilterError
from image_search.filters import Condition, Filter, Group, parse_filter
from image_search.index import Match
from image_search.values import LABEL_FIELD, Embeddings
from service.loaded_index import LoadedIndex

# Of what the store is asked for at first, duplicates may be so many times the matches wanted.
_SPARE: Final = 2
_MORE: Final = 4
_MOST: Final = 1000


def wanted(labels: Sequence[str], source: Any) -> Filter | None:
    """The filter of a request: one of the labels, if there are any, and what `source` says.

    Raises FilterError.
    """
    filters: list[Filter] = []
    if labels:
        filters.append(Condition(LABEL_FIELD, "$in", tuple(labels)))
    if source is not None and (parsed := parse_filter(source)):
        filters.append(parsed)
    if not filters:
        return None
    return filters[0] if len(filters) == 1 else Group("$and", tuple(filters))


def filter_source(text: str | None) -> Any:
    """The filter of a query string, which is JSON; None for none. Raises FilterError."""
    if text is None:
        return None
    try:
        source = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise FilterError(f"the filter is not JSON: {exc}") from exc
    if source is None:
        raise FilterError("the filter is null: leave it out, or send an object")
    return source


@dataclass(frozen=True)
class Selection:
    """Which matches are asked for, and whether with thumbnails. `without` are left out by id."""

    top_k: int
    filter: Filter | None = None
    min_score: float | None = None
    min_confidence: float | None = None
    deduplicate: bool = False
    thumbnails: bool = True
    without: frozenset[str] = frozenset()

    @property
    def candidates(self) -> int:
        """How many matches to ask the store for at first."""
        wanted = self.top_k * _SPARE if self.deduplicate else self.top_k
        return wanted + len(self.without)

    def choose(
        self,
        loaded: LoadedIndex,
        calibration: Calibration | None,
        embedding: Embeddings,
        matches: list[Match],
    ) -> list[Match]:
        """Those of the `candidates` best matches of float32 [512] that are asked for, best first.

        `calibration` is what makes their confidences. Asks the store for more while duplicates fill
        them. Raises StoreError.
        """
        asked = self.candidates
        while True:
            chosen = [
                match
                for match in matches
                if match.id not in self.without and self._similar(loaded, calibration, match)
            ]
            if not self.deduplicate:
                break
            chosen = _distinct(loaded, embedding, chosen)
            # Where the last one is not similar enough, those after it are not, either.
            exhausted = len(matches) < asked or not self._similar(loaded, calibration, matches[-1])
            if len(chosen) >= self.top_k or exhausted or asked >= _MOST:
                break
            asked = min(_MORE * asked, _MOST)
            matches = loaded.index.query(embedding, asked, self.filter, thumbnails=self.thumbnails)
        return chosen[: self.top_k]

    def _similar(self, loaded: LoadedIndex, calibration: Calibration | None, match: Match) -> bool:
        """Whether the match is similar enough."""
        worst, least = self.min_score, self.min_confidence
        metric = loaded.index.manifest.metric
        if worst is None:
            worst = math.inf if metric == "euclidean" else -math.inf
        if match.score > worst if metric == "euclidean" else match.score < worst:
            return False
        return least is None or (
            calibration is not None and calibration.confidence(match.score) >= least
        )


def _distinct(loaded: LoadedIndex, query: Embeddings, matches: list[Match]) -> list[Match]:
    if not matches:
        return []
    records = loaded.index.fetch([match.id for match in matches], thumbnails=False)
    matches = [match for match in matches if match.id in records]
    embeddings = np.stack([query, *(records[match.id].embedding for match in matches)])
    kept = distinct(embeddings, loaded.index.manifest.model.recipe)
    # The query is the first, and always kept.
    return [match for match, keep in zip(matches, kept[1:], strict=True) if keep]
