"""Errors as RFC 9457 problem details: a status, and a `code` that does not change."""

import logging
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from image_search.errors import (
    FilterError,
    ImageSearchError,
    ImageTooCostlyError,
    ImageTooLargeError,
    IndexMismatchError,
    IndexNotFoundError,
    IndexReplacedError,
    NotAnImageError,
    NoVideoSupportError,
    RecordError,
    SettingsError,
    StoreError,
    UnsupportedError,
    WeightsError,
)
from service import access_log, browsers
from service.errors import (
    DeadlineExceededError,
    EngineFailedError,
    OverloadedError,
    StartingError,
)

_log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
_RETRY_AFTER_SECONDS: Final = "5"
_RETRY_AFTER_SECONDS_OVERLOADED: Final = "1"

# Every code: its status, and an example of what its detail says.
CODES: Final[dict[str, tuple[HTTPStatus, str]]] = {
    "bad_request": (HTTPStatus.BAD_REQUEST, "Missing boundary in multipart."),
    "unauthorized": (
        HTTPStatus.UNAUTHORIZED,
        "send a key of this service in the header X-API-Key",
    ),
    "writing_disabled": (
        HTTPStatus.FORBIDDEN,
        "writing is off: the operator can turn it on with IMAGE_SEARCH_API_KEYS",
    ),
    "urls_disabled": (
        HTTPStatus.FORBIDDEN,
        "fetching URLs is off: send the image itself, or ask the operator to set "
        "IMAGE_SEARCH_FETCH_URLS",
    ),
    "originals_disabled": (
        HTTPStatus.FORBIDDEN,
        "this service has no originals: the operator can set IMAGE_SEARCH_MEDIA_ROOT",
    ),
    "original_not_found": (
        HTTPStatus.NOT_FOUND,
        "the original of 'cat' is not in the folder of originals",
    ),
    "image_not_found": (HTTPStatus.NOT_FOUND, "there is no image 'cat' in the index"),
    "not_found": (HTTPStatus.NOT_FOUND, "Not Found"),
    "method_not_allowed": (HTTPStatus.METHOD_NOT_ALLOWED, "Method Not Allowed"),
    "upload_too_large": (
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "the request has more than 20,971,520 bytes: make the image smaller, or the video shorter",
    ),
    "too_many_pixels": (
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "the image is 20000x20000, which is more than 200,000,000 pixels: make it smaller",
    ),
    "range_not_satisfiable": (
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        "the file has 10,240 bytes, and no part bytes=20000-",
    ),
    "unknown_host": (
        HTTPStatus.MISDIRECTED_REQUEST,
        "this service does not answer for the host 'example.org': the operator can add it to "
        "IMAGE_SEARCH_TRUSTED_HOSTS",
    ),
    "headers_too_large": (
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "the address and the headers have more than 65,536 bytes, or there are more than 100 "
        "headers: send less",
    ),
    "unsupported_media_type": (
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "send multipart/form-data, as in: curl -F image=@cat.jpg",
    ),
    "no_video_support": (
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "this is a video; to read videos: python -m pip install 'image-search[video]'",
    ),
    "invalid_parameters": (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "top_k: Input should be less than or equal to 100",
    ),
    "invalid_filter": (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "$gt of field 'year' needs a finite number or a date such as 2024-07-14, not 'new'",
    ),
    "not_supported": (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Pinecone does not search for words: use a filter, or the embedded store",
    ),
    "not_an_image": (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "not an image in a format that can be read",
    ),
    "image_too_costly": (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "the image takes more than 4 s to decode: make it smaller, or save it as a JPEG that is "
        "not progressive",
    ),
    "url_not_fetched": (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "http://localhost/cat.jpg was not fetched: its address is not public",
    ),
    "internal_error": (
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "an unexpected error; the service's log has details",
    ),
    "starting": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the service is starting: try again in a few seconds",
    ),
    "no_index": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "there is no index 'images' yet: ingest images first, python -m worker ingest SOURCE",
    ),
    "model_mismatch": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the index was built with another model: use the index's own weights",
    ),
    "model_unavailable": (HTTPStatus.SERVICE_UNAVAILABLE, "there is no weights file mine.h5"),
    "store_unavailable": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Pinecone cannot be reached, or did not answer within 10 s",
    ),
    "misconfigured": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "PINECONE_API_KEY is not set: Pinecone needs an API key",
    ),
    "overloaded": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "too many searches at once: try again in a second",
    ),
    "deadline_exceeded": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the request was not finished within 10 seconds: try again",
    ),
    "engine_failed": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the model could not be run: try again in a few seconds",
    ),
    # The gateway answers with this one, when none of its services does.
    "service_unavailable": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "no service is up: try again in a few seconds",
    ),
}
_CODE_OF: Final[dict[type[ImageSearchError], str]] = {
    NotAnImageError: "not_an_image",
    NoVideoSupportError: "no_video_support",
    ImageTooLargeError: "too_many_pixels",
    ImageTooCostlyError: "image_too_costly",
    FilterError: "invalid_filter",
    RecordError: "invalid_parameters",
    UnsupportedError: "not_supported",
    StartingError: "starting",
    IndexNotFoundError: "no_index",
    IndexMismatchError: "model_mismatch",
    WeightsError: "model_unavailable",
    StoreError: "store_unavailable",
    IndexReplacedError: "store_unavailable",
    SettingsError: "misconfigured",
    OverloadedError: "overloaded",
    DeadlineExceededError: "deadline_exceeded",
    EngineFailedError: "engine_failed",
}
# What clients sent is quoted in a line at most.
_MAX_DETAIL: Final = 300
_MAX_DETAIL_UNAVAILABLE: Final = 1000
_MAX_QUOTED: Final = 80
_MAX_ERRORS: Final = 5


def unavailable(error: ImageSearchError) -> str | None:
    """The code of an error that is answered 503; None for others."""
    code = _CODE_OF[type(error)]
    return code if CODES[code][0] == HTTPStatus.SERVICE_UNAVAILABLE else None


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: Annotated[
        str,
        Field(description="Always `about:blank`; the kind is in `code`.", examples=["about:blank"]),
    ]
    title: Annotated[
        str, Field(description="The status in words.", examples=["Unprocessable Entity"])
    ]
    status: Annotated[int, Field(description="The HTTP status.", examples=[422])]
    code: Annotated[
        str,
        Field(
            description="The kind of problem; it never changes.",
            examples=["not_an_image"],
            json_schema_extra={"enum": list(CODES)},
        ),
    ]
    detail: Annotated[
        str,
        Field(
            description="What is wrong and what to do.",
            examples=["not an image in a format that can be read"],
        ),
    ]


class ProblemError(HTTPException):
    """A problem that HTTP itself has: size, media type, form, key."""

    def __init__(
        self, code: str, detail: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        status, usual = CODES[code]
        super().__init__(status, usual if detail is None else detail, headers)
        self.code = code


def problem_of(error: ImageSearchError) -> Problem:
    """What an error is answered with."""
    return problem(_CODE_OF[type(error)], str(error))


def image_not_found(id_: str) -> ProblemError:
    """The problem of an id that the index does not have."""
    return ProblemError("image_not_found", f"there is no image {id_!r} in the index")


def responses(*codes: str, anywhere: bool = True) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI declaration of the problems that a route answers, with an example for each.

    `anywhere` adds those that every admitted route can have.
    """
    unavailable = [
        code for code, (status, _) in CODES.items() if status == HTTPStatus.SERVICE_UNAVAILABLE
    ]
    if anywhere:
        codes = ("unauthorized", *codes, "internal_error", *unavailable)
    declared: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, detail = CODES[code]
        response = declared.setdefault(
            status.value,
            {
                "description": status.phrase,
                "content": {
                    MEDIA_TYPE: {
                        "schema": {"$ref": "#/components/schemas/Problem"},
                        "examples": {},
                    }
                },
            },
        )
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            response["headers"] = _header("Retry-After", "Seconds to wait before asking again.")
        if status == HTTPStatus.UNAUTHORIZED:
            response["headers"] = _header("WWW-Authenticate", "How to send a key.")
        response["content"][MEDIA_TYPE]["examples"][code] = {
            "summary": code,
            "value": problem(code, detail).model_dump(),
        }
    return declared


def _header(name: str, description: str) -> dict[str, Any]:
    return {name: {"description": description, "schema": {"type": "string"}}}


def install(app: FastAPI) -> None:
    """Answer every error of the application with problem details."""

    @app.exception_handler(ImageSearchError)
    async def known(request: Request, error: ImageSearchError) -> JSONResponse:
        if isinstance(error, StoreError):
            request.state.health.doubt()
        if error.details:
            _log.warning("%s", error.in_full)
        problem = problem_of(error)
        wait = _RETRY_AFTER_SECONDS
        if isinstance(error, OverloadedError):
            wait = _RETRY_AFTER_SECONDS_OVERLOADED
        unavailable = problem.status == HTTPStatus.SERVICE_UNAVAILABLE
        return _response(problem, {"Retry-After": wait} if unavailable else {})

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            # Starlette names the methods of one route, and there can be several for a path.
            error.headers = {"Allow": ", ".join(_methods(request))}
        code = error.code if isinstance(error, ProblemError) else status.name.lower()
        return _response(problem(code, error.detail, status), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        details = [
            f"{_cut('.'.join(map(str, each['loc'][1:])) or each['loc'][0], _MAX_QUOTED)}: "
            f"{each['msg']}"
            for each in errors[:_MAX_ERRORS]
        ]
        if len(errors) > _MAX_ERRORS:
            details.append(f"and {len(errors) - _MAX_ERRORS:,} more")
        return _response(problem("invalid_parameters", "; ".join(details)))

    # Starlette logs the traceback and, having answered, raises the error again for the server.
    @app.exception_handler(Exception)
    async def unexpected(request: Request, _error: Exception) -> JSONResponse:
        # No middleware sees this answer.
        headers = {access_log.HEADER: request.state.request_id}
        return _response(problem("internal_error", CODES["internal_error"][1]), headers)


def _methods(request: Request) -> list[str]:
    """The methods that the path has."""
    found = {
        method
        for route in _flattened(request.app.routes)
        if route.matches(request.scope)[0] != Match.NONE
        for method in getattr(route, "methods", None) or ()
    }
    return sorted(found | {"HEAD"} if "GET" in found else found)


def _flattened(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes, and those of routers among them."""
    for route in routes:
        router = getattr(route, "original_router", None)
        yield from [route] if router is None else _flattened(router.routes)


def problem(code: str, detail: str, status: HTTPStatus | None = None) -> Problem:
    """Problem details with the code's own status, unless another is given."""
    status = status or CODES[code][0]
    unavailable = status == HTTPStatus.SERVICE_UNAVAILABLE
    detail = _cut(detail, _MAX_DETAIL_UNAVAILABLE if unavailable else _MAX_DETAIL)
    return Problem(type="about:blank", title=status.phrase, status=status, code=code, detail=detail)


async def refuse_host(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers for no host."""
    host = _cut(Headers(scope=scope).get("host", ""), _MAX_QUOTED)
    detail = (
        f"this service does not answer for the host {host!r}: the operator can add it to "
        "IMAGE_SEARCH_TRUSTED_HOSTS"
    )
    await _response(problem("unknown_host", detail))(scope, receive, send)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "…"


def _response(problem: Problem, headers: Any = None) -> JSONResponse:
    # Beside what the middleware adds, which never sees the answer to an unexpected error.
    headers = {**browsers.HEADERS, **(headers or {})}
    return JSONResponse(problem.model_dump(), problem.status, headers, MEDIA_TYPE)
