"""SepCLR: the numbers of its sheet, a slow reference, its traps, and a planted glyph that only targets carry."""

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from chaffinch.base.errors import InputError
from chaffinch.losses.base import Batch, Sizes
from chaffinch.losses.sepclr import SepCLR, align, joint_density, log_kernel, uniformity

TIGHT = {"atol": 1e-10, "rtol": 1e-10}
CROSS = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
FEATURES = 6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(seed=0, **parameters):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loss = SepCLR(**{"size": 4, **parameters})
        loss.setup(Sizes(FEATURES, 8, 3, 100, (1, 4, 4)))
    return loss.double()


def batch_of(h, group):
    return Batch(z=h, h=h, aux={"group": torch.as_tensor(group)})


def mixed(b=7, seed=0):
    group = torch.rand(b, generator=torch.Generator().manual_seed(seed)) < 0.5
    group[0], group[1] = True, False
    return batch_of(3 * normal(b, 2, FEATURES, seed=seed), group.long())


def column(values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def joint(c, s):
    return joint_density(log_kernel(c, 0.5), log_kernel(s, 0.5)).mean().item()


def unif(a):
    return uniformity(log_kernel(a, 0.5)).mean().item()


def codes(loss, batch):
    c = loss.common_projector(loss.common(batch.h))
    return c / c.norm(dim=-1, keepdim=True), loss.salient_projector(loss.salient(batch.h))


def slow(loss, batch):
    """One loss a sample, in plain loops over samples and pairs."""
    with torch.no_grad():
        c, s = (code.tolist() for code in codes(loss, batch))
    group = batch.aux["group"].tolist()
    b, tau = len(group), loss.temperature
    zero = [0.0] * len(s[0][0])

    def distance(one, two):
        return sum((x - y) ** 2 for x, y in zip(one, two, strict=True)) / (2 * tau)

    def shares(rows):
        kernel = [[math.exp(-distance(one, two)) for two in rows] for one in rows]
        own = [sum(kernel[i][j] for j in range(b) if j != i) / (b - 1) for i in range(b)]
        pairs = [kernel[i][j] for i in range(b) for j in range(i + 1, b)]
        mean = sum(pairs) / len(pairs)
        return [math.log(mean) + m / mean - 1 for m in own]

    per_sample = [0.0] * b
    for i in range(b):
        per_sample[i] += distance(c[i][0], c[i][1])
        if group[i] == 1:
            per_sample[i] += loss.beta_s * distance(s[i][0], s[i][1]) * b / group.count(1)
        else:
            pull = (distance(s[i][0], zero) + distance(s[i][1], zero)) / 2
            per_sample[i] += loss.beta_r * pull * b / group.count(0)
    for v in range(2):
        common = [row[v] for row in c]
        teacher = [row[v] if g == 1 else zero for row, g in zip(s, group, strict=True)]
        spread, salient = shares(common), shares(teacher)
        for i in range(b):
            density = sum(
                math.exp(-distance(common[i], common[j]) - distance(teacher[i], teacher[j])) for j in range(b)
            )
            per_sample[i] += spread[i] + loss.beta_s * salient[i] + loss.lam / 2 * math.log(density / b)
    return torch.tensor(per_sample, dtype=torch.float64)


def test_known_uniformity_and_alignment():
    assert unif(CROSS) == pytest.approx(-2.339988612989, abs=1e-11)
    assert unif(CROSS) == pytest.approx(math.log((4 * math.exp(-2) + 2 * math.exp(-4)) / 6), abs=1e-14)
    assert align(CROSS, -CROSS, 0.5).tolist() == [4, 4, 4, 4]


def test_known_joint_entropy():
    still = torch.zeros(4, 2, dtype=torch.float64)
    assert joint(CROSS, still) == pytest.approx(-1.132438339034, abs=1e-11)
    assert joint(still, still) == 0
    assert joint(100 * CROSS, still) == pytest.approx(-1.386294361120, abs=1e-11)


def test_leakage_doubles_the_density():
    c = column([0.0, 0, 3, 3])
    # the cells are 3 apart, which leaves exp(-9) beside the two or four cells
    assert joint(c, c) == pytest.approx(-0.693147165, abs=2e-9)
    assert joint(c, column([0.0, 3, 0, 3])) == pytest.approx(-1.386047557, abs=2e-9)


def test_known_salient_uniformity():
    """Two background zeros and two targets: the teacher rows, here made of a batch whose background is not 0."""
    teacher = torch.tensor([[0.0, 0], [0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    assert unif(teacher) == pytest.approx(-0.833615704135, abs=1e-11)
    loss = built(size=2, beta_s=1.0)
    loss.salient = loss.salient_projector = torch.nn.Identity()
    loss.common = torch.nn.Linear(2, 2).double()
    h = torch.tensor([[5.0, 5], [-3, 1], [1, 0], [0, 1]], dtype=torch.float64)[:, None].expand(-1, 2, -1)
    out = loss(batch_of(h, [0, 0, 1, 1]))
    assert out.parts["salient"] == pytest.approx(2 * -0.833615704135, abs=1e-10)
    assert out.parts["background"] == pytest.approx((50 + 10) / 2, abs=1e-12)
    assert out.parts["salient_norm"] == pytest.approx(1, abs=1e-12)


def test_a_silent_background_costs_nothing():
    loss = built()
    torch.nn.init.zeros_(loss.salient.weight)
    torch.nn.init.zeros_(loss.salient.bias)
    out = loss(mixed())
    assert out.parts["background"] == out.parts["salient_norm"] == 0
    assert out.parts["salient"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("b", [2, 5, 9])
@pytest.mark.parametrize("parameters", [{}, {"temperature": 2.0, "beta_s": 0.3, "beta_r": 7.0, "lam": 0.1}])
def test_slow_reference(b, parameters):
    loss, batch = built(**parameters), mixed(b, seed=b)
    out = loss(batch)
    torch.testing.assert_close(out.per_sample, slow(loss, batch), **TIGHT)
    torch.testing.assert_close(out.total, out.per_sample.mean(), **TIGHT)


def test_output_contract():
    loss = built()
    out = loss(mixed())
    assert out.total.shape == ()
    assert out.total.requires_grad
    assert out.per_sample.shape == (7,)
    assert not out.per_sample.requires_grad
    assert all(type(value) is float for value in out.parts.values())
    weights = {"common": 1, "salient": loss.beta_s, "background": loss.beta_r, "joint": loss.lam}
    weighted = sum(weight * out.parts[name] for name, weight in weights.items())
    assert out.total.item() == pytest.approx(weighted, abs=1e-10)
    assert set(SepCLR.needs) == {"h", "group"}


def test_gradient_of_uniformity_is_a_softmax_over_pairs():
    log_k = log_kernel(normal(5, 3), 0.5).requires_grad_()
    (got,) = torch.autograd.grad(uniformity(log_k).mean(), log_k)
    off = log_k.detach().masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf)
    torch.testing.assert_close(got, off.flatten().softmax(0).view(5, 5), **TIGHT)


def test_gradient_of_the_joint_entropy_is_a_softmax_over_each_row():
    log_c, log_s = log_kernel(normal(5, 3), 0.5).requires_grad_(), log_kernel(normal(5, 2, seed=1), 0.5)
    (got,) = torch.autograd.grad(joint_density(log_c, log_s).mean(), log_c)
    torch.testing.assert_close(got, (log_c.detach() + log_s).softmax(1) / 5, **TIGHT)


def test_autograd_agrees_with_differences():
    loss, batch = built(), mixed(4)
    assert torch.autograd.gradcheck(lambda h: loss(batch_of(h, batch.aux["group"])).total, batch.h.requires_grad_())


def test_kernel_depends_on_distance_over_bandwidth():
    a = normal(5, 3)
    torch.testing.assert_close(log_kernel(2**0.5 * a, 1.0), log_kernel(a, 0.5), **TIGHT)
    torch.testing.assert_close(log_kernel(a, 0.5), -torch.cdist(a, a).square(), **TIGHT)
    assert log_kernel(1e4 * a.float(), 0.5).diagonal().eq(0).all()


def test_the_teacher_passes_gradients_of_targets_only():
    """Uniformity and joint entropy move the salient codes of targets and leave those of the background alone."""
    batch = mixed()
    h, target = batch.h.requires_grad_(), batch.aux["group"] == 1

    def pushed(**weights):
        loss = built(**{"beta_s": 0.0, "beta_r": 0.0, "lam": 0.0, **weights})
        loss.common.requires_grad_(False).weight.zero_()  # nothing but the salient code sees the features
        (gradient,) = torch.autograd.grad(loss(batch).total, h)
        return gradient.flatten(1).norm(dim=1)

    for weights in ({"beta_s": 1.0}, {"lam": 1.0}):
        assert (pushed(**weights)[target] > 1e-6).all()
        assert pushed(**weights)[~target].eq(0).all()
    assert pushed(beta_r=1.0)[target].eq(0).all()
    assert (pushed(beta_r=1.0)[~target] > 1e-6).all()


def test_common_codes_are_normalised_and_salient_ones_are_not():
    def scaled(projector, factor):
        loss = built()
        with torch.no_grad():
            getattr(loss, projector)[-1].weight.mul_(factor)
            if getattr(loss, projector)[-1].bias is not None:
                getattr(loss, projector)[-1].bias.mul_(factor)
        return loss(mixed())

    before = built()(mixed())
    torch.testing.assert_close(scaled("common_projector", 3).per_sample, before.per_sample, **TIGHT)
    after = scaled("salient_projector", 3)
    assert after.parts["salient_norm"] == pytest.approx(3 * before.parts["salient_norm"], rel=1e-10)
    assert after.parts["background"] == pytest.approx(9 * before.parts["background"], rel=1e-10)


@pytest.mark.parametrize("group", [0, 1])
def test_one_group_alone(group):
    loss, h = built(), mixed().h.requires_grad_()
    out = loss(batch_of(h, [group] * 7))
    (gradient,) = torch.autograd.grad(out.total, h)
    assert out.per_sample.isfinite().all()
    assert gradient.isfinite().all()
    if group == 0:
        assert out.parts["salient"] == pytest.approx(0, abs=1e-12)
        assert out.parts["salient_norm"] == 0
    else:
        assert out.parts["background"] == 0


def test_background_pairs_put_a_floor_under_salient_uniformity():
    loss = built()
    with torch.no_grad():
        loss.salient_projector[-1].weight.mul_(1e3)
    batch = batch_of(normal(8, 1, FEATURES).expand(-1, 2, -1), [0, 0, 0, 1, 1, 1, 1, 1])
    assert loss(batch).parts["salient"] == pytest.approx(2 * math.log(3 / 28), abs=1e-9)  # 3 of 28 pairs are at 0


def test_far_codes_saturate_the_joint_entropy():
    s = (30 * normal(5, 3)).requires_grad_()
    density = joint_density(log_kernel(normal(5, 3, seed=1), 0.5), log_kernel(s, 0.5))
    (gradient,) = torch.autograd.grad(density.mean(), s)
    torch.testing.assert_close(density, torch.full_like(density, -math.log(5)))
    assert gradient.abs().max() < 1e-12


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), b=st.integers(2, 8))
def test_permutation_of_samples_and_views(seed, b):
    loss, batch = built(), mixed(b, seed)
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    per_sample = loss(batch).per_sample
    permuted = loss(batch_of(batch.h[order], batch.aux["group"][order]))
    torch.testing.assert_close(permuted.per_sample, per_sample[order], **TIGHT)
    swapped = loss(batch_of(batch.h.flip(1), batch.aux["group"]))
    torch.testing.assert_close(swapped.per_sample, per_sample, **TIGHT)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("bias", [True, False])
def test_collapse_and_zero_rows_are_finite(value, bias):
    loss = built().float()
    if not bias:  # then a zero row of features is a zero row of codes
        for layer in (loss.common, loss.common_projector[0], loss.common_projector[2]):
            torch.nn.init.zeros_(layer.bias)
    h = torch.full((6, 2, FEATURES), value, requires_grad=True)
    out = loss(batch_of(h, [0, 1, 0, 1, 1, 1]))
    gradients = torch.autograd.grad(out.total, [h, *loss.parameters()])
    assert out.per_sample.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    loss, batch = built().float(), mixed()
    h = batch.h.to(dtype)
    out = loss(batch_of(h, batch.aux["group"]))
    assert out.total.dtype == torch.float32
    torch.testing.assert_close(out.total, loss(batch_of(h.float(), batch.aux["group"])).total, atol=0, rtol=0)
    assert loss.output("salient", h[:, 0], None).dtype == torch.float32


def test_float64_stays():
    assert built()(mixed()).total.dtype == torch.float64


def test_projections_and_labels_are_not_used():
    loss, batch = built(), mixed()
    other = Batch(z=normal(7, 2, 3), h=batch.h, y=torch.zeros(7, dtype=torch.long), aux=batch.aux)
    torch.testing.assert_close(loss(other).total, loss(batch).total, atol=0, rtol=0)


def test_outputs_are_the_representations_before_the_projectors():
    loss, h = built(), normal(5, FEATURES)
    assert loss.outputs == ("common", "salient")
    torch.testing.assert_close(loss.output("common", h, None), h @ loss.common.weight.T + loss.common.bias)
    torch.testing.assert_close(loss.output("salient", h, None), h @ loss.salient.weight.T + loss.salient.bias)
    with pytest.raises(TypeError, match="no output 'size'"):
        loss.output("size", h, None)


def test_a_salient_representation_of_zero_is_a_code_of_zero():
    assert built().salient_projector(torch.zeros(1, 4, dtype=torch.float64)).eq(0).all()


def test_default_representations_have_32_entries():
    loss = SepCLR()
    loss.setup(Sizes(128, 128, 7, 100, (1, 28, 28)))
    assert (loss.temperature, loss.beta_s, loss.beta_r, loss.lam) == (0.5, 10, 10, 10)
    for name in loss.outputs:
        assert loss.output(name, torch.zeros(2, 128), None).shape == (2, 32)


def test_state_round_trip():
    loss, other = built(seed=0), built(seed=1)
    assert loss(mixed()).total != other(mixed()).total
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(mixed()).per_sample, loss(mixed()).per_sample, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0), ("beta_s", -1.0), ("beta_r", float("nan")), ("lam", float("inf")), ("size", 0)],
)
def test_bad_parameters(name, value):
    with pytest.raises(InputError, match=f"{name} must be"):
        SepCLR(**{name: value})


def test_bad_batches():
    loss = built()
    with pytest.raises(InputError, match="sepclr needs at least 2 pictures in a batch, got 1"):
        loss(batch_of(normal(1, 2, FEATURES), [0]))
    with pytest.raises(ValueError, match="two views of each sample, got 3"):
        loss(batch_of(normal(4, 3, FEATURES), [0, 0, 1, 1]))
    with pytest.raises(ValueError, match="needs features and the group"):
        loss(Batch(z=normal(4, 2, 3), h=normal(4, 2, FEATURES)))


def planted(seed, n=800):
    """Vectors of one of six classes; those of the target carry one of four glyphs in further coordinates."""
    rng = torch.Generator().manual_seed(seed)
    y, glyph = torch.randint(6, (n,), generator=rng), torch.randint(4, (n,), generator=rng)
    group = torch.randint(2, (n,), generator=rng)
    x = torch.zeros(n, 16)
    x[:, :6] = torch.eye(6)[y]
    x[:, 8:12] = torch.eye(4)[glyph] * group[:, None]
    return x + 0.25 * torch.randn(n, 16, generator=rng), y, glyph, group


@cache
def trained(seed, lam):
    """Accuracies of linear probes on the two representations, and how often a target's salient norm is the larger."""
    torch.set_num_threads(1)
    x, y, glyph, group = planted(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loss = SepCLR(lam=lam, size=6)  # of 16 coordinates: neither code has room for everything
        loss.setup(Sizes(16, 8, 6, len(x), (1, 4, 4)))
        optimiser = torch.optim.AdamW(loss.parameters(), lr=0.01)
        for _ in range(70):
            rows = torch.randint(len(x), (128,))
            views = x[rows][:, None] + 0.3 * torch.randn(128, 2, 16)
            optimiser.zero_grad()
            loss(batch_of(views, group[rows])).total.backward()
            optimiser.step()
    with torch.no_grad():
        features = {name: loss.output(name, x, x).numpy() for name in loss.outputs}

    def probe(name, labels, rows):
        f, known = features[name][rows], labels[rows].numpy()
        half = len(f) // 2
        return LogisticRegression(max_iter=500).fit(f[:half], known[:half]).score(f[half:], known[half:])

    everyone, norm = torch.ones(len(x), dtype=torch.bool), torch.as_tensor(features["salient"]).norm(dim=1)
    return {
        **{f"glyph from {name}": probe(name, glyph, group == 1) for name in loss.outputs},
        **{f"class from {name}": probe(name, y, everyone) for name in loss.outputs},
        "order": (norm[group == 1][:, None] > norm[group == 0]).double().mean().item(),
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_glyph_is_salient_and_the_class_is_common(seed):
    got = trained(seed, 10.0)
    assert got["glyph from salient"] > 0.9
    assert got["glyph from common"] < 0.7  # chance is 0.25
    assert got["class from common"] > got["class from salient"] + 0.15
    assert got["order"] > 0.9


def test_the_joint_entropy_keeps_the_glyph_out_of_the_common_code():
    leaks = [trained(seed, 0.0)["glyph from common"] - trained(seed, 10.0)["glyph from common"] for seed in range(3)]
    assert min(leaks) > 0.05
    assert sum(leaks) / 3 > 0.2
