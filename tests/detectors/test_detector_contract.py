"""What every detector that the registry finds must keep, whatever it computes."""

import inspect
import json
import re

import numpy as np
import pytest
from sklearn.base import clone

from chaffinch import registry
from chaffinch.base.errors import MissingEvidence
from chaffinch.data import Observed
from chaffinch.detectors.base import Detector
from chaffinch.evidence import REMEDIES, Evidence

DETECTORS = registry.methods("detector")
COMPUTED_ALONE = {"features", "neighbors", "pred_probs", "trusted"}


@pytest.fixture(params=DETECTORS)
def cls(request):
    return DETECTORS[request.param]


@pytest.fixture
def evidence(blobs):
    observed = Observed(blobs.y, tuple("abcd"), np.array([f"s{i:03}" for i in range(len(blobs.y))]))
    return Evidence(observed, blobs.X)


def gather(evidence, cls):
    try:
        return evidence.gather(cls)
    except MissingEvidence as error:
        pytest.skip(f"needs {error.piece}, which features and labels do not give")


def test_there_are_detectors():
    assert {"lsa", "small-loss", "knn-label", "knn-distance", "confident-learning"} <= set(DETECTORS)


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


def test_results(cls, evidence, blobs):
    model = cls()
    assert model.fit(**gather(evidence, cls)) is model
    n = len(blobs.y)
    assert model.scores_.shape == (n,)
    assert model.scores_.dtype == np.float64
    assert np.isfinite(model.scores_).all()
    assert len(np.unique(model.scores_)) > 2
    assert model.flags_.shape == (n,)
    assert model.flags_.dtype == bool
    assert 0 < model.flags_.sum() < n
    assert model.scores_[model.flags_].mean() > model.scores_[~model.flags_].mean(), "higher = more suspicious"
    if hasattr(model, "suggestions_"):
        assert model.suggestions_.shape == (n,)
        assert model.suggestions_.dtype.kind == "i"
        assert set(model.suggestions_) <= {0, 1, 2, 3}
    assert model.flag(budget=0.1).sum() == 40
    np.testing.assert_array_equal(model.flag(), model.flags_)


def test_info_is_json(cls, evidence):
    info = cls().fit(**gather(evidence, cls)).info_
    assert json.loads(json.dumps(info, allow_nan=False)) == info
    assert isinstance(info.get("note", ""), str)


def test_alone(cls, blobs):
    """Without evidence: the same scores from features and labels, or an error that names the missing piece."""
    beyond = set(cls.needs()) - COMPUTED_ALONE
    if beyond:
        with pytest.raises(MissingEvidence, match="|".join(beyond)):
            cls().fit(blobs.X, blobs.y)
        return
    model = cls().fit(blobs.X, blobs.y)
    assert np.isfinite(model.scores_).all()
    assert model.scores_.shape == model.flags_.shape == blobs.y.shape


def test_same_seed_same_bits_and_inputs_untouched(cls, evidence):
    arguments = gather(evidence, cls)
    before = [value.copy() for value in arguments.values() if isinstance(value, np.ndarray)]
    first, second = cls().fit(**arguments), cls().fit(**arguments)
    for name in ("scores_", "flags_", "suggestions_"):
        if hasattr(first, name):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.info_ == second.info_
    arrays = [value for value in arguments.values() if isinstance(value, np.ndarray)]
    for old, new in zip(before, arrays, strict=True):
        np.testing.assert_array_equal(old, new)


def test_finds_what_its_card_promises(cls, evidence, blobs):
    from sklearn.metrics import roc_auc_score

    scores = cls().fit(**gather(evidence, cls)).scores_
    if "mislabelled" in cls.card.finds:
        inside = ~blobs.ood
        assert roc_auc_score(blobs.wrong[inside], scores[inside]) > 0.8
    if "ood" in cls.card.finds:
        assert roc_auc_score(blobs.ood, scores) > 0.6
