"""Searching: with uploads, and with whatever else is at hand."""

import asyncio
import io
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, BinaryIO, Final, NamedTuple, TypeVar, cast

import numpy as np
import orjson
from fastapi import APIRouter, Body, File, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from image_search.combination import combine
from image_search.errors import ImageError, RecordError
from image_search.index import Record, VectorIndex, check_embedding
from image_search.moments import frame_prefix, in_time, spread, video_of
from image_search.similarity import pair_scores
from image_search.values import Embeddings
from service import answers, problems, schemas
from service.admission import AdmittedRoute, RemembersParameters
from service.bodies import IMAGE_FIELD, IMAGES_FIELD, MAX_IMAGES, PAIR_FIELDS, is_form
from service.clips import is_clip
from service.fetching import fetch_image
from service.loaded_index import LoadedIndex
from service.pipeline import Pipeline, SearchResult, Timing
from service.problems import ProblemError, image_not_found
from service.schemas import Example, SearchParameters
from service.selection import GroupBy, Selection, filter_source, wanted

router = APIRouter(route_class=AdmittedRoute, tags=["search"])

_UPLOAD: Final = (
    "bad_request",
    "upload_too_large",
    "unsupported_media_type",
    "invalid_parameters",
)
_IMAGE_OR_VIDEO: Final = "Any image that Pillow reads, or a video."
T = TypeVar("T")

# A video takes so many places more than an image, and as many more as two, where only two are read
# at once.
_VIDEO_PLACES: Final = 16
_MOST_VIDEO_PLACES: Final = 2 * _VIDEO_PLACES
_IMAGE: Final = ("too_many_pixels", "not_an_image", "image_too_costly", "no_video_support")


@router.post(
    "/search",
    operation_id="search",
    summary="Find the images most similar to an uploaded one",
    response_model=schemas.SearchResponse,
    responses=problems.responses(*_UPLOAD, *_IMAGE, "invalid_filter"),
)
@partial(RemembersParameters, file=IMAGE_FIELD)
async def search(
    request: Request,
    image: Annotated[UploadFile, File(description=_IMAGE_OR_VIDEO)],
    parameters: Annotated[SearchParameters, Query()],
) -> Response:
    """The `top_k` images of the index whose VGG16 embeddings are most similar, best first.

    Of a video, at most 32 frames are searched with: the best match is the most similar on average.
    """
    selection = _selection(parameters, filter_source(parameters.filter))
    pipeline, loaded = _parts(request)
    with _places(request, [image.file]):
        result = await pipeline.search(loaded, image.file, selection)
    return answers.search(loaded, result, thumbnails=parameters.thumbnails)


@router.post(
    "/search/batch",
    operation_id="search_batch",
    summary="Find the images most similar to each of several uploaded ones",
    response_model=schemas.BatchResponse,
    responses=problems.responses(*_UPLOAD, "invalid_filter"),
)
@partial(RemembersParameters, file=IMAGES_FIELD, several=True)
async def search_batch(
    request: Request,
    images: Annotated[
        list[UploadFile],
        File(min_length=1, max_length=MAX_IMAGES, description=f"At most {MAX_IMAGES} images."),
    ],
    parameters: Annotated[SearchParameters, Query()],
) -> Response:
    """One result for each image, in their order; one that is bad does not fail the others."""
    selection = _selection(parameters, filter_source(parameters.filter))
    pipeline, loaded = _parts(request)

    async def one(image: UploadFile) -> SearchResult | ImageError | RecordError:
        try:
            return await pipeline.search(loaded, image.file, selection)
        except (ImageError, RecordError) as exc:
            return exc

    with _places(request, [image.file for image in images]):
        found = await _together([one(image) for image in images])
    timings = [result.timing for result in found if isinstance(result, SearchResult)]
    names = [image.filename for image in images]
    return answers.batch(
        loaded,
        list(zip(names, found, strict=True)),
        max(timings, key=lambda timing: timing.seconds["total"], default=Timing()),
        thumbnails=parameters.thumbnails,
    )


@router.post(
    "/query",
    operation_id="query",
    summary="Find images by an id, an embedding, base64, or by examples",
    response_model=schemas.SearchResponse,
    responses=problems.responses(
        *_UPLOAD,
        *_IMAGE,
        "invalid_filter",
        "image_not_found",
        "urls_disabled",
        "url_not_fetched",
    ),
)
async def query(
    request: Request,
    body: Annotated[schemas.Query, Body(openapi_examples=schemas.QUERY_EXAMPLES)],
) -> Response:
    """The images most similar to the query and the positive examples, and not to the negative.

    Of the embeddings at unit length, half the mean of the negative ones is taken from the mean of
    the others; a query alone is itself. Images that are named by their id are left out. The id of
    a video stands for at most 32 of its frames, by their mean.
    """
    selection = _selection(body, body.filter, [body, *body.positive, *body.negative])
    pipeline, loaded = _parts(request)
    positive = [body, *body.positive] if body.given else body.positive
    timing = Timing()
    examples = await _embedded(
        request, loaded, [*positive, *body.negative], timing, selection.group_by
    )
    embeddings = [example.embedding for example in examples]
    embedding = combine(embeddings[: len(positive)], embeddings[len(positive) :])
    familiarity = examples[0].familiarity if len(examples) == 1 else None
    left_out = {example.left_out for example in examples if example.left_out is not None}
    result = await pipeline.query(
        loaded,
        embedding,
        selection.without_videos(left_out),
        timing,
        familiarity,
        calibrated=all(example.frames == 1 for example in examples),
    )
    return answers.search(loaded, result, thumbnails=body.thumbnails)


@router.post(
    "/embeddings",
    operation_id="embed",
    summary="Embed an uploaded image",
    response_model=schemas.EmbeddingResponse,
    responses=problems.responses(*_UPLOAD, *_IMAGE),
)
async def embed(
    request: Request,
    image: Annotated[UploadFile, File(description=_IMAGE_OR_VIDEO)],
) -> Response:
    """The embedding that the index's model gives an image, for POST /query or for your own use.

    Of a video it is the mean of at most 32 frames.
    """
    pipeline, loaded = _parts(request)
    with _places(request, [image.file]):
        embedded = await pipeline.embed(loaded, image.file)
    return answers.embedding(loaded, embedded)


@router.post(
    "/compare",
    operation_id="compare",
    summary="Compare two images",
    response_model=schemas.ComparisonResponse,
    responses=problems.responses(
        *_UPLOAD, *_IMAGE, "image_not_found", "urls_disabled", "url_not_fetched"
    ),
    openapi_extra={"requestBody": schemas.PAIR_BODY},
)
async def compare(request: Request) -> Response:
    """Their score, and how many pairs of the index have a higher one.

    Send two files in a form, or two examples as in POST /query in JSON. The shares are those of
    pairs of images that were drawn from the index at the end of an ingest.
    """
    pair = await _pair(request)
    _, loaded = _parts(request)

    async def one(name: str, example: Example) -> tuple[Embeddings, Timing]:
        timing = Timing()
        try:
            [embedded] = await _embedded(request, loaded, [example], timing)
            check_embedding(embedded.embedding)
        except (ImageError, RecordError) as exc:
            raise type(exc)(f"{name}: {exc}") from exc
        timing.stop()
        return embedded.embedding, timing

    with request.state.admission.take():
        found = await _together([one("a", pair.a), one("b", pair.b)])
    timing = max((timing for _, timing in found), key=lambda each: each.seconds["total"])
    a, b = (embedding[np.newaxis] for embedding, _ in found)
    score = float(pair_scores(a, b, loaded.index.manifest.metric)[0, 0])
    return answers.comparison(loaded, score, timing)


async def _pair(request: Request) -> schemas.Pair:
    """The two images of the body, a form or JSON."""
    if is_form(request):
        form = await request.form()
        contents = [await cast("UploadFile", form[field]).read() for field in PAIR_FIELDS]
        a, b = (Example.model_construct(image=content) for content in contents)
        return schemas.Pair.model_construct(a=a, b=b)
    try:
        return schemas.Pair.model_validate(await request.json())
    except orjson.JSONDecodeError as exc:
        problem = {"type": "json_invalid", "loc": ("body",), "msg": f"not JSON: {exc.msg}"}
        raise RequestValidationError([problem]) from exc
    except ValidationError as exc:
        problems_ = [{**error, "loc": ("body", *error["loc"])} for error in exc.errors()]
        raise RequestValidationError(problems_) from exc


def _parts(request: Request) -> tuple[Pipeline, LoadedIndex]:
    follower = request.state.follower
    return follower.pipeline, follower.loaded()


def _selection(
    options: SearchParameters | schemas.Query,
    filter_json: Any,
    named: Sequence[Example] = (),
) -> Selection:
    """What the options ask for; images that are `named` by their id are left out."""
    return Selection(
        top_k=options.top_k,
        filter=wanted(options.labels, filter_json),
        min_score=options.min_score,
        min_confidence=options.min_confidence,
        deduplicate=options.deduplicate,
        group_by=options.group_by,
        thumbnails=options.thumbnails,
        without=frozenset(example.id for example in named if example.id is not None),
    )


class _Embedded(NamedTuple):
    """The embedding of an example, float32 [512], by the mean of `frames` where it is a video.

    `familiarity` is that of an image file; `left_out` the video that is not to be found.
    """

    embedding: Embeddings
    familiarity: float | None = None
    frames: int = 1
    left_out: str | None = None


async def _embedded(
    request: Request,
    loaded: LoadedIndex,
    examples: Sequence[Example],
    timing: Timing,
    group_by: GroupBy = "none",
) -> list[_Embedded]:
    """That of each; adds the time of the slowest image to `timing`."""
    urls = [example.url for example in examples if example.url is not None]
    if urls and not request.state.settings.fetch_urls:
        raise ProblemError("urls_disabled")
    ids = sorted({example.id for example in examples if example.id is not None})
    files = [io.BytesIO(example.image) for example in examples if example.image is not None]
    with _places(request, files, others=len(urls)):
        known = await _known(loaded, ids, timing, group_by) if ids else {}

        async def one(example: Example) -> tuple[_Embedded, Timing | None]:
            if example.id is not None:
                return known[example.id], None
            if example.embedding is not None:
                return _Embedded(np.asarray(example.embedding, np.float32)), None
            content = example.image
            if content is None:
                assert example.url is not None  # noqa: S101
                limit = request.state.settings.max_upload_bytes
                content = await fetch_image(example.url, max_bytes=limit)
            embedded = await request.state.follower.pipeline.embed(loaded, io.BytesIO(content))
            found = _Embedded(embedded.embedding, embedded.familiarity, embedded.frames)
            return found, embedded.timing

        found = await _together([one(example) for example in examples])
    timings = [each for _, each in found if each is not None]
    if timings:
        slowest = max(timings, key=lambda each: each.seconds["total"])
        for stage in ("decode", "embed"):
            timing.seconds[stage] += slowest.seconds[stage]
    return [embedded for embedded, _ in found]


@contextmanager
def _places(request: Request, files: Sequence[BinaryIO], others: int = 0) -> Iterator[None]:
    """Hold the places of these images and videos, and of others, but for that of the request."""
    videos = sum(is_clip(file) for file in files)
    places = len(files) + others - 1 + min(videos * _VIDEO_PLACES, _MOST_VIDEO_PLACES)
    with request.state.admission.take(max(0, places)):
        yield


async def _known(
    loaded: LoadedIndex, ids: list[str], timing: Timing, group_by: GroupBy
) -> dict[str, _Embedded]:
    """What the index has of each id: an image, or a video of which there are frames."""
    started = time.perf_counter()
    index = loaded.index
    records = await asyncio.to_thread(index.fetch, ids, thumbnails=False)
    known = {}
    for id_ in ids:
        if id_ in records:
            video = video_of(records[id_].metadata) if group_by == "video" else None
            known[id_] = _Embedded(records[id_].embedding, left_out=video)
            continue
        frames = await asyncio.to_thread(_frames_of, index, id_)
        if not frames:
            raise image_not_found(id_)
        embedding = combine([frame.embedding for frame in frames], [])
        known[id_] = _Embedded(embedding, frames=len(frames), left_out=id_)
    timing.seconds["search"] += time.perf_counter() - started
    return known


def _frames_of(index: VectorIndex, video: str) -> list[Record]:
    """Frames of a video that are spread over it; none where the index has none."""
    ids = in_time(video, index.ids(frame_prefix(video)))
    return list(index.fetch(spread(ids), thumbnails=False).values())


async def _together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await them side by side; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    return [task.result() for task in tasks]
