"""The Explore page through app.py, without a browser: what it shows, what switches do, how it fails."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from chaffinch.spec import Cut, Spec

APP = str(Path(__file__).parents[2] / "app.py")


@pytest.fixture
def open_app(monkeypatch: pytest.MonkeyPatch):
    """A function that opens a view and returns the page after its first run."""

    def start(spec: Spec) -> AppTest:
        monkeypatch.setenv("CHAFFINCH_SPEC", spec.to_toml())
        app = AppTest.from_file(APP, default_timeout=120).run()
        assert not app.exception, app.exception
        return app

    return start


@pytest.fixture
def spec(arrays_file) -> Spec:
    return Spec(dataset=f"arrays:{arrays_file()}", encoder="features", map="pca")


def strip(app: AppTest) -> str:
    return next(h.proto.body for h in app.get("html") if "cf-strip" in h.proto.body)


def test_first_run_shows_figures_switches_and_samples(open_app, spec):
    app = open_app(spec)
    body = strip(app)
    assert "<b>180</b><span>samples</span>" in body
    assert all(name in body for name in ("precision", "recall", "F1", "clean kept"))
    assert {t.key for t in app.toggle if t.key and t.key.startswith("on-")} >= {
        "on-lsa",
        "on-small-loss",
        "on-knn-label",
    }
    assert app.toggle(key="on-lsa").value is True
    assert app.toggle(key="on-knn-distance").value is False


def test_switching_a_detector_changes_the_counts_and_the_link(open_app, spec):
    app = open_app(spec)
    before = strip(app)
    app.toggle(key="on-knn-distance").set_value(True).run()
    assert not app.exception
    assert strip(app) != before
    assert "knn-distance" in "".join(app.query_params["detectors"])


def test_a_budget_flags_that_share(open_app, spec):
    app = open_app(Spec(dataset=spec.dataset, encoder="features", map="pca", detectors=(Cut("lsa", budget=0.1),)))
    assert "<b>18</b><span>flagged</span>" in strip(app)
    app.slider(key="budget-lsa").set_value(20.0).run()
    assert "<b>36</b><span>flagged</span>" in strip(app)


def test_without_truth_only_counts_are_shown(open_app, arrays_file):
    app = open_app(Spec(dataset=f"arrays:{arrays_file(truth=False)}", encoder="features", map="pca"))
    assert "precision" not in strip(app)
    assert "The truth is not known" in strip(app)
    assert "kind" not in app.selectbox[2].options


def test_a_sample_of_the_link_is_inspected(open_app, spec):
    app = open_app(Spec(dataset=spec.dataset, encoder="features", map="pca", sample="b007"))
    bodies = " ".join(h.proto.body for h in app.get("html"))
    assert "<b>b007</b>" in bodies
    assert bodies.count('class="cf-bar"') == 2
    app.button(key="close-inspector").click().run()
    assert "<b>b007</b>" not in " ".join(h.proto.body for h in app.get("html"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.full((180, 12), np.nan, np.float32)}, "row 0 holds NaN"),
        ({"labels": np.zeros(180, np.int64)}, "only one class"),
        ({"labels": np.full(180, 99)}, "label 99 is not one of the 3 classes"),
    ],
)
def test_bad_input_is_explained_not_traced(open_app, arrays_file, change, message):
    app = open_app(Spec(dataset=f"arrays:{arrays_file(**change)}", encoder="features", map="pca"))
    shown = " ".join(e.value for e in [*app.error, *app.warning])
    assert message in shown
    assert "Traceback" not in shown


def test_a_missing_file_and_a_missing_encoder_are_explained(open_app, tmp_path):
    app = open_app(Spec(dataset=f"arrays:{tmp_path / 'none.npz'}"))
    assert "cannot be read" in app.error[0].value
    app = open_app(Spec(dataset="fashion-web:n=50", encoder="nothing"))
    assert "no encoder called 'nothing'" in app.error[0].value


def test_a_damaged_pool_is_explained(open_app, tmp_path, monkeypatch):
    (tmp_path / "fashion-web").mkdir()
    (tmp_path / "brand").mkdir()
    real = Path(APP).parent / "assets"
    (tmp_path / "brand" / "logo.svg").write_bytes((real / "brand" / "logo.svg").read_bytes())
    (tmp_path / "fashion-web" / "pool.json").write_bytes((real / "fashion-web" / "pool.json").read_bytes())
    (tmp_path / "fashion-web" / "pool.npz").write_bytes((real / "fashion-web" / "pool.npz").read_bytes()[:1000])
    monkeypatch.setenv("CHAFFINCH_ASSETS", str(tmp_path))
    app = open_app(Spec(dataset="fashion-web:n=60"))
    assert "is damaged" in app.error[0].value


def test_pages_are_thin():
    for path in (Path(APP).parent / "pages").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
    assert os.path.basename(APP) == "app.py"


def test_probabilities_alone_are_enough_for_some_detectors(open_app, arrays_file, blobs):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), len(blobs))
    path = arrays_file(features=None, pred_probs=p)
    app = open_app(Spec(dataset=f"arrays:{path}", detectors=(Cut("small-loss"), Cut("lsa"))))
    assert "there is no map" in app.info[0].value
    assert "lsa needs features" in " ".join(w.value for w in app.warning)
    assert "<b>180</b><span>samples</span>" in strip(app)


def test_a_detector_switched_on_again_shows_its_cut_at_once(open_app, spec):
    app = open_app(spec)
    app.toggle(key="on-lsa").set_value(False).run()
    assert "rule-lsa" not in {g.key for g in app.button_group}
    app.toggle(key="on-lsa").set_value(True).run()
    assert "rule-lsa" in {g.key for g in app.button_group}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("fashion-web:noise=7", "between 0 and 1"),
        ("fashion-web:colour=1", "no option"),
        ("nothing:x", "unknown dataset"),
    ],
)
def test_a_bad_dataset_in_a_link_is_explained(open_app, dataset, message):
    app = open_app(Spec(dataset=dataset))
    assert message in app.error[0].value


def test_a_link_with_any_seed_opens(open_app):
    app = open_app(Spec(dataset="fashion-web:n=40,seed=20000", encoder="nothing"))
    assert app.number_input[0].value == 20000


def test_a_broken_model_card_disables_only_itself(open_app, spec, workspace):
    (workspace.folder("encoders") / "broken.json").write_text("{")
    app = open_app(spec)
    assert not app.error
    app = open_app(Spec(dataset="fashion-web:n=40", encoder="broken"))
    assert "cannot be read as JSON" in app.error[0].value


def test_nothing_in_a_message_becomes_markup():
    from chaffinch.ui.shell import plain

    assert plain("![x](http://a.b/c.png)") == r"\!\[x\]\(http\:\/\/a\.b\/c\.png\)".replace(r"\/", "/")


def wait_for(true, seconds: float = 90):
    until = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < until
        time.sleep(0.2)
    return value


def test_a_job_that_fails_says_why_until_it_is_tried_again(open_app, arrays_file, workspace):
    colour = np.zeros((180, 12, 12, 3), np.uint8)
    spec = Spec(dataset=f"arrays:{arrays_file(features=None, images=colour)}")
    app = open_app(spec)
    assert not app.error
    note = next(workspace.folder("notes").glob("embed-*.json"))
    wait_for(lambda: "error" in (workspace.noted(note.stem) or {}))
    for _ in range(2):  # it stays
        app.run()
        assert "trained on pictures with 1 channel" in app.error[0].value.replace("\\", "")
    assert app.button(key="job-resume").label == "Try again"


def test_a_job_is_shared_by_tabs_and_can_be_stopped(open_app, arrays_file, workspace, monkeypatch):
    grey = np.zeros((180, 28, 28), np.uint8)
    spec = Spec(dataset=f"arrays:{arrays_file(features=None, images=grey)}")
    first = open_app(spec)
    note = next(workspace.folder("notes").glob("embed-*.json"))
    pid = workspace.noted(note.stem)["pid"]
    open_app(spec)
    assert workspace.noted(note.stem)["pid"] == pid
    first.button(key="job-stop").click().run()
    assert "Stopped" in first.info[0].value
    assert workspace.noted(note.stem) == {"stopped": True}
    wait_for(lambda: not os.path.exists(f"/proc/{pid}") or not os.path.exists("/proc"))
    assert not list(workspace.root.rglob(".*.npz"))  # nothing half-written stays
    first.button(key="job-resume").click().run()
    wait_for(lambda: workspace.noted(note.stem) == {"done": True})
    first.run()
    assert "<b>180</b><span>samples</span>" in strip(first)


def test_the_first_screen_waits_for_no_sprite_sheet(arrays_file, monkeypatch):
    from chaffinch import thumbnails
    from chaffinch.study import Study
    from chaffinch.ui import cached

    monkeypatch.setattr(thumbnails, "_write_sheet", lambda *_: pytest.fail("a sheet was made in the page's thread"))
    monkeypatch.setattr(thumbnails.Sheets, "fill", lambda self: None)  # the background's part
    path = arrays_file(features=None, images=np.zeros((180, 8, 8), np.uint8))
    assert cached.sheets(Study(f"arrays:{path}")).count == 180
