"""Evidence: each piece is computed once, shared by all detectors, and what cannot be made is named."""

from dataclasses import replace

import numpy as np
import pytest

from chaffinch import evidence as module
from chaffinch import registry
from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.data import CLEAN, MISLABELLED
from chaffinch.detectors.base import Trusted
from chaffinch.evidence import Evidence


@pytest.fixture
def observed(blobs):
    return blobs.observed


@pytest.fixture
def calls(monkeypatch):
    """Counts what the heavy functions are asked."""
    counted = {"nearest": 0, "linear_probe": 0, "train_quick_head": 0}

    def counting(name):
        real = getattr(module, name)

        def wrapper(*args, **options):
            counted[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(module, name, wrapper)

    for name in counted:
        counting(name)
    return counted


def needing(*pieces):
    """A detector that asks for these pieces only."""

    class Needing(registry.get("detector", "small-loss")):
        @classmethod
        def needs(cls):
            return pieces

    return Needing


def marked(observed, step=6):
    """Every so manieth sample as a trusted one."""
    rows = np.arange(0, len(observed), step)
    return Trusted(observed.features[rows], observed.labels[rows], rows)


def fit(evidence, slug, **parameters):
    detector = registry.get("detector", slug)(**parameters)
    arguments = evidence.gather(detector)
    return detector.fit(arguments.pop("X"), arguments.pop("y"), **arguments)


def test_each_piece_once_for_all_detectors(observed, calls):
    joint = np.random.default_rng(0).standard_normal((len(observed), len(observed.classes)))
    evidence = Evidence(observed, observed.features, trusted=lambda: marked(observed), joint=lambda: joint)
    assert set(calls.values()) == {0}, "nothing before it is asked for"
    detectors = {slug: getattr(cls(), "k", 0) for slug, cls in registry.methods("detector").items()}
    for slug in sorted(detectors, key=detectors.get, reverse=True):  # whoever wants most neighbours comes first
        fit(evidence, slug)
    assert evidence.history is evidence.history
    assert evidence.pred_probs is evidence.probe.pred_probs
    assert evidence.logits is evidence.probe.logits
    assert evidence.head is evidence.probe.head
    assert calls == {"nearest": 1, "linear_probe": 1, "train_quick_head": 1}


def test_only_what_is_asked_for(observed, calls):
    evidence = Evidence(observed, observed.features)
    fit(evidence, "small-loss")
    assert calls == {"nearest": 0, "linear_probe": 1, "train_quick_head": 0}
    evidence = Evidence(observed, observed.features)
    fit(evidence, "knn-label")
    assert calls == {"nearest": 1, "linear_probe": 1, "train_quick_head": 0}
    Evidence(observed, observed.features).gather(needing("history"))
    assert calls == {"nearest": 1, "linear_probe": 1, "train_quick_head": 1}


def test_neighbours_are_shared(observed):
    evidence = Evidence(observed, observed.features, k=12)
    one, other = (evidence.gather(registry.get("detector", slug)) for slug in ("knn-label", "knn-distance"))
    assert one["neighbors"] is other["neighbors"]
    assert one["neighbors"].indices.shape == (180, 12)
    assert set(one) == {"X", "y", "neighbors"}


def test_shared_pieces_change_no_result(observed):
    """A detector that is handed the pieces says what it says alone."""
    evidence = Evidence(observed, observed.features)
    for slug in ("knn-label", "knn-distance"):
        alone = registry.get("detector", slug)().fit(observed.features, observed.labels)
        np.testing.assert_array_equal(fit(evidence, slug).scores_, alone.scores_)


def test_store_is_asked_and_believed(observed, calls):
    store = {}

    def remember(name, make):
        if name not in store:
            store[name] = make()
        return store[name]

    first = Evidence(observed, observed.features, seed=3, k=12, remember=remember)
    first.neighbors, first.probe, first.history  # noqa: B018
    assert set(store) == {"neighbors-12", "probe-3", "history-3"}
    assert all(isinstance(array, np.ndarray) for arrays in store.values() for array in arrays.values())
    second = Evidence(observed, observed.features, seed=3, k=12, remember=remember)
    assert set(calls.values()) == {1}
    np.testing.assert_array_equal(second.neighbors.indices, first.neighbors.indices)
    np.testing.assert_array_equal(second.neighbors.distance, first.neighbors.distance)
    assert second.neighbors.recall == first.neighbors.recall == 1
    for one, other in zip(second.head, first.head, strict=True):
        np.testing.assert_array_equal(one, other)
    assert second.probe.penalty == first.probe.penalty
    assert set(store["probe-3"]) == {"logits", "W", "b", "penalty"}, "probabilities follow from the logits"
    np.testing.assert_array_equal(second.pred_probs, first.pred_probs)
    for name in ("seen", "after"):
        np.testing.assert_array_equal(getattr(second.history, name), getattr(first.history, name))
    assert set(calls.values()) == {1}
    other = Evidence(observed, observed.features, seed=4, k=12, remember=remember)
    other.pred_probs, other.history  # noqa: B018
    assert calls == {"nearest": 1, "linear_probe": 2, "train_quick_head": 2}, "another seed is another probe and head"


def given_probabilities(observed, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(len(observed.classes)), len(observed))


def test_probabilities_of_the_data_are_used(observed, calls):
    p = given_probabilities(observed)
    evidence = Evidence(replace(observed, pred_probs=p), observed.features)
    assert evidence.pred_probs is p
    assert fit(evidence, "small-loss").scores_ == pytest.approx(-np.log(p[np.arange(180), observed.labels]))
    assert calls["linear_probe"] == 0
    assert evidence.logits.shape == (180, 3), "logits are always the probe's"


def test_without_features(observed, calls):
    p = given_probabilities(observed)
    evidence = Evidence(replace(observed, pred_probs=p, features=None), None)
    for slug in ("small-loss", "confident-learning"):
        assert len(fit(evidence, slug).scores_) == 180
    assert set(calls.values()) == {0}


class TestHistory:
    def test_is_reproducible_to_the_bit(self, observed):
        one, other = (Evidence(observed, observed.features, seed=5).history for _ in range(2))
        assert one.seen.tobytes() == other.seen.tobytes()
        assert one.after.tobytes() == other.after.tobytes()
        different = Evidence(observed, observed.features, seed=6).history
        assert one.seen.tobytes() != different.seen.tobytes()

    def test_is_a_training_on_the_given_labels(self, observed):
        history = Evidence(observed, observed.features).history
        assert history.seen.shape == history.after.shape == (history.epochs, 180, 3)
        for record in (history.seen, history.after):
            np.testing.assert_allclose(np.exp(record.astype(float)).sum(axis=2), 1, atol=5e-3)
        losses = history.losses(observed.labels)
        assert losses[-1].mean() < 0.5 * losses[0].mean(), "it learns"

    def test_wrong_labels_are_learnt_last(self, observed, blobs):
        loss = Evidence(observed, observed.features).history.losses(observed.labels).mean(axis=0)
        assert loss[blobs.truth.kind == MISLABELLED].mean() > 3 * loss[blobs.truth.kind == CLEAN].mean()

    def test_needs_features(self, observed):
        evidence = Evidence(replace(observed, features=None, pred_probs=given_probabilities(observed)), None)
        with pytest.raises(MissingEvidence, match=r"small-loss needs history.* a quick head .*\(--encoder\)"):
            evidence.gather(needing("history"))


class TestTrusted:
    def test_is_fetched_once_and_only_when_asked_for(self, observed):
        fetched = []

        def give():
            fetched.append(1)
            return marked(observed)

        evidence = Evidence(observed, observed.features, trusted=give)
        fit(evidence, "knn-label")
        assert not fetched
        asks = needing("trusted")
        assert evidence.gather(asks)["trusted"] is evidence.gather(asks)["trusted"]
        assert fetched == [1]

    def test_missing(self, observed):
        with pytest.raises(MissingEvidence, match=r"mark rows known to be clean with 'trusted' \(N,\) in the arrays"):
            Evidence(observed, observed.features).trusted  # noqa: B018

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"y": np.zeros(4, int)}, r"need features \(M, D\), labels \(M,\) and rows \(M,\), got \(5, 2\), \(4,\)"),
            ({"rows": np.zeros(6, int)}, r"got \(5, 2\), \(5,\), \(6,\)"),
            ({"X": np.zeros(5)}, r"got \(5,\)"),
            ({"y": np.array([0, 1, -1, 0, 0])}, "labels of trusted samples are codes from 0"),
            ({"rows": np.array([0, 1, -2, 0, 0])}, "rows positions or -1"),
            ({"X": np.where(np.arange(5)[:, None] == 3, np.nan, np.ones((5, 2)))}, "trusted features: row 3 holds NaN"),
        ],
    )
    def test_is_checked_when_it_is_made(self, changes, message):
        good = {"X": np.ones((5, 2)), "y": np.zeros(5, int), "rows": np.full(5, -1)}
        assert len(Trusted(**good)) == 5
        with pytest.raises(InputError, match=message):
            Trusted(**{**good, **changes})


@pytest.mark.parametrize(
    ("slug", "piece"),
    [("lsa", "features"), ("knn-label", "neighbors"), ("knn-distance", "neighbors"), ("small-loss", "pred_probs")],
)
def test_missing_features(observed, slug, piece):
    p = given_probabilities(observed) if slug == "lsa" else None
    evidence = Evidence(replace(observed, features=None, pred_probs=p), None)
    with pytest.raises(MissingEvidence, match=rf"^{slug} needs {piece}, which is not there; .*--encoder") as caught:
        fit(evidence, slug)
    assert (caught.value.slug, caught.value.piece) == (slug, piece)
    assert isinstance(caught.value, InputError), "the command line and the app show it as a message"


@pytest.mark.parametrize(
    ("piece", "remedy"),
    [("trusted", "known to be clean"), ("xyz", "does not know how to make it")],
)
def test_pieces_that_cannot_be_computed(observed, piece, remedy):
    with pytest.raises(MissingEvidence, match=rf"small-loss needs {piece}, which is not there; .*{remedy}"):
        Evidence(observed, observed.features).gather(needing("pred_probs", piece))


@pytest.mark.parametrize("given", ["nothing", "pred_probs", "features", "history", "all"])
def test_what_is_lacking_is_known_beforehand(observed, calls, given):
    """It says what `gather` would say, and computes nothing."""
    p = given_probabilities(observed) if given == "pred_probs" else None
    features = observed.features if given in ("features", "all") else None
    history = Evidence(observed, observed.features).history if given == "history" else None
    calls |= dict.fromkeys(calls, 0)
    evidence = Evidence(
        replace(observed, features=None, pred_probs=p),
        features,
        history=history and (lambda: history),
        trusted=(lambda: marked(observed)) if given == "all" else None,
        joint=(lambda: given_probabilities(observed)) if given == "all" else None,
    )
    classes = registry.methods("detector")
    missing = {slug: evidence.lacking(cls) for slug, cls in classes.items()}
    assert set(calls.values()) == {0}
    runs = {slug for slug, error in missing.items() if error is None}
    alone = {"confident-learning", "gen", "msp", "small-loss"}
    only = {"nothing": set(), "pred_probs": alone, "history": {"aum", "elr", "pc2", "pls"}, "all": set(classes),
            "features": set(classes) - {"symile-fit", "tacred-extrinsic"}}  # fmt: skip
    assert runs == only[given]
    for slug, error in missing.items():
        if error is None:
            evidence.gather(classes[slug])
        else:
            with pytest.raises(MissingEvidence) as caught:
                evidence.gather(classes[slug])
            assert str(caught.value) == str(error)


def test_features_of_another_dataset(observed):
    with pytest.raises(InputError, match="features have 100 rows, labels 180"):
        Evidence(observed, observed.features[:100]).neighbors  # noqa: B018


def test_few_samples_have_fewer_neighbours(observed):
    few = replace(observed, labels=observed.labels[:8], ids=observed.ids[:8], features=observed.features[:8])
    evidence = Evidence(few, few.features)
    assert evidence.neighbors.k == 7
    with pytest.raises(InputError, match=r"knn-label needs 10 neighbours .* there are 7 \(the dataset has 8 samples\)"):
        fit(evidence, "knn-label")
