"""How a classifier learnt one sample, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from .comparison import FAINT, QUIET, laid_out
from .palette import KIND_COLOURS, SIDES


def course(
    loss: NDArray[np.floating], usual: NDArray[np.floating], flagged: NDArray[np.bool_], turns: Sequence[str]
) -> go.Figure:
    """The loss of one sample against its given label, over the middle half of all; crosses where it was flagged.

    Args:
        loss: (E,) after each epoch.
        usual: (E, 3) quartiles over all samples.
        flagged: (E,) was it flagged in that epoch?
        turns: E names, the detector whose flags were in force; "" where none.
    """
    epochs = np.arange(1, len(loss) + 1)
    low, middle, high = usual.T
    figure = go.Figure()
    quiet = {"hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=epochs, y=high, mode="lines", line_width=0, **quiet)
    figure.add_scatter(x=epochs, y=low, mode="lines", line_width=0, fill="tonexty", fillcolor=FAINT, **quiet)
    figure.add_scatter(
        x=epochs, y=middle, mode="lines", name="median of all", line={"color": QUIET, "width": 1, "dash": "dot"},
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=epochs, y=loss, mode="lines", name="this picture", line={"color": SIDES[0], "width": 2},
        hovertemplate="epoch %{x}: %{y:.3f}<extra></extra>",
    )  # fmt: skip
    if flagged.any():
        figure.add_scatter(
            x=epochs[flagged], y=loss[flagged], mode="markers", name="flagged in this epoch",
            marker={"symbol": "x", "size": 8, "color": KIND_COLOURS["flag"]},
            text=[turn or "from the start" for turn, hit in zip(turns, flagged, strict=True) if hit],
            hovertemplate="epoch %{x}: flagged (%{text})<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="epoch", zeroline=False, nticks=8, tickformat="d")
    figure.update_yaxes(title="loss of the given label", zeroline=False, rangemode="tozero", nticks=5)
    return laid_out(figure, 240).update_layout(
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, hovermode="closest"
    )
