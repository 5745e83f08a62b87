"""Whitened contrast: the numbers of its sheet, a slow reference, and what whitening does and does not do."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chaffinch.base.errors import InputError
from chaffinch.losses.base import Batch, Sizes
from chaffinch.losses.whitened import Whitened, directions, zca

torch.set_num_threads(1)
TIGHT = {"atol": 1e-9, "rtol": 1e-9}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def features(b=24, v=3, f=12, seed=0):
    """Correlated features with a mean, (B, V, F)."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(f, f, generator=generator, dtype=torch.float64)
    return torch.randn(b, v, f, generator=generator, dtype=torch.float64) @ mix + 3


def make(f=12, groups=4, temperature=0.05, seed=0):
    torch.manual_seed(seed)
    loss = Whitened(temperature, groups)
    loss.setup(Sizes(features=f, projection=f, classes=3, samples=100, shape=(1, 8, 8)))
    return loss.double()


def run(loss, h, seed=0):
    return loss(Batch(z=h, h=h, rng=torch.Generator().manual_seed(seed)))


def whiten(loss, h, seed=0):
    return loss.whiten(h, torch.Generator().manual_seed(seed))[0]


def inverse_root(x, eps=0.0):
    """Symmetric inverse root of the biased covariance, by Newton's iteration for the square root."""
    x = x - x.mean(0)
    covariance = x.T @ x / len(x) + eps * torch.eye(x.shape[1], dtype=x.dtype)
    scale = covariance.trace()
    root, inverse = covariance / scale, torch.eye(x.shape[1], dtype=x.dtype)
    for _ in range(60):
        root, inverse = (root + inverse.inverse()) / 2, (inverse + root.inverse()) / 2
    return inverse / scale.sqrt()


def slow(loss, h, groups, temperature, seed=0):
    """One view, one group, one pair at a time."""
    b, v, f = h.shape
    rng, d = torch.Generator().manual_seed(seed), f // groups
    codes = []
    for view in range(v):
        order = torch.randperm(f, generator=rng).tolist()
        y = torch.zeros(b, f, dtype=h.dtype)
        for group in range(groups):
            channels = order[group * d : (group + 1) * d]
            x = h[:, view, channels]
            y[:, channels] = (x - x.mean(0)) @ inverse_root(x, eps=1e-5)
        codes.append(torch.tanh(y @ loss.head.weight.T + loss.head.bias))
    per_sample = []
    for i in range(b):
        value = 0.0
        for view in range(1, v):
            s = [F.cosine_similarity(codes[0][i], codes[view][j], dim=0).item() / temperature for j in range(b)]
            value += math.log(sum(math.exp(x) for x in s)) - s[i]
        per_sample.append(value)
    return tensor(per_sample)


def test_known_answer_of_a_diagonal_covariance():
    x = tensor([[2, 0], [0, 1], [-2, 0], [0, -1]])
    y, raised = zca(x, eps=0, floor=0)
    root = math.sqrt(2)
    torch.testing.assert_close(y, tensor([[root, 0], [0, root], [-root, 0], [0, -root]]), **TIGHT)
    assert raised.sum() == 0


def test_known_answer_of_a_correlated_covariance():
    x = tensor([[1, 1], [1, 3], [3, 3], [3, 1], [2, 4], [4, 2]])
    y, _ = zca(x, eps=0, floor=0)
    assert y[0].tolist() == pytest.approx([-1.264911064, -1.264911064], abs=1e-9)
    centred = x - x.mean(0)
    matrix = torch.linalg.lstsq(centred, y).solution
    expected = tensor([[0.907354351, 0.041328947], [0.041328947, 0.907354351]])
    torch.testing.assert_close(matrix, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(y.T @ y / 6, torch.eye(2, dtype=torch.float64), **TIGHT)
    torch.testing.assert_close(inverse_root(x), expected, atol=1e-9, rtol=0)


def test_the_root_is_symmetric():
    """ZCA, not PCA: another root of the same covariance whitens too, but turns the axes."""
    x = features(v=1)[:, 0]
    matrix = torch.linalg.lstsq(x - x.mean(0), zca(x)[0]).solution
    torch.testing.assert_close(matrix, matrix.T, atol=1e-6, rtol=1e-6)


def test_one_group_gives_the_mahalanobis_distance():
    x = features(40, 1, 5)[:, 0]
    y, _ = zca(x, eps=0, floor=0)
    centred = x - x.mean(0)
    expected = (centred @ torch.linalg.inv(torch.cov(x.T, correction=0)) * centred).sum(1)
    torch.testing.assert_close(y.square().sum(1), expected, **TIGHT)


def test_as_many_groups_as_features_is_batch_norm():
    h = features()
    got = whiten(make(groups=12), h)
    for view in range(3):
        expected = F.batch_norm(h[:, view], None, None, training=True, eps=1e-5)
        torch.testing.assert_close(got[view], expected, **TIGHT)


def test_one_group_does_not_feel_the_permutation():
    h = features()
    torch.testing.assert_close(whiten(make(groups=1), h, 0), whiten(make(groups=1), h, 1), **TIGHT)


def test_groups_are_white_and_only_they():
    b, f, groups = 200, 12, 4
    h = 1e3 * features(b, 3, f)
    y = whiten(make(groups=groups), h)
    rng = torch.Generator().manual_seed(0)
    for view in range(3):
        order = torch.randperm(f, generator=rng)
        covariance = (y[view].T @ y[view] / b)[order][:, order]
        inside = torch.block_diag(*[torch.ones(3, 3)] * groups).bool()
        torch.testing.assert_close(covariance[inside], torch.eye(f).double()[inside], atol=1e-6, rtol=0)
        assert covariance[~inside].abs().max() > 0.1


def test_views_are_shuffled_and_whitened_apart():
    """Equal views come out different, as extra positives should; other rows of one view leave the others alone."""
    h = features()[:, :1].expand(-1, 3, -1)
    y = whiten(make(groups=4), h)
    for one, two in [(0, 1), (0, 2), (1, 2)]:
        alike = F.cosine_similarity(y[one], y[two]).mean()
        assert 0.3 < alike < 0.99
    changed = torch.cat([h[:, :1], 5 * features(seed=1)[:, 1:]], dim=1)
    torch.testing.assert_close(whiten(make(groups=4), changed)[0], y[0], atol=0, rtol=0)


@pytest.mark.parametrize(("b", "v", "groups"), [(24, 3, 4), (6, 2, 4), (24, 3, 1), (9, 4, 12)])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_slow_reference(b, v, groups, temperature):
    loss, h = make(groups=groups, temperature=temperature), features(b, v)
    out = run(loss, h)
    torch.testing.assert_close(out.per_sample, slow(loss, h, groups, temperature), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(out.total, out.per_sample.mean(), **TIGHT)
    assert out.parts["attract"] + out.parts["repel"] == pytest.approx(out.total.item(), abs=1e-9)


def test_it_is_the_sum_of_two_cross_entropies():
    """Candidates are the pictures of the positive's view only, and only view 1 is an anchor."""
    loss, h = make(), features()
    z = F.normalize(torch.tanh(loss.head(whiten(loss, h))), dim=-1)
    own = torch.arange(24)
    expected = sum(F.cross_entropy(z[0] @ z[view].T / 0.05, own) for view in (1, 2))
    torch.testing.assert_close(run(loss, h).total, expected, **TIGHT)


def test_gradient_treats_the_matrix_as_a_constant():
    x = features(v=1)[:, 0].requires_grad_()
    y, _ = zca(x)
    outer = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (got,) = torch.autograd.grad(y, x, outer)
    with torch.no_grad():
        matrix = torch.linalg.lstsq(x - x.mean(0), y).solution
        through = outer @ matrix.T
    torch.testing.assert_close(got, through - through.mean(0), atol=1e-8, rtol=1e-8)


def test_eigenvalues_are_raised_and_finite():
    x = torch.zeros(20, 4, dtype=torch.float64)
    x[:, 0] = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10
    x[:, 1] = 1e-3 * x[:, 0].roll(1)
    y, raised = zca(x, eps=0)
    assert raised.sum() == 3
    first, second = y.var(0, correction=0)[:2].tolist()
    assert first == pytest.approx(1, abs=1e-4)
    assert second == pytest.approx(0.01, rel=0.1)  # its variance is 1e-6 of the largest, the floor 1e-4
    y, _ = zca(torch.zeros_like(x))
    assert y.abs().max() == 0


@pytest.mark.parametrize(
    ("f", "b", "width"), [(128, 512, 8), (128, 12, 4), (128, 2, 1), (100, 64, 10), (12, 64, 6), (127, 512, 1)]
)
def test_width_of_automatic_groups(f, b, width):
    assert Whitened().width(b, f) == width


def test_groups_wider_than_half_the_batch_are_an_error():
    assert Whitened(groups=1).width(24, 12) == 12
    with pytest.raises(InputError, match=r"groups is 1, so 12 channels .* batch of 23 allows at most 11"):
        run(make(groups=1), features(23))


def test_output_contract():
    out = run(make(), features())
    assert out.total.shape == ()
    assert out.total.requires_grad
    assert out.per_sample.shape == (24,)
    assert not out.per_sample.requires_grad
    assert set(out.parts) == {"attract", "repel", "directions", "raised"}
    assert all(type(value) is float for value in out.parts.values())


def test_same_seed_same_bits():
    h = features().float()
    one, two = (run(make().float(), h).total for _ in range(2))
    assert one.item() == two.item()
    assert run(make().float(), h, seed=1).total.item() != one.item()


@pytest.mark.parametrize("seed", range(3))
def test_permutation_of_samples(seed):
    loss, h = make(), features(seed=seed)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    one, two = run(loss, h), run(loss, h[order])
    torch.testing.assert_close(two.per_sample, one.per_sample[order], atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(two.total, one.total, atol=1e-7, rtol=1e-7)


def test_shift_and_scale_of_all_features():
    loss, h = make(), features()
    torch.testing.assert_close(run(loss, h + 7).total, run(loss, h).total, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(run(loss, 100 * h).total, run(loss, h).total, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_collapse(value):
    """Equal rows are whitened to 0: all codes are equal, and each of the two cross-entropies is log B."""
    h = torch.full((16, 3, 12), value, dtype=torch.float64, requires_grad=True)
    loss = make(groups=0)
    out = run(loss, h)
    assert out.total.item() == pytest.approx(2 * math.log(16), abs=1e-9)
    gradients = torch.autograd.grad(out.total, [h, *loss.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("bias", [True, False])
def test_dead_channels_and_zero_rows_are_finite(bias):
    h = features().float()
    h[:, :, :7] = 0
    h[:3] = 0
    h.requires_grad_()
    loss = make().float()
    if not bias:
        nn.init.zeros_(loss.head.bias)
    out = run(loss, h)
    gradients = torch.autograd.grad(out.total, [h, *loss.parameters()])
    assert out.per_sample.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert out.parts["raised"] > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    h = features().to(dtype)
    out = run(make().float(), h)
    assert out.total.dtype == torch.float32
    torch.testing.assert_close(out.total, run(make().float(), h.float()).total)


def test_directions():
    axes = torch.eye(5).repeat(2, 1) * torch.tensor([1.0, -1.0]).repeat_interleave(5)[:, None]
    assert directions(axes).item() == pytest.approx(5)
    assert directions(torch.outer(torch.arange(9.0), torch.rand(4))).item() == pytest.approx(1, abs=1e-4)
    assert directions(torch.ones(9, 4)).item() == 0


def test_smallest_batch():
    h = features(2).requires_grad_()
    assert run(make(groups=0), h).total.isfinite()
    with pytest.raises(InputError, match="whitened needs at least 2 samples"):
        run(make(groups=0), features(1))


def test_bad_parameters():
    for temperature in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="temperature must be above 0"):
            Whitened(temperature)
    with pytest.raises(InputError, match="groups must be 0 or more, got -1"):
        Whitened(groups=-1)
    with pytest.raises(InputError, match="groups must divide the 12 features evenly, got 5"):
        make(groups=5)


def test_what_a_batch_must_hold():
    h = features()
    with pytest.raises(ValueError, match="features h and a generator"):
        make()(Batch(z=h, h=h))
    with pytest.raises(ValueError, match="at least two views of each sample, got 1"):
        run(make(), features(v=1))


def test_labels_are_not_used():
    h = features()
    full = make()(Batch(z=0 * h, h=h, y=torch.zeros(24), rng=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(full.total, run(make(), h).total, atol=0, rtol=0)


def test_state_goes_on_in_the_same_bits():
    one, two = make(seed=0), make(seed=1)
    assert run(one, features()).total != run(two, features()).total
    two.load_state_dict(one.state_dict())
    assert run(one, features()).total == run(two, features()).total


class Plain(Whitened):
    """The same loss without whitening."""

    card = None

    def whiten(self, h, rng):
        return h.transpose(0, 1), torch.zeros(1)


def train(cls, seed, *, lasting=1.0, passing=0.1, steps=100, f=16):
    """A linear map trained on pictures of ``f`` traits: the first lasts over the views, the second differs in each."""
    g = torch.Generator().manual_seed(seed)
    spread, noise = torch.ones(f), torch.full((f,), 0.1)
    spread[0], noise[1] = lasting, passing
    x = torch.randn(400, f, generator=g) * spread
    torch.manual_seed(seed)
    loss = cls()
    loss.setup(Sizes(f, f, 2, 400, (1, 1, 1)))
    net = nn.Linear(f, f)
    nn.init.orthogonal_(net.weight)
    optimiser = torch.optim.AdamW([*net.parameters(), *loss.parameters()], lr=1e-2)
    for _ in range(steps):
        rows = torch.randint(400, (64,), generator=g)
        h = net(x[rows][:, None] + torch.randn(64, 3, f, generator=g) * noise)
        out = loss(Batch(z=h, h=h, rng=g))
        optimiser.zero_grad()
        out.total.backward()
        optimiser.step()
    return net, x, loss


@pytest.mark.parametrize("seed", range(3))
def test_training_forgets_what_differs_between_views(seed):
    net, _, _ = train(Whitened, seed, passing=2.0)
    gain = net.weight.detach().norm(dim=0)  # how strongly each trait enters the features; all alike before
    assert gain[1] < 0.75 * gain[2:].mean()


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_sees_no_dominant_direction_but_the_features_have_one(seed):
    """A lasting trait of four times the spread: gone from what the loss sees, and so left in the plain features."""
    net, x, loss = train(Whitened, seed, lasting=4.0)
    plain, _, _ = train(Plain, seed, lasting=4.0)
    with torch.no_grad():
        h, without = net(x), plain(x)
        seen = loss.whiten(h[:, None], torch.Generator().manual_seed(0))[0][0]
    assert directions(seen) > 1.5 * directions(h)
    assert directions(h) < 0.8 * directions(without)
