"""Training runs on disk: what was written is read again, whole; whatever is damaged is named."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from chaffinch.base import training_run
from chaffinch.base.errors import InputError
from chaffinch.base.runs import log_softmax
from chaffinch.base.training_run import EpochRecord, TrainingRun, begin, plain, write_epoch

ABOUT = {"trainer": "pls", "dataset": "toy", "dataset_digest": "abc", "epochs": 3, "n": 7}


def record(epoch=0, n=7, c=3, **changes):
    rng = np.random.default_rng(epoch)
    values = {
        "epoch": epoch, "loss": 1.5 - epoch, "accuracy": 0.25 * epoch, "seconds": 0.5, "parts": {"a": 1.0},
        "detector": f"detector {epoch}", "note": "ä note", "flags": rng.random(n) < 0.5,
        "log_probs": log_softmax(rng.normal(size=(n, c))).astype(np.float16),
        "seen": log_softmax(rng.normal(size=(n, c))).astype(np.float16),
    }  # fmt: skip
    return EpochRecord(**{**values, **changes})


FULL = {
    "scores": np.arange(7, dtype=np.float32),
    "weights": np.ones(7, np.float32),
    "pseudo_losses": np.zeros(7, np.float32),
    "targets": np.full((7, 3), 1 / 3, np.float16),
    "at_start": np.arange(7) > 4,
}


def written(folder, *records, about=ABOUT):
    for one in records:
        write_epoch(folder, one)
    begin(folder, about, [plain(one) for one in records])
    return TrainingRun(folder)


def same(one, other):
    for f in fields(EpochRecord):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, f.name
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, f.name


def test_round_trip(tmp_path):
    first, second = record(0, **FULL), record(1, accuracy=None)
    run = written(tmp_path / "run", first, second)
    same(run.epoch(0), first)
    same(run.epoch(1), second)
    same(run.epoch(-1), second)
    same(run.epoch(-2), first)
    assert run.about == ABOUT
    assert run.name == "run"
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "epoch-0000.safetensors", "epoch-0001.safetensors", "run.json",
    ]  # fmt: skip
    for beyond in (2, -3):
        with pytest.raises(IndexError):
            run.epoch(beyond)


def test_arrays_in_any_memory_order(tmp_path):
    one = record(log_probs=np.asfortranarray(record().log_probs), flags=np.zeros(14, bool)[::2])
    same(written(tmp_path, one).epoch(0), one)


def test_description_is_for_people(tmp_path):
    written(tmp_path, record())
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert "ä note" in text
    assert json.loads(text)["epochs"] == [
        {
            "epoch": 0, "loss": 1.5, "accuracy": 0.0, "seconds": 0.5, "parts": {"a": 1.0}, "detector": "detector 0",
            "note": "ä note",
        }
    ]  # fmt: skip


def test_losses_in_loops():
    one, y = record(), np.array([0, 1, 2, 0, 1, 2, 0])
    expected = [-float(one.log_probs[i, label]) for i, label in enumerate(y)]
    np.testing.assert_allclose(one.losses(y), expected)
    assert one.losses(y).dtype == np.float32


def test_done(tmp_path):
    assert not written(tmp_path, record(0), record(1)).done
    assert written(tmp_path, record(0), record(1), record(2)).done


def test_history(tmp_path):
    records = [record(0), record(1), record(2)]
    history = written(tmp_path, *records).history
    assert history.epochs == 3
    for e, one in enumerate(records):
        np.testing.assert_array_equal(history.seen[e], one.seen)
        np.testing.assert_array_equal(history.after[e], one.log_probs)


class TestInForce:
    def test_the_epoch_before_decides(self, tmp_path):
        records = [record(0), record(1), record(2)]
        run = written(tmp_path, *records)
        flags, detector = run.in_force(0)
        assert flags.dtype == bool
        assert flags.shape == (7,)
        assert not flags.any()
        assert detector == ""
        for epoch in (1, 2, 3):  # 3 is the one that has not begun
            flags, detector = run.in_force(epoch)
            np.testing.assert_array_equal(flags, records[epoch - 1].flags)
            assert detector == f"detector {epoch - 1}"

    def test_from_the_end(self, tmp_path):
        run = written(tmp_path, record(0), record(1), record(2))
        for epoch in range(3):
            one, other = run.in_force(epoch), run.in_force(epoch - 3)
            np.testing.assert_array_equal(one[0], other[0])
            assert one[1] == other[1]

    @pytest.mark.parametrize("epoch", [4, -4])
    def test_out_of_range(self, tmp_path, epoch):
        with pytest.raises(IndexError):
            written(tmp_path, record(0), record(1), record(2)).in_force(epoch)

    def test_flags_before_the_first_epoch(self, tmp_path):
        flags, detector = written(tmp_path, record(0, **FULL)).in_force(0)
        np.testing.assert_array_equal(flags, FULL["at_start"])
        assert detector == "detector 0"


class TestCheck:
    def test_of_this_dataset(self, tmp_path):
        written(tmp_path, record()).check("abc", "toy")

    def test_of_another(self, tmp_path):
        message = (
            r"run run was trained on toy, which is another dataset than other; train one with 'chaffinch train other"
        )
        with pytest.raises(InputError, match=message + " --trainer pls'"):
            written(tmp_path / "run", record()).check("abd", "other")

    def test_without_a_whole_epoch(self, tmp_path):
        with pytest.raises(InputError, match="run run has no whole epoch yet"):
            written(tmp_path / "run").check("abc", "toy")


class TestDamaged:
    def test_no_run(self, tmp_path):
        with pytest.raises(InputError, match=r"run\.json cannot be read"):
            TrainingRun(tmp_path / "nowhere")

    @pytest.mark.parametrize("text", ["", "{", '{"about": {}', "\x00"])
    def test_not_json(self, tmp_path, text):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(InputError, match=r"run\.json cannot be read as JSON"):
            TrainingRun(tmp_path)

    @pytest.mark.parametrize(
        "value",
        [
            [], 3, None, {}, {"about": ABOUT}, {"about": {}, "epochs": []}, {"about": [], "epochs": []},
            {"about": ABOUT, "epochs": {}}, {"about": ABOUT, "epochs": [3]}, {"about": ABOUT, "epochs": [{}]},
            {"about": {k: v for k, v in ABOUT.items() if k != "dataset_digest"}, "epochs": []},
        ],
    )  # fmt: skip
    def test_not_a_run(self, tmp_path, value):
        (tmp_path / "run.json").write_text(json.dumps(value))
        with pytest.raises(InputError, match=r"run\.json does not describe a training run; train again"):
            TrainingRun(tmp_path)

    @pytest.mark.parametrize("keep", [0, 7, 100])
    def test_record_cut_off(self, tmp_path, keep):
        run = written(tmp_path, record())
        path = tmp_path / "epoch-0000.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(InputError, match=r"epoch-0000\.safetensors is not a readable record of an epoch"):
            run.epoch(0)

    def test_record_missing(self, tmp_path):
        run = written(tmp_path, record())
        (tmp_path / "epoch-0000.safetensors").unlink()
        with pytest.raises(InputError, match=r"epoch-0000\.safetensors is not a readable record"):
            run.history  # noqa: B018

    @pytest.mark.parametrize("change", [{"flags": None}, {"unheard_of": np.zeros(3)}, {"loss": np.zeros(3)}])
    def test_record_of_something_else(self, tmp_path, change):
        run = written(tmp_path, record())
        path = tmp_path / "epoch-0000.safetensors"
        arrays = {k: v for k, v in {**load_file(path), **change}.items() if v is not None}
        save_file(arrays, path)
        with pytest.raises(InputError, match="is not a readable record of an epoch"):
            run.epoch(0)

    def test_description_lacks_a_field(self, tmp_path):
        written(tmp_path, record())
        (tmp_path / "run.json").write_text(json.dumps({"about": ABOUT, "epochs": [{"epoch": 0}]}))
        with pytest.raises(InputError, match=r"train again \(epochs\[0\]\.loss is missing\)"):
            TrainingRun(tmp_path)


class TestWriting:
    def test_full_disk(self, tmp_path, monkeypatch):
        """The old record stays, and nothing half-written."""
        old = record(0)
        run = written(tmp_path, old)

        def full(arrays, path):
            path.write_bytes(b"half")
            raise SafetensorError("No space left on device")

        monkeypatch.setattr(training_run, "save_file", full)
        with pytest.raises(OSError, match=r"epoch-0000\.safetensors cannot be written: No space left"):
            write_epoch(tmp_path, replace(old, flags=~old.flags))
        same(run.epoch(0), old)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-0000.safetensors", "run.json"]

    def test_an_old_reader_sees_the_epochs_it_knows(self, tmp_path):
        """One that was opened before an epoch was added."""
        first = written(tmp_path, record(0))
        second = written(tmp_path, record(0), record(1))
        assert len(first.epochs) == 1
        assert len(second.epochs) == 2
        same(first.epoch(0), second.epoch(0))


def test_force_and_trust_of_a_whole_run(tmp_path):
    run = written(tmp_path, record(0, **FULL), record(1), record(2, **{**FULL, "at_start": None}))
    flags, turns = run.force
    np.testing.assert_array_equal(flags, np.stack([run.in_force(e)[0] for e in range(3)]))
    assert turns == tuple(run.in_force(e)[1] for e in range(3))
    np.testing.assert_array_equal(np.isnan(run.trust).all(1), [False, True, False])
    np.testing.assert_array_equal(run.trust[[0, 2]], 1)
    assert written(tmp_path / "other", record(0)).trust is None
