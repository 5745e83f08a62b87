"""Detectors side by side: curves, agreement, overlaps of flags, and which class is filed under which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from ..card import KINDS
from .palette import KIND_COLOURS, class_colours

Array = NDArray[np.float64]
Curve = tuple[str, Array, Array, tuple[float, float | None]]
"""A line's name, its x and y, and the point on or near it that is in force."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
QUIET, FAINT = "#8A94A0", "rgba(138,148,160,0.25)"
KIND_WORDS = {"clean": "clean", "mislabelled": "wrong label", "ood": "foreign"}
AGREE = ((0.0, "#B35806"), (0.5, "#E8E6E1"), (1.0, "#2B6CB0"))
WRONG = ((0.0, "#F6F1E6"), (0.5, KIND_COLOURS["mislabelled"]), (1.0, "#A63603"))
FOREIGN = ((0.0, "#F5EEF3"), (1.0, KIND_COLOURS["ood"]))
RIGHT = ((0.0, "#D5D9DE"), (1.0, "#A8B0BA"))


def curves(lines: Sequence[Curve], *, x: str, y: str, chance: tuple[Array, Array]) -> go.Figure:
    """One line a detector, with a marker where it cuts, over the line that chance would draw.

    Args:
        lines: what to draw.
        x, y: names of the axes.
        chance: x and y of the line of chance.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=chance[0], y=chance[1], mode="lines", line={"color": QUIET, "width": 1}, hoverinfo="skip", showlegend=False
    )
    for i, (name, across, up, mark) in enumerate(lines):
        colour = class_colours(i + 1)[i]
        figure.add_scatter(
            x=across, y=up, mode="lines", name=name, legendgroup=name,
            line={"color": colour, "width": 2, "dash": DASHES[i % len(DASHES)]},
            hovertemplate=f"%{{x:.3f}} → %{{y:.3f}}<extra>{safe(name)}</extra>",
        )  # fmt: skip
        if mark[1] is not None:
            figure.add_scatter(
                x=[mark[0]], y=[mark[1]], mode="markers", legendgroup=name, showlegend=False, name=name,
                marker={"color": colour, "size": 11, "line": {"color": "#FFFFFF", "width": 1.5}},
                hovertemplate=f"its cut: %{{x:.3f}} → %{{y:.3f}}<extra>{safe(name)}</extra>",
            )  # fmt: skip
    figure.update_xaxes(title=x, range=[-0.02, 1.02], constrain="domain", zeroline=False)
    figure.update_yaxes(title=y, range=[-0.02, 1.02], zeroline=False)
    return laid_out(figure, 380)


def agreement(matrix: Array, names: Sequence[str], *, low: float = -1.0) -> go.Figure:
    """How far every two detectors agree, a number in each cell; nothing where it is not defined.

    Args:
        matrix: (K, K) up to 1.
        names: K.
        low: the least possible value.
    """
    scale = AGREE if low < 0 else ((0.0, AGREE[1][1]), (1.0, AGREE[2][1]))
    shown = [safe(name) for name in names]
    figure = go.Figure(
        go.Heatmap(
            z=matrix, x=shown, y=shown, zmin=low, zmax=1, colorscale=scale, texttemplate="%{z:.2f}",
            xgap=2, ygap=2, showscale=False, hovertemplate="%{y} and %{x}: %{z:.3f}<extra></extra>", hoverongaps=False,
        )
    )  # fmt: skip
    figure.update_xaxes(tickangle=-40, showgrid=False, automargin=True)
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    return laid_out(figure, 170 + 46 * len(names))


def upset(
    combinations: Sequence[tuple[Sequence[str], int, Sequence[int] | None]],
    sizes: Mapping[str, int],
    titles: Mapping[str, str] | None = None,
) -> go.Figure:
    """Which detectors flag the same samples: a bar for each combination, its members as dots below, totals at the left.

    Every bar, the room above it and every dot of its column carry the combination (``a:b``) as ``customdata``.

    Args:
        combinations: members, how many samples exactly these flag, and how many of each kind (or None).
        sizes: how many samples each detector flags.
        titles: what the detectors are called; default: as they are.
    """
    called = {name: safe((titles or {}).get(name, name)) for name in sizes}
    names, columns = list(sizes), list(range(len(combinations)))
    figure = make_subplots(
        2, 2, column_widths=[0.2, 0.8], row_heights=[0.64, 0.36], horizontal_spacing=0.02, vertical_spacing=0.04,
        specs=[[None, {"secondary_y": True}], [{}, {}]],
    )  # fmt: skip
    keys = [":".join(members) for members, _, _ in combinations]
    counts = [count for _, count, _ in combinations]
    split = [kinds for _, _, kinds in combinations if kinds is not None]
    parts = [("flagged", KIND_COLOURS["flag"], counts)]
    if split:
        parts = [(KIND_WORDS[k], KIND_COLOURS[k], [s[i] for s in split]) for i, k in enumerate(KINDS)]
    for name, colour, values in parts:
        figure.add_bar(
            x=columns, y=values, name=name, marker_color=colour, hoverinfo="skip", showlegend=bool(split),
            unselected={"marker": {"opacity": 1}}, row=1, col=2,
        )  # fmt: skip
    lines = [" + ".join(called[name] for name in members) for members, _, _ in combinations]
    for name, _, values in parts:
        lines = [f"{line}<br>{value:,} {name}" for line, value in zip(lines, values, strict=True)]
    top = 1.12 * max(counts, default=1)
    figure.add_bar(  # a column over every bar, so that a short one can be hit; grey once it is picked
        x=columns, y=[top] * len(columns), customdata=keys, text=lines, textposition="none", showlegend=False,
        hovertemplate="%{text}<extra></extra>", marker={"color": QUIET, "opacity": 0}, width=1,
        selected={"marker": {"opacity": 0.3}}, unselected={"marker": {"opacity": 0}}, row=1, col=2, secondary_y=True,
    )  # fmt: skip
    for column, count in zip(columns, counts, strict=True):
        figure.add_annotation(
            x=column,
            y=count,
            text=f"{count:,}",
            showarrow=False,
            yanchor="bottom",
            font_size=11 if len(columns) < 10 else 9,
            row=1,
            col=2,
        )
    rows = {name: at for at, name in enumerate(names)}
    for column, (members, _, _) in enumerate(combinations):
        ends = [rows[name] for name in members]
        figure.add_scatter(
            x=[column, column], y=[min(ends), max(ends)], mode="lines", line={"color": QUIET, "width": 3},
            hoverinfo="skip", showlegend=False, row=2, col=2,
        )  # fmt: skip
    for lit, colour in ((False, FAINT), (True, QUIET)):
        cells = [(c, r, keys[c]) for c in columns for n, r in rows.items() if (n in combinations[c][0]) is lit]
        figure.add_scatter(
            x=[c for c, _, _ in cells], y=[r for _, r, _ in cells], customdata=[k for *_, k in cells], mode="markers",
            marker={"size": 13, "color": colour}, hoverinfo="skip", showlegend=False, row=2, col=2,
            selected={"marker": {"opacity": 1, "size": 18}}, unselected={"marker": {"opacity": 1}},
        )  # fmt: skip
    figure.add_bar(
        x=[-sizes[name] for name in names], y=list(rows.values()), orientation="h", marker_color=QUIET,
        text=[f"{sizes[name]:,}" for name in names], textposition="outside", cliponaxis=False, showlegend=False,
        hovertemplate="%{customdata}<extra></extra>", row=2, col=1,
        customdata=[f"{called[name]} flags {sizes[name]:,}" for name in names],
    )  # fmt: skip
    span = [-0.6, max(len(combinations), 1) - 0.4]
    figure.update_xaxes(visible=False, range=span, fixedrange=True, col=2)
    figure.update_yaxes(visible=False, range=[0, top], fixedrange=True, row=1, col=2)
    most = max(sizes.values(), default=1) or 1
    room = [-2.4 * most, 0]  # for the numbers beside the bars, on a phone too
    figure.update_xaxes(visible=False, range=room, fixedrange=True, row=2, col=1)
    tall = [len(names) - 0.4, -0.6]
    figure.update_yaxes(visible=False, range=tall, fixedrange=True, row=2, col=1)
    ticks = {"tickmode": "array", "tickvals": list(rows.values()), "ticktext": list(called.values())}
    figure.update_yaxes(
        range=tall, fixedrange=True, showgrid=False, zeroline=False, side="right", **ticks, row=2, col=2
    )
    figure.update_layout(barmode="stack", bargap=0.25, dragmode="pan", clickmode="event+select")
    return laid_out(figure, 300 + 26 * len(names)).update_layout(legend_y=-0.06)


def noise(counts: Array, classes: Sequence[str], *, top: float | None = None) -> go.Figure:
    """Which class is filed under which: each row (a given label) adds up to 1; counts under the pointer.

    Right labels (the diagonal) are grey and the share of no class has a scale of its own, so that the colours of the
    wrong labels have their whole range.

    Args:
        counts: (C, C + 1), rows given, columns probable; the last one: no class.
        classes: C names.
        top: share of the strongest colour of wrong labels; default: the largest there is.
    """
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    row, column = np.indices(counts.shape)
    right, none = row == column, column == len(classes)
    names = [safe(name) for name in classes]
    look: dict[str, Any] = {
        "x": [*names, "no class"], "y": names, "showscale": False, "xgap": 1, "ygap": 1, "zmin": 0,
        "customdata": counts, "hoverongaps": False,
        "hovertemplate": "filed under %{y}, belongs to %{x}<br>%{z:.1%}: %{customdata:,.1~f} samples<extra></extra>",
    }  # fmt: skip
    if len(classes) <= 12:
        look |= {"texttemplate": "%{z:.0%}", "textfont_size": 11}
    figure = go.Figure()
    for cells, stops, most in (
        (~right & ~none, WRONG, top or largest(counts)),
        (none, FOREIGN, np.nanmax(share[:, -1], initial=0)),
        (right, RIGHT, 1),
    ):
        figure.add_heatmap(z=np.where(cells, share, np.nan), zmax=most or 1, colorscale=stops, **look)
    figure.update_xaxes(title="belongs to", tickangle=-40, showgrid=False, automargin=True)
    figure.update_yaxes(title="filed under", autorange="reversed", showgrid=False, automargin=True)
    return laid_out(figure, 480)


def reliability(curves: Mapping[str, tuple[Array, Array, NDArray[np.int64]]]) -> go.Figure:
    """Promised probability against the share that came true, a line a kind; the diagonal is honest.

    Args:
        curves: kind -> mean promise, share that came true, and count of each bin.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": QUIET, "width": 1}, hoverinfo="skip", showlegend=False
    )
    for i, (kind, (promised, came, count)) in enumerate(curves.items()):
        figure.add_scatter(
            x=promised, y=came, customdata=count, mode="lines+markers", name=KIND_WORDS[kind],
            line={"color": KIND_COLOURS[kind], "width": 2, "dash": DASHES[i]}, marker={"size": 7},
            hovertemplate=f"{KIND_WORDS[kind]}: said %{{x:.0%}}, came %{{y:.0%}} of %{{customdata:,}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="probability the verdict gives", range=[-0.02, 1.02], tickformat=".0%", zeroline=False)
    figure.update_yaxes(title="share that is so", range=[-0.02, 1.02], tickformat=".0%", zeroline=False)
    return laid_out(figure, 380)


def largest(counts: Array) -> float:
    """The largest share of a row of such a matrix that is filed wrongly under one class; 0 if none is."""
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)[:, :-1]
    return float(np.where(np.eye(len(share)) == 1, 0, share).max(initial=0))


def laid_out(figure: go.Figure, height: int) -> go.Figure:
    """Transparent, with little margin and the legend below."""
    return figure.update_layout(
        height=height, margin={"l": 8, "r": 8, "t": 16, "b": 8}, paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)", legend={"orientation": "h", "y": -0.22, "x": 0},
    )  # fmt: skip


def safe(name: str) -> str:
    """Text that plotly takes as it is: it would read tags and entities."""
    return name.replace("&", "&amp;").replace("<", "&lt;")
