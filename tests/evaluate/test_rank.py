from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.errors import ZooError
from zoo.evaluate.rank import check_features, effective_rank, spread


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def directly(x: torch.Tensor) -> float:
    """exp of the entropy of the singular values' shares, as the paper has it, from the features themselves."""
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    share = values / values.sum()
    return float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))


@pytest.mark.parametrize("shape", [(300, 20), (20, 300), (64, 64), (1, 9), (9, 1)])
def test_effective_rank_is_that_of_the_singular_values(shape):
    x = noise(*shape) * torch.logspace(0, -3, shape[1]) + noise(shape[1], seed=1)  # uneven, and far from 0
    assert effective_rank(x) == pytest.approx(directly(x), rel=1e-6)
    assert effective_rank(1024 * x) == pytest.approx(effective_rank(x), rel=1e-9)  # scale doesn't matter


def test_effective_rank_runs_from_one_to_the_dimension():
    one = noise(50, 1) @ noise(1, 12)
    assert effective_rank(one.double()) == pytest.approx(1.0, abs=1e-3) and effective_rank(
        torch.ones(50, 12)
    ) == pytest.approx(1.0, abs=1e-3)
    even = torch.linalg.qr(noise(50, 12).double()).Q
    assert effective_rank(even) == pytest.approx(12.0, rel=1e-9) and effective_rank(even.T) == pytest.approx(
        12.0, rel=1e-9
    )
    for kept in (2, 5):
        part = even.clone()
        part[:, kept:] = 0
        assert effective_rank(part) == pytest.approx(kept, rel=1e-6)
    assert effective_rank(torch.zeros(5, 3)) == 0.0
    assert 1 < effective_rank(noise(100, 12)) < 12


def test_spread_is_one_on_the_whole_sphere_and_zero_in_a_point():
    x = noise(4000, 32)
    assert spread(x) == pytest.approx(1.0, abs=0.01)
    assert spread(x * torch.rand(4000, 1, generator=torch.Generator().manual_seed(2))) == pytest.approx(
        spread(x), rel=1e-5
    )  # lengths don't matter
    assert spread(noise(32).expand(100, 32)) == pytest.approx(0.0, abs=1e-9) and spread(torch.zeros(5, 3)) == 0.0
    close = [spread(noise(32, seed=1) + width * x) for width in (0.01, 0.1, 1.0)]
    assert close[0] < 0.02 and close == sorted(close) and close[2] < 1
    assert spread(x.double()) == pytest.approx(spread(x), rel=1e-6)


def test_spread_by_hand():
    # unit vectors (1, 0) and (0, 1): each number has the deviation 1/2, times the root of 2
    assert spread(torch.tensor([[3.0, 0.0], [0.0, 0.1]])) == pytest.approx(0.5 * 2**0.5)


@pytest.mark.parametrize("measure", [effective_rank, spread])
def test_what_is_no_finite_matrix_is_refused(measure):
    x = noise(6, 4)
    x[2, 1], x[5, 0] = float("nan"), float("inf")
    with pytest.raises(
        ZooError,
        match="the features hold NaN or infinity in 2 of 6 rows; the network that made them has diverged, lower "
        "optim.lr",
    ):
        measure(x)
    for wrong in (noise(4), noise(2, 3, 4), noise(0, 4), noise(4, 0)):
        with pytest.raises(ZooError, match="they have to be a matrix"):
            measure(wrong)


def test_check_features_gives_back_what_is_in_order():
    x = noise(3, 2)
    assert check_features(x) is x
    with pytest.raises(ZooError, match="the old features have the shape"):
        check_features(noise(3), "the old features")
