"""The images of the index: look at them, add, replace and delete them."""

import hashlib
from http import HTTPStatus
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, File, Header, Path, Query, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from image_search.errors import RecordError
from image_search.index import Listing, Record, Sort, VectorIndex
from image_search.values import DIGEST_FIELD, MAX_ID_LENGTH
from image_search.words import words_of
from service import answers, problems, schemas
from service.admission import AdmittedRoute
from service.problems import ProblemError, image_not_found
from service.schemas import EXAMPLE_ID, Label
from service.selection import filter_source, wanted

_SOURCE: Final = "api"
# Thumbnails can change with a PUT: browsers may show the old one for so long without asking.
_CACHE: Final = "private, max-age=60"

router = APIRouter(route_class=AdmittedRoute, tags=["images"])

_ID_DESCRIPTION: Final = (
    f"1 to {MAX_ID_LENGTH} printable ASCII characters, percent-encoded; slashes may stay."
)
ImageId = Annotated[
    str,
    Path(
        min_length=1,
        max_length=MAX_ID_LENGTH,
        pattern="^[ -~]+$",
        description=_ID_DESCRIPTION,
        examples=[EXAMPLE_ID],
    ),
]
NewImageId = Annotated[
    str,
    Path(
        min_length=1,
        max_length=MAX_ID_LENGTH,
        pattern="^[ -~]+$",
        description=_ID_DESCRIPTION,
        examples=["my-cat"],
    ),
]


class PageParameters(BaseModel):
    """Which images are listed."""

    model_config = ConfigDict(extra="forbid")

    labels: Annotated[
        list[Label],
        Field(
            alias="label",
            max_length=schemas.MAX_LABELS,
            description="Only images with this label; repeat it to allow several.",
        ),
    ] = []
    filter: Annotated[str | None, schemas.FILTER_FIELD] = None
    words: Annotated[
        str,
        Field(
            max_length=200,
            description="Only images with all of these words, or parts of words, in their id, "
            "label or text of their metadata, whatever the case and accents. Not on Pinecone.",
            examples=["beach sunset"],
        ),
    ] = ""
    sort: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=schemas.MAX_LABEL_LENGTH,
            description="The order: `id`, `label` or a field of metadata; `-field` is descending. "
            "Numbers come before texts, and images without the field last. Pinecone has none.",
            examples=["-taken"],
        ),
    ] = None
    thumbnails: Annotated[
        bool, Field(description="Whether to include the thumbnails.", examples=[True])
    ] = False
    prefix: Annotated[
        str,
        Field(
            max_length=MAX_ID_LENGTH,
            pattern="^[ -~]*$",
            description="Only ids that start with this.",
        ),
    ] = ""
    limit: Annotated[
        int, Field(ge=1, le=schemas.MAX_PAGE, description="The largest number of images.")
    ] = 100
    cursor: Annotated[
        str,
        Field(
            description="The `cursor` of the previous page; empty for the first.",
            json_schema_extra={"format": "cursor"},
        ),
    ] = ""


class NewImageParameters(BaseModel):
    """What is known of an image that is put into the index."""

    model_config = ConfigDict(extra="forbid")

    label: Annotated[Label | None, Field(description="What the image shows.", examples=["cat"])] = (
        None
    )
    metadata: Annotated[
        str,
        Field(
            description="A JSON object: strings, finite numbers, booleans and lists of strings. "
            "`source` is `api` unless it is given, `sha256` is that of the file, and what the file "
            "says of itself (size, format, date, camera) is added.",
            examples=['{"year": 2026}'],
            json_schema_extra={"format": "json-metadata"},
        ),
    ] = "{}"


@router.get(
    "/images",
    operation_id="list_images",
    summary="List the images of the index",
    response_model=schemas.PageResponse,
    responses=problems.responses("invalid_parameters", "invalid_filter", "not_supported"),
)
def list_images(request: Request, parameters: Annotated[PageParameters, Query()]) -> Response:
    """A page of them, in the order of their ids or of `sort`; `cursor` leads to the next one.

    Pinecone lists what passes a filter in an order of its own.
    """
    listing = Listing(
        filter=wanted(parameters.labels, filter_source(parameters.filter)),
        prefix=parameters.prefix,
        words=tuple(words_of(parameters.words)),
        sort=_sort(parameters.sort),
        thumbnails=parameters.thumbnails,
    )
    page = _index(request).list_images(listing, limit=parameters.limit, cursor=parameters.cursor)
    return answers.page(page, thumbnails=parameters.thumbnails)


@router.get(
    "/images/{id:path}",
    operation_id="get_image",
    summary="Get one image of the index",
    response_model=schemas.ImageResponse,
    responses=problems.responses("image_not_found", "invalid_parameters"),
)
def get_image(request: Request, id: ImageId) -> Response:  # noqa: A002
    """Its label, metadata and thumbnail."""
    return answers.image(_fetch(_index(request), id))


@router.put(
    "/images/{id:path}",
    operation_id="put_image",
    summary="Add an image to the index, or replace it",
    status_code=HTTPStatus.CREATED,
    response_model=schemas.ImageResponse,
    responses={
        HTTPStatus.OK.value: {
            "model": schemas.ImageResponse,
            "description": "The image replaces another one.",
        },
        HTTPStatus.CREATED.value: {"description": "The image is new."},
        **problems.responses(
            "writing_disabled",
            "bad_request",
            "upload_too_large",
            "too_many_pixels",
            "image_too_costly",
            "unsupported_media_type",
            "invalid_parameters",
            "not_an_image",
        ),
    },
)
async def put_image(
    request: Request,
    id: NewImageId,  # noqa: A002
    image: Annotated[UploadFile, File(description="Any image that Pillow reads.")],
    parameters: Annotated[NewImageParameters, Query()],
) -> Response:
    """It is embedded with the index's model. When this is answered, it is stored durably."""
    given = _metadata(parameters.metadata)
    follower = request.state.follower
    loaded = follower.loaded()
    embedded = await follower.pipeline.embed(loaded, image.file, for_record=True)
    record = Record(
        id=id,
        embedding=embedded.embedding,
        label=parameters.label,
        metadata={
            "source": _SOURCE,
            **embedded.file_metadata,
            **given,
            DIGEST_FIELD: embedded.sha256,
        },
        thumbnail=embedded.thumbnail,
    )
    is_new = await follower.writer.upsert(loaded.index, record)
    request.state.origins.forget()
    return answers.image(record, HTTPStatus.CREATED if is_new else HTTPStatus.OK)


@router.delete(
    "/images/{id:path}",
    operation_id="delete_image",
    summary="Delete an image from the index",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    responses=problems.responses("writing_disabled", "image_not_found", "invalid_parameters"),
)
async def delete_image(request: Request, id: NewImageId) -> Response:  # noqa: A002
    """When this is answered, it is gone."""
    follower = request.state.follower
    was_there = await follower.writer.delete(follower.loaded().index, id)
    request.state.origins.forget()
    if not was_there:
        raise image_not_found(id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.get(
    "/thumbnails/{id:path}",
    operation_id="get_thumbnail",
    summary="Get the thumbnail of an image",
    response_class=Response,
    responses={
        HTTPStatus.OK.value: {
            "description": "A JPEG of at most 240x240 pixels; earlier versions made 128x128.",
            "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
            "headers": {
                "ETag": {"description": "Of this picture.", "schema": {"type": "string"}},
                "Cache-Control": {
                    "description": "How long it may be cached.",
                    "schema": {"type": "string"},
                },
            },
        },
        HTTPStatus.NOT_MODIFIED.value: {"description": "It is the one in `If-None-Match`."},
        **problems.responses("image_not_found", "invalid_parameters"),
    },
)
def get_thumbnail(
    request: Request,
    id: ImageId,  # noqa: A002
    if_none_match: Annotated[
        str | None, Header(description="ETags of thumbnails that the client has.")
    ] = None,
) -> Response:
    """As a file that browsers cache."""
    thumbnail = _fetch(_index(request), id).thumbnail
    if not thumbnail:
        raise ProblemError("image_not_found", f"the image {id!r} has no thumbnail")
    etag = f'"{hashlib.sha256(thumbnail).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": _CACHE}
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if known & {etag, "*"}:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(thumbnail, media_type="image/jpeg", headers=headers)


@router.get(
    "/originals/{id:path}",
    operation_id="get_original",
    summary="Get the file that an image came from",
    response_class=Response,
    responses={
        HTTPStatus.OK.value: {
            "description": "The file; of a frame, its video.",
            "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
            "headers": {
                "ETag": {"description": "Of this file.", "schema": {"type": "string"}},
                "Accept-Ranges": {"description": "`bytes`.", "schema": {"type": "string"}},
            },
        },
        HTTPStatus.PARTIAL_CONTENT.value: {"description": "The part that `Range` names."},
        **problems.responses(
            "image_not_found",
            "original_not_found",
            "originals_disabled",
            "range_not_satisfiable",
            "invalid_parameters",
        ),
    },
)
def get_original(request: Request, id: ImageId) -> Response:  # noqa: A002
    """In whole or in part, where the operator has named the folder of originals.

    The id may be that of a video, of which the index has frames.
    """
    originals = request.state.originals
    if not originals.are_served:
        raise ProblemError("originals_disabled")
    origin = request.state.origins.find(_index(request), id)
    if origin is None:
        raise image_not_found(id)
    file = originals.open(origin)
    if file is None:
        raise ProblemError(
            "original_not_found", f"the original of {id!r} is not in the folder of originals"
        )
    response: Response = file
    return response


@router.get(
    "/labels",
    operation_id="list_labels",
    summary="List the labels of the index",
    response_model=schemas.LabelsResponse,
    responses=problems.responses(),
)
def list_labels(request: Request) -> Response:
    """In order, with the number of images of each where the store can count them."""
    return answers.labels(_index(request).labels())


def _index(request: Request) -> VectorIndex:
    index: VectorIndex = request.state.follower.loaded().index
    return index


def _sort(text: str | None) -> Sort | None:
    if text is None:
        return None
    field = text.removeprefix("-") or text
    return Sort(field, descending=field != text)


def _fetch(index: VectorIndex, id_: str) -> Record:
    record = index.fetch([id_]).get(id_)
    if record is None:
        raise image_not_found(id_)
    return record


def _metadata(source: str) -> dict[str, Any]:
    try:
        metadata = orjson.loads(source)
    except orjson.JSONDecodeError as exc:
        raise RecordError(f"metadata is not JSON: {exc}") from exc
    if not isinstance(metadata, dict):
        raise RecordError('metadata must be a JSON object, such as {"year": 2026}')
    return metadata
