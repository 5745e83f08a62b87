"""Text that comes from outside, such as names of files: on one line where it is shown, harmless in a spreadsheet."""

from __future__ import annotations

import re

_RUNNABLE = re.compile(r"'*[=+\-@\t\r]")
_ESCAPED = re.compile(r"'+[=+\-@\t\r]")


def shown(text: str) -> str:
    """Text as one line that a terminal can show: line ends, control characters and broken bytes are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escape(text: str) -> str:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    return "'" + text if _RUNNABLE.match(text) else text


def unescape(text: str) -> str:
    """Undo `escape`."""
    return text[1:] if _ESCAPED.match(text) else text
