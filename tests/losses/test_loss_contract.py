"""What every loss that the registry finds must keep, whatever it computes."""

import pytest
import torch

from chaffinch import registry
from chaffinch.base.errors import InputError
from chaffinch.base.methods import find_method, method_options
from chaffinch.losses.base import NEEDS, Batch, ContrastiveLoss, LossOut, Sizes

LOSSES = registry.methods("loss")
B, F, D, C, N, SHAPE = 12, 10, 8, 3, 40, (1, 12, 12)

DRAWS_BY_ROW = {
    slug: "draws numbers row by row, so another order draws others"
    for slug, cls in LOSSES.items()
    if "rng" in cls.needs
}
"""slug -> why permuting the batch does not just permute the losses of the samples."""


@pytest.fixture(params=LOSSES)
def cls(request):
    return LOSSES[request.param]


def made(cls, dtype=torch.float64, seed=0, **options):
    """A loss, set up for the batches of `batch_of`, after its first epoch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = cls(**options)
        loss.setup(Sizes(F, C if "logits" in cls.needs else D, C, N, SHAPE))
    loss = loss.to(dtype)
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(N, F, generator=generator, dtype=dtype)
    y = torch.arange(N) % C
    for epoch in range(100):
        if loss.wants_epoch(epoch):
            loss.on_epoch(features, y, epoch, torch.Generator().manual_seed(2))
            break
    return loss


def batch_of(cls, b=B, seed=0, dtype=torch.float64, alike=None):
    """A batch with exactly what the loss names; ``alike``: every row is this."""
    g = torch.Generator().manual_seed(seed)
    width = C if "logits" in cls.needs else D

    def rows(*shape):
        if alike is not None:
            return torch.full((b, cls.views, *shape), alike, dtype=dtype)
        return torch.randn(b, cls.views, *shape, generator=g, dtype=dtype)

    fields = {
        "y": torch.randint(C, (b,), generator=g),
        "index": torch.randperm(N, generator=g)[:b],
        "h": rows(F).relu(),
        "x": rows(*SHAPE).sigmoid(),
        "rng": torch.Generator().manual_seed(seed + 5),
    }
    extra = {
        "group": (torch.arange(b) % 4 > 0).long(),
        "target": torch.randint(4, (b,), generator=g).to(dtype) * 15,
    }
    aux = {name: value for name, value in extra.items() if name in cls.needs}
    return Batch(z=rows(width), aux=aux, **{name: value for name, value in fields.items() if name in cls.needs})


def leaves(batch):
    """What the encoder made, with gradients on."""
    found = [t for t in (batch.z, batch.h) if t is not None]
    for tensor in found:
        tensor.requires_grad_()
    return found


def test_declaration(cls):
    assert issubclass(cls, ContrastiveLoss)
    assert cls.needs <= NEEDS
    assert not cls.card.finds
    assert cls.views >= 1
    options = method_options(cls)
    assert cls(**options).state_dict().keys() == cls().state_dict().keys()
    assert all(isinstance(value, bool | int | float | str) or value is None for value in options.values())


def test_output(cls):
    batch = batch_of(cls)
    made_from = leaves(batch)
    out = made(cls)(batch)
    assert isinstance(out, LossOut)
    assert out.total.shape == ()
    assert out.total.dtype == torch.float64
    assert out.per_sample.shape == (B,)
    assert not out.per_sample.requires_grad
    assert torch.isfinite(out.per_sample).all()
    assert all(type(value) is float for value in out.parts.values())
    out.total.backward()
    moved = [tensor.grad for tensor in made_from if tensor.grad is not None]
    assert moved, "it must teach the encoder something"
    assert all(torch.isfinite(gradient).all() for gradient in moved)
    assert any((gradient != 0).any() for gradient in moved)


def test_same_batch_same_bits(cls):
    one, other = (made(cls)(batch_of(cls)) for _ in range(2))
    assert torch.equal(one.total, other.total)
    assert torch.equal(one.per_sample, other.per_sample)


def test_single_precision_agrees(cls):
    if "rng" in cls.needs:
        pytest.skip("a float draw is not a rounded double draw")
    batch = batch_of(cls)
    for name in ("z", "h", "x"):
        value = getattr(batch, name)
        setattr(batch, name, None if value is None else value.float())
    single = made(cls).float()(batch).total
    torch.testing.assert_close(single.double(), made(cls)(batch_of(cls)).total, rtol=1e-3, atol=1e-3)


def test_permuting_the_batch_permutes_the_losses(cls):
    if cls.card.slug in DRAWS_BY_ROW:
        pytest.skip(DRAWS_BY_ROW[cls.card.slug])
    order = torch.randperm(B, generator=torch.Generator().manual_seed(3))
    batch, turned = batch_of(cls), batch_of(cls)
    turned.z = turned.z[order]
    for name in ("y", "index", "h", "x"):
        if getattr(turned, name) is not None:
            setattr(turned, name, getattr(turned, name)[order])
    turned.aux = {name: value[order] for name, value in turned.aux.items()}
    out, other = made(cls)(batch), made(cls)(turned)
    torch.testing.assert_close(other.total, out.total, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.per_sample, out.per_sample[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alike", [1.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_finite_at_collapse_and_at_zero(cls, alike, dtype):
    batch = batch_of(cls, alike=alike, dtype=dtype)
    made_from = leaves(batch)
    loss = made(cls, dtype)
    out = loss(batch)
    assert torch.isfinite(out.total)
    out.total.backward()
    for tensor in [*made_from, *loss.parameters()]:
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()


def test_a_projection_of_length_zero_does_not_drown_the_others(cls):
    """Its direction is not known, so it gets no pull; a huge one would stay in the optimiser's memory."""
    batch = batch_of(cls, dtype=torch.float32)
    batch.z[0] = 0
    made_from = leaves(batch)
    loss = made(cls, torch.float32)
    loss(batch).total.backward()
    for tensor in [*made_from, *loss.parameters()]:
        assert tensor.grad is None or tensor.grad.abs().max() < 1e3


def test_one_class_only(cls):
    batch = batch_of(cls)
    if batch.y is None:
        pytest.skip("it looks at no labels")
    batch.y = torch.zeros_like(batch.y)
    made_from = leaves(batch)
    out = made(cls)(batch)
    assert torch.isfinite(out.total)
    if out.total.requires_grad:
        out.total.backward()
    assert all(t.grad is None or torch.isfinite(t.grad).all() for t in made_from)


def refusal(cls, b):
    """What a loss answers to a batch of b samples; None if it takes it."""
    try:
        out = made(cls)(batch_of(cls, b))
    except InputError as error:
        return str(error)
    assert torch.isfinite(out.total)
    assert out.per_sample.shape == (b,)
    return None


@pytest.mark.parametrize("b", [1, 2])
def test_the_smallest_batches(cls, b):
    """It either works or says what it needs, by its own name."""
    said = refusal(cls, b)
    assert said is None or (cls.card.slug in said and "at least" in said)


def test_state_dict_is_all_it_remembers(cls):
    """A training that was cut off goes on in the same bits."""
    loss = made(cls)
    loss(batch_of(cls, seed=1))
    fresh = made(cls, seed=9)
    fresh.load_state_dict(loss.state_dict())
    for module in (loss, fresh):
        module.train()
    for seed in (2, 3):
        assert torch.equal(loss(batch_of(cls, seed=seed)).total, fresh(batch_of(cls, seed=seed)).total)


def test_second_step(cls):
    loss, batch = made(cls), batch_of(cls)
    second = loss.second_parameters()
    if not second:
        with pytest.raises(TypeError, match="no second step"):
            loss.second(batch)
        return
    assert {id(p) for p in second} <= {id(p) for p in loss.parameters()}
    loss.second(batch).backward()
    assert any(p.grad is not None and (p.grad != 0).any() for p in second)


def test_further_features(cls):
    loss = made(cls).eval()
    h, x = torch.rand(5, F, dtype=torch.float64), torch.rand(5, *SHAPE, dtype=torch.float64)
    for name in cls.outputs:
        with torch.inference_mode():
            found = loss.output(name, h, x)
        assert found.shape[0] == 5
        assert found.ndim == 2
        assert torch.isfinite(found).all()
        if name == "joint":
            assert found.shape[1] == C
    with pytest.raises(TypeError, match="no output 'nonsense'"):
        loss.output("nonsense", h, x)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperature(cls, temperature):
    if "temperature" not in method_options(cls):
        pytest.skip("it has none")
    with pytest.raises(InputError, match="temperature"):
        cls(temperature=temperature)


def test_options():
    simclr = find_method("loss", "simclr")
    assert method_options(simclr) == {"temperature": 0.2}
    assert method_options(simclr, {"temperature": "0.5"}) == {"temperature": 0.5}
    with pytest.raises(InputError, match="simclr has no parameter 'temprature'; did you mean temperature"):
        method_options(simclr, {"temprature": 1})
    with pytest.raises(InputError, match="simclr: temperature must be float, got 'warm'"):
        method_options(simclr, {"temperature": "warm"})
    with pytest.raises(InputError, match="no loss called 'simclrr'; did you mean simclr"):
        find_method("loss", "simclrr")
