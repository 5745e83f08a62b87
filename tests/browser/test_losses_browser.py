"""The Losses page in a real browser: samples selected on one map are marked on the other, and a training is watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from acts import drag, picture

from chaffinch import lineup
from chaffinch.data import open_dataset
from chaffinch.encoders.train import Recipe, train_encoder
from chaffinch.study import Study
from chaffinch.training import JOB, free_name
from chaffinch.ui.jobs import Job
from chaffinch.ui.scatter import inside
from chaffinch.views import read_outline
from chaffinch.workspace import Workspace

WAIT = 120_000  # ms; the machine may be busy


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A dataset of 240 pictures of stripes, and two encoders trained on it, in a workspace."""
    folder = tmp_path_factory.mktemp("losses")
    rng = np.random.default_rng(3)
    true = np.arange(240) % 2
    images = rng.integers(0, 60, (240, 12, 12), dtype=np.uint8)
    images[true == 0, ::3] += 150
    images[true == 1, :, ::3] += 150
    given = true.copy()
    given[:40] = 1 - given[:40]
    np.savez(folder / "p.npz", images=images, labels=given, true_labels=true)
    name, workspace = f"arrays:{folder / 'p.npz'}", Workspace(folder / "home")
    for loss in ("ce", "supcon"):
        recipe = Recipe(loss=loss, epochs=2, batch=60, architecture="preact-resnet-8-16-32", device="cpu")
        for _ in train_encoder(open_dataset(name), recipe, workspace.folder("encoders"), f"{loss}-mine"):
            pass
        study = Study(name, f"{loss}-mine", workspace=workspace)
        study.map("pca")
        with pytest.MonkeyPatch.context() as patch:  # all detectors would take a minute
            patch.setattr(lineup, "run_detectors", lambda study, *_, **__: ([study.detect("knn-label")], {}))
            lineup.measure(study)
    return name, workspace.root


@pytest.fixture(scope="module")
def server(start_app: Any, built: tuple[str, Path]) -> Any:
    return start_app(CHAFFINCH_HOME=str(built[1]), CHAFFINCH_THREADS="1")


@pytest.fixture
def visit(open_tab: Any, server: str, built: tuple[str, Path]) -> Any:
    """A function that opens the two encoders on the page in a fresh session and waits for both maps."""

    def go(width: int = 1400, scheme: str = "light") -> Any:
        view = f"dataset={built[0]}&encoder=ce-mine&beside=supcon-mine&map=pca&detectors=knn-label&colour=kind"
        page = open_tab(f"{server}/losses?{view}", width, 3600, scheme, wait=WAIT)
        page.wait_for_function("() => document.querySelectorAll('.chf-map[data-paint]').length >= 2", timeout=WAIT)
        page.wait_for_selector("text=/Start training|was stopped|is trained, and/")
        return page

    return go


COLOURED = """() => [...document.querySelectorAll('.chf-plot')].slice(0, 2).map(({ data }) => data.slice(1)
  .flatMap(({ x, y }) => [...x].map((v, i) => [v, y[i]])).filter(([v]) => !Number.isNaN(v)))"""


def lit(page: Any, studies: tuple[Study, Study]) -> list[set[int]]:
    """The samples that are in colour on either map, found by their positions."""
    found = []
    for study, points in zip(studies, page.evaluate(COLOURED), strict=True):
        at = {tuple(np.round(place, 4)): i for i, place in enumerate(study.map("pca").astype(float))}
        found.append({at[tuple(np.round(point, 4))] for point in points})
    return found


def test_samples_selected_on_one_map_are_marked_on_the_other(visit: Any, built: tuple[str, Path]) -> None:
    page, workspace = visit(), Workspace(built[1])
    studies = tuple(Study(built[0], name, workspace=workspace) for name in ("ce-mine", "supcon-mine"))
    everything = [set(range(240))] * 2
    assert lit(page, studies) == everything
    page.get_by_label("Select with a box").nth(0).click()
    assert page.get_by_label("Select with a box").nth(1).get_attribute("aria-pressed") == "true"
    drag(page, [(0.02, 0.02), (0.5, 0.98)])
    page.wait_for_selector("text=samples are selected")
    left, right = lit(page, studies)
    assert left == right
    assert 0 < len(left) < 240
    assert page.get_by_text(f"{len(left)} samples are selected").is_visible()
    page.wait_for_function("() => location.search.includes('outline=')")  # the link is written when all is drawn
    first = page.evaluate("() => new URL(location).searchParams.get('outline')")
    assert left == set(np.flatnonzero(inside(studies[0].map("pca"), read_outline(first))).tolist())
    outlines = page.locator(".chf-outline")
    assert outlines.nth(0).get_attribute("d")
    assert not outlines.nth(1).get_attribute("d")  # the other map has the samples, not the polygon

    drag(page, [(0.02, 0.98), (0.5, 0.2)], at=1)
    page.wait_for_function("() => location.search.includes('beside_outline')")
    again = lit(page, studies)
    assert again[0] == again[1] != left
    assert not outlines.nth(0).get_attribute("d")
    assert outlines.nth(1).get_attribute("d")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=samples are selected", state="detached")
    assert lit(page, studies) == everything


PLACES = "() => JSON.stringify(document.querySelectorAll('.chf-plot')[2]?.data.map(({ x }) => [...x]))"


def start(page: Any, epochs: int) -> None:
    """Start a training with the generalised cross-entropy."""
    page.locator(".st-key-train-loss input").click()
    page.keyboard.type("Generalised")
    page.keyboard.press("Enter")
    page.wait_for_selector(".st-key-train-gce-q")
    field = page.get_by_role("spinbutton", name="Epochs")
    field.fill(str(epochs))
    field.press("Enter")
    page.wait_for_timeout(700)
    page.get_by_role("button", name="Start training").click()


@pytest.fixture
def noted(built: tuple[str, Path]) -> Iterator[Callable[[], dict[str, Any]]]:
    """What the note of the training says; a training that is still at work is ended afterwards."""
    workspace = Workspace(built[1])
    yield lambda: workspace.noted(JOB)
    Job(workspace, JOB, (), "").stop()


def test_a_training_is_started_watched_stopped_resumed_and_used(
    visit: Any, built: tuple[str, Path], noted: Any
) -> None:
    name = free_name(Workspace(built[1]), "gce")
    page, partial = visit(), built[1] / "encoders" / f"{name}.partial.safetensors"
    start(page, 3000)
    page.wait_for_selector(".st-key-train-history .js-plotly-plot")
    page.wait_for_function("() => document.querySelectorAll('.chf-map[data-paint]').length === 3", timeout=WAIT)
    page.wait_for_selector("text=/epoch \\d+ of 3000, loss \\d\\.\\d+, [\\d,]+ pictures.s, \\d+:\\d\\d left/")
    places = page.evaluate(PLACES)
    page.wait_for_function(f"places => ({PLACES})() !== places", arg=places, timeout=WAIT)  # it moves with the epochs
    page.locator(".st-key-train-stop button").click()
    page.wait_for_selector(f"text=/The training of {name} was stopped/")
    before = noted()
    assert before["stopped"]
    assert len(before["history"]) >= 1
    assert partial.exists()

    other = visit()  # another tab sees the same
    other.get_by_role("button", name="Resume").click()
    page.wait_for_selector("text=/epoch \\d+ of 3000/")  # and the first one notices
    deadline = time.monotonic() + WAIT / 1000
    while len((now := noted())["history"]) <= len(before["history"]):
        assert time.monotonic() < deadline
        page.wait_for_timeout(100)
    np.testing.assert_allclose(now["history"][: len(before["history"])], before["history"])  # it went on, not over
    page.locator(".st-key-train-stop button").click()
    page.get_by_role("button", name="Discard").click()
    page.wait_for_selector("text=Start training")
    assert not partial.exists()

    start(page, 1)
    page.wait_for_selector(f"text=/{name} is trained, and among the encoders above/")
    page.get_by_role("button", name="Put it beside ce-mine").click()
    page.wait_for_function("name => new URL(location).searchParams.get('beside') === name", arg=name)
    page.wait_for_function("() => document.querySelectorAll('.chf-map[data-paint]').length === 2", timeout=WAIT)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_maps_are_stacked(visit: Any, scheme: str) -> None:
    page = visit(width=420, scheme=scheme)
    boxes = [page.locator(".chf-map").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    assert all(box["width"] <= 420 for box in boxes)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 420
    picture(page, f"losses-narrow-{scheme}")
