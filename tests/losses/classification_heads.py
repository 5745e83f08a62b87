"""What the tests of the losses of a classification head share: logits, a gradient, and training on noisy digits."""

import math
from itertools import pairwise

import torch
from sklearn.datasets import load_digits

from chaffinch.losses.base import Batch, Sizes

TIGHT = {"atol": 1e-12, "rtol": 1e-12}
SHEET = (2.0, 0.5, -1.0)
"""The logits whose losses and gradients are known."""
P = (0.785597, 0.175290, 0.039113)
"""Their probabilities."""


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def batch_of(b=6, v=1, c=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(b, v, c, generator=g, dtype=torch.float64)
    return Batch(z=z, y=torch.randint(c, (b,), generator=g), index=torch.randperm(b, generator=g))


def one(logits, y):
    """A batch of one sample."""
    return Batch(z=tensor([[list(logits)]]), y=torch.tensor([y]), index=torch.tensor([0]))


def gradient(loss, batch):
    """With respect to the logits, of the mean."""
    batch.z.requires_grad_()
    return torch.autograd.grad(loss(batch).total, batch.z)[0]


def probabilities(logits):
    """Softmax, in plain loops."""
    exp = [math.exp(z) for z in logits]
    return [e / sum(exp) for e in exp]


def slow(batch, value):
    """One loss a sample: the mean of ``value(p, y)`` over its views, in plain loops."""
    rows = [
        sum(value(probabilities(view), y) for view in views) / len(views)
        for views, y in zip(batch.z.tolist(), batch.y.tolist(), strict=True)
    ]
    return tensor(rows)


def assert_behaves(loss, batch):
    """What a mean over samples keeps: the contract of the output, and any order of samples and views."""
    b, v, _ = batch.z.shape
    out = loss(batch)
    assert out.total.shape == ()
    assert out.per_sample.shape == (b,)
    assert not out.per_sample.requires_grad
    assert all(type(value) is float for value in out.parts.values())
    torch.testing.assert_close(out.total, out.per_sample.mean(), **TIGHT)
    p_y = batch.z.softmax(-1)[torch.arange(b), :, batch.y].mean().item()
    assert math.isclose(out.parts["p_y"], p_y, abs_tol=1e-12)
    order = torch.randperm(b, generator=torch.Generator().manual_seed(1))
    turned = loss(Batch(z=batch.z[order].flip(1), y=batch.y[order], index=batch.index[order]))
    torch.testing.assert_close(turned.per_sample, out.per_sample[order], **TIGHT)


def assert_survives_float32(loss):
    """Sure logits, right and wrong, equal rows and one class: finite, and the gradient too."""
    sure = torch.tensor([[200.0, 0, 0], [-200, 0, 0], [0, 0, 0], [1e4, -1e4, 0], [7, 7, 7]])
    for y in range(3):
        z = sure[:, None].clone().requires_grad_()
        out = loss(Batch(z=z, y=torch.full((5,), y), index=torch.arange(5)))
        (moved,) = torch.autograd.grad(out.total, z)
        assert out.total.dtype == torch.float32
        assert out.per_sample.isfinite().all()
        assert moved.isfinite().all()


def trained(loss, seeds=(0, 1, 2), epochs=60, n=600):
    """Train on digits of which 40 % have a wrong label, never the true one, until cross-entropy knows them by heart.

    An MLP 64-256-256-10 a seed, all trained side by side as one batch; SGD with momentum 0.9.

    Returns:
        (seeds,) accuracy on digits with right labels, and share of the wrong labels that are predicted.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data, s = load_digits(), len(seeds)
    pictures, truth = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    g = torch.Generator().manual_seed(seeds[0])
    rows = torch.stack([torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    x, y = pictures[rows], truth[rows]
    wrong = torch.rand(s, n, generator=g) < 0.4
    given = (y[:, :n] + torch.randint(1, 10, (s, n), generator=g) * wrong) % 10
    widths = (64, 256, 256, 10)
    weights = [
        ((4 * torch.rand(s, before + 1, after, generator=g) - 2) / before**0.5).requires_grad_()
        for before, after in pairwise(widths)
    ]

    def logits(x):
        for weight in weights:
            x = torch.baddbmm(weight[:, :1], x, weight[:, 1:])
            x = x if weight is weights[-1] else x.relu()
        return x

    loss.setup(Sizes(64, 10, 10, s * n, (1, 8, 8)))
    optimiser = torch.optim.SGD(weights, lr=0.1 * s, momentum=0.9)
    own = torch.arange(s)[:, None]
    for _ in range(epochs):
        order = torch.stack([torch.randperm(n, generator=g) for _ in seeds])
        for pick in order.split(100, dim=1):
            z = logits(x[own, pick]).flatten(0, 1)[:, None]
            batch = Batch(z=z, y=given[own, pick].flatten(), index=(own * n + pick).flatten())
            optimiser.zero_grad()
            loss(batch).total.backward()
            optimiser.step()
    with torch.no_grad():
        said = logits(x).argmax(-1)
    torch.set_num_threads(threads)
    right = (said == y)[:, n:].double().mean(1)
    memorised = ((said[:, :n] == given) & wrong).sum(1) / wrong.sum(1)
    return right, memorised
