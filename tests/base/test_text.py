"""Text from outside is shown on one line, and what it says can still be read."""

import pytest

from chaffinch.base.text import shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cat/naïve 雀 🐦.png", "cat/naïve 雀 🐦.png"),
        ("two\nlines\r\tand a tab", "two\\nlines\\r\\tand a tab"),
        ("\x1b[2J", "\\x1b[2J"),
        ("broken \udcff byte", "broken \\udcff byte"),
        ("turned \u202e round", "turned \\u202e round"),
        ("", ""),
    ],
)
def test_what_would_move_the_cursor_is_spelled_out(text, line):
    assert shown(text) == line
    assert shown(text).isprintable()
