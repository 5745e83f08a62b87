"""What one detector makes of a dataset: a small map of suspicion, and its scores for each kind of sample."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from ..card import KINDS
from .palette import KIND_COLOURS, SUSPICION

Array = NDArray[np.float64]

KIND_NAMES = {"clean": "clean", "mislabelled": "wrong labels", "ood": "foreign pictures"}
LINE = "#8A94A0"


def suspicion_map(xy: NDArray[np.floating], ranks: Array) -> go.Figure:
    """A small map, one point a sample, coloured by how many samples are less suspicious.

    Args:
        xy: (N, 2) coordinates.
        ranks: (N,) 0 to 1, the share of samples that are less suspicious.
    """
    scale = [[i / (len(SUSPICION) - 1), colour] for i, colour in enumerate(SUSPICION)]
    bar = {
        "orientation": "h", "y": 0, "yanchor": "top", "thickness": 8, "len": 0.9, "outlinewidth": 0,
        "tickvals": [0.13, 0.87], "ticktext": ["least suspicious", "most suspicious"], "ticklen": 0,
    }  # fmt: skip
    figure = go.Figure()
    figure.add_scattergl(
        x=xy[:, 0], y=xy[:, 1], mode="markers", hoverinfo="skip", showlegend=False,
        marker={"size": 3, "color": ranks, "colorscale": scale, "cmin": 0, "cmax": 1, "colorbar": bar},
    )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return _laid_out(figure)


def score_outlines(scores: Array, kind: NDArray[np.int8], cut: float) -> go.Figure:
    """How the scores of each kind of sample are spread, as outlines of equal area, and where the detector cuts.

    Args:
        scores: (N,) higher = more suspicious.
        kind: (N,) codes of `chaffinch.card.KINDS`.
        cut: the score above which the detector's own rule flags.
    """
    edges = steps(scores, cut)
    inside = scores.clip(edges[0], edges[-1])
    figure = go.Figure()
    top = 0.0
    for code, name in enumerate(KINDS):
        of_kind = inside[kind == code]
        if len(of_kind):
            share = np.histogram(of_kind, edges)[0] / len(of_kind)
            top = max(top, float(share.max()))
            figure.add_scatter(
                x=np.repeat(edges, 2), y=np.concatenate([[0], np.repeat(share, 2), [0]]), mode="lines",
                name=f"{KIND_NAMES[name]} ({len(of_kind):,})", hoverinfo="skip", fill="tozeroy",
                line={"color": KIND_COLOURS[name], "width": 2}, fillcolor=faint(KIND_COLOURS[name]),
            )  # fmt: skip
    at = float(np.clip(cut, edges[0], edges[-1]))
    figure.add_scatter(
        x=[at, at], y=[0, 1.08 * top], mode="lines", name="its own cut", hoverinfo="skip",
        line={"color": LINE, "width": 2, "dash": "dash"},
    )  # fmt: skip
    figure.update_xaxes(title="score (more suspicious to the right)", zeroline=False, showgrid=False)
    figure.update_yaxes(title="share of the kind", tickformat=".0%", rangemode="tozero", nticks=4)
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "itemsizing": "constant"})
    return _laid_out(figure)


def steps(scores: Array, cut: float, most: int = 30) -> Array:
    """Edges of the steps of a histogram.

    Few distinct values get a step each. Otherwise the steps are equal and span all but the half per cent at either
    end of the scores, and the cut; what lies beyond belongs into the outermost ones.

    Args:
        scores: (N,) any finite values.
        cut: a value to show as well.
        most: how many steps.
    """
    values = np.unique(scores)
    if len(values) == 1:
        return np.array([values[0] - 0.5, values[0] + 0.5])
    if len(values) <= most:
        middle = (values[1:] + values[:-1]) / 2
        return np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])
    low, high = np.quantile(scores, [0.005, 0.995])
    low, high = min(low, cut), max(high, cut)
    if low == high:
        low, high = values[0], values[-1]
    return np.linspace(low, high, most + 1)


def faint(colour: str, strength: float = 0.15) -> str:
    """A colour to fill with: the lines on top must stay visible where the fills of three kinds overlap."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{strength})"


def _laid_out(figure: go.Figure) -> go.Figure:
    """Small, transparent, and not to be dragged: a finger on it scrolls the page."""
    return figure.update_layout(
        height=320, margin={"l": 0, "r": 0, "t": 8, "b": 8}, dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
    )  # fmt: skip
