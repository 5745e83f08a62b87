"""Methods are found, never listed: every module of a family's folder, then the entry points."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from .card import MethodCard

FAMILIES = {"detector": "detectors", "loss": "losses", "trainer": "trainers"}


@cache
def methods(kind: str) -> dict[str, Any]:
    """All classes of one family, by slug, in the order of their slugs.

    A module that cannot be imported, or two classes under one slug, is an error: a method never
    vanishes silently.

    Args:
        kind: ``"detector"``, ``"loss"`` or ``"trainer"``.

    Returns:
        slug -> class; each class carries its ``card``.
    """
    package = importlib.import_module(f"chaffinch.{FAMILIES[kind]}")
    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}")
        for info in pkgutil.iter_modules(package.__path__)
        if not info.name.startswith("_")
    ]
    classes: list[Any] = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and isinstance(getattr(value, "card", None), MethodCard)
    ]
    classes += [point.load() for point in entry_points(group=f"chaffinch.{FAMILIES[kind]}")]
    found: dict[str, Any] = {}
    for cls in classes:
        slug = cls.card.slug
        if slug in found and found[slug] is not cls:
            raise TypeError(
                f"two methods of kind {kind} are called {slug!r}: {found[slug].__module__} and {cls.__module__}"
            )
        found[slug] = cls
    return dict(sorted(found.items()))


def get(kind: str, slug: str) -> Any:
    """The class behind a slug; a typo is answered with the nearest names.

    Raises:
        KeyError: no such method; the message names the close ones.
    """
    found = methods(kind)
    if slug in found:
        return found[slug]
    near = get_close_matches(slug, found, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(found)}"
    raise KeyError(f"there is no {kind} called {slug!r}; {hint}")
