"""The Compare page through app.py, without a browser: what it shows, with and without truth, what its widgets do."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from chaffinch import comparison
from chaffinch.spec import Cut, Spec
from chaffinch.study import Study

APP = str(Path(__file__).parents[2] / "app.py")
CUTS = (Cut("lsa", rule="own"), Cut("small-loss", rule="own"), Cut("knn-label", budget=0.2))


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch):
    """A function that opens a view on the Compare page and returns it after its first run."""

    def start(spec: Spec) -> AppTest:
        monkeypatch.setenv("CHAFFINCH_SPEC", spec.to_toml())
        app = AppTest.from_file(APP, default_timeout=120).run()
        app.switch_page("pages/compare.py").run()
        assert not app.exception, app.exception
        return app

    return start


@pytest.fixture
def spec(arrays_file) -> Spec:
    return Spec(dataset=f"arrays:{arrays_file()}", encoder="features", map="pca", detectors=CUTS)


def words(app: AppTest) -> str:
    return " ".join(e.value for e in [*app.markdown, *app.caption, *app.info, *app.warning])


def figure(app: AppTest, key: str) -> dict:
    return json.loads(next(c for c in app.get("plotly_chart") if c.proto.id.endswith(f"-{key}")).proto.spec)


def maps(app: AppTest) -> int:
    return sum("chaffinch.map" in c.proto.component_name for c in app.get("bidi_component"))


def test_maps_share_the_points_that_a_browser_can_draw(open_page, spec, monkeypatch):
    monkeypatch.setattr("chaffinch.figures.thinning.MOST", 300)  # a hundred for each of three maps
    monkeypatch.setattr("chaffinch.figures.thinning.POINTS", 120)
    app = open_page(spec)
    assert maps(app) == 3
    assert "Showing 40 of 180 points: the most suspicious (40 of " in words(app)
    monkeypatch.setattr("chaffinch.figures.thinning.MOST", 540)
    assert "as density" not in words(app.run())


def test_first_run_shows_every_section(open_page, spec):
    app = open_page(spec)
    assert maps(app) == 3
    table = app.dataframe[0].value
    assert table["detector"].tolist() == ["Neighbour labels", "Linear separation (LSA)", "Small loss (mixture)"]
    study = Study(spec.dataset, "features")
    lsa = study.detect("lsa")
    expected = study.figures(lsa, lsa.flags(CUTS[0]))
    assert table.iloc[1]["auroc_any"] == pytest.approx(expected["auroc_any"])
    assert table.iloc[0]["flagged"] == 36  # the budget of the view
    assert [len(figure(app, key)["data"]) for key in ("roc", "recall")] == [7, 7]
    assert figure(app, "agreement-order")["data"][0]["zmin"] == -1
    assert figure(app, "overlaps")
    assert figure(app, "noise-True")
    assert app.button(key="measure-stability")
    assert "Where they disagree" in words(app)


def test_without_truth_the_rest_stays_useful(open_page, spec, arrays_file):
    app = open_page(replace(spec, dataset=f"arrays:{arrays_file(truth=False)}"))
    table, cuts = app.dataframe[0].value, app.dataframe[1].value
    assert {"agreement", "flagged", "seconds"} < set(table)
    assert set(cuts["cut"]) >= {"as many as there is noise", "the method's own rule"}
    assert "Is the verdict honest?" not in words(app)
    assert "auroc_any" not in table
    assert "The truth is not known here" in words(app)
    assert "How well each ranks" not in words(app)
    assert figure(app, "overlaps")["data"][0]["name"] == "flagged"
    app.button(key="measure-stability").click().run()
    assert app.dataframe[2].value["order"].between(0, 1).all()


def test_probabilities_alone_are_enough(open_page, arrays_file):
    p = np.random.default_rng(0).dirichlet(np.ones(3), 180)
    path = arrays_file(features=None, pred_probs=p)
    app = open_page(Spec(dataset=f"arrays:{path}", detectors=(Cut("small-loss"), Cut("confident-learning"))))
    assert maps(app) == 0
    assert "so there are no maps" in words(app)
    assert figure(app, "overlaps")


def test_one_detector_is_too_few_and_a_second_is_offered(open_page, spec):
    app = open_page(replace(spec, detectors=(Cut("lsa"),)))
    assert "two detectors at least" in words(app)
    assert not app.dataframe
    app.button(key="add-second").click().run()
    assert not app.exception
    assert maps(app) == 2
    assert [t.key for t in app.toggle if t.value] == ["on-lsa", "on-small-loss"]


def test_of_more_than_four_the_maps_are_chosen(open_page, spec):
    cuts = tuple(Cut(slug) for slug in ("confident-learning", "knn-distance", "knn-label", "lsa", "small-loss"))
    app = open_page(replace(spec, detectors=cuts, compared="lsa,small-loss"))
    assert maps(app) == 2
    assert len(app.dataframe[0].value) == 5
    app.multiselect(key="compared").set_value(["lsa", "small-loss", "knn-label"]).run()
    assert maps(app) == 3
    assert "knn-label" in "".join(app.query_params["compared"])
    app.multiselect(key="compared").set_value([]).run()
    assert maps(app) == 4


def test_curves_of_one_kind_and_of_none(open_page, spec, blobs, arrays_file):
    app = open_page(replace(spec, curves="ood"))
    assert "(0." in figure(app, "roc")["data"][1]["name"]
    kind = np.where(blobs.truth.labels < 0, 0, blobs.truth.labels)
    clean = open_page(replace(spec, dataset=f"arrays:{arrays_file('c.npz', true_labels=kind)}", curves="ood"))
    assert "the truth knows no foreign pictures" in words(clean)


def test_the_disagreement_is_chosen_and_linked(open_page, spec):
    app = open_page(replace(spec, contrast="but:lsa:small-loss"))
    study = Study(spec.dataset, "features")
    lsa, small, budget = (study.detect(c.detector).flags(c) for c in CUTS)
    assert f"{(lsa & ~small).sum()} samples" in words(app)
    app.selectbox(key="contrast-b").select("knn-label").run()
    assert "".join(app.query_params["contrast"]) == "but:lsa:knn-label"
    app.selectbox(key="contrast-mode").select("only").run()
    assert "".join(app.query_params["contrast"]) == "only:lsa"
    assert f"{(lsa & ~small & ~budget).sum()} samples" in words(app)
    app.selectbox(key="contrast-mode").select("rank").run()
    assert "".join(app.query_params["contrast"]).startswith("rank:lsa:")
    app.selectbox(key="contrast-a").select("knn-label").run()  # the other must be another one
    assert not app.exception
    assert "".join(app.query_params["contrast"]).startswith("rank:knn-label:")


def test_a_picked_bar_lists_its_samples(open_page, spec):
    app = open_page(spec)
    assert "exactly" not in app.selectbox(key="contrast-mode").options
    app.session_state["overlaps"] = {"selection": {"points": [{"customdata": "lsa:small-loss"}]}}
    app.run()
    assert not app.exception
    assert app.selectbox(key="contrast-mode").value == "exactly"
    study = Study(spec.dataset, "features")
    flags = {c.detector: study.detect(c.detector).flags(c) for c in CUTS}
    count = {o.slugs: o.count for o in comparison.overlaps(flags)}["lsa", "small-loss"]
    assert f"{count} samples" in words(app)
    assert "".join(app.query_params["contrast"]) == "exactly:lsa:small-loss"


def test_the_selection_of_the_link_limits_the_gallery(open_page, spec):
    app = open_page(replace(spec, contrast="only:lsa", outline="-99,-99 99,-99 99,99 -99,99"))
    whole = words(app)
    assert "of the selection" in whole
    assert "180 samples are selected" in whole
    app = open_page(replace(spec, contrast="only:lsa", outline="98,98 99,98 99,99"))
    assert "0 samples are selected" in words(app)
    assert "Nothing matches" in words(app)


def test_a_sample_of_the_link_is_inspected(open_page, spec):
    app = open_page(replace(spec, sample="b007"))
    assert "<b>b007</b>" in " ".join(h.proto.body for h in app.get("html"))


def test_stability_is_measured_once(open_page, spec, monkeypatch):
    app = open_page(spec)
    app.button(key="measure-stability").click().run()
    first = app.dataframe[2].value
    assert len(first) == 3
    assert first["order"].between(0.3, 1).all()
    computed: list[object] = []  # counted: what fails in the thread of the page would not fail the test
    monkeypatch.setattr(comparison, "_fit", lambda *found: computed.append(found))
    again = open_page(spec)
    assert computed == []
    assert "measure-stability" not in {b.key for b in again.button}
    assert again.dataframe[2].value.equals(first)


def test_a_cut_that_cannot_be_used_is_told(open_page, spec):
    app = open_page(replace(spec, detectors=(Cut("lsa", budget=1.0), Cut("small-loss"))))
    assert "flags all 180 samples" in words(app)
