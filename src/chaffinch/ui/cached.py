"""Studies and thumbnails shared by all sessions of one server, found by plain keys."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import checks as checking
from .. import lesson
from .. import pulls as core
from ..base.errors import InputError
from ..base.files import assets_dir
from ..data import NoisyDataset, open_dataset
from ..data.sources import fingerprint
from ..lineup import Row, at_hand, figures_key, stored
from ..spec import Spec
from ..study import SMALL, Study, default_encoder, embeddings, encoder_cards
from ..thumbnails import Sheets, make_sheets
from ..workspace import Workspace

_OPENING = threading.RLock()


def study(spec: Spec) -> Study:
    """The study of a view; one per dataset and encoder (as they are now on disk) and seed.

    Raises:
        InputError: the dataset cannot be opened.
    """
    encoder = spec.encoder or usual_encoder(spec.dataset)
    trained = encoder_cards(Workspace()).get(encoder.partition(":")[0], (None, {}))[1].get("sha256", "")
    with _OPENING:
        workspace = Workspace()
        return _study(
            fingerprint(spec.dataset), trained, _written(workspace, spec.run), spec.dataset, spec.encoder, spec.run,
            spec.seed, str(workspace.root),
        )  # fmt: skip


def _written(workspace: Workspace, run: str) -> int:
    """When a run was last written; it grows while it is trained."""
    path = workspace.root / "runs" / run / "run.json"
    return path.stat().st_mtime_ns if run and path.exists() else 0


@lru_cache(maxsize=6)
def _study(
    state: str, trained: str, written: int, dataset: str, encoder: str, run: str, seed: int, workspace: str
) -> Study:
    return Study(_dataset(state, dataset), encoder, workspace=Workspace(workspace), seed=seed, run=run)


def dataset(name: str) -> NoisyDataset:
    """A dataset as it is now on disk, shared by all studies of it.

    Raises:
        InputError: it cannot be opened.
    """
    with _OPENING:
        return _dataset(fingerprint(name), name)


@lru_cache(maxsize=3)
def _dataset(state: str, name: str) -> NoisyDataset:
    return open_dataset(name)


def sheets(of: Study) -> Sheets | None:
    """Sprite sheets of a study's pictures; those the gallery does not wait for are made in the background."""
    return thumbnails(of.dataset, of.workspace)


def thumbnails(of: NoisyDataset, workspace: Workspace) -> Sheets | None:
    """Sprite sheets of a dataset's pictures, as `sheets`."""
    images = of.observed.images
    if images is None:
        return None
    with _OPENING:
        folder = workspace.folder("thumbnails") / of.digest
        if folder not in _sheets:
            while len(_sheets) >= 4:
                _sheets.pop(next(iter(_sheets)))
            _sheets[folder] = make_sheets(images, folder, wait=False)
            _sheets[folder].fill()
        return _sheets[folder]


_sheets: dict[Path, Sheets] = {}


_checks: dict[str, checking.Checks] = {}


def checks(of: Study) -> checking.Checks | None:
    """What the checks found in a study; None where nobody has looked yet."""
    key = checking.key(of)
    if key not in _checks and checking.known(of):
        while len(_checks) >= 4:
            _checks.pop(next(iter(_checks)), None)
        _checks[key] = checking.find(of)
    return _checks.get(key)


def forget() -> None:
    """Let go of everything that speaks of results on disk, after those were cleared."""
    with _OPENING:
        _sheets.clear()
        _rows.clear()
        _checks.clear()
        _study.cache_clear()
        _pulls.cache_clear()


def usual_encoder(name: str) -> str:
    """The encoder of a dataset for those who choose none; where that cannot be opened, the one for small pictures."""
    try:
        return default_encoder(dataset(name).observed, encoder_cards(Workspace()))[0]
    except InputError:
        return SMALL


def _line(card: dict[str, Any]) -> str:
    if "error" in card or card.get("about"):
        return str(card.get("error") or f"{card['about']['name']}: trained on {card['dataset']}")
    return f"{card['loss']}, {card['epochs']} epochs on {card['dataset']} ({card['device']})"


def embedding_names() -> dict[str, str]:
    """All features that the encoders at hand give, by name, and one line on each."""
    cards = encoder_cards(Workspace()).items()
    return {full: _line(card) for name, (_, card) in cards for full in embeddings(name, card)}


_rows: dict[str, Row] = {}


def measured(spec: Spec) -> tuple[dict[str, Row], list[str]]:
    """Figures of the encoders at hand on a view's dataset, as far as they are known, and the names of the rest."""
    workspace, known, rest = Workspace(), dict[str, Row](), list[str]()
    state = fingerprint(spec.dataset)
    cards = {name: card for name, (_, card) in encoder_cards(workspace).items() if "error" not in card}
    wanted = at_hand(cards, usual_encoder(spec.dataset))
    for name, card in cards.items():
        for full in embeddings(name, card):
            key = _figures_key(state, card["sha256"], spec.dataset, full, spec.seed, str(workspace.root))
            if key not in _rows and (row := stored(workspace, key)) is not None:
                _rows[key] = row
            if key in _rows:
                known[full] = _rows[key]
            elif full in wanted:
                rest.append(full)
    return known, rest


@lru_cache(maxsize=512)
def _figures_key(state: str, trained: str, dataset: str, encoder: str, seed: int, workspace: str) -> str:
    with _OPENING:
        return figures_key(Study(_dataset(state, dataset), encoder, workspace=Workspace(workspace), seed=seed))


def pulls(of: Study) -> core.Pulls | str:
    """How hard the samples pulled when the encoder of a study was trained, or why that is not known.

    Raises:
        InputError: the record is damaged, or there is no such encoder.
    """
    return _pulls(of, of.knows_verdict())


@lru_cache(maxsize=6)
def _pulls(of: Study, judged: bool) -> core.Pulls | str:
    card, trained_on = of.card(), None
    if card.get("dataset_digest") == of.dataset.digest:
        trained_on = of.dataset
    else:
        with suppress(InputError):
            trained_on = dataset(card["dataset"])
            trained_on = trained_on if trained_on.digest == card.get("dataset_digest") else None
    return core.of(of, trained_on)


def lesson_results() -> dict[str, Any] | None:
    """What the shipped experiment of the lesson has found; None if there is nothing, or not one row."""
    path = assets_dir() / "experiments" / f"{lesson.NAME}.json"
    if not path.exists():
        return None
    found = _results(path, path.stat().st_mtime_ns)
    return found if found["rows"] else None


@lru_cache(maxsize=2)
def _results(path: Path, changed: int) -> dict[str, Any]:
    return lesson.results(folder=path.parent)


def story(path: Path) -> lesson.Story:
    """One noise level of the lesson.

    Raises:
        InputError: its file is damaged.
    """
    return _story(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _story(path: Path, changed: int) -> lesson.Story:
    return lesson.Story.load(path)


def turning(path: Path) -> Any:
    """The figure with the line that turns, of one noise level, as `story`."""
    return _turning(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _turning(path: Path, changed: int) -> Any:
    from ..figures.lesson import turning as figure

    told = _story(path, changed)
    truth = dataset(told.dataset).truth
    assert truth is not None  # the lesson's draws are made with it
    seen = lesson.turn(told.plane, truth.kind)
    return figure(told.plane, truth.kind, seen.degrees, seen.edges, seen.shares, seen.auroc)


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
