"""The map: a scatter plot that keeps zoom, pan and selection over every rerun.

``frontend/map.js`` draws it with the plotly.js of the installed plotly package. What is constant (positions,
hover text) is written once to a file named by its digest, which the browser fetches and keeps; a rerun sends two
bytes a point (colour and state) and the browser restyles. Only the outline of a selection comes back. Samples that are
too many for points are drawn as a density picture below them (see `chaffinch.figures.thinning`).
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from streamlit import runtime
from streamlit.components.v1 import declare_component

from ..base.errors import InputError
from ..base.files import digest, replacing
from ..figures.palette import CLASS_COLOURS, KIND_COLOURS, SUSPICION, on_scale, steps
from ..figures.thinning import density
from ..thumbnails import Sheets
from .gallery import sheets_data

if TYPE_CHECKING:
    from streamlit.components.v2.types import ComponentRenderer

EMPHASISED, MARKED, SELECTED = 1, 2, 4  # bits of a point's state
KEPT_FILES = 64  # served arrays; the least recently used go first
MAX_VERTICES = 2000


@dataclass(frozen=True)
class Colours:
    """How the points are coloured: by category (``names`` given) or on a continuous scale.

    Attributes:
        values: (N,) codes 0..K-1 into ``names``, or floats. A negative code or a NaN is drawn grey.
        names: the K legend entries; empty = continuous.
        palette: a hex colour for each code (used in turn if there are fewer), or the stops of the scale.
        title: what the colours mean.
        span: ends of the scale; default: the least and the largest value.
    """

    values: NDArray[Any]
    names: tuple[str, ...] = ()
    palette: tuple[str, ...] = ()
    title: str = ""
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class MapEvent:
    """What the user did on the map.

    Attributes:
        clicked: dataset position of the clicked point, only in the run that the click caused.
        polygon: (V, 2) float64 outline of the selection in data coordinates (a box has four corners), or None.
    """

    clicked: int | None
    polygon: NDArray[np.float64] | None


@dataclass(frozen=True)
class Link:
    """The selection shared by maps that show the same samples at different places.

    Attributes:
        group: name of the maps.
        key: the map that it was drawn on, or None without a selection.
        polygon: (V, 2) float64 outline in the coordinates of that map, or None.
        within: (N,) bool, the samples inside, or None.
        held: the outline as the browser knows it, or None.
        newest: when the last change that is taken in was made.
    """

    group: str
    key: str | None = None
    polygon: NDArray[np.float64] | None = None
    within: NDArray[np.bool_] | None = None
    held: Mapping[str, Any] | None = None
    newest: float = 0


def link(
    group: str, maps: Mapping[str, NDArray[np.floating[Any]]], first: Mapping[str, NDArray[np.float64] | None]
) -> Link:
    """What is selected on a group of maps that show the same samples at different places; ask before drawing them.

    Args:
        group: name of the maps.
        maps: key -> (N, 2) positions, of every map of the group that will be drawn.
        first: key -> the outline that is there when the map is drawn for the first time.
    """
    versions = {key: digest(np.ascontiguousarray(xy, dtype=np.float32)) for key, xy in maps.items()}
    memory = _memory(group, versions, first)
    held = memory["held"]
    if held is None:
        return Link(group, newest=memory["newest"])
    polygon = np.asarray(held["points"], dtype=np.float64)
    return Link(group, held["key"], polygon, inside(maps[held["key"]], polygon), held, memory["newest"])


def scatter_map(
    xy: NDArray[np.floating[Any]],
    colours: Colours,
    *,
    emphasis: NDArray[np.bool_] | None = None,
    marked: NDArray[np.bool_] | None = None,
    shown: NDArray[np.int64] | None = None,
    rest: bool = False,
    hover: Sequence[str] | None = None,
    sheets: Sheets | None = None,
    key: str,
    height: int = 560,
    focus: int | None = None,
    outline: NDArray[np.float64] | None = None,
    group: str = "",
    linked: Link | None = None,
) -> MapEvent:
    """Draw the map. Zoom, pan and selection stay as long as ``xy`` has the same values.

    Maps of one group have one camera, one tool and one selection: what is done on one is done on all, in the browser.
    Linked maps show the same samples at different places: they share the tool, and which samples are selected.

    Args:
        xy: (N, 2) positions.
        colours: colours of the emphasised points.
        emphasis: (N,) points in colour; the others lie underneath in grey. None = all.
        marked: (N,) points drawn larger and outlined (flagged samples), where emphasised.
        shown: (M,) dataset positions of the samples that are points; None = all.
        rest: draw the others as a density picture; otherwise they are left out.
        hover: a text for each point (M, or N) for the card under the pointer; the first line is its heading.
        sheets: pictures for the card. Missing sheets are made in the background.
        key: identity of this map on the page.
        height: of the whole component in CSS pixels.
        focus: dataset position to put a crosshair ring on.
        outline: (V, 2) selection to begin with, such as a link's; from then on, while it is on the page, the user's.
        group: name of the group it belongs to; empty = it stands alone.

    Raises:
        InputError: an argument does not have N entries (``hover``: M).
    """
    n = len(xy)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise InputError(f"xy must be (N, 2), got {xy.shape}")
    points = n if shown is None else len(shown)
    sized = {"colours.values": (colours.values, n), "emphasis": (emphasis, n), "marked": (marked, n)}
    for name, (value, size) in {**sized, "hover": (hover, points)}.items():
        if value is not None and len(value) != size:
            raise InputError(f"{name} must have {size} entries, got {len(value)}")
    if not runtime.exists():  # imported outside of Streamlit
        return MapEvent(None, None)

    xy32 = np.ascontiguousarray(xy, dtype=np.float32)
    version = digest(xy32)
    selection = _memory(group or key, {key: version}, {key: outline})["held"] if linked is None else linked.held
    if linked is not None and linked.key not in (None, key):
        assert selection is not None
        selection = {"id": selection["id"], "points": None}  # the browser is told which samples instead

    if sheets is not None:
        sheets.fill()
    take = slice(None) if shown is None else np.asarray(shown, dtype=np.int64)
    code, coloured, scale = _codes(colours)
    lit = coloured if emphasis is None else coloured & emphasis
    state = lit.astype(np.uint8) * EMPHASISED
    if marked is not None:
        state |= marked.astype(np.uint8) * MARKED
    if linked is not None and linked.within is not None:
        state |= linked.within.astype(np.uint8) * SELECTED
    body = code[take].tobytes() + state[take].tobytes()
    haze = _haze(xy32, code, scale, state, shown) if rest and shown is not None else None
    finite = xy32[np.isfinite(xy32).all(axis=1)]
    span = [*finite.min(axis=0).tolist(), *finite.max(axis=0).tolist()] if len(finite) else [0, 0, 1, 1]
    where = None if focus is None else xy32[focus].tolist()
    head = {
        "version": version,
        "paint": digest(np.frombuffer(body, np.uint8), scale, haze),
        "points": _publish(_pack(xy32[take], shown), "bin"),
        "hover": None if hover is None else _publish("\0".join(hover).encode(errors="replace"), "txt"),
        "haze": haze,
        "count": points,
        "total": points if haze is None else n,
        "indexed": shown is not None,
        "bounds": span,
        "height": height,
        "scale": scale,
        "flag": KIND_COLOURS["flag"] if bool((state & MARKED).any()) else None,
        "focus": where if where is not None and np.isfinite(where).all() else None,
        "outline": selection,
        "group": group,
        "link": linked and linked.group,
        "heard": linked and linked.newest,
        "sheets": sheets_data(sheets),
        "plotly": _plotly(),
    }
    encoded = json.dumps(head).encode()
    payload = struct.pack("<I", len(encoded)) + encoded + body
    result = _component()(key=key, data=payload, on_clicked_change=_nothing, on_outline_change=_nothing)

    own = selection is not None and selection["points"] is not None
    polygon = np.asarray(selection["points"], dtype=np.float64) if selection is not None and own else None
    clicked: Any = result.get("clicked")
    valid = isinstance(clicked, int) and 0 <= clicked < n
    return MapEvent(clicked if valid else None, polygon)


def inside(xy: NDArray[np.floating[Any]], polygon: NDArray[np.float64] | None) -> NDArray[np.bool_]:
    """Which points lie in the polygon (ray casting, even-odd rule).

    Args:
        xy: (N, 2) positions.
        polygon: (V, 2) vertices, closed by itself; None = no selection, every point counts as inside.

    Returns:
        (N,) bool.
    """
    if polygon is None:
        return np.ones(len(xy), dtype=np.bool_)
    result = np.zeros(len(xy), dtype=np.bool_)
    if len(polygon) < 3:
        return result
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    near = np.flatnonzero(((xy >= low) & (xy <= high)).all(axis=1))  # NaN compares false
    for start in range(0, len(near), 16_384):  # a few at a time, so that they stay in the cache
        some = near[start : start + 16_384]
        x, y = np.ascontiguousarray(xy[some].T, dtype=np.float64)
        odd = np.zeros(len(some), dtype=np.bool_)
        for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, 1, axis=0), strict=True):
            if y1 != y2:  # does the ray from the point to the right cross this edge?
                odd ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
        result[some] = odd
    return result


def _codes(colours: Colours) -> tuple[NDArray[np.uint8], NDArray[np.bool_], dict[str, Any]]:
    """One byte a point (a palette index, or a step of 256 on the scale), which points have one, and the scale."""
    values = np.asarray(colours.values)
    if colours.names:
        palette = (colours.palette or CLASS_COLOURS)[:256]
        code = (values.astype(np.int64) % len(palette)).astype(np.uint8)
        scale = {"names": list(colours.names), "palette": list(palette), "title": colours.title}
        return code, values >= 0, scale
    code, there, (low, high) = on_scale(values, colours.span)
    scale = {"names": [], "palette": list(colours.palette or SUSPICION), "title": colours.title}
    return code, there, scale | {"low": low, "high": high}


def _haze(
    xy: NDArray[np.float32],
    code: NDArray[np.uint8],
    scale: dict[str, Any],
    state: NDArray[np.uint8],
    shown: NDArray[np.int64],
) -> dict[str, Any]:
    """Address and edges of the density picture of the samples that are no points."""
    rest = np.ones(len(xy), dtype=np.bool_)
    rest[shown] = False
    lit = (state & EMPHASISED).astype(np.bool_)
    if (state & SELECTED).any():  # on a linked map; the browser itself greys what is outside an outline
        lit &= (state & SELECTED).astype(np.bool_)
    palette = scale["palette"] if scale["names"] else steps(scale["palette"])
    seen = density(xy[rest], code[rest], palette, lit[rest])
    return {"path": _publish(seen.parts(), "png"), "bounds": seen.bounds}


def _memory(name: str, versions: Mapping[str, str], first: Mapping[str, NDArray[np.float64] | None]) -> dict[str, Any]:
    """What this session knows of a map or a group of maps; ``held`` is the selection in force.

    Each map of a group keeps what it last reported, so the newest report counts, and only once: it must not come
    back when positions change or the map that made it leaves the page.

    Args:
        name: of the map, or of the group.
        versions: key -> digest of the positions, of the maps that are being drawn.
        first: key -> the selection that is there when the map is drawn for the first time.
    """
    memory: dict[str, Any] = st.session_state.setdefault(f"{name}:map", {"drawn": {}, "newest": 0, "held": None})
    drawn: dict[str, str] = memory["drawn"]
    there = [k for k in drawn if k in st.session_state]
    if not there:  # first time on the page
        memory["held"] = None
        drawn.clear()
    for key, version in versions.items():
        outline = first.get(key)
        if key not in drawn and outline is not None and memory["held"] is None and not (there and memory["newest"]):
            memory["held"] = {"id": "first", "points": outline.tolist(), "key": key, "version": version}
    for key in there:
        reported = _outline(st.session_state[key])
        if reported is not None and reported["made"] > memory["newest"]:
            held = {**reported, "key": key, "version": drawn[key]} if reported["points"] else None
            memory.update(newest=reported["made"], held=held)
    drawn |= versions
    if memory["held"] and memory["held"]["version"] not in versions.values():
        memory["held"] = None  # another dataset or encoder: the old outline means nothing here
    return memory


def _outline(state: Any) -> dict[str, Any] | None:
    """What a map reported, ``{"id", "made", "points"}`` with no points if cleared; None if nothing, or malformed."""
    outline = state.get("outline")
    if not isinstance(outline, dict):
        return None
    name, made, points = (outline.get(part) for part in ("id", "made", "points"))
    if not (isinstance(name, str) and isinstance(made, int | float) and isinstance(points, list)):
        return None
    if not points:
        return {"id": name, "made": made, "points": []}
    try:
        vertices = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    fine = vertices.ndim == 2 and vertices.shape[1] == 2 and bool(np.isfinite(vertices).all())
    fine &= 3 <= len(vertices) <= MAX_VERTICES
    return {"id": name, "made": made, "points": vertices.tolist()} if fine else None


def _pack(xy: NDArray[np.float32], shown: NDArray[np.int64] | None) -> bytes:
    """All x, all y (float32), then the dataset positions (int32) if it is a subset; little-endian."""
    columns = np.ascontiguousarray(xy.T, dtype="<f4").tobytes()
    return columns if shown is None else columns + np.asarray(shown).astype("<i4").tobytes()


@functools.cache
def _served_folder() -> Path:
    """A temporary folder of this process for the constant arrays."""
    folder = Path(tempfile.mkdtemp(prefix="chaffinch-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _publish(content: bytes, suffix: str) -> str:
    """Put bytes where the browser can fetch them, and return the address (relative to the app's root)."""
    folder = _served_folder()
    folder.mkdir(exist_ok=True)
    path = folder / f"{digest(np.frombuffer(content, np.uint8))}.{suffix}"
    if path.exists():
        os.utime(path)
    else:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        files = sorted(folder.glob("[0-9a-f]*"), key=lambda p: p.stat().st_mtime)
        for old in files[:-KEPT_FILES]:
            old.unlink(missing_ok=True)
    return f"component/{declare_component('arrays', path=str(folder)).name}/{path.name}"


def _plotly() -> str:
    """Address of the installed plotly's plotly.js; the version makes the browser drop an older copy."""
    from importlib.metadata import version

    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise InputError("the package plotly is not installed; install chaffinch again")
    served = declare_component("plotly", path=str(Path(spec.origin).parent / "package_data"))
    return f"component/{served.name}/plotly.min.js?v={version('plotly')}"


@functools.cache
def _component() -> ComponentRenderer:
    return st.components.v2.component("chaffinch.map", js="map.js", css="map.css", isolate_styles=False)


def _nothing() -> None:
    """Streamlit reports a state or an event only if it has a callback."""
