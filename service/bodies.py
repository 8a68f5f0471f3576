"""The bodies of requests, checked while they are read: type, size and form."""

import asyncio
import binascii
import string
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Final

import orjson
from fastapi import Request, params
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartParser
from starlette.types import Message

from service.problems import ProblemError

# The form field of one image, and that of several.
IMAGE_FIELD: Final = "image"
IMAGES_FIELD: Final = "images"
MAX_IMAGES: Final = 32
# Those of two images that are compared.
PAIR_FIELDS: Final = ("a", "b")
# Those of JSON with several images each.
EXAMPLES_FIELDS: Final = ("positive", "negative")
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
_SPACES: Final = " \t\r\n"
# A multiple of four.
_BASE64_PART: Final = 1024 * 1024
_BASE64: Final = (string.ascii_letters + string.digits + "+/=").encode()
# More are read than are allowed, to say how many there are.
_MAX_PARTS: Final = {"max_files": 2 * MAX_IMAGES, "max_fields": MAX_IMAGES}
# Up to so many bytes a file is held in memory, as a photo is: `admission` bounds them all together.
# Writing one of 5 MB to a file, as Starlette does above 1 MB, and reading it took 5 ms.
MultiPartParser.spool_max_size = 8 * 1024 * 1024
# What clients send when they do not know a file's type.
_UNKNOWN_TYPES: Final = {"", "application/octet-stream", "binary/octet-stream"}


class BodyRequest(Request):
    """A request whose body is limited; `count` is called with the size of each part.

    Who parses a large body of JSON holds `large`.
    """

    def __init__(self, request: Request, count: Callable[[int], None], large: asyncio.Lock) -> None:
        super().__init__(request.scope, self._receive_limited)
        self._receive_unlimited = request.receive
        self._count = count
        self._large = large
        self._limit = request.state.settings.max_upload_bytes
        self._received = self._text = 0
        self._is_json = _media_type(request.headers.get("content-type")) == _JSON
        length = request.headers.get("content-length", "")
        self._check_size(int(length) if length.isdecimal() else 0)

    async def read_json(self) -> None:
        """Read the body, for `json` alone: FastAPI would hold it until the end of the request."""
        self._json_body = [await self.body()]
        self._body = b"is JSON"

    async def json(self) -> Any:
        """As strict as the standard: no NaN, no half of a surrogate pair.

        What is said to be an image in base64 is its bytes, or the ValueError that it is not.
        """
        # Megabytes take long, and the event loop has others to answer. They also take several times
        # their memory meanwhile, so one is parsed after another.
        is_large = len(self._json_body[0]) > MAX_JSON_BYTES
        async with self._large if is_large else nullcontext():
            return await asyncio.to_thread(_parsed, self._json_body)

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
                f"the request has more than {self._limit:,} bytes: make the image smaller, or the "
                "video shorter",
            )


def _json_too_large() -> ProblemError:
    return ProblemError(
        "upload_too_large",
        f"the JSON has more than {MAX_JSON_BYTES:,} bytes in addition to its images: send less",
    )


def _parsed(bodies: list[bytes]) -> Any:
    """The JSON of the only body in the list, which is taken out and not held any longer."""
    size = len(bodies[0])
    value = orjson.loads(bodies.pop())
    examples = [each for each in _examples(value) if isinstance(each.get(IMAGE_FIELD), str)]
    # Now it is known which of it are images.
    if size - sum(len(each[IMAGE_FIELD]) for each in examples) > MAX_JSON_BYTES:
        raise _json_too_large()
    for each in examples:
        try:
            each[IMAGE_FIELD] = _from_base64(each[IMAGE_FIELD])
        except ValueError as exc:
            each[IMAGE_FIELD] = ValueError(f"it is not base64: {exc}")
    return value


def _examples(value: Any) -> Iterator[dict[str, Any]]:
    """The objects of a body that can hold an image each."""
    if isinstance(value, dict):
        yield value
        for name in (*EXAMPLES_FIELDS, *PAIR_FIELDS):
            found = value.get(name)
            yield from (
                each
                for each in (found if isinstance(found, list) else [found])
                if isinstance(each, dict)
            )


def _from_base64(text: str) -> bytes:
    head, comma, body = text.partition(",")
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        raise ValueError("a data URI looks like data:image/png;base64,…")
    characters = body if comma else text
    # Programs such as base64 and openssl break its lines.
    if any(space in characters for space in _SPACES):
        characters = characters.encode().translate(None, _SPACES.encode()).decode()
    if characters.find("=", 0, -2) >= 0:
        raise ValueError("there is more text after its padding")
    # In parts, as no other thread has its turn within one.
    return b"".join(
        binascii.a2b_base64(characters[start : start + _BASE64_PART], strict_mode=True)
        for start in range(0, len(characters), _BASE64_PART)
    )


def reader(route: APIRoute) -> Callable[[BodyRequest], AbstractAsyncContextManager[None]]:
    """What reads and checks the body that the route declares; FastAPI finds it read."""
    body = route.body_field
    if body is None:
        return _json_or_pair if route.openapi_extra else _no_body
    if not isinstance(body.field_info, params.Form):
        return _json
    [field] = [param.alias for param in route.dependant.body_params]

    @asynccontextmanager
    async def form(request: BodyRequest) -> AsyncIterator[None]:
        _check_media_type(request, _FORM, _EXAMPLES[field])
        async with request.form(**_MAX_PARTS) as parts:
            _check_form(parts, (field,))
            yield

    return form


@asynccontextmanager
async def _no_body(_request: BodyRequest) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def _json_or_pair(request: BodyRequest) -> AsyncIterator[None]:
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
async def _json(request: BodyRequest) -> AsyncIterator[None]:
    _check_media_type(
        request,
        _JSON,
        """curl -H 'Content-Type: application/json' -d '{"id": "cat"}'""",
    )
    await request.read_json()
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
        if not media_type.startswith(("image/", "video/")) and media_type not in _UNKNOWN_TYPES:
            raise ProblemError(
                "unsupported_media_type",
                f"the file is declared as {media_type}, which is neither an image nor a video",
            )
