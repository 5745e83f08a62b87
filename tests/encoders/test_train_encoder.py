"""Training of encoders: it learns, it says what it did, and an interruption leaves no trace in the result."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, replace
from itertools import count, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chaffinch import registry
from chaffinch.base.errors import InputError
from chaffinch.base.record import load_record
from chaffinch.data import NoisyDataset, Observed, open_dataset
from chaffinch.encoders.augment import Augment
from chaffinch.encoders.checkpoint import load_encoder
from chaffinch.encoders.device import device_name, pick_device, pick_precision
from chaffinch.encoders.network import build, to_tensor
from chaffinch.encoders.steps import Learner
from chaffinch.encoders.train import Recipe, train_encoder
from chaffinch.encoders.watch import Watch
from chaffinch.losses.base import unit
from chaffinch.losses.ce import CrossEntropy
from chaffinch.losses.simclr import NTXent

RECIPE = Recipe(
    architecture="preact-resnet-8-16-32", epochs=3, batch=32, learning_rate=0.01, seed=4,
    device="cpu", precision="float32",
)  # fmt: skip


def toy(n=64, colour=False, seed=0):
    """Stripes: two classes that differ in direction."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    shape = (n, 12, 12, 3) if colour else (n, 12, 12)
    images = rng.integers(0, 60, shape, dtype=np.uint8)
    images[labels == 0, ::3] += 150
    images[labels == 1, :, ::3] += 150
    ids = np.array([f"p{i}" for i in range(n)])
    return NoisyDataset("toy", Observed(labels=labels, classes=("a", "b"), ids=ids, images=images))


def train(folder, recipe=RECIPE, dataset=None, name="toy"):
    return list(train_encoder(dataset or toy(), recipe, folder, name))


def weights(folder, name="toy"):
    return load_file(folder / f"{name}.safetensors")


def same_bits(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, train(folder)


def test_progress(unbroken):
    _, progress = unbroken
    assert [(p.epoch, p.share) for p in progress] == [(e, s) for e in range(3) for s in (0.5, 1.0)]
    assert {p.epochs for p in progress} == {3}
    assert all(np.isfinite(p.loss) and p.seconds_left >= 0 for p in progress)
    assert progress[-1].seconds_left == 0


def test_model_card_is_truthful(unbroken):
    folder, progress = unbroken
    encoder = load_encoder(folder / "toy.safetensors")
    card = encoder.card
    assert (card.name, card.dataset, card.architecture) == ("toy", "toy", RECIPE.architecture)
    assert (card.loss, card.loss_parameters) == ("simclr", {"temperature": 0.2})
    assert (card.seed, card.epochs, card.batch, card.learning_rate) == (4, 3, 32, 0.01)
    assert (card.channels, card.precision, card.device) == (1, "float32", device_name("cpu"))
    assert Augment(**{**card.augment, "crop": tuple(card.augment["crop"])}) == RECIPE.augment
    assert card.dim == encoder.embed(toy().observed.images).shape[1] == 32
    assert 0 < card.seconds_per_epoch < card.seconds
    means = [np.mean([p.loss for p in progress if p.epoch == e]) for e in range(3)]
    np.testing.assert_allclose(card.history, means, atol=1e-5)
    assert sorted(p.name for p in folder.iterdir()) == ["toy.json", "toy.record.safetensors", "toy.safetensors"]


def test_it_learns(tmp_path):
    train(tmp_path, replace(RECIPE, epochs=15))
    history = load_encoder(tmp_path / "toy.safetensors").card.history
    assert np.mean(history[-3:]) < history[0] - 0.15
    assert history[-1] > 0


def test_same_seed_same_bits(unbroken, tmp_path):
    train(tmp_path)
    assert same_bits(weights(tmp_path), weights(unbroken[0]))
    train(tmp_path, replace(RECIPE, seed=5), name="other")
    assert not same_bits(weights(tmp_path, "other"), weights(unbroken[0]))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6])
def test_interrupted_and_resumed_ends_in_the_same_bits(unbroken, tmp_path, steps):
    """Two steps an epoch: stops in the first epoch, in later ones, and just before the last save."""
    run = train_encoder(toy(), RECIPE, tmp_path, "toy")
    before = [next(run) for _ in range(steps)]
    run.close()
    whole = steps // 2  # epochs saved before the stop
    assert (tmp_path / "toy.partial.safetensors").exists() == (whole > 0)
    assert not (tmp_path / "toy.safetensors").exists()
    torch.manual_seed(99)  # another session: the global generator is elsewhere

    after = train(tmp_path)
    assert [p.epoch for p in after[:1]] == [whole] * (whole < RECIPE.epochs)
    assert len(before) + len(after) >= 6
    assert same_bits(weights(tmp_path), weights(unbroken[0]))
    cards = [load_encoder(folder / "toy.safetensors").card for folder in (tmp_path, unbroken[0])]
    assert cards[0].history == cards[1].history
    assert cards[0].sha256 == cards[1].sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.json", "toy.record.safetensors", "toy.safetensors"]


def test_the_time_of_all_epochs_counts_also_after_a_stop(tmp_path, monkeypatch):
    def ticking():  # a second passes each time that somebody looks
        monkeypatch.setattr("chaffinch.encoders.train.time", SimpleNamespace(perf_counter=count().__next__))

    ticking()
    train(tmp_path, name="whole")
    ticking()
    run = train_encoder(toy(), RECIPE, tmp_path, "parts")
    deque(islice(run, 5), maxlen=0)  # two epochs and half of one
    run.close()
    ticking()
    train(tmp_path, name="parts")
    whole, parts = (load_encoder(tmp_path / f"{name}.safetensors").card for name in ("whole", "parts"))
    assert (parts.seconds, parts.seconds_per_epoch) == (whole.seconds, whole.seconds_per_epoch)
    assert whole.seconds == RECIPE.epochs * whole.seconds_per_epoch > RECIPE.epochs


def test_interrupted_twice(unbroken, tmp_path):
    for steps in (3, 2):
        run = train_encoder(toy(), RECIPE, tmp_path, "toy")
        for _ in range(steps):
            next(run)
        run.close()
    train(tmp_path)
    assert same_bits(weights(tmp_path), weights(unbroken[0]))


@pytest.fixture
def partial(tmp_path):
    run = train_encoder(toy(), RECIPE, tmp_path, "toy")
    for _ in range(3):
        next(run)
    run.close()
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 5}, {"epochs": 4}, {"batch": 16}, {"learning_rate": 0.02}, {"parameters": {"temperature": 0.5}},
        {"weight_decay": 0.0}, {"architecture": "preact-resnet-32-64-128"}, {"augment": Augment(flip=0)},
    ],
)  # fmt: skip
def test_another_recipe_is_refused(partial, changes):
    kept = (partial / "toy.partial.safetensors").read_bytes()
    with pytest.raises(InputError, match="belongs to another recipe or dataset; delete it"):
        train(partial, replace(RECIPE, **changes))
    assert (partial / "toy.partial.safetensors").read_bytes() == kept


def test_another_dataset_is_refused(partial):
    with pytest.raises(InputError, match="belongs to another recipe or dataset"):
        train(partial, dataset=toy(seed=1))


def test_device_and_precision_by_another_name_are_the_same_recipe(partial, unbroken):
    train(partial, replace(RECIPE, device="cpu", precision="auto"))
    assert load_encoder(partial / "toy.safetensors").card.precision == "float32"  # as it was begun
    assert same_bits(weights(partial), weights(unbroken[0]))


@pytest.mark.parametrize("keep", [0, 7, 500])
def test_damaged_partial_file_is_kept_and_named(partial, keep):
    path = partial / "toy.partial.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"toy\.partial\.safetensors cannot be read .* delete it"):
        train(partial)
    assert len(path.read_bytes()) == keep


def test_partial_file_is_not_pickled(partial):
    raw = (partial / "toy.partial.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    state = json.loads(header["__metadata__"]["state"])
    assert len(state["kept"]["history"]) == 1
    recipe = json.loads(json.dumps(asdict(RECIPE)))
    del recipe["side"]  # nothing is shrunk, so it is no other training
    assert json.loads(state["identity"])[1] == {
        **recipe, "parameters": {"temperature": 0.2}, "device": "", "precision": "",
    }  # fmt: skip


def test_global_generators_are_left_alone(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12_345)  # a state that no training could have left behind
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        train(tmp_path, replace(RECIPE, epochs=1))
        assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_dataset_is_left_alone(tmp_path):
    dataset = toy()
    train(tmp_path, replace(RECIPE, epochs=1), dataset)
    np.testing.assert_array_equal(dataset.observed.images, toy().observed.images)


def test_batch_larger_than_the_data(tmp_path):
    progress = train(tmp_path, replace(RECIPE, batch=512, epochs=2), toy(10))
    assert [p.share for p in progress] == [1.0, 1.0]
    assert load_encoder(tmp_path / "toy.safetensors").card.batch == 10


@pytest.mark.parametrize("epochs", [1, 2])
def test_short_trainings(tmp_path, epochs):
    train(tmp_path, replace(RECIPE, epochs=epochs), toy(32))
    assert len(load_encoder(tmp_path / "toy.safetensors").card.history) == epochs


def test_rest_of_the_last_batch_is_dropped(tmp_path):
    assert len(train(tmp_path, replace(RECIPE, epochs=1, batch=30))) == 2


def test_colour(tmp_path):
    dataset = toy(32, colour=True)
    train(tmp_path, replace(RECIPE, epochs=1), dataset)
    encoder = load_encoder(tmp_path / "toy.safetensors")
    assert encoder.card.channels == 3
    assert encoder.embed(dataset.observed.images).shape == (32, 32)


def test_bfloat16_is_written_on_the_card(tmp_path):
    train(tmp_path, replace(RECIPE, epochs=1, precision="bfloat16"))
    encoder = load_encoder(tmp_path / "toy.safetensors")
    assert encoder.card.precision == "bfloat16"
    assert np.isfinite(encoder.embed(toy().observed.images)).all()


def test_no_pictures(tmp_path):
    seen = replace(toy().observed, images=None, features=np.zeros((64, 2), np.float32))
    with pytest.raises(InputError, match="toy has no pictures to train an encoder on"):
        train(tmp_path, dataset=NoisyDataset("toy", seen))


@pytest.mark.parametrize(
    ("changes", "n", "message"),
    [
        ({}, 1, "at least two pictures in a batch, got 1"),
        ({"batch": 1}, 64, "at least two pictures in a batch, got 1"),
        ({"epochs": 0}, 64, "at least one epoch, got 0"),
        ({"loss": "simclrr"}, 64, "no loss called 'simclrr'; did you mean simclr"),
        ({"architecture": "resnet"}, 64, "unknown architecture 'resnet'"),
        ({"device": "abacus"}, 64, "device 'abacus' is not available"),
    ],
)
def test_unusable_recipes(tmp_path, changes, n, message):
    with pytest.raises(InputError, match=message):
        train(tmp_path, replace(RECIPE, **changes), toy(n))
    assert not list(tmp_path.iterdir())


def test_pick_device_and_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == pick_device("cpu") == "cpu"
    with pytest.raises(InputError, match=r"device 'cuda:1' is not available; there are \['cpu'\]"):
        pick_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == "cuda"
    assert pick_device("cuda:1") == "cuda:1"
    assert pick_precision("float32", "cuda") == "float32"
    assert pick_precision("auto", "mps") == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert pick_precision("auto", "cuda:1") == "bfloat16"
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    for there in (*asked, None):
        for name in asked:
            monkeypatch.setattr(torch.cpu, name, lambda yes=name == there: yes, raising=False)
        assert pick_precision("auto", "cpu") == ("bfloat16" if there else "float32")
    assert device_name("cpu").startswith("CPU, ")


def test_record(unbroken):
    """Every sample's loss and pull at the kept epochs; an interruption does not change it (see the bits above)."""
    folder, _ = unbroken
    record = load_record(folder / "toy.record.safetensors")
    assert record.epochs.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(record.rows, np.arange(64))
    assert record.losses.shape == record.pulls.shape == (3, 64)
    assert record.towards.shape == (3, 64, 2)
    card = load_encoder(folder / "toy.safetensors").card
    np.testing.assert_allclose(np.nanmean(record.losses.astype(float), axis=1), card.history, rtol=2e-3)
    assert (record.pulls[~np.isnan(record.pulls)] >= 0).all()
    assert np.nanmedian(record.pulls) > 0
    assert np.nanmax(np.abs(record.towards)) <= 1.001


def test_record_survives_an_interruption(unbroken, tmp_path):
    run = train_encoder(toy(), RECIPE, tmp_path, "toy")
    for _ in range(3):
        next(run)
    run.close()
    train(tmp_path)
    one, other = (load_record(folder / "toy.record.safetensors") for folder in (tmp_path, unbroken[0]))
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name))


def one_step(loss):
    """Learner, losses and pulls of one step on the toy pictures, and their features with the loss's graph on them."""
    torch.manual_seed(0)
    learner = Learner(build(RECIPE.architecture, 1), loss, 2)
    x = to_tensor(toy().observed.images)
    x = torch.cat([x, x.flip(-1)]) if loss.views == 2 else x
    y, index, rng = torch.tensor(toy().observed.labels), torch.arange(64), torch.Generator().manual_seed(0)
    total, per_sample, _ = learner(x, y, index, {}, rng)
    total.backward()
    h, gradient = learner.features_and_gradient()
    watch = Watch(toy().observed.labels, 2, h.shape[2], 0)
    watch.step(index, per_sample, h, gradient)
    return learner, h, watch


def test_pulls_of_a_classifier_are_the_gradients_of_each_samples_own_loss():
    """|h| |W^T (p - e_y)|, which is |h| times the gradient of the one picture's cross-entropy, by another way."""
    learner, h, watch = one_step(CrossEntropy())
    head, y = learner.classify, torch.tensor(toy().observed.labels)
    p = head(h[:, 0]).softmax(1).detach()
    formula = h[:, 0].norm(dim=1) * ((p - torch.nn.functional.one_hot(y, 2)) @ head.weight.detach()).norm(dim=1)
    np.testing.assert_allclose(watch.pulls, formula, rtol=1e-4)
    for i in range(0, 64, 7):
        alone = h[i, 0].clone().requires_grad_()
        own = torch.nn.functional.cross_entropy(head(alone), y[i])
        (gradient,) = torch.autograd.grad(own, alone)
        assert watch.losses[i] == pytest.approx(own.item(), rel=1e-4)
        assert watch.pulls[i] == pytest.approx((alone.norm() * gradient.norm()).item(), rel=1e-4)
        np.testing.assert_allclose(watch.gradients[i], gradient, rtol=1e-3, atol=1e-6)


def test_pulls_of_a_loss_that_compares_hold_the_losses_of_others():
    """SimCLR: the gradient of the sum over all samples; that of a sample's own part is another."""
    learner, h, watch = one_step(NTXent(0.2))
    rows = h.clone().requires_grad_()
    z = unit(learner.network.head(rows.transpose(0, 1).flatten(0, 1)))
    sim, sample = z @ z.T / 0.2, torch.arange(64).repeat(2)
    eye = torch.eye(128, dtype=torch.bool)
    positive = sim[(sample[:, None] == sample) & ~eye]
    loss = (sim.masked_fill(eye, -torch.inf).logsumexp(1) - positive).view(2, 64).mean(0)

    def pull(value):
        (gradient,) = torch.autograd.grad(value, rows, retain_graph=True)
        return (h.norm(dim=2) * gradient.norm(dim=2)).sum(1)

    np.testing.assert_allclose(watch.pulls, pull(loss.sum()), rtol=1e-3)
    own = np.array([pull(loss[i])[i] for i in range(0, 64, 7)])
    assert (np.abs(watch.pulls[::7] / own - 1) > 0.05).any()


def test_what_is_learnt_pulls_less(tmp_path):
    train(tmp_path, replace(RECIPE, loss="ce", epochs=20), name="head")
    record = load_record(tmp_path / "head.record.safetensors")
    pulls = record.pulls.astype(float)
    assert np.nanmean(pulls[-1]) < 0.7 * np.nanmean(pulls[0])
    y, towards = toy().observed.labels, record.towards[0].astype(float)
    given, other = towards[np.arange(64), y], towards[np.arange(64), 1 - y]
    assert np.nanmedian(given - other) > 0.1, "the loss moves features towards their given class"


def test_snapshots(unbroken):
    _, progress = unbroken
    snapshots = [p.snapshot for p in progress if p.snapshot]
    assert [p.share for p in progress if p.snapshot] == [1.0] * 3
    for epoch, snapshot in enumerate(snapshots):
        assert len(snapshot.history) == epoch + 1
        assert snapshot.xy.shape == (64, 2)
        assert np.isfinite(snapshot.xy).all()
        assert set(snapshot.parts) == {"attract", "repel"}
        assert snapshot.speed > 0
    turned = snapshots[1].xy.T @ snapshots[2].xy
    assert np.allclose(turned, turned.T, atol=1e-4 * np.abs(turned).max()), "matched to the picture before"


def test_a_loss_of_nan_stops_the_training(tmp_path):
    with pytest.raises(InputError, match=r"the loss became nan in epoch 1; lower the learning rate"):
        train(tmp_path, replace(RECIPE, learning_rate=1e30))


def test_what_a_loss_lacks_is_said(tmp_path):
    one_class = replace(toy().observed, labels=np.zeros(64, np.int64), classes=("only",))
    with pytest.raises(InputError, match="supcon needs labels of at least two classes; toy has 1"):
        train(tmp_path, replace(RECIPE, loss="supcon"), NoisyDataset("toy", one_class))
    with pytest.raises(InputError, match="sepclr needs samples known to be clean"):
        train(tmp_path, replace(RECIPE, loss="sepclr"))
    with pytest.raises(InputError, match="supremix needs classes that are numbers"):
        train(tmp_path, replace(RECIPE, loss="supremix"))
    assert not list(tmp_path.iterdir())


def with_everything():
    """Classes that are numbers, and samples known to be clean: every loss can be trained on it."""
    trusted = np.zeros(64, bool)
    trusted[:8] = True
    return NoisyDataset("toy", replace(toy().observed, classes=("0°", "15°"), trusted=trusted))


@pytest.mark.parametrize("slug", registry.methods("loss"))
def test_every_loss_trains_is_interrupted_resumes_and_embeds(tmp_path, slug):
    recipe, dataset = replace(RECIPE, loss=slug, epochs=2), with_everything()
    train(tmp_path, recipe, dataset, name="whole")
    run = train_encoder(dataset, recipe, tmp_path, "parts")
    for p in run:
        if p.snapshot:
            break
    run.close()
    torch.manual_seed(99)
    train(tmp_path, recipe, dataset, name="parts")
    assert same_bits(weights(tmp_path, "parts"), weights(tmp_path, "whole"))
    encoder = load_encoder(tmp_path / "parts.safetensors")
    assert encoder.card.loss == slug
    for layer in encoder.layers:
        features = encoder.embed(dataset.observed.images, layer=layer)
        assert features.ndim == 2
        assert np.isfinite(features).all()


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
from chaffinch.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of file sizes are POSIX")
def test_full_disk_while_saving(tmp_path):
    """The state after an epoch does not fit: said in one line and to the app, nothing half-written."""
    done, home, out = run_on_a_full_disk(tmp_path)
    assert done.returncode == 1, done.stderr
    assert "simclr.partial.safetensors cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(out.iterdir()) == []
    assert "cannot be written" in json.loads((home / "notes" / "t.json").read_text())["error"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of file sizes are POSIX")
def test_a_full_disk_leaves_the_last_good_state(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    np.savez(tmp_path / "toy.npz", images=toy().observed.images, labels=toy().observed.labels)
    recipe = Recipe(epochs=2, batch=32, architecture=RECIPE.architecture, device="cpu")
    training = train_encoder(open_dataset(f"arrays:{tmp_path / 'toy.npz'}"), recipe, out, "simclr")
    next(p for p in training if p.snapshot)
    training.close()
    good = (out / "simclr.partial.safetensors").read_bytes()
    done, _, _ = run_on_a_full_disk(tmp_path)
    assert done.returncode == 1, done.stderr
    assert [p.name for p in out.iterdir()] == ["simclr.partial.safetensors"]
    assert (out / "simclr.partial.safetensors").read_bytes() == good


def run_on_a_full_disk(tmp_path):
    """Train two epochs where no file can be larger than 60 kB; what came of it, the workspace and the folder."""
    np.savez(tmp_path / "toy.npz", images=toy().observed.images, labels=toy().observed.labels)
    options = ["train-encoder", f"arrays:{tmp_path / 'toy.npz'}", "--epochs", "2", "--batch", "32", "--quiet"]
    options += ["--architecture", RECIPE.architecture, "--device", "cpu", "--out", str(tmp_path / "out"), "--job", "t"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *options], capture_output=True, text=True, timeout=120,
        env={**os.environ, "CHAFFINCH_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    return done, tmp_path / "home", tmp_path / "out"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_killed_process_goes_on_and_ends_in_the_same_bits(tmp_path):
    """No warning, no time to clean up: the same command goes on from the last whole epoch."""
    np.savez(tmp_path / "toy.npz", images=toy().observed.images, labels=toy().observed.labels)
    command = [sys.executable, "-m", "chaffinch.cli", "train-encoder", f"arrays:{tmp_path / 'toy.npz'}", "--quiet"]
    command += ["--epochs", "40", "--batch", "32", "--device", "cpu", "--architecture", RECIPE.architecture, "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, str(whole)], check=True, timeout=120)
    partial = killed / "simclr.partial.safetensors"
    with subprocess.Popen([*command, str(killed)]) as process:
        while process.poll() is None and not partial.exists():
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert partial.exists()
    assert not (killed / "simclr.safetensors").exists()
    subprocess.run([*command, str(killed)], check=True, timeout=120)
    assert same_bits(weights(killed, "simclr"), weights(whole, "simclr"))
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in whole.iterdir())
