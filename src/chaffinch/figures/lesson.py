"""The lesson's figures: a line that turns, detection against accuracy, culprits, and a training epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from ..card import KINDS
from .comparison import FAINT, KIND_WORDS, QUIET, laid_out, safe
from .methods import KIND_NAMES, faint
from .palette import KIND_COLOURS

Array = NDArray[np.floating[Any]]

TRAINERS = {
    "mixup": "#8A94A0", "small-loss": "#3C9DD0", "lsa": "#9467BD", "alternate": "#B8A900", "pls": "#A07A55",
    "pls-lsa": "#009E73", "oracle": "#7B8794",
}  # fmt: skip
"""Colours of trainers, and of the detectors that they are named after; no kind of sample has these colours."""

DASHES = {"mixup": "dot", "oracle": "dash"}
"""The floor and the ceiling are no detection and the truth."""


def turning(
    plane: Array,
    kind: NDArray[np.int8],
    degrees: NDArray[np.int64],
    edges: Array,
    shares: Array,
    auroc: Array,
) -> go.Figure:
    """Features on a plane with a line through them, what it sees, and a slider that turns it.

    Every angle is a frame, so that the browser needs no server to follow the slider.

    Args:
        plane: (N, 2) along the best line, and across.
        kind: (N,) codes of `KINDS`.
        degrees: (A,) angles, 0 among them.
        edges: (B + 1,) of the histograms.
        shares: (A, 3, B) share of each kind in each step along the line.
        auroc: (A,) of foreign pictures; NaN where there is only one side.
    """
    start = int(np.flatnonzero(degrees == 0)[0])
    figure = make_subplots(2, 1, row_heights=[0.7, 0.3], vertical_spacing=0.05)
    there = [code for code in range(len(KINDS)) if (kind == code).any()]
    for code in there:
        name = KINDS[code]
        figure.add_scattergl(
            x=plane[kind == code, 0].astype(np.float32), y=plane[kind == code, 1].astype(np.float32), mode="markers",
            marker={"size": 3, "color": KIND_COLOURS[name], "opacity": 0.55}, name=KIND_NAMES[name], hoverinfo="skip",
            row=1, col=1,
        )  # fmt: skip
    moving = range(len(there), 2 * len(there) + 3)
    for trace in _turned(degrees[start], edges, shares[start], auroc[start], there, shares.max()):
        figure.add_trace(trace, row=1 if trace.yaxis is None else 2, col=1)
    figure.frames = [
        go.Frame(
            name=str(angle), traces=list(moving),
            data=_turned(angle, edges, shares[a], auroc[a], there, shares.max()),
        )
        for a, angle in enumerate(degrees.tolist())
    ]  # fmt: skip
    at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    figure.update_layout(
        sliders=[
            {
                "active": start, "x": 0, "len": 1, "y": 0, "yanchor": "top", "pad": {"t": 46, "l": 6, "r": 6},
                "currentvalue": {"prefix": "line turned by ", "suffix": "°", "font": {"size": 13, "color": QUIET}},
                "bgcolor": FAINT, "bordercolor": QUIET, "activebgcolor": QUIET, "tickcolor": QUIET, "ticklen": 0,
                "font": {"color": "rgba(0,0,0,0)", "size": 1},
                "steps": [
                    {"label": str(angle), "method": "animate", "args": [[str(angle)], at_once]}
                    for angle in degrees.tolist()
                ],
            }
        ]
    )  # fmt: skip
    span = float(np.quantile(np.abs(plane), 0.999))
    axis = {"visible": False, "fixedrange": True}
    figure.update_xaxes(range=[-span, span], row=1, col=1, **axis)
    figure.update_yaxes(range=[-span, span], scaleanchor="x", row=1, col=1, **axis)
    figure.update_xaxes(
        title="along the line: more foreign to the right", showticklabels=False, zeroline=False, showgrid=False,
        range=[edges[0], edges[-1]], fixedrange=True, row=2, col=1,
    )  # fmt: skip
    figure.update_yaxes(
        tickformat=".0%", range=[0, 1.12 * shares.max()], nticks=4, fixedrange=True, row=2, col=1, title="share"
    )
    return laid_out(figure, 700).update_layout(
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "itemsizing": "constant"},
        margin={"l": 8, "r": 8, "t": 30, "b": 60}, dragmode=False,
    )  # fmt: skip


def _turned(angle: int, edges: Array, shares: Array, auroc: float, there: Sequence[int], top: float) -> list[Any]:
    """What moves with the line: the line itself, its foreign side, the histograms, and how well it separates."""
    turn = np.deg2rad(angle)
    across, along, far = np.array([-np.sin(turn), np.cos(turn)]), np.array([np.cos(turn), np.sin(turn)]), 9.0
    ends = np.stack([-far * across, far * across])
    side = np.concatenate([ends, ends[::-1] + far * along])
    fill = faint(KIND_COLOURS["ood"], 0.09)
    lower = {"xaxis": "x2", "yaxis": "y2", "hoverinfo": "skip", "showlegend": False}
    out = [
        go.Scatter(
            x=side[:, 0], y=side[:, 1], mode="lines", line={"width": 0}, fill="toself", fillcolor=fill,
            hoverinfo="skip", showlegend=False,
        ),
        go.Scatter(
            x=ends[:, 0], y=ends[:, 1], mode="lines", line={"color": QUIET, "width": 3}, hoverinfo="skip",
            showlegend=False,
        ),
    ]  # fmt: skip
    for code in there:
        colour = KIND_COLOURS[KINDS[code]]
        out.append(
            go.Scatter(
                x=np.repeat(edges, 2).astype(np.float32),
                y=np.concatenate([[0], np.repeat(shares[code], 2), [0]]).astype(np.float32),
                mode="lines", fill="tozeroy", fillcolor=faint(colour), line={"color": colour, "width": 2}, **lower,
            )
        )  # fmt: skip
    words = "nothing to separate" if np.isnan(auroc) else f"AUROC {auroc:.3f}"
    out.append(
        go.Scatter(
            x=[edges[0]], y=[1.04 * top], mode="text", text=[f"<b>{words}</b>"], textposition="bottom right",
            textfont={"size": 18, "color": KIND_COLOURS["ood"]}, cliponaxis=False, **lower,
        )
    )  # fmt: skip
    return out


def surprise(
    rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], measure: str, title: str, accuracy: str
) -> go.Figure:
    """Detection to the right, accuracy upwards: one point a trainer, with deviations over the seeds.

    A trainer without detection is a line across.

    Args:
        rows: means and deviations of the trainers (see `chaffinch.experiment.table`).
        names: what trainers are called.
        measure, title: the figure of detection, and its name.
        accuracy: which accuracy.
    """
    height, margin = 440, 56
    figure = go.Figure()
    rows = sorted((row for row in rows if row.get(accuracy) is not None), key=lambda row: float(row[accuracy]))
    if not rows:
        return laid_out(figure, height)
    ends = [row[accuracy] + side * (row[f"{accuracy}_sd"] or 0) for row in rows for side in (-1, 1)]
    room = 0.12 * (max(ends) - min(ends) or 0.1)
    low, high = min(ends) - room, max(ends) + room
    seen = [row[measure] for row in rows if row.get(measure) is not None]
    left, right = (min(seen), max(seen)) if seen else (0.0, 1.0)
    wide = right - left or 0.1
    scale = (height - margin - 16) / (high - low)  # pixels per unit of accuracy
    heights = _apart([scale * float(row[accuracy]) for row in rows], 19)
    for row, label in zip(rows, heights, strict=True):
        slug, y, sd = row["trainer"], float(row[accuracy]), row[f"{accuracy}_sd"]
        colour, name, x = TRAINERS.get(slug, QUIET), safe(names.get(slug, slug)), row.get(measure)
        told = f"{name}: {y:.1%}" + (f" ± {100 * sd:.1f}" if sd is not None else "")
        if x is None:
            figure.add_hline(y=y, line={"color": colour, "width": 2, "dash": "dot"})
            if sd:
                figure.add_hrect(y0=y - sd, y1=y + sd, line_width=0, fillcolor=colour, opacity=0.15)
        else:
            figure.add_scatter(
                x=[x], y=[y], mode="markers", name=name, showlegend=False,
                error_x={"array": [row.get(f"{measure}_sd") or 0], "color": colour, "thickness": 1.5, "width": 3},
                error_y={"array": [sd or 0], "color": colour, "thickness": 1.5, "width": 3},
                marker={"size": 13, "color": colour, "line": {"color": "#FFFFFF", "width": 1}},
                hovertemplate=f"{told}<br>{safe(title)}: %{{x:.3f}}<extra></extra>",
            )  # fmt: skip
        inner = x is not None and x > left + 0.55 * wide
        tip, across = left - 0.06 * wide, row.get(f"{measure}_sd") or 0
        if x is not None:  # the label begins where the deviation ends, if it has room there
            tip = max(x - across, left + 0.25 * wide) if inner else min(x + across, left + 0.75 * wide)
        figure.add_annotation(
            x=tip, y=y, text=f"<b>{name}</b>" if slug == "lsa" else name,
            ax=0 if x is None else -14 if inner else 14, ay=scale * y - label - (9 if x is None else 12),
            xanchor="left" if x is None else "right" if inner else "left", showarrow=True, arrowhead=0,
            arrowwidth=1, arrowcolor="rgba(0,0,0,0)" if x is None else colour,
            font={"color": colour, "size": 13},
        )  # fmt: skip
    figure.update_xaxes(
        title=f"{safe(title)} → better detection", range=[left - 0.08 * wide, right + 0.08 * wide], zeroline=False,
        fixedrange=True, nticks=6,
    )  # fmt: skip
    figure.update_yaxes(
        title="accuracy on clean test pictures", range=[low, high], tickformat=".0%" if high - low > 0.04 else ".1%",
        zeroline=False, fixedrange=True, nticks=7,
    )  # fmt: skip
    return laid_out(figure, height).update_layout(dragmode=False, margin_b=margin, hovermode="closest")


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, moved so that no two are closer than a gap, and none farther than need be."""
    groups: list[list[float]] = []  # of places that touch: sum of what each member wants its first to be, size
    for place in places:
        groups.append([place, 1])
        while len(groups) > 1:
            (total, n), (more, m) = groups[-2:]
            if more / m - total / n >= n * gap:
                break
            groups[-2:] = [[total + more - m * n * gap, n + m]]
    return [total / n + i * gap for total, n in groups for i in range(int(n))]


def detail(values: Array, culprit: NDArray[np.bool_]) -> go.Figure:
    """How much there is to see in the culprits and in the other clean pictures.

    Args:
        values: (M,) detail of clean pictures.
        culprit: (M,) which of them are culprits.
    """
    edges = np.linspace(values.min(), np.quantile(values, 0.995), 31)
    figure = go.Figure()
    groups = ((~culprit, "other clean pictures", "clean"), (culprit, "culprits", "flag"))
    for rows, name, colour in groups:
        if not rows.any():
            continue
        share = np.histogram(values[rows].clip(edges[0], edges[-1]), edges)[0] / rows.sum()
        figure.add_scatter(
            x=np.repeat(edges, 2), y=np.concatenate([[0], np.repeat(share, 2), [0]]), mode="lines", name=name,
            fill="tozeroy", fillcolor=faint(KIND_COLOURS[colour]), line={"color": KIND_COLOURS[colour], "width": 2},
            hoverinfo="skip",
        )  # fmt: skip
    figure.update_xaxes(title="detail: mean difference of neighbouring pixels", zeroline=False, fixedrange=True)
    figure.update_yaxes(title="share", tickformat=".0%", rangemode="tozero", nticks=4, fixedrange=True)
    return _above(laid_out(figure, 280))


def classes(shares: Mapping[str, tuple[float, float]]) -> go.Figure:
    """Of which classes the culprits are, beside all clean pictures.

    Args:
        shares: class -> its share among the culprits, and among all clean pictures.
    """
    names = [safe(name) for name in sorted(shares, key=lambda name: shares[name][0])]
    figure = go.Figure()
    for i, (title, colour) in enumerate((("culprits", "flag"), ("all clean pictures", "clean"))):
        figure.add_bar(
            y=names, x=[value[i] for _, value in sorted(shares.items(), key=lambda item: item[1][0])], name=title,
            orientation="h", marker_color=KIND_COLOURS[colour], hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(tickformat=".0%", zeroline=False, fixedrange=True, nticks=5)
    figure.update_yaxes(automargin=True, fixedrange=True)
    return _above(laid_out(figure, 280)).update_layout(barmode="group", bargap=0.25)


def course(turns: Sequence[str], flagged: Array, accuracy: Array, epoch: int) -> go.Figure:
    """A training epoch by epoch: what is flagged of each kind, whose turn it is, and the accuracy.

    Args:
        turns: E detectors in force; "" = none.
        flagged: (E, 3) share of each kind that is flagged; NaN = nobody is of that kind.
        accuracy: (E,) NaN where it was not measured.
        epoch: the one that is looked at, from 0.
    """
    measured = bool(np.isfinite(accuracy).any())
    x = np.arange(1, len(turns) + 1)
    figure = make_subplots(
        1 + measured, 1, shared_xaxes=True, row_heights=[0.6, 0.4][: 1 + measured], vertical_spacing=0.07
    )
    for code, kind in enumerate(KINDS):
        if np.isfinite(flagged[:, code]).any():
            figure.add_scatter(
                x=x, y=flagged[:, code], mode="lines+markers", name=f"{KIND_WORDS[kind]}, flagged",
                line={"color": KIND_COLOURS[kind], "width": 2}, marker={"size": 5}, row=1, col=1,
                hovertemplate=f"epoch %{{x}}: %{{y:.0%}} of {KIND_NAMES[kind]}<extra></extra>",
            )  # fmt: skip
    if measured:
        figure.add_scatter(
            x=x, y=accuracy, mode="lines+markers", name="accuracy", line={"color": TRAINERS["pls-lsa"], "width": 2},
            marker={"size": 5}, hovertemplate="epoch %{x}: %{y:.1%}<extra></extra>", row=2, col=1,
        )  # fmt: skip
    bands: list[dict[str, Any]] = []
    for who, name in (("lsa", "the plane's turn"), ("small-loss", "small loss's turn")):
        rows = [i for i, turn in enumerate(turns, start=1) if turn == who]
        if rows:
            figure.add_scatter(
                x=[None], y=[None], mode="markers", name=name, row=1, col=1,
                marker={"symbol": "square", "size": 11, "color": faint(TRAINERS[who], 0.45)},
            )  # fmt: skip
        bands += [_band(at - 0.5, at + 0.5, fillcolor=faint(TRAINERS[who], 0.16)) for at in rows]
    mark = _band(epoch + 1, epoch + 1, line={"color": KIND_COLOURS["flag"], "width": 2})
    figure.update_layout(shapes=[*bands, mark])
    figure.update_xaxes(range=[0.5, len(turns) + 0.5], zeroline=False, showgrid=False, fixedrange=True)
    figure.update_xaxes(title="epoch", row=1 + measured, col=1)
    figure.update_yaxes(zeroline=False, fixedrange=True, nticks=5, tickformat=".0%")
    figure.update_yaxes(title="flagged", range=[-0.03, 1.03], row=1, col=1)
    if measured:
        figure.update_yaxes(title="accuracy", row=2, col=1)
    return _above(laid_out(figure, 430 if measured else 300))


def _band(low: float, high: float, **look: Any) -> dict[str, Any]:
    """A band over the whole height of a figure."""
    place = {"x0": low, "x1": high, "y0": 0, "y1": 1, "xref": "x", "yref": "paper", "type": "rect", "layer": "below"}
    return {**place, "line": {"width": 0}, **look}


def accuracies(curves: Mapping[str, Sequence[float]], names: Mapping[str, str], epochs: int) -> go.Figure:
    """Accuracy after each epoch, one line a trainer.

    Args:
        curves: trainer -> values so far.
        names: what trainers are called.
        epochs: of a whole training.
    """
    figure = go.Figure()
    for slug, values in curves.items():
        figure.add_scatter(
            x=np.arange(1, len(values) + 1), y=np.asarray(values, float), mode="lines+markers",
            name=safe(names.get(slug, slug)), marker={"size": 5},
            line={"color": TRAINERS.get(slug, QUIET), "width": 2, "dash": DASHES.get(slug, "solid")},
            hovertemplate="epoch %{x}: %{y:.1%}",
        )  # fmt: skip
    figure.update_xaxes(title="epoch", range=[0.5, max(epochs, 2) + 0.5], zeroline=False, fixedrange=True, nticks=8)
    seen = [value for values in curves.values() for value in values]
    span = [max(0, min(seen, default=0) - 0.05), min(1, max(seen, default=1) + 0.05)]
    figure.update_yaxes(title="accuracy", tickformat=".0%", zeroline=False, fixedrange=True, nticks=6, range=span)
    return _above(laid_out(figure, 320))


def _above(figure: go.Figure) -> go.Figure:
    """The legend on top, where it cannot meet the title of an axis; nothing to drag."""
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    return figure.update_layout(legend=legend, dragmode=False)
