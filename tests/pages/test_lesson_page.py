"""The Lesson page through app.py, without a browser: six steps, all numbers, and a small experiment started here."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from made_lesson import results, row, story, write
from streamlit.testing.v1 import AppTest

from chaffinch import lesson as core
from chaffinch.base.files import write_json
from chaffinch.data import open_dataset
from chaffinch.lesson import Trial
from chaffinch.spec import Spec
from chaffinch.ui import jobs
from chaffinch.ui.jobs import Job

APP = str(Path(__file__).parents[2] / "app.py")


@pytest.fixture
def assets(tmp_path, monkeypatch) -> Path:
    """What is shipped, with an experiment made up by hand."""
    folder, real = tmp_path / "assets", Path(APP).parent / "assets"
    folder.mkdir()
    for name in ("brand", "fashion-web"):
        (folder / name).symlink_to(real / name)
    write(folder / "experiments")
    monkeypatch.setenv("CHAFFINCH_ASSETS", str(folder))
    return folder / "experiments"


@pytest.fixture
def started(monkeypatch) -> list[Job]:
    """The jobs that were begun: none is really."""
    begun: list[Job] = []

    def start(job, kept):
        job.workspace.note(f"command-{job.name}", list(job.command))
        job.workspace.note(job.name, {"what": "starting", "share": 0.0, "pid": os.getpid()} | kept)
        begun.append(job)

    monkeypatch.setattr(jobs, "_start", start)
    return begun


@pytest.fixture
def open_page(assets, started, monkeypatch):
    """A function that opens a view on the Lesson page and returns it after its first run."""

    def start(**view) -> AppTest:
        monkeypatch.setenv("CHAFFINCH_SPEC", Spec(**view).to_toml())
        app = AppTest.from_file(APP, default_timeout=120)
        app.session_state["_shell"] = True
        app.run().switch_page("pages/lesson.py").run()
        assert not app.exception, app.exception
        return app

    return start


def words(app: AppTest) -> str:
    shown = [*app.title, *app.subheader, *app.markdown, *app.caption, *app.info, *app.error, *app.success]
    return " ".join(e.value for e in shown).replace("\\", "") + " ".join(h.proto.body for h in app.get("html"))


def charts(app: AppTest) -> list[str]:
    keys = ("line", "scores", "against", "detail", "classes", "course", "curves")
    return [k for k in keys if any(f"-{k}" in c.proto.id for c in app.get("plotly_chart"))]


def figure(app: AppTest, key: str) -> dict:
    return json.loads(next(c for c in app.get("plotly_chart") if key in c.proto.id).proto.spec)


def drawn(app: AppTest, name: str) -> int:
    return sum(name in c.proto.component_name for c in app.get("bidi_component"))


def test_all_six_steps_are_told(open_page):
    app = open_page()
    assert [s.value.partition(".")[0] for s in app.subheader] == [*"123456", "All numbers", "Run it yourself"]
    assert charts(app) == ["line", "scores", "against", "detail", "classes", "course"]
    assert (drawn(app, "chaffinch.map"), drawn(app, "chaffinch.gallery")) == (2, 2)
    shown, told, kind = words(app), story(), open_dataset(story().dataset).truth.kind
    assert core.line_told(told) in shown
    sentences = [*core.surprise(results(), 0.6), *core.turns_told(told, kind), core.overall(results())]
    assert all(sentence in shown for sentence in sentences)
    assert "**14 clean pictures**" in shown
    assert app.segmented_control(key="lesson-noise").value == 0.6
    assert "".join(app.query_params["noise"]) == "0.6"


def test_a_link_brings_back_level_accuracy_and_epoch(open_page):
    app = open_page(noise=0.6, accuracy="last", epoch=4)
    assert app.segmented_control(key="lesson-accuracy").value == "last"
    assert app.slider(key="lesson-epoch").value == 4
    assert "**Epoch 4 of 6:** it is the turn of **small loss**" in words(app)
    assert core.surprise(results(), 0.6, "accuracy_last")[0] in words(app)
    app.slider(key="lesson-epoch").set_value(5).run()
    assert "".join(app.query_params["epoch"]) == "5"
    assert "**Epoch 5 of 6:** it is the turn of **the plane**" in words(app)
    assert figure(app, "lesson-course")["layout"]["shapes"][-1]["x0"] == 5


@pytest.mark.parametrize("view", [{"noise": 0.3}, {"epoch": 99}, {"accuracy": "none"}])
def test_a_link_that_asks_for_what_is_not_there_opens_as_well_as_it_can(open_page, view):
    app = open_page(**view)
    assert app.segmented_control(key="lesson-noise").value == 0.6
    assert app.slider(key="lesson-epoch").value == 3  # the first of the plane
    assert app.segmented_control(key="lesson-accuracy").value == "best"


def test_a_level_without_a_story_shows_what_there_is(open_page):
    app = open_page(noise=0.2)
    assert charts(app) == ["against"]
    assert sum("The figure for 20% noise is not there yet" in i.value for i in app.info) == 4
    assert "There is one for 60%" in words(app)
    assert drawn(app, "chaffinch.gallery") == 1
    assert core.surprise(results(), 0.2)[0] in words(app)


def test_a_story_without_rows_or_accuracy_is_told(open_page, assets):
    story(accuracy=np.full(6, np.nan, np.float32)).save(assets / "lesson-0.6.npz")
    write_json(assets / "lesson.json", results([row("mixup", 0.2, 0, 0.8)]))
    app = open_page(noise=0.6)
    assert "Nothing has been trained at 60% noise yet" in words(app)
    assert "Accuracy afterwards" not in words(app)
    assert charts(app) == ["line", "scores", "detail", "classes", "course"]


def test_without_results_it_says_what_to_run(open_page, assets, started):
    for path in assets.iterdir():
        path.unlink()
    app = open_page()
    assert "chaffinch experiment lesson" in app.info[0].value
    assert charts(app) == []
    app.button(key="trial-start").click().run()
    assert len(started) == 1


def test_the_truth_is_shown_on_demand(open_page):
    app = open_page()
    app.toggle(key="lesson-truth").set_value(True).run()
    assert not app.exception
    app.button(key="lesson-other").click().run()
    assert app.session_state["lesson-draw"] == 1


def test_switches_change_their_figures(open_page):
    app = open_page()
    best = figure(app, "lesson-scores")["data"][0]["x"]
    app.segmented_control(key="lesson-detector").set_value("rule").run()
    assert figure(app, "lesson-scores")["data"][0]["x"] != best
    assert "Told the truth" not in words(app)
    app.segmented_control(key="lesson-measure").set_value("clean_kept").run()
    assert "Clean kept" in figure(app, "lesson-against")["layout"]["xaxis"]["title"]["text"]
    assert "Told the truth, one flags wrong labels too" in words(app)
    app.segmented_control(key="lesson-where").set_value("plane").run()
    assert not app.exception


def test_play_goes_through_the_epochs_and_ends(open_page):
    app = open_page(epoch=5)
    app.button(key="lesson-play").click().run()
    assert app.button(key="lesson-play").label == "Stop"
    assert app.slider(key="lesson-epoch").value == 6
    app.run()
    assert app.button(key="lesson-play").label == "Play"
    assert app.slider(key="lesson-epoch").value == 6
    app.button(key="lesson-play").click().run()  # and again from the start
    assert app.slider(key="lesson-epoch").value < 6
    app.button(key="lesson-play").click().run()
    assert app.button(key="lesson-play").label == "Play"


def test_all_numbers_are_those_of_the_table_beside_the_papers(open_page):
    app, found = open_page(noise=0.4), results()
    shown = words(app)
    for slug in core.NAMES:
        for noise in (0.2, 0.4, 0.6, 0.8):
            cell = core.cell(found, slug, noise)
            assert core.percent(cell.get("accuracy_best"), cell.get("accuracy_best_sd")) in shown
    for values in core.REFERENCE["rows"].values():
        assert all(f">{core.percent(value)}</td>" in shown for value in values)
    assert "The settings differ" in shown
    assert "84 of 84 trainings: 7 trainers, 4 noise levels, 3 seeds" in shown
    assert "8.6 hours in all, on CPU" in shown
    assert [b.proto.label for b in app.get("download_button")] == ["CSV", "JSON"]


def test_a_small_experiment_is_chosen_and_started(open_page, started, home):
    app = open_page()
    app.segmented_control(key="trial-noise").set_value(0.4).run()
    app.number_input(key="trial-samples").set_value(300).run()
    app.number_input(key="trial-epochs").set_value(3).run()
    app.multiselect(key="trial-trainers").set_value(["oracle", "mixup"]).run()
    app.button(key="trial-start").click().run()
    assert not app.exception
    (job,) = started
    assert Trial.of(job.command) == Trial(0.4, ("mixup", "oracle"), 300, 3, 8)
    assert job.command[-1] == str(home / "experiments" / "live")
    assert app.button(key="trial-stop")
    assert "trial-start" not in {b.key for b in app.button}


def test_nothing_chosen_is_nothing_to_start(open_page):
    app = open_page()
    app.multiselect(key="trial-trainers").set_value([]).run()
    assert app.button(key="trial-start").disabled


@pytest.fixture
def trial(workspace, monkeypatch) -> Trial:
    """An experiment that this workspace has; two of its trainers have had epochs."""
    made = Trial(0.4, ("mixup", "oracle"), 300, 4, 2)
    workspace.note(f"command-{core.NAME}", list(made.command(workspace.root / "experiments" / "live")))
    curves = {"mixup": [0.4, 0.5, 0.5, 0.6], "oracle": [0.6]}
    monkeypatch.setattr(core, "progress", lambda *_: (curves, 65.0))
    return made


def test_an_experiment_at_work_is_watched_and_stopped(open_page, workspace, trial, monkeypatch):
    workspace.note(core.NAME, {"what": "2 of 2: oracle", "share": 0.6, "pid": os.getpid()})
    app = open_page()
    assert "2 of 2: oracle, about 1:05 left" in app.get("progress")[-1].proto.text.replace("\\", "")
    assert [t["name"] for t in figure(app, "trial-curves")["data"]] == ["no detection", "told the truth"]
    monkeypatch.setattr(jobs, "_stop", lambda pid: None)
    app.button(key="trial-stop").click().run()
    assert "The experiment was stopped" in words(app)
    begun: list[bool] = []
    monkeypatch.setattr(Job, "start", lambda job, anew=True: begun.append(anew))
    app.button(key="trial-resume").click().run()
    assert begun == [False]
    app.button(key="trial-close").click().run()
    assert app.button(key="trial-start")


def test_an_experiment_that_failed_says_why(open_page, workspace, trial):
    workspace.note(core.NAME, {"error": "the disk is full"})
    app = open_page()
    assert "the disk is full" in app.error[0].value
    assert app.button(key="trial-resume").label == "Try again"


def test_what_came_out_of_it_is_shown(open_page, workspace, trial, monkeypatch):
    rows = [row("mixup", 0.4, 0, 0.61), row("oracle", 0.4, 0, 0.73, 0.9)]
    monkeypatch.setattr("chaffinch.ui.trial.collect", lambda *_: results(rows, trial.plan))
    workspace.note(core.NAME, {"done": True})
    app = open_page()
    assert "Done: 40% noise, 300 pictures, 4 epochs. This is one seed of a small set" in words(app)
    assert figure(app, "trial-against")
    assert "<td>0.740</td><td>0.730</td><td>0.900</td>" in words(app)
    assert app.button(key="trial-start")
