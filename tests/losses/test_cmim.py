"""cMIM: the numbers of its sheet, a slow reference, its decoder for any shape, and what the repulsion does."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from chaffinch.base.errors import InputError
from chaffinch.losses.base import Batch, Sizes
from chaffinch.losses.cmim import CMIM, Decoder, log_normal, repulsion

torch.set_num_threads(1)
TIGHT = {"atol": 1e-10, "rtol": 1e-10}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(f=10, shape=(1, 6, 5), seed=0, **parameters):
    torch.manual_seed(seed)
    loss = CMIM(**{"dim": 4, **parameters})
    loss.setup(Sizes(features=f, projection=f, classes=3, samples=100, shape=shape))
    return loss.double()


def data(b=7, f=10, shape=(1, 6, 5), seed=0):
    """Features (B, 1, F) and pictures (B, 1, channels, height, width)."""
    return draw(b, 1, f, seed=seed), draw(b, 1, *shape, seed=seed + 1).sigmoid()


def run(loss, h, x, seed=0):
    return loss(Batch(z=h, h=h, x=x, rng=torch.Generator().manual_seed(seed)))


def slow(loss, h, x, seed=0):
    """One picture, one pixel, one pair at a time: reconstruction, contrast, log q, log P."""
    noise = torch.randn(len(h), loss.dim, generator=torch.Generator().manual_seed(seed), dtype=h.dtype).tolist()
    codes, terms = [], []
    for i in range(len(h)):
        mu = loss.mu(h[i, 0]).tolist()
        log_scale = [max(value, loss.min_log_scale) for value in loss.log_scale(h[i, 0]).tolist()]
        code = [m + math.exp(s) * e for m, s, e in zip(mu, log_scale, noise[i], strict=True)]
        log_q = log_p = 0.0
        for z, m, s in zip(code, mu, log_scale, strict=True):
            log_q += -0.5 * ((z - m) / math.exp(s)) ** 2 - s - 0.5 * math.log(2 * math.pi)
            log_p += -0.5 * z * z - 0.5 * math.log(2 * math.pi)
        chances = loss.decoder(tensor([code]))[0].sigmoid().flatten().tolist()
        rebuilt = 0.0
        for pixel, p in zip(x[i, 0].flatten().tolist(), chances, strict=True):
            rebuilt -= pixel * math.log(p) + (1 - pixel) * math.log(1 - p)
        codes.append(code)
        terms.append([rebuilt, 0.0, log_q, log_p])
    for i, one in enumerate(codes):
        others = 0.0
        for j, two in enumerate(codes):
            if j != i:
                dot = sum(a * b for a, b in zip(one, two, strict=True))
                others += math.exp(dot / (math.hypot(*one) * math.hypot(*two)) / loss.temperature) / (len(codes) - 1)
        own = math.exp(1 / loss.temperature)
        terms[i][1] = -math.log(own / (own + others))
    return tensor(terms).T


@pytest.mark.parametrize(
    ("temperature", "values"),
    [
        (1.0, [-0.224428615, -0.313261688, -0.224428615]),
        (0.1, [-2.2700738e-5, -4.5398899e-5, -2.2700738e-5]),
    ],
)
def test_known_answer_of_the_contrast(temperature, values):
    got = -repulsion(tensor([[1, 0], [0, 1], [-1, 0]]), temperature)
    assert got.tolist() == pytest.approx(values, abs=1e-9 if temperature == 1 else 1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("b", [2, 5, 50])
def test_equal_codes_cost_log_two(temperature, b):
    """A mean over the negatives; with their sum it would be log B."""
    z = torch.ones(b, 3, dtype=torch.float64)
    torch.testing.assert_close(repulsion(z, temperature), torch.full((b,), math.log(2), dtype=z.dtype), **TIGHT)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_two_opposite_codes(temperature):
    got = repulsion(tensor([[1, 0], [-3, 0]]), temperature)
    assert got.tolist() == pytest.approx([math.log1p(math.exp(-2 / temperature))] * 2, abs=1e-12)


def test_known_answer_of_the_densities():
    """z = .5, mu = .4, sigma = .2; log q counts with the sign of log P, or the answer would be 1.609437912."""
    log_q = log_normal(tensor([[0.5]]), tensor([[math.log(0.2)]])).item()
    log_p = log_normal(tensor([[0.5]]), 0.0).item()
    assert log_q == pytest.approx(0.565499379, abs=1e-9)
    assert log_p == pytest.approx(-1.043938533, abs=1e-9)
    assert -0.5 * (log_q + log_p) == pytest.approx(0.239219577, abs=1e-9)
    assert log_q - log_p == pytest.approx(1.609437912, abs=1e-9)


@pytest.mark.parametrize("copies", [1, 4, 64])
def test_the_number_of_negatives_does_not_count(copies):
    """The anchor's own cosine must not be among the negatives, whatever their number."""
    anchor, negatives = draw(1, 6), draw(5, 6, seed=1)
    z = torch.cat([anchor, negatives.repeat(copies, 1)])
    torch.testing.assert_close(repulsion(z, 0.5)[0], repulsion(torch.cat([anchor, negatives]), 0.5)[0], **TIGHT)
    cosine = F.cosine_similarity(anchor, negatives) / 0.5
    assert repulsion(z, 0.5)[0] == pytest.approx(math.log1p(cosine.exp().mean().item() / math.exp(2)), abs=1e-12)


def test_contrast_feels_the_angle_only():
    z = draw(6, 4).requires_grad_()
    each = tensor([[3.0], [1], [0.1], [1], [7], [1]])
    torch.testing.assert_close(repulsion(each * z, 0.3), repulsion(z, 0.3), **TIGHT)
    (gradient,) = torch.autograd.grad(repulsion(z, 0.3).sum(), z)
    assert gradient.norm() > 1e-3
    torch.testing.assert_close((gradient * z).sum(1), torch.zeros(6).double(), **TIGHT)


def test_contrast_gradient_agrees_with_differences():
    assert torch.autograd.gradcheck(lambda z: repulsion(z, 0.5), draw(4, 3).requires_grad_())


@pytest.mark.parametrize("b", [2, 7])
@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 4, 4)])
@pytest.mark.parametrize(("temperature", "floor"), [(0.1, -6.0), (1.0, 0.1)])
def test_slow_reference(b, shape, temperature, floor):
    loss = make(shape=shape, temperature=temperature, min_log_scale=floor)
    h, x = data(b, shape=shape)
    out = run(loss, h, x)
    rebuilt, contrast, log_q, log_p = slow(loss, h, x)
    torch.testing.assert_close(out.per_sample, rebuilt + contrast - 0.5 * (log_q + log_p), **TIGHT)
    torch.testing.assert_close(out.total, out.per_sample.mean(), **TIGHT)
    names = ("reconstruction", "contrast", "log_q", "log_prior")
    assert [out.parts[n] for n in names] == pytest.approx([t.mean().item() for t in (rebuilt, contrast, log_q, log_p)])


def test_output_contract():
    out = run(make(), *data())
    assert out.total.shape == ()
    assert out.total.requires_grad
    assert out.per_sample.shape == (7,)
    assert not out.per_sample.requires_grad
    assert all(type(value) is float for value in out.parts.values())


def test_every_pixel_counts_in_full():
    """The sum over the pixels, not their mean: a picture of four times the pixels costs four times as much."""
    costs = []
    for side in (8, 16):
        loss = make(shape=(1, side, side))
        nn.init.zeros_(loss.decoder.emit.weight)
        nn.init.zeros_(loss.decoder.emit.bias)
        costs.append(run(loss, *data(shape=(1, side, side))).parts["reconstruction"])
    assert costs == pytest.approx([64 * math.log(2), 256 * math.log(2)])


def test_densities_gradient_can_be_divided():
    """The value stays; the gradient of the densities, and of nothing else, is divided by D."""
    h, x = data()
    plain, divided = make(), make(normalise_gradient=True)
    one, two = run(plain, h, x), run(divided, h, x)
    assert one.total.item() == two.total.item()

    wanted = [plain.mu.weight, plain.log_scale.weight]
    full = torch.autograd.grad(one.total, wanted)
    log_scale = plain.log_scale(h[:, 0])
    noise = draw(7, 4)
    z = plain.mu(h[:, 0]) + log_scale.exp() * noise
    densities = -0.5 * (log_normal(noise, log_scale) + log_normal(z, 0.0)).mean()
    part = torch.autograd.grad(densities, wanted)
    got = torch.autograd.grad(two.total, [divided.mu.weight, divided.log_scale.weight])
    for a, b, c in zip(got, full, part, strict=True):
        torch.testing.assert_close(a, b - c * 3 / 4, **TIGHT)


@settings(max_examples=15, deadline=None)
@given(channels=st.sampled_from([1, 3]), height=st.integers(1, 70), width=st.integers(1, 70))
def test_decoder_fits_any_shape(channels, height, width):
    decoder = Decoder(3, (channels, height, width))
    assert decoder(torch.zeros(2, 3)).shape == (2, channels, height, width)
    b, length = decoder.pooled(torch.zeros(2, 3)).shape
    assert b == 2
    assert 16 <= length <= 256
    assert max(decoder.grid) <= 8


def test_outputs():
    loss, (h, x) = make(shape=(1, 28, 28)), data(shape=(1, 28, 28))
    mu = loss.output("mu", h[:, 0], x[:, 0])
    torch.testing.assert_close(mu, loss.mu(h[:, 0]))
    informative = loss.output("informative", h[:, 0], x[:, 0])
    assert informative.shape == (7, 256)
    assert (informative >= 0).all()
    torch.testing.assert_close(informative, loss.output("informative", h[:, 0], 0 * x[:, 0]))
    # the very activations that the picture is made from: 16 channels, the first cell is the upper left corner
    hidden = loss.decoder.hidden(mu)
    torch.testing.assert_close(informative.view(7, 16, 4, 4)[:, :, 0, 0], hidden[:, :, :4, :4].mean((2, 3)))
    torch.testing.assert_close(loss.decoder.emit(hidden), loss.decoder(mu))
    with pytest.raises(TypeError, match="no output 'other'"):
        loss.output("other", h[:, 0], x[:, 0])


def test_same_seed_same_bits():
    h, x = data()
    assert run(make(), h, x).total.item() == run(make(), h, x).total.item()
    assert run(make(), h, x, seed=1).total.item() != run(make(), h, x).total.item()


def test_permutation_of_samples():
    """Up to the noise, which is drawn in the order of the batch: here its scale is e^-40."""
    loss, (h, x) = make(min_log_scale=-40), data()
    nn.init.constant_(loss.log_scale.bias, -99.0)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    noise = draw(7, 4)
    own = 0.25 * noise.square().sum(1)  # the part of -log q / 2 that the noise is
    one, two = run(loss, h, x), run(loss, h[order], x[order])
    torch.testing.assert_close(two.per_sample - own, (one.per_sample - own)[order], **TIGHT)
    torch.testing.assert_close(two.total, one.total, **TIGHT)
    assert one.parts["at_floor"] == 1


@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("scale", [-99.0, 0.0])
def test_collapse_and_zero_rows_are_finite(fill, scale):
    loss, (h, x) = make().float(), data()
    nn.init.zeros_(loss.mu.bias)
    nn.init.zeros_(loss.log_scale.weight)
    nn.init.constant_(loss.log_scale.bias, scale)
    h = torch.full_like(h, fill).float().requires_grad_()
    out = run(loss, h, torch.full_like(x, fill).float())
    gradients = torch.autograd.grad(out.total, [h, *loss.parameters()])
    assert out.per_sample.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_codes_of_zero_are_finite():
    z = torch.zeros(5, 3, requires_grad=True)
    cost = repulsion(z, 0.05).sum()
    (gradient,) = torch.autograd.grad(cost, z)
    assert cost.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    h, x = (value.to(dtype) for value in data())
    out = run(make().float(), h, x)
    assert out.total.dtype == torch.float32
    torch.testing.assert_close(out.total, run(make().float(), h.float(), x.float()).total)


def test_smallest_batch():
    assert run(make(), *data(2)).total.isfinite()
    with pytest.raises(InputError, match="cmim needs at least 2 samples"):
        run(make(), *data(1))


def test_bad_parameters():
    for temperature in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="temperature must be above 0"):
            CMIM(temperature)
    with pytest.raises(InputError, match="dim must be 1 or more, got 0"):
        CMIM(dim=0)
    for floor in (float("nan"), -float("inf")):
        with pytest.raises(InputError, match="min_log_scale must be finite"):
            CMIM(min_log_scale=floor)


def test_what_a_batch_must_hold():
    h, x = data()
    with pytest.raises(ValueError, match="the features h, the pictures x and a generator"):
        make()(Batch(z=h, h=h, x=x))


def test_labels_and_projections_are_not_used():
    h, x = data()
    full = make()(Batch(z=0 * h, h=h, x=x, y=torch.zeros(7), rng=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(full.total, run(make(), h, x).total, atol=0, rtol=0)


def test_state_goes_on_in_the_same_bits():
    one, two = make(seed=0), make(seed=1)
    assert run(one, *data()).total != run(two, *data()).total
    two.load_state_dict(one.state_dict())
    assert run(one, *data()).total == run(two, *data()).total


def test_without_pictures_the_noise_dies_and_the_codes_go_to_zero():
    """A decoder that says the same whatever the code: the densities alone drive log sigma to its floor, mu to 0."""
    loss, (h, x) = make(shape=(1, 2, 2), temperature=1e9), data(shape=(1, 2, 2))
    nn.init.zeros_(loss.decoder.emit.weight)
    optimiser = torch.optim.Adam([*loss.mu.parameters(), *loss.log_scale.parameters()], lr=0.1)
    noise = torch.Generator().manual_seed(0)
    for _ in range(250):
        out = loss(Batch(z=h, h=h, x=x, rng=noise))
        optimiser.zero_grad()
        out.total.backward()
        optimiser.step()
    assert out.parts["at_floor"] == 1
    assert loss.output("mu", h[:, 0], x[:, 0]).abs().max() < 0.01


def crowding(seed, temperature):
    """Train on six kinds of 2 x 2 pictures with codes of length 3; share of foreign pairs with a cosine above .7."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(240) % 6
    x = 0.5 + 0.2 * torch.randn(6, 1, 2, 2, generator=g)[y] + 0.02 * torch.randn(240, 1, 2, 2, generator=g)
    x = x.clamp(0, 1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 32), nn.ReLU())
    loss = CMIM(temperature, dim=3)
    loss.setup(Sizes(32, 32, 6, 240, (1, 2, 2)))
    optimiser = torch.optim.AdamW([*net.parameters(), *loss.parameters()], lr=1e-2)
    for _ in range(100):
        rows = torch.randint(240, (48,), generator=g)
        h = net(x[rows])[:, None]
        out = loss(Batch(z=h, h=h, x=x[rows][:, None], rng=g))
        optimiser.zero_grad()
        out.total.backward()
        optimiser.step()
    with torch.no_grad():
        mu = F.normalize(loss.output("mu", net(x), x), dim=1)
    return ((mu @ mu.T)[y[:, None] != y] > 0.7).float().mean().item()


def test_kinds_are_less_crowded_than_without_the_contrast():
    """At a huge temperature the contrast is the constant log 2: the plain mutual information machine."""
    spread = [crowding(seed, 0.1) for seed in range(3)]
    plain = [crowding(seed, 1e6) for seed in range(3)]
    assert sum(spread) < 0.6 * sum(plain)


def test_pictures_are_rebuilt():
    """Training tells the codes of two kinds of picture apart, and the decoder draws each."""
    torch.manual_seed(0)
    x = torch.zeros(16, 1, 8, 8)
    x[:8, :, :4] = 1
    x[8:, :, :, :4] = 1
    net, loss = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU()), CMIM(dim=4)
    loss.setup(Sizes(16, 16, 2, 16, (1, 8, 8)))
    optimiser = torch.optim.AdamW([*net.parameters(), *loss.parameters()], lr=1e-2)
    g = torch.Generator().manual_seed(0)
    for _ in range(150):
        h = net(x)[:, None]
        out = loss(Batch(z=h, h=h, x=x[:, None], rng=g))
        optimiser.zero_grad()
        out.total.backward()
        optimiser.step()
    with torch.no_grad():
        drawn = loss.decoder(loss.output("mu", net(x), x)).sigmoid()
    assert (drawn - x).abs().mean() < 0.05
