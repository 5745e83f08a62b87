"""What a page shows: votes, orders, colours, one sample in detail, the strip of counts."""

from dataclasses import replace

import numpy as np
import pytest

from chaffinch import views
from chaffinch.base.record import Record
from chaffinch.card import KINDS
from chaffinch.data import NoisyDataset
from chaffinch.figures import palette
from chaffinch.spec import Cut
from chaffinch.study import Detection, Study
from chaffinch.verdict import Verdict
from chaffinch.views import Cost, colouring, cost, gallery_order, inspect, summary, suspicion, tally, vote


def toy(slug, scores, own=None, suggestions=None):
    scores = np.asarray(scores, float)
    flags = scores > 0.5 if own is None else np.asarray(own, bool)
    suggested = None if suggestions is None else np.asarray(suggestions)
    return Detection(slug, scores, flags, suggested, {}, 0.0, np.zeros(len(scores), int), lambda: None)


A = toy("a", [0.9, 0.8, 0.1, 0.0, 0.7])
B = toy("b", [5, 1, 4, 0, 2], own=[1, 0, 1, 0, 0])


def judged(proba):
    """A verdict with these probabilities on samples of two classes, the first of them probable everywhere."""
    proba, n = np.asarray(proba, float), len(proba)
    rates = {"mislabelled": float(proba[:, 1].mean()), "ood": float(proba[:, 2].mean())}
    return Verdict(proba, np.zeros(n, int), np.full(n, 0.75), np.full((3, 2), 0.5), rates)


@pytest.fixture
def study(blobs, workspace):
    return Study(blobs, workspace=workspace)


@pytest.fixture
def blind(study):
    """The same without its truth."""
    return Study(replace(study.dataset, truth=None), workspace=study.workspace)


@pytest.fixture
def detections(study):
    return [study.detect("lsa"), study.detect("knn-label")]


class TestVote:
    def test_counts(self):
        votes = vote(5, [A, B], [])
        assert votes.flags["a"].tolist() == [True, True, False, False, True]
        assert votes.flags["b"].tolist() == [True, False, True, False, False]
        assert votes.count.tolist() == [2, 1, 1, 0, 1]
        assert votes.flagged.tolist() == [True, True, True, False, True]
        assert votes.problems == {}

    @pytest.mark.parametrize(("least", "flagged"), [(0, 4), (1, 4), (2, 1), (3, 1), (99, 1)])
    def test_least(self, least, flagged):
        """More votes than detectors are as many as there are; a sample that nobody flags is never flagged."""
        assert vote(5, [A, B], [], least).flagged.sum() == flagged

    def test_no_detector(self):
        votes = vote(5, [], [], 2)
        assert votes.count.tolist() == [0] * 5
        assert not votes.flagged.any()
        assert votes.flags == votes.problems == {}

    def test_cuts(self):
        votes = vote(5, [A, B], [Cut("a", budget=0.2), Cut("b", score=1.5), Cut("c", budget=1)])
        assert votes.flags["a"].tolist() == [True, False, False, False, False]
        assert votes.flags["b"].tolist() == [True, False, True, False, True]

    @pytest.mark.parametrize("cut", [Cut("a", budget=1), Cut("a", score=-1)])
    def test_a_cut_that_cannot_be_used_is_reported(self, cut):
        votes = vote(5, [A, B], [cut])
        assert set(votes.problems) == {"a"}
        assert "flags all 5 samples" in votes.problems["a"] or "between 0 and 1, got 3" in votes.problems["a"]
        np.testing.assert_array_equal(votes.flags["a"], A.own)
        np.testing.assert_array_equal(votes.count, vote(5, [A, B], []).count)

    def test_a_contradiction_without_suggestions_is_reported(self):
        votes = vote(5, [A], [Cut("a", rule="contradiction")])
        assert votes.problems["a"].startswith("it suggests no labels, so there is nothing to contradict")
        assert votes.problems["a"].endswith("; its own rule is used instead")
        np.testing.assert_array_equal(votes.flags["a"], A.own)

    def test_a_mixture_of_equal_scores_is_reported(self):
        votes = vote(5, [toy("same", np.ones(5), own=np.ones(5))], [Cut("same", rule="mixture")])
        assert votes.problems["same"].startswith("all 5 losses are equal")
        assert votes.problems["same"].endswith("; nothing is flagged")
        assert not votes.flagged.any()

    def test_rules(self):
        told = toy("t", [5, 4, 3, 0, 0, 0], own=[0, 0, 0, 0, 0, 1], suggestions=[0, 0, 1, 0, 2, 0])
        told = replace(told, noise_rate=lambda: 1 / 3)
        flags = {
            rule: np.flatnonzero(vote(6, [told], [Cut("t", rule=rule)]).flags["t"]).tolist()
            for rule in ("rate", "own", "mixture", "contradiction")
        }
        assert flags == {"rate": [0, 1], "own": [5], "mixture": [0, 1, 2], "contradiction": [2, 4]}


def test_suspicion_is_the_mean_rank():
    assert suspicion([A], 5).tolist() == [1, 0.75, 0.25, 0, 0.5]
    assert suspicion([A, B], 5).tolist() == [1, 0.5, 0.5, 0, 0.5]
    assert suspicion([A, replace(B, scores=B.scores * 1e6 - 7)], 5).tolist() == suspicion([A, B], 5).tolist()
    assert suspicion([], 3).tolist() == [0, 0, 0]


class TestGalleryOrder:
    def order(self, study, detections, show, label="", within=None, cuts=()):
        votes = vote(len(study), detections, cuts)
        return votes, gallery_order(study, detections, votes, show=show, label=label, within=within)

    def test_suspicious(self, study, detections):
        _, order = self.order(study, detections, "suspicious")
        assert sorted(order) == list(range(180))
        score = suspicion(detections, 180)[order]
        assert (np.diff(score) <= 0).all()
        assert study.truth.kind[order[:15]].astype(bool).mean() > 0.8

    def test_trusted(self, study, detections):
        _, order = self.order(study, detections, "trusted")
        assert (np.diff(suspicion(detections, 180)[order]) >= 0).all()
        assert study.truth.kind[order[:15]].astype(bool).mean() < 0.2

    def test_flagged(self, study, detections):
        votes, order = self.order(study, detections, "flagged")
        assert set(order) == set(np.flatnonzero(votes.flagged))
        assert (np.diff(suspicion(detections, 180)[order]) <= 0).all()

    def test_random(self, study, detections):
        _, order = self.order(study, detections, "random")
        assert sorted(order) == list(range(180))
        np.testing.assert_array_equal(order, self.order(study, [], "random")[1])
        other = Study(study.dataset, workspace=study.workspace, seed=1)
        assert (self.order(other, [], "random")[1] != order).any()

    @pytest.mark.parametrize("show", ["suspicious", "trusted", "flagged", "random"])
    def test_label_and_selection(self, study, detections, show):
        """A filter takes samples out; it never changes the order of the rest."""
        within = np.zeros(180, bool)
        within[20:120] = True
        before = within.copy()
        _, all_of_them = self.order(study, detections, show)
        bees = study.observed.labels == 1
        for label, selection, keep in [
            ("bee", None, bees), ("", within, within), ("bee", within, bees & within),
            ("wasp", None, np.ones(180, bool)),
            ("", np.zeros(180, bool), np.zeros(180, bool)),
        ]:  # fmt: skip
            _, order = self.order(study, detections, show, label, selection)
            assert order.tolist() == [i for i in all_of_them if keep[i]]
        np.testing.assert_array_equal(within, before)

    def test_ties_are_broken_by_position(self, study):
        same = toy("same", np.zeros(180), own=np.arange(180) % 2)
        assert self.order(study, [same], "suspicious")[1].tolist() == list(range(180))
        assert self.order(study, [same], "flagged")[1].tolist() == list(range(1, 180, 2))

    @pytest.mark.parametrize(("show", "column"), [("mislabelled", 1), ("ood", 2)])
    def test_what_the_verdict_takes_for_noise_the_surest_first(self, study, detections, show, column):
        verdict = study.verdict()
        votes = vote(180, detections, [])
        order = gallery_order(study, detections, votes, show=show, label="", within=None, verdict=verdict)
        assert set(order) == set(np.flatnonzero(verdict.kinds == column))
        assert len(order)
        assert (np.diff(verdict.proba[order, column]) <= 0).all()
        ants = study.observed.labels == 0
        some = gallery_order(study, detections, votes, show=show, label="ant", within=ants, verdict=verdict)
        assert some.tolist() == [i for i in order if ants[i]]

    def test_of_equally_sure_ones_the_first_comes_first(self, study):
        even = judged(np.tile([0.1, 0.8, 0.1], (180, 1)))
        order = gallery_order(study, [], vote(180, [], []), show="mislabelled", label="", within=None, verdict=even)
        assert order.tolist() == list(range(180))

    def test_no_detector(self, study):
        assert self.order(study, [], "suspicious")[1].tolist() == list(range(180))
        assert self.order(study, [], "flagged")[1].tolist() == []


class TestColouring:
    def colours(self, study, detections, by):
        c = colouring(study, detections, vote(len(study), detections, []), by)
        assert c.values.shape == (len(study),)
        assert c.title
        if c.names:
            assert len(c.names) == len(c.colours)
            assert set(c.values) <= set(range(len(c.names)))
        return c

    def test_given(self, study, detections):
        c = self.colours(study, detections, "given")
        np.testing.assert_array_equal(c.values, study.observed.labels)
        assert c.names == ("ant", "bee", "cat")
        assert c.colours == palette.class_colours(3)

    def test_kind(self, study, detections):
        c = self.colours(study, detections, "kind")
        np.testing.assert_array_equal(c.values, study.truth.kind)
        assert c.names == KINDS
        assert c.colours == tuple(palette.KIND_COLOURS[kind] for kind in KINDS)

    def test_verdict(self, study, detections):
        verdict, votes = study.verdict(), vote(180, detections, [])
        c = colouring(study, detections, votes, "verdict", verdict)
        np.testing.assert_array_equal(c.values, verdict.kinds)
        assert (c.names, c.title) == (KINDS, "Verdict")
        assert c.colours == self.colours(study, detections, "kind").colours, "a kind has one colour everywhere"
        assert colouring(study, detections, votes, "verdict", None).title == "Given label"

    def test_pull(self, pictures, save_encoder, workspace):
        study = followed(pictures, save_encoder, workspace)
        c = colouring(study, [], vote(60, [], []), "pull")
        np.testing.assert_array_equal(c.values, study.pull_ranks)
        assert (c.names, c.colours) == ((), palette.SUSPICION)
        save_encoder("bare", seed=1)
        bare = Study(pictures, "bare", workspace=workspace)
        assert colouring(bare, [], vote(60, [], []), "pull").title == "Given label"

    def test_kind_without_truth_is_given(self, blind, detections):
        assert self.colours(blind, detections, "kind").names == ("ant", "bee", "cat")

    def test_votes(self, study, detections):
        c = self.colours(study, detections, "votes")
        np.testing.assert_array_equal(c.values, vote(180, detections, []).count)
        assert c.names == ("not flagged", "flagged by 1", "flagged by 2")
        assert c.colours == palette.VOTES[:3]
        many = [toy(f"d{i}", np.arange(180), own=np.arange(180) > i) for i in range(9)]
        assert self.colours(study, many, "votes").colours[-1] == palette.VOTES[-1]

    def test_detector(self, study, detections):
        c = self.colours(study, detections, "knn-label")
        np.testing.assert_array_equal(c.values, detections[1].ranks)
        assert c.names == ()
        assert c.colours == palette.SUSPICION
        assert "knn-label" in c.title

    def test_a_detector_that_is_off_is_given(self, study, detections):
        assert self.colours(study, detections, "small-loss").names == ("ant", "bee", "cat")


def followed(pictures, save_encoder, workspace, digest=""):
    """A study of an encoder whose training followed all pictures but the first: the later one pulled harder."""
    path = save_encoder("followed", dataset_digest=digest or pictures.digest)
    pulls = np.arange(59, dtype=np.float16)[None]
    record = Record(np.arange(1, 60), np.array([3]), pulls, pulls, np.empty((1, 59, 0), np.float16))
    record.save(path.with_name("followed.record.safetensors"))
    return Study(pictures, "followed", workspace=workspace)


class TestInspect:
    def test_pull(self, pictures, save_encoder, workspace):
        study, votes = followed(pictures, save_encoder, workspace), vote(60, [], [])
        assert [inspect(study, i, [], votes).pull for i in (0, 1, 30, 59)] == [None, 0, 0.5, 1]

    def test_the_pull_is_of_a_training_on_these_pictures(self, pictures, save_encoder, workspace):
        study = followed(pictures, save_encoder, workspace, digest="of others")
        assert study.pull_ranks is None
        assert inspect(study, 30, [], vote(60, [], [])).pull is None

    def test_a_damaged_record_says_nothing(self, pictures, save_encoder, workspace):
        study = followed(pictures, save_encoder, workspace)
        (workspace.root / "encoders" / "followed.record.safetensors").write_bytes(b"x")
        assert study.pull_ranks is None

    def test_contents(self, study, detections):
        votes = vote(180, detections, [Cut("lsa", budget=0.3)])
        for position in (0, 57, 179):
            found = inspect(study, position, detections, votes)
            o, truth = study.observed, study.truth
            assert (found.position, found.id) == (position, f"b{position:03d}")
            assert found.given == o.classes[o.labels[position]]
            assert found.kind == KINDS[truth.kind[position]]
            for reading, d in zip(found.readings, detections, strict=True):
                assert (reading.slug, reading.score) == (d.slug, d.scores[position])
                assert reading.rank == d.ranks[position]
                assert reading.flagged == votes.flags[d.slug][position]
            assert found.readings[0].suggestion is None
            assert found.readings[1].suggestion == o.classes[detections[1].suggestions[position]]
            near = study.evidence.neighbors
            assert [j for j, _, _ in found.neighbours] == near.indices[position, :10].tolist()
            assert [label for _, label, _ in found.neighbours] == [
                o.classes[o.labels[j]] for j, _, _ in found.neighbours
            ]
            similarity = [s for _, _, s in found.neighbours]
            assert similarity == sorted(similarity, reverse=True)
            assert position not in [j for j, _, _ in found.neighbours]

    def test_verdict(self, study, detections):
        verdict, votes, o = study.verdict(), vote(180, detections, []), study.observed
        for position in (0, 57, 179):
            found = inspect(study, position, detections, votes, verdict)
            assert found.chances == tuple(verdict.proba[position].tolist())
            assert found.probable == (o.classes[verdict.labels[position]], verdict.sureness[position])
            for reading, d in zip(found.readings, detections, strict=True):
                assert reading.chance == study.chance(d)[position]
        without = inspect(study, 0, detections, votes)
        assert (without.chances, without.probable) == ((), None)
        assert {reading.chance for reading in without.readings} == {None}

    def test_truth_of_each_kind(self, study):
        votes = vote(180, [], [])
        for code, kind in enumerate(KINDS):
            found = inspect(study, int(np.flatnonzero(study.truth.kind == code)[0]), [], votes)
            assert found.kind == kind
            assert (found.true == found.given) == (kind == "clean")
            assert (found.true == "none (out-of-distribution)") == (kind == "ood")

    def test_without_truth_and_features(self, study, workspace):
        p = np.random.default_rng(0).dirichlet(np.ones(3), 180)
        bare = NoisyDataset("bare", replace(study.observed, features=None, pred_probs=p))
        other = Study(bare, workspace=workspace)
        found = inspect(other, 3, [other.detect("small-loss")], vote(180, [other.detect("small-loss")], []))
        assert found.true is None
        assert found.kind is None
        assert found.neighbours == ()
        assert found.readings[0].suggestion in other.observed.classes

    def test_fewer_neighbours_than_asked_for(self, study, workspace):
        o = study.observed
        few = NoisyDataset("few", replace(o, labels=o.labels[:5], ids=o.ids[:5], features=o.features[:5]))
        assert len(inspect(Study(few, workspace=workspace), 0, [], vote(5, [], [])).neighbours) == 4
        assert len(inspect(study, 0, [], vote(180, [], []), k=3).neighbours) == 3


class TestSummary:
    def test_with_truth(self, study):
        noisy = study.truth.kind > 0
        flags = noisy.copy()
        flags[np.flatnonzero(noisy)[:10]] = False
        flags[np.flatnonzero(~noisy)[:5]] = True
        d = toy("d", flags)
        out = summary(study, vote(180, [d], []), None)
        assert out == {
            "samples": 180, "flagged": 25, "precision": 0.8, "recall": pytest.approx(2 / 3),
            "f1": pytest.approx(40 / 55), "clean_kept": pytest.approx(145 / 150),
        }  # fmt: skip

    def test_selection(self, study, detections):
        within = np.arange(180) < 7
        votes = vote(180, detections, [])
        assert summary(study, votes, within) == {**summary(study, votes, None), "selected": 7}

    def test_without_truth_or_detectors(self, study, blind, detections):
        assert set(summary(blind, vote(180, detections, []), None)) == {"samples", "flagged"}
        assert summary(study, vote(180, [], []), None) == {"samples": 180, "flagged": 0}


class TestCost:
    def flags(self, study, of_noise, of_clean):
        noisy = study.truth.kind > 0
        flags = np.zeros(180, bool)
        flags[np.flatnonzero(noisy)[:of_noise]] = flags[np.flatnonzero(~noisy)[:of_clean]] = True
        return flags

    def test_against_the_truth(self, study):
        study.verdict()
        found = cost(study, self.flags(study, 20, 5))
        assert found == Cost(25, 25 / 180, precision=pytest.approx(0.8), kept=pytest.approx(145 / 150), known=True)
        assert cost(study, np.zeros(180, bool)) == Cost(0, 0.0, precision=None, kept=1.0, known=True)
        assert cost(study, self.flags(study, 0, 150)) == Cost(150, 150 / 180, precision=0.0, kept=0.0, known=True)

    def test_by_the_verdict_where_there_is_no_truth(self, study, blind):
        flags = self.flags(study, 20, 5)
        assert cost(blind, flags) == Cost(25, 25 / 180), "nothing is computed for it"
        clean = blind.verdict().proba[:, 0]
        found = cost(blind, flags)
        assert (found.flagged, found.share, found.known) == (25, 25 / 180, False)
        assert found.precision == pytest.approx(sum(1 - clean[flags]) / 25)
        assert found.kept == pytest.approx(sum(clean[~flags]) / sum(clean))

    def test_without_truth_and_features(self, study, workspace):
        p = np.random.default_rng(0).dirichlet(np.ones(3), 180)
        bare = Study(NoisyDataset("bare", replace(study.observed, features=None, pred_probs=p)), workspace=workspace)
        assert cost(bare, self.flags(study, 20, 5)) == Cost(25, 25 / 180)


class TestTally:
    verdict = judged([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.1, 0.1, 0.8]])

    def test_counts_of_all_and_of_a_selection(self):
        assert tally(self.verdict, None) == {"clean": 2, "mislabelled": 1, "ood": 2}
        assert tally(self.verdict, np.array([0, 1, 0, 0, 1], bool)) == {"clean": 0, "mislabelled": 1, "ood": 1}
        assert tally(self.verdict, np.zeros(5, bool)) == {"clean": 0, "mislabelled": 0, "ood": 0}

    def test_agrees_with_the_study(self, study):
        counts = tally(study.verdict(), None)
        assert sum(counts.values()) == 180
        assert counts["clean"] > counts["mislabelled"] > 0


def test_an_outline_survives_a_link():
    polygon = np.array([[0.123, 1.0], [2.5, -3.001], [4.0, 4.0]])
    text = views.spell_outline(polygon)
    assert text == "0.12,1.00 2.50,-3.00 4.00,4.00"
    assert np.allclose(views.read_outline(text), polygon, atol=0.005)
    assert views.spell_outline(None) == ""
    many = np.random.default_rng(0).normal(size=(1000, 2))
    assert 3 <= len(views.read_outline(views.spell_outline(many))) <= 60


@pytest.mark.parametrize("text", ["", "1,2", "1,2 3,4", "a,b c,d e,f", "1,2,3 4,5,6 7,8,9", "1 2 3", "<b>"])
def test_a_spoilt_outline_is_no_selection(text):
    assert views.read_outline(text) is None


def test_the_course_of_a_sample(blobs, a_run):
    assert views.course(Study(blobs), 3) is None
    study = Study(blobs, run=a_run(blobs))
    found = views.course(study, 2)
    losses = np.stack([study.run.epoch(e).losses(blobs.observed.labels) for e in range(4)])
    np.testing.assert_allclose(found.loss, losses[:, 2])
    np.testing.assert_allclose(found.usual[:, 1], np.median(losses, axis=1))
    assert (found.usual[:, 0] < found.usual[:, 2]).all()
    assert found.flagged.tolist() == [False, False, False, True]  # flagged after the third epoch, so in the fourth
    assert found.turns == ("", "lsa", "small-loss", "lsa")
    assert (found.run, found.trainer) == ("told", "pls-lsa")
    np.testing.assert_allclose(found.trust, [np.nan, *[2 / 179] * 3], rtol=1e-5)
