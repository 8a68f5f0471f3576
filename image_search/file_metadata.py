"""The fields of metadata that image files bring along: what `images.decode` finds in them.

Dates are numbers, so that both stores can filter by them; `filters` takes them as text, too.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from PIL import ExifTags, Image

from image_search.values import FileMetadata, MetadataValue


@dataclass(frozen=True)
class Field:
    """A field of metadata: its type in JSON, and what it is."""

    name: str
    type: Literal["string", "number"]
    meaning: str


_SECONDS: Final = "in seconds since 1970"
MODIFIED: Final = "modified"
_PLACE: Final = (
    Field("latitude", "number", "where it was taken, in degrees north (EXIF)"),
    Field("longitude", "number", "where it was taken, in degrees east (EXIF)"),
)
_FROM_CONTENT: Final = (
    Field("width", "number", "width in pixels, as the picture is displayed"),
    Field("height", "number", "height in pixels, as the picture is displayed"),
    Field("format", "string", "format of the file, such as jpeg, png or heif"),
    Field(
        "taken",
        "number",
        f"when it was taken, {_SECONDS}, by the camera's clock as if it were UTC (EXIF)",
    ),
    Field("camera", "string", "make and model of the camera or scanner (EXIF)"),
)
_FROM_FILE_SYSTEM: Final = Field(
    MODIFIED, "number", f"when the file in a folder or archive was changed, {_SECONDS}"
)
# All of them, in the order in which they are documented.
FIELDS: Final = (*_FROM_CONTENT, _FROM_FILE_SYSTEM, *_PLACE)
_OF_CONTENT: Final = {field.name: field for field in (*_FROM_CONTENT, *_PLACE)}
_CHOSEN: Final[Mapping[FileMetadata, frozenset[str]]] = {
    "none": frozenset(),
    "default": frozenset(field.name for field in _FROM_CONTENT),
    "gps": frozenset(_OF_CONTENT),
}
# What every file has.
_ALWAYS: Final = {"width", "height", "format"}

_MAX_TEXT: Final = 100
# Honest folders have some forty entries, and a maker's own data of 100 KB.
_MAX_ENTRIES: Final = 250
_MAX_EXIF_BYTES: Final = 8 * 1024 * 1024
_LARGEST_VALUE: Final = 8
# What float64 counts to; NaN and infinity are not less.
_MOST: Final = 2**53
_DATE_TAGS: Final = (
    ExifTags.Base.DateTimeOriginal,
    ExifTags.Base.DateTimeDigitized,
    ExifTags.Base.DateTime,
)
_EXIF_DATE: Final = re.compile(
    r"(\d{4})[:/-](\d\d)[:/-](\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d))?)?", re.ASCII
)
_FORMAT_NAMES: Final = {"mpo": "jpeg"}


def read_file_metadata(
    image: Image.Image, size: tuple[int, int], content: bytes
) -> dict[str, MetadataValue]:
    """The fields of an image that was opened from the file `content`, those of its place, too.

    `size` is width and height as it is shown. What is damaged or too large is left out.
    """
    format_ = (image.format or "").lower()
    fields: dict[str, MetadataValue] = {
        "width": size[0],
        "height": size[1],
        "format": _FORMAT_NAMES.get(format_, format_),
    }
    # Pillow raises almost any type on damaged EXIF data, which is no reason to refuse the picture.
    with suppress(Exception):
        tags = _tags(image, content, ExifTags.IFD.Exif)
        fields |= _taken(tags) | _camera(tags)
    with suppress(Exception):
        fields |= _place(_tags(image, content, ExifTags.IFD.GPSInfo))
    return fields


def checked(values: Any) -> dict[str, MetadataValue]:
    """Those of `values` that `read_file_metadata` may have returned, wherever they come from."""
    found = values if isinstance(values, dict) else {}
    return {name: found[name] for name, field in _OF_CONTENT.items() if _is_valid(field, found)}


def chosen(fields: Mapping[Any, Any], which: FileMetadata) -> dict[str, MetadataValue]:
    """Those of the fields of a file's content that records get."""
    return {name: fields[name] for name in _OF_CONTENT if name in _CHOSEN[which] and name in fields}


def is_complete(fields: Mapping[str, MetadataValue], which: FileMetadata) -> bool:
    """Whether a record with these fields was made with `which`; in doubt not."""
    needed = _ALWAYS | ({"latitude", "longitude"} if which == "gps" else set())
    return which == "none" or needed <= fields.keys()


def _is_valid(field: Field, values: Mapping[str, Any]) -> bool:
    value: Any = values.get(field.name)
    if field.type == "string":
        return isinstance(value, str) and len(value) <= _MAX_TEXT
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and bool(abs(value) < _MOST)


# --- EXIF (version 2.32, CIPA DC-008) ---


def _tags(image: Image.Image, content: bytes, folder: ExifTags.IFD) -> dict[int, Any]:
    """The tags of the main folder and of one that it leads to."""
    exif = image.getexif()
    tags = dict(exif)
    offset = tags.get(folder)
    if isinstance(offset, int) and _is_small(_tiff(image, content), offset):
        tags |= exif.get_ifd(folder)
    return tags


def _tiff(image: Image.Image, content: bytes) -> bytes:
    """What offsets in the EXIF data count from; empty where that is not at hand."""
    if image.format == "TIFF":
        return content
    data = image.info.get("exif") or b""
    return bytes(data).removeprefix(b"Exif\0\0")


def _is_small(tiff: bytes, offset: int) -> bool:
    """Whether a folder has no more than honest ones: Pillow reads each value as it is given."""
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    [entries] = struct.unpack_from(f"{order}H", tiff, offset)
    if entries > _MAX_ENTRIES:
        return False
    counts = (
        struct.unpack_from(f"{order}I", tiff, offset + 2 + 12 * entry + 4)[0]
        for entry in range(entries)
    )
    return bool(sum(counts) * _LARGEST_VALUE <= _MAX_EXIF_BYTES)


def _taken(tags: Mapping[int, Any]) -> dict[str, MetadataValue]:
    for tag in _DATE_TAGS:
        found = _EXIF_DATE.match(_text(tags.get(tag)))
        if found is None:
            continue
        # Without a clock, cameras write zeros.
        with suppress(ValueError):
            moment = datetime(*(int(part or 0) for part in found.groups()), tzinfo=UTC)  # type: ignore[arg-type, misc]
            return {"taken": int(moment.timestamp())}
    return {}


def _camera(tags: Mapping[int, Any]) -> dict[str, MetadataValue]:
    make, model = _text(tags.get(ExifTags.Base.Make)), _text(tags.get(ExifTags.Base.Model))
    # Many models begin with their make.
    if not model.casefold().startswith(make.casefold()[: len(make.split(" ")[0])]):
        model = f"{make} {model}".strip()
    name = (model or make)[:_MAX_TEXT]
    return {"camera": name} if name else {}


def _place(tags: Mapping[int, Any]) -> dict[str, MetadataValue]:
    latitude = _degrees(tags, ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef, "S")
    longitude = _degrees(tags, ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef, "W")
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        return {}
    return {"latitude": latitude, "longitude": longitude}


def _degrees(tags: Mapping[int, Any], tag: int, reference: int, negative: str) -> float:
    """Degrees, minutes and seconds as one number, to a decimetre; NaN where it is damaged."""
    degrees, minutes, seconds = (float(part) for part in tags[tag])
    value = round(degrees + minutes / 60 + seconds / 3600, 6)
    return -value if _text(tags.get(reference)).upper().startswith(negative) else value


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        return ""
    with suppress(UnicodeError):  # ASCII by the standard, and UTF-8 in fact
        value = value.encode("latin-1").decode()
    printable = "".join(_printable(value.partition("\0")[0]))
    return " ".join(printable.split())[:_MAX_TEXT]


def _printable(text: str) -> Iterator[str]:
    return (character for character in text if character.isprintable())
