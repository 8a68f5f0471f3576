"""Answers as JSON, without the time that their validation would take; schemas.py declares them."""

import base64
from collections.abc import Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

import orjson
from fastapi import Response

from image_search.calibration import Calibration
from image_search.errors import ImageSearchError
from image_search.familiarity import is_familiar
from image_search.index import Listed, Match, Page, Record
from image_search.manifest import ModelSpec
from image_search.moments import time_of, video_of
from service import problems
from service.loaded_index import LoadedIndex
from service.pipeline import EmbeddedImage, SearchResult, Timing

# What an image that could not be searched with has found.
_NOTHING: Final[dict[str, Any]] = {
    "matches": [],
    "complete": True,
    "familiarity": None,
    "familiar": None,
}


def search(loaded: LoadedIndex, result: SearchResult, *, thumbnails: bool) -> Response:
    """A `SearchResponse`."""
    return _made_with(
        loaded,
        result.timing,
        _found(result, thumbnails=thumbnails),
    )


def batch(
    loaded: LoadedIndex,
    results: Sequence[tuple[str | None, SearchResult | ImageSearchError]],
    timing: Timing,
    *,
    thumbnails: bool,
) -> Response:
    """A `BatchResponse`, of file names and what each image found; `timing` of the slowest."""

    def one(filename: str | None, found: SearchResult | ImageSearchError) -> dict[str, Any]:
        if isinstance(found, SearchResult):
            answer = _found(found, thumbnails=thumbnails)
            return {"filename": filename, **answer, "problem": None}
        problem = problems.problem_of(found).model_dump()
        return {"filename": filename, **_NOTHING, "problem": problem}

    return _made_with(loaded, timing, {"results": [one(*result) for result in results]})


def embedding(loaded: LoadedIndex, embedded: EmbeddedImage) -> Response:
    """An `EmbeddingResponse`."""
    answer = {"embedding": embedded.embedding, **_familiar(embedded.familiarity)}
    return _made_with(loaded, embedded.timing, answer)


def comparison(loaded: LoadedIndex, score: float, timing: Timing) -> Response:
    """A `ComparisonResponse`."""
    pairs = loaded.calibration.pairs if loaded.calibration else None
    return _made_with(
        loaded,
        timing,
        {
            "score": score,
            "share_of_same_kind_above": pairs and pairs.share_of_same_kind_above(score),
            "share_of_different_kinds_above": pairs and pairs.share_of_different_kinds_above(score),
        },
    )


def image(record: Record, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """An `ImageResponse`."""
    return _json({**_listed(record), "thumbnail": _data_uri(record.thumbnail)}, status)


def page(page: Page, *, thumbnails: bool) -> Response:
    """A `PageResponse`."""
    images = [
        _listed(image) | ({"thumbnail": _data_uri(image.thumbnail)} if thumbnails else {})
        for image in page.images
    ]
    return _json({"images": images, "cursor": page.cursor or None})


def labels(counts: Mapping[str, int | None]) -> Response:
    """A `LabelsResponse`."""
    return _json({"labels": [{"label": label, "count": counts[label]} for label in counts]})


def _made_with(loaded: LoadedIndex, timing: Timing, answer: dict[str, Any]) -> Response:
    """An answer with the model that it was made with, and where the time went."""
    model = _model(loaded.index.manifest.model)
    return _json({**answer, "model": model, "took_ms": timing.milliseconds()})


@lru_cache(maxsize=2)
def _model(model: ModelSpec) -> dict[str, Any]:
    return model.model_dump()


def _found(result: SearchResult, *, thumbnails: bool) -> dict[str, Any]:
    calibration = result.calibration
    found = result.choice.found
    confidences = _confidences(calibration, [one.match for one in found])
    matches = [
        {
            "id": one.match.id,
            "label": one.match.label,
            "score": one.match.score,
            "confidence": confidence,
            "thumbnail": _data_uri(one.match.thumbnail) if thumbnails else None,
            "metadata": dict(one.match.metadata),
            "video": video_of(one.match.metadata),
            "time": time_of(one.match.metadata),
            "moments": _moments(one.moments, calibration),
        }
        for one, confidence in zip(found, confidences, strict=True)
    ]
    complete = result.choice.complete
    return {"matches": matches, "complete": complete, **_familiar(result.familiarity)}


def _moments(moments: Sequence[Match], calibration: Calibration | None) -> list[dict[str, Any]]:
    return [
        {
            "id": match.id,
            "time": time_of(match.metadata),
            "score": match.score,
            "confidence": confidence,
        }
        for match, confidence in zip(moments, _confidences(calibration, moments), strict=True)
    ]


def _confidences(
    calibration: Calibration | None, matches: Sequence[Match]
) -> Sequence[float | None]:
    if calibration is None or not matches:
        return [None] * len(matches)
    return calibration.confidences_of([match.score for match in matches])


def _familiar(p_value: float | None) -> dict[str, Any]:
    return {"familiarity": p_value, "familiar": is_familiar(p_value)}


def _listed(record: Record | Listed) -> dict[str, Any]:
    return {"id": record.id, "label": record.label, "metadata": dict(record.metadata)}


def _data_uri(jpeg: bytes) -> str | None:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else None


def _json(answer: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """NumPy arrays become lists."""
    content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, media_type="application/json")
