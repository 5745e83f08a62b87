"""A Study computes each thing once, keeps it in the workspace, and never looks at the truth."""

import inspect
import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest

from chaffinch import projection, registry
from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.files import sha256_file
from chaffinch.base.mixture import fit_mixture
from chaffinch.data import CLEAN, OOD, NoisyDataset, Observed, Split, Truth
from chaffinch.spec import Cut
from chaffinch.study import Detection, Study, encoder_cards, run_detectors
from chaffinch.workspace import Workspace

SLUGS = ["confident-learning", "knn-distance", "knn-label", "lsa", "small-loss"]
ALL = [slug for slug, cls in registry.methods("detector").items() if "joint" not in cls.needs()]
"""All that the default encoder has the evidence for."""
COUNTS = {"flagged", "seconds"}
WITH_TRUTH = COUNTS | {
    "auroc_ood", "auroc_mislabelled", "auroc_any", "auroc_ood_vs_mislabelled", "ap_ood", "ap_mislabelled", "ap_any",
    "precision", "recall", "f1", "balanced_accuracy", "clean_kept",
}  # fmt: skip


def change(dataset, **values):
    return replace(dataset, observed=replace(dataset.observed, **values))


def mark(dataset, step=6):
    """The dataset with every so manieth row marked as trusted."""
    return change(dataset, trusted=np.arange(len(dataset)) % step == 0)


@pytest.fixture
def study(blobs, workspace):
    return Study(blobs, workspace=workspace)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A study of four blobs, 120 samples each, a fifth of them mislabelled, and of 120 from a fifth, foreign blob."""
    rng = np.random.default_rng(5)
    true = np.repeat([0, 1, 2, 3, -1], 120)
    given = np.where(true < 0, rng.integers(0, 4, 600), true)
    wrong = rng.permutation(480)[:96]
    given[wrong] = (true[wrong] + rng.integers(1, 4, 96)) % 4
    features = (2.4 * np.eye(5, 16)[true] + rng.normal(0, 0.7, (600, 16))).astype(np.float32)
    order = rng.permutation(600)
    given, true, features = given[order], true[order], features[order]
    ids = np.array([f"s{i}" for i in range(600)])
    observed = Observed(labels=given, classes=("ant", "bee", "cat", "dog"), ids=ids, features=features)
    dataset = NoisyDataset("planted", observed, Truth.of(given, true))
    return Study(dataset, workspace=Workspace(tmp_path_factory.mktemp("planted")))


def few(dataset, n):
    """The first so many samples."""
    o, truth = dataset.observed, dataset.truth
    observed = replace(o, labels=o.labels[:n], ids=o.ids[:n], features=o.features[:n])
    return NoisyDataset("few", observed, Truth(truth.labels[:n], truth.kind[:n]))


@pytest.fixture
def fits(monkeypatch):
    """Counts how often each detector is fitted."""
    counted = dict.fromkeys(SLUGS, 0)

    def counting(slug):
        cls = registry.get("detector", slug)
        real = cls.fit

        def fit(self, X, y, **evidence):
            counted[slug] += 1
            return real(self, X, y, **evidence)

        fit.__signature__ = inspect.signature(real)
        monkeypatch.setattr(cls, "fit", fit)

    for slug in SLUGS:
        counting(slug)
    return counted


class TestDetect:
    def test_all_find_the_planted_noise(self, study, blobs):
        for slug in SLUGS:
            found = study.detect(slug)
            figures = study.figures(found, found.flags())
            finds = registry.get("detector", slug).card.finds
            assert all(figures[f"auroc_{kind}"] > 0.8 for kind in finds), (slug, figures)

    def test_is_computed_once(self, study, fits):
        first = study.detect("lsa")
        assert study.detect("lsa") is first
        assert fits["lsa"] == 1

    def test_another_study_reads_the_same_bits_from_disk(self, study, blobs, workspace, fits):
        for slug in SLUGS:
            one, other = study.detect(slug), Study(blobs, workspace=workspace).detect(slug)
            assert one is not other
            for f in fields(Detection):
                if f.name == "noise_rate":  # a function of the study
                    assert other.noise_rate() == one.noise_rate()
                    continue
                np.testing.assert_equal(getattr(other, f.name), getattr(one, f.name))
            assert other.scores.dtype == np.float64
            assert other.own.dtype == bool
        assert set(fits.values()) == {1}

    def test_recomputed_bits_are_the_same(self, blobs, tmp_path):
        study, again = (Study(mark(blobs), workspace=Workspace(tmp_path / name)) for name in ("one", "other"))
        for slug in ALL:
            np.testing.assert_array_equal(again.detect(slug).scores, study.detect(slug).scores)

    def test_a_damaged_result_is_computed_again(self, study, blobs, workspace, fits):
        study.detect("knn-label")
        for path in (workspace.root / "results").iterdir():
            path.write_bytes(path.read_bytes()[:-50])
        np.testing.assert_equal(
            Study(blobs, workspace=workspace).detect("knn-label").scores, study.detect("knn-label").scores
        )
        assert fits["knn-label"] == 2

    def test_parameters_count(self, study, fits):
        wide, narrow = study.detect("knn-label", k=20), study.detect("knn-label", k=5)
        assert (wide.info["k"], narrow.info["k"]) == (20, 5)
        assert study.detect("knn-label", k=20) is wide
        assert study.detect("knn-label", k=10) is study.detect("knn-label"), (
            "a default that is spelled out is no change"
        )
        assert fits["knn-label"] == 3

    def test_dataset_and_seed_count(self, blobs, workspace, fits):
        o = blobs.observed
        labels, features = o.labels.copy(), o.features.copy()
        labels[0], features[5, 5] = (labels[0] + 1) % 3, 9
        variants = [
            Study(blobs, workspace=workspace),
            Study(blobs, workspace=workspace, seed=1),
            Study(change(blobs, labels=labels), workspace=workspace),
            Study(change(blobs, features=features), workspace=workspace),
            Study(change(blobs, ids=o.ids[::-1].copy()), workspace=workspace),
        ]
        for one in variants:
            one.detect("small-loss")
            one.detect("confident-learning")  # has no seed of its own, but its probabilities have
        assert fits["small-loss"] == fits["confident-learning"] == len(variants)

    def test_knows(self, study, blobs, workspace):
        assert not study.knows("lsa")
        study.detect("lsa", seed_threshold=0.9)
        assert not study.knows("lsa")
        study.detect("lsa")
        assert study.knows("lsa")
        assert Study(blobs, workspace=workspace).knows("lsa")
        assert not Study(blobs, workspace=workspace, seed=1).knows("lsa")

    def test_errors(self, study):
        with pytest.raises(InputError, match=r"no detector called 'smal-loss'; did you mean small-loss\?"):
            study.detect("smal-loss")
        with pytest.raises(InputError, match=r"knn-label: .*'depth'; it has k, threshold"):
            study.detect("knn-label", depth=3)
        with pytest.raises(InputError, match="confident-learning: rule must be one of"):
            study.detect("confident-learning", rule="guess")
        assert not (study.workspace.root / "results").exists() or not list(study.workspace.root.rglob("detect-*"))


@pytest.mark.parametrize("slug", ALL)
def test_scores_are_the_same_bits_without_the_truth(blobs, tmp_path, slug):
    """Same data, another truth or none: nothing that a method says may change, not even where it is stored."""
    n, blobs = len(blobs), mark(blobs)
    wrong = Truth(np.zeros(n, np.int64), np.ones(n, np.int8))
    studies = [
        Study(replace(blobs, truth=truth), workspace=Workspace(tmp_path / str(i)))
        for i, truth in enumerate((blobs.truth, None, wrong))
    ]
    assert len({s.key for s in studies}) == 1
    first, *others = [s.detect(slug) for s in studies]
    for other in others:
        assert other.scores.tobytes() == first.scores.tobytes()
        assert other.own.tobytes() == first.own.tobytes()
        np.testing.assert_array_equal(other.suggestions, first.suggestions)
        assert other.info == first.info
    assert len({frozenset(p.name for p in s.workspace.root.rglob("*.npz")) for s in studies}) == 1


class TestCuts:
    detection = Detection(
        "toy",
        np.array([3.0, 1, 2, 2]),
        np.array([True, False, False, False]),
        None,
        {},
        0.0,
        np.zeros(4, int),
        lambda: None,
    )

    def test_flags(self):
        d = self.detection
        assert d.flags().tolist() == d.flags(Cut("toy")).tolist() == [True, False, False, False]
        assert d.flags(Cut("toy", budget=0.5)).tolist() == [True, False, True, False]
        assert d.flags(Cut("toy", score=1.5)).tolist() == [True, False, True, True]
        assert d.flags(Cut("toy", score=3)).tolist() == [False] * 4

    @pytest.mark.parametrize("cut", [Cut("toy", budget=1), Cut("toy", score=0)])
    def test_everything_flagged(self, cut):
        with pytest.raises(InputError, match="flags all 4 samples"):
            self.detection.flags(cut)

    def test_budget_out_of_range(self):
        with pytest.raises(InputError, match=r"budget must be a share between 0 and 1, got 1\.2"):
            self.detection.flags(Cut("toy", budget=1.2))

    def test_ranks(self):
        assert self.detection.ranks.tolist() == [1, 0, 0.5, 0.5]
        one = Detection("toy", np.zeros(1), np.zeros(1, bool), None, {}, 0.0, np.zeros(1, int), lambda: None)
        assert one.ranks.tolist() == [0]


class TestRules:
    """Cuts without a number, where the truth is planted."""

    @staticmethod
    def f1(flags, wanted):
        return 2 * np.sum(flags & wanted) / (np.sum(flags) + np.sum(wanted))

    @pytest.mark.parametrize("slug", ["lsa", "mahalanobis", "small-loss", "confident-learning", "knn-label"])
    def test_rate_comes_near_the_best_cut(self, planted, slug):
        kind, found = planted.truth.kind, planted.detect(slug)
        only_ood = registry.get("detector", slug).card.finds == {"ood"}
        wanted = kind == OOD if only_ood else kind != CLEAN
        best = max(self.f1(found.flags(Cut(slug, budget=share)), wanted) for share in np.arange(0.02, 0.98, 0.02))
        flags = found.flags()
        assert best > 0.75
        assert self.f1(flags, wanted) > best - 0.03
        kinds = planted.verdict().kinds
        assert flags.sum() == np.sum(kinds == OOD if only_ood else kinds != CLEAN)
        assert found.scores[flags].min() >= found.scores[~flags].max()

    def test_own(self, planted):
        found = planted.detect("lsa")
        np.testing.assert_array_equal(found.flags(Cut("lsa", rule="own")), found.own)
        assert (found.flags() != found.own).any()

    def test_mixture(self, planted):
        found = planted.detect("small-loss")
        expected = fit_mixture(found.scores).monotone_posterior(found.scores) > 0.5
        np.testing.assert_array_equal(found.flags(Cut("small-loss", rule="mixture")), expected)
        assert self.f1(expected, planted.truth.kind != CLEAN) > 0.85

    def test_mixture_of_two_groups_is_the_upper_one(self, planted):
        upper = np.arange(600) % 4 == 0
        scores = np.where(upper, 7.0, 2.0) + np.random.default_rng(0).normal(0, 0.3, 600)
        two = replace(planted.detect("lsa"), scores=scores, own=np.zeros(600, bool))
        np.testing.assert_array_equal(two.flags(Cut("lsa", rule="mixture")), upper)

    def test_mixture_of_equal_scores(self, planted):
        same = replace(planted.detect("lsa"), scores=np.ones(600))
        with pytest.raises(InputError, match="all 600 losses are equal"):
            same.flags(Cut("lsa", rule="mixture"))

    @pytest.mark.parametrize("slug", ["small-loss", "knn-label", "confident-learning"])
    def test_contradiction_flags_where_another_label_is_suggested(self, planted, slug):
        found = planted.detect(slug)
        flags = found.flags(Cut(slug, rule="contradiction"))
        assert flags.tolist() == (found.suggestions != planted.observed.labels).tolist()
        assert 0 < flags.sum() < 600

    def test_contradiction_without_suggestions(self, planted):
        with pytest.raises(InputError, match="it suggests no labels, so there is nothing to contradict"):
            planted.detect("lsa").flags(Cut("lsa", rule="contradiction"))

    def test_a_number_is_a_number_whatever_the_verdict_says(self, planted):
        found = planted.detect("lsa")
        assert found.flags(Cut("lsa", budget=0.05)).sum() == 30
        middle = float(np.median(found.scores))
        np.testing.assert_array_equal(found.flags(Cut("lsa", score=middle)), found.scores > middle)

    def test_rate_without_features_is_the_own_rule(self, blobs, workspace):
        p = np.random.default_rng(0).dirichlet(np.ones(3), 180)
        found = Study(change(blobs, features=None, pred_probs=p), workspace=workspace).detect("small-loss")
        assert found.noise_rate() is None
        np.testing.assert_array_equal(found.flags(), found.own)
        assert 0 < found.own.sum() < 180

    @pytest.mark.parametrize("broken", ["few", "one class"])
    def test_rate_without_a_verdict_is_the_own_rule(self, blobs, workspace, broken):
        labels = np.zeros(180, np.int64)
        dataset = few(blobs, 19) if broken == "few" else replace(change(blobs, labels=labels), truth=None)
        study = Study(dataset, workspace=workspace)
        for slug in ("knn-distance", "knn-label"):
            found = study.detect(slug)
            assert found.noise_rate() is None
            np.testing.assert_array_equal(found.flags(), found.own)

    def test_rate_of_a_clean_or_an_all_noisy_set(self, planted):
        found = planted.detect("knn-label")
        assert not replace(found, noise_rate=lambda: 0.0).flags().any()
        with pytest.raises(InputError, match="flags all 600 samples"):
            replace(found, noise_rate=lambda: 1.0).flags()


class TestVerdict:
    def test_finds_the_planted_noise(self, planted):
        figures = planted.judged(planted.verdict())
        assert set(figures) == {"macro_f1", "f1", "rates", "ceiling_macro_f1", "seconds"}
        assert set(figures["f1"]) == {"clean", "mislabelled", "ood"}
        assert figures["rates"] == pytest.approx({"mislabelled": 0.16, "ood": 0.2}, abs=0.04)
        assert 0.9 < figures["macro_f1"] < figures["ceiling_macro_f1"] + 0.02
        assert 0 < figures["seconds"] < 60
        assert json.loads(json.dumps(figures)) == figures

    def test_is_stored_and_read_back_to_the_bit(self, planted, monkeypatch):
        from chaffinch import study as module

        one = planted.verdict()
        assert planted.verdict() is one
        monkeypatch.setattr(module, "judge", None)  # whoever judges again fails
        again = Study(planted.dataset, workspace=planted.workspace)
        assert again.knows_verdict()
        other = again.verdict()
        for name in ("proba", "labels", "sureness", "transition", "kinds", "noise"):
            assert getattr(other, name).dtype == getattr(one, name).dtype
            assert getattr(other, name).tobytes() == getattr(one, name).tobytes()
        assert (other.rates, other.info) == (one.rates, one.info)

    def test_is_judged_the_same_again(self, planted, tmp_path):
        again = Study(planted.dataset, workspace=Workspace(tmp_path)).verdict()
        assert again.proba.tobytes() == planted.verdict().proba.tobytes()

    def test_the_truth_is_not_looked_at(self, blobs, tmp_path):
        studies = [
            Study(replace(blobs, truth=truth), workspace=Workspace(tmp_path / str(i)))
            for i, truth in enumerate((blobs.truth, None))
        ]
        one, other = (s.verdict() for s in studies)
        assert one.proba.tobytes() == other.proba.tobytes()
        assert studies[0].verdict_key() == studies[1].verdict_key()

    def test_rates_that_are_told(self, study):
        assert not study.knows_verdict()
        told = study.verdict(mislabelled=0.2, ood=0.1)
        assert told.rates == pytest.approx({"mislabelled": 0.2, "ood": 0.1}, abs=1e-4)
        assert not study.knows_verdict(), "the one without told rates is another"
        estimated = study.verdict()
        assert study.knows_verdict()
        assert estimated.rates != told.rates
        assert study.verdict(mislabelled=0.2, ood=0.1) is told
        assert len({study.verdict_key(*told) for told in ((), (0.2,), (None, 0.2), (0.2, 0.1))}) == 4

    def test_seed_counts(self, study, blobs, workspace):
        study.verdict()
        assert not Study(blobs, workspace=workspace, seed=1).knows_verdict()

    def test_progress(self, study):
        told = []
        study.verdict(report=lambda *what: told.append(what))
        assert {what for what, _ in told} == {"judging"}
        shares = [share for _, share in told]
        assert shares == sorted(shares)
        assert shares[-1] == 1
        study.verdict(report=lambda *what: pytest.fail("what is known needs no progress"))

    @pytest.mark.parametrize(
        ("rates", "message"),
        [
            ({"mislabelled": -0.1}, "mislabelled must be a share from 0 to below 1, got -0.1"),
            ({"ood": float("nan")}, "ood must be a share from 0 to below 1, got nan"),
            ({"mislabelled": 0.6, "ood": 0.4}, "must leave something clean"),
        ],
    )
    def test_bad_rates(self, study, rates, message):
        with pytest.raises(InputError, match=message):
            study.verdict(**rates)
        assert not list(study.workspace.root.rglob("verdict-*"))

    def test_where_there_is_none(self, blobs, workspace):
        bare = change(blobs, features=None, pred_probs=np.full((180, 3), 1 / 3))
        one = replace(change(blobs, labels=np.zeros(180, np.int64)), truth=None)
        for dataset, message in (
            (bare, "verdict needs features, which is not there; open pictures with an encoder"),
            (few(blobs, 19), "19 samples are too few to judge; it needs at least 20"),
            (one, "all samples carry the same label"),
        ):
            study = Study(dataset, workspace=workspace)
            with pytest.raises(InputError, match=message):
                study.verdict()
            assert not study.knows_verdict()
            assert study.noise_rate("lsa") is None

    def test_twenty_samples_are_enough(self, blobs, workspace):
        verdict = Study(few(blobs, 20), workspace=workspace).verdict()
        assert verdict.proba.shape == (20, 3)
        np.testing.assert_allclose(verdict.proba.sum(axis=1), 1)

    def test_figures_without_truth(self, planted):
        blind = Study(replace(planted.dataset, truth=None), workspace=planted.workspace)
        assert set(blind.judged(blind.verdict())) == {"rates", "seconds"}

    def test_no_ceiling_where_only_kinds_are_known(self, planted):
        """The true label of the mislabelled is -1 then: they must not be taken for foreign."""
        truth = planted.truth
        kinds = Truth(np.where(truth.kind == CLEAN, truth.labels, -1), truth.kind)
        study = Study(replace(planted.dataset, truth=kinds), workspace=planted.workspace)
        figures, full = study.judged(study.verdict()), planted.judged(planted.verdict())
        assert figures == {name: value for name, value in full.items() if name != "ceiling_macro_f1"}

    def test_noise_rate_is_of_what_a_detector_looks_for(self, planted):
        kinds = planted.verdict().kinds
        assert planted.noise_rate("lsa") == np.mean(kinds == OOD)
        assert planted.noise_rate("small-loss") == np.mean(kinds != CLEAN)


def increasing(scores, wanted):
    """The increasing function of the scores that is nearest to what is wanted, by pooling neighbours in loops."""
    blocks = []  # mean, samples, scores
    for score in sorted(set(scores)):
        rows = scores == score
        blocks.append([float(wanted[rows].mean()), int(rows.sum()), [score]])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, n, held = blocks.pop()
            last = blocks[-1]
            blocks[-1] = [(last[0] * last[1] + mean * n) / (last[1] + n), last[1] + n, last[2] + held]
    return np.array([next(mean for mean, _, held in blocks if score in held) for score in scores])


class TestChance:
    @pytest.mark.parametrize("slug", ["lsa", "knn-label"])
    def test_is_the_verdict_in_the_order_of_the_scores(self, study, slug):
        found, proba = study.detect(slug), study.verdict().proba
        wanted = proba[:, 2] if slug == "lsa" else 1 - proba[:, 0]
        np.testing.assert_allclose(study.chance(found), increasing(found.scores, wanted), atol=1e-6)
        assert study.chance(found).mean() == pytest.approx(wanted.mean())

    def test_parameters_and_told_rates_count(self, study):
        found, wide = study.detect("knn-label"), study.detect("knn-label", k=25)
        first = study.chance(found)
        assert study.chance(found) is first, "computed once"
        assert (study.chance(wide) != first).any()
        told = study.chance(found, study.verdict(mislabelled=0.3, ood=0.1))
        assert told.mean() == pytest.approx(0.4, abs=1e-3)
        assert study.chance(found) is first

    def test_none_without_a_verdict(self, blobs, workspace):
        p = np.random.default_rng(0).dirichlet(np.ones(3), 180)
        bare = Study(change(blobs, features=None, pred_probs=p), workspace=workspace)
        assert bare.chance(bare.detect("small-loss")) is None


class TestFigures:
    def test_keys(self, study, blobs, workspace):
        blind = Study(replace(blobs, truth=None), workspace=workspace)
        for slug in SLUGS:
            found = study.detect(slug)
            figures = study.figures(found, found.flags())
            assert set(figures) == WITH_TRUTH
            assert json.loads(json.dumps(figures)) == figures
            assert set(blind.figures(found, found.flags())) == COUNTS

    def test_count_follows_the_cut(self, study):
        found = study.detect("lsa")
        for budget in (0, 0.1, 0.5):
            assert study.figures(found, found.flags(Cut("lsa", budget=budget)))["flagged"] == round(budget * 180)


class TestTable:
    def test_columns(self, study, blobs):
        detections = [study.detect("lsa"), study.detect("small-loss")]
        table = study.table(detections, {"small-loss": detections[1].flags(Cut("small-loss", budget=0.1))})
        assert list(table) == [
            "id", "label", "true_label", "kind",
            "lsa_score", "lsa_flag", "small-loss_score", "small-loss_flag", "small-loss_suggestion",
        ]  # fmt: skip
        o, truth = blobs.observed, blobs.truth
        assert table["id"].tolist() == o.ids.tolist()
        assert table["label"].tolist() == [o.classes[y] for y in o.labels]
        assert table["true_label"].tolist() == [o.classes[y] if y >= 0 else "(none)" for y in truth.labels]
        assert table["kind"].value_counts().to_dict() == {"clean": 150, "mislabelled": 15, "ood": 15}
        np.testing.assert_array_equal(table["lsa_score"], detections[0].scores)
        np.testing.assert_array_equal(table["lsa_flag"], detections[0].own)
        assert table["small-loss_flag"].sum() == 18
        assert set(table["small-loss_suggestion"]) <= set(o.classes)

    def test_verdict(self, planted):
        detections, verdict = [planted.detect("lsa"), planted.detect("small-loss")], planted.verdict()
        table = planted.table(detections, {d.slug: d.flags() for d in detections}, verdict)
        assert list(table) == [
            "id", "label", "true_label", "kind", "verdict", "probable_label", "p_clean", "p_mislabelled", "p_ood",
            "lsa_score", "lsa_chance", "lsa_flag",
            "small-loss_score", "small-loss_chance", "small-loss_flag", "small-loss_suggestion",
        ]  # fmt: skip
        assert np.mean(table["verdict"] == table["kind"]) > 0.9
        inside = planted.truth.labels >= 0
        assert np.mean(table["probable_label"][inside] == table["true_label"][inside]) > 0.95
        np.testing.assert_array_equal(table[["p_clean", "p_mislabelled", "p_ood"]], verdict.proba)
        for found in detections:
            np.testing.assert_array_equal(table[f"{found.slug}_chance"], planted.chance(found))
            assert table[f"{found.slug}_flag"].sum() == round(found.noise_rate() * 600)

    def test_told_rates_reach_every_column(self, planted):
        told = planted.verdict(mislabelled=0.1, ood=0.3)
        table = planted.table([planted.detect("lsa")], verdict=told)
        assert table["p_ood"].mean() == pytest.approx(0.3, abs=1e-3)
        assert table["lsa_chance"].mean() == pytest.approx(0.3, abs=1e-3)

    def test_without_truth(self, blobs, workspace):
        blind = Study(replace(blobs, truth=None), workspace=workspace)
        assert list(blind.table([])) == ["id", "label"]
        assert list(blind.table([blind.detect("knn-distance")])) == [
            "id", "label", "knn-distance_score", "knn-distance_flag",
        ]  # fmt: skip


class TestMap:
    def test_pca_is_computed_once(self, study, blobs, workspace, monkeypatch):
        assert not study.has_map("pca")
        assert study.map_trust("pca") == {}, "asking for the quality draws no map"
        assert not study.has_map("pca")
        xy = study.map("pca")
        assert (xy.shape, xy.dtype) == ((180, 2), np.float32)
        monkeypatch.setattr(projection, "pca", None)  # whoever asks again fails
        again = Study(blobs, workspace=workspace)
        assert again.has_map("pca")
        assert not again.has_map("umap")
        np.testing.assert_array_equal(again.map("pca"), xy)
        assert study.map("pca") is xy
        trust = again.map_trust("pca")
        assert set(trust) == {"trustworthiness", "continuity", "preservation"}
        assert all(0 <= value <= 1 for value in trust.values())
        assert trust["trustworthiness"] > 0.7

    def test_umap_stands_on_the_shared_neighbours(self, study, monkeypatch):
        seen = []

        def umap(X, neighbors, *, seed, progress):
            seen.append((X, neighbors, seed))
            progress(0.5)
            return X[:, :2].copy()

        monkeypatch.setattr(projection, "umap", umap)
        told = []
        np.testing.assert_array_equal(study.map("umap", lambda *what: told.append(what)), study.features[:, :2])
        study.map()
        [(X, neighbors, seed)] = seen
        assert X is study.features
        assert neighbors is study.evidence.neighbors
        assert seed == 0
        assert told == [("drawing the map", 0.5)]

    def test_seed_counts(self, study, blobs, workspace):
        study.map("pca")
        assert not Study(blobs, workspace=workspace, seed=1).has_map("pca")

    def test_coordinates_of_the_data_are_used(self, blobs, workspace):
        xy = np.random.default_rng(0).normal(size=(180, 2)).astype(np.float32)
        own = Study(change(blobs, xy=xy), workspace=workspace)
        assert own.map("umap") is xy
        assert own.has_map("pca")
        assert own.map_trust("umap") == {}
        assert not (workspace.root / "results").exists()

    def test_few_samples(self, blobs, workspace):
        o = blobs.observed
        for n in (2, 4, 5):
            few = replace(o, labels=o.labels[:n], ids=o.ids[:n], features=o.features[:n])
            tiny = Study(NoisyDataset("few", few), workspace=workspace)
            assert tiny.map("umap").shape == (n, 2)
            assert bool(tiny.map_trust("umap")) == (n > 4)

    def test_errors(self, study, blobs, workspace):
        with pytest.raises(InputError, match="map must be one of umap, pca, got 'tsne'"):
            study.map("tsne")
        bare = change(blobs, features=None, pred_probs=np.full((180, 3), 1 / 3))
        with pytest.raises(InputError, match="blobs has neither pictures nor features, so there is no map"):
            Study(bare, workspace=workspace).map("pca")


class TestPictures:
    def test_embed_stores_and_is_not_recomputed(self, pictures, workspace, save_encoder, monkeypatch):
        from chaffinch.encoders import checkpoint

        path = save_encoder()
        study, told = Study(pictures, "tiny", workspace=workspace), []
        assert not study.has_features()
        X = study.embed(lambda *what: told.append(what))
        assert told[-1] == ("embedding", 1.0)
        np.testing.assert_array_equal(X, checkpoint.load_encoder(path).embed(pictures.observed.images))
        monkeypatch.setattr(checkpoint, "load_encoder", None)  # whoever embeds again fails
        again = Study(pictures, "tiny", workspace=workspace)
        assert again.has_features()
        np.testing.assert_array_equal(again.features, X)

    def test_encoder_counts(self, pictures, workspace, save_encoder):
        save_encoder("one", seed=0), save_encoder("two", seed=1), save_encoder("copy", seed=0)
        one, two, copy = (Study(pictures, name, workspace=workspace) for name in ("one", "two", "copy"))
        assert one.key != two.key
        assert not np.allclose(one.features, two.features)
        assert one.key == copy.key, "the weights count, not their name"
        assert not np.allclose(one.detect("knn-distance").scores, two.detect("knn-distance").scores)
        save_encoder("one", seed=2)
        assert Study(pictures, "one", workspace=workspace).key != one.key, "trained again, embedded again"

    def test_truth_is_not_looked_at(self, pictures, workspace, save_encoder):
        save_encoder()
        test = Split(pictures.observed.images[:20], pictures.observed.labels[:20])
        pictures = replace(pictures, test=test, trusted=np.arange(20))
        blind = replace(pictures, truth=None)
        study, blind = (Study(d, "tiny", workspace=workspace) for d in (pictures, blind))
        assert study.key == blind.key
        seeing = {slug: study.detect(slug).scores.tobytes() for slug in ALL}
        trusted = study.evidence.trusted.X.tobytes()
        shutil.rmtree(workspace.root / "results")  # or the other would read what this one has stored
        assert blind.evidence.trusted.X.tobytes() == trusted
        assert {slug: blind.detect(slug).scores.tobytes() for slug in ALL} == seeing

    def test_own_features_or_an_encoder(self, pictures, workspace, save_encoder):
        save_encoder()
        X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        both = change(pictures, features=X)
        own, embedded = (Study(both, name, workspace=workspace) for name in ("features", "tiny"))
        assert own.features is X
        assert embedded.features.shape == (60, 32)
        assert own.key != embedded.key
        assert Study(change(both, images=None), "tiny", workspace=workspace).encoder == "features"

    @pytest.mark.parametrize(
        ("shape", "usual"),
        [
            ((60, 12, 12), "simclr"),
            ((60, 28, 28), "simclr"),
            ((60, 28, 29), "efficientnet-lite0"),
            ((60, 12, 12, 3), "efficientnet-lite0"),
        ],
    )
    def test_who_chooses_no_encoder_gets_the_one_for_such_pictures(self, pictures, workspace, shape, usual):
        data = change(pictures, images=np.zeros(shape, np.uint8))
        assert Study(data, workspace=workspace).encoder == usual
        assert Study(data, "dcl", workspace=workspace).encoder == "dcl"

    def test_unknown_encoder(self, pictures, workspace, save_encoder):
        save_encoder()
        with pytest.raises(InputError, match=r"no encoder called 'tinny'; there are .*tiny.*'chaffinch train-encoder"):
            Study(pictures, "tinny", workspace=workspace).embed()

    def test_no_encoder_at_all(self, pictures, workspace, monkeypatch, tmp_path):
        monkeypatch.setenv("CHAFFINCH_ASSETS", str(tmp_path))
        with pytest.raises(InputError, match="no encoder called 'simclr'; there are none"):
            Study(pictures, workspace=workspace).detect("lsa")

    def test_another_architecture(self, pictures, workspace, save_encoder):
        save_encoder(architecture="preact-resnet-32-64-128")
        with pytest.raises(InputError, match="does not hold the weights of preact-resnet-32-64-128"):
            Study(pictures, "tiny", workspace=workspace).embed()
        assert not list(workspace.root.rglob("*.npz"))

    @pytest.mark.parametrize("checked", [True, False])
    def test_truncated_weights(self, pictures, workspace, save_encoder, checked):
        path = save_encoder()
        path.write_bytes(path.read_bytes()[:-200])
        if not checked:
            card = json.loads(path.with_suffix(".json").read_text())
            path.with_suffix(".json").write_text(json.dumps({**card, "sha256": sha256_file(path)}))
        message = "is damaged: its checksum" if checked else "is not a readable safetensors file"
        with pytest.raises(InputError, match=rf"tiny\.safetensors {message}"):
            Study(pictures, "tiny", workspace=workspace).detect("lsa")

    def test_missing_weights(self, pictures, workspace, save_encoder):
        save_encoder().unlink()
        with pytest.raises(InputError, match=r"tiny\.safetensors are missing"):
            Study(pictures, "tiny", workspace=workspace).embed()

    def test_wrong_checksum(self, pictures, workspace, save_encoder):
        path = save_encoder()
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        with pytest.raises(InputError, match="is damaged: its checksum"):
            Study(pictures, "tiny", workspace=workspace).embed()

    @pytest.mark.parametrize("content", ["", "[]", '{"name": "tiny"}', '{"sha256": 5}'])
    def test_damaged_card(self, pictures, workspace, save_encoder, content):
        save_encoder().with_suffix(".json").write_text(content)
        with pytest.raises(InputError, match=r"tiny\.json"):
            Study(pictures, "tiny", workspace=workspace).embed()

    def test_colour_pictures_for_a_grey_encoder(self, pictures, workspace, save_encoder):
        save_encoder()
        colour = change(pictures, images=np.repeat(pictures.observed.images[..., None], 3, 3))
        found = Study(colour, "tiny", workspace=workspace).embed()
        np.testing.assert_allclose(found, Study(pictures, "tiny", workspace=workspace).embed(), atol=1e-5)

    def test_a_card_that_is_just_being_written_is_not_read(self, workspace, save_encoder):
        save_encoder()
        (workspace.root / "encoders" / ".tiny-x1.json").write_text("")
        (workspace.root / "encoders" / "tiny.partial.safetensors").write_text("")
        assert "tiny" in encoder_cards(workspace)
        assert not [name for name in encoder_cards(workspace) if name.startswith(".")]


class TestTrusted:
    def test_marked_rows(self, blobs, workspace):
        rows = np.zeros(180, bool)
        rows[[3, 8, 90]] = True
        found = Study(change(blobs, trusted=rows), workspace=workspace).evidence.trusted
        assert found.rows.tolist() == [3, 8, 90]
        np.testing.assert_array_equal(found.X, blobs.observed.features[rows])
        np.testing.assert_array_equal(found.y, blobs.observed.labels[rows])

    @pytest.fixture
    def aside(self, pictures, save_encoder):
        """Pictures with a test split, two samples of which are set aside."""
        save_encoder()
        test = Split(pictures.observed.images[::-1].copy(), pictures.observed.labels[::-1].copy())
        return replace(pictures, test=test, trusted=np.array([1, 4]))

    def test_test_samples_set_aside(self, aside, workspace, monkeypatch):
        from chaffinch.encoders import checkpoint

        study = Study(aside, "tiny", workspace=workspace)
        found = study.evidence.trusted
        assert found.rows.tolist() == [-1, -1]
        assert found.y.tolist() == aside.observed.labels[[58, 55]].tolist()
        np.testing.assert_allclose(found.X, study.features[[58, 55]], atol=1e-4)  # the same pictures in another batch
        monkeypatch.setattr(checkpoint, "load_encoder", None)  # whoever embeds again fails
        again = Study(aside, "tiny", workspace=workspace).evidence.trusted
        np.testing.assert_array_equal(again.X, found.X)

    def test_only_samples_set_aside_are_embedded(self, aside, workspace, monkeypatch):
        from chaffinch.encoders.checkpoint import Encoder

        seen, real = [], Encoder.embed

        def embed(self, images, **options):
            seen.append(len(images))
            return real(self, images, **options)

        monkeypatch.setattr(Encoder, "embed", embed)
        evidence = Study(aside, "tiny", workspace=workspace).evidence
        assert seen == [60], "nothing is embedded before it is asked for"
        assert len(evidence.trusted) == 2
        assert seen == [60, 2]

    def test_marked_rows_come_first(self, aside, workspace):
        marked = Study(mark(aside, 20), "tiny", workspace=workspace).evidence.trusted
        assert marked.rows.tolist() == [0, 20, 40]
        none = np.zeros(60, bool)
        assert Study(change(aside, trusted=none), "tiny", workspace=workspace).evidence.trusted.rows.tolist() == [
            -1,
            -1,
        ]

    def test_another_encoder_gives_other_features(self, aside, workspace, save_encoder):
        save_encoder("other", seed=1)
        one, other = (Study(aside, name, workspace=workspace).evidence.trusted.X for name in ("tiny", "other"))
        assert not np.allclose(one, other)

    def test_test_pictures_do_not_fit_features_of_the_data(self, aside, workspace):
        X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        with pytest.raises(MissingEvidence, match="mark rows known to be clean"):
            Study(change(aside, features=X), "features", workspace=workspace).evidence.trusted  # noqa: B018

    @pytest.mark.parametrize("trusted", [None, np.zeros(180, bool)])
    def test_none(self, blobs, workspace, trusted):
        with pytest.raises(MissingEvidence, match="mark rows known to be clean"):
            Study(change(blobs, trusted=trusted), workspace=workspace).evidence.trusted  # noqa: B018

    def test_marked_rows_without_features(self, blobs, workspace):
        p = np.full((180, 3), 1 / 3)
        bare = change(mark(blobs), features=None, pred_probs=p)
        with pytest.raises(MissingEvidence):
            Study(bare, workspace=workspace).evidence.trusted  # noqa: B018

    def test_marks_are_part_of_the_key(self, blobs, workspace):
        assert Study(mark(blobs), workspace=workspace).key != Study(blobs, workspace=workspace).key


def test_history_is_kept(study, blobs, workspace, monkeypatch):
    from chaffinch import evidence

    history = study.evidence.history
    assert len(list((workspace.root / "results").glob("history-*.npz"))) == 1
    monkeypatch.setattr(evidence, "train_quick_head", None)  # whoever trains again fails
    again = Study(blobs, workspace=workspace).evidence.history
    np.testing.assert_array_equal(again.seen, history.seen)
    np.testing.assert_array_equal(again.after, history.after)


class TestBasics:
    def test_positions(self, study):
        assert len(study) == 180
        assert study.position("b017") == 17
        assert study.name_of(17) == "b017"
        assert study.position("b17") is None

    def test_opens_by_name(self, arrays_file, workspace):
        study = Study(f"arrays:{arrays_file()}", workspace=workspace)
        assert study.encoder == "features"
        assert study.detect("lsa").scores.shape == (180,)

    @pytest.mark.parametrize("seed", [-1, 2**32])
    def test_seed_out_of_range(self, blobs, seed):
        with pytest.raises(InputError, match=f"seed must be 0 to 4294967295, got {seed}"):
            Study(blobs, seed=seed)

    @pytest.mark.parametrize("name", ["../mine", "/mine", "..", "a/b", "a\\b"])
    def test_the_name_of_a_run_leads_nowhere_else(self, blobs, name, a_run, home):
        """It may come with a link or a manifest."""
        a_run(blobs)
        with pytest.raises(InputError, match="is no name of a run"):
            Study(blobs, run=name)

    def test_a_run_elsewhere(self, blobs, a_run, home, tmp_path):
        folder = (home / "runs" / a_run(blobs)).rename(tmp_path / "elsewhere")
        assert Study(blobs, run=folder).run.name == "elsewhere"

    def test_default_workspace(self, blobs, home):
        Study(blobs).detect("knn-label")
        assert len(list((home / "results").glob("detect-*.npz"))) == 1


class TestRunDetectors:
    def test_skips_only_when_told(self, blobs, workspace):
        bare = change(blobs, features=None, pred_probs=np.random.default_rng(0).dirichlet(np.ones(3), 180))
        study, cuts, told = Study(bare, workspace=workspace), [Cut(slug) for slug in SLUGS], []
        done, skipped = run_detectors(study, cuts, skip=True, report=lambda *what: told.append(what))
        assert [d.slug for d in done] == ["confident-learning", "small-loss"]
        assert set(skipped) == {"knn-distance", "knn-label", "lsa"}
        assert all(reason.startswith(f"{slug} needs ") for slug, reason in skipped.items())
        assert told == [(slug, i / 5) for i, slug in enumerate(SLUGS)]
        with pytest.raises(InputError, match="knn-distance needs neighbors"):
            run_detectors(study, cuts)
