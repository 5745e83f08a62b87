"""The map as a figure, for notebooks and reports (the app draws its own, which keeps zoom and selection)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from .palette import FAINT, SUSPICION, class_colours, on_scale, steps
from .thinning import MOST, POINTS, density, thin, told


def scatter(
    xy: NDArray[np.floating],
    values: NDArray[np.generic],
    names: Sequence[str] = (),
    colours: Sequence[str] = (),
    *,
    title: str = "",
    hover: Sequence[str] | None = None,
    size: float = 4,
    suspicion: NDArray[np.floating] | None = None,
    most: int = MOST,
) -> go.Figure:
    """A map: one point a sample. Of more than ``most`` samples some are points, the others a density picture.

    Args:
        xy: (N, 2) coordinates.
        values: (N,) codes into ``names``, or, without names, numbers on a scale.
        names: of the categories; empty = a continuous scale.
        colours: one a category, or the stops of the scale; default: the project's palette.
        title: of the figure.
        hover: N texts.
        size: of a point in pixels.
        suspicion: (N,) which samples stay points where there are too many: the highest; None = a random draw.
        most: so many samples are all points.

    Returns:
        A figure with one WebGL trace a category that occurs, or a single one on a scale. A thinned one says so.
    """
    figure = go.Figure()
    shown = thin(np.zeros(len(xy), bool), suspicion, most=most, points=min(POINTS, most))
    points = np.arange(len(xy)) if shown is None else shown
    if shown is not None:
        _underlay(figure, xy, values, names, colours, shown)
        _tell(figure, told(len(xy), shown, np.zeros(len(xy), bool), suspicion is not None))
    text = None if hover is None else np.asarray(hover, dtype=object)
    if names:
        palette = tuple(colours) or class_colours(len(names))
        for code, name in enumerate(names):
            rows = points[values[points] == code]
            if len(rows):
                figure.add_scattergl(
                    x=xy[rows, 0], y=xy[rows, 1], mode="markers", name=name, customdata=rows,
                    marker={"size": size, "color": palette[code % len(palette)], "opacity": 0.8},
                    text=None if text is None else text[rows], hoverinfo="text+name" if text is not None else "name",
                )  # fmt: skip
    else:
        stops = tuple(colours) or SUSPICION
        scale = [[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)]
        marker = {"size": size, "color": values[points], "colorscale": scale, "showscale": True, "opacity": 0.8}
        figure.add_scattergl(
            x=xy[points, 0], y=xy[points, 1], mode="markers", marker=marker, customdata=points,
            text=None if text is None else text[points], hoverinfo="text" if text is not None else "none",
            showlegend=False,
        )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    figure.update_layout(
        title=title, height=560, margin={"l": 0, "r": 0, "t": 40 if title else 0, "b": 0}, template="plotly_white",
        legend={"itemsizing": "constant", "orientation": "h", "y": 0},
    )  # fmt: skip
    return figure


def _underlay(
    figure: go.Figure,
    xy: NDArray[np.floating],
    values: NDArray[Any],
    names: Sequence[str],
    colours: Sequence[str],
    shown: NDArray[np.int64],
) -> None:
    """The samples that are not points, as a picture below them."""
    rest = np.ones(len(xy), bool)
    rest[shown] = False
    code: NDArray[np.integer[Any]]
    if names:
        palette = tuple(colours) or class_colours(len(names))
        code, lit = values.astype(np.int64) % len(palette), np.asarray(values >= 0)
    else:
        palette = steps(tuple(colours) or SUSPICION)
        code, lit, _ = on_scale(values)
    seen = density(xy[rest], code[rest], palette, lit[rest])
    left, low, right, high = seen.bounds
    figure.add_layout_image(
        source=f"data:image/png;base64,{base64.b64encode(seen.picture(FAINT)).decode()}", xref="x", yref="y",
        x=left, y=high, sizex=right - left, sizey=high - low, sizing="stretch", layer="below",
    )  # fmt: skip


def _tell(figure: go.Figure, words: str) -> None:
    figure.add_annotation(
        text=words.partition(". ")[0], xref="paper", yref="paper", x=0, y=1, xanchor="left", yanchor="top",
        showarrow=False, font={"size": 11},
    )  # fmt: skip
