"""One colour-blind-safe palette (after Okabe and Ito); kinds and flags have the same colour everywhere."""

from __future__ import annotations

KIND_COLOURS = {"clean": "#0072B2", "mislabelled": "#E69F00", "ood": "#CC79A7", "flag": "#D55E00"}

CLASS_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A900", "#7A5195", "#8C6D4F", "#6B7280",
)  # fmt: skip
"""Colours of classes; they repeat after ten."""

SUSPICION = ("#3B4CC0", "#7FA6D6", "#D8D3C8", "#E59A6C", "#B40426")
"""Low to high suspicion: blue over grey to red, distinguishable without colour vision by lightness at both ends."""

VOTES = ("#9AA5B1", "#F0B35A", "#E0762F", "#D0342C", "#B02A7A", "#7B3FA0")
"""How many detectors flag a sample: none is grey, the more the darker, and none too dark for a dark page."""

SIDES = ("#009E73", "#9467BD")
"""Two encoders side by side, left and right; no kind of sample has these colours."""


def class_colours(count: int) -> tuple[str, ...]:
    """One colour per class."""
    return tuple(CLASS_COLOURS[i % len(CLASS_COLOURS)] for i in range(count))
