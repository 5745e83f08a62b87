"""A gallery of clickable thumbnails, drawn from sprite sheets by ``frontend/gallery.js``."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit import runtime
from streamlit.components.v1 import declare_component

from ..base.files import digest
from ..figures.palette import KIND_COLOURS
from ..thumbnails import Sheets

if TYPE_CHECKING:
    from streamlit.components.v2.types import ComponentRenderer

DIFFERS = "#8A94A0"


@dataclass(frozen=True)
class Tile:
    """One thumbnail.

    Attributes:
        index: dataset position.
        title, subtitle: the caption's two lines; cut with an ellipsis where they do not fit.
        tone: "", "flag", "clean", "mislabelled", "ood" or "differs" (from what it is compared with): a coloured edge
            and a glyph.
    """

    index: int
    title: str
    subtitle: str = ""
    tone: str = ""


def gallery(
    tiles: Sequence[Tile],
    sheets: Sheets | None,
    *,
    key: str,
    tile: int = 84,
    selected: int | None = None,
) -> int | None:
    """Draw the tiles as a wrapping grid of buttons.

    Args:
        tiles: what to show, in this order.
        sheets: where their pictures are; None draws neutral tiles with the title only.
        key: identity of this gallery on the page.
        tile: size of a picture in CSS pixels.
        selected: dataset position of the tile to ring.

    Returns:
        The dataset position of the tile that was just clicked, in the run that the click caused; else None.
    """
    if not runtime.exists():
        return None
    data = {
        "tiles": [asdict(t) for t in tiles],
        "strip": _strip(tiles, sheets),
        "size": tile,
        "selected": selected,
        "colours": {**KIND_COLOURS, "differs": DIFFERS},
    }
    result = _component()(key=key, data=data, on_picked_change=_nothing)
    picked: Any = result.get("picked")
    return picked if isinstance(picked, int) and any(t.index == picked for t in tiles) else None


def _strip(tiles: Sequence[Tile], sheets: Sheets | None) -> dict[str, int | str] | None:
    """The pictures of all tiles side by side, small enough to travel with the page."""
    if sheets is None or not tiles:
        return None
    picture = base64.b64encode(sheets.strip(t.index for t in tiles)).decode()
    return {"width": sheets.width, "height": sheets.height, "url": f"data:image/png;base64,{picture}"}


def sheets_data(sheets: Sheets | None) -> dict[str, int | str] | None:
    """What the browser needs to draw a tile: the plan of the sheets, and the address of their folder."""
    if sheets is None:
        return None
    name = f"sheets-{digest(str(sheets.folder.resolve()))}"
    sheets.folder.mkdir(parents=True, exist_ok=True)
    served = declare_component(name, path=str(sheets.folder))  # Streamlit serves the folder under this name
    return {**sheets.plan(), "url": f"component/{served.name}"}


@functools.cache
def _component() -> ComponentRenderer:
    return st.components.v2.component("chaffinch.gallery", js="gallery.js", css="gallery.css", isolate_styles=False)


def _nothing() -> None:
    """Streamlit reports an event only if it has a callback."""
