"""Shared fixtures. No test touches the user's cache: every one gets an empty workspace of its own."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: threads of their own would only wait for one another
    os.environ |= {"CHAFFINCH_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np
import pytest

from chaffinch.base.training_run import EpochRecord, begin, plain, write_epoch
from chaffinch.data import NoisyDataset, Observed, Truth
from chaffinch.workspace import Workspace

SMALL = "preact-resnet-8-16-32"


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch) -> Path:
    """The folder that CHAFFINCH_HOME names in this test."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CHAFFINCH_HOME", str(folder))
    for name in ("CHAFFINCH_ASSETS", "CHAFFINCH_SPEC"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def workspace(home) -> Workspace:
    """The workspace that everything uses by default in this test."""
    return Workspace(home)


@pytest.fixture
def blobs() -> NoisyDataset:
    """Three blobs of features, 50 clean samples each, 15 mislabelled samples and 15 of a fourth, foreign blob."""
    rng = np.random.default_rng(7)
    true = np.repeat([0, 1, 2, 0, 1, 2, -1], [50, 50, 50, 5, 5, 5, 15])
    given = true.copy()
    given[150:165] = (true[150:165] + 1) % 3
    given[165:] = np.arange(15) % 3
    centres = 3 * np.eye(4, 12)
    features = (centres[true] + rng.normal(0, 0.7, (180, 12))).astype(np.float32)
    order = rng.permutation(180)
    given, true, features = given[order], true[order], features[order]
    ids = np.array([f"b{i:03d}" for i in range(180)])
    observed = Observed(labels=given, classes=("ant", "bee", "cat"), ids=ids, features=features)
    return NoisyDataset("blobs", observed, Truth.of(given, true))


@pytest.fixture
def arrays_file(tmp_path, blobs):
    """A function that writes the blobs (with keys changed; None leaves one out) and returns the path of the .npz."""

    def write(name: str = "blobs.npz", *, truth: bool = True, rows: slice = slice(None), **changes) -> Path:
        o = blobs.observed
        values = {"features": o.features[rows], "labels": o.labels[rows], "ids": o.ids[rows]}
        values["classes"] = np.array(o.classes)
        if truth:
            values["true_labels"] = blobs.truth.labels[rows]
        values = {key: value for key, value in {**values, **changes}.items() if value is not None}
        np.savez(tmp_path / name, **values)
        return tmp_path / name

    return write


@pytest.fixture
def pictures() -> NoisyDataset:
    """Sixty 12 x 12 pictures of stripes in two directions, a few of them mislabelled, two of them noise."""
    rng = np.random.default_rng(3)
    true = np.arange(60) % 2
    images = rng.integers(0, 60, (60, 12, 12), dtype=np.uint8)
    images[true == 0, ::3] += 150
    images[true == 1, :, ::3] += 150
    given = true.copy()
    given[[4, 9, 20, 33]] = 1 - given[[4, 9, 20, 33]]
    true[[50, 51]] = -1
    images[[50, 51]] = rng.integers(0, 256, (2, 12, 12), dtype=np.uint8)
    ids = np.array([f"p{i}" for i in range(60)])
    observed = Observed(labels=given, classes=("rows", "columns"), ids=ids, images=images)
    return NoisyDataset("pictures", observed, Truth.of(given, true))


@pytest.fixture
def save_encoder(workspace):
    """A function that puts a tiny untrained encoder into the workspace and returns the path of its weights."""

    def save(name: str = "tiny", *, seed: int = 0, **changes) -> Path:
        import torch

        from chaffinch.encoders.checkpoint import Encoder, ModelCard
        from chaffinch.encoders.network import build

        values = {
            "name": name, "architecture": SMALL, "channels": 1, "dim": 32, "loss": "simclr", "dataset": "pictures",
            "seed": seed, "epochs": 0, "batch": 32, "learning_rate": 0.003, "precision": "float32", "device": "CPU",
            "seconds": 0.0,
        }  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build(SMALL, 1)
        return Encoder(network, ModelCard(**{**values, **changes})).save(workspace.folder("encoders"))

    return save


@pytest.fixture
def a_run(workspace):
    """Leaves the record of a training on a dataset (4 epochs; every fifth sample is flagged, in turn) and names it."""

    def write(dataset: NoisyDataset) -> str:
        rng, y, c = np.random.default_rng(11), dataset.observed.labels, len(dataset.observed.classes)
        folder, records = workspace.folder("runs") / "told", []
        for e in range(4):
            logits = rng.normal(size=(len(y), c)) + (e + 1) * np.eye(c)[y]
            said = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float16)
            records.append(
                EpochRecord(
                    epoch=e, loss=1 / (e + 1), accuracy=None, seconds=1.0, detector=("lsa", "small-loss")[e % 2],
                    log_probs=said, seen=said, flags=np.arange(len(y)) % 5 == e,
                    weights=None if e == 0 else np.linspace(0, 1, len(y), dtype=np.float32),
                )
            )  # fmt: skip
        about = {"trainer": "pls-lsa", "dataset": dataset.name, "dataset_digest": dataset.digest, "epochs": 4}
        begin(folder, about | {"n": len(y)}, [plain(record) for record in records])
        for record in records:
            write_epoch(folder, record)
        return folder.name

    return write
