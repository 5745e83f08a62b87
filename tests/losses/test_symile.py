"""Symile: the numbers of its sheet, slow references, the authors' package, what must not change it, and XOR."""

import importlib
import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.base.errors import InputError
from chaffinch.losses.base import Batch, Sizes, unit
from chaffinch.losses.symile import Symile, against, combined, edge_network, false_negatives, permuted, sobel

TIGHT = {"atol": 1e-10, "rtol": 1e-10}
ORDERS = {"id": torch.tensor([0, 1]), "swap": torch.tensor([1, 0])}
NONE = torch.zeros(2, 2, dtype=torch.bool)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def triples(b=6, classes=3, d=5, seed=0):
    """Unit rows of pictures and edges (B, D), label table (C, D), labels (B,)."""
    draw = seeded(seed)
    rows = (torch.randn(size, d, generator=draw, dtype=torch.float64) for size in (b, b, classes))
    return *map(unit, rows), torch.randint(classes, (b,), generator=draw)


def batch_of(b=6, seed=0, classes=3, features=7, side=8, dtype=torch.float64):
    draw = seeded(seed)
    h = torch.randn(b, 1, features, generator=draw, dtype=dtype).relu()
    x = torch.rand(b, 1, 1, side, side, generator=draw, dtype=dtype)
    y = torch.randint(classes, (b,), generator=draw)
    return Batch(z=torch.zeros(b, 1, 4, dtype=dtype), h=h, x=x, y=y, rng=seeded(seed))


def loss_of(negatives="n", seed=0, classes=3, features=7, side=8, **parameters):
    torch.manual_seed(seed)
    loss = Symile(negatives, **parameters)
    loss.setup(Sizes(features=features, projection=4, classes=classes, samples=10, shape=(1, side, side)))
    return loss.double()


def taken(batch, order):
    return Batch(z=batch.z[order], h=batch.h[order], x=batch.x[order], y=batch.y[order])


class TestSheet:
    @pytest.mark.parametrize(("scale", "value"), [(1.0, 0.743668380629), (10.0, 0.000136190515)])
    def test_all_combinations_of_the_identity(self, scale, value):
        eye = torch.eye(2, dtype=torch.float64)
        loss = combined(eye, eye, eye, torch.tensor([0, 1]), number(scale))
        assert loss.shape == (3, 2)
        assert value == pytest.approx(math.log(math.exp(scale) + 3) - scale, abs=1e-12)
        torch.testing.assert_close(loss, torch.full_like(loss, value), atol=1e-12, rtol=0)

    @pytest.mark.parametrize(
        ("first", "second", "value"),
        [
            ("id", "id", 4.539890e-5),
            ("id", "swap", 4.539890e-5),
            ("swap", "id", 4.539890e-5),
            ("swap", "swap", 0.693147181),
        ],
    )
    def test_permutations_of_the_identity(self, first, second, value):
        """As the paper has it, and the false negative of the last pair, which the mask takes out."""
        eye = torch.eye(2, dtype=torch.float64)
        orders = ORDERS[first], ORDERS[second]
        for anchor in range(3):
            plain = against((eye, eye, eye), anchor, orders, NONE, number(10.0))
            assert plain.tolist() == pytest.approx([value, value], abs=1e-9)
            skip = false_negatives(anchor, orders, torch.tensor([0, 1]))
            masked = against((eye, eye, eye), anchor, orders, skip, number(10.0))
            again = first == second == "swap"
            assert masked.tolist() == pytest.approx([0 if again else value] * 2, abs=1e-9)

    def test_signs(self):
        """Flipping two modalities changes nothing; one, all scores."""
        picture, edges, labels, y = triples()
        plain = combined(picture, edges, labels, y, number(5.0))
        torch.testing.assert_close(combined(-picture, edges, -labels, y, number(5.0)), plain, **TIGHT)
        one = combined(-picture, edges, labels, y, number(5.0))
        torch.testing.assert_close(one, combined(picture, edges, labels, y, number(-5.0)), **TIGHT)
        assert (one - plain).abs().max() > 0.1

    def test_flat_and_sparse_codes(self):
        """The same unit row everywhere: a flat one of 16 gives .25, a one-hot one 1."""
        loss = loss_of(dim=16, classes=2, log_scale=0.0)
        for row, value in ((torch.full((16,), 0.25), 0.25), (torch.eye(16)[3], 1.0)):
            for linear in (loss.picture, loss.edges[-1]):
                torch.nn.init.zeros_(linear.weight)
                linear.bias.data = row.double()
            loss.label.weight.data = row.double().repeat(2, 1)
            joint = loss.output("joint", torch.ones(1, 7).double(), torch.zeros(1, 1, 8, 8).double())
            assert joint.tolist() == [[pytest.approx(value, abs=1e-12)] * 2]

    @pytest.mark.parametrize(("dim", "spread"), [(16, 0.0624), (64, 0.0156), (128, 0.0078)])
    def test_chance_scores_are_small(self, dim, spread):
        """Standard deviation 1/D: why the scale starts at 20."""
        draw = seeded(0)
        p, e, labels = (unit(torch.randn(20_000, dim, generator=draw)) for _ in range(3))
        assert (p * e * labels).sum(1).std().item() == pytest.approx(spread, rel=0.03)
        assert Symile().log_scale.exp().item() == pytest.approx(20.09, abs=0.01)


def slow(rows, y, scale, anchor, columns):
    """(B,) losses in plain loops; columns: for each sample, the triples of positions that are its negatives."""
    p, e, lab = (r.tolist() for r in rows)

    def score(i, j, k):
        return scale * sum(a * b * c for a, b, c in zip(p[i], e[j], lab[k], strict=True))

    losses = []
    for i in range(len(y)):
        own = score(i, i, i)
        total = math.exp(own)
        for triple in columns(i):
            at = list(triple)
            at.insert(anchor, i)
            if not (at[0] == at[1] and y[at[0]] == y[at[2]]):
                total += math.exp(score(*at))
        losses.append(math.log(total) - own)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize(("b", "classes", "seed"), [(2, 2, 0), (5, 2, 1), (6, 3, 2), (7, 5, 3), (6, 1, 4)])
def test_slow_reference_of_permutations(b, classes, seed):
    picture, edges, labels, y = triples(b, classes, seed=seed)
    got = permuted((picture, edges, labels[y]), y, number(4.0), seeded(seed))
    draw = seeded(seed)
    for anchor in range(3):
        first, second = (torch.randperm(b, generator=draw).tolist() for _ in range(2))
        wanted = slow(
            (picture, edges, labels[y]),
            y.tolist(),
            4.0,
            anchor,
            lambda i, one=first, two=second: [(one[j], two[j]) for j in range(b) if j != i],
        )
        torch.testing.assert_close(got[anchor], wanted, **TIGHT)


@pytest.mark.parametrize(("b", "classes", "seed"), [(2, 2, 0), (5, 2, 1), (4, 6, 2), (5, 1, 3)])
def test_slow_reference_of_all_combinations(b, classes, seed):
    """Counting labels is the same as listing all B*B triples; classes without samples are none."""
    picture, edges, labels, y = triples(b, classes, seed=seed)
    got = combined(picture, edges, labels, y, number(4.0))
    for anchor in range(3):
        wanted = slow((picture, edges, labels[y]), y.tolist(), 4.0, anchor, lambda i: list(product(range(b), repeat=2)))
        torch.testing.assert_close(got[anchor], wanted, **TIGHT)


def reference(negatives):
    """The authors' loss."""
    try:
        package = importlib.import_module("symile")
    except ImportError:
        pytest.skip("the authors' package symile is not installed")
    if not hasattr(package, "Symile"):
        pytest.skip("another package is called symile")
    return package.Symile(negatives)


@pytest.mark.parametrize("negatives", ["n", "n_squared"])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_authors_package(negatives, seed):
    """Where no two samples share a label, and nothing that it draws is taken out."""
    theirs = reference(negatives)
    rows = [unit(torch.randn(9, 6, generator=seeded(10 * seed + m), dtype=torch.float64)) for m in range(3)]
    ours_in, theirs_in = ([r.clone().requires_grad_() for r in rows] for _ in range(2))
    torch.manual_seed(seed)
    there = theirs(theirs_in, number(3.0))
    if negatives == "n":
        draw, nothing = seeded(seed), torch.zeros(9, 9, dtype=torch.bool)
        orders = [tuple(torch.randperm(9, generator=draw) for _ in range(2)) for _ in range(3)]
        here = torch.stack([against(ours_in, m, orders[m], nothing, number(3.0)) for m in range(3)])
    else:
        here = combined(*ours_in, torch.arange(9), number(3.0))
    torch.testing.assert_close(here.mean(), there, **TIGHT)
    gradients = (torch.autograd.grad(total, given) for total, given in ((here.mean(), ours_in), (there, theirs_in)))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, **TIGHT)


def test_a_label_that_says_nothing_leaves_clip():
    """Flat label codes, each used once: the anchors picture and edges are InfoNCE's two directions, plus log B."""
    b, d = 7, 4
    picture, edges, _, _ = triples(b, b, d)
    loss = combined(picture, edges, torch.ones(b, d, dtype=torch.float64), torch.arange(b), number(3.0))
    logits = 3.0 * picture @ edges.T
    for got, directed in zip(loss, (logits, logits.T), strict=False):
        positive = directed.diagonal()
        # its own pair comes with every label, and all but one of these are false matches here
        wanted = torch.logsumexp(directed, 1) + math.log(b) - positive
        torch.testing.assert_close(got, wanted, **TIGHT)


def test_what_a_false_negative_is():
    """Right: one sample's picture and edges with that sample's label, whichever sample the label was taken from."""
    y = torch.tensor([0, 1, 0])
    first, second = torch.tensor([1, 0, 2]), torch.tensor([1, 2, 2])
    kept_picture = [[False, True, False], [True, False, False], [False, False, True]]  # edges first, labels second
    assert false_negatives(0, (first, second), y).tolist() == kept_picture
    assert false_negatives(1, (first, second), y).tolist() == kept_picture
    pairs = (torch.tensor([1, 2, 0]), torch.tensor([1, 0, 0]))  # pictures, edges: the first and last are pairs
    assert false_negatives(2, pairs, y).tolist() == [[False, False, True], [True, False, False], [False, False, True]]


def test_every_modality_has_a_permutation_of_its_own():
    """With a common one all negatives would be pairs of one sample: what is right about them could not be learnt."""
    drawn = []
    original = torch.randperm
    b = 50
    picture, edges, labels, y = triples(b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", lambda *a, **k: drawn.append(original(*a, **k)) or drawn[-1])
        permuted((picture, edges, labels[y]), y, number(1.0), seeded(0))
    assert len(drawn) == 6
    for i, j in product(range(6), repeat=2):
        assert i == j or (drawn[i] == drawn[j]).float().mean() < 0.2


@pytest.mark.parametrize("negatives", ["n", "n_squared"])
@pytest.mark.parametrize("label_anchor", [True, False])
def test_output_contract(negatives, label_anchor):
    loss, batch = loss_of(negatives, label_anchor=label_anchor), batch_of()
    out = loss(batch)
    assert out.total.shape == ()
    assert out.total.requires_grad
    assert out.total.dtype == torch.float64
    assert out.per_sample.shape == (6,)
    assert not out.per_sample.requires_grad
    torch.testing.assert_close(out.per_sample.mean(), out.total.detach(), **TIGHT)
    assert all(type(value) is float for value in out.parts.values())
    assert sum(out.parts[m] for m in ("picture", "edges", "label")) / 3 == pytest.approx(out.total.item())
    out.total.backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("negatives", ["n", "n_squared"])
def test_the_rows_are_normalised_and_nothing_else(negatives):
    """Ten times longer rows before normalisation: the same loss; the product of unit rows stays as it is."""
    loss, batch = loss_of(negatives, label_anchor=True), batch_of()
    before = loss(batch).total
    with torch.no_grad():
        for linear in (loss.picture, loss.edges[-1]):
            linear.weight *= 10
            linear.bias *= 10
        loss.label.weight *= torch.tensor([[2.0], [10.0], [0.5]])
    batch.rng.manual_seed(0)
    torch.testing.assert_close(loss(batch).total, before, **TIGHT)
    batch.rng.manual_seed(0)
    picture, edges, labels = loss._encode(batch.h[:, 0], batch.x[:, 0])
    assert (picture * edges * labels[batch.y]).norm(dim=1).max() < 0.9, "a normalised product would be 1 long"
    rows = picture, edges, labels[batch.y]
    scale = loss.log_scale.exp()
    by_hand = (
        permuted(rows, batch.y, scale, batch.rng)
        if negatives == "n"
        else combined(picture, edges, labels, batch.y, scale)
    )
    torch.testing.assert_close(by_hand.mean(), before, **TIGHT)


@pytest.mark.parametrize("negatives", ["n", "n_squared"])
@pytest.mark.parametrize("classes", [1, 3, 9])
def test_all_labels_are_candidates_for_the_pair(negatives, classes):
    """Each sample's own pair with the label of every sample of the batch; those of its own class are all right."""
    parameters = {"classes": classes, "seed": 2}
    batch = batch_of(8, seed=2, classes=classes)
    ours = loss_of(negatives, **parameters)(batch)
    batch.rng.manual_seed(2)
    paper = loss_of(negatives, label_anchor=True, **parameters)(batch)
    for part in ("picture", "edges"):
        assert ours.parts[part] == pytest.approx(paper.parts[part], abs=1e-12)
    loss = loss_of(negatives, **parameters)
    joint, y = loss.output("joint", batch.h[:, 0], batch.x[:, 0]).tolist(), batch.y.tolist()
    terms = []
    for i in range(8):
        right = sum(math.exp(joint[i][y[j]]) for j in range(8) if y[j] == y[i])
        terms.append(-math.log(right / sum(math.exp(joint[i][y[j]]) for j in range(8))))
    assert ours.parts["label"] == pytest.approx(sum(terms) / 8, abs=1e-10)
    batch.rng.manual_seed(2)
    picture, edges, labels = loss._encode(batch.h[:, 0], batch.x[:, 0])
    scale = loss.log_scale.exp()
    anchors = (
        permuted((picture, edges, labels[batch.y]), batch.y, scale, batch.rng)
        if negatives == "n"
        else combined(picture, edges, labels, batch.y, scale)
    ).detach()
    by_hand = (anchors[0] + anchors[1] + number(terms)) / 3
    torch.testing.assert_close(ours.per_sample, by_hand, **TIGHT)
    torch.testing.assert_close(paper.per_sample, anchors.mean(0), **TIGHT)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), b=st.integers(2, 8))
def test_order_of_the_batch(seed, b):
    """All combinations do not care; permutations are drawn, so each order draws others (see the class)."""
    loss, batch = loss_of("n_squared"), batch_of(b, seed)
    order = torch.randperm(b, generator=seeded(seed))
    one, two = loss(batch), loss(taken(batch, order))
    torch.testing.assert_close(two.per_sample, one.per_sample[order], **TIGHT)
    torch.testing.assert_close(two.total, one.total, **TIGHT)


def test_random_numbers_come_from_the_batch_only():
    loss = loss_of()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = loss(batch_of(seed=3)), loss(batch_of(seed=3))
    assert first.per_sample.tolist() == second.per_sample.tolist()
    torch.testing.assert_close(torch.get_rng_state(), state)
    batch = batch_of(seed=3)
    batch.rng.manual_seed(4)
    assert (loss(batch).per_sample - first.per_sample).abs().max() > 1e-3
    assert (loss(batch).per_sample - first.per_sample).abs().max() > 1e-3, "and others in the next step"


def test_permutations_see_a_fair_part_of_all_combinations():
    """The mean of the negatives' weights over many draws is the share that all combinations give, but for skips."""
    picture, edges, labels, y = triples(8, 3)
    rows, draw = (picture, edges, labels[y]), seeded(0)
    drawn = torch.stack([permuted(rows, y, number(0.0), draw) for _ in range(200)]).exp().mean(0) - 1
    listed = combined(picture, edges, labels, y, number(0.0)).exp() - 1  # at scale 0: numbers of negatives
    torch.testing.assert_close(drawn, 7 * listed / 64, atol=0.35, rtol=0)


@pytest.mark.parametrize("negatives", ["n", "n_squared"])
@pytest.mark.parametrize("spoil", ["equal", "zero", "one class", "zero weights", "flat pictures"])
def test_degenerate_batches_are_finite(negatives, spoil):
    loss, batch = loss_of(negatives), batch_of(classes=3)
    if spoil == "equal":
        batch.h[:], batch.x[:] = batch.h[0].clone(), batch.x[0].clone()
    elif spoil == "zero":
        batch.h[:2] = 0
        batch.x[0] = 0
    elif spoil == "one class":
        batch.y[:] = 1
    elif spoil == "flat pictures":
        batch.x[:] = 0.5
    else:
        for parameter in loss.picture.parameters():
            torch.nn.init.zeros_(parameter)
    batch.h.requires_grad_()
    out = loss(batch)
    out.total.backward()
    assert out.per_sample.isfinite().all()
    for gradient in [batch.h.grad, *(p.grad for p in loss.parameters())]:
        assert gradient.isfinite().all()


@pytest.mark.parametrize("negatives", ["n", "n_squared"])
def test_collapse_is_the_log_of_the_number_of_triples(negatives):
    """All codes equal: each anchor chooses among its right triple and all wrong ones."""
    b, classes = 12, 3
    rows = torch.ones(b, 4, dtype=torch.float64) / 2
    y = torch.arange(b) % classes
    if negatives == "n_squared":
        loss = combined(rows, rows, rows[:classes], y, number(20.0))
        wrong = torch.tensor([b * b - b // classes] * 3, dtype=torch.float64)  # right: own pair, each equal label
        torch.testing.assert_close(loss, (1 + wrong).log()[:, None].expand(3, b), **TIGHT)
    else:
        loss = permuted((rows, rows, rows), y, number(20.0), seeded(0))
        assert loss.max().item() == pytest.approx(math.log(b))
        assert loss.min().item() >= math.log(b - 5)


@pytest.mark.parametrize("negatives", ["n", "n_squared"])
@pytest.mark.parametrize("same", [True, False])
def test_two_samples(negatives, same):
    loss, batch = loss_of(negatives), batch_of(2)
    batch.y[:] = torch.tensor([0, 0 if same else 1])
    out = loss(batch)
    out.total.backward()
    assert out.total.isfinite()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_one_sample_is_an_error():
    with pytest.raises(InputError, match="symile needs at least 2 samples in a batch, got 1"):
        loss_of()(batch_of(1))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"negatives": "all"}, "negatives must be one of n, n_squared"), ({"dim": 0}, "dim must be at least 1")]
    + [({"log_scale": value}, "log_scale must be finite") for value in (math.nan, math.inf)],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        Symile(**parameters)


def test_gradients_agree_with_differences():
    picture, edges, labels, y = (t.requires_grad_() if t.is_floating_point() else t for t in triples(3, 2, 3))
    scale = number(2.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, e, t, s: combined(p, e, t, y, s), (picture, edges, labels, scale))
    assert torch.autograd.gradcheck(
        lambda p, e, t, s: permuted((p, e, t[y]), y, s, seeded(1)), (picture, edges, labels, scale)
    )


class TestOutput:
    def test_joint_is_the_score_of_the_training(self):
        """Row i, column y_i is the positive of the loss; the other columns change the label alone."""
        loss, batch = loss_of(), batch_of()
        joint = loss.output("joint", batch.h[:, 0], batch.x[:, 0])
        picture, edges, labels = loss._encode(batch.h[:, 0], batch.x[:, 0])
        assert joint.shape == (6, 3)
        for i, c in product(range(6), range(3)):
            score = loss.log_scale.exp() * sum(picture[i] * edges[i] * labels[c])
            torch.testing.assert_close(joint[i, c], score, **TIGHT)
        share = batch.y.bincount(minlength=3) / 6
        fits = ((joint + share.log()).argmax(1) == batch.y).double().mean().item()
        assert loss(batch).parts["label_fits_best"] == pytest.approx(fits, abs=1e-6)

    def test_unknown_output(self):
        with pytest.raises(TypeError, match="Symile has no output 'joints'"):
            loss_of().output("joints", torch.zeros(1, 7), torch.zeros(1, 1, 8, 8))
        assert Symile.outputs == ("joint",)

    def test_half_precision_is_computed_in_float32(self):
        loss, batch = loss_of().float(), batch_of(dtype=torch.bfloat16)
        assert loss(batch).total.dtype == torch.float32
        assert loss.output("joint", batch.h[:, 0], batch.x[:, 0]).dtype == torch.float32


class TestEdges:
    def test_a_step_of_one_is_an_edge_of_one(self):
        x = torch.zeros(3, 1, 6, 6, dtype=torch.float64)
        x[0, :, :, 3:] = 1
        x[1, :, 3:, :] = 1
        x[2] = 0.7
        upright, level, flat = sobel(x)[:, 0]
        assert upright[:, 2:4].unique().tolist() == [1.0]
        assert upright[:, [0, 1, 4, 5]].unique().tolist() == [0.0], "no edge where the picture ends"
        torch.testing.assert_close(level, upright.T)
        assert flat.max() < 1e-12

    def test_agrees_with_scipy(self):
        from scipy import ndimage

        x = torch.rand(1, 1, 9, 7, generator=seeded(0), dtype=torch.float64)
        across, down = (ndimage.sobel(x[0, 0].numpy(), axis=axis, mode="nearest") / 4 for axis in (1, 0))
        torch.testing.assert_close(sobel(x)[0, 0], torch.as_tensor(across**2 + down**2).sqrt(), **TIGHT)

    def test_brightness_is_no_edge_and_colour_is_made_grey(self):
        x = torch.rand(2, 3, 8, 8, generator=seeded(0), dtype=torch.float64)
        torch.testing.assert_close(sobel(x + 0.3), sobel(x), **TIGHT)
        torch.testing.assert_close(sobel(x), sobel(x.mean(1, keepdim=True)), **TIGHT)

    @pytest.mark.parametrize("shape", [(28, 28), (8, 8), (32, 32), (5, 5), (1, 1), (30, 17), (64, 64)])
    def test_pictures_of_any_size(self, shape):
        network = edge_network(shape, 10)
        assert network(torch.rand(3, 1, *shape)).shape == (3, 10)
        assert sum(p.numel() for p in network.parameters()) < 30_000


def test_state_goes_on_in_the_same_bits():
    loss = loss_of()
    batch = batch_of(side=8)
    optimiser = torch.optim.SGD(loss.parameters(), lr=0.1)
    loss(batch).total.backward()
    optimiser.step()
    other = loss_of(seed=5)
    other.load_state_dict(loss.state_dict())
    one, two = loss(batch_of(seed=7)), other(batch_of(seed=7))
    assert one.per_sample.tolist() == two.per_sample.tolist()
    assert {name.split(".")[0] for name in loss.state_dict()} == {"log_scale", "picture", "edges", "label"}


def pairwise(rows, scale):
    """Sum of the three symmetric InfoNCE losses: the sheet's baseline."""
    target = torch.arange(len(rows[0]))
    cross = torch.nn.functional.cross_entropy
    losses = []
    for one, two in ((0, 1), (0, 2), (1, 2)):
        logits = scale * rows[one] @ rows[two].T
        losses.append((cross(logits, target) + cross(logits.T, target)) / 2)
    return sum(losses)


def xor_accuracy(seed, contrast, epochs=8):
    """Pick the right c = a XOR b of 8 bits out of 256 by the joint score; three linear maps to 16 numbers.

    For the sheet's single pick among candidates of other samples, this is harder: every code is a candidate.
    """
    draw = seeded(seed)
    torch.manual_seed(seed)
    a, b = (torch.randint(2, (1000, 8), generator=draw) for _ in range(2))
    bits = [2.0 * t - 1 for t in (a, b, a ^ b)]
    code = (a ^ b) @ 2 ** torch.arange(8)
    maps = [torch.nn.Linear(8, 16) for _ in range(3)]
    log_scale = torch.nn.Parameter(torch.tensor(-0.3))
    optimiser = torch.optim.AdamW([log_scale, *(p for m in maps for p in m.parameters())], lr=0.1)
    for _ in range(epochs):
        for rows in torch.randperm(1000, generator=draw).split(100):
            encoded = [unit(m(t[rows])) for m, t in zip(maps, bits, strict=True)]
            loss = contrast(encoded, code[rows], log_scale.exp(), draw)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        every = 2.0 * (torch.arange(256)[:, None] >> torch.arange(8) & 1) - 1
        one, two = (unit(m(t)) for m, t in zip(maps[:2], bits[:2], strict=True))
        candidates = unit(maps[2](every))
        joint = (one * two) @ candidates.T
        paired = one @ candidates.T + two @ candidates.T
    return [(score.argmax(1) == code).float().mean().item() for score in (joint, paired)]


def test_xor_is_seen_by_triples_only():
    """c = a XOR b: every pair is independent, so pairwise contrast learns nothing; the triple gives c away."""
    for seed in range(3):
        joint, _ = xor_accuracy(seed, lambda rows, y, scale, draw: permuted(rows, y, scale, draw).mean())
        _, paired = xor_accuracy(seed, lambda rows, y, scale, draw: pairwise(rows, scale), epochs=4)
        assert joint > 0.5, seed
        assert paired < 0.03, seed


def planted(seed, n=400):
    """Two bits, one in the features and one in the edges; the label is whether they differ, 15 % are wrong."""
    draw = seeded(seed)
    a, b = (torch.randint(2, (n,), generator=draw) for _ in range(2))
    truth = a ^ b
    wrong = torch.rand(n, generator=draw) < 0.15
    y = torch.where(wrong, 1 - truth, truth)
    h = torch.nn.functional.one_hot(a, 2).float() + 0.3 * torch.randn(n, 2, generator=draw)
    stripes = (torch.arange(8) % 4 < 2).float().expand(8, 8)
    x = torch.where(b[:, None, None] == 1, stripes, stripes.T) * 0.6 + 0.1 * torch.rand(n, 8, 8, generator=draw)
    return h, x[:, None], y, truth, wrong


@pytest.mark.parametrize(("negatives", "epochs"), [("n", 12), ("n_squared", 20)])
def test_joint_scores_find_wrong_labels(negatives, epochs):
    """Neither picture nor edges alone tell the label; the joint score tells it, and which labels are wrong."""
    for seed in range(3):
        h, x, y, truth, wrong = planted(seed)
        torch.manual_seed(seed)
        loss = Symile(negatives, dim=16)
        loss.setup(Sizes(features=2, projection=4, classes=2, samples=len(y), shape=(1, 8, 8)))
        optimiser, draw = torch.optim.AdamW(loss.parameters(), lr=1e-2), seeded(seed)
        for _ in range(epochs):
            for rows in torch.randperm(len(y), generator=draw).split(100):
                batch = Batch(z=h[rows][:, None], h=h[rows][:, None], x=x[rows][:, None], y=y[rows], rng=draw)
                optimiser.zero_grad()
                loss(batch).total.backward()
                optimiser.step()
        joint = loss.output("joint", h, x).detach()
        right = joint.argmax(1) == truth
        assert right.float().mean() > 0.9, seed
        margin = joint[torch.arange(len(y)), 1 - y] - joint[torch.arange(len(y)), y]
        above = (margin[wrong][:, None] > margin[~wrong]).float().mean()
        assert above > 0.9, seed
