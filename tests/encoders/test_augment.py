"""Augmentation: in range, from its generator alone, and nothing when everything is switched off."""

import pytest
import torch

from chaffinch.encoders.augment import Augment

STILL = Augment(crop=(1, 1), ratio=1, flip=0, jitter=0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(b=16, c=1, h=12, w=12, seed=0):
    return torch.rand(b, c, h, w, generator=rng(seed))


@pytest.mark.parametrize("shape", [(16, 1, 12, 12), (3, 3, 9, 14)])
def test_shape_and_range(shape):
    x = (pictures(*shape) > 0.5).float()  # the hardest case for the range: only 0 and 1
    view = Augment(jitter=0.9)(x, rng())
    assert view.shape == x.shape
    assert view.dtype == x.dtype
    assert view.min() >= 0
    assert view.max() <= 1
    assert view.std() > 0


def test_generator_decides_alone():
    x, before = pictures(), torch.get_rng_state()
    one, two, other = Augment()(x, rng(1)), Augment()(x, rng(1)), Augment()(x, rng(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    generator = rng(1)
    assert torch.equal(Augment()(x, generator), one)
    assert not torch.equal(Augment()(x, generator), one)  # a second view is another one


def test_given_pictures_are_left_alone():
    x = pictures()
    Augment()(x, rng())
    assert torch.equal(x, pictures())


def test_every_sample_is_augmented_by_itself():
    x = pictures(1).expand(16, -1, -1, -1).contiguous()
    views = Augment()(x, rng())
    assert len({tuple(v.flatten().tolist()) for v in views}) == 16


@pytest.mark.parametrize("shape", [(4, 1, 12, 12), (4, 3, 9, 14)])
def test_identity(shape):
    x = pictures(*shape)
    torch.testing.assert_close(STILL(x, rng()), x, atol=1e-5, rtol=0)


def test_flip_only():
    x = pictures()
    always = Augment(crop=(1, 1), ratio=1, flip=1, jitter=0)(x, rng())
    torch.testing.assert_close(always, x.flip(-1), atol=1e-5, rtol=0)
    half = Augment(crop=(1, 1), ratio=1, flip=0.5, jitter=0)(pictures(400), rng())
    mirrored = (half - pictures(400).flip(-1)).abs().amax((1, 2, 3)) < 1e-4
    same = (half - pictures(400)).abs().amax((1, 2, 3)) < 1e-4
    assert (mirrored ^ same).all()
    assert 0.4 < mirrored.float().mean() < 0.6


def test_crop_keeps_the_share_it_says():
    """On a horizontal ramp the range of values seen is the width of the crop; likewise upright."""
    n, b = 64, 500
    ramp = ((torch.arange(n) + 0.5) / n).expand(b, 1, n, n).contiguous()
    crop = Augment(crop=(0.25, 0.64), flip=0, jitter=0)
    wide = crop(ramp, rng())
    tall = crop(ramp.transpose(-1, -2).contiguous(), rng())
    width = (wide.amax((1, 2, 3)) - wide.amin((1, 2, 3))) * n / (n - 1)
    height = (tall.amax((1, 2, 3)) - tall.amin((1, 2, 3))) * n / (n - 1)
    area = width * height
    assert area.min() > 0.24
    assert area.max() < 0.66
    assert area.max() - area.min() > 0.3
    assert (width / height).max() < 4 / 3 + 0.05
    assert (width / height).min() > 3 / 4 - 0.05
    for view in (wide, tall):  # the place of the crop varies too
        middle = (view.amax((1, 2, 3)) + view.amin((1, 2, 3))) / 2
        assert middle.std() > 0.05
        assert abs(middle.mean() - 0.5) < 0.03


def test_jitter_only_changes_brightness_and_contrast():
    x = 0.4 + 0.2 * pictures()
    view = Augment(crop=(1, 1), ratio=1, flip=0, jitter=0.4)(x, rng())
    for before, after in zip(x, view, strict=True):
        slope, _ = torch.linalg.lstsq(
            torch.stack([before.flatten(), torch.ones(before.numel())], 1), after.flatten()[:, None]
        ).solution.flatten().tolist()  # fmt: skip
        assert 0.6**2 <= slope <= 1.4**2
        correlation = torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]
        assert correlation > 0.999
    factor = view.mean((1, 2, 3)) / x.mean((1, 2, 3))
    assert 0.6 <= factor.min() < 0.8
    assert 1.2 < factor.max() <= 1.4
