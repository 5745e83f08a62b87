"""What `fit` of the base class lets through to a method, and what it says of the rest."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.neighbors import Neighbors, nearest
from chaffinch.base.runs import History
from chaffinch.detectors.base import Detector, Trusted, ranks
from chaffinch.detectors.confident_learning import ConfidentLearning
from chaffinch.detectors.knn_label import KnnLabel


class Seeing(Detector):
    """Keeps what it is given."""

    card = KnnLabel.card
    uses_features = False

    def fit(
        self, X, y, *, neighbors=None, pred_probs=None, logits=None, head=None, history=None, trusted=None, own=None
    ):
        self.seen = {name: value for name, value in locals().items() if name != "self"}
        self.scores_ = np.arange(len(y), dtype=np.float32)
        self.flags_ = self.scores_ > 3
        self.suggestions_ = np.roll(y, 1)
        return self


X6 = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y6 = np.array([0, 1, 0, 1, 0, 1])
P6 = np.full((6, 2), 0.5)
NEAR6 = nearest(X6, 2)
HEAD6 = (np.ones((2, 3)), np.zeros(2))


def history(shape=(2, 6, 2)):
    record = np.full(shape, -0.7, np.float16)
    return History(record, record)


def trusted(width=3, last=1):
    return Trusted(np.ones((2, width)), np.array([0, 1]), np.array([0, last]))


def given(X, y, **evidence):
    model = Seeing().fit(X, y, **evidence)
    return model, model.seen


class TestFeatures:
    @pytest.mark.parametrize("dtype", [np.float64, np.float32])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_floats_are_not_copied(self, dtype, order):
        X = np.asarray(X6, dtype, order=order)
        assert np.shares_memory(given(X, Y6)[1]["X"], X)

    def test_a_million_rows_take_no_second_million(self):
        """A mask of the array would take 4 MB here, a copy 16; a labels' copy is 0.25."""
        X, y = np.ones((32_000, 128), np.float32), np.arange(32_000) % 4
        tracemalloc.start()
        try:
            Seeing().fit(X, y)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2e6

    @pytest.mark.parametrize(
        "X",
        [X6.tolist(), pd.DataFrame(X6, columns=list("abc")), X6.astype(object), X6.astype(np.float16)],
        ids=["list", "frame", "object", "half"],
    )
    def test_other_containers(self, X):
        seen = given(X, Y6)[1]["X"]
        assert type(seen) is np.ndarray
        assert seen.dtype in (np.float32, np.float64)
        np.testing.assert_allclose(seen, X6, rtol=1e-3)

    def test_whole_numbers(self):
        assert given(np.arange(12).reshape(6, 2), Y6)[1]["X"].dtype == np.float64

    def test_names_of_a_frame_are_kept_and_forgotten(self):
        model = Seeing().fit(pd.DataFrame(X6, columns=list("abc")), Y6)
        assert model.feature_names_in_.tolist() == list("abc")
        assert model.n_features_in_ == 3
        model.fit(None, Y6, neighbors=NEAR6, pred_probs=P6, logits=P6, head=HEAD6)
        assert not hasattr(model, "feature_names_in_")
        assert not hasattr(model, "n_features_in_")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", [np.float64, np.float32, object])
    def test_not_finite(self, value, dtype):
        X = X6.astype(dtype)
        X[4, 1] = X[5, 0] = value
        with pytest.raises(InputError, match=r"^knn-label: features: row 4 holds NaN or infinity \(2 rows do\)"):
            Seeing().fit(X, Y6)

    def test_sums_that_overflow_are_no_infinity(self):
        X = np.full((6, 3), 3e14, np.float32)
        np.testing.assert_array_equal(given(X, Y6)[1]["X"], X)

    @pytest.mark.parametrize("value", [1e30, -1e300])
    def test_too_large(self, value):
        X = X6.astype(np.float64)
        X[2, 1] = value
        with pytest.raises(InputError, match=r"features: row 2 holds 1\.0e\+\d+, too large to square; scale them down"):
            Seeing().fit(X, Y6)

    @pytest.mark.parametrize(
        ("X", "message"),
        [
            (csr_array(X6), r"features are sparse, but dense data is required; use \.toarray\(\)"),
            (X6 + 1j, "features: .*Complex data not supported"),
            (X6[:, 0], "features: .*Expected 2D array, got 1D array"),
            (X6[None], "features: .*dim 3"),
            (X6[:, :0], r"features: .*0 feature\(s\)"),
            (X6[:5], "inconsistent numbers of rows: labels 6, features 5"),
            (np.array([["a"] * 3] * 6), "features: .*could not convert string to float"),
        ],
    )
    def test_refused(self, X, message):
        with pytest.raises(InputError, match=f"^knn-label: {message}"):
            Seeing().fit(X, Y6)

    def test_needed(self):
        class Wanting(Seeing):
            uses_features = True

        with pytest.raises(MissingEvidence, match=r"knn-label needs features, .*; give features X \(N, D\)"):
            Wanting().fit(None, Y6)

    @pytest.mark.parametrize("piece", ["neighbors", "pred_probs", "logits", "head"])
    def test_needed_for_evidence_that_is_not_there(self, piece):
        pieces = {"neighbors": NEAR6, "pred_probs": P6, "logits": P6, "head": HEAD6}
        Seeing().fit(None, Y6, **pieces)
        with pytest.raises(MissingEvidence, match=rf"knn-label needs {piece}, .*; give features X"):
            Seeing().fit(None, Y6, **{**pieces, piece: None})


class TestLabels:
    @pytest.mark.parametrize(
        ("y", "classes"),
        [
            (list("babaca"), list("abc")),
            ([b"b", b"a", b"b", b"a", b"a", b"a"], [b"a", b"b"]),
            ([-1, 1, -1, 1, 7, 7], [-1, 1, 7]),
            ([0.0, 2.0, 0.0, 2.0, 2.0, 5.0], [0, 2, 5]),
            ([True, False, True, True, False, False], [False, True]),
            ([10**9, 3, 3, 3, 10**9, 3], [3, 10**9]),
            (np.array([2**64 - 1, 0, 0, 0, 0, 1], np.uint64), [0, 1, 2**64 - 1]),
            (pd.Series(list("babaca")), list("abc")),
            (pd.Categorical(list("babaca")), list("abc")),
            (np.array(["b", "a", "b", "a", "c", "a"], object), list("abc")),
            (pd.Series([1, 0, 1, 0, 0, 4], dtype="Int64"), [0, 1, 4]),
        ],
        ids=[
            "text",
            "bytes",
            "negative",
            "float",
            "bool",
            "huge",
            "unsigned",
            "series",
            "categories",
            "objects",
            "Int64",
        ],
    )
    def test_of_any_kind_become_codes_and_come_back(self, y, classes):
        model, seen = given(X6, y)
        assert seen["y"].dtype == np.int64
        if model.classes_.tolist() == classes:  # else they were codes already
            assert set(seen["y"]) == set(range(len(classes)))
        else:
            assert model.classes_.tolist() == list(range(max(classes) + 1))
        np.testing.assert_array_equal(model.classes_[seen["y"]], np.asarray(y))
        np.testing.assert_array_equal(model.suggestions_, np.roll(np.asarray(y), 1))

    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
    def test_codes_stay_themselves(self, dtype):
        model, seen = given(X6, np.array([0, 3, 0, 3, 1, 1], dtype))
        assert seen["y"].tolist() == [0, 3, 0, 3, 1, 1]
        assert seen["y"].dtype == np.int64
        assert model.classes_.tolist() == [0, 1, 2, 3]
        assert model.suggestions_.dtype == np.int64

    def test_a_column_is_taken_with_a_warning(self):
        with pytest.warns(UserWarning, match="column-vector y"):
            assert given(X6, Y6[:, None])[1]["y"].tolist() == Y6.tolist()

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            (None, "knn-label requires y to be passed, but the target y is None; give the labels"),
            ([0, 1, 0.5, 1, 0, 1], r"labels are classes, but row 2 holds 0\.5"),
            ([0, 1, 0, np.inf, 0, 1], "labels are classes, but row 3 holds inf"),
            ([0, np.nan, 0, 1, 0, np.nan], r"labels: row 1 has none \(2 rows have not\)"),
            (["a", None, "a", "b", "a", "b"], r"labels: row 1 has none \(1 rows"),
            (pd.Series([0, 1, 0, pd.NA, 0, 1], dtype="Int64"), "labels: row 3 has none"),
            (np.array(["a", 1, "a", 1, "a", 1], object), "labels must be all text, or all numbers"),
            (np.eye(6), r"labels: y should be a 1d array, got an array of shape \(6, 6\)"),
            ([], r"at least two samples are needed, got n_samples = 0"),
            ([0], r"at least two samples are needed, got n_samples = 1"),
            (Y6[:5], "inconsistent numbers of rows: labels 5, features 6"),
        ],
    )
    def test_refused(self, y, message):
        with pytest.raises(InputError, match=message):
            Seeing().fit(X6, y)

    def test_whole_floats_are_codes_where_evidence_is_given(self):
        model, seen = given(X6, Y6.astype(float), pred_probs=P6)
        assert seen["y"].dtype == np.int64
        np.testing.assert_array_equal(seen["y"], Y6)

    @pytest.mark.parametrize("y", [list("ababab"), Y6 - 1, Y6.astype(bool), Y6.astype(object)])
    @pytest.mark.parametrize("piece", ["pred_probs", "logits", "head", "history", "trusted"])
    def test_must_be_codes_where_evidence_has_classes(self, y, piece):
        pieces = {"pred_probs": P6, "logits": P6, "head": HEAD6, "history": history()}
        pieces["trusted"] = trusted()
        with pytest.raises(InputError, match="labels must be whole numbers 0 to C-1 where evidence is given, got"):
            Seeing().fit(X6, y, **{piece: pieces[piece]})

    def test_may_be_of_any_kind_with_neighbours(self):
        assert given(X6, list("ababab"), neighbors=NEAR6)[0].classes_.tolist() == ["a", "b"]


def matrix(value, row=2):
    p = P6.copy()
    p[row, 0] = value
    return p


class TestEvidence:
    @pytest.mark.parametrize(
        ("evidence", "message"),
        [
            ({"pred_probs": P6[:5]}, "inconsistent numbers of rows: labels 6, features 6, pred_probs 5"),
            ({"pred_probs": P6[:, :1]}, r"pred_probs must be \(6, C\) with C > 1 as the labels need, got \(6, 1\)"),
            ({"pred_probs": P6[:, 0]}, r"pred_probs must be \(6, C\) .*, got \(6,\)"),
            ({"pred_probs": matrix(np.nan)}, r"pred_probs: row 2 holds NaN or infinity \(1 rows"),
            ({"pred_probs": matrix(-0.5)}, r"pred_probs: row 2 is no distribution \(none negative, sum 1\)"),
            ({"pred_probs": matrix(0.6, 3)}, "pred_probs: row 3 is no distribution"),
            ({"pred_probs": [["a", "b"]] * 6}, r"pred_probs must be \(N, C\) numbers: could not convert"),
            ({"logits": matrix(np.inf)}, "logits: row 2 holds NaN or infinity"),
            ({"logits": P6[:, :1]}, r"logits must be \(6, C\) with C > 1"),
            (
                {"head": (np.ones((2, 4)), np.zeros(2))},
                r"head must be .* \(C, 3\) and .* got \(2, 4\) and \(2,\)",
            ),
            ({"head": (np.ones((2, 3)), np.zeros(3))}, r"head .* got \(2, 3\) and \(3,\)"),
            ({"head": (np.ones((1, 3)), np.zeros(1))}, "head .* with C > 1"),
            ({"head": (np.full((2, 3), np.nan), np.zeros(2))}, "head: row 0 holds NaN"),
            ({"neighbors": nearest(X6[:5], 2)}, "inconsistent numbers of rows: labels 6, features 6, neighbors 5"),
            ({"neighbors": Neighbors(NEAR6.indices + 1, NEAR6.similarity)}, "neighbors must be positions 0 to 5"),
            ({"neighbors": Neighbors(NEAR6.indices - 1, NEAR6.similarity)}, "neighbors must be positions 0 to 5"),
            ({"neighbors": Neighbors(NEAR6.indices, NEAR6.similarity[:, :1])}, "neighbors .* each with a similarity"),
            ({"neighbors": Neighbors(NEAR6.indices, NEAR6.similarity * np.nan)}, "neighbors: row 0 holds NaN"),
            ({"history": history((2, 5, 2))}, "inconsistent numbers of rows: labels 6, features 6, history 5"),
            ({"history": history((2, 6, 1))}, "the history has 1 classes, the labels need 2"),
            ({"trusted": trusted(width=4)}, "trusted samples have 4 features, the others 3"),
            ({"trusted": trusted(last=6)}, "trusted row 6 is none of the 6 samples"),
            ({"own": np.zeros(5)}, "inconsistent numbers of rows: labels 6, features 6, own 5"),
        ],
    )
    def test_refused(self, evidence, message):
        with pytest.raises(InputError, match=f"^knn-label: {message}"):
            Seeing().fit(X6, Y6, **evidence)

    def test_goes_through_untouched(self):
        pieces = {"pred_probs": P6, "logits": -P6, "head": HEAD6, "neighbors": NEAR6, "history": history()}
        pieces |= {"trusted": trusted(last=-1), "own": np.zeros((6, 2))}
        seen = given(X6, Y6, **pieces)[1]
        assert all(seen[name] is value for name, value in pieces.items())

    @pytest.mark.parametrize("p", [P6.tolist(), pd.DataFrame(P6), P6.astype(np.float32)])
    def test_probabilities_of_other_kinds(self, p):
        seen = given(X6, Y6, pred_probs=p)[1]["pred_probs"]
        assert seen.dtype == np.float64
        np.testing.assert_array_equal(seen, P6)


class TestResult:
    def test_is_brought_to_the_promised_types(self):
        model = Seeing().fit(X6, Y6)
        assert model.scores_.dtype == np.float64
        assert model.flags_.dtype == bool

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_must_be_finite(self, value):
        class Broken(Seeing):
            def fit(self, X, y):
                super().fit(X, y)
                self.scores_[[3, 5]] = value

        with pytest.raises(InputError, match=r"knn-label found no finite score for row 3 \(2 rows\)"):
            Broken().fit(X6, Y6)

    @pytest.mark.parametrize("name", ["scores_", "flags_"])
    def test_must_have_one_entry_a_sample(self, name):
        class Broken(Seeing):
            def fit(self, X, y):
                super().fit(X, y)
                setattr(self, name, getattr(self, name)[:5])

        with pytest.raises(TypeError, match=r"knn-label must give \(6,\) scores and flags, gave"):
            Broken().fit(X6, Y6)

    def test_an_earlier_fit_leaves_no_suggestions(self):
        class Shy(Seeing):
            def fit(self, X, y):
                super().fit(X, y)
                if y[0]:
                    del self.suggestions_

        model = Shy().fit(X6, Y6)
        assert hasattr(model, "suggestions_")
        assert not hasattr(model.fit(X6, 1 - Y6), "suggestions_")


class TestNames:
    """cleanlab's and PyOD's names of the same things."""

    @pytest.fixture
    def model(self, blobs):
        return ConfidentLearning().fit(None, blobs.y, pred_probs=blobs.p)

    def test_cleanlab(self, model):
        quality = model.label_quality_
        assert quality.min() == 0
        assert quality.max() == 1
        np.testing.assert_array_equal(np.argsort(-quality, kind="stable"), np.argsort(model.scores_, kind="stable"))

    def test_cleanlab_and_back(self, model, blobs):
        """``scores = 1 - quality`` turns cleanlab's direction into ours, for ranks and for self-confidence."""
        np.testing.assert_allclose(1 - model.label_quality_, ranks(model.scores_), atol=1e-15)
        np.testing.assert_allclose(ranks(1 - model.label_quality_), ranks(model.scores_), atol=1e-15)
        self_confidence = blobs.p[np.arange(len(blobs.y)), blobs.y]
        np.testing.assert_array_equal(model.scores_, 1 - self_confidence)

    def test_ties_share_a_quality(self, blobs):
        model = KnnLabel().fit(blobs.X, blobs.y)
        for score in np.unique(model.scores_):
            assert len(np.unique(model.label_quality_[model.scores_ == score])) == 1

    def test_pyod(self, model):
        np.testing.assert_array_equal(model.decision_scores_, model.scores_)
        assert model.labels_.dtype.kind == "i"
        np.testing.assert_array_equal(model.labels_ == 1, model.flags_)
        assert set(model.labels_.tolist()) == {0, 1}

    def test_before_a_fit_there_is_none(self):
        for name in ("label_quality_", "decision_scores_", "labels_"):
            assert not hasattr(ConfidentLearning(), name)
