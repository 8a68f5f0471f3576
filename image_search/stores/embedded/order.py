"""Images in the order of a field: pages of what a scan finds, with the memory of one page.

Numbers come first, then texts, then other values, and what lacks the field comes last. What is
equal is in the order of ids.
"""

import base64
import binascii
import json
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from image_search.errors import RecordError
from image_search.index import Sort
from image_search.stores.embedded.sql import label_or_json, number_or_null

_NUMBER, _TEXT, _OTHER, _MISSING = range(4)
# What is longer is told apart by the id.
_COMPARED_CHARACTERS: Final = 100


class Position(NamedTuple):
    """Where an image is in the order; as text, the cursor of a page that ends there."""

    kind: int
    number: float
    text: str
    id: str

    def to_cursor(self) -> str:
        """The position in letters that an address can have."""
        return base64.urlsafe_b64encode(json.dumps(self).encode()).decode()

    @classmethod
    def of_cursor(cls, cursor: str) -> Self:
        """Raises RecordError for what `to_cursor` did not return."""
        try:
            kind, number, text, id_ = json.loads(base64.urlsafe_b64decode(cursor))
            return cls(int(kind), float(number), str(text), str(id_))
        except (binascii.Error, ValueError, TypeError, OverflowError) as exc:
            raise RecordError(f"{cursor!r} is not a cursor of this order") from exc


def columns(sort: Sort) -> dict[str, str]:
    """What a scan has to find of each row, as SQL."""
    return {
        "id": "id",
        "number": number_or_null(sort.field),
        "text": label_or_json(sort.field),
    }


def first(
    batches: Iterable[pa.RecordBatch], count: int, sort: Sort, after: Position | None
) -> list[Position]:
    """The first `count` rows of the scan behind `after`, in order."""
    direction = "descending" if sort.descending else "ascending"
    keys = [
        ("kind", "ascending"),
        ("number", direction),
        ("text", direction),
        ("id", "ascending"),
    ]
    best: pa.Table | None = None
    for batch in batches:
        rows = _with_kinds(pa.table(batch.columns, names=batch.schema.names), sort)
        if after is not None:
            rows = rows.filter(_is_behind(rows, after, descending=sort.descending))
        if best is not None:
            rows = pa.concat_tables([best, rows])
        best = rows.take(pc.select_k_unstable(rows, count, sort_keys=keys))
    if best is None:
        return []
    return [Position(**row) for row in best.to_pylist()]


def _with_kinds(rows: pa.Table, sort: Sort) -> pa.Table:
    number, text = rows["number"], rows["text"]
    is_number = pc.is_valid(number)
    is_missing = pc.is_null(text)
    if sort.field == "label":
        is_text = pc.invert(is_missing)
    else:
        is_text = pc.fill_null(pc.starts_with(text, '"'), fill_value=False)
        text = _unquoted(text)
    kind = pc.if_else(
        is_number,
        _NUMBER,
        pc.if_else(is_text, _TEXT, pc.if_else(is_missing, _MISSING, _OTHER)),
    )
    text = pc.utf8_slice_codeunits(pc.fill_null(text, ""), 0, _COMPARED_CHARACTERS)
    return pa.table(
        {
            "kind": pc.cast(kind, pa.int8()),
            "number": pc.fill_null(number, 0.0),
            "text": pc.if_else(is_number, "", text),
            "id": rows["id"],
        }
    )


def _unquoted(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings of JSON without their quotes; other values as they are."""
    if pc.any(pc.match_substring(text, "\\")).as_py():
        values = [json.loads(value) if value else None for value in text.to_pylist()]
        texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        return pa.chunked_array([pa.array(texts, pa.string())])
    return pc.utf8_trim(text, '"')


def _is_behind(rows: pa.Table, after: Position, *, descending: bool) -> Any:
    beyond = pc.less if descending else pc.greater
    behind = pc.greater(rows["id"], after.id)
    for name, further in (("text", beyond), ("number", beyond), ("kind", pc.greater)):
        value = getattr(after, name)
        equal = pc.equal(rows[name], value)
        behind = pc.or_(further(rows[name], value), pc.and_(equal, behind))
    return behind
