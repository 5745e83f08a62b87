"""Augmentation: in range, from its generator alone, nothing when all is switched off, and what PIL makes of it."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from chaffinch.encoders.augment import _OPERATIONS, Augment, RandAugment, Shift

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


def whole(b=6, c=1, h=20, w=20, seed=0):
    """Pictures whose values are those of bytes."""
    return torch.randint(0, 256, (b, c, h, w), generator=rng(seed)) / 255


def gentle(b=4, c=1, h=20, w=28, seed=0):
    """Pictures without sharp edges, so that interpolation hardly matters."""
    rough = torch.rand(b, c, 5, 7, generator=rng(seed))
    return torch.nn.functional.interpolate(rough, (h, w), mode="bicubic").clamp(0, 1).mul(255).round() / 255


def pil(x):
    """One picture (C, H, W) as PIL has it."""
    bytes_ = (x * 255).round().to(torch.uint8)
    return Image.fromarray((bytes_[0] if len(x) == 1 else bytes_.movedim(0, -1)).numpy())


def back(image):
    array = torch.tensor(np.asarray(image)) / 255
    return array[None] if array.ndim == 2 else array.movedim(-1, 0)


NAMES = (
    "nothing", "shear x", "shear y", "right", "down", "rotate", "brightness", "colour", "contrast", "sharpness",
    "posterise", "solarise", "stretch", "equalise",
)  # fmt: skip


def operate(name, x, m):
    """One operation at m = strength / 30, with its sign."""
    return _OPERATIONS[NAMES.index(name)](x, torch.full((len(x),), float(m))).clamp(0, 1)


class TestShift:
    def test_all_offsets_and_both_directions(self):
        """Every crop of the padded picture, mirrored or not, and nothing else; each as often."""
        x = whole(1, 1, 6, 5).expand(5000, -1, -1, -1)
        views = Shift(pad=2)(x, rng())
        padded = torch.nn.functional.pad(x[:1], (2, 2, 2, 2))[0, 0]
        crops = [padded[i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
        expected = {tuple(c.flatten().tolist()) for crop in crops for c in (crop, crop.flip(1))}
        found = Counter(tuple(v.flatten().tolist()) for v in views)
        assert set(found) == expected
        assert len(expected) == 50
        assert 60 < min(found.values()) <= max(found.values()) < 150

    def test_channels_stay_together(self):
        x = whole(50, 3, 8, 9)
        x[:, 1], x[:, 2] = x[:, 0] / 2, x[:, 0] / 4
        view = Shift()(x, rng())
        assert view.shape == x.shape
        torch.testing.assert_close(view[:, 1], view[:, 0] / 2)
        torch.testing.assert_close(view[:, 2], view[:, 0] / 4)

    def test_pictures_do_not_mix(self):
        x = (torch.arange(1, 31) / 30).view(30, 1, 1, 1).expand(-1, 1, 6, 6)
        view = Shift()(x, rng())
        assert all(set(v.unique().tolist()) <= {0.0, float(x[i, 0, 0, 0])} for i, v in enumerate(view))

    def test_nothing_to_do(self):
        x = whole(4, 3)
        assert torch.equal(Shift(pad=0, flip=0)(x, rng()), x)
        assert torch.equal(Shift(pad=0, flip=1)(x, rng()), x.flip(-1))

    def test_a_padding_wider_than_the_picture(self):
        assert Shift(pad=9)(whole(4, 1, 3, 3), rng()).shape == (4, 1, 3, 3)


class TestOperations:
    """Each against PIL, for either sign, on grey and colour pictures, square and not."""

    @pytest.mark.parametrize("m", [-1.0, -0.3, 0.2, 1.0])
    @pytest.mark.parametrize("c", [1, 3])
    @pytest.mark.parametrize(
        ("name", "enhance"),
        [("brightness", "Brightness"), ("contrast", "Contrast"), ("colour", "Color"), ("sharpness", "Sharpness")],
    )
    def test_enhancements(self, name, enhance, c, m):
        x = whole(c=c)
        inside = slice(1, -1) if name == "sharpness" else slice(None)  # PIL leaves the border as it is
        for picture, view in zip(x, operate(name, x, m), strict=True):
            expected = back(getattr(ImageEnhance, enhance)(pil(picture)).enhance(1 + 0.9 * m))
            difference = (view - expected)[:, inside, inside]
            assert difference.abs().max() < 2.6 / 255  # PIL rounds on the way

    @pytest.mark.parametrize("c", [1, 3])
    def test_stretch(self, c):
        x = 0.2 + 0.5 * whole(c=c)
        for picture, view in zip(x, operate("stretch", x, 0.5), strict=True):
            assert (view - back(ImageOps.autocontrast(pil(picture)))).abs().max() < 2.5 / 255
        assert torch.equal(operate("stretch", torch.full((2, c, 4, 4), 0.3), 0.5), torch.full((2, c, 4, 4), 0.3))

    @pytest.mark.parametrize(("m", "bits"), [(0.0, 8), (0.2, 7), (-0.2, 7), (0.5, 6), (-0.75, 5), (1.0, 4)])
    def test_posterise(self, m, bits):
        x = torch.arange(256).view(1, 1, 16, 16) / 255
        torch.testing.assert_close(operate("posterise", x, m)[0], back(ImageOps.posterize(pil(x[0]), bits)))

    @pytest.mark.parametrize("strength", [1, 3, 7, 15, 29])
    def test_solarise(self, strength):
        x = torch.arange(256).view(1, 1, 16, 16) / 255
        expected = back(ImageOps.solarize(pil(x[0]), 255 * (1 - strength / 30)))
        for sign in (-1, 1):
            torch.testing.assert_close(operate("solarise", x, sign * strength / 30)[0], expected)
        assert torch.equal(operate("solarise", x, 0), x)

    @pytest.mark.parametrize("c", [1, 3])
    def test_equalise_loops(self, c):
        """PIL's rounds to whole steps of the count, which are coarse on small pictures; this is the exact form."""
        x = (0.2 + 0.4 * whole(3, c, 6, 5)).mul(255).round() / 255
        for picture, view in zip(x, operate("equalise", x, 0.5), strict=True):
            for before, after in zip(picture, view, strict=True):
                values = before.flatten().tolist()
                darkest = values.count(min(values))
                for value, found in zip(values, after.flatten().tolist(), strict=True):
                    share = (sum(v <= value for v in values) - darkest) / (len(values) - darkest)
                    assert found == pytest.approx(share, abs=1e-6)

    def test_equalise_is_near_to_pil_on_large_pictures(self):
        x = (whole(2, 1, 200, 200) ** 3).mul(255).round() / 255
        for picture, view in zip(x, operate("equalise", x, 0.5), strict=True):
            assert (view - back(ImageOps.equalize(pil(picture)))).abs().mean() < 0.05

    def test_equalise_leaves_one_value_alone(self):
        x = torch.full((2, 3, 4, 4), 0.3)
        assert torch.equal(operate("equalise", x, 0.5), x)

    @pytest.mark.parametrize("size", [(20, 20), (20, 28)])
    @pytest.mark.parametrize("m", [-1.0, -0.2, 0.2, 1.0])
    @pytest.mark.parametrize("c", [1, 3])
    def test_rotate(self, size, m, c):
        """By 30 m degrees, about the centre, and what is round stays round where the picture is not square."""
        x = gentle(2, c, *size)
        for picture, view in zip(x, operate("rotate", x, m), strict=True):
            turned = [back(pil(picture).rotate(a, Image.Resampling.BILINEAR)) for a in (30 * m, -30 * m)]
            near = [(view - t)[:, 6:-6, 6:-6].abs().max() for t in turned]
            assert min(near) < 0.02
            assert max(near) > 0.05

    @pytest.mark.parametrize("size", [(20, 20), (20, 28)])
    @pytest.mark.parametrize("m", [-1.0, 0.4])
    @pytest.mark.parametrize(("name", "along"), [("shear x", 0), ("shear y", 1)])
    def test_shear(self, name, along, m, size):
        """By 0.3 m pixels a pixel, about the centre."""
        x, (h, w) = gentle(2, 1, *size), size
        s = 0.3 * m
        matrix = (1, s, -s * h / 2, 0, 1, 0) if along == 0 else (1, 0, 0, s, 1, -s * w / 2)
        for picture, view in zip(x, operate(name, x, m), strict=True):
            expected = back(pil(picture).transform((w, h), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))
            assert (view - expected)[:, 5:-5, 5:-5].abs().max() < 0.02

    @pytest.mark.parametrize(("name", "axis"), [("right", 3), ("down", 2)])
    @pytest.mark.parametrize("pixels", [-9, -3, 3, 9])
    def test_translation(self, name, axis, pixels):
        """By 0.45 m of the side; what comes in is black."""
        x = whole(2, 3)
        view = operate(name, x, pixels / (0.45 * 20))
        expected = torch.zeros_like(x)
        kept = 20 - abs(pixels)
        expected.narrow(axis, max(-pixels, 0), kept).copy_(x.narrow(axis, max(pixels, 0), kept))
        torch.testing.assert_close(view, expected, atol=1e-4, rtol=0)

    def test_nothing(self):
        assert torch.equal(operate("nothing", whole(), 0.5), whole())

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("c", [1, 3])
    @pytest.mark.parametrize("extreme", [None, 0.0, 1.0])
    def test_each_in_range_on_any_memory_order_and_each_picture_by_itself(self, name, c, extreme):
        x = whole(6, c, 12, 9) if extreme is None else torch.full((6, c, 12, 9), extreme)
        before = x.clone()
        for m in (-1.0, -0.2, 0.2, 1.0):
            view = operate(name, x.contiguous(memory_format=torch.channels_last), m)
            assert view.shape == x.shape
            assert torch.isfinite(view).all()
            assert view.min() >= 0
            assert view.max() <= 1
            torch.testing.assert_close(operate(name, x[2:3], m), view[2:3], atol=1e-6, rtol=1e-5)
        assert torch.equal(x, before)

    def test_there_are_fourteen(self):
        assert len(_OPERATIONS) == len(NAMES) == 14


class TestRandAugment:
    @pytest.mark.parametrize("c", [1, 3])
    @pytest.mark.parametrize("operations", [1, 3])
    def test_shape_range_and_generator(self, c, operations):
        x, before = whole(200, c, 12, 10), torch.get_rng_state()
        augment = RandAugment(operations, 30)
        one, two, other = augment(x, rng(1)), augment(x, rng(1)), augment(x, rng(2))
        assert one.shape == x.shape
        assert one.dtype == x.dtype
        assert one.min() >= 0
        assert one.max() <= 1
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(x, whole(200, c, 12, 10))

    def test_every_operation_is_drawn_as_often_with_either_sign(self):
        """Without a shift, each view is one of the 14 operations of its picture."""
        x = whole(1, 3, 8, 8).expand(2800, -1, -1, -1)
        views = RandAugment(1, 15, Shift(pad=0, flip=0))(x, rng())
        found = Counter(tuple(v.flatten().mul(1e4).round().tolist()) for v in views)
        expected = {
            tuple(operate(name, x[:1], m)[0].flatten().mul(1e4).round().tolist()): name
            for name in NAMES
            for m in (-0.5, 0.5)
        }
        assert set(found) == set(expected)
        share = Counter()
        for view, count in found.items():
            share[expected[view]] += count
        assert set(share) == set(NAMES)
        assert 140 < min(share.values()) <= max(share.values()) < 260
        signed = [name for name in NAMES if list(expected.values()).count(name) == 2]
        assert len(signed) == 9  # the others have no sign
        for name in signed:
            assert min(found[view] for view, n in expected.items() if n == name) > 60

    def test_no_operation_is_the_shift(self):
        x = whole(30)
        assert torch.equal(RandAugment(0)(x, rng()), Shift()(x, rng()))

    def test_more_strength_changes_more(self):
        x = gentle(300, 1, 12, 12)
        still = Shift(pad=0, flip=0)
        weak, strong = ((RandAugment(1, m, still)(x, rng()) - x).abs().mean() for m in (3, 30))
        assert strong > 2 * weak > 0

    def test_channels_last_pictures(self):
        x = whole(40, 3).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(RandAugment(2, 10)(x, rng()), RandAugment(2, 10)(x.contiguous(), rng()))
