"""Values read from JSON are compared with annotations, and the first misfit is named."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import pytest

from chaffinch.base.shapes import misfit


@dataclass
class Point:
    x: float
    tags: tuple[str, ...] = ()


class Map(TypedDict):
    points: list[Point]
    title: NotRequired[str | None]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a", str), (1, int), (1, float), (1.5, float), (True, bool), (None, Any), (None, int | None), (2, int | None),
        ([], list[int]), ([1, 2], Sequence[float]), ([0.1, 1], tuple[float, float]), ({"a": [1]}, dict[str, list[int]]),
        ({"x": 1}, Point), ({"x": 1, "tags": ["a"]}, Point), ({"points": [{"x": 1}], "title": None, "more": 1}, Map),
    ],
)  # fmt: skip
def test_what_fits(value, kind):
    assert misfit(value, kind) == ""


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (True, int, "it must be a whole number, got True"),
        (1.0, int, "it must be a whole number, got 1.0"),
        (True, float, "it must be a number, got True"),
        ("x", int | None, "it must be a whole number or null, got 'x'"),
        ({}, list[int], "it must be a list, got {}"),
        ([1, "x"], list[int], "[1] must be a whole number, got 'x'"),
        ([1], tuple[float, float], "it must be a list of 2, got [1]"),
        ({"a": {"b": "x"}}, dict[str, dict[str, int]], "a.b must be a whole number, got 'x'"),
        ([], Point, "it must be an object, got []"),
        ({}, Point, "x is missing"),
        ({"x": 1, "y": 2}, Point, "y is not known"),
        ({"points": [{"x": 1}, {"x": None}]}, Map, "points[1].x must be a number, got None"),
        ({"points": [], "title": 1}, Map, "title must be a text or null, got 1"),
        ({}, Map, "points is missing"),
        ("x" * 500, int, f"it must be a whole number, got '{'x' * 59}"),
    ],
)
def test_what_does_not(value, kind, message):
    assert misfit(value, kind) == message
