"""Methods by name, and what they can be told."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_type_hints

from .. import registry
from .errors import InputError


def find_method(kind: str, slug: str) -> Any:
    """The class of a method.

    Raises:
        InputError: no such method; the message names the close ones.
    """
    try:
        return registry.get(kind, slug)
    except KeyError as error:
        raise InputError(str(error.args[0])) from error


def parameter_kinds(method: Any) -> dict[str, Any]:
    """The annotations of a method's parameters, by name; none where they name what is not there at run time."""
    try:
        return get_type_hints(method.__init__)
    except NameError:
        return {}


def method_options(method: Any, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every parameter of a method: the given ones, and the defaults of the rest.

    Args:
        method: its class.
        given: name -> value; a text is read as the type of the default.

    Raises:
        InputError: no such parameter, or a text that is not of its type.
    """
    signature = inspect.signature(method.__init__).parameters
    found = {name: p.default for name, p in signature.items() if p.default is not inspect.Parameter.empty}
    slug = method.card.slug
    for name, value in (given or {}).items():
        if name not in found:
            near = get_close_matches(name, found, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(found) or 'none'}"
            raise InputError(f"{slug} has no parameter {name!r}; {hint}")
        kind = type(found[name])
        if isinstance(value, str) and kind is bool:
            if value.lower() not in ("true", "false"):
                raise InputError(f"{slug}: {name} must be true or false, got {value!r}")
            value = value.lower() == "true"
        try:
            if kind is int and isinstance(value, float) and not value.is_integer():
                raise ValueError("not a whole number")
            found[name] = value if found[name] is None else kind(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{slug}: {name} must be {kind.__name__}, got {value!r}") from error
    return found
