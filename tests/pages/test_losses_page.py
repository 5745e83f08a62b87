"""The Losses page through app.py, without a browser: two encoders side by side, and a training started from here."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from chaffinch import lineup, pulls, registry, training, views
from chaffinch.cli import main
from chaffinch.data import CLEAN, open_dataset
from chaffinch.encoders.train import Recipe, train_encoder
from chaffinch.spec import Cut, Spec
from chaffinch.study import Study
from chaffinch.training import JOB, Plan
from chaffinch.ui import explore, jobs, losses
from chaffinch.ui.jobs import Job
from chaffinch.workspace import Workspace

APP = str(Path(__file__).parents[2] / "app.py")
CUTS = (Cut("knn-label", rule="own"), Cut("knn-distance", rule="own"))
ENCODERS = {"one": ("ce", {"smoothing": 0.1}, 2), "two": ("supcon", {}, 3), "three": ("dcl", {}, 1)}
EVERYTHING = "-99,-99 99,-99 99,99 -99,99"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[str, Path]:
    """A dataset of pictures, and a workspace with three encoders trained on it; two of them are measured."""
    folder = tmp_path_factory.mktemp("built")
    rng = np.random.default_rng(3)
    true = np.arange(90) % 2
    images = rng.integers(0, 60, (90, 12, 12), dtype=np.uint8)
    images[true == 0, ::3] += 150
    images[true == 1, :, ::3] += 150
    given = true.copy()
    given[:16] = 1 - given[:16]
    true[80:] = -1
    images[80:] = rng.integers(0, 256, (10, 12, 12), dtype=np.uint8)
    np.savez(folder / "p.npz", images=images, labels=given, true_labels=true, classes=np.array(["rows", "columns"]))
    name, workspace = f"arrays:{folder / 'p.npz'}", Workspace(folder / "home")
    for encoder, (loss, parameters, epochs) in ENCODERS.items():
        recipe = Recipe(loss=loss, parameters=parameters, epochs=epochs, batch=30, architecture="preact-resnet-8-16-32",
                        device="cpu")  # fmt: skip
        for _ in train_encoder(open_dataset(name), recipe, workspace.folder("encoders"), encoder):
            pass
        study = Study(name, encoder, workspace=workspace)
        study.map("pca")
        study.verdict()
        for cut in CUTS:
            study.detect(cut.detector)
    with pytest.MonkeyPatch.context() as patch:  # all detectors would take a minute
        patch.setattr(lineup, "run_detectors", lambda study, *_, **__: ([study.detect(c.detector) for c in CUTS], {}))
        for encoder in ("one", "two"):
            lineup.measure(Study(name, encoder, workspace=workspace))
    return name, workspace.root


@pytest.fixture
def spec(built, home, tmp_path, monkeypatch) -> Spec:
    """A view of two of them; nothing that is shipped is at hand."""
    assets = tmp_path / "assets"
    shutil.copytree(Path(APP).parent / "assets" / "brand", assets / "brand")
    monkeypatch.setenv("CHAFFINCH_ASSETS", str(assets))
    shutil.copytree(built[1], home, dirs_exist_ok=True)
    return Spec(dataset=built[0], encoder="one", beside="two", map="pca", detectors=CUTS)


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
def open_page(monkeypatch: pytest.MonkeyPatch, started):
    """A function that opens a view on the Losses page and returns it after its first run."""

    def start(spec: Spec) -> AppTest:
        monkeypatch.setenv("CHAFFINCH_SPEC", spec.to_toml())
        app = AppTest.from_file(APP, default_timeout=120).run()
        app.switch_page("pages/losses.py").run()
        assert not app.exception, app.exception
        return app

    return start


def words(app: AppTest) -> str:
    shown = [*app.markdown, *app.caption, *app.info, *app.warning, *app.error, *app.success]
    return " ".join(e.value for e in shown).replace("\\", "")


def figure(app: AppTest, key: str) -> dict:
    return json.loads(next(c for c in app.get("plotly_chart") if c.proto.id.endswith(f"-{key}")).proto.spec)


def charts(app: AppTest) -> set[str]:
    keys = ("history", "pulls", "whereto")
    ids = [c.proto.id for c in app.get("plotly_chart")]
    return {f"{k}-{side}" for k in keys for side in ("left", "right") if any(i.endswith(f"-{k}-{side}") for i in ids)}


def maps(app: AppTest) -> int:
    return sum("chaffinch.map" in c.proto.component_name for c in app.get("bidi_component"))


def galleries(app: AppTest) -> int:
    return sum("chaffinch.gallery" in c.proto.component_name for c in app.get("bidi_component"))


def html(app: AppTest, mark: str) -> str:
    return next((h.proto.body for h in app.get("html") if mark in h.proto.body), "")


def pair(app: AppTest) -> dict[str, tuple[str, str, str]]:
    """Name of a figure -> left and right value, and which is bold: "left", "right" or ""."""
    rows = re.findall(
        r"<th>([^<]+)</th><td class=\"(.*?)\">(.*?)</td><td class=\"(.*?)\">(.*?)</td>", html(app, "cf-pair")
    )
    return {name: (one, two, "left" if a else "right" if b else "") for name, a, one, b, two in rows}


def studies(spec: Spec) -> tuple[Study, Study]:
    return Study(spec.dataset, "one"), Study(spec.dataset, "two")


def test_two_encoders_are_shown_side_by_side(open_page, spec, started):
    app = open_page(spec)
    assert maps(app) == 2
    assert charts(app) == {f"{k}-{side}" for k in ("history", "pulls", "whereto") for side in ("left", "right")}
    for side, study in zip(("left", "right"), studies(spec), strict=True):
        np.testing.assert_allclose(_array(figure(app, f"history-{side}")["data"][0]["y"]), study.card()["history"])
    assert [m.value.count("S_{ip}") for m in app.latex] == [0, 1]
    shown = words(app)
    assert "smoothing** = `0.1`" in shown  # the parameter that was used, not the default
    assert "temperature** = `0.1`" in shown
    assert "Pictures of one given label attract" in shown
    assert started == []


def _array(values) -> np.ndarray:
    if isinstance(values, list):
        return np.array(values)
    import base64

    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])


def test_both_maps_draw_the_same_most_suspicious_of_very_many(open_page, spec, started, monkeypatch):
    monkeypatch.setattr("chaffinch.figures.thinning.MOST", 100)
    monkeypatch.setattr("chaffinch.figures.thinning.POINTS", 40)
    shown = []
    original = losses.scatter_map
    monkeypatch.setattr(
        losses, "scatter_map", lambda *a, **o: (shown.append(o["shown"].tolist()), original(*a, **o))[1]
    )
    app = open_page(spec)
    assert len(shown[0]) == 20
    assert shown[0] == shown[1]
    assert "Showing 20 of 90 points: the most suspicious" in words(app)


def test_the_numbers_are_those_that_were_measured_and_the_better_is_marked(open_page, spec):
    app = open_page(spec)
    rows, found = [lineup.measure(study) for study in studies(spec)], pair(app)
    axes = lineup.with_detectors(cut.detector for cut in CUTS)
    for f in axes:
        values = [lineup.reading(row, f) for row in rows]
        if None in values:
            assert f.name not in found
            continue
        one, two, bold = found[f.name]
        assert (float(one.replace(",", "")), float(two.replace(",", ""))) == pytest.approx(values, abs=0.051)
        assert bold == {-1: "left", 0: "", 1: "right"}[lineup.better(f, *values) if one != two else 0]
    assert {"Verdict F1", "Uniformity", "Neighbour labels AUC"} <= set(found)
    table = app.dataframe[0].value
    assert table["encoder"].tolist() == ["one", "two"]
    assert table["loss"].tolist() == ["ce", "supcon"]
    assert table["uniformity"].tolist() == pytest.approx([row["uniformity"] for row in rows])


def test_pulls_are_told_in_numbers_from_the_record(open_page, spec, built):
    app = open_page(spec)
    data = open_dataset(built[0])
    for study in studies(spec):
        p = pulls.of(study, data)
        (told,) = pulls.told({study.encoder: p})
        assert told in words(app)
        assert f"{p.ratio('mislabelled'):.2f} times" in told
    boxes = figure(app, "pulls-left")["data"]
    assert [b["name"] for b in boxes] == ["clean", "wrong label", "foreign"]


def test_the_other_encoder_is_chosen_and_linked(open_page, spec, started):
    box = open_page(replace(spec, beside="")).selectbox(key="beside")
    assert [option.partition(" ")[0] for option in box.options] == ["three", "two"]
    assert box.value == "three"
    app = open_page(replace(spec, beside_outline=EVERYTHING))
    assert "90 samples are selected" in words(app)
    app.selectbox(key="beside").select("three").run()
    assert not app.exception
    assert "".join(app.query_params["beside"]) == "three"
    assert "beside_outline" not in app.query_params
    assert "samples are selected" not in words(app)


def test_a_selection_on_the_left_is_one_of_samples(open_page, spec):
    one, two = studies(spec)
    half = float(np.median(one.map("pca")[:, 0]))
    app = open_page(replace(spec, outline=f"-99,-99 {half:.2f},-99 {half:.2f},99 -99,99"))
    within = one.map("pca")[:, 0] < round(half, 2)
    counts = np.bincount(one.truth.kind[within], minlength=3)
    shown = words(app)
    assert f"{within.sum()} samples are selected" in shown
    assert f"{counts[0]} clean, {counts[1]} wrong labels, {counts[2]} foreign pictures" in shown
    shares = f"{lineup.together(one, within):.0%} with one and {lineup.together(two, within):.0%} with two"
    assert shares in shown


@pytest.mark.parametrize("by", ["detectors", "verdict"])
def test_samples_flagged_with_one_only_are_counted_by_kind(open_page, spec, by):
    app = open_page(spec)
    app.segmented_control(key="differ-by").set_value(by).run()
    assert not app.exception
    both = studies(spec)
    if by == "verdict":
        flags = [study.verdict().kinds != CLEAN for study in both]
    else:
        flags = [views.vote(90, [s.detect(c.detector) for c in CUTS], CUTS).flagged for s in both]
    shown, kind = words(app), both[0].truth.kind
    assert f"{(flags[0] & flags[1]).sum()} samples are flagged with both" in shown
    for name, own, other in (("one", *flags), ("two", *flags[::-1])):
        alone = own & ~other
        assert f"**{alone.sum()} with {name} only" in shown
        if alone.any():
            counts = np.bincount(kind[alone], minlength=3)
            assert f"{counts[2]} foreign pictures" in shown or not counts[2]


def test_only_detectors_with_a_result_for_both_are_compared(open_page, spec, monkeypatch):
    """A detector that cannot run on one of the two is no effect of the loss."""
    (cut, other), real = CUTS, explore.known_detections

    def without(study, cuts):
        return real(study, cuts if study.encoder == "one" else [cut])

    monkeypatch.setattr(explore, "known_detections", without)
    monkeypatch.setattr(explore, "compute_missing", lambda *_: None)  # it cannot be had
    shown = words(open_page(spec))
    name = registry.get("detector", other.detector).card.name
    assert f"Not counted here, since there is no result for both: {name}" in shown
    flags = [views.vote(90, [s.detect(cut.detector)], CUTS).flagged for s in studies(spec)]
    assert f"{(flags[0] & flags[1]).sum()} samples are flagged with both" in shown
    for who, own, rest in (("one", *flags), ("two", *flags[::-1])):
        assert f"**{(own & ~rest).sum()} with {who} only" in shown


def test_the_pictures_that_pull_hardest_are_shown(open_page, spec, monkeypatch):
    shown, original = {}, losses.gallery

    def keep(tiles, *rest, **more):
        shown[more["key"]] = tiles
        return original(tiles, *rest, **more)

    monkeypatch.setattr(losses, "gallery", keep)
    app = open_page(replace(spec, colour="pull"))
    for side, study in zip(("left", "right"), studies(spec), strict=True):
        ranks = study.pull_ranks
        tiles = [tile.index for tile in shown[f"hardest-{side}"]]
        assert tiles == np.argsort(-ranks, kind="stable")[: len(tiles)].tolist()
        assert len(tiles) == losses.HARDEST
        noise = (study.truth.kind[tiles] != CLEAN).mean()
        assert f"of the first {losses.HARDEST}, {noise:.0%} are noise" in words(app)
    assert app.selectbox(key="colour").value == "pull"


def test_the_json_file_is_what_the_command_prints(open_page, spec, capsys, monkeypatch):
    given = {}
    original = losses.st.delta_generator.DeltaGenerator.download_button

    def keep(self, label, data=None, **more):
        given[label] = data
        return original(self, label, data=data, **more)

    monkeypatch.setattr(losses.st.delta_generator.DeltaGenerator, "download_button", keep)
    open_page(spec)
    assert main(["compare-encoders", spec.dataset, "--encoder", "one", "--encoder", "two", "--json", "--quiet"]) == 0
    assert json.loads(given["JSON"]()) == json.loads(capsys.readouterr().out)


def test_every_figure_names_its_source(open_page, spec):
    shown = words(open_page(spec))
    for figure in lineup.with_detectors(cut.detector for cut in CUTS):
        assert f"**{figure.name}**" in shown
        assert figure.source in shown
        assert figure.source or figure.key == "seconds_per_epoch"


def test_a_sample_is_opened_with_its_neighbours_under_both(open_page, spec):
    plain, opened = open_page(spec), open_page(replace(spec, sample="7"))
    assert galleries(opened) == galleries(plain) + 2
    assert "Its nearest neighbours with two" in words(opened)
    pull = Study(spec.dataset, "one").pull_ranks[7]
    assert f"<span>Pull in training</span><b>harder than {pull:.0%} of the pictures</b>" in html(opened, "cf-facts")
    opened.button(key="close-inspector").click().run()
    assert galleries(opened) == galleries(plain)


def test_one_encoder_alone_offers_to_train_another(open_page, spec, home):
    for path in (home / "encoders").glob("t*"):
        path.unlink()
    app = open_page(spec)
    assert "There is only one encoder at hand" in words(app)
    assert maps(app) == 1
    assert app.button(key="train-start")
    assert "Flagged with one" not in words(app)


def test_features_that_are_missing_are_made_by_a_job(open_page, spec, home, started):
    other = Study(spec.dataset, "two")
    (home / "results" / f"features-{other.key}.npz").unlink()
    app = open_page(spec)
    assert "Its features are not there yet" in words(app)
    assert maps(app) == 1
    assert [job.command[:4] for job in started] == [("embed", spec.dataset, "--encoder", "two")]
    assert app.button(key="beside-stop")
    assert "In numbers" not in words(app)


def test_figures_that_are_missing_are_measured_by_a_job(open_page, spec, started):
    app = open_page(replace(spec, beside="three"))
    assert [job.command for job in started] == [
        ("compare-encoders", spec.dataset, "--seed", "0", "--encoder", "three")
    ]  # fmt: skip
    assert pair(app)["Uniformity"][1] == "–"
    assert pair(app)["Neighbour labels AUC"][1] != "–"  # the detectors that are on have run
    started[0].workspace.note(started[0].name, {"done": True, "skipped": {"three": "it has three heads"}})
    app.run()
    assert "three could not be measured: it has three heads" in words(app)
    assert len(started) == 1


def test_the_rest_is_measured_on_request(open_page, spec, started):
    app = open_page(spec)
    assert app.button(key="measure-rest").label == "Measure three too"
    app.button(key="measure-rest").click().run()
    assert [job.command for job in started] == [("compare-encoders", spec.dataset, "--seed", "0")]
    assert app.button(key="measure-stop")
    assert "measure-rest" not in {b.key for b in app.button}


def test_data_without_pictures_say_so(open_page, arrays_file):
    app = open_page(Spec(dataset=f"arrays:{arrays_file()}", encoder="features", map="pca"))
    assert "There are no pictures in this dataset" in words(app)
    assert maps(app) == 0


def test_an_encoder_without_a_record_says_so(open_page, spec, home):
    (home / "encoders" / "one.record.safetensors").unlink()
    app = open_page(spec)
    assert "left no record" in words(app)
    assert charts(app) >= {"pulls-right", "whereto-right"}
    assert "pulls-left" not in charts(app)


def test_an_encoder_of_an_unknown_loss_is_still_shown(open_page, spec, home):
    path = home / "encoders" / "two.json"
    path.write_text(path.read_text().replace('"loss": "supcon"', '"loss": "mystery"'))
    app = open_page(spec)
    assert "The loss that trained it is not at hand" in words(app)
    assert maps(app) == 2


def test_a_training_is_planned_checked_and_started(open_page, spec, started, workspace):
    app = open_page(spec)
    app.selectbox(key="train-loss").select("ce").run()
    app.number_input(key="train-epochs").set_value(3).run()
    app.number_input(key="train-rate").set_value(1e-3).run()
    app.checkbox(key="train-flip").set_value(False).run()
    app.number_input(key="train-ce-smoothing").set_value(7.0).run()
    app.button(key="train-start").click().run()
    assert "smoothing" in app.error[0].value
    assert started == []
    app.number_input(key="train-ce-smoothing").set_value(0.2).run()
    app.button(key="train-start").click().run()
    assert not app.exception
    plan = Plan.of(list(started[0].command))
    assert plan == Plan(
        spec.dataset, "ce", "ce", {"smoothing": "0.2"}, 3, 90, 0, "preact-resnet-8-16-32", False, learning_rate=1e-3
    )  # fmt: skip
    assert app.button(key="train-stop")
    assert "train-start" not in {b.key for b in app.button}


def test_the_noise_of_bundled_data_is_chosen_for_a_training_alone(open_page, started):
    app = open_page(Spec(dataset="fashion-web:n=300", map="pca", detectors=CUTS))
    noise = app.number_input(key="train-noise-fashion-web:n=300")
    assert noise.value == 40
    assert "It learns from fashion-web:n=300 with 40% noise" in words(app)
    noise.set_value(75).run()
    assert "It learns from fashion-web:noise=0.75,n=300; the rest of this page stays with" in words(app)
    app.button(key="train-start").click().run()
    assert Plan.of(list(started[-1].command)).dataset == "fashion-web:noise=0.75,n=300"


def test_a_training_can_be_watched_while_features_are_missing(open_page, spec, home, started):
    (home / "results" / f"features-{Study(spec.dataset, 'one').key}.npz").unlink()
    app = open_page(spec)
    assert "These pictures have to be embedded first" in " ".join(s.value for s in app.subheader)
    assert app.button(key="train-start")


def test_losses_that_cannot_train_here_are_explained(open_page, spec):
    app = open_page(spec)
    can = [slug for slug, reason in training.losses(open_dataset(spec.dataset)).items() if reason is None]
    assert len(app.selectbox(key="train-loss").options) == len(can)
    assert "supremix needs classes that are numbers" in words(app)


@pytest.fixture
def training_job(spec, workspace) -> Job:
    """A training that this workspace has; what it has shown so far."""
    plan = Plan(spec.dataset, "mine", "ce", {"smoothing": 0.0}, 4)
    workspace.note(f"command-{JOB}", list(plan.command()))
    rows = np.arange(0, 90, 2)
    workspace.store("live", JOB, {"rows": rows, "xy": np.random.default_rng(0).normal(size=(45, 2)).astype(np.float32)})
    return Job(workspace, JOB, plan.command(), "", "train")


def test_a_training_at_work_is_watched_and_stopped(open_page, spec, training_job, workspace, monkeypatch):
    state = {"what": "ce: epoch 3 of 4", "share": 0.6, "left": 65.0, "loss": 1.25, "pid": os.getpid(),
             "history": [3.0, 2.0], "parts": {"p_y": 0.5}, "speed": 430.4}  # fmt: skip
    workspace.note(JOB, state)
    app = open_page(spec)
    bar = app.get("progress")[-1].proto.text.replace("\\", "")
    assert "ce: epoch 3 of 4, loss 1.250, 430 pictures/s, 1:05 left" in bar
    assert maps(app) == 3
    assert _array(figure(app, "train-history")["data"][0]["y"]).tolist() == [3.0, 2.0]
    assert "p_y 0.500" in words(app)
    assert "45 pictures after epoch 2" in words(app)
    monkeypatch.setattr(jobs, "_stop", lambda pid: None)
    app.button(key="train-stop").click().run()
    assert "The training of mine was stopped" in words(app)
    assert figure(app, "train-history")  # what there is stays to be seen
    begun: list[tuple[str, bool]] = []
    monkeypatch.setattr(Job, "start", lambda job, anew=True: begun.append((job.command[2:4], anew)))
    app.button(key="train-resume").click().run()
    assert begun == [(("--loss", "ce"), False)]


def test_a_training_that_lost_its_process_can_go_on_or_be_thrown_away(open_page, spec, training_job, workspace, home):
    workspace.note(JOB, {"what": "x", "share": 0.1, "pid": 2**22 + 1, "history": [3.0]})
    partial = home / "encoders" / "mine.partial.safetensors"
    partial.write_bytes(b"")
    app = open_page(spec)
    assert "was interrupted" in words(app)
    assert app.button(key="train-resume")
    app.button(key="train-discard").click().run()
    assert not partial.exists()
    assert app.button(key="train-start")


def test_a_training_that_failed_says_why(open_page, spec, training_job, workspace):
    workspace.note(JOB, {"error": "the loss became nan in epoch 2", "history": [3.0]})
    app = open_page(spec)
    assert "the loss became nan" in app.error[0].value
    assert app.button(key="train-resume").label == "Try again"


def test_a_trained_encoder_is_put_beside(open_page, spec, training_job, workspace, home):
    for path in (home / "encoders").glob("three.*"):
        path.with_name(path.name.replace("three", "mine")).write_bytes(path.read_bytes())
    workspace.note(JOB, {"done": True, "encoder": "mine", "history": [1.0]})
    app = open_page(spec)
    assert any(option.startswith("mine") for option in app.selectbox(key="beside").options)
    app.button(key="train-show").click().run()
    assert not app.exception
    assert app.selectbox(key="beside").value == "mine"
    assert "train-show" not in {b.key for b in app.button}
    app.button(key="train-close").click().run()
    assert "is trained" not in words(app)
    assert app.button(key="train-start")
