"""What a map draws of more samples than a browser moves smoothly: the most suspicious, and a density picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 50_000
"""Samples that a map draws as points, if there are no more. In a browser without a graphics card a step of a drag took,
on a busy machine, 0.13 s with 10,000 points, 0.2 s with 20,000, 0.36 s with 50,000 and 0.66 s with 100,000."""

POINTS = 10_000
"""Points that a map draws of more samples than that; twice as many would hide the density picture."""

FINEST = 512
"""Cells along the longer side of a density picture, at most."""

FAINTEST, DENSEST = 84, 235
"""Opacity, of 255, of a cell with one sample and of a full one."""


def thin(
    flagged: NDArray[np.bool_],
    suspicion: NDArray[np.floating] | None = None,
    *,
    most: int = MOST,
    points: int = POINTS,
    seed: int = 0,
) -> NDArray[np.int64] | None:
    """Which samples a map draws one by one where there are too many: flagged ones first, then the most suspicious.

    Args:
        flagged: (N,) bool.
        suspicion: (N,) higher = more suspicious; None = nobody knows, a random draw.
        most: so many samples are all drawn.
        points: how many are drawn of more.
        seed: of the draw, which also decides between equally suspicious ones.

    Returns:
        sorted positions, or None if all are drawn.
    """
    n = len(flagged)
    if n <= most:
        return None
    order = np.random.default_rng(seed).permutation(n)
    keys = (~flagged[order],) if suspicion is None else (-suspicion[order], ~flagged[order])
    return np.sort(order[np.lexsort(keys)[:points]])


def told(n: int, shown: NDArray[np.int64] | None, flagged: NDArray[np.bool_], ranked: bool = True) -> str:
    """One line on what a thinned map shows; empty where all samples are drawn.

    Args:
        n: number of samples.
        shown: positions of those drawn one by one, from `thin`.
        flagged: (N,) bool.
        ranked: were they chosen by suspicion?
    """
    if shown is None:
        return ""
    inside = int(flagged[shown].sum())
    which = "the most suspicious" if ranked else "a random draw"
    if ranked and flagged.any():
        total = int(flagged.sum())
        which += f" ({inside:,} of {total:,} flagged ones)" if inside < total else f" (all {total:,} flagged ones)"
    return (
        f"Showing {len(shown):,} of {n:,} points: {which}; the rest as density, in the mean colour of its samples. "
        "An outline selects all samples inside it, drawn or not; a click opens one that is drawn."
    )


@dataclass(frozen=True)
class Density:
    """How many samples lie where, as a picture.

    Attributes:
        colour: (H, W, 4) uint8 RGBA: mean colour of the coloured samples of a cell; the more samples, the more opaque.
        grey: (H, W) uint8 opacity of what the samples without a colour add; their grey is the page's.
        bounds: left, low, right, high edge of the picture on the map.
    """

    colour: NDArray[np.uint8]
    grey: NDArray[np.uint8]
    bounds: tuple[float, float, float, float]

    def picture(self, faint: str) -> bytes:
        """A PNG of it all, the samples without a colour in this grey."""
        grey, own = self.grey[..., None] / 255, self.colour[..., 3:] / 255
        mixed = (self.colour[..., :3] * own + _light(faint) * grey) / np.maximum(own + grey, 1e-9)
        return _png(np.concatenate([mixed, 255 * (own + grey)], axis=2).round().clip(0, 255).astype(np.uint8))

    def parts(self) -> bytes:
        """A PNG for a page that has a grey of its own: ``colour`` above, ``grey`` (as the opacity of black) below."""
        below = np.zeros_like(self.colour)
        below[..., 3] = self.grey
        return _png(np.vstack([self.colour, below]))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=4)
    return stream.getvalue()


def _light(colour: str) -> NDArray[np.float64]:
    """Red, green and blue (3,) of a hex colour, 0 to 255."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float)


def density(
    xy: NDArray[np.floating],
    code: NDArray[np.integer[Any]],
    palette: Sequence[str],
    lit: NDArray[np.bool_] | None = None,
    *,
    finest: int = FINEST,
) -> Density:
    """Draw samples as a density picture.

    A cell's opacity grows with the logarithm of its count, and is full where only 1 % of the cells have more. Colours
    are mixed as light, not as numbers, so that blue and orange do not turn to mud.

    Args:
        xy: (N, 2) positions; those that are not finite are left out.
        code: (N,) place of each sample's colour in the palette.
        palette: hex colours.
        lit: (N,) samples that have their colour; the others are grey. None = all.
        finest: cells along the longer side, at most; few samples get fewer.
    """
    there = np.isfinite(xy).all(axis=1)
    everyone = bool(there.all())
    xy, code = (xy, code) if everyone else (xy[there], code[there])
    lit = np.ones(len(xy), bool) if lit is None else lit if everyone else lit[there]
    if not len(xy):
        return Density(np.zeros((1, 1, 4), np.uint8), np.zeros((1, 1), np.uint8), (0.0, 0.0, 1.0, 1.0))
    low, high = xy.min(axis=0).astype(float), xy.max(axis=0).astype(float)
    cell = max(float((high - low).max()), 1e-9) / int(np.clip(np.sqrt(len(xy)) / 2, min(64, finest), finest))
    width, height = (int(side // cell) + 1 for side in high - low)
    column = ((xy[:, 0] - low[0]) / cell).astype(np.int64).clip(0, width - 1)
    row = ((high[1] - xy[:, 1]) / cell).astype(np.int64).clip(0, height - 1)  # the first row is the top
    place = row * width + column
    count = np.bincount(place, minlength=width * height)
    coloured = place[lit]
    bright = np.bincount(coloured, minlength=width * height)
    light = np.array([_light(name) for name in palette]) ** 2
    chosen = code[lit]
    mixed = [np.bincount(coloured, light[chosen, c], minlength=width * height) for c in range(3)]
    full = max(float(np.log1p(np.quantile(count[count > 0], 0.99))), np.log1p(1.5))
    grown = ((np.log1p(count) - np.log1p(1)) / (full - np.log1p(1))).clip(0, 1)
    opacity = np.where(count > 0, FAINTEST + (DENSEST - FAINTEST) * grown, 0)
    share = bright / np.maximum(count, 1)
    shades = [np.sqrt(channel / np.maximum(bright, 1)) for channel in mixed]
    colour = np.stack([*shades, opacity * share], axis=1).round().astype(np.uint8)
    grey = (opacity * (1 - share)).round().astype(np.uint8)
    bounds = (float(low[0]), float(high[1] - height * cell), float(low[0] + width * cell), float(high[1]))
    return Density(colour.reshape(height, width, 4), grey.reshape(height, width), bounds)
