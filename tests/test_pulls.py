"""How hard and whereto samples pull: records with known answers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chaffinch import pulls
from chaffinch.base.record import Record
from chaffinch.data import NoisyDataset, Observed, Truth
from chaffinch.encoders.watch import Watch
from chaffinch.losses.base import Batch
from chaffinch.losses.ce import CrossEntropy

GIVEN = np.array([0, 0, 1, 1, 0, 1, 0, 1])
OWN = np.array([0, 0, 1, 1, 1, 0, -1, -1])  # four clean, two mislabelled, two foreign
KIND = np.array([0, 0, 0, 0, 1, 1, 2, 2])


def record(**changes):
    """Two epochs; sample 0 is not followed, sample 4 was left out in the first."""
    rows = np.arange(1, 8)
    pull = np.array([[1, 1, 1, np.nan, 4, 3, 3], [1, 2, 3, 8, 4, 0.5, 1.5]])
    towards = np.zeros((2, 7, 2))
    towards[0, 3] = [0.9, -0.9]  # sample 4: must not count in the epoch that left it out
    towards[0, 4] = [0.2, -0.4]  # sample 5 is filed under 1 and belongs to 0
    towards[1, 3] = [0.5, -0.3]  # sample 4 is filed under 0 and belongs to 1
    towards[1, 4] = [-0.1, 0.7]
    values = {"rows": rows, "epochs": np.array([1, 10]), "losses": pull, "pulls": pull, "towards": towards}
    return Record(**{k: v.astype(np.float16) if v.dtype == float else v for k, v in {**values, **changes}.items()})


def test_pulls_of_each_kind():
    found = pulls.read(record(), GIVEN, KIND, OWN, True)
    assert found.counts == {"clean": 3, "mislabelled": 2, "ood": 2}
    assert found.epochs.tolist() == [1, 10]
    assert found.spread["clean"][:, 2].tolist() == [1, 2]
    assert found.spread["mislabelled"][:, 2].tolist() == [4, 6]  # in the first epoch of the one that took part
    np.testing.assert_allclose(found.spread["clean"][1], np.quantile([1, 2, 3], pulls.SHARES))
    assert found.ratio("mislabelled") == 3
    assert found.ratio("ood") == 0.5
    assert {kind: values.tolist() for kind, values in found.losses.items()} == {
        "clean": [1, 2], "mislabelled": [4, 6], "ood": [3, 1],
    }  # fmt: skip


def test_whereto_of_the_mislabelled():
    found = pulls.read(record(), GIVEN, KIND, OWN, True)
    np.testing.assert_allclose(found.given[:, 1], [-0.4, (0.5 + 0.7) / 2], atol=1e-3)
    np.testing.assert_allclose(found.other[:, 1], [0.2, (-0.3 - 0.1) / 2], atol=1e-3)
    np.testing.assert_allclose(found.given[1, [0, 2]], np.quantile([0.5, 0.7], [0.25, 0.75]), atol=1e-3)


def test_whereto_needs_cosines_and_somebody_mislabelled():
    assert pulls.read(record(towards=np.empty((2, 7, 0))), GIVEN, KIND, OWN, True).given is None
    nobody = pulls.read(record(), GIVEN, np.where(KIND == 1, 0, KIND), GIVEN, True)
    assert (nobody.given, nobody.other, nobody.ratio("mislabelled")) == (None, None, None)
    assert set(nobody.spread) == {"clean", "ood"}
    unknown = pulls.read(record(), GIVEN, KIND, np.full(8, -1), True)  # only kinds are known
    assert unknown.given is None


def test_clean_samples_that_do_not_pull():
    still = record(pulls=np.array([[0, 0, 0, 2, 2, 0, 0]] * 2, float))
    found = pulls.read(still, GIVEN, KIND, OWN, True)
    assert found.ratio("mislabelled") == np.inf
    assert found.ratio("ood") is None  # nothing divided by nothing
    assert "pulls where clean ones do not pull any more" in pulls.told({"a": found})[0]


def test_an_epoch_that_left_a_kind_out_is_a_gap():
    gap = record(pulls=np.array([[1, 1, 1, np.nan, np.nan, 1, 1], [1] * 7], float))
    found = pulls.read(gap, GIVEN, KIND, OWN, True)
    assert np.isnan(found.spread["mislabelled"][0]).all()
    assert found.spread["mislabelled"][1].tolist() == [1] * 5


@pytest.mark.parametrize(
    ("pull", "cosines", "words"),
    [
        (6, ((0.5, -0.3), (-0.1, 0.7)), "pulls 3.00 times as hard as a clean one"),
        (2.1, ((0.5, -0.3), (-0.1, 0.7)), "pulls as hard as a clean one (1.05 times)"),
        (1, ((0.5, -0.3), (-0.1, 0.7)), "moved more towards their wrong label (median cosine +0.60 towards the label"),
        (1, ((-0.3, 0.5), (0.7, -0.1)), "moved more towards their true class (median cosine -0.20 towards the label"),
        (1, ((0.30, 0.32), (0.32, 0.30)), "neither to their label nor to their true class"),
    ],
)
def test_the_sentence_says_what_is_there(pull, cosines, words):
    towards = np.zeros((2, 7, 2))
    towards[1, 3:5] = cosines
    made = record(pulls=np.array([[1] * 7, [1, 2, 3, pull, pull, 2, 2]], float), towards=towards)
    (told,) = pulls.told({"ce": pulls.read(made, GIVEN, KIND, OWN, True)})
    assert told.startswith("ce: after epoch 10 a wrongly labelled picture ")
    assert words in told


def test_the_sentence_names_the_verdict_where_the_truth_is_not_known():
    (told,) = pulls.told({"ce": pulls.read(record(), GIVEN, KIND, OWN, False)})
    assert "a wrongly labelled picture (by the verdict)" in told
    assert "probable class" in told
    assert "true" not in told


def test_one_axis_for_records_of_any_length():
    long = pulls.read(record(), GIVEN, KIND, OWN, True)
    short = pulls.read(
        record(epochs=np.array([1]), pulls=record().pulls[:1], towards=record().towards[:1] * 2), GIVEN, KIND, OWN, True
    )
    none = pulls.read(record(towards=np.empty((2, 7, 0))), GIVEN, KIND, OWN, True)
    ends = [np.min, np.max]
    expected = [end([end(v) for p in (long, short) for v in (p.given, p.other)]) for end in ends]
    assert pulls.span([long, short, none], 0) == pytest.approx(expected)
    assert pulls.span([none]) == (-0.05, 0.05)


def study(*, data, made, verdict=None):
    return SimpleNamespace(
        record=lambda: made, dataset=data, card=lambda: {"dataset": "elsewhere"},
        knows_verdict=lambda: verdict is not None, verdict=lambda: verdict,
    )  # fmt: skip


def dataset(truth=True, shade=0):
    images = np.full((8, 4, 4), shade, np.uint8)
    observed = Observed(labels=GIVEN, classes=("a", "b"), ids=np.array([f"s{i}" for i in range(8)]), images=images)
    return NoisyDataset("toy", observed, Truth(OWN, KIND.astype(np.int8)) if truth else None)


def test_what_a_study_knows():
    with_truth, without = dataset(), dataset(False)
    assert "left no record" in pulls.of(study(data=with_truth, made=None), with_truth)
    assert "elsewhere" in pulls.of(study(data=with_truth, made=record()), None)
    found = pulls.of(study(data=with_truth, made=record()), with_truth)
    assert found.known
    assert found.ratio("mislabelled") == 3
    assert "no verdict" in pulls.of(study(data=without, made=record()), without)
    verdict = SimpleNamespace(kinds=np.where(KIND == 2, 1, KIND), labels=np.where(OWN < 0, 1 - GIVEN, OWN))
    judged = pulls.of(study(data=without, made=record(), verdict=verdict), without)
    assert not judged.known
    assert judged.counts == {"clean": 3, "mislabelled": 4}
    # of other data than those it was trained on, the verdict says nothing
    assert isinstance(pulls.of(study(data=dataset(shade=1), made=record(), verdict=verdict), without), str)


def watched(h, head, y):
    """Loss summed over the rows, its slope by the logits, and what a watch notes, of a linear head (C, F) on (B, F)."""
    h, head, y = torch.tensor(h).double(), torch.tensor(head).double(), torch.tensor(y)
    h.requires_grad_()
    logits = h @ head.T
    out = CrossEntropy()(Batch(z=logits[:, None], y=y))
    slope, gradient = torch.autograd.grad(out.total, (logits, h))
    watch = Watch(y.numpy(), len(head), h.shape[1], 0)
    watch.step(torch.arange(len(y)), out.per_sample, h.detach()[:, None], gradient[:, None])
    return out.per_sample.sum().item(), slope.numpy() * len(y), watch


def test_weight_and_direction_of_one_among_many():
    """The sheet's contrast of three candidates: one is right, and its weight is the sum of the others'."""
    _, slope, watch = watched([[1, 0.5, -0.5]], np.eye(3), [0])
    np.testing.assert_allclose(slope, [[-0.453450613, 0.331498960, 0.121951652]], atol=1e-9)
    np.testing.assert_allclose(watch.gradients, slope, atol=1e-7)
    assert watch.pulls[0] == pytest.approx(1.5**0.5 * np.linalg.norm(slope), rel=1e-6)


def test_weight_and_direction_of_yes_or_no():
    """The same candidates, each judged alone (logits of no and of yes): the pull is |h| weight |yes - no|."""
    logits, head = (
        [[0, 1], [0.2, 0.5], [0.3, -0.5]],
        np.array([[2, 1], [1, 2]]) / 3,
    )  # not orthogonal, and not of length 1
    h = np.array(logits) @ np.linalg.inv(head.T)
    loss, slope, watch = watched(h, head, [1, 0, 0])
    weight = np.array([0.268941421, 0.574442517, 0.310025519])
    assert loss == pytest.approx(1.538717598, abs=1e-9)
    np.testing.assert_allclose(slope, np.outer([1, -1, -1] * weight, [1, -1]), atol=1e-9)
    direction = head[1] - head[0]
    np.testing.assert_allclose(watch.gradients, np.outer([-1, 1, 1] * weight, direction), atol=1e-7)
    length = np.linalg.norm(h, axis=1)
    np.testing.assert_allclose(watch.pulls, length * weight * np.linalg.norm(direction), rtol=1e-6)


@pytest.mark.parametrize(("others", "weight"), [(1, 0.017986), (4, 0.068262), (16, 0.226635)])
def test_more_classes_pull_harder_and_yes_or_no_does_not(others, weight):
    """A logit of 2 against -2 for each other class, and against one of 0 whatever their number."""
    _, slope, _ = watched([[2] + [-2] * others], np.eye(1 + others), [0])
    assert -slope[0, 0] == pytest.approx(weight, abs=1e-6)
    _, slope, _ = watched([[0, 2]] + [[0, -2]] * others, np.eye(2), [1] + [0] * others)
    assert -slope[0, 1] == pytest.approx(0.119203, abs=1e-6)
