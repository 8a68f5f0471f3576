"""The bodies of requests, checked while they are read: type, size and form."""

import string
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import orjson
from fastapi import Request, params
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message

from service.problems import ProblemError

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
_JSON: Final = "application/json"
# JSON but for images in base64.
MAX_JSON_BYTES: Final = 1024 * 1024
_BASE64: Final = (string.ascii_letters + string.digits + "+/=").encode()
# More are read than are allowed, to say how many there are.
_MAX_PARTS: Final = {"max_files": 2 * MAX_IMAGES, "max_fields": MAX_IMAGES}
# What clients send when they do not know a file's type.
_UNKNOWN_TYPES: Final = {"", "application/octet-stream", "binary/octet-stream"}


class BodyRequest(Request):
    """A request whose body is limited; `count` is called with the size of each part."""

    def __init__(self, request: Request, count: Callable[[int], None]) -> None:
        super().__init__(request.scope, self._receive_limited)
        self._receive_unlimited = request.receive
        self._count = count
        self._limit = request.state.settings.max_upload_bytes
        self._received = self._text = 0
        self._is_json = _media_type(request.headers.get("content-type")) == _JSON
        length = request.headers.get("content-length", "")
        self._check_size(int(length) if length.isdecimal() else 0)

    async def json(self) -> Any:
        """As strict as the standard: no NaN, no half of a surrogate pair."""
        body = await self.body()
        value = orjson.loads(body)
        # Now it is known which of it were images.
        if len(body) - _image_bytes(value) > MAX_JSON_BYTES:
            raise _json_too_large()
        return value

    async def _receive_limited(self) -> Message:
        message = await self._receive_unlimited()
        part = message.get("body", b"")
        self._received += len(part)
        self._check_size(self._received)
        self._count(len(part))
        if self._is_json:
            # All that makes JSON costly to parse, before it is parsed: images have none of it.
            self._text += len(part.translate(None, _BASE64))
            if self._text > MAX_JSON_BYTES:
                raise _json_too_large()
        return message

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise ProblemError(
                "upload_too_large",
                f"the request has more than {self._limit:,} bytes: make the image smaller",
            )


def _json_too_large() -> ProblemError:
    return ProblemError(
        "upload_too_large",
        f"the JSON has more than {MAX_JSON_BYTES:,} bytes besides its images: send less",
    )


def _image_bytes(value: Any, depth: int = 3) -> int:
    """Characters of the images in base64 that a request holds."""
    if isinstance(value, list):
        return sum(_image_bytes(item, depth) for item in value) if depth else 0
    if not isinstance(value, dict) or not depth:
        return 0
    return sum(
        len(item) if name == "image" and isinstance(item, str) else _image_bytes(item, depth - 1)
        for name, item in value.items()
    )


def reader(route: APIRoute) -> Callable[[Request], AbstractAsyncContextManager[None]]:
    """What reads and checks the body that the route declares; FastAPI finds it read."""
    body = route.body_field
    if body is None:
        return _json_or_pair if route.openapi_extra else _no_body
    if not isinstance(body.field_info, params.Form):
        return _json
    [field] = [param.alias for param in route.dependant.body_params]

    @asynccontextmanager
    async def form(request: Request) -> AsyncIterator[None]:
        _check_media_type(request, _FORM, _EXAMPLES[field])
        async with request.form(**_MAX_PARTS) as parts:
            _check_form(parts, (field,))
            yield

    return form


@asynccontextmanager
async def _no_body(_request: Request) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def _json_or_pair(request: Request) -> AsyncIterator[None]:
    if is_form(request):
        async with request.form(**_MAX_PARTS) as parts:
            _check_form(parts, PAIR_FIELDS)
            yield
    else:
        async with _json(request):
            yield


def is_form(request: Request) -> bool:
    """Whether the body is a multipart form."""
    return _media_type(request.headers.get("content-type")) == _FORM


@asynccontextmanager
async def _json(request: Request) -> AsyncIterator[None]:
    _check_media_type(
        request,
        _JSON,
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
    unknown = sorted(form.keys() - set(fields))[:5]
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
