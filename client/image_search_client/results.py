"""What calls return. Fields that a newer service adds are left out."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, overload

import msgspec

from image_search_client.errors import ImageSearchError, UnexpectedAnswerError
from image_search_client.names import clock, readable

if TYPE_CHECKING:
    import pandas as pd

MetadataValue: TypeAlias = str | int | float | bool | list[str]

_DATA_URI: Final = re.compile(r"data:image/[a-z0-9.+-]+;base64,")
_PICTURE_SIDE: Final = 96
UNFAMILIAR: Final = "Nothing like this is in the index. The nearest images:"


class Thumbnail(bytes):
    """A small JPEG; in Jupyter it shows itself."""

    __slots__ = ()

    @property
    def data_uri(self) -> str:
        """For an `src` in HTML."""
        return f"data:image/jpeg;base64,{base64.b64encode(self).decode()}"

    def _repr_jpeg_(self) -> bytes:
        return bytes(self)


@dataclass(frozen=True, slots=True)
class Moment:
    """One more moment of a video: `time` is in seconds from its start, the rest as of a match."""

    id: str
    score: float
    time: float | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """One image of the index that is similar to the query.

    `score` is cosine similarity or dot product, where more is more similar, or the squared
    euclidean distance, where less is. `confidence` (0 to 1) estimates how probably the match shows
    the same kind of thing as the query; None where the index has no labels to know it from.
    A frame of a video has the id of the `video` and its `time` in seconds from the start. Where
    matches are grouped by video, `moments` are the next best frames of it, best first.
    """

    id: str
    label: str | None
    score: float
    confidence: float | None = None
    thumbnail: Thumbnail | None = field(default=None, repr=False)
    metadata: dict[str, MetadataValue] = field(default_factory=dict)
    video: str | None = None
    time: float | None = None
    moments: tuple[Moment, ...] = ()

    @property
    def times(self) -> tuple[float, ...]:
        """The times of it and of its moments, best first; empty for images of no video."""
        times = [self.time, *(moment.time for moment in self.moments)]
        return tuple(time for time in times if time is not None)

    def to_dict(self) -> dict[str, Any]:
        """As in the service's JSON; the thumbnail is a data URI."""
        return {
            "id": self.id,
            "label": self.label,
            "score": self.score,
            "confidence": self.confidence,
            "thumbnail": self.thumbnail.data_uri if self.thumbnail is not None else None,
            "metadata": self.metadata,
            "video": self.video,
            "time": self.time,
            "moments": [asdict(moment) for moment in self.moments],
        }


@dataclass(frozen=True, slots=True)
class Model:
    """What computed the embeddings; those of two models cannot be compared."""

    architecture: str
    weights: str
    fingerprint: str
    input_size: int
    preprocessing: int
    precision: str
    dimension: int
    recipe: str = "none"
    recipe_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class TookMs:
    """Milliseconds that the service spent, from the last byte of the request on."""

    decode: float
    queue: float
    embed: float
    search: float
    total: float


@dataclass(frozen=True, slots=True)
class SearchResult(Sequence[Match]):
    """The matches of one query, best first; a sequence of them. In Jupyter a strip of pictures.

    `familiarity` (0 to 1) is the share of the index's images that are as unlike the others as the
    query is; `familiar` is False where nothing like the query is in the index. Both are None where
    that cannot be told. `complete` is False where the service gave up with fewer matches than were
    asked for, though there may be more.
    """

    matches: tuple[Match, ...]
    model: Model
    took_ms: TookMs
    familiarity: float | None = None
    familiar: bool | None = None
    complete: bool = True

    def __len__(self) -> int:
        return len(self.matches)

    @overload
    def __getitem__(self, index: int) -> Match: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Match, ...]: ...
    def __getitem__(self, index: int | slice) -> Match | tuple[Match, ...]:
        return self.matches[index]

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dict for each match, ready for JSON."""
        return [match.to_dict() for match in self.matches]

    def to_dataframe(self) -> "pd.DataFrame":
        """A row for each match: id, label, score, confidence, and a column `metadata.…` for each
        field of the metadata. Raises ImportError without pandas.
        """
        return _dataframe(_row(match) for match in self.matches)

    def _repr_html_(self) -> str:
        warning = f"<p>{UNFAMILIAR}</p>" if self.familiar is False else ""
        return warning + _strip(self.matches)


@dataclass(frozen=True, slots=True, eq=False)
class SearchResults(Sequence[SearchResult]):
    """The results of several images, in their order; a sequence of them.

    An image that could not be searched with raises its error where its result is asked for, by
    index or in a loop; `outcomes` holds results and errors side by side.
    """

    outcomes: tuple[SearchResult | ImageSearchError, ...]

    def __len__(self) -> int:
        return len(self.outcomes)

    @overload
    def __getitem__(self, index: int) -> SearchResult: ...
    @overload
    def __getitem__(self, index: slice) -> "SearchResults": ...
    def __getitem__(self, index: int | slice) -> "SearchResult | SearchResults":
        if isinstance(index, slice):
            return SearchResults(self.outcomes[index])
        outcome = self.outcomes[index]
        if isinstance(outcome, SearchResult):
            return outcome
        raise outcome.with_traceback(None)

    @property
    def errors(self) -> dict[int, ImageSearchError]:
        """The error of each image that could not be searched with, by its position."""
        return {
            position: outcome
            for position, outcome in enumerate(self.outcomes)
            if not isinstance(outcome, SearchResult)
        }

    def to_dataframe(self) -> "pd.DataFrame":
        """The rows of all results; the column `query` has the image's position.

        Raises the first error, if there is one, and ImportError without pandas.
        """
        return _dataframe(
            {"query": position, **_row(match)}
            for position, result in enumerate(self)
            for match in result
        )

    def _repr_html_(self) -> str:
        return "".join(
            outcome._repr_html_()
            if isinstance(outcome, SearchResult)
            else f"<p>{escape(str(outcome))}</p>"
            for outcome in self.outcomes
        )


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The embedding of an image: 512 numbers. `familiarity` and `familiar` as in SearchResult."""

    embedding: list[float]
    model: Model
    took_ms: TookMs
    familiarity: float | None = None
    familiar: bool | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How similar two images are, and what that means in this index.

    `score` is that of a match. The shares, 0 to 1, are those of the index's pairs of images with
    one label, and with two, whose score is higher; None where the index has too few labels.
    """

    score: float
    share_of_same_kind_above: float | None
    share_of_different_kinds_above: float | None
    model: Model
    took_ms: TookMs


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """An image of the index; in a listing without its thumbnail."""

    id: str
    label: str | None
    metadata: dict[str, MetadataValue] = field(default_factory=dict)
    thumbnail: Thumbnail | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class FolderResult:
    """What became of the images of a folder: how many were sent, and how many the index had.

    `left_out` counts files that are not images. `errors` has those that failed, by their path.
    """

    sent: int
    unchanged: int
    left_out: int
    errors: dict[str, ImageSearchError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image of a group of near-duplicates; of a video, its frame that is most like another.

    `score` is the cosine similarity to the nearest image of the group.
    """

    id: str
    label: str | None
    score: float


@dataclass(frozen=True, slots=True)
class Health:
    """What answers searches; `count` is the number of images in the index.

    `near_duplicate_cosine` is the cosine from which on two images are taken for one picture.
    """

    status: str
    store: str
    index: str
    namespace: str
    count: int
    metric: str
    model: Model
    created_at: datetime
    created_by: str
    version: str
    near_duplicate_cosine: float | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """RFC 9457 problem details."""

    status: int
    code: str
    detail: str

    def error(self) -> ImageSearchError:
        """The error to raise."""
        return ImageSearchError.of(self.detail, self.code, self.status)


@dataclass(frozen=True, slots=True)
class BatchItem:
    """What a batch search found for one image, or why not."""

    matches: tuple[Match, ...] = ()
    familiarity: float | None = None
    familiar: bool | None = None
    problem: Problem | None = None
    complete: bool = True


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """What a batch search answers."""

    results: tuple[BatchItem, ...]
    model: Model
    took_ms: TookMs

    def results_or_errors(self) -> SearchResults:
        """A result or an error for each image."""
        return SearchResults(
            tuple(
                item.problem.error()
                if item.problem
                else SearchResult(
                    item.matches,
                    self.model,
                    self.took_ms,
                    item.familiarity,
                    item.familiar,
                    item.complete,
                )
                for item in self.results
            )
        )


@dataclass(frozen=True, slots=True)
class ImagePage:
    """A page of a listing, and the cursor of the next one."""

    images: tuple[IndexedImage, ...]
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class LabelCount:
    """How many images have a label; None where the store cannot count."""

    label: str
    count: int | None = None


@dataclass(frozen=True, slots=True)
class LabelsAnswer:
    """What the listing of labels answers."""

    labels: tuple[LabelCount, ...]


Answer = TypeVar("Answer")


def decode(content: bytes, kind: type[Answer]) -> Answer:
    """The answer in JSON as an object. Raises UnexpectedAnswerError when it is none."""
    try:
        return msgspec.json.decode(content, type=kind, dec_hook=_decode_thumbnail)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise UnexpectedAnswerError(
            f"the answer did not come from the image search service: {exc}", "unexpected_answer"
        ) from exc


def _decode_thumbnail(_kind: type, value: object) -> Thumbnail:
    head = _DATA_URI.match(value) if isinstance(value, str) else None
    if head is None:
        raise ValueError("a thumbnail is an image as a data URI")
    try:
        return Thumbnail(base64.b64decode(str(value)[head.end() :], validate=True))
    except binascii.Error:
        raise ValueError("a thumbnail is base64") from None


def _row(match: Match) -> dict[str, Any]:
    metadata = {f"metadata.{name}": value for name, value in match.metadata.items()}
    known = {name: getattr(match, name) for name in ("id", "label", "score", "confidence")}
    return {**known, **metadata}


def _dataframe(rows: Iterator[Mapping[str, Any]]) -> "pd.DataFrame":
    try:
        import pandas as pd
    except ImportError as exc:
        raise ImportError(
            "to_dataframe needs pandas: pip install 'image-search-client[dataframe]'"
        ) from exc
    return pd.DataFrame(list(rows))


def _strip(matches: Sequence[Match]) -> str:
    if not matches:
        return "<p>no matches</p>"
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:8px;font-size:12px;line-height:1.4">'
        + "".join(_figure(match) for match in matches)
        + "</div>"
    )


def _figure(match: Match) -> str:
    side = f"width:{_PICTURE_SIDE}px;height:{_PICTURE_SIDE}px"
    # Encoded anew: whatever came, this is base64 and nothing else.
    picture = (
        f'<img src="{match.thumbnail.data_uri}" alt="" style="{side};object-fit:contain;margin:0">'
        if match.thumbnail
        else f'<div style="{side};background:#8884"></div>'
    )
    score = f"{match.score:.3f}"
    if match.confidence is not None:
        score += f" · {match.confidence:.0%}"
    label = escape(match.label) if match.label is not None else "-"
    name = escape(readable(match.id))
    times = ", ".join(map(clock, match.times))
    shown = f"<br>{times}" if times else ""
    return (
        f'<figure style="margin:0;width:{_PICTURE_SIDE}px" title="{name}">{picture}'
        '<figcaption style="overflow-wrap:anywhere">'
        f"<strong>{label}</strong><br>{score}{shown}</figcaption></figure>"
    )
