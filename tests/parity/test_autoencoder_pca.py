"""A linear autoencoder finds the principal components, and a linear VAE probabilistic PCA: both as scikit-learn
computes them.

Baldi, Hornik 1989, "Neural networks and principal component analysis"; Lucas, Tucker, Grosse, Norouzi 2019, "Don't
Blame the ELBO! A Linear VAE Perspective on Posterior Collapse", https://arxiv.org/abs/1911.02469
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from zoo.backbones import create_backbone
from zoo.tasks.base import PretextTask
from zoo.tasks.image.autoencoder import Autoencoder
from zoo.tasks.image.vae import VAE

CODE = 4  # the fourth and fifth variance of these digits lie well apart: 0.45 and 0.33


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return torch.from_numpy(load_digits().images[:300] / 16).unsqueeze(1)  # (300, 1, 8, 8) float64 in [0, 1]


def linear_backbone(width: int):
    """A ViT without blocks, norm, position or class token, whose one patch is the picture: a linear layer."""
    return create_backbone(
        "vit_tiny_patch16_224",
        size=8,
        patch_size=8,
        in_chans=1,
        depth=0,
        embed_dim=width,
        num_heads=1,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        final_norm=False,
        pos_embed="none",
    )


def minimise(task: PretextTask, views: tuple, steps: int) -> float:
    """Full-batch L-BFGS from orthogonal weights; returns the loss."""
    for weight in (p for p in task.parameters() if p.ndim > 1):
        torch.nn.init.orthogonal_(weight)
    optimizer = torch.optim.LBFGS(
        task.parameters(),
        max_iter=steps,
        history_size=30,
        tolerance_grad=1e-9,
        tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = task(views).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(task(views).loss.detach())


def angles(first: np.ndarray, second: np.ndarray) -> float:
    """The largest angle, in degrees, between the spaces that the columns span."""
    return math.degrees(scipy.linalg.subspace_angles(first, second).max())


def test_the_linear_autoencoder_is_pca(digits):
    torch.manual_seed(0)
    task = Autoencoder(linear_backbone(16), code=CODE, decoder="linear").double()
    error = minimise(task, (digits, digits), 250)

    flat = digits.flatten(1).numpy()
    pca = PCA(CODE).fit(flat)
    theirs = np.square(flat - pca.inverse_transform(pca.transform(flat))).mean()
    assert theirs * (1 - 1e-9) <= error <= theirs * 1.001  # nothing linear can be better
    assert angles(task.decoder.linear.weight.detach().numpy(), pca.components_.T) < 2.0
    with torch.no_grad():
        code = task.features(digits)["code"].numpy()  # and the code is a linear map of theirs
    fitted = np.linalg.lstsq(np.c_[pca.transform(flat), np.ones(len(flat))], code, rcond=None)[0]
    residual = code - np.c_[pca.transform(flat), np.ones(len(flat))] @ fitted
    assert residual.std() < 0.02 * code.std()


def test_the_linear_vae_is_probabilistic_pca(digits):
    torch.manual_seed(0)
    task = VAE(linear_backbone(16), code=CODE, decoder="linear").double()
    # Everything is quadratic in the noise, so 2 M points stand exactly for all of it.
    points = math.sqrt(CODE) * torch.cat([torch.eye(CODE).double(), -torch.eye(CODE).double()])
    elbo = -64 * minimise(task, (digits.repeat(2 * CODE, 1, 1, 1), points.repeat_interleave(len(digits), 0)), 250)

    flat = digits.flatten(1).numpy()
    pca = PCA(CODE).fit(flat)
    likelihood = pca.score(flat)  # mean log likelihood, nats per picture
    assert likelihood - 0.02 < elbo < likelihood + 1e-3  # a bound can't be above
    assert task.log_sigma.detach().exp().square().item() == pytest.approx(pca.noise_variance_, rel=0.01)
    assert angles(task.decoder.linear.weight.detach().numpy(), pca.components_.T) < 2.0
