"""Pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots


def grid(images: NDArray[np.uint8], titles: Sequence[str], *, columns: int = 8, title: str = "") -> go.Figure:
    """Pictures in reading order, each with a title.

    Args:
        images: (M, H, W) or (M, H, W, 3) uint8.
        titles: M texts.
        columns: pictures in a row.
        title: of the figure.

    Raises:
        ValueError: no pictures, or another number of titles.
    """
    if not len(images) or len(images) != len(titles):
        raise ValueError(f"as many titles as pictures are needed, at least one; got {len(titles)} and {len(images)}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=list(titles), horizontal_spacing=0.01, vertical_spacing=0.28 / rows
    )
    for i, image in enumerate(images):
        colour = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
        figure.add_trace(go.Image(z=colour, hoverinfo="skip"), row=i // columns + 1, col=i % columns + 1)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_annotations(font_size=11)
    figure.update_layout(title=title, height=60 + 130 * rows, margin={"l": 5, "r": 5, "t": 70 if title else 30, "b": 5})
    return figure
