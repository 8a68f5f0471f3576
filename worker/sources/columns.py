"""Columns of tables as metadata: one type for each column, of those that every store takes."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

from image_search.values import LABEL_FIELD, THUMBNAIL_FIELD, MetadataValue

# What the worker sets itself, and what names of fields cannot be.
_RESERVED: Final = {LABEL_FIELD, THUMBNAIL_FIELD, "source", "path", "sha256", ""}
_WHOLE: Final = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER: Final = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
_MAX_WHOLE: Final = 2**63

Row = Mapping[str, object]


class Columns:
    """The types of columns, learnt from all rows.

    Whole numbers beside others are numbers; types that do not go together become text. Values that
    are empty are left out of a record, and columns of anything else, such as objects, altogether.
    """

    def __init__(self, without: Iterable[str]) -> None:
        self._without = {*_RESERVED, *without}
        self._types: dict[str, set[type]] = {}
        self.left_out: set[str] = set()

    def learn(self, row: Row) -> None:
        """Take the row into account."""
        for name, value in row.items():
            if value is None or value == "" or name in self._without:
                continue
            if name.startswith("$") or not _is_simple(value):
                self.left_out.add(name)
            else:
                self._types.setdefault(name, set()).add(type(value))

    @property
    def names(self) -> list[str]:
        """The columns that become metadata."""
        return sorted(self._types.keys() - self.left_out)

    def metadata(self, row: Row) -> dict[str, MetadataValue]:
        """The row's values, each in the type of its column."""
        return {
            name: _as_type(row[name], self._types[name])
            for name in self.names
            if row.get(name) is not None and row[name] != ""
        }


def parsed(text: str) -> object:
    """What the text of a CSV file stands for: a number, true or false, or itself."""
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def _is_simple(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < _MAX_WHOLE
    return isinstance(value, str)


def _as_type(value: object, types: set[type]) -> MetadataValue:
    if types == {int, float}:
        return float(value)  # type: ignore[arg-type]
    if len(types) == 1:
        return value  # type: ignore[return-value]
    if isinstance(value, list):
        return ", ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
