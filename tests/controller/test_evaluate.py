"""Evaluation on threads: their number cannot be seen in scores, and errors are the usual ones."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.controller.scoring import Scores, score
from fedsim.engine.model import AT_A_TIME, Model
from fedsim.models import LeNet5
from fedsim.models.losses import cross_entropy

N = 2 * AT_A_TIME["cpu"] + 3


class Noting(nn.Module):
    """A small network that notes by which threads it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(6, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        CALLED.add(threading.current_thread().name)
        out: Tensor = self.drop(self.layer(x))
        return out


CALLED: set[str] = set()


def scored(module: nn.Module, shape: tuple[int, ...], **settings: Any) -> Scores:
    torch.manual_seed(0)
    model = Model(copy.deepcopy(module), cross_entropy)    # as it loads a vector
    x, y = torch.randn(N, *shape), torch.randint(0, 3, (N,))
    return score(model, model.vector() + 0.1, x, y, True, True, **settings)


@pytest.mark.parametrize(("make", "shape"), [(Noting, (6,)), (lambda: LeNet5().build((1, 28, 28), 3), (1, 28, 28))])
def test_bits_are_those_of_one_thread(make: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    module = make()
    before = torch.get_num_threads()
    one, *others = (scored(module, shape, threads=n) for n in (1, 2, 3))
    plain = scored(module, shape)
    for found in others:
        for a, b in zip(vars(one).values(), vars(found).values(), strict=True):
            assert np.array_equal(a, b)
    assert one.accuracy is not None and len(one.loss) == N and 0 < one.accuracy.mean() < 1
    np.testing.assert_allclose(plain.loss, one.loss, rtol=1e-5)
    assert torch.get_num_threads() == before


def test_evaluation_leaves_the_modes_of_layers_alone() -> None:
    model = Model(Noting(), cross_entropy)
    score(model, model.vector(), torch.randn(N, 6), torch.zeros(N, dtype=torch.int64), True, threads=2)
    assert all(layer.training for layer in model.module.modules())


def test_minibatches_run_on_threads() -> None:
    model, here = Model(Noting(), cross_entropy), threading.current_thread().name
    for threads in (0, 2):
        CALLED.clear()
        score(model, model.vector(), torch.randn(N, 6), torch.zeros(N, dtype=torch.int64), True, threads=threads)
        assert CALLED and (here in CALLED) == (threads == 0)


def test_an_error_in_a_thread_is_the_modules_own() -> None:
    class Failing(Noting):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="out of paper"):
        scored(Failing(), (6,), threads=2)
