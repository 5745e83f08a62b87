"""What a training step takes of the data."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chaffinch.base.methods import find_method
from chaffinch.data import NoisyDataset, Observed, Split
from chaffinch.encoders.augment import Augment
from chaffinch.encoders.device import engine
from chaffinch.encoders.steps import Pictures, by_sample, class_numbers, lacking


def toy(n=20, **more):
    rng = np.random.default_rng(0)
    seen = Observed(labels=np.arange(n) % 3, classes=("0°", "15°", "45°"), ids=np.arange(n).astype(str),
                    images=rng.integers(0, 255, (n, 8, 8), dtype=np.uint8))  # fmt: skip
    return NoisyDataset("toy", replace(seen, **more))


def pictures(dataset, slug, batch):
    size, folder = dataset.observed.images.shape[1:3], Path(tempfile.gettempdir())
    data = Pictures(dataset, find_method("loss", slug)(), batch, Augment(), engine("cpu", "float32"), size, folder)
    assert [*data.decode(), 1.0][-1] == 1.0
    return data


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("classes", "numbers"),
    [
        (("0", "1", "2"), [0, 1, 2]),
        (("-15°", "0°", "30°"), [-1, 0, 2]),
        (("2.5", "0", "10"), [1, 0, 4]),
        (("a", "1"), None),
        (("1", "1.0"), None),
        (("nan", "1"), None),
        (("inf", "1"), None),
        (("7",), None),
    ],
)
def test_class_numbers(classes, numbers):
    found = class_numbers(classes)
    assert found == (None if numbers is None else pytest.approx(numbers))


def test_an_epoch_sees_each_sample_at_most_once():
    data = pictures(toy(), "simclr", 6)
    order = data.order(draw())
    assert order.shape == (3, 6)
    assert len(set(order.flatten().tolist())) == 18
    assert not torch.equal(order, data.order(draw(1)))
    assert torch.equal(order, data.order(draw()))


def test_a_step_knows_what_the_loss_names():
    dataset = toy()
    data = pictures(dataset, "supremix", 6)
    rows = data.order(draw())[0]
    x, y, index, aux = data.step(rows, draw())
    assert x.shape == (12, 1, 8, 8)
    assert torch.equal(index, rows)
    np.testing.assert_array_equal(y.numpy(), dataset.observed.labels[rows.numpy()])
    assert aux.keys() == {"target"}
    np.testing.assert_allclose(aux["target"].numpy(), np.array([0, 1, 3])[y.numpy()])


def test_pictures_that_are_not_augmented_are_the_pictures():
    dataset = toy()
    data = pictures(dataset, "cmim", 6)
    rows = data.order(draw())[0]
    x, *_ = data.step(rows, draw())
    np.testing.assert_allclose(x[:, 0].numpy(), dataset.observed.images[rows.numpy()] / 255, atol=1e-6)


@pytest.mark.parametrize("kept", ["rows of the dataset", "test samples set aside"])
def test_background_is_what_is_known_to_be_clean(kept):
    trusted = np.zeros(20, bool)
    trusted[[1, 4, 5]] = True
    if kept == "rows of the dataset":
        dataset = toy(trusted=trusted)
        clean = dataset.observed.images[trusted]
    else:
        split = Split(toy().observed.images[::-1].copy(), toy().observed.labels)
        dataset = replace(toy(), test=split, trusted=np.array([2, 7]))
        clean = split.images[[2, 7]]
    data = pictures(dataset, "sepclr", 8)
    seen = []
    for rows in data.order(draw()):
        _, y, index, aux = data.step(rows, draw())
        assert aux["group"].tolist() == [1] * 6 + [0] * 2
        assert (index[6:] == -1).all()
        raw = data.images[rows].numpy()
        assert all((raw[i] == clean).all(axis=(1, 2)).any() for i in (6, 7))
        seen += index[:6].tolist()
    assert len(seen) == len(set(seen))
    if kept == "rows of the dataset":
        assert not set(seen) & {1, 4, 5}, "they are one group, the rest the other"


def test_what_a_loss_lacks():
    assert lacking(find_method("loss", "simclr"), toy()) is None
    assert "toy has no pictures" in lacking(
        find_method("loss", "simclr"), toy(images=None, features=np.zeros((20, 2), np.float32))
    )
    assert "known to be clean" in lacking(find_method("loss", "sepclr"), toy())
    assert lacking(find_method("loss", "supremix"), toy()) is None
    assert "'Dress'" in lacking(find_method("loss", "supremix"), toy(classes=("Dress", "Shirt", "Coat")))
    for slug, classes in (("ce", ("only",)), ("supremix", ("15",)), ("supcon", ("used", "unused"))):
        one = toy(labels=np.zeros(20, np.int64), classes=classes)
        assert "at least two classes; toy has 1" in lacking(find_method("loss", slug), one)
    everybody = toy(trusted=np.ones(20, bool))
    assert "all are marked as 'trusted'" in lacking(find_method("loss", "sepclr"), everybody)
    assert lacking(find_method("loss", "simclr"), everybody) is None


def test_by_sample():
    rows = torch.arange(12).view(6, 2)  # two views of three samples
    views = by_sample(rows, 2)
    assert views.shape == (3, 2, 2)
    assert torch.equal(views[1, 0], rows[1])
    assert torch.equal(views[1, 1], rows[4])
