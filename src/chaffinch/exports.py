"""Tables on disk: Parquet as it is, CSV safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pandas as pd

from .base.errors import InputError
from .base.files import replacing
from .base.text import escape, unescape

FORMATS = (".parquet", ".csv")
_TEXT = re.compile(
    r"(id|kind|(.+_)?label|(.+_)?suggestion|filepath|ground_truth|tags|action|action_by|decision|who|when|reason|issues|why"
    r"|duplicate_of)$"
)
"""Columns that are text in a CSV even if every cell looks like a number or is empty."""


def to_csv(table: pd.DataFrame) -> str:
    """CSV text of a table, texts and column names escaped."""
    safe = table.rename(columns=escape).copy()
    for name in safe.select_dtypes(include=["object", "string", "str"]):
        safe[name] = safe[name].map(lambda value: escape(value) if isinstance(value, str) else value)
    # all texts in quotes: otherwise a lone carriage return in one would end the row
    return safe.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as ``.parquet`` or ``.csv``, whole or not at all.

    Raises:
        InputError: another ending, or the folder cannot be written.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: the file name must end in {' or '.join(FORMATS)}")
    try:
        with replacing(path) as temporary:
            if path.suffix == ".csv":
                temporary.write_bytes(to_csv(table).encode())
            else:
                table.to_parquet(temporary, index=False)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def read_table(path: Path) -> pd.DataFrame:
    """Read what `write_table` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        names = pd.read_csv(path, nrows=0).columns
        texts = {name: str for name in names if _TEXT.match(unescape(name))}
        gaps = {name: [""] for name in names if name not in texts}
        table = pd.read_csv(path, keep_default_na=False, na_values=gaps, dtype=texts).rename(columns=unescape)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from error
    for name in table.select_dtypes(include=["object", "string", "str"]):
        table[name] = table[name].map(lambda value: unescape(value) if isinstance(value, str) else value)
    return table
