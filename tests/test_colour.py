"""CIELAB beside scikit-image's, which computes it in float64; and grey pictures where colour is needed."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

import zoo
from zoo.colour import has_colour, lab_to_rgb, require_colour, rgb_to_lab
from zoo.data.shards.writer import write_shards
from zoo.errors import ZooError


def grid(values: torch.Tensor) -> torch.Tensor:
    """Every colour whose channels are among `values`, as a batch of images (n, 3, n, n)."""
    return (
        torch.cartesian_prod(values, values, values).view(len(values), len(values), len(values), 3).permute(0, 3, 1, 2)
    )


def last(x: torch.Tensor) -> np.ndarray:
    return x.double().movedim(1, -1).numpy()


@pytest.mark.parametrize(
    "values",
    [torch.linspace(0, 1, 18), torch.linspace(0, 0.05, 12), torch.linspace(0.003, 0.9, 12) ** 2],
    ids=["all", "dark", "uneven"],
)
def test_lab_is_scikit_images(values):
    x = grid(values)
    ours, theirs = last(rgb_to_lab(x)), rgb2lab(last(x))
    assert np.abs(ours - theirs).max() < 2e-3  # of 100; a and b are small differences, magnified 500 times
    assert np.abs(lab2rgb(theirs) - last(lab_to_rgb(torch.from_numpy(theirs).movedim(-1, 1)))).max() < 1e-5


def test_known_colours():
    """White, black, and red, green and blue, whose values are in every table of CIELAB."""
    x = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).float()[:, :, None, None]
    known = torch.tensor(
        [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    )
    torch.testing.assert_close(rgb_to_lab(x)[:, :, 0, 0], known, atol=0.02, rtol=0)


def test_back_and_forth():
    x = grid(torch.linspace(0, 1, 20))
    assert (lab_to_rgb(rgb_to_lab(x)) - x).abs().max() < 1e-5


def test_colours_that_srgb_cannot_show_are_clamped_as_scikit_image_does():
    lightness, a, b = torch.meshgrid(
        torch.linspace(0, 100, 11), torch.linspace(-120, 120, 13), torch.linspace(-120, 120, 13), indexing="ij"
    )
    lab = torch.stack([lightness, a, b], dim=1)
    rgb = lab_to_rgb(lab)
    assert rgb.min() == 0 and rgb.max() == 1
    assert ((rgb == 0) | (rgb == 1)).any(1).float().mean() > 0.3  # the most of this cube lies outside
    with warnings.catch_warnings():  # scikit-image warns of negative Z, which both take for 0
        warnings.simplefilter("ignore")
        theirs = lab2rgb(last(lab))
    assert (
        np.abs(last(rgb) - theirs).max() < 1e-4
    )  # the steepest part of the curve, near black, magnifies rounding by 13


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.float32])
def test_result_is_float32_whatever_comes(dtype):
    whole = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    lab = rgb_to_lab(whole if dtype == torch.uint8 else whole.to(dtype) / 255)
    assert lab.dtype == lab_to_rgb(lab.to(torch.float64)).dtype == torch.float32
    torch.testing.assert_close(lab, rgb_to_lab(whole), atol=1e-3, rtol=0)


def test_autocast_changes_nothing():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    lab = rgb_to_lab(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = rgb_to_lab(x), lab_to_rgb(lab)
    assert torch.equal(inside[0], lab) and torch.equal(inside[1], lab_to_rgb(lab))


# ---- whether a set has any -----------------------------------------------------------------------


def grey_and_colour(shape: tuple[int, ...] = (12, 3, 16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (shape[0], 1, *shape[2:]), generator=draw, dtype=torch.uint8).expand(shape).clone()
    coloured = grey.clone()
    coloured[:, 0, 3, 5] = (coloured[:, 1, 3, 5].int() + 90).remainder(256).to(torch.uint8)
    return grey, coloured


def test_colour_is_what_compression_alone_does_not_leave():
    grey, coloured = grey_and_colour()
    assert has_colour(coloured).all() and not has_colour(grey).any() and not has_colour(grey[:, :1]).any()
    for kind, quality in (("JPEG", 30), ("JPEG", 95), ("WEBP", 60)):
        for picture in grey:
            packed = io.BytesIO()
            Image.fromarray(picture.movedim(0, 2).numpy()).save(packed, kind, quality=quality)
            back = torch.from_numpy(np.array(Image.open(packed).convert("RGB"))).movedim(2, 0)
            assert not has_colour(back[None]).any(), (kind, quality)


def test_one_coloured_picture_of_those_looked_at_is_enough_and_others_are_not_looked_at():
    grey, coloured = grey_and_colour()
    require_colour(torch.cat([grey, coloured[:1]]), torch.arange(13), "colorize", "folder:x")
    with pytest.raises(
        ZooError, match="colorize needs colour pictures, and those of folder:x are grey, all of 12 for training"
    ):
        require_colour(torch.cat([grey, coloured[:1]]), torch.arange(12), "colorize", "folder:x")


@pytest.mark.parametrize("task", ["colorize", "split-brain"])
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_task_of_colours_refuses_grey_pictures_before_anything_is_written(tmp_path, monkeypatch, task, kind):
    """Forty grey PNGs and JPEGs, whose names say nothing of that."""
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    for number, picture in enumerate(grey_and_colour((40, 3, 20, 20))[0]):
        image = Image.fromarray(picture[0].numpy())
        (image if number % 2 else image.convert("RGB")).save(
            tmp_path / "set" / f"{number:02}.{'png' if number % 3 else 'jpg'}"
        )
    if kind == "shards":
        write_shards(tmp_path / "set", tmp_path / "shards")
    name = f"shards:{tmp_path}/shards/*.tar" if kind == "shards" else f"folder:{tmp_path}/set"
    recipe = {
        "data": {"name": name, "batch_size": 8, "size": 32},
        "backbone": {"name": "test_resnet", "output_stride": 8},
        "task": {"name": task, "width": 8, "resolution": 8, "step": 40},
        "trainer": {"max_steps": 1, "accelerator": "cpu"},
    }
    with pytest.raises(ZooError, match=f"the task {task} needs colour pictures, and those of {kind}:.* are grey"):
        zoo.pretrain(recipe, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
