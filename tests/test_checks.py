"""Copies, leaks and odd pictures: what is planted is found, with the reason; what is plain is left alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scenes import CHANGES, darker, jpeg, plain, planted, put, scene

from chaffinch import checks
from chaffinch.base.errors import InputError
from chaffinch.base.neighbors import near_duplicates, nearest
from chaffinch.checks import (
    CHECKS,
    ODD,
    Checks,
    alikeness,
    far,
    find,
    grouped,
    known,
    lacking,
    leaked,
    reasons,
    summary,
)
from chaffinch.data import NoisyDataset, Observed
from chaffinch.data.dataset import Split
from chaffinch.data.measures import measure
from chaffinch.study import Study


@pytest.fixture
def study(tmp_path, workspace) -> Study:
    """Forty pictures in a folder with everything planted that is looked for."""
    return Study(put(tmp_path / "planted", planted()), workspace=workspace)


def listed(study: Study, found: Checks, check: str) -> set[str]:
    return {study.name_of(i).removeprefix("train/") for i in np.flatnonzero(found.flags(check)).tolist()}


def why(study: Study, found: Checks, name: str) -> dict[str, str]:
    return {r.check: r.words for r in reasons(study, found, study.position(f"train/{name}"))}


class TestPlanted:
    def test_copies_in_groups_whatever_was_done_to_them(self, study):
        found = find(study)
        pairs = {"a/same.png": "a/000.png", "b/other.png": "a/002.png", "a/jpeg.jpg": "a/004.png",
                 "b/darker.png": "b/005.png"}  # fmt: skip
        assert listed(study, found, "duplicates") == {*pairs, *pairs.values()}
        place = {name: study.position(f"train/{name}") for name in [*pairs, *pairs.values()]}
        for one, other in pairs.items():
            assert found.siblings(place[one]) == [place[other]]
            assert found.group[place[one]] == found.group[place[other]]
        assert found.group.max() == 3
        differ = {study.name_of(i) for i in np.flatnonzero(found.split(study.observed.labels)).tolist()}
        assert differ == {"train/a/002.png", "train/b/other.png"}
        assert why(study, found, "a/same.png")["duplicates"] == "identical to train/a/000.png"
        told = why(study, found, "b/other.png")["duplicates"]
        assert told == "identical to train/a/002.png, which is filed under a"
        assert why(study, found, "a/jpeg.jpg")["duplicates"].startswith(
            "copy of train/a/004.png (pixels correlate 0.99"
        )

    def test_leaks_name_the_test_picture(self, study):
        found = find(study)
        assert listed(study, found, "leaks") == {"a/006.png", "a/008.png"}
        assert why(study, found, "a/006.png")["leaks"] == "also in the test set: test/a/leak.png, identical"
        told = why(study, found, "a/008.png")["leaks"]
        assert told.startswith("also in the test set: test/b/leak.jpg (pixels correlate 0.99")
        assert told.endswith(", there under b")

    @pytest.mark.parametrize("check", CHANGES)
    def test_odd_pictures_each_for_its_own_reason(self, study, check):
        found = find(study)
        assert listed(study, found, check) == {f"a/{check}.png"}
        assert set(why(study, found, f"a/{check}.png")) == {check}

    def test_sentences_hold_what_was_measured(self, study):
        found = find(study)
        assert why(study, found, "a/blank.png") == {"blank": "blank: one tone all over (93 of 255)"}
        size = why(study, found, "a/odd-size.png")["odd-size"]
        assert size == "odd size: 192 × 192 pixels (usual: 48 × 48)"
        assert "160 × 16 pixels" in why(study, found, "a/odd-shape.png")["odd-shape"]
        light = np.quantile(np.asarray(CHANGES["dark"](scene(601))), 0.99)
        dark = why(study, found, "a/dark.png")["dark"]
        assert float(dark.split("at most ")[1].split(" ")[0]) == pytest.approx(light, abs=2)

    def test_identical_ones_need_no_encoder(self, tmp_path, workspace):
        study = Study(put(tmp_path / "planted", planted()), "nothing", workspace=workspace)
        found = find(study, identical=True)
        pairs = {"a/same.png", "a/000.png", "b/other.png", "a/002.png"}
        assert listed(study, found, "duplicates") == pairs
        assert listed(study, found, "leaks") == {"a/006.png"}
        assert listed(study, found, "dark") == {"a/dark.png"}
        with pytest.raises(InputError, match="no encoder called 'nothing'"):
            find(study)

    def test_blank_pictures_of_different_sizes_are_not_identical(self, tmp_path, workspace):
        sizes = {"one": (9, 9), "other": (90, 30), "twin": (9, 9)}
        blank = {f"train/a/{name}.png": Image.new("L", size) for name, size in sizes.items()}
        study = Study(put(tmp_path / "planted", planted() | blank), "nothing", workspace=workspace)
        found = find(study, identical=True)
        assert {"a/one.png", "a/twin.png"} < listed(study, found, "duplicates")
        assert "a/other.png" not in listed(study, found, "duplicates")

    def test_they_are_stored_and_found_again(self, study, monkeypatch):
        assert not known(study)
        told = []
        first = find(study, report=lambda what, share: told.append(what))
        assert {"pictures", "test pictures"} <= set(told)
        assert known(study)
        monkeypatch.setattr(checks, "_find", None)
        again = find(study)
        for name in ("group", "copy", "gap", "leak", "excess", "values"):
            np.testing.assert_array_equal(getattr(again, name), getattr(first, name))

    def test_another_encoder_reads_no_picture_again(self, study, save_encoder, monkeypatch):
        find(study)
        save_encoder("other")
        monkeypatch.setattr(checks, "measure", None)
        assert "a/jpeg.jpg" in listed(
            study, find(Study(study.dataset, "other", workspace=study.workspace)), "duplicates"
        )

    def test_another_test_split_is_another_key(self, study):
        dataset = study.dataset
        fewer = Split(dataset.test.images.only(np.arange(3)), dataset.test.labels[:3])
        other = Study(replace(dataset, test=fewer), workspace=study.workspace)
        assert other.key == study.key
        assert checks.key(other) != checks.key(study)

    def test_test_samples_set_aside_as_trusted_do_not_count(self, study):
        names = [study.dataset.test.images.names[row] for row in study.dataset.test.images.rows]
        aside = np.array([names.index("test/a/leak.png")])
        found = find(Study(replace(study.dataset, trusted=aside), workspace=study.workspace))
        assert listed(study, found, "leaks") == {"a/008.png"}

    def test_the_summary_is_plain_values(self, study):
        told = json.loads(json.dumps(summary(study, find(study), most=2)))
        assert (told["n"], told["skipped"], set(told["checks"])) == (51, {}, set(CHECKS))
        copies = told["checks"]["duplicates"]
        assert {key: copies[key] for key in ("flagged", "groups", "groups_of_different_labels", "spare")} == {
            "flagged": 8, "groups": 4, "groups_of_different_labels": 1, "spare": 4,
        }  # fmt: skip
        assert {s["id"] for s in copies["samples"]} == {"train/a/002.png", "train/b/other.png"}
        leaks = told["checks"]["leaks"]
        assert (leaks["flagged"], leaks["test_samples"], leaks["of"]) == (2, 2, 10)
        assert leaks["samples"][0] == {
            "id": "train/a/006.png", "why": "also in the test set: test/a/leak.png, identical",
        }  # fmt: skip
        assert told["checks"]["dark"]["flagged"] == 1


class TestPlain:
    @pytest.mark.parametrize("look", ["as they are", "dark throughout", "on black", "of many sizes"])
    def test_nothing_is_listed_where_nothing_is_planted(self, tmp_path, workspace, look):
        pictures = plain(60, test=8)
        if look == "dark throughout":
            pictures = {name: darker(p, 0.1) for name, p in pictures.items()}
        elif look == "on black":  # as in Fashion-MNIST
            pictures = {name: p.resize((24, 24)).crop((-12, -12, 36, 36)) for name, p in pictures.items()}
        elif look == "of many sizes":
            rng = np.random.default_rng(0)
            sides = np.exp(rng.normal(4.2, 0.25, (len(pictures), 2))).astype(int).tolist()
            pictures = {name: scene(i, *sides[i]) for i, name in enumerate(pictures)}
        study = Study(put(tmp_path / "plain", pictures), workspace=workspace)
        found = find(study)
        assert {check: listed(study, found, check) for check in CHECKS} == {check: set() for check in CHECKS}
        assert summary(study, found)["checks"]["duplicates"]["spare"] == 0

    def test_pictures_in_memory(self, workspace):
        images = np.stack([np.asarray(scene(i)) for i in range(30)] + [np.asarray(jpeg(scene(3)))])
        y = np.arange(31) % 2
        observed = Observed(labels=y, classes=("a", "b"), ids=np.arange(31).astype(str), images=images)
        study = Study(NoisyDataset("made", observed, test=Split(images[7:8], y[7:8])), workspace=workspace)
        found = find(study)
        assert np.flatnonzero(found.flags("duplicates")).tolist() == [3, 30]
        assert np.flatnonzero(found.flags("leaks")).tolist() == [7]
        assert reasons(study, found, 7)[0].words == "also in the test set: test sample 0, identical"
        assert not (found.excess > 1).any()

    def test_pictures_that_cannot_be_decoded_are_copies_of_nothing(self, tmp_path, workspace, monkeypatch):
        monkeypatch.setattr("chaffinch.data.pictures.CHECKED", 5)  # as in a large set: they show only later
        name = put(tmp_path / "damaged", plain(20))
        for i in (4, 8, 12):
            path = tmp_path / "damaged" / "a" / f"{i:03d}.png"
            path.write_bytes(path.read_bytes()[:200])
        monkeypatch.setattr("chaffinch.data.pictures.HEADERS", 20)
        study = Study(name, workspace=workspace)
        found = find(study)
        assert len(study.dataset.undecoded) == 3
        assert not any(found.flags(check).any() for check in CHECKS)


class TestFeaturesOnly:
    def test_the_rule_of_the_neighbours_where_there_are_no_pictures(self, blobs, workspace):
        X = blobs.observed.features.copy()
        X[3], X[100] = X[50], X[51] * 2.0 + 1e-5
        study = Study(NoisyDataset("b", replace(blobs.observed, features=X)), "features", workspace=workspace)
        found = find(study)
        pairs = near_duplicates(nearest(X, 30))
        assert sorted(np.unique(pairs).tolist()) == np.flatnonzero(found.flags("duplicates")).tolist()
        assert {(3, 50), (51, 100)} <= {tuple(pair) for pair in pairs.tolist()}
        assert found.copy[3] == 50
        assert found.gap[100] == pytest.approx(0, abs=1e-6)
        assert "copy of b051 (cosine similarity 1.00000)" in reasons(study, found, 100)[0].words
        assert set(found.skipped) == {"leaks", *ODD}

    def test_with_neither_nothing_can_be_checked(self, arrays_file, blobs, workspace):
        p = np.random.default_rng(0).dirichlet(np.ones(3), len(blobs))
        study = Study(f"arrays:{arrays_file(features=None, pred_probs=p)}", workspace=workspace)
        found = find(study)
        assert set(found.skipped) == set(CHECKS) == set(lacking(study))
        assert summary(study, found)["checks"] == {}


class TestGroups:
    @given(st.integers(2, 12), st.data())
    def test_groups_are_the_connected_ones(self, n, data):
        pair = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] != p[1])
        pairs = data.draw(st.lists(pair, max_size=12))
        gaps = data.draw(st.lists(st.floats(0, 1), min_size=len(pairs), max_size=len(pairs)))
        group, copy, gap = grouped(n, np.array(pairs, np.int64).reshape(-1, 2), np.array(gaps))
        member = list(range(n))  # the slow way: the smallest position that can be reached
        for _ in range(n):
            for i, j in pairs:
                member[i] = member[j] = min(member[i], member[j])
        paired = {i for p in pairs for i in p}
        roots = sorted({member[i] for i in paired})
        assert group.tolist() == [roots.index(member[i]) if i in paired else -1 for i in range(n)]
        for i in range(n):
            mine = [(g, p[1 - p.index(i)]) for p, g in zip(pairs, gaps, strict=True) if i in p]
            assert (copy[i] == -1) == (not mine)
            if mine:
                assert (gap[i], copy[i]) == min(mine)

    @given(st.integers(1, 12), st.data())
    def test_of_each_group_one_stays_of_those_that_are_there(self, n, data):
        group = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n)))
        better = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n)))
        among = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        spare = made(group).spare(better, among)
        assert not spare[(group < 0) | ~among].any()
        for g in set(group.tolist()) - {-1}:
            rows = [i for i in range(n) if group[i] == g and among[i]]
            stays = [i for i in rows if not spare[i]]
            assert stays == ([min(rows, key=lambda i: (-better[i], i))] if rows else [])

    def test_a_queue_shows_different_labels_first_and_the_one_to_keep_last(self):
        found = made(np.array([0, 0, 1, 1, 1, -1]))
        labels, better = np.array([0, 0, 0, 1, 0, 0]), np.array([0.9, 0.1, 0.2, 0.8, 0.3, 0.5])
        none = np.zeros(6, bool)
        urgency = found.urgency("duplicates", labels, better, none)
        assert [i for i in np.argsort(-urgency).tolist() if urgency[i]] == [2, 4, 3, 1, 0]
        left = found.urgency("duplicates", labels, better, np.array([0, 1, 0, 0, 0, 0], bool))
        assert left[0] == 0, "of its group it is the only one left"
        assert (left > 0).tolist() == [False, True, True, True, True, False]


def made(group: np.ndarray) -> Checks:
    n, none = len(group), np.full(len(group), np.nan)
    return Checks(group, group, none, np.full(n, -1), none, np.zeros((len(ODD), n)), np.empty((6, 0)), {}, {})


class TestFar:
    def test_in_units_of_its_own_side(self):
        values = np.r_[np.zeros(4), np.arange(1, 6), [1000.0]]
        scale = checks.SPREADS * 1.4826
        median, side = np.median(values), np.median(values[values >= 1.5] - 1.5)
        np.testing.assert_allclose(far(values, 1.0, 1)[-1], (1000 - median) / (scale * side))
        assert far(values, 1.0, -1).max() < 1

    def test_a_least_amount_and_what_is_not_known(self):
        values = np.array([5.0, 5, 5, 5, 5.9, 7, np.nan])
        assert (far(values, 1.0, 1) > 1).tolist() == [False] * 5 + [True, False]
        assert not far(np.full(3, np.nan), 1.0, 1).any()

    @given(st.lists(st.integers(-99, 99), min_size=3, max_size=30), st.floats(0.1, 10), st.integers(-50, 50))
    def test_origin_and_sign_do_not_matter(self, values, least, shift):
        x = np.array(values, float)
        np.testing.assert_allclose(far(x + shift, least, 1), far(x, least, 1), atol=1e-6)
        np.testing.assert_array_equal(far(-x, least, -1), far(x, least, 1))


class TestLeaked:
    def test_the_most_alike_test_picture_and_an_identical_one_wherever_it_is(self):
        train = measure(np.stack([np.asarray(scene(i)) for i in range(4)]))
        tests = measure(np.stack([np.asarray(p) for p in (jpeg(scene(1), 60), jpeg(scene(1), 95), scene(2))]))
        near = np.array([[0, 1]] * 4)  # the identical one is not among the neighbours
        place, gap = leaked(train, tests, near, 0.02)
        assert place.tolist() == [-1, 1, 2, -1]
        assert gap[2] == 0
        assert 0 < gap[1] < 0.02

    def test_sketches_correlate_whatever_the_light(self):
        sketch = measure(np.stack([np.asarray(p) for p in (scene(1), darker(scene(1), 0.7), scene(2))])).sketch
        ((start, alike),) = alikeness(sketch, sketch, np.array([[0, 1, 2]] * 3))
        assert start == 0
        np.testing.assert_allclose(alike, np.corrcoef(sketch.astype(float)), atol=1e-5)
        assert alike[0, 1] > 0.999
        plain = np.full((1, 256), 7, np.uint8)
        ((_, alike),) = alikeness(plain, np.concatenate([plain, sketch]), np.array([[0, 1]]))
        assert not alike.any(), "one tone is like nothing"

    def test_blocks_fit_together(self, monkeypatch):
        monkeypatch.setattr(checks, "BLOCK", 4)
        rng = np.random.default_rng(0)
        sketch, near = rng.integers(0, 256, (10, 256), dtype=np.uint8), rng.integers(0, 10, (10, 3))
        found = np.concatenate([alike for _, alike in alikeness(sketch, sketch, near)])
        np.testing.assert_allclose(found, np.take_along_axis(np.corrcoef(sketch.astype(float)), near, 1), atol=1e-5)


def test_there_is_no_other_check(study):
    with pytest.raises(InputError, match="no check called 'ugly'; there are duplicates, leaks"):
        find(study).flags("ugly")
