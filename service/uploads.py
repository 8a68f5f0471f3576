"""Requests are admitted, and their bodies checked while they are read: type, size and form."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import orjson
from fastapi import Request, Response, params
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from image_search.errors import ImageSearchError
from service import problems
from service.errors import DeadlineExceededError, OverloadedError
from service.problems import ProblemError

# Images that are being read, decoded, embedded and searched, all together.
MAX_REQUESTS: Final = 80
DEADLINE_SECONDS: Final = 10.0
# The form field of one image, and that of several.
IMAGE_FIELD: Final = "image"
IMAGES_FIELD: Final = "images"
MAX_IMAGES: Final = 32
# Those of two images that are compared.
PAIR_FIELDS: Final = ("a", "b")
_PAIR_EXAMPLE: Final = "curl -F a=@cat.jpg -F b=@dog.jpg"
_EXAMPLES: Final = {
    IMAGE_FIELD: "curl -F image=@cat.jpg",
    IMAGES_FIELD: "curl -F images=@cat.jpg -F images=@dog.jpg",
    **dict.fromkeys(PAIR_FIELDS, _PAIR_EXAMPLE),
}
_FORM: Final = "multipart/form-data"
# What clients send when they do not know a file's type.
_UNKNOWN_TYPES: Final = {"", "application/octet-stream", "binary/octet-stream"}
# What nginx logs for them; nobody reads the answer.
_CLIENT_CLOSED_REQUEST: Final = 499
# In the event loop's time: long ago.
_NOW: Final = 0.0


class Admission:
    """A bound on what the service does at once."""

    def __init__(self, places: int) -> None:
        self._free = places

    @contextmanager
    def take(self, places: int = 1) -> Iterator[None]:
        """Hold places; raises OverloadedError when there are not so many."""
        if places > self._free:
            raise OverloadedError("too many searches at once: try again in a second")
        self._free -= places
        try:
            yield
        finally:
            self._free += places


class AdmittedRoute(APIRoute):
    """A route whose body, if it has one, is JSON or a multipart form with images alone.

    One that declares its body by `openapi_extra` takes either, and reads it from the request.

    The key comes first. At most `MAX_REQUESTS` are admitted at once, and each has
    `DEADLINE_SECONDS`, the reading of its body included. What is beyond that, or whose client has
    gone, is cancelled.

    The application's state is a `service.state.State`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Check the request, then hand it to FastAPI's own handler."""
        handle = super().get_route_handler()
        read = _reader(self)

        async def counted(request: Request) -> Response:
            try:
                request.state.keys.check(request)
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
            length = request.headers.get("content-length", "")
            _check_size(int(length) if length.isdecimal() else 0, limit)
            limited = _Request(request.scope, _limited(request.receive, limit))
            async with read(limited):
                watcher = asyncio.create_task(_watch(request.receive, deadline))
                try:
                    return await handle(limited)
                finally:
                    watcher.cancel()

        return counted


class _Request(Request):
    async def json(self) -> Any:
        """As strict as the standard: no NaN, no half of a surrogate pair."""
        return orjson.loads(await self.body())


class _GoneError(Exception):
    """The client has closed its connection."""


async def _admitted(
    request: Request, handle: Callable[[Request, asyncio.Timeout], Awaitable[Response]]
) -> Response:
    """Answer if there is room, in time, and as long as the client waits."""
    with request.state.admission.take():
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
                f"the request was not done within {DEADLINE_SECONDS:g} seconds: try again"
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
            "upload_too_large",
            f"the request has more than {limit:,} bytes: make the image smaller",
        )


# --- bodies ---


def _reader(route: APIRoute) -> Callable[[Request], Any]:
    """What reads and checks the body that the route declares; FastAPI finds it read."""
    body = route.body_field
    if body is None:
        return _json_or_pair if route.openapi_extra else _no_body
    if not isinstance(body.field_info, params.Form):
        return _json
    [field] = [param.alias for param in route.dependant.body_params]

    @asynccontextmanager
    async def form(request: Request) -> Any:
        _check_media_type(request, _FORM, _EXAMPLES[field])
        async with request.form() as parts:
            _check_form(parts, (field,))
            yield

    return form


@asynccontextmanager
async def _no_body(_request: Request) -> Any:
    yield


@asynccontextmanager
async def _json_or_pair(request: Request) -> Any:
    if is_form(request):
        async with request.form() as parts:
            _check_form(parts, PAIR_FIELDS)
            yield
    else:
        async with _json(request):
            yield


def is_form(request: Request) -> bool:
    """Whether the body is a multipart form."""
    return _media_type(request.headers.get("content-type")) == _FORM


@asynccontextmanager
async def _json(request: Request) -> Any:
    _check_media_type(
        request,
        "application/json",
        """curl -H 'Content-Type: application/json' -d '{"id": "cat"}'""",
    )
    await request.body()
    yield


def _check_media_type(request: Request, wanted: str, example: str) -> None:
    if _media_type(request.headers.get("content-type")) != wanted:
        raise ProblemError("unsupported_media_type", f"send {wanted}, as in: {example}")


def _media_type(header: str | None) -> str:
    return (header or "").partition(";")[0].strip().lower()


def _check_form(form: FormData, fields: Sequence[str]) -> None:
    unknown = sorted(form.keys() - set(fields))
    if unknown:
        wanted = f"the field {fields[0]}" if len(fields) == 1 else f"the fields {', '.join(fields)}"
        raise ProblemError(
            "invalid_parameters",
            f"unknown form field {', '.join(unknown)}: the form holds {wanted} "
            "alone, parameters go into the query string",
        )
    for field in fields:
        _check_files(form.getlist(field), field)


def _check_files(images: Sequence[UploadFile | str], field: str) -> None:
    if not images or any(isinstance(image, str) for image in images):
        raise ProblemError(
            "invalid_parameters", f"the form has no file named {field}: {_EXAMPLES[field]}"
        )
    most = MAX_IMAGES if field == IMAGES_FIELD else 1
    if len(images) > most:
        raise ProblemError(
            "invalid_parameters",
            f"the form has {len(images)} files named {field}: at most {most} can be sent at once",
        )
    # Of several, a wrong one is told of beside the answers to the others.
    if field != IMAGES_FIELD and not isinstance(image := images[0], str):
        media_type = _media_type(image.content_type)
        if not media_type.startswith("image/") and media_type not in _UNKNOWN_TYPES:
            raise ProblemError(
                "unsupported_media_type",
                f"the file is declared as {media_type}, which is not an image",
            )
