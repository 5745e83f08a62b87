"""What training losses do: their course, the encoders side by side on every figure, and how hard samples pull."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from ..card import KINDS
from .comparison import DASHES, KIND_WORDS, QUIET, laid_out, safe
from .methods import faint
from .palette import KIND_COLOURS

Array = NDArray[np.float64]


def history(
    values: Sequence[float],
    colour: str,
    *,
    epochs: int | None = None,
    kinds: Mapping[str, Array] | None = None,
    noted: Sequence[int] = (),
) -> go.Figure:
    """The mean loss of each epoch, of all samples and, where it was noted, of each kind.

    Args:
        values: one an epoch.
        colour: of the line.
        epochs: of the whole training; default: as many as there are.
        kinds: kind -> (R,) mean loss of its samples.
        noted: the R epochs, from 1, at which that was noted.
    """
    last = max(epochs or len(values), 2)
    figure = go.Figure()
    figure.add_scatter(
        x=np.arange(1, len(values) + 1), y=np.asarray(values, float), mode="lines+markers" if last < 60 else "lines",
        line={"color": colour, "width": 2}, marker={"size": 5}, showlegend=False,
        hovertemplate="epoch %{x}: %{y:.4f}<extra></extra>",
    )  # fmt: skip
    for kind, each in ((k, kinds[k]) for k in KINDS if kinds and k in kinds):
        figure.add_scatter(
            x=list(noted), y=each, mode="lines+markers", name=KIND_WORDS[kind], marker={"size": 6},
            line={"color": KIND_COLOURS[kind], "width": 1.5, "dash": "dot"},
            hovertemplate=f"{KIND_WORDS[kind]}, epoch %{{x}}: %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    step = next(m * 10**k for k in range(9) for m in (1, 2, 5) if last <= 8 * m * 10**k)
    figure.update_xaxes(title="epoch", range=[1 - 0.02 * last, last * 1.02], zeroline=False, tick0=0, dtick=step)
    figure.update_yaxes(title="mean loss", zeroline=False, nticks=6)
    return laid_out(figure, 300 if kinds else 240)


def parallel(
    names: Sequence[str],
    heights: Array,
    values: Array,
    axes: Sequence[tuple[str, int]],
    marked: Mapping[str, str],
) -> go.Figure:
    """Every encoder as a line through its figures, up is better; the values at the ends are written there.

    Where neither end is better, the name of the axis has an asterisk.

    Args:
        names: R encoders.
        heights: (R, F) 0 to 1, NaN where not known.
        values: (R, F) the figures themselves.
        axes: F names, and whether more of it is better (+1), less (-1), or neither (0).
        marked: name -> colour, of the lines that stand out.
    """
    where = np.arange(len(axes))
    figure = go.Figure()
    poles = np.repeat(where, 3), np.tile([0, 1, np.nan], len(axes))
    figure.add_scatter(
        x=poles[0], y=poles[1], mode="lines", line={"color": QUIET, "width": 1}, hoverinfo="skip", showlegend=False
    )
    order = sorted(range(len(names)), key=lambda i: [*marked].index(names[i]) if names[i] in marked else -1)
    for i in order:
        name = safe(names[i])
        colour = marked.get(names[i])
        figure.add_scatter(
            x=where, y=heights[i], mode="lines+markers", name=name, showlegend=colour is not None, connectgaps=False,
            line={"color": colour or QUIET, "width": 3 if colour else 1}, opacity=1 if colour else 0.6,
            marker={"size": 8 if colour else 4}, customdata=[_short(v) for v in values[i]],
            text=[safe(axis) for axis, _ in axes], hovertemplate=f"%{{text}}: %{{customdata}}<extra>{name}</extra>",
        )  # fmt: skip
    turned = np.array([better < 0 for _, better in axes])
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    for y, place, ends in ((0, "bottom", np.where(turned, high, low)), (1, "top", np.where(turned, low, high))):
        figure.add_scatter(
            x=where, y=np.full(len(axes), y), mode="text", text=[_short(end) for end in ends], hoverinfo="skip",
            textposition=f"{place} center", textfont={"size": 10, "color": QUIET}, showlegend=False, cliponaxis=False,
        )  # fmt: skip
    words = [safe(axis) + ("" if better else " *") for axis, better in axes]
    figure.update_xaxes(
        tickvals=where, ticktext=words, tickangle=-55, showgrid=False, zeroline=False, automargin=True,
        range=[-0.5, len(axes) - 0.5], fixedrange=True, ticklabeloverflow="allow",
    )  # fmt: skip
    figure.update_yaxes(visible=False, range=[-0.14, 1.14], fixedrange=True)
    return laid_out(figure, 430).update_layout(
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, hovermode="closest", margin_l=40
    )


def spread(epochs: Sequence[int], kinds: Mapping[str, Array]) -> go.Figure:
    """How hard the samples of each kind pull, as boxes on a log scale: the middle half, and 5 to 95 per cent.

    Args:
        epochs: R that were kept.
        kinds: kind -> (R, 5) quantiles 5, 25, 50, 75 and 95 per cent.
    """
    every = np.concatenate([values.ravel() for values in kinds.values()])
    least = float(every[every > 0].min(initial=np.inf))
    figure = go.Figure()
    for kind in (k for k in KINDS if k in kinds):
        low, first, middle, third, high = np.maximum(kinds[kind], least if np.isfinite(least) else 0).T
        figure.add_box(
            x=[str(e) for e in epochs], lowerfence=low, q1=first, median=middle, q3=third, upperfence=high,
            name=KIND_WORDS[kind], offsetgroup=kind, marker_color=KIND_COLOURS[kind], line_width=1.5,
            fillcolor=faint(KIND_COLOURS[kind], 0.3),
        )  # fmt: skip
    figure.update_xaxes(title="epoch", type="category")
    figure.update_yaxes(title="pull (log scale)")
    if np.isfinite(least):
        ticks = _ticks(least, float(np.nanmax(every)))
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    return laid_out(figure, 340).update_layout(boxmode="group", boxgap=0.25, boxgroupgap=0.1)


def whereto(
    epochs: Sequence[int], given: Array, other: Array, names: tuple[str, str], span: tuple[float, float]
) -> go.Figure:
    """Whereto the loss moves mislabelled samples: the middle half and the median of two cosines.

    Args:
        epochs: R that were kept.
        given, other: (R, 3) quartiles of the cosine to the class that the label says, and to the other one.
        names: what the two are called.
        span: of the axis, so that two figures can be compared.
    """
    x = [str(e) for e in epochs]
    figure = go.Figure()
    looks = ((given, KIND_COLOURS["mislabelled"]), (other, KIND_COLOURS["clean"]))
    for i, (values, colour) in enumerate(looks):
        low, middle, high = values.T
        bounds = {"x": x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        figure.add_scatter(y=low, **bounds)
        figure.add_scatter(y=high, fill="tonexty", fillcolor=faint(colour, 0.18), **bounds)
        figure.add_scatter(
            x=x, y=middle, mode="lines+markers", name=names[i], marker={"size": 7},
            line={"color": colour, "width": 2.5, "dash": DASHES[i]},
            hovertemplate=f"epoch %{{x}}, {names[i]}: %{{y:+.2f}}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": QUIET, "width": 1})
    figure.update_xaxes(title="epoch", type="category")
    figure.update_yaxes(title="cosine", range=span, zeroline=False)
    return laid_out(figure, 300).update_layout(legend_traceorder="normal")


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that a log axis from low to high is marked with: powers of ten, and 2 and 5 where there are few."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if len(powers) < 4 else (1,)
    return [float(f"{step}e{power}") for power in powers for step in steps]


def _short(value: float) -> str:
    """A figure in few characters; nothing for one that is not known."""
    if np.isnan(value):
        return "not known"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"
