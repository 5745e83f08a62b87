"""The map as a figure, for notebooks and reports (the app draws its own, which keeps zoom and selection)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from .palette import SUSPICION, class_colours


def scatter(
    xy: NDArray[np.floating],
    values: NDArray[np.generic],
    names: Sequence[str] = (),
    colours: Sequence[str] = (),
    *,
    title: str = "",
    hover: Sequence[str] | None = None,
    size: float = 4,
) -> go.Figure:
    """A map: one point a sample.

    Args:
        xy: (N, 2) coordinates.
        values: (N,) codes into ``names``, or, without names, numbers on a scale.
        names: of the categories; empty = a continuous scale.
        colours: one a category, or the stops of the scale; default: the project's palette.
        title: of the figure.
        hover: N texts.
        size: of a point in pixels.

    Returns:
        A figure with one WebGL trace a category that occurs, or a single one on a scale.
    """
    figure = go.Figure()
    text = None if hover is None else np.asarray(hover, dtype=object)
    if names:
        palette = tuple(colours) or class_colours(len(names))
        for code, name in enumerate(names):
            rows = np.flatnonzero(values == code)
            if len(rows):
                figure.add_scattergl(
                    x=xy[rows, 0], y=xy[rows, 1], mode="markers", name=name, customdata=rows,
                    marker={"size": size, "color": palette[code % len(palette)], "opacity": 0.8},
                    text=None if text is None else text[rows], hoverinfo="text+name" if text is not None else "name",
                )  # fmt: skip
    else:
        stops = tuple(colours) or SUSPICION
        scale = [[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)]
        marker = {"size": size, "color": values, "colorscale": scale, "showscale": True, "opacity": 0.8}
        figure.add_scattergl(
            x=xy[:, 0], y=xy[:, 1], mode="markers", marker=marker, customdata=np.arange(len(xy)),
            text=text, hoverinfo="text" if text is not None else "none", showlegend=False,
        )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    figure.update_layout(
        title=title, height=560, margin={"l": 0, "r": 0, "t": 40 if title else 0, "b": 0}, template="plotly_white",
        legend={"itemsizing": "constant", "orientation": "h", "y": 0},
    )  # fmt: skip
    return figure
