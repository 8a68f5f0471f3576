"""Metadata filters in Pinecone's grammar.

`{"label": "cat", "year": {"$gte": 2020}}`: fields, and several operators on one field, are ANDed;
a bare value means `$eq`; a list-valued field matches when any of its elements does. `$ne` and
`$nin` are the opposites of `$eq` and `$in`, so they match records without the field, too.
Source: Pinecone's documentation, "Filter by metadata". Beyond it, `$gt`, `$gte`, `$lt` and `$lte`
take dates: `{"taken": {"$gte": "2024-07-01"}}` stands for its seconds since 1970.
"""

import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from image_search.errors import FilterError
from image_search.values import Scalar

_Equality = Literal["$eq", "$ne"]
_Order = Literal["$gt", "$gte", "$lt", "$lte"]
_Membership = Literal["$in", "$nin"]
_Existence = Literal["$exists"]
Operator = Literal[_Equality, _Order, _Membership, _Existence]
Junction = Literal["$and", "$or"]

OPERATORS: Final[tuple[Operator, ...]] = get_args(Operator)
JUNCTIONS: Final[tuple[Junction, ...]] = get_args(Junction)

MAX_DEPTH: Final = 8
# Stores take seconds for more.
MAX_VALUES: Final = 1000
_QUOTED: Final = 80
# Of ISO 8601 what RFC 3339 has, and times without an offset.
_DAY: Final = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME: Final = (
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
    "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])?"
)
_DATE: Final = re.compile(f"{_DAY}({_TIME})?")


@dataclass(frozen=True)
class Condition:
    """One operator on one field; `operand` is a tuple for `$in` and `$nin`."""

    field: str
    operator: Operator
    operand: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True)
class Group:
    """Filters joined by `$and` or `$or`; at least one."""

    operator: Junction
    filters: "tuple[Filter, ...]"


Filter = Condition | Group


def parse_filter(source: Any) -> Filter | None:
    """Check a filter as it comes from JSON; None for an empty one.

    Raises FilterError for an unknown operator, an operand of the wrong type, more than 8 levels of
    nesting, or more than 1,000 values.
    """
    return None if source == {} else _Parser().parse(source, depth=1)


def chooses_by(filter_: Filter | None, field: str) -> bool:
    """Whether the filter compares the values of `field`; that there is one does not count."""
    if isinstance(filter_, Group):
        return any(chooses_by(part, field) for part in filter_.filters)
    return filter_ is not None and filter_.field == field and filter_.operator != "$exists"


class _Parser:
    """Parses one filter. Limits are checked on the way, so that a huge one costs little."""

    def __init__(self) -> None:
        self._values = 0

    def parse(self, source: Any, depth: int) -> Filter:
        if not isinstance(source, Mapping) or not source:
            raise FilterError(
                f"a filter is an object with at least one field, not {_quoted(source)}"
            )
        if depth > MAX_DEPTH:
            raise FilterError(f"the filter is nested deeper than {MAX_DEPTH} levels")
        parts: list[Filter] = []
        for field, value in source.items():
            if field in JUNCTIONS:
                if not isinstance(value, list) or not value:
                    raise FilterError(
                        f"{field} needs a list of at least one filter, not {_quoted(value)}"
                    )
                parts.append(Group(field, tuple(self.parse(part, depth + 1) for part in value)))
            elif not isinstance(field, str) or not field or field.startswith("$"):
                raise FilterError(
                    f"{_quoted(field)} is not a field, and not {' or '.join(JUNCTIONS)}"
                )
            elif isinstance(value, Mapping):
                if not value:
                    raise FilterError(f"field {_quoted(field)} has no operator")
                parts += [self._condition(field, *item) for item in value.items()]
            else:
                parts.append(self._condition(field, "$eq", value))
        return parts[0] if len(parts) == 1 else Group("$and", tuple(parts))

    def _condition(self, field: str, operator: Any, operand: Any) -> Condition:
        expected = _OPERANDS.get(operator)
        if expected is None:
            raise FilterError(
                f"{_quoted(operator)} of field {_quoted(field)} is not an operator: known are "
                f"{' '.join(OPERATORS)}, and {' and '.join(JUNCTIONS)} around fields"
            )
        self._values += len(operand) if isinstance(operand, list) else 1
        if self._values > MAX_VALUES:
            raise FilterError(
                f"the filter has {self._values:,} values, which is more than {MAX_VALUES:,}"
            )
        if not expected.accepts(operand):
            raise FilterError(
                f"{operator} of field {_quoted(field)} needs {expected.name}, "
                f"not {_quoted(operand)}"
            )
        if isinstance(operand, str) and operator in get_args(_Order):
            operand = _seconds(operand)
        return Condition(field, operator, tuple(operand) if isinstance(operand, list) else operand)


def _quoted(value: Any) -> str:
    """What messages quote: a line at most, however much it is."""
    text = reprlib.repr(value)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def _is_number(value: Any) -> bool:
    # NaN is less than nothing, and an integer may be more than any float.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _seconds(text: str) -> float | None:
    """Seconds since 1970 of a date, and maybe time, in ISO 8601; None for other text.

    Without a time it is midnight, and without an offset UTC.
    """
    if not _DATE.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _is_number_or_date(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, str) and _seconds(value) is not None)


def _is_text_or_number(value: Any) -> bool:
    return isinstance(value, str) or _is_number(value)


@dataclass(frozen=True)
class _Operand:
    """What an operator takes: for messages, for the parser, and in JSON Schema."""

    name: str
    accepts: Callable[[Any], bool]
    schema: Mapping[str, Any]


_SCALAR: Final = _Operand(
    "a string, a finite number or a boolean",
    lambda value: isinstance(value, bool) or _is_text_or_number(value),
    {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]},
)
_NUMBER: Final = _Operand(
    "a finite number or a date such as 2024-07-14",
    _is_number_or_date,
    {
        "anyOf": [
            {"type": "number"},
            {"type": "string", "format": "date", "pattern": f"^{_DAY}$"},
            {"type": "string", "format": "date-time", "pattern": f"^{_DAY}{_TIME}$"},
        ]
    },
)
_VALUES: Final = _Operand(
    "a list of at least one string or finite number",
    lambda value: isinstance(value, list) and value != [] and all(map(_is_text_or_number, value)),
    {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [{"type": "string"}, {"type": "number"}]},
    },
)
_BOOLEAN: Final = _Operand(
    "true or false", lambda value: isinstance(value, bool), {"type": "boolean"}
)

_OPERANDS: Final[dict[Operator, _Operand]] = {
    **dict.fromkeys(get_args(_Equality), _SCALAR),
    **dict.fromkeys(get_args(_Order), _NUMBER),
    **dict.fromkeys(get_args(_Membership), _VALUES),
    **dict.fromkeys(get_args(_Existence), _BOOLEAN),
}

_CONDITIONS: Final = {
    "anyOf": [
        *_SCALAR.schema["anyOf"],
        {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": False,
            "properties": {operator: operand.schema for operator, operand in _OPERANDS.items()},
        },
    ]
}
# A filter within $and or $or; it may hold the two itself, which this leaves out.
_PART: Final = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": {"pattern": "^[^$]"},
    "additionalProperties": _CONDITIONS,
}
# The grammar in JSON Schema (draft 2020-12), for documents of the HTTP interface.
FILTER_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "propertyNames": {"pattern": "^([^$]|[$](and|or)$)"},
    "properties": {
        junction: {"type": "array", "minItems": 1, "items": _PART} for junction in JUNCTIONS
    },
    "additionalProperties": _CONDITIONS,
}
