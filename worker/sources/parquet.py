"""Parquet files that hold images or videos, as data sets at Hugging Face have them."""

import io
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from image_search.errors import ImageError, SourceError
from image_search.values import LABEL_FIELD, THUMBNAIL_FIELD, MetadataValue
from image_search.videos import looks_like_video
from worker.sources.files import START_BYTES, Choice, describe, is_video, matching_split, reading
from worker.sources.labels import split_of_file
from worker.sources.names import as_text, composed, file_bytes, id_of, printable
from worker.sources.skipped import Skipped
from worker.sources.source import Item, Origin, Source, positions_in

PARQUET_SUFFIXES: Final = (".parquet",)
# What the library `datasets` calls columns of files that can be read.
_FEATURES: Final = ("Image", "Video")
# Columns of bytes that are taken for images where nothing says which are.
_IMAGE_COLUMNS: Final = (
    *("image", "img", "jpg", "png", "picture", "photo"),
    *("video", "mp4", "clip", "movie", "bytes", "content"),
)
_LABEL_COLUMNS: Final = (LABEL_FIELD, "labels", "fine_label", "class")
_NO_METADATA: Final = {LABEL_FIELD, THUMBNAIL_FIELD, "source", "path", "split", "sha256", ""}
# What is read at once: so many rows at most, and of large ones about so many bytes.
_ROWS_AT_ONCE: Final = 256
_BYTES_AT_ONCE: Final = 64 * 1024 * 1024
_MAX_WHOLE: Final = 2**63


def open_parquet(path: Path, names: Sequence[str], skipped: Skipped, choice: Choice) -> Source:
    """The images and videos in a parquet file, or in those with these names in a folder.

    An id is that of the file and the number of the row. Raises SourceError where there is no column
    of images, or a file is damaged.
    """
    title = printable(as_text(str(path)))
    with _damage_named(title):
        files = [_File.read(path / name if name else path, name, title) for name in names or [""]]
        splits = sorted({file.split for file in files if file.split})
        is_chosen = matching_split(title, splits, choice)
        if is_chosen:
            files = [file for file in files if is_chosen(file.split)]
        labels: Counter[str | None] = Counter()
        for file in files:
            labels.update(file.labels() if choice.label_from == "auto" else {None: file.rows})
    columns = sorted({column for file in files for column in file.metadata})
    label = next((file.label for file in files if file.label), None)
    about = describe(f"column {printable(label)}" if label else "none", labels, splits)
    if columns:
        about += f"; metadata: {', '.join(map(printable, columns))}"
    place = printable(as_text(str(path.resolve())))

    def named(name: str) -> Source:
        def items(positions: Collection[int] | None) -> Iterator[Item]:
            parts = [(file, file.rows) for file in files]
            for file, wanted in positions_in(parts, positions):
                with _damage_named(title):
                    for number, row in file.read_rows(wanted):
                        with_label = choice.label_from == "auto"
                        yield from _opened(_item(name, file, number, row, with_label=with_label))

        return Source(
            title,
            sum(file.rows for file in files),
            lambda: items(None),
            about,
            tuple(splits),
            skipped,
            items,
            origin=Origin(name, place, named),
        )

    return named(path.resolve().name if names else path.stem)


@dataclass(frozen=True)
class _File:
    """A file and what its schema tells: columns of the image, the label, and metadata."""

    path: Path
    name: str
    rows: int
    split: str | None
    image: str
    label: str | None
    class_names: tuple[str, ...]
    metadata: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, name: str, title: str) -> "_File":
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            rows = file.metadata.num_rows
        features = _features(schema)
        image = _image_column(schema, features)
        if image is None:
            raise SourceError(
                f"{title}: {printable(path.name)} has no column of images: its columns are "
                f"{', '.join(map(printable, schema.names))}"
            )
        label, class_names = _label_column(schema, features)
        metadata = tuple(
            field.name
            for field in schema
            if field.name not in {image, label, *_NO_METADATA}
            and not field.name.startswith("$")
            and _is_simple(field.type)
        )
        return cls(
            path, name, rows, split_of_file(name or path.name), image, label, class_names, metadata
        )

    def labels(self) -> Counter[str | None]:
        """How many rows have each label."""
        if self.label is None:
            return Counter({None: self.rows})
        found: Counter[str | None] = Counter()
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(columns=[self.label]):
                found.update(map(self.label_of, batch.column(0).to_pylist()))
        return found

    def label_of(self, value: object) -> str | None:
        """The name of a class, or what the column holds."""
        if value is None or value == "":
            return None
        if self.class_names and isinstance(value, int):
            # Data sets have -1 where the label is not told.
            return self.class_names[value] if 0 <= value < len(self.class_names) else None
        return composed(str(value))

    def read_rows(self, wanted: Sequence[int] | None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Numbers of rows, and what is in them; all, or the wanted, which rise."""
        columns = [self.image, *([self.label] if self.label else []), *self.metadata]
        with pq.ParquetFile(self.path) as file:
            first = 0
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                count = about.num_rows
                fitting = _BYTES_AT_ONCE * count // max(1, about.total_byte_size)
                at_once = max(1, min(_ROWS_AT_ONCE, fitting))
                inside = None
                if wanted is not None:
                    inside = {number - first for number in wanted if 0 <= number - first < count}
                if inside is None or inside:
                    batches = file.iter_batches(at_once, row_groups=[group], columns=columns)
                    number = first
                    for batch in batches:
                        for row in range(batch.num_rows):
                            if inside is None or number - first in inside:
                                values = batch.slice(row, 1).to_pylist()
                                yield number, values[0]
                            number += 1
                first += count


def _item(name: str, file: _File, number: int, row: dict[str, Any], *, with_label: bool) -> Item:
    folder = file.name.rpartition(".")[0]
    within = f"{folder}/{number:06d}" if folder else f"{number:06d}"
    metadata: dict[str, MetadataValue] = {"source": composed(as_text(name))}
    content, path = _image(row[file.image])
    if path:
        metadata["path"] = composed(path)
    if file.split:
        metadata["split"] = file.split
    for column in file.metadata:
        value = _value(row[column])
        if value is not None:
            metadata[column] = value
    label = file.label_of(row[file.label]) if file.label and with_label else None
    return Item(id_of(file_bytes(composed(f"{name}/{within}"))), label, content, metadata)


def _opened(item: Item) -> Iterator[Item]:
    """The item, as a video where it is one, which is open until the next is asked for."""
    content = item.content
    is_named = is_video(str(item.metadata.get("path", "")))
    if isinstance(content, bytes) and (is_named or looks_like_video(content[:START_BYTES])):
        with reading(partial(io.BytesIO, content), is_video=True) as video:
            yield replace(item, content=video)
    else:
        yield item


def _image(value: object) -> tuple[bytes | ImageError, str | None]:
    path = None
    if isinstance(value, dict):
        path, value = value.get("path"), value.get("bytes")
    if isinstance(value, bytes):
        return value, path
    if path:
        return ImageError("the row holds the path of an image, and not the image"), path
    return ImageError("the row has no image"), None


def _value(value: object) -> MetadataValue | None:
    """A value of those that every store takes; None where there is none."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) >= _MAX_WHOLE:
        return float(value)
    if isinstance(value, list):
        return [item for item in value if isinstance(item, str)]
    return value if isinstance(value, str | int | float) and value != "" else None


# --- schemas --------------------------------------------------------------------------------------


def _features(schema: Any) -> dict[str, Any]:
    """What the library `datasets` writes beside the schema: the kinds of columns, by name."""
    try:
        stored = json.loads((schema.metadata or {})[b"huggingface"])
        features = stored["info"]["features"]
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _image_column(schema: Any, features: dict[str, Any]) -> str | None:
    candidates = [
        *(name for name, kind in features.items() if kind.get("_type") in _FEATURES),
        *(field.name for field in schema if _has_bytes(field.type)),
        *(name for name in _IMAGE_COLUMNS if name in schema.names and _is_bytes(schema, name)),
    ]
    of_bytes = [
        field.name for field in schema if _is_binary(field.type) and field.name != THUMBNAIL_FIELD
    ]
    if len(of_bytes) == 1:  # such as image.bytes, where structures were made columns
        candidates += of_bytes
    return next((name for name in candidates if name in schema.names), None)


def _has_bytes(type_: Any) -> bool:
    if not pa.types.is_struct(type_):
        return False
    index = type_.get_field_index("bytes")
    return index >= 0 and _is_binary(type_.field(index).type)


def _is_bytes(schema: Any, name: str) -> bool:
    return _is_binary(schema.field(name).type)


def _is_binary(type_: Any) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _label_column(schema: Any, features: dict[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    classes = {
        name: tuple(map(composed, kind["names"]))
        for name, kind in features.items()
        if kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)
    }
    for name in (*_LABEL_COLUMNS, *classes):
        if name in schema.names and _is_simple(schema.field(name).type, lists=False):
            return name, classes.get(name, ())
    return None, ()


def _is_simple(type_: Any, *, lists: bool = True) -> bool:
    kinds = pa.types
    if kinds.is_dictionary(type_):
        type_ = type_.value_type
    if lists and (kinds.is_list(type_) or kinds.is_large_list(type_)):
        return bool(kinds.is_string(type_.value_type) or kinds.is_large_string(type_.value_type))
    tests = (
        *(kinds.is_boolean, kinds.is_integer, kinds.is_floating, kinds.is_string),
        *(kinds.is_large_string, kinds.is_timestamp, kinds.is_date),
    )
    return any(test(type_) for test in tests)


@contextmanager
def _damage_named(title: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise SourceError(f"{title} cannot be read, or is damaged: {printable(str(exc))}") from exc
