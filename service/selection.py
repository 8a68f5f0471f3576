"""Which matches are asked for, and how they are chosen from those of the store."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final, Literal

import numpy as np
import orjson

from image_search.calibration import Calibration
from image_search.duplicates import distinct
from image_search.errors import FilterError
from image_search.filters import Condition, Filter, Group, parse_filter
from image_search.index import Match, VectorIndex, best_first
from image_search.moments import VIDEO_FIELD, video_of
from image_search.values import LABEL_FIELD, Embeddings
from service.loaded_index import LoadedIndex

GroupBy = Literal["none", "video"]

# What the store is asked for at first, in matches wanted: some are duplicates, and videos have
# several frames that are similar. What it costs: python -m benchmarks.moments
_SPARE: Final = 2
_FRAMES_PER_VIDEO: Final = 3
_MOST_SPARE_FRAMES: Final = 100
_MORE: Final = 4
# Pinecone gives so many with their metadata at once.
_MOST: Final = 1000
# Each round leaves out the videos that were found before it.
MOST_ROUNDS: Final = 8
MOST_MOMENTS: Final = 10


def wanted(labels: Sequence[str], source: Any) -> Filter | None:
    """The filter of a request: one of the labels, if there are any, and what `source` says.

    Raises FilterError.
    """
    filters: list[Filter] = []
    if labels:
        filters.append(Condition(LABEL_FIELD, "$in", tuple(labels)))
    if source is not None and (parsed := parse_filter(source)):
        filters.append(parsed)
    return _joined(filters)


def _joined(filters: Sequence[Filter]) -> Filter | None:
    """What passes all of them; None of none."""
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
class Found:
    """A match; of a video, the best frame, and the next best ones as `moments`, best first."""

    match: Match
    moments: Sequence[Match] = ()


@dataclass(frozen=True)
class Choice:
    """What was chosen, best first; not `complete` where the store may have more of it."""

    found: list[Found]
    complete: bool


@dataclass(frozen=True)
class Selection:
    """Which matches are asked for, and whether with thumbnails. `without` are left out by id.

    By video, `top_k` counts videos, and images that are of none.
    """

    top_k: int
    filter: Filter | None = None
    min_score: float | None = None
    min_confidence: float | None = None
    deduplicate: bool = False
    thumbnails: bool = True
    without: frozenset[str] = frozenset()
    group_by: GroupBy = "none"

    def without_videos(self, videos: Collection[str]) -> "Selection":
        """The same, without the frames of these videos."""
        filters = [] if self.filter is None else [self.filter]
        if videos:
            filters.append(Condition(VIDEO_FIELD, "$nin", tuple(sorted(videos))))
        return replace(self, filter=_joined(filters))

    @property
    def candidates(self) -> int:
        """How many matches to ask the store for at first."""
        wanted = self.top_k
        if self.group_by == "video":
            wanted = min(_FRAMES_PER_VIDEO * wanted, wanted + _MOST_SPARE_FRAMES)
        elif self.deduplicate:
            wanted *= _SPARE
        return wanted + len(self.without)

    @property
    def is_simple(self) -> bool:
        """Whether the store is asked once, and for the nearest of all."""
        return self.filter is None and self._needs_no_more

    def with_thumbnails(self, index: VectorIndex) -> bool:
        """Whether to ask for candidates with thumbnails; else `choose` reads those it needs."""
        return self.thumbnails and (self.group_by == "none" or not index.thumbnails_are_apart)

    def choose(
        self,
        loaded: LoadedIndex,
        calibration: Calibration | None,
        embedding: Embeddings,
        matches: list[Match],
    ) -> Choice:
        """Those of the `candidates` best matches of float32 [512] that are asked for, best first.

        `calibration` is what makes their confidences. Asks the store for more while duplicates, or
        frames of few videos, fill them. Raises StoreError.
        """
        index, asked, seen = loaded.index, self.candidates, matches
        thumbnails = self.with_thumbnails(index)
        for round_ in count(1):
            found = self._found(loaded, calibration, embedding, seen)
            # Where the last one is not similar enough, those after it are not, either.
            exhausted = len(matches) < asked or not self._similar(loaded, calibration, matches[-1])
            complete = len(found) >= self.top_k or exhausted or self._needs_no_more
            if complete or round_ == MOST_ROUNDS or (self.group_by == "none" and asked >= _MOST):
                break
            asked = min(_MORE * asked, _MOST)
            matches = index.query(embedding, asked, self._rest(found), thumbnails=thumbnails)
            every = {match.id: match for match in (*seen, *matches)}
            seen = best_first(list(every.values()), index.manifest.metric)
        found = found[: self.top_k]
        if self.thumbnails and not thumbnails:
            found = _with_thumbnails(index, found)
        return Choice(found, complete)

    @property
    def _needs_no_more(self) -> bool:
        """Whether each candidate is a match."""
        return self.group_by == "none" and not self.deduplicate

    def _found(
        self,
        loaded: LoadedIndex,
        calibration: Calibration | None,
        embedding: Embeddings,
        matches: list[Match],
    ) -> list[Found]:
        chosen = [
            match
            for match in matches
            if match.id not in self.without and self._similar(loaded, calibration, match)
        ]
        if self.deduplicate:
            chosen = _distinct(loaded, embedding, chosen)
        if self.group_by == "none":
            return [Found(match) for match in chosen]
        groups: dict[tuple[bool, str], list[Match]] = {}
        for match in chosen:
            video = video_of(match.metadata)
            # An image may be called like a video.
            groups.setdefault((video is None, video or match.id), []).append(match)
        return [Found(best, rest[:MOST_MOMENTS]) for best, *rest in groups.values()]

    def _rest(self, found: list[Found]) -> Filter | None:
        """The filter, without the videos that were found where videos are asked for."""
        if self.group_by == "none":
            return self.filter
        videos = {video_of(one.match.metadata) for one in found}
        return self.without_videos({video for video in videos if video is not None}).filter

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


def _with_thumbnails(index: VectorIndex, found: list[Found]) -> list[Found]:
    thumbnails = index.thumbnails([one.match.id for one in found])
    return [
        replace(one, match=replace(one.match, thumbnail=thumbnails.get(one.match.id, b"")))
        for one in found
    ]


def _distinct(loaded: LoadedIndex, query: Embeddings, matches: list[Match]) -> list[Match]:
    if not matches:
        return []
    records = loaded.index.fetch([match.id for match in matches], thumbnails=False)
    matches = [match for match in matches if match.id in records]
    embeddings = np.stack([query, *(records[match.id].embedding for match in matches)])
    kept = distinct(embeddings, loaded.index.manifest.model.recipe)
    # The query is the first, and always kept.
    return [match for match, keep in zip(matches, kept[1:], strict=True) if keep]
