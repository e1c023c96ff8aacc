"""VAE: the evidence lower bound equals closed forms, free bits are free, and forward draws nothing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.tasks.image.vae import VAE, kl_from_prior

VIT = dict(patch_size=4, depth=1, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)


def _task(backbone: str = "test_resnet", size: int = 28, keywords: dict | None = None, **arguments) -> VAE:
    torch.manual_seed(0)
    return VAE(create_backbone(backbone, size=size, **(keywords or {})), **{"code": 6, "width": 8, **arguments})


def _linear_task(**arguments) -> VAE:
    """A factor analysis of 4 x 4 pixels: one linear layer there, one back."""
    keywords = dict(
        patch_size=4,
        in_chans=1,
        depth=0,
        embed_dim=8,
        num_heads=1,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        final_norm=False,
        pos_embed="none",
    )
    task = _task("vit_tiny_patch16_224", 4, keywords, decoder="linear", code=3, **arguments).double()
    for weight in (p for p in task.parameters() if p.ndim > 1):
        torch.nn.init.normal_(weight, std=0.3)
    return task


def _batch(channels: int = 1, size: int = 28, count: int = 4) -> dict:
    image = torch.randint(
        0, 256, (count, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return {"image": image, "index": torch.arange(count)}


def _views(task: VAE, batch: dict, counter: int = 0) -> tuple:
    with counted(torch.device("cpu"), counter):
        return task.views(batch)


def _gradients(loss: torch.Tensor, task: VAE) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(task.parameters()), retain_graph=True))


def test_the_divergence_is_torchs():
    mean, log_variance = torch.randn(2, 5, 7, dtype=torch.float64)
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_from_prior(mean, log_variance), theirs)
    assert kl_from_prior(torch.zeros(1), torch.zeros(1)) == 0


def test_the_bound_is_the_likelihood_less_the_divergence_from_the_true_posterior():
    """Where everything is linear and Gaussian, log p(x) - KL(q || p(z|x)) is known, and 2 M points stand exactly for
    all noise.
    """
    task = _linear_task()
    image, M = torch.rand(1, 1, 4, 4, dtype=torch.float64), 3
    points = math.sqrt(M) * torch.cat([torch.eye(M).double(), -torch.eye(M).double()])
    elbo = task((image.expand(2 * M, -1, -1, -1), points)).logs["elbo"]

    weight, bias = task.decoder.linear.weight, task.decoder.linear.bias
    variance, x = task.log_sigma.exp() ** 2, image.flatten()
    evidence = MultivariateNormal(bias, weight @ weight.T + variance * torch.eye(16).double()).log_prob(x)
    precision = torch.eye(M) + weight.T @ weight / variance
    posterior = MultivariateNormal(
        torch.linalg.solve(precision, weight.T @ (x - bias) / variance), precision_matrix=precision
    )
    mean, log_variance = task.encode(image)
    guessed = MultivariateNormal(mean[0], torch.diag(log_variance[0].exp()))
    torch.testing.assert_close(elbo, (evidence - kl_divergence(guessed, posterior)).detach(), rtol=1e-9, atol=1e-9)


def test_the_loss_at_beta_1_is_the_negative_bound_per_value():
    task = _task()
    image, noise = views = _views(task, _batch())
    output = task(views)
    mean, log_variance = task.encode(image)
    code = Normal(mean, (log_variance / 2).exp())
    told = Independent(Normal(task.decode(code.loc + code.scale * noise, 1), task.log_sigma.exp()), 3).log_prob(image)
    bound = told - kl_divergence(code, Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(output.logs["elbo"], bound.mean().detach())
    torch.testing.assert_close(output.loss, -bound.mean() / 784)
    for ours, theirs in zip(_gradients(output.loss, task), _gradients(-bound.mean() / 784, task)):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_beta_weighs_the_divergence_alone():
    losses = {beta: task(_views(task, _batch())) for beta in (0.0, 1.0, 4.0) for task in [_task(beta=beta)]}
    kl = losses[1.0].logs["kl"] / 784
    torch.testing.assert_close(losses[4.0].loss - losses[0.0].loss, 4 * kl, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(losses[4.0].logs["elbo"], losses[1.0].logs["elbo"])


def test_the_bernoulli_is_torchs_and_the_mean_over_all_ways_to_make_grey_black_or_white():
    task = _task(likelihood="bernoulli")
    logits, binary = torch.randn(3, 1, 2, 2), torch.randint(0, 2, (3, 1, 2, 2)).float()
    torch.testing.assert_close(
        task.log_likelihood(binary, logits), Independent(Bernoulli(logits=logits), 3).log_prob(binary)
    )
    grey = torch.rand(1, 1, 2, 2)
    ways = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).view(16, 1, 2, 2)
    chance = Independent(Bernoulli(grey[0]), 3).log_prob(ways).exp()
    mean = (chance * task.log_likelihood(ways, logits[:1].expand(16, -1, -1, -1))).sum()
    torch.testing.assert_close(task.log_likelihood(grey, logits[:1])[0], mean)


def test_the_learned_deviation_comes_to_rest_at_the_root_mean_squared_error():
    task = _task()
    image, painted = torch.rand(2, 4, 1, 28, 28)
    with torch.no_grad():
        task.log_sigma.copy_((image - painted).square().mean().sqrt().log())
    (gradient,) = torch.autograd.grad(task.log_likelihood(image, painted).mean() / 784, task.log_sigma)
    assert gradient.abs() < 1e-6


def test_below_the_floor_free_bits_cost_the_floor_and_push_nothing():
    task, unpaid = _task(free_bits=1e3), _task(beta=0.0)
    views = _views(task, _batch())
    output = task(views)
    assert output.logs["kl"] < 1e3
    torch.testing.assert_close(output.loss, (6 * 1e3 - output.logs["log_likelihood"]) / 784)
    torch.testing.assert_close(_gradients(output.loss, task), _gradients(unpaid(views).loss, unpaid))


def test_above_the_floor_free_bits_change_nothing():
    task, plain = _task(free_bits=1e-9), _task()
    views = _views(task, _batch())
    torch.testing.assert_close(task(views).loss, plain(views).loss)


def test_the_floor_holds_for_the_mean_of_each_dimension():
    """Not for the sum over dimensions, nor for each picture: one loud dimension doesn't pay for the silent ones."""
    task = _linear_task(free_bits=0.5)
    with torch.no_grad():
        task.posterior.weight.zero_()
        task.posterior.bias.copy_(torch.tensor([4.0, 0.5, 0.0, 0.0, 0.0, 0.0]))  # divergences 8, 1/8 and 0
    views = torch.rand(5, 1, 4, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    output = task(views)
    torch.testing.assert_close(output.logs["kl"], torch.tensor(8.125, dtype=torch.float64))
    torch.testing.assert_close(output.loss * 16 + output.logs["log_likelihood"], torch.tensor(9.0, dtype=torch.float64))
    assert output.logs["active"] == 2
    paid = torch.autograd.grad(
        output.loss * 16
        + task.log_likelihood(
            views[0], task.decode(task.encode(views[0])[0] + views[1] * (task.encode(views[0])[1] / 2).exp(), 1)
        ).mean(),
        task.posterior.bias,
    )[0]
    torch.testing.assert_close(paid, torch.tensor([4.0, 0, 0, 0, 0, 0], dtype=torch.float64))


def test_the_floor_looks_at_the_global_batch(monkeypatch):
    """Two processes with half of the pictures each: the mean of their losses is the loss of all."""
    task = _linear_task(free_bits=0.3)
    image, noise = torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    with torch.no_grad():
        task.posterior.weight.mul_(4)  # some below the floor, some above
        whole = task((image, noise)).loss
        sums: list[list[torch.Tensor]] = [[], []]
        for rank in (0, 1):
            monkeypatch.setattr("zoo.tasks.image.vae.total", lambda x, rank=rank: sums[rank].append(x) or x)
            alone = task((image[rank::2], noise[rank::2])).loss
        together = []
        for rank in (0, 1):
            calls = zip(*sums)
            monkeypatch.setattr("zoo.tasks.image.vae.total", lambda x, calls=calls: sum(next(calls)))
            together.append(task((image[rank::2], noise[rank::2])).loss)
    torch.testing.assert_close(sum(together) / 2, whole)
    assert not torch.isclose(alone, together[1])


def test_views_follow_the_counters_and_forward_draws_nothing():
    task = _task(smallest_crop=0.5, flip=0.5)
    first, again, other = _views(task, _batch(), 1), _views(task, _batch(), 1), _views(task, _batch(), 2)
    assert first[1].shape == (4, 6) and first[0].shape == (4, 1, 28, 28)
    assert all(torch.equal(a, b) for a, b in zip(first, again)) and not any(
        torch.equal(a, b) for a, b in zip(first, other)
    )
    before = torch.get_rng_state()
    assert torch.equal(task(first).loss, task(first).loss)
    assert torch.equal(before, torch.get_rng_state())


def test_the_noise_is_standard_normal_and_the_same_for_every_picture_content_and_backbone():
    _, noise = _views(_task(code=64), _batch(count=64))
    assert abs(noise.mean().item()) < 0.05 and noise.std().item() == pytest.approx(1, abs=0.05)
    _, other = _views(_task("test_vit", 32, VIT, code=64), _batch(3, 32, count=64))
    assert torch.equal(noise, other)


@pytest.mark.parametrize("arguments", [{"code": 3 * 8 * 8}, {"code": 0}, {"beta": -1.0}, {"free_bits": -0.1}])
def test_nonsense_is_refused(arguments):
    with pytest.raises(ZooError, match=f"task.{next(iter(arguments))}"):
        _task(size=8, **arguments)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize(
    "backbone, keywords, size, channels",
    [
        ("test_resnet", {}, 28, 1),
        ("test_convnext", {}, 32, 3),
        ("test_vit", VIT, 64, 3),
        ("resnet10t", {"channels": [8, 8, 8, 8], "stem_width": 8, "output_stride": 16}, 31, 1),
    ],
)
def test_any_backbone_any_size_grey_or_colour_in_bfloat16(backbone, keywords, size, channels, likelihood):
    task = _task(backbone, size, keywords, likelihood=likelihood)
    views = _views(task, batch := _batch(channels, size))
    with torch.autocast("cpu", torch.bfloat16):
        output = task(views)
    assert output.loss.dtype == torch.float32 and all(
        value.ndim == 0 and not value.requires_grad for value in output.logs.values()
    )
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters()), (
        "a parameter that doesn't learn"
    )
    features = task.eval().features(views[0])
    torch.testing.assert_close(features["code"], task.encode(views[0])[0])
    assert features["backbone"].shape == (4, task.backbone.num_features)
    pictures = task.figure(batch)
    one = size + 2
    assert {name: tuple(picture.shape) for name, picture in pictures.items()} == {
        "reconstruction": (3, 2 * one + 2, 4 * one + 2),
        "samples": (3, 4 * one + 2, 8 * one + 2),
        "traversal": (3, 6 * one + 2, 9 * one + 2),
    }
    assert all(0 <= picture.min() and picture.max() <= 1 for picture in pictures.values())


def test_the_traversal_walks_the_most_telling_dimension_first():
    task = _linear_task().float().eval()
    with torch.no_grad():
        task.posterior.weight.zero_()
        task.posterior.bias.copy_(
            torch.tensor([0.1, 0.0, 2.0, 0.0, 0.0, 0.0])
        )  # the third tells most, the second nothing
        task.decoder.linear.weight.zero_(), task.decoder.linear.bias.fill_(0.5)
        task.decoder.linear.weight[:, 2] = 0.1  # it alone makes the picture brighter
    traversal = task.figure(_batch(size=4))["traversal"]
    rows = [[traversal[0, 2 + 6 * row + 1, 2 + 6 * column + 1].item() for column in range(9)] for row in range(3)]
    assert rows[0] == pytest.approx([0.5 + 0.1 * (-3 + 0.75 * k) for k in range(9)], abs=1e-5)
    assert rows[1] == rows[2] == pytest.approx([0.7] * 9, abs=1e-5)


def test_a_code_that_is_no_bottleneck_for_grey_pictures_is_refused():
    task = _task(size=8, code=64)
    task.views(_batch(3, 8))
    with pytest.raises(ZooError, match="64 values"):
        task.views(_batch(1, 8))
