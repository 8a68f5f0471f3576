"""Metadata filters in Pinecone's grammar.

`{"label": "cat", "year": {"$gte": 2020}}`: fields, and several operators on one field, are ANDed;
a bare value means `$eq`; a list-valued field matches when any of its elements does. `$ne` and
`$nin` are the opposites of `$eq` and `$in`, so they match records without the field, too.
Source: Pinecone's documentation, "Filter by metadata".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from image_search.errors import FilterError
from image_search.values import Scalar

Operator = Literal["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists"]

MAX_DEPTH: Final = 8
# Stores take seconds for more.
MAX_VALUES: Final = 1000


@dataclass(frozen=True)
class Condition:
    """One operator on one field; `operand` is a tuple for `$in` and `$nin`."""

    field: str
    operator: Operator
    operand: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True)
class Group:
    """Filters joined by `$and` or `$or`; at least one."""

    operator: Literal["$and", "$or"]
    filters: "tuple[Filter, ...]"


Filter = Condition | Group


def parse_filter(source: Any) -> Filter | None:
    """Check a filter as it comes from JSON; None for an empty one.

    Raises FilterError for an unknown operator, an operand of the wrong type, more than 8 levels of
    nesting, or more than 1,000 values.
    """
    if source == {}:
        return None
    parsed = _parse(source, depth=1)
    if (values := _count_values(parsed)) > MAX_VALUES:
        raise FilterError(f"the filter has {values:,} values, which is more than {MAX_VALUES:,}")
    return parsed


def _parse(source: Any, depth: int) -> Filter:
    if not isinstance(source, Mapping) or not source:
        raise FilterError(f"a filter is an object with at least one field, not {source!r}")
    if depth > MAX_DEPTH:
        raise FilterError(f"the filter is nested deeper than {MAX_DEPTH} levels")
    parts: list[Filter] = []
    for field, value in source.items():
        if field in {"$and", "$or"}:
            if not isinstance(value, list) or not value:
                raise FilterError(f"{field} needs a list of at least one filter, not {value!r}")
            parts.append(Group(field, tuple(_parse(part, depth + 1) for part in value)))
        elif not isinstance(field, str) or not field or field.startswith("$"):
            raise FilterError(f"{field!r} is not a field, and not $and or $or")
        elif isinstance(value, Mapping):
            if not value:
                raise FilterError(f"field {field!r} has no operator")
            parts += [_condition(field, operator, operand) for operator, operand in value.items()]
        else:
            parts.append(_condition(field, "$eq", value))
    return parts[0] if len(parts) == 1 else Group("$and", tuple(parts))


def _count_values(filter_: Filter) -> int:
    if isinstance(filter_, Group):
        return sum(map(_count_values, filter_.filters))
    return len(filter_.operand) if isinstance(filter_.operand, tuple) else 1


def _condition(field: str, operator: Any, operand: Any) -> Condition:
    def wrong(expected: str) -> FilterError:
        return FilterError(f"{operator} of field {field!r} needs {expected}, not {operand!r}")

    match operator:
        case "$eq" | "$ne":
            if not (isinstance(operand, str | bool) or _is_number(operand)):
                raise wrong("a string, a finite number or a boolean")
        case "$gt" | "$gte" | "$lt" | "$lte":
            if not _is_number(operand):
                raise wrong("a finite number")
        case "$in" | "$nin":
            if (
                not isinstance(operand, list)
                or not operand
                or not all(isinstance(item, str) or _is_number(item) for item in operand)
            ):
                raise wrong("a list of at least one string or finite number")
            operand = tuple(operand)
        case "$exists":
            if not isinstance(operand, bool):
                raise wrong("true or false")
        case _:
            raise FilterError(
                f"{operator!r} of field {field!r} is not an operator: known are $eq $ne $gt $gte "
                "$lt $lte $in $nin $exists, and $and $or around fields"
            )
    return Condition(field, operator, operand)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
