"""The bundled dataset: the pool is what its card says, and a draw is what its options say."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from chaffinch import data
from chaffinch.base.errors import InputError
from chaffinch.base.files import asset, digest, read_json, sha256_file
from chaffinch.data import CLEAN, MISLABELLED, OOD, fashion_web, open_dataset
from chaffinch.data.fashion_web import CLASSES, CONFUSED_WITH, Draw

ORIGINAL_FILES = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def pool():
    return fashion_web.read_pool()


@pytest.fixture
def draw(pool, monkeypatch):
    """`open_dataset` on a pool that is read once; afterwards the pool must be as it was."""
    before = pool["id_images"][:50].copy()
    monkeypatch.setattr(fashion_web, "read_pool", lambda: pool)
    yield lambda options="": open_dataset(f"fashion-web:{options}")
    np.testing.assert_array_equal(pool["id_images"][:50], before)


class TestPool:
    def test_checksum_and_card(self):
        card = read_json(asset("fashion-web", "pool.json"))
        assert sha256_file(asset("fashion-web", "pool.npz")) == card["sha256"]
        assert card["licence"].startswith("MIT")
        assert "zalandoresearch/fashion-mnist" in card["source"]
        assert len(card["original_sha256"]) == 4
        assert all(len(value) == 64 for value in card["original_sha256"].values())
        assert card["command"]

    def test_content_is_what_the_card_says(self, pool):
        card = read_json(asset("fashion-web", "pool.json"))
        assert digest(*pool.values()) == card["content"]
        assert {name: len(pool[name]) for name in card["counts"]} == card["counts"]
        assert tuple(card["id_classes"]) == CLASSES
        assert set(card["id_classes"]).isdisjoint(card["ood_classes"])
        assert np.bincount(pool["id_labels"]).tolist() == [2_200] * 7
        assert np.bincount(pool["test_labels"]).tolist() == [1_000] * 7
        assert sorted(set(pool["ood_labels"].tolist())) == [1, 8, 9]
        assert pool["id_images"].shape == (15_400, 28, 28)

    def test_damaged_pool_is_refused(self, tmp_path, monkeypatch):
        (tmp_path / "fashion-web").mkdir()
        (tmp_path / "fashion-web" / "pool.json").write_bytes(asset("fashion-web", "pool.json").read_bytes())
        (tmp_path / "fashion-web" / "pool.npz").write_bytes(b"PK but not the pool")
        monkeypatch.setenv("CHAFFINCH_ASSETS", str(tmp_path))
        with pytest.raises(InputError, match=r"pool\.npz is damaged"):
            open_dataset("fashion-web")

    @pytest.mark.skipif(
        not ORIGINAL_FILES.is_dir(), reason="the original files are not installed (dataset-fashion-mnist)"
    )
    def test_rebuild(self, tmp_path):
        fashion_web.build(ORIGINAL_FILES, tmp_path)
        built, bundled = read_json(tmp_path / "pool.json"), read_json(asset("fashion-web", "pool.json"))
        assert {**built, "sha256": ""} == {**bundled, "sha256": ""}  # zip bytes may differ between zlibs
        assert built["sha256"] == sha256_file(tmp_path / "pool.npz")

    def test_rebuild_names_what_is_missing(self, tmp_path):
        with pytest.raises(InputError, match=r"lacks train-images-idx3-ubyte\.gz, train-labels"):
            fashion_web.build(tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestDefaultDraw:
    def test_counts(self, draw):
        d = draw()
        assert d.name == "fashion-web"
        assert np.bincount(d.truth.kind).tolist() == [7_200, 1_800, 3_000]
        assert d.observed.classes == CLASSES
        assert d.observed.images.shape == (12_000, 28, 28)
        assert d.observed.images.dtype == np.uint8
        assert d.observed.labels.dtype == np.int64
        assert len(d.test) == 7_000
        assert d.trusted.tolist() == list(range(500))
        assert "MIT" in d.note

    def test_truth_fits_the_labels(self, draw):
        d = draw()
        given, true, kind = d.observed.labels, d.truth.labels, d.truth.kind
        assert (given[kind == CLEAN] == true[kind == CLEAN]).all()
        assert (given[kind == MISLABELLED] != true[kind == MISLABELLED]).all()
        assert (true[kind == MISLABELLED] >= 0).all()
        assert (true[kind == OOD] == -1).all()
        assert chisquare(np.bincount(given[kind == OOD], minlength=7)).pvalue > 0.01

    def test_pictures_are_those_of_the_pool(self, draw, pool):
        d = draw("n=2000")
        pairs = zip(pool["id_images"], pool["id_labels"].tolist(), strict=True)
        known = {picture.tobytes(): c for picture, c in pairs}
        foreign = {picture.tobytes() for picture in pool["ood_images"]}
        for picture, true in zip(d.observed.images, d.truth.labels.tolist(), strict=True):
            if true < 0:
                assert picture.tobytes() in foreign
            else:
                assert known[picture.tobytes()] == true

    def test_no_train_picture_in_test(self, draw):
        d = draw()
        test = {picture.tobytes() for picture in d.test.images}
        assert sum(picture.tobytes() in test for picture in d.observed.images) <= 5  # duplicates of the original

    def test_ids_say_nothing_about_the_kind(self, draw):
        d = draw()
        ids, kind = d.observed.ids, d.truth.kind
        assert len(set(ids.tolist())) == 12_000
        assert {len(i) for i in ids.tolist()} == {13}
        assert all(i.startswith("fw-") for i in ids.tolist())
        rank = np.argsort(np.argsort(ids))
        position = np.arange(len(ids))
        for order in (rank, position):
            means = [order[kind == k].mean() / len(ids) for k in (CLEAN, MISLABELLED, OOD)]
            np.testing.assert_allclose(means, 0.5, atol=0.02)

    def test_ids_of_the_whole_pool_do_not_collide(self):
        names = [f"id-{i}" for i in range(15_400)] + [f"ood-{i}" for i in range(9_600)]
        assert len({digest(name)[:10] for name in names}) == 25_000

    def test_same_picture_same_id(self, draw):
        a, b = draw("n=3000").observed, draw("n=3000,seed=5,noise=0.6").observed
        other = dict(zip(b.ids.tolist(), b.images, strict=True))
        shared = [i for i, name in enumerate(a.ids.tolist()) if name in other]
        assert len(shared) > 100
        assert all((a.images[i] == other[a.ids[i]]).all() for i in shared)


class TestOptions:
    def test_same_seed_same_digest(self, draw):
        assert draw("n=500").digest == draw("n=500,seed=0").digest
        keys = {draw(f"n=500,{o}").digest for o in ("seed=0", "seed=1", "seed=2", "noise=0.3", "flips=instance")}
        assert len(keys) == 5

    @pytest.mark.parametrize("flips", fashion_web.FLIPS)
    @pytest.mark.parametrize(("noise", "ood"), [(0.6, 0.5), (0.2, 0), (0.3, 1), (0, 0.5), (1, 0.5)])
    def test_counts_follow(self, draw, flips, noise, ood):
        d = draw(f"n=1000,noise={noise},ood={ood},flips={flips},seed=3")
        total, foreign = round(1_000 * noise), round(1_000 * noise * ood)
        assert np.bincount(d.truth.kind, minlength=3).tolist() == [1_000 - total, total - foreign, foreign]

    def test_asymmetric_uses_the_confusions(self, draw):
        d = draw("n=2000,flips=asymmetric")
        wrong = d.truth.kind == MISLABELLED
        np.testing.assert_array_equal(d.observed.labels[wrong], np.array(CONFUSED_WITH)[d.truth.labels[wrong]])

    def test_name_opens_it_again(self, draw):
        d = draw("flips=instance,n=300,noise=0.25")
        assert d.name == "fashion-web:noise=0.25,flips=instance,n=300"
        assert open_dataset(d.name).digest == d.digest
        assert str(Draw.parse("noise=0.4")) == "fashion-web"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("noize=0.2", "no option 'noize'; it has noise, ood, flips, seed, n"),
            ("noise=1.2", "noise must lie between 0 and 1, got 1.2"),
            ("noise=-0.1", "noise must lie between 0 and 1"),
            ("noise=nan", "noise must lie between 0 and 1"),
            ("ood=7", "ood must lie between 0 and 1"),
            ("noise=lots", "noise must be float, got 'lots'"),
            ("noise", "noise must be float, got ''"),
            ("seed=-1", "seed must not be negative"),
            ("seed=1.5", "seed must be int, got '1.5'"),
            ("flips=diagonal", "flips must be one of symmetric, asymmetric, instance, got 'diagonal'"),
            ("n=0", "n must be at least 1"),
            ("n=15401", "n must be at most 15400"),
            ("noise=0.9,ood=0.9", "9720 out-of-distribution pictures are wanted, the pool has 9600; lower n"),
        ],
    )
    def test_bad_options(self, draw, options, message):
        with pytest.raises(InputError, match=message):
            draw(options)


def test_public_names():
    assert data.open_dataset is open_dataset
    assert (CLEAN, MISLABELLED, OOD) == (0, 1, 2)


class TestLongTail:
    def test_class_sizes_fall_off_geometrically(self, draw):
        d = draw("imbalance=10,noise=0")
        sizes = np.bincount(d.truth.labels)
        np.testing.assert_allclose(sizes, 2_200 * 10.0 ** -(np.arange(7) / 6), atol=0.5)
        assert sizes[0] == 2_200
        assert len(d.observed) == sizes.sum()

    def test_noise_rates_are_of_all_that_is_there(self, draw):
        d = draw("imbalance=10")
        n = len(d.observed)
        counts = np.bincount(d.truth.kind, minlength=3)
        assert counts[OOD] == round(0.25 * n)
        assert counts[MISLABELLED] == round(0.15 * n)

    def test_n_is_the_most(self, draw):
        assert len(draw("imbalance=10,n=500").observed) == 500

    @pytest.mark.parametrize("text", ["imbalance=0.5", "imbalance=inf", "imbalance=nan", "imbalance=x"])
    def test_bad_values(self, text):
        with pytest.raises(InputError, match="imbalance must be"):
            Draw.parse(text)


class TestAngles:
    def test_classes_are_the_angles_in_order(self, draw):
        d = draw("task=angle,noise=0,n=1000")
        assert d.observed.classes == tuple(f"{a}°" for a in range(-75, 76, 15))
        assert set(np.bincount(d.truth.labels, minlength=11) > 50) == {True}
        assert len(d.test.labels) == 7_000
        assert d.test.labels.max() == 10

    def test_label_says_how_far_the_picture_is_turned(self, draw, pool):
        """Sneakers lie flat: the direction in which a turned one is longest is its angle."""
        d = draw("task=angle,noise=0,n=15400")
        rng = np.random.default_rng([0, 2024])
        garment = pool["id_labels"][rng.permutation(15_400)]
        sneakers = np.flatnonzero(garment == 6)[:300]
        y, x = np.mgrid[:28, :28]
        found = []
        for image in d.observed.images[sneakers].astype(float):
            w = image / image.sum()
            dx, dy = x - (w * x).sum(), (w * y).sum() - y  # up is positive
            found.append(0.5 * np.degrees(np.arctan2(2 * (w * dx * dy).sum(), (w * dx * dx - w * dy * dy).sum())))
        angles = np.array(fashion_web.ANGLES)[d.truth.labels[sneakers]]
        assert np.median(np.abs(np.array(found) - angles)) < 8
        steep = np.abs(angles) > 60  # beyond the axis wraps around
        assert np.corrcoef(np.array(found)[~steep], angles[~steep])[0, 1] > 0.9

    def test_noise_and_asymmetric_flips(self, draw):
        d = draw("task=angle,noise=0.4,ood=0.5,flips=asymmetric,n=2000")
        counts = np.bincount(d.truth.kind, minlength=3)
        assert counts.tolist() == [1200, 400, 400]
        wrong = d.truth.kind == MISLABELLED
        step = d.observed.labels[wrong] - d.truth.labels[wrong]
        assert (step[d.truth.labels[wrong] < 10] == 1).all()
        assert (step[d.truth.labels[wrong] == 10] == -1).all()

    def test_no_tail_between_angles(self):
        with pytest.raises(InputError, match="imbalance is between garments"):
            Draw.parse("task=angle,imbalance=10")
        with pytest.raises(InputError, match="task must be one of garment, angle"):
            Draw.parse("task=colour")
