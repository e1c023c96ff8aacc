"""Grids of pictures: every pixel where it belongs."""

from __future__ import annotations

import pytest
import torch

from zoo.grid import image_grid, rows_of


def place(grid: torch.Tensor, row: int, column: int, size: int, pad: int) -> torch.Tensor:
    """The picture of a grid of square pictures, (3, size, size)."""
    top, left = pad + row * (size + pad), pad + column * (size + pad)
    return grid[:, top : top + size, left : left + size]


def test_every_picture_has_its_place():
    images = torch.rand(7, 3, 5, 5)
    grid = image_grid(images, columns=3, pad=2)
    assert grid.shape == (3, 2 + 3 * (5 + 2), 2 + 3 * (5 + 2))
    for number, image in enumerate(images):
        assert torch.equal(place(grid, number // 3, number % 3, 5, 2), image)
    framed = grid.clone()
    for number in range(7):
        place(framed, number // 3, number % 3, 5, 2).fill_(1.0)
    assert (framed == 1).all(), "all the rest is background, the two missing pictures too"


@pytest.mark.parametrize(("pad", "background"), [(0, 1.0), (1, 0.0), (3, 0.25)])
def test_frames(pad, background):
    grid = image_grid(torch.full((4, 3, 4, 4), 0.5), columns=2, pad=pad, background=background)
    assert grid.shape == (3, 8 + 3 * pad, 8 + 3 * pad)
    assert int((grid == 0.5).sum()) == 3 * 4 * 16 and int((grid == background).sum()) == grid.numel() - 3 * 4 * 16


def test_rows_may_differ_in_length_size_type_and_colour():
    colour, grey, bytes_ = (
        torch.rand(2, 3, 4, 4),
        torch.rand(3, 1, 6, 5),
        torch.randint(0, 256, (1, 3, 2, 2), dtype=torch.uint8),
    )
    grid = rows_of(colour, grey, bytes_, pad=1)
    assert grid.shape == (3, 1 + (4 + 1) + (6 + 1) + (2 + 1), 1 + 3 * (5 + 1))
    assert torch.equal(grid[:, 1:5, 6:10], colour[1])
    assert torch.equal(grid[:, 6:12, 13:18], grey[2].expand(3, -1, -1)), "grey is repeated"
    torch.testing.assert_close(grid[:, 13:15, 1:3], bytes_[0] / 255)
    assert (grid[:, 1:5, 11:] == 1).all() and (grid[:, 13:, 4:] == 1).all()


def test_values_stay_between_0_and_1():
    images = torch.tensor([-3.0, 0.25, 7.0]).view(3, 1, 1, 1).expand(-1, 1, 2, 2)
    grid = image_grid(images, pad=0)
    assert grid[0, 0].tolist() == [0, 0, 0.25, 0.25, 1, 1] and grid.dtype == torch.float32


def test_what_carries_a_gradient_is_taken_as_it_is():
    images = torch.rand(2, 3, 2, 2, requires_grad=True)
    grid = rows_of(images)
    assert not grid.requires_grad and torch.equal(place(grid, 0, 1, 2, 2), images[1].detach())
