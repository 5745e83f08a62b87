"""Training of classifiers: the record is truthful, an interruption leaves no trace, bad input is said in one line."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from by_hand import RECIPE, SMALL, start_of
from safetensors import SafetensorError
from safetensors.torch import load_file

from chaffinch.base.errors import InputError
from chaffinch.base.training_run import TrainingRun
from chaffinch.data import NoisyDataset
from chaffinch.encoders.augment import Augment, RandAugment, Shift
from chaffinch.encoders.checkpoint import Encoder, ModelCard
from chaffinch.encoders.device import device_name
from chaffinch.encoders.network import build, to_tensor
from chaffinch.trainers.base import Division, Net, Step, kept_only
from chaffinch.trainers.mixup import Mixup
from chaffinch.trainers.train import MODEL, STATE, lacking, train

PLAIN = replace(RECIPE, trainer="mixup")
TWICE = replace(RECIPE, trainer="small-loss", epochs=2)


@pytest.fixture(scope="module")
def data(stripes):
    return stripes(n=97)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """A training of three epochs, three steps each: the 97th sample would be a batch of one."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, list(train(data, PLAIN, folder))


@pytest.fixture
def use(monkeypatch):
    """Makes a class the trainer of every training in this test."""
    return lambda cls: monkeypatch.setattr("chaffinch.trainers.train.find_method", lambda kind, slug: cls)


def run(data, recipe, folder, start=None):
    progress = list(train(data, recipe, folder, start))
    return TrainingRun(folder), progress


def stopped(data, recipe, folder, steps, start=None):
    """A training that is cut off after so many steps."""
    broken = train(data, recipe, folder, start)
    for _ in range(steps):
        next(broken)
    broken.close()


def same_run(one, other):
    files = sorted(p.name for p in one.glob("*.safetensors"))
    assert files == sorted(p.name for p in other.glob("*.safetensors"))
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def observed(data, **changes):
    return replace(data, observed=replace(data.observed, **changes))


def fresh(channels=1, name="tiny", seed=0):
    """An untrained encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(SMALL, channels)
    card = ModelCard(
        name, SMALL, channels, 32, "simclr", "stripes", seed=0, epochs=0, batch=32, learning_rate=0.1,
        precision="float32", device="CPU", seconds=0.0,
    )  # fmt: skip
    return Encoder(network, card)


class TestRecord:
    def test_progress(self, unbroken):
        _, progress = unbroken
        assert [(p.epoch, p.share) for p in progress] == [(e, (s + 1) / 3) for e in range(3) for s in range(3)]
        assert {p.epochs for p in progress} == {3}
        assert all(np.isfinite(p.loss) and p.seconds_left >= 0 for p in progress)
        assert progress[-1].seconds_left == 0
        assert [p.record is not None for p in progress] == [False, False, True] * 3

    def test_description(self, unbroken, data):
        about = TrainingRun(unbroken[0]).about
        assert about == {
            "trainer": "mixup", "parameters": {"alpha": 1.0}, "dataset": "stripes", "dataset_digest": data.digest,
            "n": 97, "classes": ["across", "down", "both"], "epochs": 3, "batch": 32, "learning_rate": 0.1,
            "momentum": 0.9, "weight_decay": 5e-4, "seed": 0, "architecture": SMALL, "channels": 1, "start": "",
            "precision": "float32", "device": device_name("cpu"), "weak": asdict(Shift()),
            "strong": json.loads(json.dumps(asdict(RandAugment()))),
            "contrast": json.loads(json.dumps(asdict(Augment()))),
        }  # fmt: skip

    def test_files(self, unbroken):
        names = sorted(p.name for p in unbroken[0].iterdir())
        assert names == [*(f"epoch-000{e}.safetensors" for e in range(3)), MODEL, "run.json"]

    def test_epochs(self, unbroken):
        folder, progress = unbroken
        found = TrainingRun(folder)
        assert found.done
        for e, plain in enumerate(found.epochs):
            assert plain["epoch"] == e
            assert plain["loss"] == pytest.approx(np.mean([p.loss for p in progress if p.epoch == e]), abs=1e-6)
            assert 0 <= plain["accuracy"] <= 1
            assert plain["seconds"] > 0
            record, kept = found.epoch(e), [p.record for p in progress if p.record][e]
            for name in ("log_probs", "seen", "flags"):
                np.testing.assert_array_equal(getattr(record, name), getattr(kept, name))

    def test_what_is_said_after_an_epoch_is_the_plain_look_in_evaluation_mode(self, unbroken, data):
        """And the accuracy is that of the weights left behind."""
        net = self.network(unbroken[0])
        record = TrainingRun(unbroken[0]).epoch(-1)
        with torch.no_grad():
            said = net(to_tensor(data.observed.images)).log_softmax(1)
            judged = net(to_tensor(data.test.images)).argmax(1)
        np.testing.assert_allclose(record.log_probs, said.clamp(min=-60), atol=4e-3, rtol=1e-3)
        right = (judged == torch.tensor(data.test.labels)).float().mean()
        assert record.accuracy == pytest.approx(float(right), abs=1e-6)
        np.testing.assert_allclose(
            record.losses(data.observed.labels),
            -said[torch.arange(97), torch.tensor(data.observed.labels)], atol=4e-3, rtol=1e-3,
        )  # fmt: skip

    @staticmethod
    def network(folder):
        net = Net(build(SMALL, 1), 3, {})
        net.load_state_dict({k.removeprefix("0."): v for k, v in load_file(folder / MODEL).items()})
        return net.eval()

    def test_seen_is_of_the_training_where_a_sample_was_trained_on(self, unbroken):
        """One of 97 is left out of every epoch: there the plain look stands in."""
        found = TrainingRun(unbroken[0])
        for e in range(3):
            record = found.epoch(e)
            same = (record.seen == record.log_probs).all(1)
            assert same.sum() == 1
        assert found.history.seen.shape == found.history.after.shape == (3, 97, 3)

    def test_test_samples_set_aside_are_not_judged(self, data, tmp_path):
        """All that the classifier gets wrong are set aside: what is left is all right."""
        one, _ = run(data, replace(PLAIN, epochs=2), tmp_path / "one")
        with torch.no_grad():
            said = self.network(tmp_path / "one")(to_tensor(data.test.images)).argmax(1).numpy()
        wrong = np.flatnonzero(said != data.test.labels)
        assert 0 < len(wrong) < 150
        other, _ = run(replace(data, trusted=wrong), replace(PLAIN, epochs=2), tmp_path / "other")
        assert one.epochs[-1]["accuracy"] == pytest.approx(1 - len(wrong) / 150)
        assert other.epochs[-1]["accuracy"] == 1

    def test_no_test_samples_no_accuracy(self, data, tmp_path):
        found, _ = run(replace(data, test=None), replace(PLAIN, epochs=1), tmp_path)
        assert found.epochs[0]["accuracy"] is None
        found, _ = run(replace(data, trusted=np.arange(150)), replace(PLAIN, epochs=1), tmp_path / "b")
        assert found.epochs[0]["accuracy"] is None

    @pytest.mark.parametrize("asking", [True, False])
    def test_what_a_trainer_is_told(self, data, tmp_path, use, asking):
        """The truth only if it asks for it."""
        told = []

        class Spy(Mixup):
            wants = ("images", "labels", "truth") if asking else ("images", "labels")

            def setup(self, site):
                told.append(site)
                super().setup(site)

        use(Spy)
        run(data, replace(PLAIN, epochs=1), tmp_path)
        (site,) = told
        np.testing.assert_array_equal(site.labels, data.observed.labels)
        assert (site.classes, site.dim, site.epochs, site.steps) == (3, 32, 1, 3)
        assert site.trusted is None
        if asking:
            np.testing.assert_array_equal(site.kind, data.truth.kind)
        else:
            assert site.kind is None

    def test_looks_are_plain_and_in_evaluation_mode(self, data, tmp_path, use):
        looked = []

        class Spy(Mixup):
            def look(self, k, x):
                looked.append((x, self.training or self.nets[k].training, torch.is_grad_enabled()))
                return super().look(k, x)

        use(Spy)
        run(replace(data, test=None), replace(PLAIN, epochs=1), tmp_path)
        assert torch.equal(torch.cat([x for x, *_ in looked]), to_tensor(data.observed.images))
        assert not any(training or gradients for _, training, gradients in looked)

    def test_steps_are_in_training_mode_and_see_what_they_are_told(self, data, tmp_path, use):
        told, accepted = [], []

        class Spy(Mixup):
            def step(self, k, batch):
                assert self.training
                told.append(batch)
                assert torch.equal(batch.plain(), to_tensor(data.observed.images[batch.rows]))
                for view in (batch.weak, batch.strong, batch.contrast):
                    one, other = view(), view()
                    assert one.shape == other.shape == (len(batch.rows), 1, 12, 12)
                    assert not torch.equal(one, other), "each call gives a new view"
                    assert one.is_contiguous(memory_format=torch.channels_last)
                return super().step(k, batch)

            def stepped(self, k, batch):
                accepted.append(batch)

        use(Spy)
        run(data, replace(PLAIN, epochs=2), tmp_path)
        assert [b.epoch for b in told] == [0] * 3 + [1] * 3
        assert [b.step for b in told] == list(range(6))
        assert all((data.observed.labels[b.rows] == b.y.numpy()).all() for b in told)
        assert all(a is b for a, b in zip(accepted, told, strict=True))


class TestResume:
    @pytest.mark.parametrize("steps", [1, 3, 4, 8, 9])
    def test_ends_in_the_same_bits(self, unbroken, data, tmp_path, steps):
        """Stops in the first epoch, right after it, in a later one, and just before the end."""
        stopped(data, PLAIN, tmp_path, steps)
        assert (tmp_path / STATE).exists() == (steps >= 3)
        assert len(TrainingRun(tmp_path).epochs) == steps // 3
        assert not (tmp_path / MODEL).exists()
        torch.manual_seed(99)  # another session: the global generator is elsewhere
        _, after = run(data, PLAIN, tmp_path)
        assert [p.epoch for p in after[:1]] == [steps // 3] * (steps < 9)
        same_run(tmp_path, unbroken[0])
        one, other = (
            [{k: v for k, v in e.items() if k != "seconds"} for e in TrainingRun(f).epochs]
            for f in (tmp_path, unbroken[0])
        )
        assert one == other

    def test_twice(self, unbroken, data, tmp_path):
        for steps in (4, 2):
            stopped(data, PLAIN, tmp_path, steps)
        run(data, PLAIN, tmp_path)
        same_run(tmp_path, unbroken[0])

    def test_with_flags_and_a_start(self, data, tmp_path):
        start = fresh()
        run(data, TWICE, tmp_path / "whole", start)
        stopped(data, TWICE, tmp_path / "broken", 4, start)
        start.embed(data.observed.images)  # brings its weights into another memory order
        run(data, TWICE, tmp_path / "broken", start)
        same_run(tmp_path / "broken", tmp_path / "whole")

    @pytest.mark.parametrize(
        "changes",
        [
            {"seed": 5}, {"epochs": 4}, {"batch": 16}, {"learning_rate": 0.2}, {"momentum": 0.5}, {"weight_decay": 0.0},
            {"parameters": {"alpha": 0.5}}, {"architecture": "preact-resnet-32-64-128"}, {"weak": Shift(flip=0)},
            {"strong": RandAugment(2)}, {"contrast": Augment(flip=0)}, {"trainer": "oracle"},
        ],
    )  # fmt: skip
    def test_another_recipe_is_refused(self, partial, data, changes):
        kept = (partial / STATE).read_bytes()
        with pytest.raises(InputError, match="belongs to another recipe or dataset; delete it"):
            next(train(data, replace(PLAIN, **changes), partial))
        assert (partial / STATE).read_bytes() == kept
        assert len(TrainingRun(partial).epochs) == 1

    def test_another_dataset_or_start_is_refused(self, partial, data, stripes):
        for other, start in ((stripes(n=97, seed=1), None), (data, fresh())):
            with pytest.raises(InputError, match="belongs to another recipe or dataset"):
                next(train(other, PLAIN, partial, start))

    def test_another_start_of_the_same_name_is_refused(self, data, tmp_path):
        stopped(data, PLAIN, tmp_path, 3, fresh(seed=0))
        with pytest.raises(InputError, match="belongs to another recipe or dataset"):
            next(train(data, PLAIN, tmp_path, fresh(seed=1)))

    def test_device_and_precision_by_another_name_are_the_same_recipe(self, partial, data, unbroken):
        run(data, replace(PLAIN, device="cpu", precision="auto"), partial)
        assert TrainingRun(partial).about["precision"] == "float32"  # as it was begun
        same_run(partial, unbroken[0])

    @pytest.mark.parametrize("keep", [0, 7, 500, 20_000])
    def test_a_damaged_state_is_kept_and_named(self, partial, data, keep):
        path = partial / STATE
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(InputError, match=r"state\.partial\.safetensors cannot be read .* delete it"):
            next(train(data, PLAIN, partial))
        assert len(path.read_bytes()) == keep
        path.unlink()
        run(data, PLAIN, partial)

    def test_a_state_of_another_version(self, partial, data, use):
        """Its trainer remembered other things."""

        class Newer(Mixup):
            def setup(self, site):
                super().setup(site)
                self.register_buffer("memory", torch.zeros(3))

        use(Newer)
        with pytest.raises(InputError, match="does not hold what this version of the training remembers; delete it"):
            next(train(data, PLAIN, partial))

    def test_a_damaged_description_is_written_again(self, partial, data, unbroken):
        (partial / "run.json").write_text("{")
        with pytest.raises(InputError, match=r"run\.json cannot be read"):
            TrainingRun(partial)
        run(data, PLAIN, partial)
        same_run(partial, unbroken[0])

    @pytest.fixture
    def partial(self, data, tmp_path):
        stopped(data, PLAIN, tmp_path, 4)
        return tmp_path

    def test_training_anew_leaves_nothing_of_the_old(self, data, tmp_path):
        run(data, PLAIN, tmp_path)
        stopped(data, replace(PLAIN, epochs=1, seed=1), tmp_path, 1)
        assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
        assert TrainingRun(tmp_path).epochs == []

    def test_same_seed_same_bits_other_seed_others(self, unbroken, data, tmp_path):
        run(data, replace(PLAIN, seed=1), tmp_path)
        one, other = load_file(tmp_path / MODEL), load_file(unbroken[0] / MODEL)
        assert not torch.equal(one["0.classify.weight"], other["0.classify.weight"])

    def test_global_generators_and_data_are_left_alone(self, data, tmp_path):
        images, labels = data.observed.images.copy(), data.observed.labels.copy()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(12_345)  # a state that no training could have left behind
            before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
            run(data, TWICE, tmp_path)
            assert torch.equal(torch.get_rng_state(), before)
        assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
        np.testing.assert_array_equal(data.observed.images, images)
        np.testing.assert_array_equal(data.observed.labels, labels)


class TestFullDisk:
    """Whatever cannot be written: the last good epoch stays, nothing is half-written, and it can go on."""

    @pytest.mark.parametrize("where", ["write_epoch", "begin"])
    def test_in_the_second_epoch(self, data, unbroken, tmp_path, monkeypatch, where):
        target = f"chaffinch.trainers.train.{where}"
        real, count = getattr(__import__("chaffinch.trainers.train", fromlist=[where]), where), []

        def full(*args):
            count.append(args)
            if len(count) == (2 if where == "write_epoch" else 3):
                raise OSError(28, "No space left on device")
            return real(*args)

        monkeypatch.setattr(target, full)
        with pytest.raises(OSError, match="No space left"):
            run(data, PLAIN, tmp_path)
        assert len(TrainingRun(tmp_path).epochs) == 1
        TrainingRun(tmp_path).epoch(0)
        monkeypatch.setattr(target, real)
        run(data, PLAIN, tmp_path)
        same_run(tmp_path, unbroken[0])

    @pytest.mark.parametrize("module", ["chaffinch.base.training_run", "chaffinch.encoders.checkpoint"])
    def test_while_writing_a_file(self, data, unbroken, tmp_path, monkeypatch, module):
        stopped(data, PLAIN, tmp_path, 4)
        before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir())

        def full(tensors, path, *metadata):
            path.write_bytes(b"half")
            raise SafetensorError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.save_file", full)
            with pytest.raises(OSError, match=r"safetensors cannot be written: No space left"):
                run(data, PLAIN, tmp_path)
        left = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        assert all(left[name] == content for name, content in before)
        assert not [name for name in left if name.startswith(".")]
        run(data, PLAIN, tmp_path)
        same_run(tmp_path, unbroken[0])


def flagging(which):
    """A trainer that flags the same samples after every epoch, and leaves them out."""

    class Flagging(Mixup):
        def visit(self, k, epoch, rng):
            return kept_only(self.flags, rng)

        def divide(self, looks, epoch):
            weights = torch.full((len(self.labels),), 0.25)
            return Division(which(self.labels), weights=weights, detector="by hand")

    return Flagging


class TestFlags:
    def test_all(self, data, tmp_path, use):
        use(flagging(lambda y: torch.ones_like(y, dtype=torch.bool)))
        found, _ = run(data, TWICE, tmp_path)
        assert found.epoch(1).flags.all()
        assert np.isfinite(found.epochs[1]["loss"])
        assert found.history.epochs == 2

    def test_none(self, data, tmp_path, use):
        use(flagging(lambda y: torch.zeros_like(y, dtype=torch.bool)))
        found, _ = run(data, TWICE, tmp_path)
        assert not found.epoch(1).flags.any()

    def test_a_class_that_loses_all_its_samples(self, data, tmp_path, use):
        use(flagging(lambda y: y == 2))
        found, _ = run(data, replace(TWICE, epochs=4), tmp_path)
        record, lost = found.epoch(-1), data.observed.labels == 2
        np.testing.assert_array_equal(record.flags, lost)
        assert record.log_probs[:, 2].astype(float).mean() < record.log_probs[:, 0].astype(float).mean() - 0.5
        np.testing.assert_array_equal(record.seen[lost], record.log_probs[lost])  # left out: the plain look stands in

    def test_trusted_rows_are_never_flagged_and_fully_trusted(self, data, tmp_path, use):
        trusted = np.zeros(97, bool)
        trusted[::7] = True
        told = []

        class Spy(flagging(lambda y: torch.ones_like(y, dtype=torch.bool))):
            def setup(self, site):
                super().setup(site)
                self.flags[:] = True

            def visit(self, k, epoch, rng):
                told.append((self.flags.clone(), self.weights.clone()))
                return super().visit(k, epoch, rng)

        use(Spy)
        found, _ = run(observed(data, trusted=trusted), TWICE, tmp_path)
        for epoch in (0, 1):
            np.testing.assert_array_equal(found.epoch(epoch).flags, ~trusted)
            np.testing.assert_array_equal(found.in_force(epoch)[0], ~trusted)
            np.testing.assert_array_equal(told[epoch][0], ~trusted)
            np.testing.assert_array_equal(found.epoch(epoch).weights, np.where(trusted, 1, 0.25).astype(np.float32))
        np.testing.assert_array_equal(told[1][1], np.where(trusted, 1, 0.25).astype(np.float32))

    def test_a_division_is_not_changed_behind_the_trainers_back(self, data, tmp_path, use):
        """What it hands over may be its own memory."""

        class Own(Mixup):
            def setup(self, site):
                super().setup(site)
                self.register_buffer("own", torch.ones_like(self.flags))

            def divide(self, looks, epoch):
                assert self.own.all()
                return Division(self.own, weights=self.own.float())

        use(Own)
        run(observed(data, trusted=np.ones(97, bool)), TWICE, tmp_path)


class TestDivergence:
    @pytest.mark.parametrize(("n", "what"), [(130, "loss"), (32, "output of the network")])
    def test_learning_rate_1e6(self, stripes, tmp_path, n, what):
        """With one step an epoch the loss is still finite when the weights are not."""
        with pytest.raises(
            InputError, match=rf"the {what} became nan in epoch 1; lower the learning rate \(now 1e\+06"
        ):
            run(stripes(n=n), replace(PLAIN, learning_rate=1e6), tmp_path)
        assert TrainingRun(tmp_path).epochs == []
        assert not (tmp_path / STATE).exists()

    @pytest.mark.parametrize("where", ["step", "look"])
    def test_later_it_keeps_the_last_good_epoch(self, data, tmp_path, use, where):
        class Bad(Mixup):
            def step(self, k, batch):
                out = super().step(k, batch)
                bad = where == "step" and batch.epoch == 1
                self.late = batch.epoch == 1
                return Step(out.total * float("nan"), out.logits) if bad else out

            def look(self, k, x):
                found = super().look(k, x)
                return {"logits": found["logits"] * float("nan")} if where == "look" and self.late else found

        use(Bad)
        with pytest.raises(InputError, match=rf"became nan in epoch 2; lower .*; {tmp_path} keeps the last good epoch"):
            run(data, PLAIN, tmp_path)
        assert len(TrainingRun(tmp_path).epochs) == 1
        state = load_file(tmp_path / STATE)
        assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


class TestSizes:
    def test_batch_larger_than_the_data(self, data, tmp_path):
        found, progress = run(data, replace(PLAIN, batch=500, epochs=2), tmp_path)
        assert [p.share for p in progress] == [1, 1]
        assert found.about["batch"] == 97

    @pytest.mark.parametrize(("n", "steps"), [(64, 2), (65, 2), (66, 3), (95, 3)])
    def test_rest_of_the_last_batch(self, stripes, tmp_path, n, steps):
        """Kept unless it is one sample alone."""
        _, progress = run(stripes(n=n), replace(PLAIN, epochs=1), tmp_path)
        assert len(progress) == steps

    def test_two_samples(self, data, tmp_path):
        o = data.observed
        rows = [int(np.flatnonzero(o.labels == c)[0]) for c in (0, 1)]
        two = replace(o, labels=o.labels[rows], ids=o.ids[rows], images=o.images[rows])
        found, _ = run(NoisyDataset("two", two), replace(TWICE, trainer="pls-lsa"), tmp_path)
        assert found.epoch(1).flags.shape == (2,)

    def test_a_class_that_nobody_carries(self, data, tmp_path):
        labels = np.where(data.observed.labels == 2, 1, data.observed.labels)
        found, _ = run(observed(data, labels=labels), replace(TWICE, trainer="pls-lsa"), tmp_path)
        assert found.epoch(1).log_probs.shape == (97, 3)

    def test_colour(self, data, tmp_path):
        images = np.repeat(data.observed.images[..., None], 3, axis=3)
        found, _ = run(replace(observed(data, images=images), test=None), replace(TWICE, trainer="pls-lsa"), tmp_path)
        assert found.about["channels"] == 3

    def test_bfloat16(self, data, tmp_path):
        found, _ = run(data, replace(TWICE, trainer="pls-lsa", precision="bfloat16"), tmp_path)
        assert found.about["precision"] == "bfloat16"
        assert np.isfinite(found.history.after).all()


class TestStart:
    def test_networks_start_from_its_weights(self, data, tmp_path):
        start = fresh()
        found, _ = run(data, replace(PLAIN, epochs=1, learning_rate=1e-12, architecture="nonsense"), tmp_path, start)
        assert found.about["start"] == "tiny"
        assert found.about["architecture"] == SMALL
        body = start_of(tmp_path).network.state_dict()
        for name, value in start.network.state_dict().items():
            if not name.startswith("head") and "running" not in name and "batches" not in name:
                torch.testing.assert_close(body[name], value, atol=1e-6, rtol=1e-5)

    def test_it_is_left_as_it_was(self, data, tmp_path):
        start = fresh()
        before = {k: v.clone() for k, v in start.network.state_dict().items()}
        run(data, replace(PLAIN, epochs=1), tmp_path, start)
        assert all(torch.equal(v, before[k]) for k, v in start.network.state_dict().items())
        assert not start.network.training

    def test_two_networks_differ(self, data, tmp_path):
        recipe = replace(RECIPE, trainer="pls-lsa-plus", epochs=1)
        for start, folder in ((None, "scratch"), (fresh(), "start")):
            run(data, recipe, tmp_path / folder, start)
            found = load_file(tmp_path / folder / MODEL)
            assert not torch.equal(found["0.classify.weight"], found["1.classify.weight"])

    def test_of_other_channels(self, data, tmp_path):
        message = r"encoder tiny was trained on pictures with 3 channel\(s\), these have 1; start from another one"
        with pytest.raises(InputError, match=message):
            run(data, PLAIN, tmp_path / "run", fresh(3))
        assert not (tmp_path / "run").exists()

    def test_features_from_scratch(self, data, tmp_path, use):
        class Asks(Mixup):
            def setup(self, site):
                super().setup(site)
                self.register_buffer("kept", site.features())

        use(Asks)
        with pytest.raises(InputError, match="reads the features of the encoder that it starts from; choose one"):
            run(data, PLAIN, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        start = fresh()
        run(data, replace(PLAIN, epochs=1), tmp_path, start)
        assert start.embed(data.observed.images).shape == (97, 32)


class TestUnusable:
    def test_no_pictures(self, data, tmp_path):
        bare = observed(data, images=None, features=np.zeros((97, 2), np.float32))
        assert lacking(Mixup, bare) == "stripes has no pictures to train a classifier on"
        with pytest.raises(InputError, match="stripes has no pictures to train a classifier on"):
            run(bare, PLAIN, tmp_path)
        assert not list(tmp_path.iterdir())

    def test_one_class(self, data, tmp_path):
        """Even if others have a name."""
        with pytest.raises(InputError, match="mixup needs labels of at least two classes; stripes has one"):
            run(observed(data, labels=np.ones(97, np.int64)), PLAIN, tmp_path)
        assert not list(tmp_path.iterdir())

    def test_nothing_lacks(self, data):
        assert lacking(Mixup, data) is None

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"batch": 1}, "at least two pictures in a batch, got 1"),
            ({"batch": 0}, "at least two pictures in a batch, got 0"),
            ({"epochs": 0}, "at least one epoch, got 0"),
            ({"learning_rate": 0.0}, "learning rate must be a number above 0, got 0.0"),
            ({"learning_rate": float("nan")}, "learning rate must be a number above 0, got nan"),
            ({"momentum": 1.0}, "momentum must lie from 0 to below 1, got 1.0"),
            ({"momentum": float("nan")}, "momentum must lie from 0 to below 1, got nan"),
            ({"weight_decay": -1.0}, "weight decay must be 0 or more and finite, got -1.0"),
            ({"trainer": "mixupp"}, "no trainer called 'mixupp'; did you mean mixup"),
            ({"parameters": {"alfa": 1}}, "mixup has no parameter 'alfa'; did you mean alpha"),
            ({"parameters": {"alpha": "much"}}, "mixup: alpha must be float, got 'much'"),
            ({"parameters": {"alpha": None}}, "mixup: alpha must be float, got None"),
            ({"trainer": "pls", "parameters": {"warmup": 1.5}}, "pls: warmup must be int, got 1.5"),
            ({"trainer": "pls", "parameters": {"warmup": float("inf")}}, "pls: warmup must be int, got inf"),
            ({"parameters": {"alpha": -1}}, "alpha must be 0 or more"),
            ({"architecture": "resnet"}, "unknown architecture 'resnet'"),
            ({"device": "abacus"}, "device 'abacus' is not available"),
        ],
    )
    def test_recipes(self, data, tmp_path, changes, message):
        with pytest.raises(InputError, match=message):
            run(data, replace(PLAIN, **changes), tmp_path)
        assert not list(tmp_path.iterdir())

    def test_one_sample(self, data, tmp_path):
        o = data.observed
        one = replace(o, labels=o.labels[:1], ids=o.ids[:1], images=o.images[:1])
        with pytest.raises(InputError, match="at least two"):
            run(NoisyDataset("one", one), PLAIN, tmp_path)

    def test_a_run_of_another_dataset_is_no_evidence(self, unbroken, stripes, data):
        found, other = TrainingRun(unbroken[0]), stripes(n=97, seed=1)
        found.check(data.digest, "stripes")
        with pytest.raises(InputError, match="was trained on stripes, which is another dataset than arrays:x"):
            found.check(other.digest, "arrays:x")
