"""Studies and thumbnails shared by all sessions of one server, found by plain keys."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import lru_cache

from ..base.errors import InputError
from ..data.sources import fingerprint
from ..spec import Spec
from ..study import Study, embeddings, encoder_cards
from ..thumbnails import Sheets, make_sheets
from ..workspace import Workspace

_OPENING = threading.Lock()


def study(spec: Spec) -> Study:
    """The study of a view; one per dataset and encoder (as they are now on disk) and seed.

    Raises:
        InputError: the dataset cannot be opened.
    """
    trained = encoder_cards(Workspace()).get(spec.encoder.partition(":")[0], (None, {}))[1].get("sha256", "")
    with _OPENING:
        return _study(fingerprint(spec.dataset), trained, spec.dataset, spec.encoder, spec.seed, str(Workspace().root))


@lru_cache(maxsize=4)
def _study(state: str, trained: str, dataset: str, encoder: str, seed: int, workspace: str) -> Study:
    return Study(dataset, encoder, workspace=Workspace(workspace), seed=seed)


def sheets(of: Study) -> Sheets | None:
    """Sprite sheets of a study's pictures; those the gallery does not wait for are made in the background."""
    if of.observed.images is None:
        return None
    with _OPENING:
        return _sheets(of)


@lru_cache(maxsize=4)
def _sheets(of: Study) -> Sheets:
    images = of.observed.images
    assert images is not None
    made = make_sheets(images, of.workspace.folder("thumbnails") / of.dataset.digest, wait=False)
    made.fill()
    return made


def encoder_names() -> dict[str, str]:
    """The encoders at hand and one line on each, from their model cards."""
    return {
        spelled: card.get("error") or f"{card['loss']}, {card['epochs']} epochs on {card['dataset']} ({card['device']})"
        for name, (_, card) in encoder_cards(Workspace()).items()
        for spelled in embeddings(name, card)
    }


def warm(spec: Spec) -> None:
    """Open a view ahead of the first visitor, so that the first page waits for nothing."""
    opened = study(spec)
    if opened.has_features() and opened.has_map(spec.map):
        opened.map(spec.map)
        sheets(opened)
        opened.evidence.neighbors  # noqa: B018  the inspector shows them
        with suppress(InputError):  # too few samples, or one class: there is none
            opened.verdict()
        for cut in spec.detectors:
            opened.detect(cut.detector)
