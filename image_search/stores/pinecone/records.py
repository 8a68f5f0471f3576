"""Records, batches and filters in the form that Pinecone takes and gives.

Label and state are fields of the metadata: a filter of states finds which records are in them, and
nothing has to be read for it.

Thumbnails (base64) are records of their own in another namespace, as Pinecone leaves no field out
of an answer: only who shows them reads them. Earlier versions stored them in the metadata of their
record.
"""

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from image_search.errors import RecordError
from image_search.filters import Condition, Filter
from image_search.index import Record
from image_search.values import (
    DIMENSION,
    LABEL_FIELD,
    STATE_FIELD,
    THUMBNAIL_FIELD,
    Embeddings,
)

# https://docs.pinecone.io/reference/api/database-limits: 2 MB a request, 40 KB of metadata a
# record.
_UPSERT_BYTES: Final = 1_900_000
_METADATA_BYTES: Final = 40 * 1024
_DECIMALS: Final = 7

# The vector of records that only hold metadata.
ANY_VECTOR: Final = [1] + [0] * (DIMENSION - 1)


def encode(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The records, at least one, without their thumbnails."""
    rows = _rounded(np.stack([record.embedding for record in records])).astype(np.float32)
    return [
        {"id": record.id, "values": _values(row), "metadata": _metadata(record)}
        for record, row in zip(records, rows, strict=True)
    ]


def _values(row: Embeddings | list[int]) -> list[Any]:
    """A vector as JSON, in a list that the SDK sends as it is.

    As objects of Python, its numbers would take most of the processor time of an upsert.
    """
    return [orjson.Fragment(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])]


_ANY_VALUES: Final = _values(ANY_VECTOR)


def numbers(embedding: Embeddings) -> list[float]:
    """float32 [512] as the SDK takes it for a query."""
    rounded: list[float] = _rounded(embedding).tolist()
    return rounded


def _rounded(embeddings: Embeddings) -> NDArray[np.float64]:
    """float32 [..., 512] with seven decimals, or more where one of them is short.

    They are as exact as float32 at this size, and half as long.
    """
    shortest = float(np.abs(embeddings).max(axis=-1).min())
    decimals = _DECIMALS + max(0, -math.ceil(math.log10(shortest)))
    return embeddings.astype(np.float64).round(decimals)


def encode_thumbnail(record: Record) -> dict[str, Any]:
    """The thumbnail, made smaller until it fits; RecordError if it never does."""
    metadata = {THUMBNAIL_FIELD: _fitting_thumbnail(record)}
    return {"id": record.id, "values": _ANY_VALUES, "metadata": metadata}


def _metadata(record: Record) -> dict[str, Any]:
    label = {} if record.label is None else {LABEL_FIELD: record.label}
    state = {STATE_FIELD: record.state} if record.state else {}
    return {**record.metadata, **label, **state}


def check_size(record: Record) -> None:
    """Raise RecordError where label and metadata are too large."""
    if len(orjson.dumps(_metadata(record))) > _METADATA_BYTES:
        raise RecordError(
            f"record {record.id!r}: label and metadata take more than Pinecone's "
            f"{_METADATA_BYTES:,} bytes"
        )


def _fitting_thumbnail(record: Record) -> str:
    room = _METADATA_BYTES - len(f'{{"{THUMBNAIL_FIELD}":""}}')
    thumbnail = record.thumbnail
    while len(encoded := base64.b64encode(thumbnail).decode()) > room:
        with Image.open(io.BytesIO(thumbnail)) as image:
            if min(image.size) < 2:
                raise RecordError(
                    f"record {record.id!r}: its thumbnail does not fit into Pinecone's "
                    f"{_METADATA_BYTES:,} bytes of metadata"
                )
            out = io.BytesIO()
            image.reduce(2).save(out, "JPEG")
        thumbnail = out.getvalue()
    return encoded


def decode(metadata: Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any], bytes]:
    """Label, metadata and a thumbnail that is with them; any of them may be missing."""
    rest = dict(metadata or {})
    label = rest.pop(LABEL_FIELD, None)
    rest.pop(STATE_FIELD, None)
    try:
        thumbnail = base64.b64decode(rest.pop(THUMBNAIL_FIELD, ""), validate=True)
    except (binascii.Error, TypeError, ValueError):
        thumbnail = b""
    return None if label is None else str(label), rest, thumbnail


def parts(encoded: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Cut a batch so that no request has too many bytes."""
    cut: list[list[dict[str, Any]]] = [[]] if encoded else []
    size = 0
    for item in encoded:
        item_size = len(orjson.dumps(item)) + 1
        if size + item_size > _UPSERT_BYTES:
            cut.append([])
            size = 0
        cut[-1].append(item)
        size += item_size
    return cut


def json_filter(filter_: Filter) -> dict[str, Any]:
    """The filter in Pinecone's grammar, from which it came."""
    if isinstance(filter_, Condition):
        operand = filter_.operand
        value = list(operand) if isinstance(operand, tuple) else operand
        return {filter_.field: {filter_.operator: value}}
    return {filter_.operator: [json_filter(part) for part in filter_.filters]}
