"""What every trainer that the registry finds must keep, whatever it does."""

import importlib
import inspect
import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from by_hand import RECIPE, SMALL, batch_of, views
from safetensors.torch import load_file

from chaffinch import registry
from chaffinch.base.errors import InputError
from chaffinch.base.methods import method_options
from chaffinch.base.training_run import TrainingRun
from chaffinch.data.dataset import Truth
from chaffinch.encoders.checkpoint import Encoder, ModelCard
from chaffinch.encoders.network import build
from chaffinch.trainers.base import Division, Net, Site, Step, Trainer
from chaffinch.trainers.classifier import Classifier
from chaffinch.trainers.train import MODEL, STATE, lacking, train

TRAINERS = registry.methods("trainer")
N, C, EPOCHS = 66, 3, 3
SHORT = replace(RECIPE, epochs=EPOCHS, batch=33, learning_rate=0.03)


@pytest.fixture(params=TRAINERS)
def cls(request):
    return TRAINERS[request.param]


@pytest.fixture(scope="module")
def data(stripes):
    return stripes(n=N)


@cache
def start():
    """An untrained encoder, for trainers that read the features of their start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(SMALL, 1)
    card = ModelCard(
        "tiny", SMALL, 1, 32, "simclr", "stripes", seed=0, epochs=0, batch=32, learning_rate=0.1, precision="float32",
        device="CPU", seconds=0.0,
    )  # fmt: skip
    return Encoder(network, card)


NEED_A_START = set()


def running(cls, data, folder, **changes):
    """A training from scratch, or from a start where the trainer says that it needs one."""
    recipe = replace(SHORT, trainer=cls.card.slug, **changes)
    if cls not in NEED_A_START:
        progress = train(data, recipe, folder)
        try:
            first = next(progress)
        except InputError as error:
            if "choose one with --start" not in str(error):
                raise
            NEED_A_START.add(cls)
        else:
            yield first
            yield from progress
            return
    yield from train(data, recipe, folder, start())


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The run of a trainer and its progress; every trainer is trained once."""

    @cache
    def run(cls):
        folder = tmp_path_factory.mktemp(cls.card.slug)
        progress = list(running(cls, data, folder))
        return TrainingRun(folder), progress

    return run


def ready(cls, n=12, epochs=EPOCHS):
    """A trainer set up for n samples without a training."""
    labels, rng = torch.arange(n) % C, torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trainer = cls(**method_options(cls))
        trainer.build([Net(build(SMALL, 1), C, trainer.make_heads(32)) for _ in range(cls.networks)])
        features = torch.randn(n, 32, generator=rng) + 3 * torch.eye(32)[labels]
        kind = (torch.arange(n) % 4 == 0).to(torch.int8)
        trainer.setup(Site(labels, C, 32, epochs, 2, rng, lambda: features, kind))
    return trainer


def looked(trainer, x):
    """What its networks say of pictures."""
    trainer.eval()
    with torch.no_grad():
        looks = [trainer.look(k, x) for k in range(trainer.networks)]
    trainer.train()
    return looks


def described(epoch):
    """What is said of an epoch; how long it took is another matter."""
    return {name: value for name, value in epoch.items() if name != "seconds"}


class TestDeclaration:
    def test_card(self, cls):
        assert issubclass(cls, Trainer)
        assert not cls.card.finds
        assert 15 < len(cls.card.summary.split()) < 90
        assert len(cls.card.fails_when.split()) > 5

    def test_file_and_class_are_called_after_the_slug(self, cls):
        assert cls.__module__ == f"chaffinch.trainers.{cls.card.slug.replace('-', '_')}"
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+", cls.__name__)
        assert not cls.__name__.endswith("Trainer")
        own = [
            value for value in vars(importlib.import_module(cls.__module__)).values()
            if inspect.isclass(value) and value.__module__ == cls.__module__ and hasattr(value, "card")
        ]  # fmt: skip
        assert own == [cls], "one file, one method"

    def test_parameters_are_documented_and_plain(self, cls):
        options = method_options(cls)
        assert set(options) == set(inspect.signature(cls).parameters), "each has a default"
        assert json.loads(json.dumps(options)) == options
        assert all(isinstance(value, bool | int | float | str) for value in options.values())
        _, _, described = cls.__doc__.partition("\n    Args:\n")
        named = [name for line in re.findall(r"^        (\w[\w, ]*):", described, re.M) for name in line.split(", ")]
        assert named == list(options), "the docstring describes them in their order"

    def test_parameters_are_checked(self, cls):
        for name, value in method_options(cls).items():
            if isinstance(value, float):
                for bad in (float("nan"), float("inf"), float("-inf")):
                    with pytest.raises(InputError, match=name):
                        cls(**{name: bad})
            elif isinstance(value, int) and not isinstance(value, bool) and name != "seed":
                with pytest.raises(InputError, match=name):
                    cls(**{name: -1})

    def test_what_it_asks_for(self, cls, data):
        assert {"images", "labels"} <= set(cls.asks()) <= {"images", "labels", "truth", "trusted"}
        assert cls.networks >= 1
        assert lacking(cls, data) is None
        bare = lacking(cls, replace(data, truth=None))
        assert (bare is not None) == ("truth" in cls.asks())
        assert "no pictures" in lacking(cls, replace(data, observed=replace(data.observed, images=None)))


class TestMemory:
    def test_all_of_it_is_in_the_state(self, cls):
        trainer = ready(cls)
        state = trainer.state_dict()
        assert {"flags", "weights"} <= set(state)
        assert "labels" not in state
        assert state["flags"].dtype == torch.bool
        assert state["flags"].shape == state["weights"].shape == (12,)
        assert any(name.startswith("learners.0.body.") for name in state)
        hidden = [name for name, value in vars(trainer).items() if isinstance(value, torch.Tensor)]
        assert not hidden, "these would be lost when a training is cut off"

    def test_learning_rate(self, cls):
        for epochs in (1, 2, 14, 60):
            trainer = ready(cls, epochs=epochs)
            rates = [trainer.rate(epoch) for epoch in range(epochs)]
            assert all(0 < rate <= 1 for rate in rates)
            assert rates == sorted(rates, reverse=True)

    def test_visits(self, cls):
        trainer = ready(cls)
        for flags in (torch.zeros(12, dtype=torch.bool), torch.arange(12) % C == 0, torch.ones(12, dtype=torch.bool)):
            trainer.flags.copy_(flags)
            for k in range(cls.networks):
                for epoch in range(EPOCHS):
                    one, other = (trainer.visit(k, epoch, torch.Generator().manual_seed(1)) for _ in range(2))
                    assert torch.equal(one, other), "it draws from what it is given"
                    assert one.shape == (12,)
                    assert one.dtype == torch.int64
                    assert 0 <= one.min() <= one.max() < 12

    def test_prediction(self, cls):
        trainer, x = ready(cls), views(7, 1)[0]
        said = trainer.predict(looked(trainer, x))
        assert said.shape == (7, C)
        assert torch.isfinite(said).all()
        one = trainer.predict(looked(trainer, x[2:3]))
        torch.testing.assert_close(one, said[2:3], atol=1e-4, rtol=1e-4)


class TestHardCases:
    @pytest.mark.parametrize("case", ["none", "all", "a class", "all but one", "no trust", "alike"])
    def test_flags_and_weights(self, cls, case):
        """Three epochs by hand, whatever was flagged: losses and gradients stay finite."""
        flags = {"all": torch.ones(12, dtype=torch.bool), "a class": torch.arange(12) % C == 1}
        flags["all but one"], flags["no trust"] = torch.arange(12) > 0, flags["all"]
        trainer, rng = ready(cls), torch.Generator().manual_seed(0)
        y, plain = torch.arange(12) % C, views(12, 1)[0]
        weights = torch.zeros(12) if case == "no trust" else torch.ones(12)
        for epoch in range(EPOCHS):
            trainer.train()
            for k in range(cls.networks):
                rows = trainer.visit(k, epoch, rng)[:6]
                x = [torch.full_like(v, 0.5) if case == "alike" else v for v in views(6, 12, seed=epoch)]
                batch = replace(batch_of(rows, y[rows], epoch, x[:10], x[10], x[11]), step=2 * epoch, rng=rng)
                out = trainer.step(k, batch)
                assert isinstance(out, Step)
                assert out.total.shape == ()
                assert torch.isfinite(out.total)
                assert out.logits.shape == (6, C)
                assert not out.logits.isnan().any()
                assert all(type(value) is float for value in out.parts.values())
                if out.total.requires_grad:
                    out.total.backward()
                assert all(torch.isfinite(p.grad).all() for p in trainer.parameters() if p.grad is not None)
                trainer.zero_grad(set_to_none=True)
                trainer.stepped(k, batch)
            division = trainer.divide(looked(trainer, plain), epoch)
            trainer.accept(replace(division, flags=flags.get(case, torch.zeros(12, dtype=torch.bool)), weights=weights))

    def test_divisions_of_useless_looks(self, cls):
        """Everything alike, or so sure that probabilities underflow: flags there are, and no NaN."""
        trainer, x = ready(cls), views(12, 1)[0]
        for factor in (0.0, 1e4):
            looks = [{name: factor * value for name, value in look.items()} for look in looked(trainer, x)]
            for epoch in range(EPOCHS):
                division = trainer.divide(looks, epoch)
                assert isinstance(division, Division)
                assert division.flags.shape == (12,)
                assert division.flags.dtype == torch.bool
                for name in ("scores", "weights", "pseudo_losses", "targets"):
                    value = getattr(division, name)
                    assert value is None or not value.isnan().any(), name


class TestTraining:
    def test_record_is_complete(self, cls, trained, data):
        run, progress = trained(cls)
        assert run.done
        assert all(np.isfinite(p.loss) for p in progress)
        assert [p.share for p in progress if p.record] == [1.0] * EPOCHS
        assert len(progress) == EPOCHS * 2 * cls.networks
        assert not (run.folder / STATE).exists()
        assert run.about["trainer"] == cls.card.slug
        assert run.about["parameters"] == method_options(cls)
        run.check(data.digest, "stripes")
        for epoch, plain in enumerate(run.epochs):
            record = run.epoch(epoch)
            assert np.isfinite(plain["loss"])
            assert 0 <= plain["accuracy"] <= 1
            assert all(np.isfinite(value) for value in plain["parts"].values())
            assert record.flags.shape == (N,)
            assert record.flags.dtype == bool
            assert record.log_probs.shape == record.seen.shape == (N, C)
            assert record.log_probs.dtype == record.seen.dtype == np.float16
            np.testing.assert_allclose(np.exp(record.log_probs.astype(float)).sum(1), 1, atol=5e-3)
            for name in ("scores", "weights", "pseudo_losses"):
                value = getattr(record, name)
                assert value is None or (value.shape, value.dtype) == ((N,), np.float32), name
                assert value is None or np.isfinite(value).all(), name
            assert record.weights is None or (0 <= record.weights.min() <= record.weights.max() <= 1)
            assert record.targets is None or (record.targets.shape, record.targets.dtype) == ((N, C), np.float16)
            assert record.targets is None or np.isfinite(record.targets).all()
            assert bool(record.detector) or not record.flags.any(), "what flags has a name"
            assert record.scores is None or record.detector
        assert run.history.epochs == EPOCHS

    def test_weights_are_of_every_network(self, cls, trained):
        run, _ = trained(cls)
        weights = load_file(run.folder / MODEL)
        assert {name.split(".")[0] for name in weights} == {str(k) for k in range(cls.networks)}
        assert all(torch.isfinite(value).all() for value in weights.values())
        assert weights["0.classify.weight"].shape == (C, 32)

    def test_the_classifier_is_read_back(self, cls, trained, data):
        run, _ = trained(cls)
        said = Classifier(run.folder).pred_probs(data.test.images)
        accuracy = (said.argmax(1) == data.test.labels).mean()
        assert said.shape == (len(data.test.labels), C)
        assert accuracy == pytest.approx(run.epochs[-1]["accuracy"], abs=0.011)  # one of 150 may tip over

    def test_cut_off_it_ends_in_the_same_bits_and_truth_does_not_reach_it(self, cls, trained, data, tmp_path):
        """It goes on with the truth permuted: only a trainer that asks for the truth may notice."""
        broken = running(cls, data, tmp_path)
        for progress in broken:
            if progress.epoch == 1:
                break
        broken.close()
        assert (tmp_path / STATE).exists()
        turned = Truth(np.roll(data.truth.labels, 7), np.roll(data.truth.kind, 7))
        other = data if "truth" in cls.asks() else replace(data, truth=turned)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(99)  # another session: the global generator is elsewhere
            before = torch.get_rng_state()
            list(running(cls, other, tmp_path))
            assert torch.equal(torch.get_rng_state(), before)
        whole, _ = trained(cls)
        for path in sorted(whole.folder.glob("*.safetensors")):
            assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
        assert [described(e) for e in TrainingRun(tmp_path).epochs] == [described(e) for e in whole.epochs]

    def test_another_seed_other_bits_and_trusted_rows_are_never_flagged(self, cls, trained, data, tmp_path):
        trusted = np.arange(N) % 3 > 0
        marked = replace(data, observed=replace(data.observed, trusted=trusted))
        list(running(cls, marked, tmp_path, seed=1, epochs=2))
        run = TrainingRun(tmp_path)
        for epoch in range(2):
            record = run.epoch(epoch)
            assert not record.flags[trusted].any()
            assert not run.in_force(epoch)[0][trusted].any()
            assert record.weights is None or (record.weights[trusted] == 1).all()
        one, other = (load_file(folder / MODEL) for folder in (tmp_path, trained(cls)[0].folder))
        assert not torch.equal(one["0.classify.weight"], other["0.classify.weight"])


def test_methods_that_are_there():
    assert {"alternate", "lsa", "mixup", "oracle", "pls", "pls-lsa", "pls-lsa-plus", "small-loss"} <= set(TRAINERS)
    assert [slug for slug, cls in TRAINERS.items() if "truth" in cls.asks()] == ["oracle"]
