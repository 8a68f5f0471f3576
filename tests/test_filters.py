"""Filters that are not valid are refused before any store is asked."""

from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator

from image_search.errors import FilterError
from image_search.filters import (
    FILTER_SCHEMA,
    MAX_DEPTH,
    MAX_VALUES,
    OPERATORS,
    Condition,
    Group,
    parse_filter,
)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"a": {"$near": 1}}, r"'\$near' of field 'a' is not an operator"),
        ({"a": {"eq": 1}}, "'eq' of field 'a' is not an operator"),
        ({"$not": [{"a": 1}]}, r"'\$not' is not a field"),
        ({"": 1}, "'' is not a field"),
        ({"a": {}}, "field 'a' has no operator"),
        ({"a": None}, "needs a string, a finite number or a boolean, not None"),
        ({"a": ["x"]}, "needs a string"),
        ({"a": {"$eq": {"b": 1}}}, "needs a string"),
        ({"a": {"$eq": float("nan")}}, "finite"),
        ({"a": {"$gt": "5"}}, "needs a finite number or a date such as 2024-07-14, not '5'"),
        ({"a": {"$lte": True}}, "needs a finite number or a date such as 2024-07-14, not True"),
        ({"a": {"$lt": float("inf")}}, "finite"),
        ({"a": 10**400}, "finite"),
        ({"a": {"$in": "x"}}, "needs a list"),
        ({"a": {"$in": []}}, "at least one"),
        ({"a": {"$nin": [True]}}, "needs a list of at least one string or finite number"),
        ({"a": {"$exists": 1}}, "needs true or false"),
        ({"$and": []}, r"\$and needs a list of at least one filter"),
        ({"$or": {"a": 1}}, r"\$or needs a list"),
        ({"$or": [{}]}, "at least one field"),
        ({"$and": ["a"]}, "at least one field"),
        (["a"], "a filter is an object"),
        ("a", "a filter is an object"),
    ],
)
def test_what_is_wrong_is_named(source: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_filter(source)


def test_nesting_has_a_limit() -> None:
    def nested(levels: int) -> Any:
        return {"a": 1} if levels == 1 else {"$and": [nested(levels - 1)]}

    assert parse_filter(nested(MAX_DEPTH)) is not None
    with pytest.raises(FilterError, match="deeper than 8 levels"):
        parse_filter(nested(MAX_DEPTH + 1))


def test_short_forms_mean_the_long_ones() -> None:
    assert parse_filter({}) is None
    assert parse_filter({"a": "x"}) == Condition("a", "$eq", "x")
    assert parse_filter({"a": {"$gte": 1, "$lt": 2}, "b": 5}) == Group(
        "$and",
        (Condition("a", "$gte", 1), Condition("a", "$lt", 2), Condition("b", "$eq", 5)),
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01", 0),
        ("2024-02-29", 1709164800),
        ("1969-12-31", -86400),
        ("2024-07-14T18:03:22", 1720980202),
        ("2024-07-14T18:03:22Z", 1720980202),
        ("2024-07-14T20:03:22+02:00", 1720980202),
        ("2024-07-14T18:03:22.500Z", 1720980202.5),
        ("0001-01-01T00:00:00+23:59", -62135683140),
    ],
)
def test_dates_stand_for_seconds_where_order_counts(text: str, seconds: float) -> None:
    for operator in ("$gt", "$gte", "$lt", "$lte"):
        assert parse_filter({"taken": {operator: text}}) == Condition("taken", operator, seconds)
    assert parse_filter({"taken": text}) == Condition("taken", "$eq", text)
    assert OAS31Validator(FILTER_SCHEMA).is_valid({"taken": {"$gte": text}})


@pytest.mark.parametrize(
    "text", ["2023-02-29", "2024", "2024-7-1", "20240701", "2024-07-01x", "2024-07-01T25:00:00"]
)
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(FilterError, match="a date such as 2024-07-14"):
        parse_filter({"taken": {"$gte": text}})


def test_values_have_a_limit() -> None:
    half: Any = {"a": {"$in": list(range(MAX_VALUES // 2))}}
    assert parse_filter({"$or": [half, half]}) is not None
    for more in ({"b": 1}, {"b": {"$nin": ["x"]}}):
        with pytest.raises(FilterError, match="1,001 values"):
            parse_filter({"$or": [half, half, more]})


@pytest.mark.parametrize(
    "source",
    [
        ["x" * 10_000],
        {"a": {"x" * 10_000: 1}},
        {"a" * 10_000: None},
        {"a": [["x" * 100] * 100] * 100},
        {"$and": "x" * 10_000},
        {"$" + "x" * 10_000: 1},
    ],
)
def test_a_message_quotes_at_most_a_line(source: Any) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(source)
    assert len(str(caught.value)) < 300


def test_a_huge_filter_is_refused_before_all_of_it_is_read() -> None:
    class Part(dict[str, Any]):
        read = 0

        def items(self) -> Any:
            Part.read += 1
            return super().items()

    with pytest.raises(FilterError, match="1,001 values"):
        parse_filter({"$or": [Part(a=1)] * 100_000})
    assert Part.read == MAX_VALUES + 1


def test_the_schema_accepts_what_the_parser_does() -> None:
    validator = OAS31Validator(FILTER_SCHEMA)
    operands: list[Any] = ["x", 1, 2.5, True, None, [], ["x", 1], [True], {}, [None]]
    for operator in (*OPERATORS, "$near", "eq"):
        for operand in operands:
            source = {"a": {operator: operand}}
            for form in (source, {"$and": [source]}, {"$or": [source]}):
                try:
                    parse_filter(form)
                except FilterError:
                    accepted = False
                else:
                    accepted = True
                assert validator.is_valid(form) == accepted, form
