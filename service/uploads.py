"""Uploads: the media type, the size and the form are checked while the body is read."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from service.problems import ProblemError

IMAGE_FIELD: Final = "image"
_EXAMPLE: Final = f"curl -F {IMAGE_FIELD}=@cat.jpg"
# What clients send when they do not know a file's type.
_UNKNOWN_TYPES: Final = {"", "application/octet-stream", "binary/octet-stream"}


class UploadRoute(APIRoute):
    """A route whose body is a multipart form with one image and nothing else.

    The application's state has `max_upload_bytes`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Check the upload, then hand it to FastAPI's own handler."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            limit = request.state.settings.max_upload_bytes
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != "multipart/form-data":
                raise ProblemError(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    "unsupported_media_type",
                    f"send multipart/form-data, as in: {_EXAMPLE}",
                )
            _check_size(int(request.headers.get("content-length", 0)), limit)
            request = Request(request.scope, _limited(request.receive, limit))
            async with request.form() as form:
                _check_form(dict(form.multi_items()))
                return await handle(request)

        return checked


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
