"""`arrays:` reads every key it documents, and says which file, key and row it cannot use."""

import numpy as np
import pytest

from chaffinch.base.errors import InputError
from chaffinch.data import CLEAN, MISLABELLED, OOD, open_dataset
from chaffinch.data.arrays import ARRAY_KEYS
from chaffinch.data.sources import fingerprint

RNG = np.random.default_rng(0)
GOOD = {
    "images": RNG.integers(0, 256, (6, 4, 4), dtype=np.uint8),
    "features": RNG.standard_normal((6, 3)),
    "pred_probs": np.full((6, 3), 1 / 3),
    "labels": np.array([0, 1, 2, 0, 1, 2], np.int32),
    "classes": np.array(["cat", "dog", "owl"]),
    "ids": np.array(list("abcdef")),
    "true_labels": np.array([0, 1, 2, 1, -1, 2]),
    "kind": np.array([0, 0, 0, 1, 2, 0]),
    "xy": RNG.standard_normal((6, 2)),
    "trusted": np.array([True, False, False, False, False, True]),
}

ROW_2 = np.where(np.arange(6)[:, None] == 2, np.nan, np.ones((6, 3)))
"""Features, but none in row 2."""


@pytest.fixture
def opened(tmp_path):
    """A function that writes the good arrays with some changes (None: left out) and opens them."""

    def write_and_open(only=None, **changes):
        values = {**GOOD, **changes}
        values = {k: v for k, v in values.items() if v is not None and (only is None or k in only)}
        np.savez(tmp_path / "a.npz", **values)
        return open_dataset(f"arrays:{tmp_path / 'a.npz'}")

    return write_and_open


def test_all_keys(opened, tmp_path):
    assert set(GOOD) == set(ARRAY_KEYS)
    d = opened()
    o = d.observed
    assert d.name == f"arrays:{tmp_path / 'a.npz'}"
    np.testing.assert_array_equal(o.images, GOOD["images"])
    np.testing.assert_allclose(o.features, GOOD["features"], rtol=1e-6)
    assert o.features.dtype == o.xy.dtype == np.float32
    assert o.pred_probs.dtype == np.float64
    assert (o.labels.tolist(), o.labels.dtype) == (GOOD["labels"].tolist(), np.int64)
    assert o.classes == ("cat", "dog", "owl")
    assert o.ids.tolist() == list("abcdef")
    assert d.truth.labels.tolist() == GOOD["true_labels"].tolist()
    assert d.truth.kind.tolist() == GOOD["kind"].tolist()
    assert o.trusted.tolist() == GOOD["trusted"].tolist()
    assert d.trusted.tolist() == [], "rows that are marked are not samples of the test split"


def test_smallest_file(opened):
    d = opened(only=("features", "labels"))
    assert d.observed.classes == ("class 0", "class 1", "class 2")
    assert d.observed.ids.tolist() == list("012345")
    assert d.truth is None
    assert d.test is None
    assert d.observed.trusted is None


@pytest.mark.parametrize("dtype", ["U", "S"])
def test_text_labels(opened, dtype):
    """Text may come as str or as UTF-8 bytes; both read the same."""
    names = np.array(["owl", "cat", "dog", "cat", "owl", "owl"]).astype(dtype)
    true = np.array(["owl", "cat", "cat", "cat", "a shoe", "owl"]).astype(dtype)
    d = opened(only=("features", "labels", "true_labels", "ids"), labels=names, true_labels=true)
    assert d.observed.classes == ("cat", "dog", "owl")
    assert d.observed.labels.tolist() == [2, 0, 1, 0, 2, 2]
    assert d.truth.labels.tolist() == [2, 0, 0, 0, -1, 2]
    assert d.truth.kind.tolist() == [CLEAN, CLEAN, MISLABELLED, CLEAN, OOD, CLEAN]
    ordered = opened(labels=names, classes=np.array(["owl", "dog", "cat"]).astype(dtype), true_labels=None, kind=None)
    assert ordered.observed.classes == ("owl", "dog", "cat")
    assert ordered.observed.labels.tolist() == [0, 2, 1, 2, 0, 0]


def test_truth_from_true_labels(opened):
    truth = opened(kind=None).truth
    assert truth.kind.tolist() == [CLEAN, CLEAN, CLEAN, MISLABELLED, OOD, CLEAN]


@pytest.mark.parametrize("dtype", ["U", "S"])
def test_truth_from_kind(opened, dtype):
    kind = np.array(["clean", "clean", "clean", "mislabelled", "ood", "clean"]).astype(dtype)
    truth = opened(kind=kind, true_labels=None).truth
    assert truth.kind.tolist() == [0, 0, 0, 1, 2, 0]
    assert truth.labels[[0, 1, 2, 4, 5]].tolist() == [0, 1, 2, -1, 2]
    assert truth.labels[3] != 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "key 'labels' is missing"),
        ({"images": None, "features": None, "pred_probs": None}, "one of images, features, pred_probs"),
        ({"label": np.zeros(6)}, "unknown key 'label'; it may hold images, features"),
        ({"features": np.full((6, 3), np.nan)}, r"no row can be used \(6 of 6 rows hold NaN or infinity in features"),
        ({"features": np.full((5, 3), np.nan)}, r"features must have 6 rows and 2 dimensions, got shape \(5, 3\)"),
        ({"pred_probs": np.full((6, 2), 0.9)}, "no row can be used .*pred_probs that are no distribution"),
        ({"pred_probs": np.full((6, 2), 0.5)}, "pred_probs has 2 columns but there are 3 classes"),
        ({"pred_probs": np.full(6, np.nan)}, "pred_probs must have 6 rows and 2 dimensions"),
        ({"features": np.array([["a"] * 3] * 6)}, "features must be numbers, got <U1"),
        ({"labels": np.array([0, 1, 2, 3, 0, 0])}, "row 3: label 3 is not one of the 3 classes"),
        ({"labels": np.array([0, 1, 2, 3, 0, 0]), "features": ROW_2}, "row 3: label 3 is not one of the 3 classes"),
        ({"true_labels": np.array([0, 1, 2, 0, 3, 0]), "features": ROW_2}, "true_labels: row 4: 3 is neither"),
        ({"labels": np.array([0, 1, -2, 0, 0, 0])}, "row 2: label -2"),
        ({"labels": np.linspace(0, 1, 6)}, "labels must be whole numbers or text, got float64"),
        ({"labels": np.zeros((6, 1), int)}, r"labels must be one-dimensional, got shape \(6, 1\)"),
        ({"labels": np.array(["cat"] * 5 + ["fox"])}, "row 5: label .*fox.* is not in classes"),
        ({"labels": np.array([b"\xff"] * 6)}, "labels is not UTF-8 text"),
        ({"classes": np.array(["cat", "dog", "cat"])}, "class name 'cat' occurs more than once"),
        ({"images": np.zeros((6, 4, 4))}, "images must be uint8"),
        ({"images": np.zeros((6, 1, 4, 4), np.uint8)}, r"images must be \(N, H, W\) or \(N, H, W, 3\)"),
        ({"images": np.zeros((5, 4, 4), np.uint8)}, "images must have 6 rows"),
        ({"true_labels": np.zeros(5, int)}, r"true_labels must be \(6,\) as labels are, got \(5,\)"),
        ({"true_labels": np.array([0, 1, 2, 0, 3, 0])}, "true_labels: row 4: 3 is neither a class .* nor -1"),
        ({"true_labels": np.array([0, 1, 2, np.nan, 0, 0])}, "true_labels must be whole numbers or text"),
        ({"kind": np.array([0, 0, 0, 0, 0, 3])}, "kind must be one code per row: 0 clean"),
        ({"trusted": np.array([0, 1, 0, 0, 0, 0])}, r"trusted must be \(6,\) true or false, got \(6,\) int64"),
        ({"trusted": np.ones(5, bool)}, r"trusted must be \(6,\) true or false, got \(5,\) bool"),
        ({"kind": np.zeros(5, int)}, "kind must be one code per row"),
        ({"kind": np.array(["clean"] * 5 + ["dirty"])}, "kind must be clean, mislabelled or ood, got 'dirty'"),
    ],
)
def test_bad_arrays(opened, changes, message):
    with pytest.raises(InputError, match=f"a\\.npz: {message}"):
        opened(**changes)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"features": ROW_2}, "1 of 6 rows hold NaN or infinity in features (row 2: c)"),
        ({"features": np.nan_to_num(ROW_2, nan=1e300)}, "1 of 6 rows hold NaN or infinity in features (row 2: c)"),
        ({"xy": ROW_2[:, :2]}, "1 of 6 rows hold NaN or infinity in xy (row 2: c)"),
        ({"ids": np.array(list("abbdef"))}, "1 of 6 rows have the id of an earlier row (row 2: b)"),
        ({"ids": np.array(["a", "b", "", "d", "e", "f"])}, "1 of 6 rows have no id (row 2)"),
        ({"features": ROW_2, "ids": None}, "1 of 6 rows hold NaN or infinity in features (row 2)"),
        (
            {"pred_probs": np.where(np.arange(6)[:, None] == 2, [[1.2, -0.1, -0.1]], 1 / 3)},
            "1 of 6 rows have pred_probs that are no distribution (no negatives, sum 1) (row 2: c)",
        ),
    ],
)
def test_a_bad_row_is_left_out_of_every_array(opened, changes, warning):
    d, rest = opened(**changes), [0, 1, 3, 4, 5]
    assert d.warnings == (f"{warning}; they are left out",)
    assert d.observed.classes == ("cat", "dog", "owl")
    for key in ("labels", "images", "trusted"):
        np.testing.assert_array_equal(getattr(d.observed, key), GOOD[key][rest])
    for key in ("features", "pred_probs", "xy"):
        np.testing.assert_allclose(getattr(d.observed, key), {**GOOD, **changes}[key][rest], rtol=1e-6)
    np.testing.assert_array_equal(d.truth.labels, GOOD["true_labels"][rest])
    np.testing.assert_array_equal(d.truth.kind, GOOD["kind"][rest])


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.npz does not exist"):
        open_dataset(f"arrays:{tmp_path / 'none.npz'}")


@pytest.mark.parametrize("keep", [0, 10, 400, -30])
def test_truncated_file(opened, tmp_path, keep):
    opened()
    path = tmp_path / "a.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.npz cannot be read as an \.npz archive"):
        open_dataset(f"arrays:{path}")


def test_pickled_objects_are_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(tmp_path / "a.npz", features=np.ones((1, 2)), labels=np.array([Bomb()], object))
    with pytest.raises(InputError, match="cannot be read"):
        open_dataset(f"arrays:{tmp_path / 'a.npz'}")
    assert not (tmp_path / "exploded").exists()


def test_single_array(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(InputError, match=r"a\.npy is a single array; save named arrays with numpy\.savez"):
        open_dataset(f"arrays:{tmp_path / 'a.npy'}")


@pytest.mark.parametrize("name", ["", "fashion", "cifar:10", "/some/path.npz"])
def test_unknown_source(name):
    with pytest.raises(InputError, match="unknown dataset"):
        open_dataset(name)


def test_fingerprint_follows_the_file(opened, tmp_path):
    name = f"arrays:{tmp_path / 'a.npz'}"
    opened()
    before = fingerprint(name)
    assert fingerprint(name) == before
    opened(xy=None)
    assert fingerprint(name) != before
    assert fingerprint("fashion-web:seed=1") != fingerprint("fashion-web:seed=2")
    with pytest.raises(InputError, match="cannot be read"):
        fingerprint("arrays:/no/such/file.npz")
