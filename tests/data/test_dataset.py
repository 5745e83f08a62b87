"""A dataset is checked when it is made, and the truth stays out of what a method may see."""

from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import numpy as np
import pytest

from chaffinch.base.errors import InputError
from chaffinch.base.files import digest
from chaffinch.data import CLEAN, MISLABELLED, OOD, NoisyDataset, Observed, Truth


def observed(**changes):
    rng = np.random.default_rng(0)
    values = {
        "labels": np.array([0, 1, 2, 1]),
        "classes": ("a", "b", "c"),
        "ids": np.array(["p", "q", "r", "s"]),
        "images": rng.integers(0, 256, (4, 5, 6), dtype=np.uint8),
        "features": rng.random((4, 3), dtype=np.float32),
        "pred_probs": np.full((4, 3), 1 / 3),
        "xy": np.zeros((4, 2), np.float32),
        "trusted": np.array([False, True, False, False]),
    }
    return Observed(**{**values, **changes})


def nan_in(row, shape):
    value = np.zeros(shape)
    value[row, 0] = np.nan
    return value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.empty(0, int)}, "the dataset is empty"),
        ({"labels": np.array([0.0, 1, 2, 1])}, r"labels must be \(N,\) whole numbers, got \(4,\) float64"),
        ({"labels": np.zeros((4, 1), int)}, r"labels must be \(N,\) whole numbers, got \(4, 1\)"),
        ({"labels": np.array([0, 1, 3, 7])}, r"row 2: label 3 is not one of the 3 classes \(0 to 2\); 2 rows"),
        ({"labels": np.array([0, -1, 2, 1])}, "row 1: label -1"),
        ({"ids": np.array(["p", "q", "r"])}, r"ids must be \(4,\) as labels are, got \(3,\)"),
        ({"ids": np.array(["p", "q", "r", "q"])}, r"id 'q' occurs more than once \(first in row 1\)"),
        ({"images": np.zeros((3, 5, 6), np.uint8)}, r"images must have 4 rows .* got shape \(3, 5, 6\)"),
        ({"images": np.zeros((4, 30), np.uint8)}, "images must have 4 rows and 3 dimensions"),
        ({"images": np.zeros((4, 1, 5, 6), np.uint8)}, r"images must be \(N, H, W\) or \(N, H, W, 3\)"),
        ({"images": np.zeros((4, 5, 6))}, r"images must be uint8 \(0 to 255\), got float64"),
        ({"features": nan_in(2, (4, 3))}, r"features: row 2 holds NaN or infinity \(1 rows do\)"),
        ({"features": np.zeros((5, 3))}, "features must have 4 rows"),
        ({"pred_probs": nan_in(3, (4, 3))}, "pred_probs: row 3"),
        ({"pred_probs": np.zeros((4, 2))}, "pred_probs has 2 columns but there are 3 classes"),
        ({"xy": nan_in(0, (4, 2))}, "xy: row 0"),
        ({"trusted": np.ones(3, bool)}, r"trusted must be \(4,\) true or false, got \(3,\) bool"),
        ({"trusted": np.ones((4, 1), bool)}, r"trusted must be \(4,\) true or false, got \(4, 1\) bool"),
        ({"trusted": np.array([0, 1, 0, 0])}, r"trusted must be \(4,\) true or false, got \(4,\) int64"),
    ],
)
def test_errors_name_the_place(changes, message):
    with pytest.raises(InputError, match=message):
        observed(**changes)


def test_colour_and_nothing_optional_are_fine():
    assert len(observed(images=np.zeros((4, 5, 6, 3), np.uint8))) == 4
    assert len(observed(images=None, features=None, pred_probs=None, xy=None, trusted=None)) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": np.array([0, 1, 2, 2])},
        {"classes": ("a", "b", "d")},
        {"ids": np.array(["p", "q", "r", "t"])},
        {"images": np.zeros((4, 5, 6), np.uint8)},
        {"images": None},
        {"features": np.zeros((4, 3), np.float32)},
        {"features": None},
        {"pred_probs": None},
        {"xy": np.ones((4, 2), np.float32)},
        {"trusted": np.array([True, False, False, False])},
        {"trusted": None},
    ],
)
def test_digest_changes_with_every_field(changes):
    assert observed().digest == observed().digest
    assert observed(**changes).digest != observed().digest


def test_digest_knows_which_field_is_which():
    value = np.zeros((4, 2), np.float32)
    assert observed(features=value, xy=None).digest != observed(features=None, xy=value).digest


def test_digest_without_trusted_rows_is_what_it_was_before_there_were_any():
    """Stored results of such data stay valid."""
    o = observed(trusted=None)
    before = digest(o.labels, list(o.classes), o.ids, o.images, o.features, o.pred_probs, o.xy)
    assert o.digest == before
    bare = observed(images=None, xy=None, trusted=None)
    assert bare.digest == digest(o.labels, list(o.classes), o.ids, "", o.features, o.pred_probs, "")
    assert observed(trusted=np.zeros(4, bool)).digest != before


def test_truth_of():
    truth = Truth.of(np.array([0, 1, 2]), np.array([0, 2, -1]))
    assert truth.kind.tolist() == [CLEAN, MISLABELLED, OOD]
    assert truth.labels.tolist() == [0, 2, -1]
    assert truth.kind.dtype == np.int8


def test_truth_is_not_in_observed_nor_in_the_digest():
    seen = observed()
    truth = Truth.of(seen.labels, np.array([0, 1, -1, 0]))
    dataset = NoisyDataset("toy", seen, truth)
    assert dataset.digest == NoisyDataset("toy", seen).digest
    assert dataset.digest == NoisyDataset("other name", seen, Truth.of(seen.labels, seen.labels)).digest
    assert len(dataset) == 4

    assert {f.name for f in fields(Observed)} == {
        "labels", "classes", "ids", "images", "features", "pred_probs", "xy", "trusted",
    }  # fmt: skip
    reachable, todo = [], [seen]
    while todo:
        value = todo.pop()
        reachable.append(value)
        if is_dataclass(value) or hasattr(value, "__dict__"):
            todo += list(vars(value).values())
        elif isinstance(value, tuple | list):
            todo += list(value)
        elif isinstance(value, np.ndarray) and value.base is not None:
            todo.append(value.base)
    assert not any(isinstance(value, Truth | NoisyDataset) for value in reachable)
    assert not any(value is truth.labels or value is truth.kind for value in reachable)


def test_frozen_and_replaceable():
    seen = observed()
    with pytest.raises(FrozenInstanceError):
        seen.labels = np.zeros(4, int)
    assert replace(seen, labels=np.zeros(4, int)).digest != seen.digest


def test_truth_must_fit():
    with pytest.raises(InputError, match="the truth has 3 rows, the data 4"):
        NoisyDataset("toy", observed(), Truth.of(np.zeros(3, int), np.zeros(3, int)))
