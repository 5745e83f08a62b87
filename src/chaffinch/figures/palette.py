"""One colour-blind-safe palette (after Okabe and Ito); kinds and flags have the same colour everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

KIND_COLOURS = {"clean": "#0072B2", "mislabelled": "#E69F00", "ood": "#CC79A7", "flag": "#D55E00"}

CLASS_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A900", "#7A5195", "#8C6D4F", "#6B7280",
)  # fmt: skip
"""Colours of classes; they repeat after ten."""

SUSPICION = ("#3B4CC0", "#7FA6D6", "#D8D3C8", "#E59A6C", "#B40426")
"""Low to high suspicion: blue over grey to red, distinguishable without colour vision by lightness at both ends."""

VOTES = ("#9AA5B1", "#F0B35A", "#E0762F", "#D0342C", "#B02A7A", "#7B3FA0")
"""How many detectors flag a sample: none is grey, the more the darker, and none too dark for a dark page."""

FAINT = "#B4BAC2"
"""Grey of what has no colour in a figure on white; the app mixes its own from the page's theme."""

SIDES = ("#009E73", "#9467BD")
"""Two encoders side by side, left and right; no kind of sample has these colours."""


def class_colours(count: int) -> tuple[str, ...]:
    """One colour per class."""
    return tuple(CLASS_COLOURS[i % len(CLASS_COLOURS)] for i in range(count))


def on_scale(
    values: NDArray[Any], span: tuple[float, float] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[float, float]]:
    """Numbers as steps (N,) of 256 on a scale, which of them are finite (N,), and the ends of the scale.

    Args:
        values: (N,).
        span: ends of the scale; None = the least and the largest finite value.
    """
    there = np.isfinite(values)
    found = (float(values[there].min()), float(values[there].max())) if there.any() else (0.0, 1.0)
    low, high = span or found
    step = np.where(there, (values - low) * (255 / ((high - low) or 1.0)), 0).clip(0, 255)
    return step.round().astype(np.uint8), there, (low, high)


def steps(stops: Sequence[str]) -> tuple[str, ...]:
    """256 colours on a scale between some stops."""
    parts = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops], float)
    at = np.linspace(0, len(stops) - 1, 256)
    mixed = np.stack([np.interp(at, np.arange(len(stops)), channel) for channel in parts.T], axis=1)
    return tuple(f"#{r:02X}{g:02X}{b:02X}" for r, g, b in mixed.round().astype(int).tolist())
