"""The Explore page through app.py, without a browser: what it shows, what switches do, how it fails."""

import io
import os
import re
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from chaffinch import checks
from chaffinch.spec import Cut, Spec
from chaffinch.study import Study
from chaffinch.ui.scatter import MapEvent
from chaffinch.views import tally
from chaffinch.workspace import pack

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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the page last gave to the map and to the gallery; ``outline`` is the selection that the map answers."""
    seen = SimpleNamespace(colours=None, tiles=[], outline=None, options={})

    def scatter_map(xy, colours, **options):
        seen.colours, seen.options = colours, options
        return MapEvent(None, seen.outline)

    def gallery(tiles, sheets, *, key, **options):
        seen.tiles = tiles if key == "gallery" else seen.tiles

    monkeypatch.setattr("chaffinch.ui.explore.scatter_map", scatter_map)
    monkeypatch.setattr("chaffinch.ui.explore.gallery", gallery)
    return seen


def strip(app: AppTest) -> str:
    return next(h.proto.body for h in app.get("html") if "cf-strip" in h.proto.body)


def judged(app: AppTest) -> dict[str, int]:
    """The counts of the verdict's strip; empty where there is none."""
    bodies = [h.proto.body for h in app.get("html") if "cf-verdict" in h.proto.body]
    found = re.findall(r"<b>([\d,]+)</b> (clean|wrong label|foreign) \(", "".join(bodies))
    return {word: int(count.replace(",", "")) for count, word in found}


def groups(app: AppTest) -> dict[str, set[str]]:
    """The switches in each of the sidebar's expanders."""
    return {e.label: {t.key for t in e.toggle} for e in app.sidebar.expander if e.label.startswith("Find ")}


def words(app: AppTest) -> str:
    return " ".join(element.value for element in [*app.error, *app.warning]).replace("\\", "")


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
    app = open_app(replace(spec, detectors=(Cut("lsa", budget=0.05),)))
    before = strip(app)
    assert "<b>9</b><span>flagged</span>" in before
    app.toggle(key="on-small-loss").set_value(True).run()
    assert not app.exception
    assert strip(app) != before
    assert app.query_params["detectors"] == "lsa@budget=0.05,small-loss"


def test_a_map_whose_samples_were_not_all_laid_out_says_so(open_app, spec, monkeypatch):
    study = Study(spec.dataset, "features")
    quality = pack({"trustworthiness": 0.9, "continuity": 0.8, "preservation": 0.2})
    study.workspace.store("map", study.map_key("umap"), {"xy": study.map("pca"), "quality": quality})
    app = open_app(replace(spec, map="umap"))
    told = " ".join(c.value for c in app.caption)
    assert "How far to trust this UMAP map" in told
    assert "laid out" not in told
    monkeypatch.setattr("chaffinch.ui.explore.MOST", 100)
    assert "100 samples were laid out, the others put between their neighbours." in " ".join(
        c.value for c in app.run().caption
    )


def test_a_map_of_very_many_draws_the_most_suspicious_and_says_so(open_app, spec, drawn, monkeypatch):
    monkeypatch.setattr("chaffinch.figures.thinning.MOST", 150)
    monkeypatch.setattr("chaffinch.figures.thinning.POINTS", 60)
    few, whole = Cut("small-loss", budget=0.2), np.array([(-99, -99), (99, -99), (99, 99), (-99, 99)], float)
    app = open_app(replace(spec, detectors=(few,)))
    study = Study(spec.dataset, "features")
    found = study.detect("small-loss")
    shown = drawn.options["shown"]
    assert drawn.options["rest"] is True
    assert shown.tolist() == np.sort(np.argsort(-found.scores, kind="stable")[:60]).tolist()
    assert len(drawn.options["hover"]) == 60
    assert drawn.options["hover"][0].endswith(f"\n{study.observed.ids[shown[0]]}")
    assert len(drawn.colours.values) == 180, "the density picture needs all of them"
    told = " ".join(c.value for c in app.caption)
    assert "Showing 60 of 180 points: the most suspicious (all 36 flagged ones); the rest as density" in told
    drawn.outline = whole
    assert "<b>180</b><span>selected</span>" in strip(app.run()), "drawn or not"

    drawn.outline = None
    app = open_app(replace(spec, detectors=()))
    assert "Showing 60 of 180 points: a random draw; the rest as density" in " ".join(c.value for c in app.caption)
    monkeypatch.setattr("chaffinch.figures.thinning.MOST", 180)
    app = open_app(spec)
    assert drawn.options["shown"] is None
    assert len(drawn.options["hover"]) == 180
    assert "as density" not in " ".join(c.value for c in app.caption)


def test_switches_that_are_on_come_first_and_the_rest_by_what_it_finds(open_app, spec):
    app = open_app(replace(spec, detectors=(Cut("lsa"),)))
    before = groups(app)
    assert list(before) == ["Find wrong labels", "Find foreign pictures", "Find both"]
    assert "on-knn-distance" in before["Find foreign pictures"]
    assert "on-small-loss" in before["Find wrong labels"] | before["Find both"]
    assert not any("on-lsa" in keys for keys in before.values())
    assert app.sidebar.toggle[0].key == "on-lsa"

    app.toggle(key="on-knn-distance").set_value(True).run()
    assert not app.exception
    assert [t.key for t in app.sidebar.toggle][:2] == ["on-knn-distance", "on-lsa"]
    assert groups(app) == {name: keys - {"on-knn-distance"} for name, keys in before.items()}
    assert app.selectbox(key="rule-knn-distance").value == "rate"
    assert app.query_params["detectors"] == "knn-distance,lsa"

    app.toggle(key="on-knn-distance").set_value(False).run()
    assert not app.exception
    assert groups(app) == before
    assert app.query_params["detectors"] == "lsa"
    assert "rule-knn-distance" not in {s.key for s in app.selectbox}


def test_the_last_detector_may_be_switched_off(open_app, spec):
    app = open_app(replace(spec, detectors=(Cut("lsa"),)))
    app.toggle(key="on-lsa").set_value(False).run()
    assert not app.exception
    assert "<b>0</b><span>flagged</span>" in strip(app)
    assert app.query_params["detectors"] == ""
    assert sum(map(len, groups(app).values())) == len(app.sidebar.toggle)


@pytest.mark.parametrize("rule", ["own", "mixture", "contradiction"])
def test_a_cut_is_changed_by_its_menu(open_app, spec, rule):
    app = open_app(replace(spec, detectors=(Cut("small-loss"),)))
    assert app.selectbox(key="rule-small-loss").value == "rate"
    app.selectbox(key="rule-small-loss").set_value(rule).run()
    assert not app.exception
    count = int(Study(spec.dataset).detect("small-loss").flags(Cut("small-loss", rule=rule)).sum())
    assert f"<b>{count}</b><span>flagged</span>" in strip(app)
    assert app.query_params["detectors"] == f"small-loss@{rule}"
    assert any(c.value.startswith(f"flags {count} (") and "of them noisy" in c.value for c in app.sidebar.caption)


def test_a_menu_offers_budget_and_score(open_app, spec):
    app = open_app(replace(spec, detectors=(Cut("lsa"),)))
    app.selectbox(key="rule-lsa").set_value("budget").run()
    own = float(Study(spec.dataset).detect("lsa").own.mean())
    assert app.slider(key="budget-lsa").value == pytest.approx(100 * own, abs=0.05)
    assert app.query_params["detectors"].startswith("lsa@budget=")
    app.selectbox(key="rule-lsa").set_value("score").run()
    assert not app.exception
    assert app.query_params["detectors"].startswith("lsa@score=")
    app.selectbox(key="rule-lsa").set_value("rate").run()
    assert app.query_params["detectors"] == "lsa"


def test_contradiction_is_for_detectors_that_suggest_labels(open_app, spec):
    app = open_app(spec)
    assert "where it would relabel" in app.selectbox(key="rule-small-loss").options
    assert "where it would relabel" not in app.selectbox(key="rule-lsa").options
    app = open_app(replace(spec, detectors=(Cut("lsa", rule="contradiction"),)))
    assert app.selectbox(key="rule-lsa").value == "rate"
    assert app.query_params["detectors"] == "lsa"


def test_a_link_with_a_rule_is_read_and_written(spec):
    app = AppTest.from_file(APP, default_timeout=120)
    app.query_params.update(spec.to_query() | {"detectors": "lsa@own,small-loss@mixture"})
    app.run()
    assert not app.exception
    assert app.selectbox(key="rule-lsa").value == "own"
    assert app.selectbox(key="rule-small-loss").value == "mixture"
    assert app.query_params["detectors"] == "lsa@own,small-loss@mixture"
    own = int(Study(spec.dataset).detect("lsa").own.sum())
    assert any(c.value.startswith(f"flags {own} (") for c in app.sidebar.caption)


def test_the_verdict_is_counted_above_the_map(open_app, spec, drawn):
    app = open_app(spec)
    counts = tally(Study(spec.dataset).verdict(), None)
    assert judged(app) == dict(zip(("clean", "wrong label", "foreign"), counts.values(), strict=True))
    assert not app.warning

    drawn.outline = np.array([[-1e3, -1e3], [0, -1e3], [0, 1e3], [-1e3, 1e3]])  # the left half
    app.run()
    selected = int(re.search(r"<b>(\d+)</b><span>selected", strip(app)).group(1))
    assert 0 < selected < 180
    assert sum(judged(app).values()) == selected


def test_the_map_is_coloured_by_the_verdict(open_app, spec, drawn):
    app = open_app(spec)
    app.selectbox(key="colour").set_value("verdict").run()
    assert not app.exception
    verdict = Study(spec.dataset).verdict()
    assert (drawn.colours.title, drawn.colours.names) == ("Verdict", ("clean", "mislabelled", "ood"))
    np.testing.assert_array_equal(drawn.colours.values, verdict.kinds)
    assert app.query_params["colour"] == "verdict"
    tones = {t.index: t.tone for t in drawn.tiles}
    assert all(tones[i] == drawn.colours.names[verdict.kinds[i]] for i in tones)


@pytest.mark.parametrize(("show", "code"), [("mislabelled", 1), ("ood", 2)])
def test_the_gallery_lists_what_the_verdict_says(open_app, spec, drawn, show, code):
    app = open_app(spec)
    app.selectbox(key="show").set_value(show).run()
    assert not app.exception
    assert app.query_params["show"] == show
    study = Study(spec.dataset)
    verdict, given = study.verdict(), study.observed.labels
    there = np.flatnonzero(verdict.kinds == code)
    assert any(c.value.startswith(f"{len(there)} samples") for c in app.caption)
    assert {t.index for t in drawn.tiles} == set(there)
    assert {t.tone for t in drawn.tiles} == {show}
    sure = [verdict.proba[t.index, code] for t in drawn.tiles]
    assert sure == sorted(sure, reverse=True)
    names = study.observed.classes
    if show == "ood":
        assert {t.subtitle for t in drawn.tiles} == {"foreign"}, "no advice to file it under another class"
    else:
        for tile in drawn.tiles:
            if verdict.labels[tile.index] != given[tile.index]:
                assert tile.subtitle == f"→ {names[verdict.labels[tile.index]]}"
            else:
                assert tile.subtitle != f"→ {names[given[tile.index]]}", "no advice to keep it"


@pytest.mark.parametrize("encoder", ["", "simclr"])
def test_features_without_pictures_leave_no_choice_of_encoder(open_app, arrays_file, encoder):
    app = open_app(Spec(dataset=f"arrays:{arrays_file()}", encoder=encoder, map="pca", sample="b007"))
    choice = app.selectbox(key="encoder")
    assert (choice.value, choice.options) == ("features", ["features in the data"])
    assert "encoder" not in app.query_params
    assert app.query_params["sample"] == "b007", "the view is as it was"


def test_without_truth_costs_are_the_verdicts(open_app, arrays_file):
    app = open_app(Spec(dataset=f"arrays:{arrays_file(truth=False)}", encoder="features", map="pca"))
    costs = [c.value for c in app.sidebar.caption if c.value.startswith("flags ")]
    assert len(costs) == 2
    assert all(
        re.fullmatch(r"flags \d+ \(.*%\): by the verdict, about \d+% of them noisy, .*% of the clean ones stay", cost)
        for cost in costs
    )


def test_a_weak_verdict_warns(open_app, arrays_file):
    noise = np.random.default_rng(0).normal(size=(180, 12)).astype(np.float32)
    app = open_app(Spec(dataset=f"arrays:{arrays_file(features=noise)}", encoder="features", map="pca"))
    assert "little to judge by" in words(app)
    assert sum(judged(app).values()) == 180


@pytest.mark.parametrize("case", ["few samples", "one class"])
def test_without_a_verdict_the_detectors_still_work(open_app, arrays_file, drawn, case):
    few = case == "few samples"
    path = arrays_file(rows=slice(0, 19)) if few else arrays_file(labels=np.zeros(180, np.int64), true_labels=None)
    slugs = ("knn-label", "knn-distance")
    app = open_app(
        Spec(dataset=f"arrays:{path}", encoder="features", map="pca", detectors=tuple(map(Cut, slugs)),
             colour="verdict", show="mislabelled")
    )  # fmt: skip
    assert ("19 samples are too few to judge" if few else "all samples carry the same label") in words(app)
    assert judged(app) == {}
    study = Study(f"arrays:{path}")
    flagged = np.logical_or(*(study.detect(slug).own for slug in slugs)).sum()
    assert f"<b>{flagged}</b><span>flagged</span>" in strip(app)
    assert "verdict" not in app.selectbox(key="colour").options
    assert not [option for option in app.selectbox(key="show").options if option.startswith("Verdict")]
    assert drawn.colours.title == "Given label"
    assert "show" not in app.query_params, "the default list"
    app.selectbox(key="rule-knn-distance").set_value("budget").run()
    assert not app.exception
    assert not app.error


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
    assert bodies.count('class="cf-bar"') == 3, "the verdict's and one a detector"
    chances = Study(spec.dataset).verdict().proba[7]
    assert "clean {:.0%} · wrong label {:.0%} · foreign {:.0%}".format(*chances) in bodies
    assert "<span>if it is in a class: " in bodies
    assert len(re.findall(r" = chance \d+%</span>", bodies)) == 2
    app.button(key="close-inspector").click().run()
    assert "<b>b007</b>" not in " ".join(h.proto.body for h in app.get("html"))


def test_the_inspector_says_why_the_checks_list_a_sample(open_app, arrays_file, blobs):
    features = blobs.observed.features.copy()
    features[8] = features[7]
    spec = Spec(dataset=f"arrays:{arrays_file(features=features)}", encoder="features", map="pca", sample="b007")

    def html() -> str:
        return " ".join(h.proto.body for h in open_app(spec).get("html"))

    assert "copy of b008" not in html(), "nobody has looked yet"
    checks.find(Study(spec.dataset, "features"))
    assert "<div>copy of b008" in html()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.full((180, 12), np.nan, np.float32)}, "no row can"),
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
    assert "verdict" not in words(app), "nobody asked for it"
    assert "<b>180</b><span>samples</span>" in strip(app)
    assert judged(app) == {}
    assert "verdict" not in app.selectbox(key="colour").options
    assert not [option for option in app.selectbox(key="show").options if option.startswith("Verdict")]
    own = int(Study(f"arrays:{path}").detect("small-loss").own.sum())
    assert f"<b>{own}</b><span>flagged</span>" in strip(app)


@pytest.mark.parametrize(
    ("evidence", "some", "runs"),
    [
        ("features", {"symile-fit", "tacred-extrinsic"}, {"lsa", "small-loss", "aum"}),
        ("pred_probs", {"lsa", "knn-distance", "aum", "vim"}, {"small-loss", "confident-learning", "msp"}),
    ],
)
def test_a_switch_that_would_do_nothing_says_what_is_missing(open_app, arrays_file, evidence, some, runs):
    given = {"features": None, "pred_probs": np.full((180, 3), 1 / 3)} if evidence == "pred_probs" else {}
    study = Study(f"arrays:{arrays_file(**given)}")
    app = open_app(Spec(dataset=study.dataset.name, map="pca", detectors=()))
    switches = {t.key.removeprefix("on-"): t for t in app.sidebar.toggle}
    off = {slug for slug, switch in switches.items() if switch.disabled}
    assert off == {slug for slug in switches if study.lacking(slug)}
    assert some <= off <= set(switches) - runs
    for slug, switch in switches.items():
        told = switch.help.replace("\\", "")
        assert told.count(f"{slug} needs ") == (slug in off)
        assert not (missing := study.lacking(slug)) or told.startswith(f"*Not here:* {missing}.")


def test_a_detector_that_is_on_and_cannot_run_can_be_switched_off(open_app, arrays_file):
    path = arrays_file(features=None, pred_probs=np.random.default_rng(0).dirichlet(np.ones(3), 180))
    app = open_app(Spec(dataset=f"arrays:{path}", detectors=(Cut("knn-distance"), Cut("small-loss"))))
    switch = app.toggle(key="on-knn-distance")
    assert (switch.value, switch.disabled) == (True, False)
    assert "knn-distance needs neighbors" in switch.help.replace("\\", "")
    switch.set_value(False).run()
    switch = app.toggle(key="on-knn-distance")
    assert (switch.value, switch.disabled) == (False, True)
    assert not app.warning


def test_other_data_begin_with_detectors_that_can_run_unless_some_were_chosen(open_app, arrays_file):
    whole = arrays_file()
    bare = arrays_file("bare.npz", features=None, pred_probs=np.random.default_rng(0).dirichlet(np.ones(3), 180))

    def on() -> set[str]:
        assert not app.exception
        return {t.key.removeprefix("on-") for t in app.sidebar.toggle if t.value}

    app = open_app(Spec(dataset=f"arrays:{bare}", map="pca"))
    assert on() == {"small-loss"}
    assert not app.warning
    for path, usual in ((whole, {"lsa", "small-loss"}), (bare, {"small-loss"}), (whole, {"lsa", "small-loss"})):
        app.text_input(key="file").set_value(str(path)).run()
        assert on() == usual
    app.toggle(key="on-knn-distance").set_value(True).run()
    app.text_input(key="file").set_value(str(bare)).run()
    assert on() == {"lsa", "small-loss", "knn-distance"}


def test_a_detector_switched_on_again_shows_its_cut_at_once(open_app, spec):
    app = open_app(spec)
    app.toggle(key="on-lsa").set_value(False).run()
    assert "rule-lsa" not in {s.key for s in app.selectbox}
    app.toggle(key="on-lsa").set_value(True).run()
    assert "rule-lsa" in {s.key for s in app.selectbox}


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


def test_a_job_that_fails_says_why_until_it_is_tried_again(open_app, arrays_file, workspace, save_encoder):
    save_encoder().unlink()
    grey = np.zeros((180, 12, 12), np.uint8)
    spec = Spec(dataset=f"arrays:{arrays_file(features=None, images=grey)}", encoder="tiny")
    app = open_app(spec)
    assert not app.error
    note = next(workspace.folder("notes").glob("embed-*.json"))
    wait_for(lambda: "error" in (workspace.noted(note.stem) or {}))
    for _ in range(2):  # it stays
        app.run()
        assert "tiny.safetensors are missing" in app.error[0].value.replace("\\", "")
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


def test_an_app_that_others_can_reach_says_so(open_app, spec, monkeypatch):
    def said(app: AppTest) -> list[str]:
        return [c.value for c in app.sidebar.caption if "Open to other machines" in c.value]

    address = "127.0.0.1"
    ask = st.get_option
    monkeypatch.setattr("streamlit.get_option", lambda key: address if key == "server.address" else ask(key))
    assert said(open_app(spec)) == []
    address = "0.0.0.0"
    assert "0\\.0\\.0\\.0" in said(open_app(spec))[0]
    address = None  # what the server takes for "every address"
    assert "every address" in said(open_app(spec))[0]


def test_the_first_screen_waits_for_no_sprite_sheet(arrays_file, monkeypatch):
    from chaffinch import thumbnails
    from chaffinch.ui import cached

    monkeypatch.setattr(thumbnails, "_write_sheet", lambda *_: pytest.fail("a sheet was made in the page's thread"))
    monkeypatch.setattr(thumbnails.Sheets, "fill", lambda self: None)  # the background's part
    path = arrays_file(features=None, images=np.zeros((180, 8, 8), np.uint8))
    assert cached.sheets(Study(f"arrays:{path}")).count == 180


def test_the_record_of_a_training_is_picked_and_its_course_is_drawn(open_app, spec, a_run):
    data = Study(spec.dataset, "features").dataset
    seen = replace(spec, sample="b002", detectors=(Cut("aum"),))
    assert "run" not in {box.key for box in open_app(seen).selectbox}
    name = a_run(data)
    app = open_app(seen)
    before = found_by(app, "aum")
    app.selectbox(key="run").set_value(name).run()
    assert not app.exception
    assert app.query_params["run"] == name
    assert any("How pls\\-lsa learnt it" in caption.value for caption in app.caption)
    assert len(app.get("plotly_chart")) == 1
    assert found_by(app, "aum") != before, "the detector reads another record"


def found_by(app: AppTest, slug: str) -> str:
    """What the inspector says of a detector."""
    html = next(h.proto.body for h in app.get("html") if "cf-facts" in h.proto.body)
    return html[html.index(f"<b>{slug}</b>") :]


def test_a_run_that_is_not_there_is_explained(open_app, spec):
    app = open_app(replace(spec, run="gone"))
    assert any("gone" in error.value for error in app.error)


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (12, 12), value).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def birds(tmp_path) -> Path:
    """A folder of two classes, twenty pictures each, with one file that is none."""
    for i in range(40):
        path = tmp_path / "birds" / ("finch", "o*w*l")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(6 * i))
    (tmp_path / "birds" / "finch" / "[x](http:).png").write_bytes(b"no picture")
    return tmp_path / "birds"


def sidebar(app: AppTest) -> str:
    return " ".join(caption.value for caption in app.sidebar.caption).replace("\\", "")


def test_a_bare_path_opens_and_the_sidebar_shows_at_once_what_was_found(open_app, birds, save_encoder):
    save_encoder(sizes={"shape": [1, 9, 8]})
    app = open_app(Spec(encoder="tiny", map="pca"))
    app.selectbox(key="source").set_value("own").run()
    assert "path of your data" in app.info[0].value
    app.text_input(key="file").set_value(f" {birds} ").run()
    assert not app.exception
    assert app.query_params["dataset"] in (f"folder:{birds}", [f"folder:{birds}"])
    assert "have to be embedded first" in app.subheader[0].value
    assert "40 pictures; 12 × 12 pixels, grey; tiny sees pictures in grey at 8 × 9" in sidebar(app)
    assert {"2 classes", "1 warning"} <= {e.label for e in app.sidebar.expander}
    assert "finch: 20  \no*w*l: 20" in sidebar(app)
    assert "finch/[x](http:).png is no picture" in sidebar(app)
    assert "[x](" not in " ".join(caption.value for caption in app.sidebar.caption), "a name is no link"


def test_photographs_are_opened_with_their_own_encoder_unless_another_is_chosen(open_app, tmp_path, save_encoder):
    save_encoder()
    for i in range(12):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 30, 3), 20 * i, np.uint8)).save(path)
    app = open_app(Spec(dataset="fashion-web:n=40", encoder="tiny", map="pca"))
    app.selectbox(key="source").set_value("own").run()
    app.text_input(key="file").set_value(str(tmp_path / "photos")).run()
    assert not app.exception
    assert app.selectbox(key="encoder").value == "efficientnet-lite0"
    assert "have to be embedded first" in app.subheader[0].value
    assert "encoder" not in app.query_params
    assert "EfficientNet-Lite0, for photographs: trained on ImageNet-1k" in sidebar(app)
    assert "sees pictures in colour at 112 × 112" in sidebar(app)
    app.selectbox(key="encoder").set_value("tiny").run()
    assert app.query_params["encoder"] in ("tiny", ["tiny"])
    app.selectbox(key="source").set_value("bundled").run()
    assert app.selectbox(key="encoder").value == "simclr"
    assert not app.exception


def test_a_folder_is_shown_as_any_other_dataset(open_app, birds, save_encoder, workspace, drawn):
    save_encoder()
    name = f"folder:{birds}"
    Study(name, "tiny").map("pca")
    app = open_app(Spec(dataset=name, encoder="tiny", map="pca", sample="finch/0.png"))
    assert app.text_input(key="file").value == str(birds)
    assert "<b>40</b><span>samples</span>" in strip(app)
    assert len(drawn.tiles) == 40
    assert "Filed under finch" in " ".join(m.value for m in app.markdown)


def test_a_zip_that_is_dropped_is_unpacked_into_the_workspace_and_opened(open_app, birds, save_encoder, workspace):
    save_encoder()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in birds.rglob("*.png"):
            archive.write(path, f"birds/{path.relative_to(birds)}")
    app = open_app(Spec(encoder="tiny", map="pca"))
    app.selectbox(key="source").set_value("own").run()
    app.file_uploader[0].set_value(("birds.zip", stream.getvalue(), "application/zip")).run()
    assert not app.exception
    assert not app.error
    (place,) = (workspace.root / "archives").iterdir()
    assert app.text_input(key="file").value == f"folder:{place / 'birds'}"
    assert "40 pictures; 12 × 12 pixels, grey" in sidebar(app)
    assert "sees pictures" not in sidebar(app)


def test_a_zip_that_is_refused_says_why(open_app, workspace):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../evil.png", png(1))
    app = open_app(Spec())
    app.selectbox(key="source").set_value("own").run()
    app.file_uploader[0].set_value(("evil.zip", stream.getvalue(), "application/zip")).run()
    assert "the archive is refused: ../evil.png has a path" in words(app)
    assert list((workspace.root / "archives").iterdir()) == []
