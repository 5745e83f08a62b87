"""What a value read from JSON must look like, said by type annotations: one check for every kind of file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def misfit(value: Any, kind: Any, name: str = "") -> str:
    """What is wrong with a value, or nothing.

    Args:
        value: as JSON gives it.
        kind: an annotation: ``str``, ``int``, ``float``, ``bool``, ``None``, ``Any``, ``list``, ``tuple`` or
            ``Sequence`` (each a list in JSON), ``dict``, a union, a TypedDict, which may have further keys, or a
            dataclass, which may not.
        name: of the value, for the message.

    Returns:
        the first field that is not as it must be, and how it must be; empty if there is none.
    """
    origin, inside = get_origin(kind), get_args(kind)
    if origin is NotRequired:
        return misfit(value, inside[0], name)
    if origin in (UnionType, Union):
        fits = any(not misfit(value, one) for one in inside)
        return "" if fits else _must(name, " or ".join(_word(one) for one in inside), value)
    if is_typeddict(kind) or is_dataclass(kind):
        return _misfit_fields(value, kind, name) if isinstance(value, dict) else _must(name, _word(kind), value)
    if origin is dict and isinstance(value, dict):
        return _first(misfit(part, inside[1], _of(name, key)) for key, part in value.items())
    if origin in (list, tuple, Sequence) and isinstance(value, list):
        kinds = inside if origin is tuple and inside[-1] is not ... else inside[:1] * len(value)
        if len(kinds) != len(value):
            return _must(name, f"a list of {len(kinds)}", value)
        return _first(misfit(part, one, f"{name}[{i}]") for i, (part, one) in enumerate(zip(value, kinds, strict=True)))
    fits = kind is Any or type(value) is kind or (kind is float and type(value) is int)
    return "" if fits else _must(name, _word(kind), value)


def _misfit_fields(value: Mapping[str, Any], kind: Any, name: str) -> str:
    hints = _hints(kind)
    if is_typeddict(kind):
        needed = {key for key, hint in hints.items() if kind.__total__ and get_origin(hint) is not NotRequired}
    else:
        needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        if unknown := sorted(set(value) - set(hints)):
            return f"{_of(name, unknown[0])} is not known"
    if missing := [key for key in hints if key in needed and key not in value]:
        return f"{_of(name, missing[0])} is missing"
    return _first(misfit(value[key], hints[key], _of(name, key)) for key in hints if key in value)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")


def _of(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _word(kind: Any) -> str:
    return _WORDS.get(kind) or ("a list" if get_origin(kind) in (list, tuple, Sequence) else "an object")


def _must(name: str, word: str, value: Any) -> str:
    return f"{name or 'it'} must be {word}, got {value!r:.60}"
