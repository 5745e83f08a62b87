"""Detectors side by side: every figure against a slow, obvious second implementation."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from chaffinch import comparison, registry
from chaffinch.base.errors import InputError
from chaffinch.comparison import (
    Contrast,
    Overlap,
    chance,
    curves,
    disagreement,
    flag_overlap,
    jaccard,
    mean_agreement,
    noise_matrix,
    overlaps,
    rank_agreement,
    second,
    spread,
    stability,
    stability_known,
    subset,
    table,
)
from chaffinch.data import CLEAN, MISLABELLED, OOD, NoisyDataset
from chaffinch.metrics.detection import auroc, average_precision
from chaffinch.spec import Cut
from chaffinch.study import Detection, Study

NAMES = ("a", "b", "c")
flag_rows = st.integers(1, 30).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=3, max_size=3)
)


def toy(slug, scores, own=None):
    scores = np.asarray(scores, float)
    flags = scores > 0.5 if own is None else np.asarray(own, bool)
    return Detection(slug, scores, flags, None, {}, 0.25, np.zeros(len(scores), int), lambda: None)


def named(rows):
    return {name: np.array(row, bool) for name, row in zip(NAMES, rows, strict=False)}


@pytest.fixture
def study(blobs, workspace):
    return Study(blobs, workspace=workspace)


@pytest.fixture
def found(study):
    return [study.detect(slug) for slug in ("lsa", "small-loss", "knn-label")]


@pytest.fixture
def flags(found):
    return {d.slug: d.own for d in found}


class TestTable:
    def test_with_truth_it_holds_the_figures_of_the_command_line(self, study, found, flags):
        rows = table(study, found, flags)
        assert rows["detector"].tolist() == ["lsa", "small-loss", "knn-label"]
        for d, (_, row) in zip(found, rows.iterrows(), strict=True):
            assert {k: row[k] for k in study.figures(d, d.own)} == pytest.approx(study.figures(d, d.own))
        assert "agreement" not in rows

    def test_flags_in_force_count(self, study, found, flags):
        none = {**flags, "lsa": np.zeros(180, bool)}
        rows = table(study, found, none).set_index("detector")
        assert rows.loc["lsa", "flagged"] == rows.loc["lsa", "recall"] == 0

    def test_without_truth_it_holds_the_agreement(self, study, found, flags):
        blind = Study(replace(study.dataset, truth=None), workspace=study.workspace)
        rows = table(blind, found, flags)
        assert list(rows) == ["detector", "flagged", "seconds", "agreement"]
        rho = lambda i, j: spearmanr(found[i].scores, found[j].scores).statistic  # noqa: E731
        assert rows["agreement"].tolist() == pytest.approx(
            [(rho(0, 1) + rho(0, 2)) / 2, (rho(1, 0) + rho(1, 2)) / 2, (rho(2, 0) + rho(2, 1)) / 2]
        )


class TestAgreement:
    def test_is_spearmans_with_ties(self):
        rng = np.random.default_rng(0)
        several = [toy(name, rng.integers(0, 6, 50)) for name in NAMES]
        expected = spearmanr(np.array([d.scores for d in several]), axis=1).statistic
        np.testing.assert_allclose(rank_agreement(several), expected)
        assert mean_agreement(several)[0] == pytest.approx((expected[0, 1] + expected[0, 2]) / 2)

    def test_constant_scores_agree_with_nothing(self):
        matrix = rank_agreement([toy("a", [1, 1, 1]), toy("b", [1, 2, 3])])
        assert np.isnan(matrix[0]).all()
        assert matrix[1, 1] == 1

    def test_one_alone(self):
        assert rank_agreement([toy("a", [1, 2])]).shape == (1, 1)
        assert np.isnan(mean_agreement([toy("a", [1, 2])])).all()

    @given(flag_rows)
    def test_overlap_is_jaccards(self, rows):
        sets = [{i for i, on in enumerate(row) if on} for row in rows]
        matrix = flag_overlap(named(rows))
        for i, j in combinations(range(3), 2):
            either = sets[i] | sets[j]
            expected = len(sets[i] & sets[j]) / len(either) if either else np.nan
            np.testing.assert_equal(matrix[[i, j], [j, i]], [expected, expected])
        assert all(np.isnan(matrix[i, i]) if not sets[i] else matrix[i, i] == 1 for i in range(3))


class TestCurves:
    @pytest.mark.parametrize("find", ["any", "mislabelled", "ood"])
    def test_areas_and_operating_points(self, study, found, flags, find):
        kind = study.truth.kind
        rows = kind != OOD if find == "mislabelled" else np.ones(180, bool)
        wanted = {"any": kind != CLEAN, "mislabelled": kind == MISLABELLED, "ood": kind == OOD}[find]
        lines = curves(kind, found, flags, find)
        assert [line.slug for line in lines] == [d.slug for d in found]
        for line, d in zip(lines, found, strict=True):
            scores, positive, flagged = d.scores[rows], wanted[rows], d.own[rows]
            assert line.auroc == auroc(scores, positive) == pytest.approx(np.trapezoid(line.roc[1], line.roc[0]))
            assert line.ap == average_precision(scores, positive)
            recall = (flagged & positive).sum() / positive.sum()
            assert line.at_roc == pytest.approx(((flagged & ~positive).sum() / (~positive).sum(), recall))
            assert line.at_recall == pytest.approx((recall, positive[flagged].mean()))
        assert chance(kind, find) == pytest.approx(wanted[rows].mean())

    def test_a_threshold_lies_on_its_curve(self, study, found):
        d = found[0]
        flags = {d.slug: d.scores > np.quantile(d.scores, 0.7)}
        (line,) = curves(study.truth.kind, [d], flags, "any")
        assert min(np.hypot(line.roc[0] - line.at_roc[0], line.roc[1] - line.at_roc[1])) < 1e-12
        assert min(np.hypot(line.recall[0] - line.at_recall[0], line.recall[1] - line.at_recall[1])) < 1e-12

    def test_nothing_flagged_and_nothing_to_find(self, study, found):
        none = {d.slug: np.zeros(180, bool) for d in found}
        line = curves(study.truth.kind, found, none, "any")[0]
        assert (line.at_roc, line.at_recall) == ((0, 0), (0, None))
        assert curves(np.zeros(180, np.int8), found, none, "any") == []

    def test_at_most_so_many_points(self):
        rng = np.random.default_rng(0)
        kind = rng.integers(0, 3, 20_000).astype(np.int8)
        d = toy("a", rng.random(20_000) + kind)
        (line,) = curves(kind, [d], {"a": d.own}, "any")
        assert max(len(line.roc[0]), len(line.recall[0])) <= 500
        assert np.trapezoid(line.roc[1], line.roc[0]) == pytest.approx(line.auroc, abs=2e-3)


class TestOverlaps:
    @given(flag_rows, st.randoms())
    def test_every_sample_is_counted_once(self, rows, random):
        n = len(rows[0])
        kind = np.array([random.randrange(3) for _ in range(n)], np.int8)
        expected: dict[tuple[str, ...], list[int]] = {}
        for i in range(n):
            who = tuple(name for name, row in zip(NAMES, rows, strict=True) if row[i])
            if who:
                expected.setdefault(who, [0, 0, 0])[kind[i]] += 1
        found = overlaps(named(rows), kind)
        assert {o.slugs: list(o.kinds) for o in found} == expected
        assert [o.count for o in found] == sorted((sum(k) for k in expected.values()), reverse=True)
        assert [(o.slugs, o.count, None) for o in found] == [(o.slugs, o.count, o.kinds) for o in overlaps(named(rows))]

    def test_nothing(self):
        assert overlaps({}) == overlaps({"a": np.zeros(3, bool)}) == []
        assert overlaps({"a": np.array([True])}) == [Overlap(("a",), 1, None)]


class TestContrast:
    @pytest.mark.parametrize("text", ["but:a:b", "only:c", "exactly:a", "exactly:a:b:c", "rank:b:a"])
    def test_round_trip(self, text):
        assert str(Contrast.parse(text, NAMES)) == text

    @pytest.mark.parametrize("text", ["", "but:a", "but:a:a", "but:a:x", "only:a:b", "exactly", "exactly:", "best:a:b"])
    def test_what_does_not_fit_becomes_the_first_two(self, text):
        assert Contrast.parse(text, NAMES) == Contrast("but", ("a", "b"))

    def test_sides(self):
        assert Contrast("but", ("a", "b")).sides(NAMES) == (("a",), ("b",))
        assert Contrast("only", ("b",)).sides(NAMES) == (("b",), ("a", "c"))
        assert Contrast("exactly", NAMES).sides(NAMES) == (NAMES, ())


class TestDisagreement:
    several = [toy(name, np.random.default_rng(i).integers(0, 20, 60)) for i, name in enumerate(NAMES)]
    flags = {d.slug: d.scores > 11 for d in several}

    @pytest.mark.parametrize("text", ["but:a:b", "but:c:a", "only:b", "exactly:a:c", "exactly:a:b:c", "rank:a:c"])
    @pytest.mark.parametrize("half", [False, True])
    def test_against_a_loop(self, text, half):
        contrast = Contrast.parse(text, NAMES)
        within = np.arange(60) % 2 == 0 if half else None
        those, others = contrast.sides(NAMES)
        rank, expected = {d.slug: d.ranks for d in self.several}, []
        for i in range(60):
            gap = sum(rank[s][i] for s in those) / len(those)
            gap -= sum(rank[s][i] for s in others) / len(others) if others else 0
            fits = all(self.flags[s][i] for s in those) and not any(self.flags[s][i] for s in others)
            if (gap > 0 if contrast.mode == "rank" else fits) and (within is None or within[i]):
                expected.append((-gap, i))
        order = disagreement(contrast, self.several, self.flags, within)
        assert set(order.tolist()) == {i for _, i in expected}
        gaps = {i: g for g, i in expected}
        assert [gaps[i] for i in order.tolist()] == pytest.approx(sorted(gaps.values()))

    def test_a_bar_lists_exactly_its_samples(self):
        for o in overlaps(self.flags):
            listed = disagreement(Contrast("exactly", o.slugs), self.several, self.flags)
            assert len(listed) == o.count

    def test_the_selection_is_not_changed(self):
        within = np.ones(60, bool)
        disagreement(Contrast("only", ("a",)), self.several, self.flags, within)
        assert within.all()


class TestNoiseMatrix:
    @settings(max_examples=50)
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3), st.floats(0, 1)), min_size=1, max_size=30))
    def test_against_a_loop(self, rows):
        expected = np.zeros((4, 5))
        for g, p, w in rows:
            expected[g, 4] += w
            if p >= 0:
                expected[g, p] += 1 - w
        given_, probable, weight = (np.array(column) for column in zip(*rows, strict=True))
        np.testing.assert_allclose(noise_matrix(given_, probable, weight, 4), expected, atol=1e-12)

    def test_the_truth(self, blobs):
        truth, labels = blobs.truth, blobs.observed.labels
        counts = noise_matrix(labels, truth.labels, truth.kind == OOD, 3)
        assert counts.sum() == 180
        assert counts[:, 3].tolist() == [5, 5, 5]
        assert np.diag(counts).sum() == (truth.kind == CLEAN).sum()

    def test_only_the_kind_is_known(self):
        counts = noise_matrix(np.array([0, 1]), np.array([-1, -1]), np.array([False, True]), 2)
        assert counts.tolist() == [[0, 0, 0], [0, 0, 1]]


class TestSubset:
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 9))
    def test_a_share_of_every_class(self, labels, seed):
        labels = np.array(labels)
        rows = subset(labels, 0.8, seed)
        assert (np.diff(rows) > 0).all()
        for c in np.unique(labels):
            assert (labels[rows] == c).sum() == np.ceil(0.8 * (labels == c).sum())

    def test_seeded(self):
        labels = np.arange(100) % 3
        np.testing.assert_array_equal(subset(labels, 0.8, 1), subset(labels, 0.8, 1))
        assert set(subset(labels, 0.8, 1)) != set(subset(labels, 0.8, 2))


class TestStability:
    cuts = (Cut("lsa", budget=0.2), Cut("knn-label", rule="own"))

    def test_against_runs_by_hand(self, study, blobs, workspace):
        full = [study.detect(c.detector) for c in self.cuts]
        flags = {d.slug: d.flags(c) for d, c in zip(full, self.cuts, strict=True)}
        told = []
        steady, problems = stability(study, full, flags, self.cuts, report=lambda what, share: told.append(share))
        assert problems == {}
        assert told == sorted(told)
        assert len(told) == 6
        assert told[-1] < 1
        o = blobs.observed
        for s, d, c in zip(steady, full, self.cuts, strict=True):
            assert (s.slug, len(s.ranks)) == (d.slug, 3)
            for r in range(3):
                rows = subset(o.labels, 0.8, study.seed + r)
                some = replace(o, labels=o.labels[rows], ids=o.ids[rows], features=o.features[rows])
                again = Study(NoisyDataset("part", some), workspace=workspace).detect(d.slug)
                assert s.ranks[r] == pytest.approx(spearmanr(again.scores, d.scores[rows]).statistic)
                assert s.flags[r] == jaccard(again.flags(c), flags[d.slug][rows])
                assert 0.3 < s.ranks[r] < 1

    def test_nothing_is_computed_twice(self, study, monkeypatch):
        full = [study.detect("lsa"), study.detect("knn-label")]
        flags = {d.slug: d.own for d in full}
        assert stability_known(study, ["lsa", "knn-label"]) == []
        first = stability(study, full[:1], flags, ())
        assert stability_known(study, ["lsa", "knn-label"]) == ["lsa"]
        monkeypatch.setattr(comparison, "_fit", lambda *_: pytest.fail("computed again"))
        assert stability(study, full[:1], flags, ()) == first
        other = stability(study, full[:1], {"lsa": full[0].flags(Cut("lsa", budget=0.1))}, [Cut("lsa", budget=0.1)])
        assert other[0][0].ranks == first[0][0].ranks
        assert other[0][0].flags != first[0][0].flags

    def test_what_cannot_run_is_told(self, study, monkeypatch):
        full = [study.detect("lsa"), study.detect("knn-label")]

        def fail(study_, slug, evidence):
            if slug == "lsa":
                raise InputError("too few samples")
            return real(study_, slug, evidence)

        real = comparison._fit
        monkeypatch.setattr(comparison, "_fit", fail)
        steady, problems = stability(study, full, {d.slug: d.own for d in full}, ())
        assert [s.slug for s in steady] == ["knn-label"]
        assert problems == {"lsa": "too few samples"}

    def test_trusted_rows_follow_the_subset(self, blobs, workspace):
        mark = np.arange(180) % 6 == 0
        study = Study(replace(blobs, observed=replace(blobs.observed, trusted=mark)), workspace=workspace)
        rows = subset(blobs.observed.labels, 0.8, 0)
        t = comparison._evidence(study, rows).trusted
        np.testing.assert_array_equal(rows[t.rows], np.intersect1d(rows, np.flatnonzero(mark)))
        np.testing.assert_array_equal(t.X, blobs.observed.features[rows][t.rows])
        np.testing.assert_array_equal(t.y, blobs.observed.labels[rows][t.rows])

    def test_probabilities_alone(self, blobs, workspace):
        p = np.random.default_rng(0).dirichlet(np.ones(3), 180)
        bare = NoisyDataset("bare", replace(blobs.observed, features=None, pred_probs=p))
        study = Study(bare, workspace=workspace)
        d = study.detect("confident-learning")
        (steady,), _ = stability(study, [d], {d.slug: d.own}, ())
        assert min(steady.ranks) > 0.9

    def test_spread(self):
        assert spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
        assert spread([4.0])[0] == 4.0
        assert np.isnan(spread([4.0])[1])


class TestSecond:
    def test_finds_what_the_first_does_not(self, study):
        assert second(study, ["lsa"]) == "small-loss"
        assert second(study, ["small-loss"]) == "lsa"
        assert second(study, []) in ("lsa", "small-loss")

    def test_can_run_on_what_is_there(self, blobs, workspace):
        p = np.random.default_rng(0).dirichlet(np.ones(3), 180)
        bare = Study(NoisyDataset("bare", replace(blobs.observed, features=None, pred_probs=p)), workspace=workspace)
        assert bare.detect(second(bare, ["small-loss"])).scores.shape == (180,)

    def test_none_where_all_others_lack_something(self, study):
        lack = {"symile-fit", "tacred-extrinsic"}
        assert second(study, [slug for slug in registry.methods("detector") if slug not in lack]) is None


class TestCutCosts:
    def test_against_the_truth(self, blobs, workspace):
        study = Study(blobs, workspace=workspace)
        found = [study.detect("small-loss"), study.detect("lsa")]
        rows = comparison.cut_costs(study, found)
        assert rows.loc[rows["detector"] == "small-loss", "cut"].tolist() == ["rate", "own", "mixture", "contradiction"]
        assert "contradiction" not in rows.loc[rows["detector"] == "lsa", "cut"].tolist(), "it suggests no labels"
        for row in rows.to_dict("records"):
            flags = study.detect(row["detector"]).flags(Cut(row["detector"], rule=row["cut"]))
            clean = blobs.truth.kind == 0
            assert row["flagged"] == flags.sum()
            assert row["clean_kept"] == pytest.approx(1 - (flags & clean).sum() / clean.sum())
            if flags.any():
                assert row["precision"] == pytest.approx((flags & ~clean).sum() / flags.sum())

    def test_without_truth_as_the_verdict_expects(self, blobs, workspace):
        study = Study(replace(blobs, truth=None), workspace=workspace)
        found = study.detect("small-loss")
        clean = study.verdict().proba[:, 0]
        rows = comparison.cut_costs(study, [found]).set_index("cut")
        assert not {"recall", "f1"} & set(rows)
        assert rows.loc["own", "precision"] == pytest.approx(1 - clean[found.own].mean())
