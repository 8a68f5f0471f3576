"""What calls take: images of every kind, examples of a query, search options."""

import base64
import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from image_search_client.errors import UnreadableImageError
from image_search_client.results import IndexedImage, Match

# What Pillow writes into a PNG as it is.
_PNG_MODES: Final = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
_COLOUR: Final = 3
_IMAGES: Final = "a path, bytes, a binary file, a Pillow image or a NumPy array"


class _Readable(Protocol):
    """A file opened for reading bytes."""

    def read(self) -> bytes: ...


class _Array(Protocol):
    """A NumPy array or a Pillow image; neither is imported."""

    @property
    def __array_interface__(self) -> Any: ...


ImageInput: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | _Readable | _Array
"""A path, the bytes of an image file, a binary file, a Pillow image, or a NumPy array.

Arrays are uint8 [height, width, 3] in RGB or [height, width] in grey, and need Pillow.
"""

JsonObject: TypeAlias = dict[str, Any]
LabelFrom: TypeAlias = Literal["folder", "none"]
GroupBy: TypeAlias = Literal["none", "video"]


class Upload(NamedTuple):
    """The bytes of an image file, and a name for it."""

    name: str
    content: bytes


def read_image(image: ImageInput) -> Upload:
    """The image as a file's bytes.

    Raises UnreadableImageError when a path cannot be read, TypeError or ValueError for what is no
    image, and ImportError where an array needs Pillow.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        raise ValueError(f"{image} is a URL, not a path: use query(url=…) or Example(url=…)")
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            return Upload(path.name, path.read_bytes())
        except OSError as exc:
            raise UnreadableImageError.of_file(exc) from exc
    if isinstance(image, bytes | bytearray | memoryview):
        return Upload("image", bytes(image))
    if _is_pillow(image) or hasattr(image, "__array_interface__"):
        return Upload("image.png", _png(image))
    if hasattr(image, "read"):
        content = image.read()
        if isinstance(content, bytes):
            name = getattr(image, "name", None)
            return Upload(Path(name).name if isinstance(name, str) else "image", content)
        raise TypeError("the file is opened as text: open it with mode 'rb'")
    raise TypeError(f"an image is {_IMAGES}, not {type(image).__name__}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """An example to search with: exactly one of an indexed image's id, an image, an embedding
    (512 numbers), and a URL, which the operator of the service has to have allowed.
    """

    id: str | None = None
    image: ImageInput | None = None
    embedding: Iterable[float] | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        given = sum(value is not None for value in (self.id, self.image, self.embedding, self.url))
        if given != 1:
            raise ValueError(f"exactly one of id, image, embedding and url is needed, not {given}")

    def to_json(self) -> JsonObject:
        """As the service takes it."""
        if self.image is not None:
            return {"image": base64.b64encode(read_image(self.image).content).decode()}
        if self.embedding is not None:
            return {"embedding": [float(number) for number in self.embedding]}
        return {"id": self.id} if self.id is not None else {"url": self.url}


ExampleInput: TypeAlias = Example | Match | IndexedImage
"""An example, or an image of the index as another call returned it."""


def query_json(
    query: Example | None,
    positive: Iterable[ExampleInput],
    negative: Iterable[ExampleInput],
) -> JsonObject:
    """The part of a query's body that is no option."""
    body: JsonObject = query.to_json() if query else {}
    for name, examples in (("positive", positive), ("negative", negative)):
        if converted := [_example_json(example) for example in examples]:
            body[name] = converted
    if not body.keys() - {"negative"}:
        raise ValueError("id, image, embedding, url or positive is needed")
    return body


def pair_json(a: ImageInput | ExampleInput, b: ImageInput | ExampleInput) -> JsonObject:
    """The body of a comparison."""
    return {
        name: _example_json(image if isinstance(image, ExampleInput) else Example(image=image))
        for name, image in (("a", a), ("b", b))
    }


@dataclass(frozen=True, slots=True)
class Options:
    """The options of every search; only what is not the service's default is sent."""

    top_k: int = 10
    labels: Sequence[str] = ()
    filter: Mapping[str, Any] | None = None
    min_score: float | None = None
    min_confidence: float | None = None
    thumbnails: bool = True
    deduplicate: bool = False
    group_by: GroupBy = "none"

    def __post_init__(self) -> None:
        if isinstance(self.labels, str):
            raise TypeError(f"labels must be a list: labels=[{self.labels!r}]")
        object.__setattr__(self, "labels", tuple(self.labels))

    def to_json(self) -> JsonObject:
        """Fields of a JSON body."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in given.items() if value != getattr(_DEFAULTS, name)}

    def to_query(self) -> dict[str, Any]:
        """Parameters of a query string."""
        parameters = self.to_json()
        if "labels" in parameters:
            parameters["label"] = parameters.pop("labels")
        if "filter" in parameters:
            parameters["filter"] = to_json_text(parameters["filter"])
        return parameters


_DEFAULTS: Final = Options()


def listing_query(
    labels: Sequence[str],
    filter_: Mapping[str, Any] | None,
    texts: Mapping[str, str | None],
    *,
    thumbnails: bool,
) -> dict[str, Any]:
    """Parameters of a listing; what is empty is left out."""
    parameters: dict[str, Any] = {name: text for name, text in texts.items() if text}
    if labels:
        parameters["label"] = list(labels)
    if filter_ is not None:
        parameters["filter"] = to_json_text(filter_)
    if thumbnails:
        parameters["thumbnails"] = "true"
    return parameters


def to_json_text(value: object) -> str:
    """JSON, in which NumPy's numbers are numbers, too."""
    return msgspec.json.encode(value, enc_hook=_plain).decode()


def _plain(value: object) -> object:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _example_json(example: ExampleInput) -> JsonObject:
    if isinstance(example, Example):
        return example.to_json()
    if isinstance(example, Match | IndexedImage):
        return {"id": example.id}
    raise TypeError(
        f"an example is a match or Example(id=…), Example(image=…), Example(embedding=…) or "
        f"Example(url=…), not {type(example).__name__}"
    )


def _is_pillow(image: object) -> bool:
    module = sys.modules.get("PIL.Image")  # where there is an image, it has been imported
    return module is not None and isinstance(image, module.Image)


def _png(image: Any) -> bytes:
    try:
        from PIL import Image, ImageOps
    except ImportError as exc:
        raise ImportError(
            "arrays need Pillow: pip install 'image-search-client[pictures]'"
        ) from exc
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)  # upright, as the service sees a file
        if image.mode not in _PNG_MODES:
            image = image.convert("RGB")
    else:
        interface = image.__array_interface__
        shape, kind = interface["shape"], interface["typestr"]
        if kind != "|u1" or len(shape) not in {2, 3} or shape[2:] not in {(), (_COLOUR,)}:
            raise ValueError(
                "an array is uint8 [height, width, 3] in RGB or [height, width] in grey, "
                f"not {kind} {list(shape)}"
            )
        if 0 in shape:
            raise ValueError(f"the array has no pixels: {list(shape)}")
        image = Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()
