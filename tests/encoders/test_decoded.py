"""Pictures for a training: decoded once, at the size that is wanted, in bounded memory."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from chaffinch.base.errors import InputError
from chaffinch.data import open_dataset
from chaffinch.encoders import decoded
from chaffinch.encoders.decoded import Decoded, seen_at
from chaffinch.encoders.train import Recipe, train_encoder


@pytest.fixture
def folder(tmp_path):
    """150 colour pictures of 90 x 60 in two classes, one of them damaged."""
    rng = np.random.default_rng(0)
    for i in range(150):
        path = tmp_path / "birds" / ("finch", "owl")[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((90, 60), 0).save(path)
    return tmp_path / "birds"


def test_sizes():
    assert seen_at((5, 28, 28), 64) == (28, 28)
    assert seen_at((5, 112, 112, 3), 64) == (64, 64)
    assert seen_at((5, 60, 90, 3), 45) == (30, 45)
    assert seen_at((5, 2, 400), 50) == (1, 50)


def test_pictures_in_memory_are_neither_copied_nor_changed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 12, 12), dtype=np.uint8)
    found = Decoded([images], (12, 12), tmp_path)
    assert list(found.work()) == []
    assert found.images.data_ptr() == images.ctypes.data


@pytest.mark.parametrize("most", [2**30, 1000])
def test_files_come_out_as_they_would_one_by_one(folder, tmp_path, monkeypatch, most):
    monkeypatch.setattr(decoded, "MOST", most)
    images = open_dataset(f"folder:{folder}").observed.images
    before = set(tmp_path.iterdir())
    found = Decoded([images, images[:3]], (30, 45), tmp_path)
    shares = list(found.work())
    assert found.mapped == (most < 2**30)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 2
    assert set(tmp_path.iterdir()) == before, "the file has no name"
    want = images.at((30, 45))
    np.testing.assert_array_equal(found.images[:150].numpy(), np.stack([want[i] for i in range(150)]))
    # those in memory are shrunk by torch instead of Pillow
    assert np.abs(found.images[150:].numpy().astype(int) - found.images[:3].numpy()).mean() < 2


def test_a_disk_that_is_too_small_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(decoded, "MOST", 10)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(InputError, match=r"9 pictures of 8 × 8 pixels need .* lower --side"):
        Decoded([np.zeros((9, 16, 16), np.uint8)], (8, 8), tmp_path)


def train(dataset, folder, name, **recipe):
    folder.mkdir(exist_ok=True)
    made = Recipe(epochs=1, batch=50, architecture="preact-resnet-8-16-32", device="cpu", precision="float32", **recipe)
    return list(train_encoder(dataset, made, folder, name))


def test_an_encoder_trained_on_files_embeds_them_whether_they_fit_the_memory_or_not(folder, tmp_path, monkeypatch):
    from chaffinch.encoders.checkpoint import load_encoder

    dataset = open_dataset(f"folder:{folder}")
    features = []
    for most in (2**30, 1000):
        monkeypatch.setattr(decoded, "MOST", most)
        steps = train(dataset, tmp_path / str(most), "birds", side=24)
        assert steps[0].decoded < 1
        assert [step.decoded for step in steps[-4:]] == [1.0, None, None, None]
        encoder = load_encoder(tmp_path / str(most) / "birds.safetensors")
        assert encoder.card.sizes["shape"] == [3, 16, 24]
        features.append(encoder.embed(dataset.observed.images))
    np.testing.assert_array_equal(*features)
    with pytest.raises(InputError, match="8 or more pixels"):
        train(dataset, tmp_path / "x", "x", side=4)


def test_a_training_that_shrinks_is_another_than_one_that_does_not(pictures, tmp_path):
    from chaffinch.encoders.train import _identity

    one, other, third = (Recipe(side=side) for side in (64, 32, 8))
    assert _identity("d", one, {}, None) == _identity("d", other, {}, None), "where nothing is shrunk"
    assert _identity("d", third, {}, (8, 8)) != _identity("d", one, {}, None)
