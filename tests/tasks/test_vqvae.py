"""VQ-VAE: quantisation, losses and moving averages as in the paper, codes that come back to life, and grids of
places.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from zoo.backbones import create_backbone
from zoo.errors import ZooError
from zoo.tasks.image.vqvae import USED, VQVAE, Codebook

VIT = dict(patch_size=8, depth=1, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)


def _task(name: str = "test_resnet", **arguments) -> VQVAE:
    torch.manual_seed(0)
    backbone = create_backbone(name, size=32, **(VIT if name.startswith("vit") else {"output_stride": 8}))
    return VQVAE(backbone, **{"codes": 8, "code": 4, "width": 4, **arguments})


def _image(channels: int = 3, count: int = 4) -> torch.Tensor:
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def _filled(task: VQVAE) -> VQVAE:
    """With a codebook that has seen a batch, as it is seen in evaluation."""
    task.eval().codebook.train()
    with torch.no_grad():
        task((_image(),))
    return task.eval()


def test_the_nearest_vector_is_scikit_learns():
    from sklearn.neighbors import NearestNeighbors

    book, z = Codebook(16, 4, 0.9), torch.randn(3, 4, 5, 5)
    book.vectors.normal_()
    theirs = (
        NearestNeighbors(n_neighbors=1)
        .fit(book.vectors.numpy())
        .kneighbors(z.permute(0, 2, 3, 1).reshape(-1, 4).numpy(), return_distance=False)
    )
    assert np.array_equal(book.nearest(z).flatten().numpy(), theirs[:, 0])


def test_the_loss_is_the_papers_with_a_straight_through_gradient():
    """Equation 3 without its second term, which the moving averages stand for; straight through written as a gradient
    that is copied by hand.
    """
    task, image = _filled(_task(commitment=0.5)), _image()
    parameters = list(task.parameters())
    ours = torch.autograd.grad(task((image,)).loss, parameters)
    z = task.encode(image)
    distance = (z.unsqueeze(1) - task.codebook.vectors.view(1, 8, 4, 1, 1)).square().sum(2)
    quantised = task.codebook.vectors[distance.argmin(1)].permute(0, 3, 1, 2).requires_grad_()
    error = (task.decoder(quantised) - image).square().mean()
    commitment = 0.5 * (z - quantised.detach()).square().mean()
    torch.testing.assert_close(task((image,)).loss, error + commitment)
    decoder = list(task.decoder.parameters())
    for_z, *for_decoder = torch.autograd.grad(error, [quantised, *decoder])
    encoder = [p for name, p in task.named_parameters() if not name.startswith("decoder")]
    for_encoder = torch.autograd.grad([z, commitment], encoder, [for_z, torch.tensor(1.0)])
    torch.testing.assert_close(ours, (*for_encoder, *for_decoder), rtol=1e-4, atol=1e-6)


def test_the_codebook_is_the_moving_average_of_what_was_assigned():
    """Appendix A.1, one code at a time, as long as all are in use."""
    book = Codebook(3, 2, 0.9).train()
    (
        book.vectors.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])),
        book.uses.fill_(20),
        book.sums.copy_(book.vectors * 20),
    )
    uses, sums = book.uses.clone(), book.sums.clone()
    for step in range(5):
        z = torch.randn(5, 2, 2, 3, generator=torch.Generator().manual_seed(step)) + 1
        index = book.nearest(z)
        book.update(z, index)
        for code in range(3):
            rows = z.permute(0, 2, 3, 1)[index == code]
            uses[code], sums[code] = 0.9 * uses[code] + 0.1 * len(rows), 0.9 * sums[code] + 0.1 * rows.sum(0)
            torch.testing.assert_close(book.vectors[code], sums[code] / uses[code])
    torch.testing.assert_close(book.uses, uses)


def test_dead_codes_take_the_places_that_are_described_worst_and_nothing_is_drawn():
    book = Codebook(4, 2, 0.5).train()
    (
        book.vectors.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [99.0, 99.0], [98.0, 98.0]])),
        book.uses.copy_(torch.tensor([8.0, 8.0, 1e-3, 1e-3])),
    )
    book.sums.copy_(book.vectors * book.uses.unsqueeze(1))
    z = torch.tensor([[0.0, 0.1], [1.0, 0.1], [0.1, 7.0], [-6.0, 0.0], [0.0, 0.0], [1.0, 0.0]]).T.view(1, 2, 2, 3)
    again, state = copy.deepcopy(book), torch.get_rng_state()
    book.update(z, book.nearest(z))
    assert torch.equal(book.vectors[2:], torch.tensor([[0.1, 7.0], [-6.0, 0.0]]))
    assert (book.uses > USED * 6 / 4).all() and torch.equal(torch.get_rng_state(), state)
    again.update(z, again.nearest(z))
    assert all(torch.equal(a, b) for a, b in zip(book.buffers(), again.buffers()))


def test_the_codebook_begins_with_features_of_the_first_batch_and_stays_in_evaluation():
    book, z = Codebook(32, 4, 0.9).train(), torch.randn(16, 4, 4, 4)
    book.begin(z)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 4)
    chosen = torch.cdist(book.vectors, rows).argmin(1)
    assert (
        torch.equal(rows[chosen], book.vectors)
        and len(set((chosen % 16).tolist())) > 10
        and len(set((chosen // 16).tolist())) > 10
    )
    book.begin(z + 1)
    assert torch.equal(rows[chosen], book.vectors), "once is enough"
    task = _filled(_task())
    before = task.codebook.vectors.clone()
    task((_image(count=7),))
    assert torch.equal(task.codebook.vectors, before)


def test_gradients_of_the_first_step_are_of_no_other_order_than_later_ones():
    task, sizes = _task().train(), []
    for _ in range(2):
        task.zero_grad()
        task((_image(),)).loss.backward()
        sizes.append(sum(float(p.grad.square().sum()) for p in task.parameters()) ** 0.5)
    assert sizes[0] < 10 * sizes[1]


def test_perplexity_counts_the_codes_in_even_use():
    book = Codebook(8, 2, 0.9)
    for used in (1, 3, 8):
        assert book.perplexity(torch.arange(24).view(2, 3, 4) % used).item() == pytest.approx(used, rel=1e-5)


@pytest.mark.parametrize("name, channels", [("test_resnet", 3), ("test_resnet", 1), ("vit_tiny_patch16_224", 3)])
def test_codes_lie_on_the_grid_of_the_backbone(name, channels):
    task, image = _filled(_task(name)), _image(channels)
    codes = task.codes(image)
    assert codes.shape == (4, 4, 4) and codes.dtype == torch.int64 and len(codes.unique()) > 1
    assert task.decode(task.codebook(codes), channels).shape == image.shape
    if name.startswith("vit"):  # the place of a patch is its own: row 1, column 2
        z = torch.nn.functional.linear(
            task.backbone.tokens(image)[:, 1 * 4 + 2], task.squeeze.weight[:, :, 0, 0], task.squeeze.bias
        )
        assert torch.equal(torch.cdist(z, task.codebook.vectors).argmin(1), codes[:, 1, 2])


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"codes": 1}, "task.codes is 1"),
        ({"code": 0}, "task.code is 0"),
        ({"commitment": 0.0}, "task.commitment"),
        ({"decay": 1.0}, "task.decay is 1.0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        _task(**arguments)
