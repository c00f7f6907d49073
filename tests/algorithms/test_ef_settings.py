"""The checks of the compressed methods' settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algorithms import (
    DCGD,
    DIANA,
    EF14,
    EF21,
    EF21BC,
    EF21PAGE,
    EF21SGDM,
    EF21W,
    L1,
    MARINA,
    ECIdeal,
    EControl,
    EF21Plus,
)
from fedsim.compress import QSGD, Natural, RandK, Scaled, TopK
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from fedsim.problems import least_squares
from tests.algorithms.convex import federation_of, trajectory
from tests.algorithms.quadratics import federation, heterogeneous, states

TOP1 = TopK(k=1)


@pytest.mark.parametrize("cls", [EF14, EF21, EF21Plus, EF21W, EF21BC, EF21SGDM, EF21PAGE, EControl, ECIdeal])
@pytest.mark.parametrize("by", [RandK(k=2), QSGD(), Natural()], ids=["RandK", "QSGD", "Natural"])
def test_unbiased_compressors_must_be_scaled_for_error_feedback(cls: Any, by: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{cls.__name__}.compressor is {type(by).__name__}.*Scaled\("):
        cls(compressor=by)
    assert cls(compressor=Scaled(by)).compressor.alpha(10) == 1 / (1 + by.omega(10))
    assert cls(compressor=RandK(k=2, scaled=False))


@pytest.mark.parametrize("cls", [DIANA, MARINA])
def test_biased_compressors_are_refused_where_they_must_not_be(cls: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{cls.__name__}.compressor is TopK.*which is biased; expected an unbiased"):
        cls(compressor=TopK(k=2))


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (DCGD, {"lr": 0.0}, "DCGD.lr is 0.0"),
        (DCGD, {"compressor": 0.01}, r"DCGD.compressor is 0.01; expected an object of fedsim.compress, such as TopK\("),
        (EF21, {"compressor": TopK}, r"EF21.compressor is <class.*; expected an object of fedsim.compress"),
        (DIANA, {"compressor": "RandK"}, r"DIANA.compressor is 'RandK'; expected an object of fedsim.compress"),
        (DCGD, {"gradient": "half"}, "DCGD.gradient is 'half'; expected one of 'full', 'minibatch'"),
        (EF14, {"lr": -1.0}, "EF14.lr is -1.0"),
        (EF21, {"start": "warm"}, "EF21.start is 'warm'; expected one of 'dense', 'compressed', 'zero'"),
        (EF21, {"momentum": 1.0}, "EF21.momentum is 1.0"),
        (L1, {"lam": 0.0}, "L1.lam is 0.0"),
        (EF21W, {"smoothness": (1.0, 0.0)}, "EF21W.smoothness is .*; expected finite numbers above 0"),
        (EF21BC, {"server_compressor": QSGD()}, "EF21BC.server_compressor is QSGD"),
        (EF21SGDM, {"eta": 0.0}, "EF21SGDM.eta is 0.0"),
        (EF21SGDM, {"eta": 1.5}, "EF21SGDM.eta is 1.5"),
        (EF21SGDM, {"momenta": 0}, "EF21SGDM.momenta is 0"),
        (EF21SGDM, {"first_batch": -1}, "EF21SGDM.first_batch is -1"),
        (EF21PAGE, {"p": 0.0}, "EF21PAGE.p is 0.0"),
        (EControl, {"eta": -0.1}, "EControl.eta is -0.1"),
        (DIANA, {"alpha": 0.0}, "DIANA.alpha is 0.0"),
        (MARINA, {"p": 1.5}, "MARINA.p is 1.5"),
        (MARINA, {"gradient": "minibatch"}, r'MARINA.p is None, .*"minibatch"; .* min\(1 / \(1 \+ omega\), b / \(b'),
    ],
)
def test_settings_out_of_range(cls: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**settings)


def test_settings_that_do_not_fit_the_task() -> None:
    P = least_squares(5, 8)
    with pytest.raises(ConfigError, match=r"EF21W.smoothness has 2 entries; expected one for each of 5 clients"):
        trajectory(EF21W(compressor=TOP1, smoothness=(1.0, 2.0)), P, np.zeros(8), 0)
    with pytest.raises(ConfigError, match=r"ECIdeal.minimizer has 1 coordinates; expected 8"):
        trajectory(ECIdeal(compressor=TOP1, minimizer=(1.0,)), P, np.zeros(8), 0)
    with pytest.raises(ConfigError, match="k is 9, but the vector has 8 coordinates"):
        trajectory(EF21(compressor=TopK(k=9)), P, np.zeros(8), 1, federation_of(P, Loop()))
    fed = federation(heterogeneous(), LocalWork(0, steps=1))
    with pytest.raises(ConfigError, match="EF21BC needs every client in every round, 3 of 10 take part"):
        states(EF21BC(), fed, np.zeros(20), [[0, 1, 2]])
