"""Text that comes from outside, such as names of files: on one line where it is shown, harmless in a spreadsheet."""

from __future__ import annotations

import re
from collections.abc import Sequence

_RUNNABLE = re.compile(r"'*[=+\-@\t\r]")
_ESCAPED = re.compile(r"'+[=+\-@\t\r]")

MOST_NAMED = 20
"""What a warning names before it counts the rest."""


def shown(text: str) -> str:
    """Text as one line that a terminal can show: line ends, control characters and broken bytes are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(texts: Sequence[str]) -> str:
    """Texts on one line, each as `shown`; of more than `MOST_NAMED` the rest is counted."""
    rest = len(texts) - MOST_NAMED
    return ", ".join(map(shown, texts[:MOST_NAMED])) + (f" and {rest:,} more" if rest > 0 else "")


def escape(text: str) -> str:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    return "'" + text if _RUNNABLE.match(text) else text


def unescape(text: str) -> str:
    """Undo `escape`."""
    return text[1:] if _ESCAPED.match(text) else text
