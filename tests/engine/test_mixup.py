"""Mixup: pairs within a client's minibatch, the loss of both targets, the same on every backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from algorithms import FedAvg, FedSAM
from fedsim import Chain, CropAndFlip, FixedSize, LocalWork, Mixup
from fedsim.engine.augmentation import augmented, try_augmentation
from fedsim.engine.mixup import Mixed
from fedsim.errors import ConfigError
from fedsim.seeds import split
from fedsim.types import Batch
from tests.controller.test_run import SMALL
from tests.engine.test_local_steps import after

BASE = replace(SMALL, algorithm=FedAvg(lr=0.1), sampling=FixedSize(size=5), dtype="float64")
X, Y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6)
KEY = torch.tensor(7)


def test_samples_and_targets_are_mixed_alike() -> None:
    mixed = augmented(Mixup(1.0), Batch(X, Y, key=KEY.expand(6)))
    assert isinstance(mixed.y, Mixed) and torch.equal(mixed.y.first, Y)
    partner, lam = mixed.y.second, mixed.y.share
    assert sorted(partner.tolist()) == list(range(6)), "a permutation"
    assert len(set(lam.tolist())) == 1 and 0 < lam[0] < 1
    torch.testing.assert_close(mixed.x, lam[0] * X + (1 - lam[0]) * X[partner])
    again = augmented(Mixup(1.0), Batch(X, Y, key=KEY.expand(6)))
    assert torch.equal(mixed.x, again.x)
    other = augmented(Mixup(1.0), Batch(X, Y, key=torch.tensor(8).expand(6)))
    assert not torch.equal(mixed.y.share, other.y.share)


def test_padding_is_nobodys_partner() -> None:
    alone = augmented(Mixup(1.0), Batch(X[:4], Y[:4], key=KEY.expand(4)))
    weight = torch.tensor([[1.0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    keys = torch.stack([KEY, torch.tensor(9)]).unsqueeze(1).expand(2, 6)
    block = augmented(Mixup(1.0), Batch(torch.stack([X, X]), torch.stack([Y, Y]), weight, keys))
    torch.testing.assert_close(block.x[0, :4], alone.x, rtol=0, atol=0)
    assert torch.equal(block.y.second[0, :4], alone.y.second)
    assert sorted(block.y.second[1].tolist()) == list(range(6))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    keys = split(KEY, torch.arange(3000)).unsqueeze(1)
    one = Batch(torch.zeros(3000, 1, 1), torch.zeros(3000, 1), key=keys)
    shares = augmented(Mixup(alpha), one).y.share[:, 0].numpy()
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


CONVOLUTION = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))


@pytest.mark.parametrize(
    "experiment",
    [
        replace(BASE, local=LocalWork(batch_size=8, augment=Mixup())),
        replace(BASE, algorithm=FedSAM(lr=0.1), local=LocalWork(batch_size=8, augment=Mixup(1.0), micro_batch=3)),
        replace(BASE, model=CONVOLUTION, local=LocalWork(batch_size=8, augment=Chain(CropAndFlip(1), Mixup()))),
        replace(BASE, local=LocalWork(batch_size=0, augment=Mixup(), steps=2)),
    ],
    ids=["dense", "FedSAM, micro", "chain, convolution", "whole shard"],
)
def test_the_loop_and_blocks_agree(experiment: object) -> None:
    (loop, paid), (blocks, paid_there) = after(experiment), after(experiment, blocks=3)  # type: ignore[arg-type]
    torch.testing.assert_close(loop, blocks, rtol=1e-11, atol=1e-13)
    assert np.array_equal(paid, paid_there)


def test_the_gradient_is_that_of_mixed_one_hot_targets() -> None:
    from fedsim.engine.model import Model
    from fedsim.models.losses import cross_entropy as each

    model = Model(nn.Sequential(nn.Linear(3, 6)), each, dtype=torch.float64)
    batch = augmented(Mixup(1.0), Batch(X, Y, key=KEY.expand(6)))
    x = model.vector()
    weight, bias = (t.clone().requires_grad_() for t in (x[:18].view(6, 3), x[18:]))
    hot = batch.y.share.unsqueeze(1) * torch.eye(6, dtype=torch.float64)
    hot = hot + (1 - batch.y.share).unsqueeze(1) * torch.eye(6, dtype=torch.float64)[batch.y.second]
    cross_entropy(batch.x @ weight.T + bias, hot).backward()
    expected = torch.cat([weight.grad.flatten(), bias.grad])  # type: ignore[union-attr,list-item]
    torch.testing.assert_close(model.gradient(x, batch), expected, rtol=1e-12, atol=1e-14)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="alpha is 0"):
        Mixup(0)
    with pytest.raises(ConfigError, match="comes last"):
        Chain(Mixup(), CropAndFlip())
    with pytest.raises(ConfigError, match="int64 has no numbers between"):
        try_augmentation(Mixup(), {"ids": Y, "x": X})
    with pytest.raises(ConfigError, match="takes images of floats"):
        try_augmentation(Chain(CropAndFlip(), Mixup()), X)
