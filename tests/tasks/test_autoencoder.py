"""Autoencoder: the error is that of the clean picture, the code is the only way through, and the penalty is Ng's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, kl_divergence

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.heads import PatchDecoder, picture_decoder
from zoo.tasks.image.autoencoder import Autoencoder, kl_bernoulli

VIT = dict(patch_size=4, depth=1, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)


def _task(backbone: str = "test_resnet", size: int = 28, keywords: dict | None = None, **arguments) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(
        create_backbone(backbone, size=size, **(keywords or {})), **{"code": 16, "width": 8, **arguments}
    )


def _batch(channels: int = 1, size: int = 28, count: int = 4) -> dict:
    image = torch.randint(
        0, 256, (count, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return {"image": image, "index": torch.arange(count)}


def _views(task: Autoencoder, batch: dict, counter: int = 0) -> tuple:
    with counted(torch.device("cpu"), counter):
        return task.views(batch)


def test_the_loss_is_the_mean_squared_error_through_the_code():
    task = _task()
    seen, clean = _views(task, _batch(3))
    theirs = F.mse_loss(task.decoder(task.squeeze(task.backbone(seen))), clean)
    ours = task((seen, clean))
    torch.testing.assert_close(ours.loss, theirs)
    torch.testing.assert_close(ours.logs["squared_error"], theirs.detach())
    mine, other = (torch.autograd.grad(loss, list(task.parameters())) for loss in (ours.loss, theirs))
    torch.testing.assert_close(mine, other)


def test_without_noise_and_cropping_the_picture_is_seen_and_painted_as_it_is():
    seen, clean = _views(_task(), batch := _batch())
    assert torch.equal(seen, clean)
    torch.testing.assert_close(clean, batch["image"] / 255, atol=1e-6, rtol=0)


def test_denoising_shows_noise_of_the_given_size_and_wants_the_clean_picture():
    task, batch = _task(noise=0.1), _batch(count=16)
    batch["image"] = torch.full_like(batch["image"], 128)  # nothing is clipped at 5 deviations
    seen, clean = _views(task, batch)
    torch.testing.assert_close(clean, batch["image"] / 255, atol=1e-6, rtol=0)
    assert (seen - clean).std().item() == pytest.approx(0.1, rel=0.03) and abs((seen - clean).mean().item()) < 0.005
    assert not torch.equal(seen[0], seen[1])
    loud, _ = _views(_task(noise=1.0), _batch())
    assert 0 <= loud.min() and loud.max() <= 1
    torch.testing.assert_close(task((seen, clean)).loss, F.mse_loss(task.decode(task.encode(seen), 1), clean))


def test_denoising_crops_and_mirrors_input_and_target_alike():
    seen, clean = _views(_task(noise=1e-4, smallest_crop=0.3, flip=0.5), batch := _batch())
    torch.testing.assert_close(seen, clean, atol=1e-3, rtol=0)
    assert (clean - batch["image"] / 255).abs().mean() > 0.01


def test_views_follow_the_counters_and_forward_draws_nothing():
    task = _task(noise=0.3, smallest_crop=0.5, flip=0.5)
    first, again, other = _views(task, _batch(), 1), _views(task, _batch(), 1), _views(task, _batch(), 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again)) and not torch.equal(first[0], other[0])
    before = torch.get_rng_state()
    task(first)
    assert torch.equal(before, torch.get_rng_state())


def test_only_the_code_passes_from_picture_to_painting():
    """The Jacobian of the painting with respect to the picture has at most as many dimensions as the code."""
    task = _task("test_vit", 16, {"patch_size": 8}, code=5).double().eval()
    image = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: task.decode(task.encode(x), 1), image).view(256, 256)
    values = torch.linalg.svdvals(jacobian)
    assert values[4] > 1e-9 * values[0] and values[5] < 1e-12 * values[0]


def test_the_penalty_is_a_divergence_and_vanishes_where_the_activity_is_as_wanted():
    mean = torch.linspace(0.01, 0.99, 21, dtype=torch.float64, requires_grad=True)
    wanted = torch.tensor(0.05, dtype=torch.float64)
    torch.testing.assert_close(kl_bernoulli(0.05, mean), kl_divergence(Bernoulli(wanted), Bernoulli(mean)))
    at = torch.tensor([0.05], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(kl_bernoulli(0.05, at).sum(), at)
    assert kl_bernoulli(0.05, at).abs().max() < 1e-15 and gradient.abs().max() < 1e-12
    assert kl_bernoulli(0.05, torch.tensor([0.0, 1.0])).isfinite().all()


def test_sparsity_adds_the_divergence_of_the_mean_activity():
    task = _task(sparsity=0.05, sparsity_weight=0.3)
    views = _views(task, _batch(count=8))
    output, code = task(views), task.encode(views[0])
    assert code.min() > 0 and code.max() < 1
    penalty = kl_bernoulli(0.05, code.mean(0)).sum()
    torch.testing.assert_close(output.loss, F.mse_loss(task.decode(code, 1), views[1]) + 0.3 * penalty)
    torch.testing.assert_close(output.logs["activity"], code.mean().detach())


def test_the_activity_is_that_of_the_global_batch(monkeypatch):
    """Two processes with half of the pictures each: the mean of their losses is the loss of all."""
    task = _task(size=8, sparsity=0.05, sparsity_weight=1.0).eval()
    views = torch.rand(2, 6, 1, 8, 8)
    with torch.no_grad():
        whole = task(tuple(views)).loss
        sums: list[list[torch.Tensor]] = [[], []]
        for rank in (0, 1):
            monkeypatch.setattr("zoo.tasks.image.autoencoder.total", lambda x, rank=rank: sums[rank].append(x) or x)
            task(tuple(views[:, rank::2]))
        together = []
        for rank in (0, 1):
            calls = zip(*sums)
            monkeypatch.setattr("zoo.tasks.image.autoencoder.total", lambda x, calls=calls: sum(next(calls)))
            together.append(task(tuple(views[:, rank::2])).loss)
    assert len(sums[0]) == 2
    torch.testing.assert_close(sum(together) / 2, whole)


def test_a_heavy_penalty_makes_the_code_as_active_as_wanted():
    task = _task(size=8, code=8, sparsity=0.1, sparsity_weight=1.0)
    views = _views(task, _batch(size=8, count=32))
    optimizer = torch.optim.Adam(task.squeeze.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        output = task(views)
        output.loss.backward()
        optimizer.step()
    assert output.logs["activity"].item() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("arguments", [{"code": 3 * 8 * 8}, {"code": 0}, {"noise": -0.1}, {"sparsity": 1.0}])
def test_what_is_no_bottleneck_and_other_nonsense_is_refused(arguments):
    with pytest.raises(ZooError, match=f"task.{next(iter(arguments))}"):
        _task(size=8, **arguments)
    _task(size=8, code=3 * 8 * 8 - 1, decoder="linear")


@pytest.mark.parametrize(
    "backbone, keywords, size",
    [
        ("test_resnet", {}, 28),
        ("test_convnext", {}, 32),
        ("test_vit", VIT, 64),
        ("resnet10t", {"channels": [8, 8, 8, 8], "stem_width": 8, "output_stride": 16}, 30),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_backbone_any_size_grey_or_colour_in_bfloat16(backbone, keywords, size, channels):
    task = _task(backbone, size, keywords, noise=0.1)
    views = _views(task, batch := _batch(channels, size))
    with torch.autocast("cpu", torch.bfloat16):
        output = task(views)
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters()), (
        "a parameter that doesn't learn"
    )
    features = task.eval().features(views[0])
    assert features["backbone"].shape == (4, task.backbone.num_features) and features["code"].shape == (4, 16)
    torch.testing.assert_close(features["code"], task.encode(views[0]))
    picture = task.figure(batch)["reconstruction"]
    assert picture.shape == (3, 3 * (size + 2) + 2, 4 * (size + 2) + 2) and 0 <= picture.min() and picture.max() <= 1


def test_the_decoder_follows_the_backbone_unless_told():
    kind = {decoder: type(_task(decoder=decoder).decoder) for decoder in ("auto", "conv", "transformer", "linear")}
    assert kind["auto"] is kind["conv"] and len(set(kind.values())) == 3
    assert type(_task("test_vit", 32, VIT).decoder) is kind["transformer"]


@pytest.mark.parametrize("kind", ["conv", "transformer", "linear"])
@pytest.mark.parametrize("size", [8, 28, 31, 33, 64])
def test_decoders_paint_pictures_of_every_size(kind, size):
    painted = picture_decoder(kind, 5, 3, size, 8)(torch.randn(2, 5))
    assert painted.shape == (2, 3, size, size)
    assert (painted[0] - painted[1]).abs().amax((0,)).min() > 0, "a pixel that the code can't change"


def test_patches_are_laid_out_row_by_row():
    """Each token paints its own square: with no blocks, the gradient of a pixel reaches one token only."""
    decoder = PatchDecoder(4, 2, 20, dim=8, depth=0)  # 7 x 7 patches of 3 pixels, cropped to 20
    tokens = torch.randn(1, 49, 8, requires_grad=True)
    decoder.stem = torch.nn.Identity()
    painted = decoder(tokens.flatten(1))
    assert painted.shape == (1, 2, 20, 20)
    for row, column in ((0, 0), (4, 17), (19, 2), (19, 19)):
        (gradient,) = torch.autograd.grad(painted[0, :, row, column].sum(), tokens, retain_graph=True)
        assert gradient[0].abs().sum(1).nonzero().flatten().tolist() == [row // 3 * 7 + column // 3]
    patch = decoder.decoder(tokens)[0, 8].view(2, 3, 3)  # and each patch is upright
    torch.testing.assert_close(painted[0, :, 3:6, 3:6], patch)


def test_a_code_that_is_no_bottleneck_for_grey_pictures_is_refused():
    task = _task(size=8, code=64)
    task.views(_batch(3, 8))
    with pytest.raises(ZooError, match="64 values"):
        task.views(_batch(1, 8))
