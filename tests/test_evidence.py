"""Evidence: each piece is computed once, shared by all detectors, and what cannot be made is named."""

from dataclasses import replace

import numpy as np
import pytest

from chaffinch import evidence as module
from chaffinch import registry
from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.evidence import Evidence


@pytest.fixture
def observed(blobs):
    return blobs.observed


@pytest.fixture
def calls(monkeypatch):
    """Counts what the heavy functions are asked."""
    counted = {"nearest": 0, "linear_probe": 0}

    def counting(name):
        real = getattr(module, name)

        def wrapper(*args, **options):
            counted[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(module, name, wrapper)

    for name in counted:
        counting(name)
    return counted


def fit(evidence, slug, **parameters):
    detector = registry.get("detector", slug)(**parameters)
    arguments = evidence.gather(detector)
    return detector.fit(arguments.pop("X"), arguments.pop("y"), **arguments)


def test_each_piece_once_for_all_detectors(observed, calls):
    evidence = Evidence(observed, observed.features)
    assert calls == {"nearest": 0, "linear_probe": 0}, "nothing before it is asked for"
    for slug in registry.methods("detector"):
        fit(evidence, slug)
    assert evidence.pred_probs is evidence.probe.pred_probs
    assert evidence.logits is evidence.probe.logits
    assert evidence.head is evidence.probe.head
    assert calls == {"nearest": 1, "linear_probe": 1}


def test_only_what_is_asked_for(observed, calls):
    evidence = Evidence(observed, observed.features)
    fit(evidence, "small-loss")
    assert calls == {"nearest": 0, "linear_probe": 1}
    evidence = Evidence(observed, observed.features)
    fit(evidence, "knn-label")
    assert calls == {"nearest": 1, "linear_probe": 1}


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
    first.neighbors, first.probe  # noqa: B018
    assert set(store) == {"neighbors-12", "probe-3"}
    assert all(isinstance(array, np.ndarray) for arrays in store.values() for array in arrays.values())
    second = Evidence(observed, observed.features, seed=3, k=12, remember=remember)
    assert calls == {"nearest": 1, "linear_probe": 1}
    np.testing.assert_array_equal(second.neighbors.indices, first.neighbors.indices)
    np.testing.assert_array_equal(second.neighbors.distance, first.neighbors.distance)
    for one, other in zip(second.head, first.head, strict=True):
        np.testing.assert_array_equal(one, other)
    assert second.probe.penalty == first.probe.penalty
    assert calls == {"nearest": 1, "linear_probe": 1}
    Evidence(observed, observed.features, seed=4, k=12, remember=remember).pred_probs  # noqa: B018
    assert calls["linear_probe"] == 2, "another seed is another probe"


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
    assert calls == {"nearest": 0, "linear_probe": 0}


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
    [("history", "training run"), ("trusted", "known to be clean"), ("xyz", "does not know how to make it")],
)
def test_pieces_that_cannot_be_computed(observed, piece, remedy):
    class Wanting(registry.get("detector", "small-loss")):
        @classmethod
        def needs(cls):
            return ("pred_probs", piece)

    with pytest.raises(MissingEvidence, match=rf"small-loss needs {piece}, which is not there; .*{remedy}"):
        Evidence(observed, observed.features).gather(Wanting)


def test_features_of_another_dataset(observed):
    with pytest.raises(InputError, match="features have 100 rows, labels 180"):
        Evidence(observed, observed.features[:100]).neighbors  # noqa: B018


def test_few_samples_have_fewer_neighbours(observed):
    few = replace(observed, labels=observed.labels[:8], ids=observed.ids[:8], features=observed.features[:8])
    evidence = Evidence(few, few.features)
    assert evidence.neighbors.k == 7
    with pytest.raises(InputError, match=r"knn-label needs 10 neighbours .* there are 7 \(the dataset has 8 samples\)"):
        fit(evidence, "knn-label")
