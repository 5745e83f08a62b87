"""What every detector that the registry finds must keep, whatever it computes."""

import inspect
import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from chaffinch import registry
from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.linear import linear_probe
from chaffinch.base.neighbors import Neighbors, nearest
from chaffinch.base.runs import History
from chaffinch.data import Observed
from chaffinch.detectors.base import Detector, Trusted
from chaffinch.detectors.knn_distance import KnnDistance
from chaffinch.detectors.knn_label import KnnLabel
from chaffinch.evidence import REMEDIES, Evidence

DETECTORS = registry.methods("detector")

NOT_MADE_ALONE = {"history", "joint", "trusted"}
"""Pieces of evidence that no detector makes for itself."""

INEXACT = {"lsa": "its solver stops when it is near enough to the best plane"}
"""slug -> why scores are the same to a hundredth only, where rounding differs."""

LENGTH_MATTERS = {"vim": "logits grow with the length of a feature, and its score starts from them"}
"""slug -> why a method that looks at features is not about their directions only."""

FLAGS_OTHERS = {
    "tacred-intrinsic": "flags what lies beside a classifier's misses: clean samples, where labels are wrong at random "
    "and so not learnt; its own test plants noise that is"
}
"""slug -> why the method's own rule flags clean samples rather, on the blobs; the scores still must rank."""


@pytest.fixture(params=DETECTORS, scope="session")
def cls(request):
    return DETECTORS[request.param]


def evidence_of(X, y, n_classes, trusted, k=Evidence.K):
    """All evidence about features and labels; ``trusted`` are positions of samples known to be clean."""
    observed = Observed(y, tuple("abcdefgh"[:n_classes]), np.array([f"s{i:04}" for i in range(len(y))]))
    return Evidence(
        observed,
        X,
        k=k,
        trusted=lambda: Trusted(X[trusted], y[trusted], trusted),
        joint=lambda: linear_probe(X, y, n_classes).logits,
    )


@pytest.fixture(scope="session")
def evidence(planted):
    """All evidence about the planted blobs, read-only; one clean sample in eight is known to be clean."""
    evidence = evidence_of(planted.X, planted.y, 4, np.flatnonzero(planted.clean)[::8])
    for piece in (evidence.neighbors, evidence.probe, evidence.history, evidence.trusted):
        for value in vars(piece).values():
            for array in value if isinstance(value, tuple) else (value,):
                if isinstance(array, np.ndarray):
                    array.flags.writeable = False
    return evidence


@pytest.fixture(scope="session")
def fitted(cls, evidence):
    """The detector, fitted with its defaults on the planted blobs; not to be changed."""
    return cls().fit(**evidence.gather(cls()))


def assert_same(model, other, order=slice(None)):
    """The same scores and flags to rounding; ``order`` are the rows where the other's samples went."""
    ours, theirs = model.scores_, other.scores_[order]
    tolerance = 1e-2 if model.card.slug in INEXACT else 1e-5
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.ptp(theirs))
    assert (model.flags_ != other.flags_[order]).mean() < 0.01, "but for samples right at the cut"


def alone(cls):
    """Can it be fitted on features and labels only?"""
    return not NOT_MADE_ALONE & set(cls.needs())


def test_there_are_detectors():
    assert {"lsa", "small-loss", "knn-label", "knn-distance", "confident-learning"} <= set(DETECTORS)
    assert {*INEXACT, *LENGTH_MATTERS, *FLAGS_OTHERS} <= set(DETECTORS), "no excuse for a detector that is not there"


def test_card(cls):
    card = cls.card
    assert issubclass(cls, Detector)
    assert card.finds
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", card.slug)
    for text in (card.name, card.paper, card.formula, card.summary, card.fails_when):
        assert text == text.strip() != ""
    assert str(card.year) in card.paper


def test_init_stores_its_parameters_and_nothing_else(cls):
    parameters = inspect.signature(cls.__init__).parameters
    assert all(p.default is not inspect.Parameter.empty for name, p in parameters.items() if name != "self")
    odd = {name: object() for name in parameters if name != "self"}
    model = cls(**odd)
    assert vars(model) == odd, "no checks, no conversions, nothing derived"


def test_clone_and_parameters(cls):
    model = cls()
    for name, value in model.get_params().items():
        changed = not value if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else 3
        copy = clone(model.set_params(**{name: changed}))
        assert copy.get_params()[name] == changed
        assert type(copy) is cls
        model = cls()
    assert clone(model).get_params() == model.get_params()


def test_needs_are_known(cls):
    pieces = {name for name in vars(Evidence) if not name.startswith("_")} | set(REMEDIES)
    assert set(cls.needs()) <= pieces
    optional = {p.name: p.default for p in inspect.signature(cls.fit).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert all(default is None for default in optional.values())


def test_results(cls, fitted, evidence, planted):
    model = cls()
    assert model.fit(**evidence.gather(model)) is model
    n = len(planted.y)
    assert fitted.scores_.shape == (n,)
    assert fitted.scores_.dtype == np.float64
    assert np.isfinite(fitted.scores_).all()
    assert len(np.unique(fitted.scores_)) > 2
    assert fitted.flags_.shape == (n,)
    assert fitted.flags_.dtype == bool
    assert 0 < fitted.flags_.sum() < n
    assert fitted.scores_[fitted.flags_].mean() > fitted.scores_[~fitted.flags_].mean(), "higher = more suspicious"
    if hasattr(fitted, "suggestions_"):
        assert fitted.suggestions_.shape == (n,)
        assert fitted.suggestions_.dtype.kind == "i"
        assert set(fitted.suggestions_) <= {0, 1, 2, 3}
    assert fitted.flag(budget=0.1).sum() == 40
    np.testing.assert_array_equal(fitted.flag(), fitted.flags_)
    assert fitted.classes_.tolist() == [0, 1, 2, 3]


def test_names_of_other_libraries(fitted):
    np.testing.assert_array_equal(fitted.decision_scores_, fitted.scores_)
    np.testing.assert_array_equal(fitted.labels_, fitted.flags_.astype(int))
    backwards = np.argsort(1 - fitted.label_quality_, kind="stable")  # cleanlab's direction, turned round
    np.testing.assert_array_equal(backwards, np.argsort(fitted.scores_, kind="stable"))


def assert_json(info):
    assert json.loads(json.dumps(info, allow_nan=False)) == info
    assert isinstance(info.get("note", ""), str)


def test_info_is_json(fitted):
    assert_json(fitted.info_)


def test_alone(cls, fitted, planted):
    """Without evidence: the same scores from features and labels, or an error that names the missing piece."""
    if not alone(cls):
        (piece,) = NOT_MADE_ALONE & set(cls.needs())
        with pytest.raises(MissingEvidence, match=rf"^{cls.card.slug} needs {piece}, which is not there; \w"):
            cls().fit(planted.X, planted.y)
        return
    assert_same(cls().fit(planted.X, planted.y), fitted)


def test_labels_of_any_kind_alone(cls, planted):
    """Text, negative numbers and whole floats are classes too; suggestions speak the same language."""
    if not alone(cls):
        pytest.skip("evidence with classes wants codes")
    plain = cls().fit(planted.X, planted.y)
    for names in (np.array(["ant", "bee", "cat", "dog"]), np.array([-7, -1, 0, 5]), np.array([0.0, 1.0, 2.0, 10.0])):
        model = cls().fit(planted.X, pd.Series(names[planted.y]))
        assert model.scores_.tobytes() == plain.scores_.tobytes()
        np.testing.assert_array_equal(model.classes_, names)
        if hasattr(plain, "suggestions_"):
            np.testing.assert_array_equal(model.suggestions_, names[plain.suggestions_])


def test_same_seed_same_bits_and_inputs_untouched(cls, fitted, evidence):
    """The evidence is read-only: whoever writes into it fails."""
    again = cls().fit(**evidence.gather(cls()))
    for name in ("scores_", "flags_", "suggestions_"):
        assert hasattr(again, name) == hasattr(fitted, name)
        if hasattr(again, name):
            assert getattr(again, name).tobytes() == getattr(fitted, name).tobytes()
    assert again.info_ == fitted.info_


def check_planted(model, planted):
    """Scores and flags must point at what the card says that the method finds."""
    inside = ~planted.ood
    flagged = {name: model.flags_[getattr(planted, name)].mean() for name in ("clean", "wrong", "ood")}
    rule = model.card.slug not in FLAGS_OTHERS
    if "mislabelled" in model.card.finds:
        assert roc_auc_score(planted.wrong[inside], model.scores_[inside]) > 0.8
        assert (flagged["wrong"] > flagged["clean"]) == rule
    if "ood" in model.card.finds:
        assert roc_auc_score(planted.ood, model.scores_) > 0.6
        assert (flagged["ood"] > flagged["clean"]) == rule


def test_finds_what_its_card_promises(fitted, planted):
    check_planted(fitted, planted)


class TestTheContractCanFail:
    """A detector that knows nothing, or the opposite, is caught by the very same check."""

    @pytest.mark.parametrize("good", [KnnLabel, KnnDistance])
    @pytest.mark.parametrize("spoil", [lambda s: np.zeros_like(s), lambda s: -s, lambda s: np.roll(s, 7)])
    def test_spoilt_scores(self, good, spoil, planted):
        class Spoilt(good):
            def fit(self, X, y):
                super().fit(X, y)
                self.scores_ = spoil(self.scores_)
                return self

        check_planted(good().fit(planted.X, planted.y), planted)
        with pytest.raises(AssertionError):
            check_planted(Spoilt().fit(planted.X, planted.y), planted)

    @pytest.mark.parametrize("good", [KnnLabel, KnnDistance])
    @pytest.mark.parametrize("spoil", [np.logical_not, np.zeros_like, np.ones_like])
    def test_spoilt_flags(self, good, spoil, planted):
        class Spoilt(good):
            def fit(self, X, y):
                super().fit(X, y)
                self.flags_ = spoil(self.flags_)
                return self

        with pytest.raises(AssertionError):
            check_planted(Spoilt().fit(planted.X, planted.y), planted)


def permuted(arguments, order):
    """The same samples on other rows, evidence along with them."""
    place = np.argsort(order)
    moved = {}
    for piece, value in arguments.items():
        if isinstance(value, Neighbors):
            value = Neighbors(place[value.indices[order]], value.similarity[order])
        elif isinstance(value, History):
            value = History(value.seen[:, order], value.after[:, order])
        elif isinstance(value, Trusted):
            value = Trusted(value.X, value.y, place[value.rows])
        elif isinstance(value, np.ndarray):
            value = value[order]
        moved[piece] = value
    return moved


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_scores_follow_their_samples(cls, fitted, evidence, seed):
    order = np.random.default_rng(seed).permutation(len(fitted.scores_))
    moved = cls().fit(**permuted(evidence.gather(cls()), order))
    assert_same(moved, fitted, order)


def turned(arguments, rotation, lengths):
    """The same samples in a rotated feature space, each with another length; the head turns along."""
    X = (arguments["X"] * lengths @ rotation).astype(np.float32)
    changed = {**arguments, "X": X}
    if "neighbors" in arguments:
        changed["neighbors"] = nearest(X, arguments["neighbors"].k)
    if "head" in arguments:
        W, b = arguments["head"]
        changed["head"] = W @ rotation / lengths.mean(), b
    if "trusted" in arguments:
        trusted = arguments["trusted"]
        changed["trusted"] = Trusted(X[trusted.rows], trusted.y, trusted.rows)
    return changed


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
def test_rotation_and_scale_do_not_matter(cls, fitted, evidence, seed, scale):
    rng = np.random.default_rng(seed)
    n, dim = evidence.features.shape
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    arguments = evidence.gather(cls())
    assert_same(cls().fit(**turned(arguments, rotation, np.full((n, 1), scale))), fitted)
    stretched = cls().fit(**turned(arguments, rotation, rng.uniform(0.5, 2, (n, 1))))
    if cls.card.slug in LENGTH_MATTERS:
        assert np.abs(stretched.scores_ - fitted.scores_).max() > 0.01 * np.ptp(fitted.scores_)
    else:
        assert_same(stretched, fitted)


def test_neighbours_that_others_asked_for_change_nothing(cls, planted):
    """Evidence is shared: what a detector says must not depend on who ran before it."""
    if "neighbors" not in cls.needs():
        pytest.skip("asks for no neighbours")
    few, many = (evidence_of(planted.X, planted.y, 4, np.arange(20), k=k) for k in (Evidence.K, 250))
    first, second = (cls().fit(**evidence.gather(cls())) for evidence in (few, many))
    assert second.scores_.tobytes() == first.scores_.tobytes()
    assert second.info_ == first.info_


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(cls, evidence, value):
    """The error names the row, with evidence and without."""
    X = evidence.features.copy()
    X[17, 3] = X[90, 0] = value
    for arguments in (evidence.gather(cls()), {"y": evidence.observed.labels}):
        with pytest.raises(
            InputError, match=rf"^{cls.card.slug}: features: row 17 holds NaN or infinity \(2 rows do\)"
        ):
            cls().fit(**{**arguments, "X": X})


def zero_rows(X, y):
    X[[0, 5, 6, 50]] = 0


def duplicates(X, y):
    """Every sample twice, one of the two with another label."""
    X[1::2] = X[::2]
    y[1::2] = (y[::2] + 1) % 4


def single_member(X, y):
    y[y == 3] = 2
    y[11] = 3


def missing_class(X, y):
    y[y == 2] = 1


def constant_columns(X, y):
    X[:, 3:] = 2.0


def tiny_numbers(X, y):
    X *= 1e-12


def huge_numbers(X, y):
    X *= 1e12


def shifted(X, y):
    """All rows point the same way, but for a little."""
    X += 100.0


def one_far_away(X, y):
    X[8] *= -1e6


MILD = [zero_rows, duplicates, single_member, missing_class, constant_columns, tiny_numbers, huge_numbers, shifted]
MILD += [one_far_away]


def all_zero(X, y):
    X[:] = 0


def all_the_same(X, y):
    X[:] = X[0]


def all_in_one_column(X, y):
    X[:, 1:] = 0


def one_class(X, y):
    y[:] = 1


def one_odd_label(X, y):
    y[:] = 0
    y[7] = 3


def as_many_classes_as_samples(X, y):
    y[:] = np.arange(len(y)) % 8


HARSH = [all_zero, all_the_same, all_in_one_column, one_class, one_odd_label, as_many_classes_as_samples]


def fit_on(cls, X, y, n_classes):
    """A fit on degenerate data, with all evidence; finite and complete, or an InputError of the method's own."""
    evidence = evidence_of(X, y, n_classes, np.arange(0, len(y), 4))
    model = cls().fit(**evidence.gather(cls()))
    assert model.scores_.shape == model.flags_.shape == (len(y),)
    assert np.isfinite(model.scores_).all()
    assert set(getattr(model, "suggestions_", [])) <= set(range(n_classes))
    assert_json(model.info_)
    return model


def refuses(cls, X, y, n_classes):
    """The message, if such data are refused."""
    message = None
    try:
        fit_on(cls, X, y, n_classes)
    except InputError as error:
        message = str(error)
    assert "no finite score" not in (message or ""), "that is the safety net, not an answer"
    return message


@pytest.mark.parametrize("spoil", MILD)
def test_mild_degeneracy_is_taken(cls, planted, spoil):
    X, y = planted.X[:200].copy(), planted.y[:200].copy()
    spoil(X, y)
    assert refuses(cls, X, y, 4) is None


@pytest.mark.parametrize("spoil", HARSH)
def test_harsh_degeneracy_is_taken_or_explained(cls, planted, spoil):
    X, y = planted.X[:80].copy(), planted.y[:80].copy()
    spoil(X, y)
    message = refuses(cls, X, y, 8)
    assert message is None or len(message) > 30


@pytest.mark.parametrize("n", [2, 3, 5, 9, 20])
def test_few_samples(cls, planted, n):
    """Fewer than the neighbours it wants."""
    X, y = planted.X[:n].copy(), np.arange(n) % 2
    refuses(cls, X, y, 2)


@pytest.mark.parametrize(("n", "dim"), [(120, 1), (120, 2), (40, 300)])
def test_few_and_many_features(cls, n, dim):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    X = (2 * rng.normal(size=(3, dim))[y] + rng.normal(size=(n, dim))).astype(np.float32)
    message = refuses(cls, X, y, 3)
    assert message is None or dim == 1


def test_probabilities_and_logits_that_say_nothing(cls, evidence):
    """All equal: a classifier that learnt nothing."""
    arguments = evidence.gather(cls())
    n = len(evidence.observed)
    flat = {"pred_probs": np.full((n, 4), 0.25), "logits": np.zeros((n, 4)), "head": (np.zeros((4, 12)), np.zeros(4))}
    flat["history"] = History.of_logits(np.zeros((8, n, 4)))
    if not set(flat) & set(arguments):
        pytest.skip("asks no classifier")
    message = None
    try:
        model = cls().fit(**{**arguments, **{piece: flat[piece] for piece in flat if piece in arguments}})
        assert_json(model.info_)
    except InputError as error:
        message = str(error)
    assert message is None or "no finite score" not in message


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_features_of_any_float_type(cls, fitted, evidence, dtype):
    arguments = evidence.gather(cls())
    model = cls().fit(**{**arguments, "X": arguments["X"].astype(dtype)})
    assert np.corrcoef(model.scores_, fitted.scores_)[0, 1] > 0.99
