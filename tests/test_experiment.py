"""Experiments: what is planned, that every part is done once whatever happens, and what a row says."""

import json
from dataclasses import replace

import numpy as np
import pytest

from chaffinch import experiment
from chaffinch.base.errors import InputError
from chaffinch.base.training_run import TrainingRun
from chaffinch.data import Split, open_dataset
from chaffinch.experiment import Plan, collect, find_plan, run, run_folder, summary, table
from chaffinch.metrics.detection import decision, ranking

TINY = Plan(
    "tiny", trainers=("mixup", "pls-lsa"), noises=(0.4, 0.6), seeds=(0, 1), samples=60, epochs=2, batch=30,
    start_epochs=1, start_batch=30, architecture="preact-resnet-8-16-32",
)  # fmt: skip


def opened(name):
    """A draw with few test samples."""
    dataset = open_dataset(name)
    return replace(dataset, test=Split(dataset.test.images[:40], dataset.test.labels[:40]), trusted=())


@pytest.fixture(autouse=True)
def small_test_split(monkeypatch):
    monkeypatch.setattr(experiment, "open_dataset", opened)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny experiment, done at once."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "open_dataset", opened)
        return folder, run(TINY, folder)


def plain(rows):
    """Rows without how long they took."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


class TestPlan:
    def test_the_lesson(self):
        plan = find_plan("lesson")
        assert set(plan.trainers) == {"mixup", "small-loss", "lsa", "alternate", "pls", "pls-lsa", "oracle"}
        assert (plan.noises, plan.seeds) == ((0.2, 0.4, 0.6, 0.8), (0, 1, 2))
        assert len(plan.cells()) == 84
        assert plan.dataset(0.6).startswith("fashion-web:noise=0.6")
        assert "n=500" in replace(plan, samples=500).dataset(0.2)

    def test_warm_up_is_a_share_of_the_epochs(self):
        plan = replace(TINY, epochs=30, warmup=1 / 6, parameters={"pls-lsa": {"threshold": 0.5}})
        assert plan.told("pls-lsa") == {"warmup": 5, "threshold": 0.5}
        assert plan.told("mixup") == {}
        assert replace(plan, epochs=2).told("pls-lsa")["warmup"] == 1
        assert replace(plan, parameters={"pls-lsa": {"warmup": 7}}).told("pls-lsa") == {"warmup": 7}
        assert replace(plan, warmup=0.0).told("pls-lsa") == {"threshold": 0.5}
        assert plan.budget("pls-lsa") != replace(plan, warmup=0.5).budget("pls-lsa")

    def test_unknown_names(self):
        with pytest.raises(InputError, match="no experiment called 'lessons'; there are lesson"):
            find_plan("lessons")
        with pytest.raises(InputError, match="pls-lsb"):
            replace(TINY, trainers=("pls-lsb",))
        with pytest.raises(InputError, match="tresh"):
            replace(TINY, parameters={"mixup": {"tresh": 1}})

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"epochs": 0}, "at least one epoch, got 0"), ({"start_epochs": -1}, "at least one epoch, got -1"),
         ({"noises": (1.2,)}, "noise"), ({"samples": 0}, "n")],
    )  # fmt: skip
    def test_a_budget_that_cannot_be(self, change, message):
        with pytest.raises(InputError, match=message):
            replace(TINY, **change)

    @pytest.mark.parametrize("field", ["trainers", "noises", "seeds"])
    def test_an_empty_plan(self, field):
        with pytest.raises(InputError, match="at least one trainer, one noise level and one seed"):
            replace(TINY, **{field: ()})

    def test_a_bad_seed(self):
        with pytest.raises(InputError, match="seed must be 0 to"):
            replace(TINY, seeds=(-1,))

    def test_a_row_depends_on_its_own_trainer_only(self, tmp_path):
        cell = ("mixup", 0.6, 0)
        more = replace(TINY, trainers=("mixup", "oracle"), seeds=(0, 1, 2), parameters={"oracle": {"alpha": 0.5}})
        assert run_folder(more, cell, tmp_path) == run_folder(TINY, cell, tmp_path)
        for change in ({"epochs": 3}, {"samples": 61}, {"parameters": {"mixup": {"alpha": 0.5}}}):
            assert run_folder(replace(TINY, **change), cell, tmp_path) != run_folder(TINY, cell, tmp_path)


class TestRun:
    def test_every_cell_has_a_row_in_its_order(self, whole):
        folder, found = whole
        assert [(row["trainer"], row["noise"], row["seed"]) for row in found["rows"]] == TINY.cells()
        assert found == json.loads((folder / "tiny.json").read_text()) == collect(TINY, folder)
        assert {row["trainer"]: row["seeds"] for row in found["table"]} == {"mixup": 2, "pls-lsa": 2}
        assert set(found["starts"]) == {"0.4", "0.6"}
        assert found["plan"]["epochs"] == 2
        assert len(list((folder / "starts").glob("*.json"))) == 2, "one start a noise level"

    def test_what_is_done_is_not_done_again(self, whole, monkeypatch):
        folder, found = whole
        monkeypatch.setattr("chaffinch.trainers.train.train", lambda *_: pytest.fail("it was done"))
        assert run(TINY, folder) == found

    def test_cut_off_it_goes_on_and_ends_in_the_same_numbers(self, whole, tmp_path):
        calls = []

        def interrupt(what, share):
            calls.append((what, share))
            if len(calls) in (2, 5, 8):
                raise KeyboardInterrupt

        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                run(TINY, tmp_path, report=interrupt)
        assert plain(run(TINY, tmp_path)["rows"]) == plain(whole[1]["rows"])
        shares = [share for what, share in calls if what.startswith("1 of 8")]
        assert all(0 <= share <= 1 for share in shares)

    def test_shares_make_the_whole(self, whole, tmp_path):
        half = run(TINY, tmp_path, (1, 2))
        assert len(half["rows"]) == 4
        assert {row["trainer"] for row in half["rows"]} == {"mixup"}
        assert plain(run(TINY, tmp_path, (2, 2))["rows"]) == plain(whole[1]["rows"])

    def test_progress_is_that_of_the_whole(self, tmp_path):
        told = []
        run(replace(TINY, noises=(0.6,), seeds=(0,)), tmp_path, report=lambda what, share: told.append((what, share)))
        shares = [share for _, share in told]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1)
        assert {what.partition(":")[0] for what, _ in told} == {"1 of 2", "2 of 2"}
        assert "1 of 2: SimCLR start, 60% noise" in dict(told)


class TestSummary:
    def test_a_row_by_hand(self, blobs, a_run, workspace):
        kind = blobs.truth.kind
        told = TrainingRun(workspace.root / "runs" / a_run(blobs))
        for epoch in told.epochs:
            epoch["accuracy"] = 0.5 + 0.1 * (epoch["epoch"] == 2)
        row = summary(told, blobs, ("pls-lsa", 0.4, 7))
        assert (row["trainer"], row["noise"], row["seed"]) == ("pls-lsa", 0.4, 7)
        assert (row["accuracy_best"], row["accuracy_last"]) == (0.6, 0.5)
        force = [np.arange(len(kind)) % 5 == e for e in (1, 2)]  # in the last two of the four epochs
        for key in ("balanced_accuracy", "clean_kept", "precision"):
            assert row[key] == pytest.approx(np.mean([decision(flags, kind)[key] for flags in force]))
        assert row["auroc_ood"] is None, "these epochs have no scores"
        assert row["correlation"] is None
        assert row["course"]["detector"] == ["", "lsa", "small-loss", "lsa"]
        assert row["course"]["clean_kept"][0] is None

    def test_ranks_and_their_correlation(self, blobs, a_run, workspace, monkeypatch):
        told = TrainingRun(workspace.root / "runs" / a_run(blobs))
        y, kind = blobs.observed.labels, blobs.truth.kind
        real = TrainingRun.epoch

        def scored(self, e):
            record = real(self, e)
            return replace(record, scores=record.losses(y) * (-1 if e == 3 else 1), detector="lsa")

        monkeypatch.setattr(TrainingRun, "epoch", scored)
        for epoch in told.epochs:
            epoch["accuracy"] = 0.5
        row = summary(told, blobs, ("lsa", 0.4, 0))
        assert row["correlation"] == pytest.approx(-1), "scores against losses, after the last quarter of the epochs"
        expected = [ranking(scored(told, e).scores.astype(float), kind)["auroc_ood"] for e in (1, 2)]
        assert row["auroc_ood"] == pytest.approx(np.mean(expected))

    def test_no_detector(self, whole):
        rows = [row for row in whole[1]["rows"] if row["trainer"] == "mixup"]
        assert all(row[key] is None for row in rows for key in ("auroc_ood", "clean_kept", "precision", "correlation"))


def test_table_averages_over_seeds():
    keys = ("auroc_ood", "balanced_accuracy", "clean_kept", "precision", "correlation")
    rows = [
        {"trainer": t, "noise": 0.2, "seed": s, "accuracy_best": a + s, "accuracy_last": a, **dict.fromkeys(keys)}
        for t, a in (("mixup", 0.5), ("pls", 0.7)) for s in (0, 0.1, 0.2)
    ]  # fmt: skip
    rows.append({**rows[0], "noise": 0.4, "clean_kept": 0.9})
    one, two, three = table(rows)
    assert (one["trainer"], one["noise"], one["seeds"]) == ("mixup", 0.2, 3)
    assert (one["accuracy_best"], one["accuracy_best_sd"]) == (pytest.approx(0.6), pytest.approx(0.1))
    assert two["accuracy_last_sd"] == pytest.approx(0)
    assert one["clean_kept"] is None
    assert (three["clean_kept"], three["clean_kept_sd"]) == (0.9, None)
