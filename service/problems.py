"""Errors as RFC 9457 problem details: a status, and a `code` that does not change."""

import logging
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from image_search.errors import (
    FilterError,
    ImageSearchError,
    ImageTooLargeError,
    IndexMismatchError,
    IndexNotFoundError,
    NotAnImageError,
    RecordError,
    SettingsError,
    StoreError,
    WeightsError,
)
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

_PROBLEMS: Final[dict[type[ImageSearchError], tuple[HTTPStatus, str]]] = {
    NotAnImageError: (HTTPStatus.UNPROCESSABLE_ENTITY, "not_an_image"),
    ImageTooLargeError: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_many_pixels"),
    FilterError: (HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_filter"),
    RecordError: (HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_parameters"),
    StartingError: (HTTPStatus.SERVICE_UNAVAILABLE, "starting"),
    IndexNotFoundError: (HTTPStatus.SERVICE_UNAVAILABLE, "no_index"),
    IndexMismatchError: (HTTPStatus.SERVICE_UNAVAILABLE, "model_mismatch"),
    WeightsError: (HTTPStatus.SERVICE_UNAVAILABLE, "model_unavailable"),
    StoreError: (HTTPStatus.SERVICE_UNAVAILABLE, "store_unavailable"),
    SettingsError: (HTTPStatus.SERVICE_UNAVAILABLE, "misconfigured"),
    OverloadedError: (HTTPStatus.SERVICE_UNAVAILABLE, "overloaded"),
    DeadlineExceededError: (HTTPStatus.SERVICE_UNAVAILABLE, "deadline_exceeded"),
    EngineFailedError: (HTTPStatus.SERVICE_UNAVAILABLE, "engine_failed"),
}


def unavailable(error: ImageSearchError) -> str | None:
    """The code of an error that is answered 503; None for others."""
    status, code = _PROBLEMS[type(error)]
    return code if status == HTTPStatus.SERVICE_UNAVAILABLE else None


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: Annotated[str, Field(description="Always `about:blank`: `code` tells the kind.")]
    title: Annotated[str, Field(description="The status in words.")]
    status: Annotated[int, Field(description="The HTTP status.")]
    code: Annotated[str, Field(description="The kind of problem; it does not change.")]
    detail: Annotated[str, Field(description="What is wrong, and what to do.")]


class ProblemError(HTTPException):
    """A problem that HTTP itself has: size, media type, form."""

    def __init__(self, status: HTTPStatus, code: str, detail: str) -> None:
        super().__init__(status, detail)
        self.code = code


def responses(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI declaration of the problems that a route answers."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {status.value: {"description": status.phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Answer every error of the application with problem details."""

    @app.exception_handler(ImageSearchError)
    async def known(_request: Request, error: ImageSearchError) -> JSONResponse:
        status, code = _PROBLEMS[type(error)]
        wait = _RETRY_AFTER_SECONDS
        if isinstance(error, OverloadedError):
            wait = _RETRY_AFTER_SECONDS_OVERLOADED
        headers = {"Retry-After": wait} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
        return _response(status, code, str(error), headers)

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        code = error.code if isinstance(error, ProblemError) else status.name.lower()
        return _response(status, code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        details = "; ".join(
            f"{'.'.join(map(str, problem['loc'][1:])) or problem['loc'][0]}: {problem['msg']}"
            for problem in error.errors()
        )
        return _response(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_parameters", details)

    # Starlette logs the traceback and, having answered, raises the error again for the server.
    @app.exception_handler(Exception)
    async def unexpected(_request: Request, _error: Exception) -> JSONResponse:
        return _response(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "internal_error",
            "an unexpected error; the service's log has more",
        )


def _response(status: HTTPStatus, code: str, detail: str, headers: Any = None) -> JSONResponse:
    problem = Problem(
        type="about:blank", title=status.phrase, status=status, code=code, detail=detail
    )
    return JSONResponse(problem.model_dump(), status, headers, MEDIA_TYPE)
