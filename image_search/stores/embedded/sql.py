"""Filters and ids in the SQL of LanceDB."""

import json
from collections.abc import Collection, Sequence

from image_search.filters import Condition, Filter, Group
from image_search.index import Listing
from image_search.values import DIGEST_FIELD, LABEL_FIELD, Scalar

# The column that words are looked for in; tables of versions before 0.2 get it from `flush`.
WORDS = "words"


def filter_sql(filter_: Filter) -> str:
    """The rows that pass the filter."""
    if isinstance(filter_, Group):
        joint = " AND " if filter_.operator == "$and" else " OR "
        return "(" + joint.join(filter_sql(part) for part in filter_.filters) + ")"
    return _condition_sql(filter_)


def _condition_sql(condition: Condition) -> str:
    field, operand = condition.field, condition.operand
    values = operand if isinstance(operand, tuple) else (operand,)
    match condition.operator:
        case "$eq" | "$in":
            return _any_equal_sql(field, values)
        case "$ne" | "$nin":
            return f"({_any_equal_sql(field, values)}) IS NOT TRUE"
        case "$exists":
            exists = "label IS NOT NULL" if field == LABEL_FIELD else f"{_json(field)} IS NOT NULL"
            return exists if operand else f"({exists}) IS NOT TRUE"
        case "$gt":
            symbol = ">"
        case "$gte":
            symbol = ">="
        case "$lt":
            symbol = "<"
        case "$lte":
            symbol = "<="
    # A label is a string, and no string is more or less than a number.
    return "false" if field == LABEL_FIELD else f"{_number(field)} {symbol} {operand!r}"


def _any_equal_sql(field: str, values: Sequence[Scalar]) -> str:
    strings = [value for value in values if isinstance(value, str)]
    booleans = [value for value in values if isinstance(value, bool)]
    numbers = [value for value in values if not isinstance(value, str | bool)]
    if field == LABEL_FIELD:
        return f"label IN ({', '.join(map(literal, strings))})" if strings else "false"
    parts = [f"json_array_contains(metadata, {_path(field)}, {literal(s)})" for s in strings]
    texts = [json.dumps(value, ensure_ascii=False) for value in [*strings, *booleans]]
    if texts:
        parts.append(f"{_json(field)} IN ({', '.join(map(literal, texts))})")
    if numbers:
        parts.append(f"{_number(field)} IN ({', '.join(repr(float(n)) for n in numbers)})")
    return "(" + " OR ".join(parts) + ")"


def _json(field: str) -> str:
    """SQL for the JSON text of a field: strings in quotes; NULL when there is no such field."""
    return f"json_extract(metadata, {_path(field)})"


def _number(field: str) -> str:
    """SQL for a field's number; NULL for anything else, whose JSON text is no number."""
    return f"TRY_CAST({_json(field)} AS DOUBLE)"


def _path(field: str) -> str:
    return literal(f"$[{json.dumps(field, ensure_ascii=False)}]")


def number_or_null(field: str) -> str:
    """SQL for the number that a field or the label has; NULL for other values."""
    return "CAST(NULL AS DOUBLE)" if field == LABEL_FIELD else _number(field)


def label_or_json(field: str) -> str:
    """SQL for the label, or for the JSON text of a field; NULL where there is none."""
    return "label" if field == LABEL_FIELD else _json(field)


def listing_sql(listing: Listing) -> str:
    """The rows of a listing."""
    parts = []
    if listing.prefix:
        parts.append(prefix_sql(listing.prefix))
    parts += [f"contains({WORDS}, {literal(word)})" for word in listing.words]
    if listing.filter is not None:
        parts.append(filter_sql(listing.filter))
    return " AND ".join(parts) or "true"


def prefix_sql(prefix: str) -> str:
    """The rows whose ids begin with this."""
    # Ids are printable ASCII, so the next character after all of them bounds the prefix.
    return f"id >= {literal(prefix)} AND id < {literal(prefix + chr(0x7F))}"


def ids_sql(ids: Sequence[str]) -> str:
    """The rows with these ids."""
    return f"id IN ({', '.join(map(literal, ids))})"


def digests_sql(digests: Collection[str]) -> str:
    """The rows whose images have one of these digests."""
    # Ten times as fast as a condition of a filter, which takes any type.
    field = f"json_get_string(metadata, {literal(DIGEST_FIELD)})"
    return f"{field} IN ({', '.join(map(literal, digests))})"


def literal(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"
