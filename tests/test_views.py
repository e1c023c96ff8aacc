"""Views beside torchvision's transforms: equal at given parameters, and drawn from the same distributions."""

from __future__ import annotations

import colorsys
import random
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp, kstest
from torch import Tensor
from torchvision.transforms.v2 import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from zoo import views
from zoo.views import image

TURNS = (-0.5, -0.37, -1 / 6, -0.1, 0.0, 0.03, 1 / 3, 0.49, 0.5)
FACTORS = (0.0, 0.2, 0.6, 1.0, 1.4, 1.8, 3.0)
LEAST_P = 1e-3  # seeds are fixed: a distribution that passes once passes always


def pictures(count: int, size: int | tuple[int, int] = 32, channels: int = 3, seed: int = 0) -> Tensor:
    """uint8 (count, channels, H, W): smooth shapes under noise; the first five are black, white, red, a grey ramp and
    pure hues.
    """
    height, width = (size, size) if isinstance(size, int) else size
    draw = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.interpolate(
        torch.rand(count, channels, 4, 4, generator=draw), (height, width), mode="bicubic"
    )
    x = (x + 0.1 * torch.randn(x.shape, generator=draw)).clamp(0, 1)
    if count >= 5:
        x[0], x[1], x[2], x[2, 0], x[3] = 0, 1, 0, 1, torch.linspace(0, 1, width)
        x[4] = torch.rand(x[4].shape, generator=draw).round()
    return (255 * x).round().to(torch.uint8)


def worst(ours: Tensor, theirs: list[Tensor]) -> float:
    assert (
        ours.dtype == torch.float32 and ours.shape == torch.stack(theirs).shape and 0 <= ours.min() and ours.max() <= 1
    )
    return float((ours - torch.stack(theirs)).abs().max())


# ---- with given parameters: torchvision's, image by image ----------------------------------------


def some_boxes(count: int, height: int, width: int) -> tuple[Tensor, ...]:
    """Boxes of every size, from one pixel to the whole image."""
    draw = torch.Generator().manual_seed(height + width)
    h, w = (1 + (torch.rand(count, generator=draw) * side).long() for side in (height, width))
    h[0], w[0], h[1], w[1], h[2], w[2] = height, width, 1, 1, height, 1
    top, left = (
        (torch.rand(count, generator=draw) * (side - box + 1)).long() for side, box in ((height, h), (width, w))
    )
    return top.float(), left.float(), h.float(), w.float()


@pytest.mark.parametrize("out", [28, 32, 64, (20, 36), 1])
@pytest.mark.parametrize("size", [28, 32, 64, (48, 33)], ids=str)
def test_crop_resize_is_torchvisions(size, out):
    x = views.to_float(pictures(60, size))
    boxes = some_boxes(60, *x.shape[-2:])
    flip = torch.arange(60) % 2 == 1
    theirs = [
        tv.resized_crop(image, *map(int, box), size=[out, out] if isinstance(out, int) else list(out), antialias=True)
        for image, *box in zip(x, *boxes, strict=True)
    ]
    assert worst(views.crop_resize(x, *boxes, out), theirs) < 1e-5
    theirs = [tv.horizontal_flip(image) if mirrored else image for image, mirrored in zip(theirs, flip, strict=True)]
    assert worst(views.crop_resize(x, *boxes, out, flip=flip), theirs) < 1e-5
    assert worst(views.crop_resize(x[:, :1], *boxes, out, flip=flip), [image[:1] for image in theirs]) < 1e-5


@pytest.mark.parametrize("size", [16, 28, 32, 50, (24, 40)], ids=str)
def test_resize_is_torchvisions(size):
    x = views.to_float(pictures(8, 32)) * 200 - 100  # maps too, whose values aren't in [0, 1]
    theirs = torch.stack(
        [tv.resize(image, [size, size] if isinstance(size, int) else list(size), antialias=True) for image in x]
    )
    torch.testing.assert_close(views.resize(x, size), theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (views.adjust_brightness, tv.adjust_brightness, FACTORS),
        (views.adjust_contrast, tv.adjust_contrast, FACTORS),
        (views.adjust_saturation, tv.adjust_saturation, FACTORS),
        (views.adjust_hue, tv.adjust_hue, TURNS),
    ],
    ids=["bright", "contrast", "saturation", "hue"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_torchvisions(ours, theirs, values, channels):
    x = views.to_float(pictures(12 * len(values), 32, channels))
    value = torch.tensor(values).repeat(
        12
    )  # 12 and the number of values share no divisor with 5: each special image, several values
    assert worst(ours(x, value), [theirs(image, float(v)) for image, v in zip(x, value, strict=True)]) < 1e-5


def test_hue_of_every_colour_is_torchvisions():
    """All colours of eleven levels: grey ones, and those in which two channels tie for the most or the least."""
    level = torch.linspace(0, 1, 11)
    x = torch.cartesian_prod(level, level, level).T.reshape(1, 3, 11, 121)
    turn = torch.tensor(TURNS)
    assert (
        worst(views.adjust_hue(x.expand(len(turn), -1, -1, -1), turn), [tv.adjust_hue(x[0], float(t)) for t in turn])
        < 1e-5
    )


@pytest.mark.parametrize(("size", "kernel"), [(28, 3), (32, 3), (32, 5), (64, 7), ((20, 33), 9), (5, 9)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_torchvisions(size, kernel, channels):
    x = views.to_float(pictures(12, size, channels))
    sigma = torch.tensor([0.1, 0.3, 0.5, 1.0, 1.5, 2.0]).repeat(2)
    theirs = [tv.gaussian_blur(image, [kernel, kernel], [float(s)]) for image, s in zip(x, sigma, strict=True)]
    assert worst(views.gaussian_blur(x, sigma, kernel), theirs) < 1e-5


@pytest.mark.parametrize("threshold", [0.0, 128 / 255, 0.5, 1.0])
def test_solarize_is_torchvisions(threshold):
    x = views.to_float(pictures(6))
    assert worst(views.solarize(x, threshold), [tv.solarize(image, threshold) for image in x]) < 1e-6


def test_grayscale_is_torchvisions():
    x = views.to_float(pictures(12))
    assert (
        worst(views.random_grayscale(x, 1.0), [tv.rgb_to_grayscale(image, num_output_channels=3) for image in x]) < 1e-6
    )
    assert worst(views.luminance(x), [tv.rgb_to_grayscale(image) for image in x]) < 1e-6


# ---- the distributions of what is drawn ----------------------------------------------------------


def torchvisions_boxes(count: int, height: int, width: int, scale, ratio) -> Tensor:
    crop, image = RandomResizedCrop(8, scale=scale, ratio=ratio), torch.empty(3, height, width)
    drawn = [crop.make_params([image]) for _ in range(count)]
    return torch.tensor([[box[key] for box in drawn] for key in ("top", "left", "height", "width")]).float()


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (64, 64, (0.2, 1.0), (3 / 4, 4 / 3)),
        (224, 224, (0.08, 1.0), (3 / 4, 4 / 3)),
        (40, 72, (0.3, 0.9), (0.4, 2.5)),
        (100, 50, (0.05, 1.0), (1.0, 3.0)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale, ratio):
    torch.manual_seed(0)
    theirs = torchvisions_boxes(3000, height, width, scale, ratio)
    ours = torch.stack(views.random_boxes(30_000, height, width, scale, ratio, torch.device("cpu")))
    for name, of in {
        "top": lambda b: b[0],
        "left": lambda b: b[1],
        "height": lambda b: b[2],
        "width": lambda b: b[3],
        "area": lambda b: b[2] * b[3],
        "ratio": lambda b: b[3] / b[2],
        "place": lambda b: b[0] / (height - b[2] + 1),
    }.items():
        assert ks_2samp(of(ours).numpy(), of(theirs).numpy()).pvalue > LEAST_P, name
    top, left, h, w = ours
    assert (
        torch.equal(ours, ours.round())
        and top.min() >= 0
        and left.min() >= 0
        and (top + h).max() <= height
        and (left + w).max() <= width
    )
    assert h.min() >= 1 and w.min() >= 1
    places = torch.stack([(top + 0.5) / (height - h + 1), (left + 0.5) / (width - w + 1)])
    assert abs(float(torch.corrcoef(places)[0, 1])) < 0.03  # down and across are drawn apart


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (16, 64, (0.9, 1.0), (0.9, 1.1)),
        (65, 17, (0.9, 1.0), (0.9, 1.1)),
        (32, 32, (2.0, 3.0), (3 / 4, 4 / 3)),
        (31, 20, (1.5, 2.0), (0.8, 1.2)),
    ],
)
def test_where_no_box_fits_it_is_the_central_one_of_torchvision(height, width, scale, ratio):
    ours = torch.stack(views.random_boxes(50, height, width, scale, ratio, torch.device("cpu")))
    assert torch.equal(ours, torchvisions_boxes(1, height, width, scale, ratio).expand(-1, 50))


def jittered(colour: tuple[float, ...], p: float = 1.0, count: int = 4000, **strength) -> Tensor:
    """`colour` as `count` images of one pixel, jittered: (count, C)."""
    torch.manual_seed(1)
    everything = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0} | strength
    return views.color_jitter(torch.tensor(colour).view(1, -1, 1, 1).expand(count, -1, -1, -1), **everything, p=p)[
        :, :, 0, 0
    ]


def hues(x: Tensor) -> np.ndarray:
    return np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in x.tolist()])


@pytest.mark.parametrize(("strength", "low", "high"), [(0.4, 0.6, 1.4), (1.5, 0.0, 2.5)])
def test_jitter_factors_are_uniform_in_torchvisions_range(strength, low, high):
    same = ColorJitter(brightness=strength, contrast=strength, saturation=strength)
    for theirs in (same.brightness, same.contrast, same.saturation):
        assert theirs == pytest.approx((low, high))
    uniform = ("uniform", (low, high - low))
    assert kstest(jittered((0.4,), brightness=strength)[:, 0].numpy() / 0.4, *uniform).pvalue > LEAST_P
    x = jittered((0.35, 0.3, 0.32), saturation=strength)
    grey = float(views.luminance(torch.tensor([0.35, 0.3, 0.32]).view(1, 3, 1, 1)))
    assert kstest((x[:, 0] - grey).numpy() / (0.35 - grey), *uniform).pvalue > LEAST_P
    torch.manual_seed(2)
    halves = views.color_jitter(torch.tensor([0.4, 0.6]).expand(4000, 1, 1, 2), 0.0, strength, 0.0, 0.0, p=1.0)
    assert kstest((halves[..., 1] - halves[..., 0]).flatten().numpy() / 0.2, *uniform).pvalue > LEAST_P


def test_hue_turns_uniformly():
    turned = hues(jittered((0.3, 0.6, 0.6), hue=0.1)) - 0.5
    assert kstest(turned, "uniform", (-0.1, 0.2)).pvalue > LEAST_P
    assert ColorJitter(hue=0.1).hue == (-0.1, 0.1)


@pytest.mark.parametrize("p", [0.2, 0.8])
def test_shares(p):
    """Of 4,000 images, p change, within four standard deviations; and each of them on its own."""
    torch.manual_seed(3)
    x = views.to_float(pictures(6, 16)[5:]).expand(4000, -1, -1, -1)
    for change in (
        lambda: views.color_jitter(x, 0.4, 0.4, 0.4, 0.1, p=p),
        lambda: views.random_grayscale(x, p),
        lambda: views.random_blur(x, (1.0, 2.0), p),
        lambda: views.random_solarize(x, 0.5, p),
        lambda: views.random_resized_crop(x, 16, (1.0, 1.0), (1.0, 1.0), flip=p),
    ):
        changed = (change() - x).abs().amax((1, 2, 3)) > 1e-4
        assert abs(changed.float().mean() - p) < 4 * (p * (1 - p) / 4000) ** 0.5
        following = (changed[1:] & changed[:-1]).float().mean()
        assert abs(following - p * p) < 0.04


def test_blur_is_as_wide_as_it_says():
    """From the image of a point: its neighbour is exp(-1 / 2 sigma^2) as bright. The kernel is SimCLR's, a tenth of the
    image.
    """
    torch.manual_seed(4)
    for size, kernel in ((28, 3), (32, 3), (64, 7), (96, 9)):
        x = torch.zeros(1, 1, size, size)
        x[..., size // 2, size // 2] = 1
        row = views.random_blur(x.expand(1000, -1, -1, -1), (0.3, 2.0), p=1.0)[:, 0, size // 2]
        assert ((row > 0).sum(1) <= kernel).all() and (row > 0).sum(1).max() == kernel
        sigma = (-2 * (row[:, size // 2 + 1] / row[:, size // 2]).log()) ** -0.5
        assert kstest(sigma.numpy(), "uniform", (0.3, 1.7)).pvalue > LEAST_P
    assert views.random_blur.__wrapped__.__defaults__[:2] == ((0.1, 2.0), 0.5)


def test_jitter_comes_in_every_order(monkeypatch):
    names, seen = ("brightness", "contrast", "saturation", "hue"), []
    for name in names:
        monkeypatch.setattr(image, f"adjust_{name}", lambda x, factor, name=name: seen.append(name) or x)
    torch.manual_seed(0)
    for _ in range(600):
        views.color_jitter(torch.rand(2, 3, 2, 2), 0.4, 0.4, 0.4, 0.1, p=1.0)
    orders = [tuple(seen[k : k + 4]) for k in range(0, len(seen), 4)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(orders) == 600 and len(counts) == 24 and chisquare(counts).pvalue > LEAST_P


# ---- what holds for all of them ------------------------------------------------------------------

VIEWS = {
    "crop": lambda x: views.random_resized_crop(x, 24),
    "jitter": lambda x: views.color_jitter(x, 0.4, 0.4, 0.4, 0.1),
    "grey": lambda x: views.random_grayscale(x, 0.5),
    "blur": lambda x: views.random_blur(x),
    "solarize": lambda x: views.random_solarize(x, p=0.5),
    "simclr": lambda x: views.simclr_view(x, 24),
}
all_views = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


@all_views
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [1, 2, 300])
def test_shape_range_and_channels(view, channels, batch):
    torch.manual_seed(0)
    x = pictures(batch, 32, channels)
    before, y = x.clone(), view(x)
    assert (
        y.dtype == torch.float32
        and y.shape[:2] == (batch, channels)
        and y.shape[2] in (24, 32)
        and y.min() >= 0
        and y.max() <= 1
    )
    assert view(torch.ones(batch, channels, 32, 32)).max() <= 1
    floats = views.to_float(x)
    view(floats)
    assert torch.equal(x, before) and torch.equal(floats, views.to_float(x))  # what was given is left alone


@pytest.mark.parametrize(
    ("name", "different"), [("crop", 60), ("jitter", 40), ("grey", 2), ("blur", 20), ("solarize", 2), ("simclr", 63)]
)
def test_the_same_picture_comes_out_different(name, different):
    torch.manual_seed(0)
    y = VIEWS[name](pictures(6)[5:].expand(64, -1, -1, -1))
    assert len({image.numpy().tobytes() for image in y}) >= different


@all_views
def test_draws_come_from_torchs_default_generator_alone(view):
    x = pictures(16)
    random.seed(1), np.random.seed(1)
    elsewhere, state = (random.getstate(), repr(np.random.get_state())), torch.get_rng_state()
    torch.manual_seed(5)
    first = view(x)
    assert (random.getstate(), repr(np.random.get_state())) == elsewhere
    random.seed(2), np.random.seed(2)
    torch.manual_seed(5)
    assert (
        torch.equal(view(x), first)
        and not torch.equal(view(x), first)
        and not torch.equal(torch.get_rng_state(), state)
    )


@all_views
def test_precision_of_the_input_and_autocast_change_nothing(view):
    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(6)
        return view(x)

    x = pictures(16)
    expected = seeded(x)
    assert torch.equal(seeded(x.float() / 255), expected)
    assert (
        torch.allclose(seeded(x.double() / 255), expected, atol=1e-6) and seeded(x.half() / 255).dtype == torch.float32
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(seeded(x), expected)


@pytest.mark.parametrize(
    "adjust",
    [
        lambda x: views.adjust_brightness(x, torch.full((5,), 1.3)),
        lambda x: views.adjust_contrast(x, torch.full((5,), 0.5)),
        lambda x: views.adjust_saturation(x, torch.full((5,), 0.5)),
        lambda x: views.adjust_hue(x, torch.full((5,), 0.2)),
        lambda x: views.gaussian_blur(x, torch.ones(5), 3),
        views.luminance,
        views.solarize,
        lambda x: views.resize(x, 20),
    ],
)
def test_functions_of_given_parameters_take_whole_numbers_too(adjust):
    x = pictures(5)
    assert torch.equal(adjust(x), adjust(views.to_float(x))) and adjust(x).max() <= 1


@pytest.mark.parametrize(
    "view",
    [
        partial(views.color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        views.random_grayscale,
        views.random_blur,
        views.random_solarize,
    ],
)
def test_inplace_gives_the_same_and_changes_what_is_given(view):
    x = views.to_float(pictures(16))
    given = x.clone()
    torch.manual_seed(5)
    expected = view(x)
    assert torch.equal(x, given) and not torch.equal(expected, x)
    torch.manual_seed(5)
    assert view(x, inplace=True) is x and torch.equal(x, expected)


def test_simclr_view_is_its_parts_in_the_papers_order():
    x = pictures(16)
    torch.manual_seed(7)
    whole = views.simclr_view(x, 24)
    torch.manual_seed(7)
    parts = views.random_resized_crop(x, 24, (0.2, 1.0), flip=0.5)
    parts = views.random_grayscale(views.color_jitter(parts, 0.4, 0.4, 0.4, 0.1, p=0.8), 0.2)
    assert torch.equal(whole, views.random_blur(parts, (0.1, 2.0), 0.5))
    torch.manual_seed(7)
    plain = views.simclr_view(x, 24, jitter=0, grayscale=0, blur=0, flip=0)
    torch.manual_seed(7)
    assert torch.equal(plain, views.random_resized_crop(x, 24, (0.2, 1.0), flip=0))


def test_a_large_batch_keeps_its_order_and_draws_anew_for_each_part(monkeypatch):
    monkeypatch.setattr(image, "PART", 7 * 32 * 32)
    x = pictures(50)
    torch.manual_seed(8)
    same = views.random_resized_crop(x, 32, (1.0, 1.0), (1.0, 1.0), flip=0)
    torch.testing.assert_close(same, views.to_float(x), atol=1e-6, rtol=0)
    y = views.simclr_view(pictures(6)[5:].expand(50, -1, -1, -1), 32)
    assert y.shape == (50, 3, 32, 32) and len({image.numpy().tobytes() for image in y}) >= 49


def test_multi_crop_gives_two_views_of_most_and_several_of_parts():
    torch.manual_seed(9)
    x = pictures(11)[5:]
    whole, parts = views.multi_crop(x, 32, 16, 3)
    assert whole.shape == (6, 2, 3, 32, 32) and parts.shape == (6, 3, 3, 16, 16)
    assert len({view.numpy().tobytes() for part in (whole, parts) for view in part.flatten(0, 1)}) == 30
    flat = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    flat[1] = 255  # a row holds the views of one image
    for part in views.multi_crop(flat, 32, 16, 2, jitter=0.0):
        torch.testing.assert_close(
            part.mean((2, 3, 4)), torch.tensor([0.0, 1.0, 0.0])[:, None].expand(3, 2), atol=1e-3, rtol=0
        )
    assert [part.shape for part in views.multi_crop(x, 32, 16, 0)] == [(6, 2, 3, 32, 32)]


def test_multi_crop_shows_shares_on_either_side_of_the_smallest_crop():
    """Of a ramp from left to right, a view's contrast is the width that it shows."""
    torch.manual_seed(10)
    ramp = torch.linspace(0, 1, 64).expand(200, 1, 64, 64)
    whole, parts = views.multi_crop(ramp, 32, 32, 1, smallest_crop=0.4, jitter=0.0, blur=0.0)
    width, small_width = (part.amax((2, 3, 4)) - part.amin((2, 3, 4)) for part in (whole, parts))
    edge = 2 / 64  # bilinear resizing draws the ends together
    ratio = (4 / 3) ** 0.5
    assert width.min() > 0.4**0.5 / ratio - edge and small_width.max() < 0.4**0.5 * ratio + edge
    assert small_width.min() > 0.05**0.5 / ratio - edge and width.max() > 0.85 and small_width.mean() < 0.55


def test_each_view_keeps_pictures_apart_and_views_in_turn():
    large, small = torch.rand(3, 2, 1, 8, 8), torch.rand(3, 4, 1, 4, 4)
    given = []
    mean = views.each_view(lambda x: given.append(len(x)) or x.mean((2, 3)), large, small)
    torch.testing.assert_close(mean, torch.cat([large.mean((3, 4)), small.mean((3, 4))], 1))
    assert given == [6, 12]  # all views of a kind at once
    seen = views.in_turn(large, small)
    assert len(seen) == 6 and torch.equal(seen[1], large[:, 1]) and torch.equal(seen[2], small[:, 0])
