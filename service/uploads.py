"""Uploads: the media type, the size and the form are checked while the body is read."""

import asyncio
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from image_search.errors import ImageSearchError
from service import problems
from service.errors import DeadlineExceededError, OverloadedError
from service.problems import ProblemError

# Being read, decoded, embedded and searched, all together.
MAX_REQUESTS: Final = 96
DEADLINE_SECONDS: Final = 10.0
IMAGE_FIELD: Final = "image"
_EXAMPLE: Final = f"curl -F {IMAGE_FIELD}=@cat.jpg"
# What clients send when they do not know a file's type.
_UNKNOWN_TYPES: Final = {"", "application/octet-stream", "binary/octet-stream"}
# What nginx logs for them; nobody reads the answer.
_CLIENT_CLOSED_REQUEST: Final = 499
# In the event loop's time: long ago.
_NOW: Final = 0.0


class UploadRoute(APIRoute):
    """A route whose body is a multipart form with one image and nothing else.

    At most `MAX_REQUESTS` are admitted at once, and each has `DEADLINE_SECONDS`, the reading of its
    body included. What is beyond that, or whose client has gone, is cancelled.

    The application's state has `admission`, a semaphore, `settings` and `metrics`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Check the upload, then hand it to FastAPI's own handler."""
        handle = super().get_route_handler()

        async def counted(request: Request) -> Response:
            try:
                return await _admitted(request, checked)
            except ImageSearchError as exc:
                if code := problems.unavailable(exc):
                    request.state.metrics.rejected(code)
                raise
            except _GoneError:
                request.state.metrics.rejected("disconnected")
                return Response(status_code=_CLIENT_CLOSED_REQUEST)

        async def checked(request: Request, deadline: asyncio.Timeout) -> Response:
            limit = request.state.settings.max_upload_bytes
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != "multipart/form-data":
                raise ProblemError(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    "unsupported_media_type",
                    f"send multipart/form-data, as in: {_EXAMPLE}",
                )
            _check_size(int(request.headers.get("content-length", 0)), limit)
            limited = Request(request.scope, _limited(request.receive, limit))
            async with limited.form() as form:
                _check_form(dict(form.multi_items()))
                watcher = asyncio.create_task(_watch(request.receive, deadline))
                try:
                    return await handle(limited)
                finally:
                    watcher.cancel()

        return counted


class _GoneError(Exception):
    """The client has closed its connection."""


async def _admitted(
    request: Request, handle: Callable[[Request, asyncio.Timeout], Coroutine[Any, Any, Response]]
) -> Response:
    """Answer if there is room, in time, and as long as the client waits."""
    admission: asyncio.Semaphore = request.state.admission
    if admission.locked():
        raise OverloadedError("too many searches at once: try again in a second")
    async with admission:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS) as deadline:
                return await handle(request, deadline)
        except ClientDisconnect:
            raise _GoneError from None
        except TimeoutError:
            if not deadline.expired():
                raise
            if deadline.when() == _NOW:
                raise _GoneError from None
            raise DeadlineExceededError(
                f"the search was not done within {DEADLINE_SECONDS:g} seconds: try again"
            ) from None


async def _watch(receive: Receive, deadline: asyncio.Timeout) -> None:
    """End the request when its client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not deadline.expired():
        deadline.reschedule(_NOW)


def _limited(receive: Receive, limit: int) -> Receive:
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        _check_size(received, limit)
        return message

    return receive_limited


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ProblemError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "upload_too_large",
            f"the request has more than {limit:,} bytes: make the image smaller",
        )


def _check_form(form: dict[str, Any]) -> None:
    unknown = sorted(form.keys() - {IMAGE_FIELD})
    if unknown:
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "invalid_parameters",
            f"unknown form field {', '.join(unknown)}: the form holds the field {IMAGE_FIELD} "
            "alone, parameters go into the query string",
        )
    image = form.get(IMAGE_FIELD)
    if image is None or isinstance(image, str):
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "invalid_parameters",
            f"the form has no file named {IMAGE_FIELD}: {_EXAMPLE}",
        )
    media_type = (image.content_type or "").partition(";")[0].strip().lower()
    if not media_type.startswith("image/") and media_type not in _UNKNOWN_TYPES:
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"the file is declared as {media_type}, which is not an image",
        )
