"""Targets that a loss is not for."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithms import FedAvg
from fedsim import Dataset, Experiment, IidPartitioner, Split
from fedsim.controller.prepare import prepare
from fedsim.errors import ConfigError, DataError

X = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
LABELS = np.arange(60) % 3
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]
BASE = Experiment(FedAvg(), model=nn.Linear(4, 3), partition=IidPartitioner(3), rounds=1)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize(
    ("y", "loss", "said"),
    [
        (ONE_HOT, "auto", "loss is squared, and targets are one-hot rows, torch.float32 of shape [48, 3]; expected "
         "labels, one int64 for each sample: y.argmax(1). To train on targets as they are, give a loss of your own"),
        (ONE_HOT, "cross_entropy", "loss is cross_entropy, and targets are one-hot rows, torch.float32 of shape"),
        (0.9 * ONE_HOT, "cross_entropy", "targets are real numbers, torch.float32 of shape [48, 3]; expected labels"),
        (LABELS.astype(np.float32), "cross_entropy", "torch.float32 of shape [48]; expected labels, one int64 for each "
         "sample: y.long(), or as whole numbers in a file"),
    ],
)  # fmt: skip
def test_targets_that_are_no_labels(y: Any, loss: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        prepare(replace(BASE, data=(X, y), loss=loss), 0)
    prepare(replace(BASE, data=(X, y.argmax(1) if y.ndim == 2 else y.astype(int)), loss=loss), 0)


def test_a_loss_of_ones_own_takes_them() -> None:
    assert prepare(replace(BASE, data=(X, 0.9 * ONE_HOT), loss=cross_entropy), 0).dataset.classes == 0


def test_a_data_set_of_classes_says_how_rows_become_labels() -> None:
    split = Split(torch.from_numpy(X), torch.from_numpy(ONE_HOT))
    with pytest.raises(DataError, match=r"float32 of shape \[60, 3\]; expected int64, .* y\.argmax\(1\); or classes=0"):
        Dataset("mine", train=split, test=split, classes=3)
