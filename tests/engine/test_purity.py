"""Modules and losses that write into what they are given, or raise, are refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor
from torch.nn import functional as F

from fedsim.errors import ModelError
from tests.engine.test_examine import tried


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: m.linear(x.mul_(2.0)),
        lambda m, x: m.linear(x.mul_(2.0) if m.training else x),
        lambda m, x: (x.data.add_(1), m.linear(x))[1],
        lambda m, x: (np.add(x.numpy(), 1, out=x.numpy()), m.linear(x))[1],
    ],
    ids=["always", "in training", "data", "NumPy"],
)
def test_a_module_that_writes_into_its_inputs(body: Any) -> None:
    with pytest.raises(ModelError, match=r"^Net writes into its inputs, .*x\.clone\(\) before"):
        tried(body)


@pytest.mark.parametrize(
    "write",
    [
        lambda o, t: t.clamp_(max=1),
        lambda o, t: t.data.clamp_(max=1),
        lambda o, t: t.numpy().fill(0),
        lambda o, t: o.sub_(o.amax(1, keepdim=True)),
    ],
    ids=["targets", "data", "NumPy", "outputs"],
)
def test_a_loss_that_writes_into_what_it_is_given(write: Any) -> None:
    def binary(o: Tensor, t: Tensor) -> Tensor:
        write(o, t)
        return F.cross_entropy(o, t, reduction="none")

    with pytest.raises(ModelError, match=r"^the loss .*binary writes into outputs or targets, .*x\.clone\(\) before"):
        tried(lambda m, x: m.linear(x), binary)


def test_a_loss_that_raises_is_named() -> None:
    def broken(o: Tensor, t: Tensor) -> Tensor:
        raise ValueError("boom")

    message = r"^the loss .*broken raised ValueError on outputs of shape \[1, 10\] and targets of shape \[1\]: boom"
    with pytest.raises(ModelError, match=message):
        tried(lambda m, x: m.linear(x), broken)
