"""The Review page through app.py, without a browser: deciding, undoing, other people, and what it says of the rest."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scenes import planted, put
from streamlit.testing.v1 import AppTest

from chaffinch import checks, reviews
from chaffinch.reviews import Choice, Reviews
from chaffinch.spec import Cut, Spec
from chaffinch.study import Study

APP = str(Path(__file__).parents[2] / "app.py")


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch):
    """A function that opens a view on the Review page and returns it after its first run."""

    def start(spec: Spec) -> AppTest:
        monkeypatch.setenv("CHAFFINCH_SPEC", spec.to_toml())
        app = AppTest.from_file(APP, default_timeout=120).run()
        app.switch_page("pages/review.py").run()
        assert not app.exception, app.exception
        return app

    return start


@pytest.fixture
def spec(arrays_file) -> Spec:
    return Spec(dataset=f"arrays:{arrays_file()}", encoder="features", map="pca", detectors=(Cut("small-loss"),))


@pytest.fixture
def study(spec) -> Study:
    return Study(spec.dataset, "features")


@pytest.fixture
def kept(study, workspace):
    """A function that gives the decisions in force, by id, in words."""
    store = Reviews(workspace.decisions)
    return lambda: {k: str(s.decision) for k, s in store.states(study.dataset.digest).items() if s.decision}


def shown(app: AppTest) -> str:
    """The id of the sample on the page."""
    body = next(h.proto.body for h in app.get("html") if "cf-facts" in h.proto.body)
    return re.search(r"<span>Id</span><b>(.*?)</b>", body)[1]


def press(app: AppTest, what: str) -> AppTest:
    """Press one of the buttons that decide."""
    next(b for b in app.button if b.key and b.key.startswith(f"{what}-")).click().run()
    assert not app.exception, app.exception
    return app


def words(app: AppTest) -> str:
    said = [*app.markdown, *app.caption, *app.info, *app.warning, *app.success, *app.error]
    return " ".join(e.value for e in said).replace("\\", "")


def html(app: AppTest) -> str:
    return " ".join(h.proto.body for h in app.get("html"))


def likeliest(study: Study, show: str = "noisy") -> list[str]:
    verdict = study.verdict()
    order = reviews.queue(verdict.proba, np.full(len(study), -1, np.int8), show)
    return [study.name_of(i) for i in order]


def test_the_likeliest_noise_comes_first_and_nothing_gives_the_truth_away(open_page, spec, study):
    app = open_page(spec)
    first = likeliest(study)[0]
    assert shown(app) == first
    body, i = html(app), study.position(first)
    assert "True label" not in body
    given, rather = (study.observed.classes[v] for v in (study.observed.labels[i], study.verdict().labels[i]))
    assert f"<span>given</span><b>{given}</b>" in body
    assert f"<span>rather</span><b>{rather}</b>" in body
    assert "cut: as many as there is noise, from score" in body
    assert next(b for b in app.button if b.key.startswith("relabel-")).label == f"Relabel to {rather}"


def test_decisions_are_kept_and_the_next_sample_comes(open_page, spec, study, kept):
    app = open_page(spec)
    ids = likeliest(study)
    for i, what in enumerate(("keep", "relabel", "drop")):
        assert shown(app) == ids[i]
        press(app, what)
    verdict = study.verdict()
    rather = study.observed.classes[verdict.labels[study.position(ids[1])]]
    assert kept() == {ids[0]: "keep", ids[1]: f"relabel → {rather}", ids[2]: "drop"}
    assert shown(app) == ids[3]
    again = open_page(spec)
    assert shown(again) == ids[3], "a new session goes on where the last one stopped"
    done = reviews.progress(verdict.kinds, np.array([2 if n in kept() else -1 for n in study.observed.ids], np.int8))
    total = sum(of for _, of in done.values())
    assert f"3 of {total} suspicious samples decided" in json.dumps([p.proto.text for p in again.get("progress")])


def test_another_label_by_its_button(open_page, spec, study, kept):
    app = open_page(spec)
    first = shown(app)
    given = study.observed.labels[study.position(first)]
    buttons = [b for b in app.button if b.key and b.key.startswith("class-")]
    assert [b.label for b in buttons] == list(study.observed.classes)
    assert [b.disabled for b in buttons] == [i == given for i in range(3)]
    target = int(next(i for i in range(3) if i != given))
    buttons[target].click().run()
    assert kept() == {first: f"relabel → {study.observed.classes[target]}"}


def test_undo_brings_the_sample_back(open_page, spec, kept):
    app = open_page(spec)
    first = shown(app)
    press(app, "keep")
    assert shown(app) != first
    app.button(key="undo").click().run()
    assert shown(app) == first
    assert kept() == {}
    app.button(key="undo").click().run()
    assert "There is nothing of" in words(app)


def test_unsure_and_skipped_samples_wait(open_page, spec, study, kept):
    app = open_page(spec)
    ids = likeliest(study)
    press(app, "skip")
    assert shown(app) == ids[1]
    press(app, "unsure")
    assert kept() == {ids[1]: "unsure"}
    assert shown(app) == ids[2]
    app.segmented_control(key="queue").set_value("unsure").run()
    assert shown(app) == ids[1]
    assert "Decided: <b>unsure</b>" in html(app)
    press(app, "drop")
    assert kept() == {ids[1]: "drop"}
    assert "Nothing is left in this queue" in words(app)


@pytest.mark.parametrize("show", ["mislabelled", "ood"])
def test_a_queue_of_one_kind(open_page, spec, study, show):
    app = open_page(replace(spec, queue=show))
    assert shown(app) == likeliest(study, show)[0]
    assert app.query_params["queue"] == show


def test_somebody_else_has_decided_meanwhile(open_page, spec, study, kept, workspace):
    app = open_page(spec)
    first = shown(app)
    Reviews(workspace.decisions).decide(study.dataset.digest, [Choice(first, "drop")], "bob")
    press(app, "keep")
    assert kept() == {first: "drop"}, "nobody is overwritten unseen"
    assert f"{first}: **bob** decided **drop**" in words(app)
    assert shown(app) == first, "one sees what one may replace"
    assert "Decided: <b>drop</b> by bob" in html(app)
    app.button(key="override").click().run()
    assert kept() == {first: "keep"}
    assert "override" not in {b.key for b in app.button}


def test_a_conflict_can_be_left(open_page, spec, study, kept, workspace):
    app = open_page(spec)
    first = shown(app)
    Reviews(workspace.decisions).decide(study.dataset.digest, [Choice(first, "drop")], "bob")
    press(app, "keep")
    app.button(key="leave").click().run()
    assert kept() == {first: "drop"}
    assert shown(app) == likeliest(study)[1]


def test_the_same_key_twice_is_no_conflict(open_page, spec, study, kept, workspace):
    app = open_page(spec)
    first = shown(app)
    who = app.text_input(key="who").value
    Reviews(workspace.decisions).decide(study.dataset.digest, [Choice(first, "keep")], who)
    press(app, "keep")
    assert kept() == {first: "keep"}
    assert "override" not in {b.key for b in app.button}


def test_who_decides_is_kept_and_undo_is_of_ones_own(open_page, spec, study, workspace):
    app = open_page(spec)
    app.text_input(key="who").set_value("zoë").run()
    first = shown(app)
    press(app, "keep")
    assert Reviews(workspace.decisions).states(study.dataset.digest)[first].decision.who == "zoë"
    app.text_input(key="who").set_value("ann").run()
    app.button(key="undo").click().run()
    assert "nothing of ann's to undo" in words(app)
    assert not [b for b in app.button if b.key and b.key.startswith("undo-")]


def test_without_a_name_nothing_is_decided(open_page, spec, kept):
    app = open_page(spec)
    app.text_input(key="who").set_value(" ").run()
    press(app, "keep")
    assert "say who decides" in words(app)
    assert kept() == {}


def test_similar_samples_are_decided_together(open_page, spec, study, kept):
    app = open_page(spec)
    for _ in range(20):  # to the first sample that has similar ones
        together = [b for b in app.button if b.key and b.key.startswith("alike-")]
        if together:
            break
        press(app, "skip")
    count = int(re.search(r"\d+", together[0].label)[0])
    press(app, "alike")
    assert [b.label for b in app.button if b.key.startswith("drop-")] == [f"Drop {count + 1}"]
    press(app, "drop")
    assert len(kept()) == count + 1
    assert set(kept().values()) == {"drop"}
    app.button(key="undo").click().run()
    assert kept() == {}


def test_a_label_for_several_keeps_those_that_have_it(open_page, spec, study, kept):
    app = open_page(replace(spec, queue="ood"))
    for _ in range(20):  # to foreign samples that are alike, under several given labels
        if [b for b in app.button if b.key and b.key.startswith("alike-")]:
            break
        press(app, "skip")
    press(app, "alike")
    first = study.observed.labels[study.position(shown(app))]
    digit = next(i for i in range(3) if i != first)
    [b for b in app.button if b.key and b.key.startswith("class-")][digit].click().run()
    label = study.observed.classes[digit]
    assert len(kept()) > 1
    for name, said in kept().items():
        own = study.observed.labels[study.position(name)] == digit
        assert said == ("keep" if own else f"relabel → {label}")
    assert "keep" in kept().values()


def test_many_together_with_some_left_out(open_page, spec, study, kept, monkeypatch):
    clicks, drawn = [], []

    def gallery(tiles, sheets, *, key, **options):
        if key == "many":
            drawn[:] = tiles
            return clicks.pop() if clicks else None

    monkeypatch.setattr("chaffinch.ui.review.gallery", gallery)
    app = open_page(replace(spec, queue="mislabelled"))
    app.segmented_control(key="way").set_value("many").run()
    ids = [study.name_of(t.index) for t in drawn]
    assert ids == likeliest(study, "mislabelled")[: len(ids)]
    clicks.append(drawn[1].index)
    app.run()
    assert drawn[1].subtitle == "left out"
    press(app, "relabel")
    verdict, names = study.verdict(), study.observed.classes
    decided = kept()
    assert set(decided) == {n for n in ids if n != ids[1] and verdict.labels[study.position(n)] >= 0}
    given = study.observed.labels
    for name, said in decided.items():
        i = study.position(name)
        if verdict.labels[i] != given[i]:
            assert said == f"relabel → {names[verdict.labels[i]]}"


def test_what_the_decisions_teach_is_shown(open_page, spec, study):
    app = open_page(spec)
    assert "none decided yet" in html(app)
    for _ in range(4):
        press(app, "drop")
    body = html(app)
    flags = study.detect("small-loss").flags(Cut("small-loss"))
    seen = sum(flags[study.position(n)] for n in likeliest(study)[:4])
    low, high = reviews.wilson(seen, seen)
    assert f"{seen} of {seen} decided are noisy: 100% ({low:.0%} to {high:.0%})" in body
    codes = np.full(len(study), -1, np.int8)
    codes[[study.position(n) for n in likeliest(study)[:4]]] = 2
    noise = study.verdict().noise
    advice = reviews.advise(noise, codes, reviews.recalibrate(noise, codes))
    assert f"Of 176 undecided samples about **{advice.left:,.0f}**" in words(app)


def test_a_decision_recomputes_nothing(open_page, spec, monkeypatch):
    app, done = open_page(spec), []  # counted: what fails in the thread of the page would not fail the test
    for name in ("study.judge", "study.run_detectors", "workspace.Workspace.store"):
        monkeypatch.setattr(f"chaffinch.{name}", lambda *_, name=name, **__: done.append(name))
    press(app, "keep")
    assert done == []


def test_without_pictures_features_and_verdict_it_still_works(open_page, arrays_file, blobs, workspace):
    p = np.random.default_rng(0).dirichlet(np.ones(3), len(blobs))
    path = arrays_file(features=None, pred_probs=p)
    spec = Spec(dataset=f"arrays:{path}", detectors=(Cut("small-loss"),))
    app = open_page(spec)
    study = Study(spec.dataset)
    scores = study.detect("small-loss").scores
    assert shown(app) == study.name_of(int(np.argsort(-scores, kind="stable")[0]))
    assert "no picture" in html(app)
    assert "Without a verdict" in words(app)
    press(app, "keep")
    assert len(Reviews(workspace.decisions).states(study.dataset.digest)) == 1


def test_many_classes_are_in_a_menu(open_page, arrays_file, blobs, workspace):
    names = np.array([f"kind {i}" for i in range(12)])
    path = arrays_file(classes=names)
    spec = Spec(dataset=f"arrays:{path}", encoder="features", map="pca", detectors=(Cut("knn-label"),))
    app = open_page(spec)
    first = shown(app)
    menu = next(s for s in app.selectbox if s.key and s.key.startswith("other-"))
    menu.set_value("kind 7").run()
    press(app, "give")
    found = Reviews(workspace.decisions).states(Study(spec.dataset).dataset.digest)
    assert str(found[first].decision) == "relabel → kind 7"


def test_names_are_never_markup(open_page, arrays_file):
    evil = np.array(["<img src=x>", "[a](http://b.c)", "c"])
    path = arrays_file(classes=evil, ids=np.array([f"<em>{i}</em>" for i in range(180)]), features=None,
                       pred_probs=np.random.default_rng(0).dirichlet(np.ones(3), 180))  # fmt: skip
    app = open_page(Spec(dataset=f"arrays:{path}", detectors=(Cut("small-loss"),)))
    assert "no picture" in html(app)
    assert not re.search("<img src=x>|<em>", html(app))
    press(app, "keep")
    (line,) = [m.value for m in app.markdown if m.value.startswith("**keep**")]
    assert line.startswith(r"**keep** \<em\>")


def test_a_damaged_file_is_explained(open_page, spec, workspace):
    workspace.decisions.parent.mkdir(parents=True, exist_ok=True)
    workspace.decisions.write_bytes(b"no database" * 100)
    app = open_page(spec)
    assert "reviews.sqlite cannot be used" in words(app)


def test_the_policy_is_counted_and_spelled_as_a_command(open_page, spec, study):
    app = open_page(spec)
    assert "180 kept, 0 relabelled, 0 dropped; 0 decisions count first" in words(app)
    press(app, "drop")
    app.selectbox(key="policy-ood").set_value("drop").run()
    app.slider(key="policy-above").set_value(80).run()
    verdict = study.verdict()
    gone = (verdict.kinds == 2) & (verdict.proba.max(axis=1) >= 0.8)
    gone[study.position(likeliest(study)[0])] = True
    assert f"{180 - gone.sum()} kept, 0 relabelled, {gone.sum()} dropped; 1 decisions count first" in words(app)
    assert "--drop ood --above 0.8" in app.code[0].value


def test_results_are_cleared_and_decisions_stay(open_page, spec, kept, workspace):
    app = open_page(spec)
    press(app, "keep")
    before = kept()
    assert (workspace.root / "results").is_dir()
    app.button(key="clear-results").click().run()
    assert not app.exception
    assert "Cleared: " in words(app)
    assert kept() == before
    assert len(before) == 1


@pytest.fixture
def pictured(tmp_path) -> Spec:
    """A view of a folder with copies, leaks and odd pictures, embedded already."""
    spec = Spec(dataset=put(tmp_path / "planted", planted()), map="pca", detectors=(Cut("small-loss"),))
    Study(spec.dataset).embed()
    return spec


@pytest.fixture
def checked(pictured) -> Spec:
    """The same, and the checks have been made."""
    checks.find(Study(pictured.dataset))
    return pictured


def queues(app: AppTest) -> list[str]:
    return list(app.segmented_control(key="queue").options)


def test_copies_are_shown_side_by_side_until_one_is_left(open_page, checked, workspace):
    app = open_page(replace(checked, queue="duplicates"))
    study = Study(checked.dataset)
    pair = {"train/a/002.png", "train/b/other.png"}
    first = shown(app)
    assert {first} < pair, "those under different labels come first"
    (other,) = pair - {first}
    body = html(app)
    assert f"identical to {other}, which is filed under {other[6]}" in body
    assert f'<figure class="differs"><img alt="picture {other}"' in body
    assert body.count("<figure") == 2
    assert "0 of 8 in this queue decided" in json.dumps([p.proto.text for p in app.get("progress")])
    assert next(b for b in app.button if b.key.startswith("drop-")).proto.type == "primary"
    seen = [first]
    while "Nothing is left in this queue" not in words(app):
        press(app, "drop")
        seen += [shown(app)] if "cf-facts" in html(app) else []
    found = checks.find(study)
    assert len(seen) == 4, "one of each pair is never asked for"
    assert {found.group[study.position(name)] for name in seen} == {0, 1, 2, 3}


def test_leaks_and_odd_pictures_have_queues_with_the_reason(open_page, checked):
    app = open_page(replace(checked, queue="leaks"))
    assert queues(app) == ["All", "Wrong label", "Foreign", "Copies", "In test set", "Odd", "Unsure"]
    assert shown(app) == "train/a/006.png"
    assert "also in the test set: test/a/leak.png, identical" in html(app)
    assert "test set: test/a/leak.png</figcaption>" in html(app)
    press(app, "drop")
    assert shown(app) == "train/a/008.png"
    assert "1 of 2 in this queue decided" in json.dumps([p.proto.text for p in app.get("progress")])
    app.segmented_control(key="queue").set_value("odd").run()
    assert shown(app) == "train/a/blank.png", "nothing is odder"
    assert "blank: one tone all over (93 of 255)" in html(app)
    seen = set()
    for _ in range(7):
        seen.add(shown(app))
        press(app, "skip")
    assert seen == {f"train/a/{check}.png" for check in checks.ODD}


def test_the_reason_is_shown_in_every_queue(open_page, checked):
    app = open_page(replace(checked, sample="train/a/dark.png"))
    assert "dark: 99% of its pixels are at most" in html(app)


def test_the_checks_run_in_the_background_when_their_queue_is_chosen(open_page, pictured, monkeypatch):
    asked = []
    monkeypatch.setattr("chaffinch.ui.jobs.ensure", lambda job, there, *more: asked.append((job.command, there())))
    app = open_page(pictured)
    assert asked == []
    app.segmented_control(key="queue").set_value("odd").run()
    assert asked[0] == (("check", pictured.dataset, "--encoder", Study(pictured.dataset).encoder), False)
    assert "Looking for copies, leaks and odd pictures" in words(app)
    assert "cf-facts" not in html(app)
    checks.find(Study(pictured.dataset))
    app.run()
    assert shown(app) == "train/a/blank.png"


def test_a_decision_in_a_checked_queue_recomputes_nothing(open_page, checked, monkeypatch):
    app, done = open_page(replace(checked, queue="duplicates")), []
    for name in ("study.judge", "workspace.Workspace.store", "workspace.Workspace.find", "checks.find", "checks.look"):
        monkeypatch.setattr(f"chaffinch.{name}", lambda *_, name=name, **__: done.append(name))
    press(app, "keep")
    assert done == []


def test_many_copies_together_leave_one_of_each_group(open_page, checked, workspace, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "chaffinch.ui.review.gallery", lambda tiles, sheets, *, key, **_: drawn.extend(tiles) if key == "many" else None
    )
    app = open_page(replace(checked, queue="duplicates"))
    app.segmented_control(key="way").set_value("many").run()
    study = Study(checked.dataset)
    found = checks.find(study)
    assert sorted(found.group[t.index] for t in drawn) == [0, 1, 2, 3]
    assert {t.subtitle.split(" ")[0] for t in drawn} == {"identical", "copy"}
    press(app, "drop")
    assert len(Reviews(workspace.decisions).states(study.dataset.digest)) == 4


def test_a_dropped_copy_says_nothing_of_its_label(open_page, checked):
    study = Study(checked.dataset)
    flags = study.detect("small-loss").flags(Cut("small-loss"))
    found = checks.find(study)
    app = open_page(replace(checked, queue="duplicates"))
    for _ in range(4):
        press(app, "drop")
    assert "none decided yet" in html(app)
    i = int(np.flatnonzero(flags & ~found.listed)[0])
    app = open_page(replace(checked, sample=study.name_of(i)))
    press(app, "drop")
    assert "1 of 1 decided are noisy" in html(app)


def test_only_queues_that_can_be_filled_are_offered(open_page, spec):
    assert queues(open_page(spec)) == ["All", "Wrong label", "Foreign", "Copies", "Unsure"]


def test_checks_may_drop_in_the_export(open_page, checked):
    app = open_page(checked)
    app.multiselect(key="policy-checks").set_value(["duplicates", "leaks"]).run()
    assert "45 kept, 0 relabelled, 6 dropped; 0 decisions count first" in words(app)
    assert "--drop duplicates,leaks" in app.code[0].value


def test_accuracy_before_and_after_is_measured_on_demand(open_page, checked, spec):
    app = open_page(checked)
    assert "right on" not in words(app)
    app.button(key="benefit").click().run()
    assert not app.exception
    assert "of 10 test samples before" in words(app)
    assert "benefit" not in {b.key for b in app.button}
    assert "has no test split to measure accuracy on" in words(open_page(spec))
