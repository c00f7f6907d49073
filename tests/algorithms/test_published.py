"""Published code (FL-Simulator) and the product on one sequence of cohorts, with weight decay and clipping on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from algorithms import (
    FedAvg,
    FedCM,
    FedGamma,
    FedOpt,
    FedProx,
    FedSAM,
    FedSMOO,
    FedSpeed,
    MoFedSAM,
    Scaffold,
)
from algorithms.parts import EPS
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.experiment.sampling import Bernoulli
from fedsim.experiment.schedule import ExponentialDecay
from tests.algorithms.published_rules import FLSimulator
from tests.algorithms.quadratics import SEED, X0, F, batches_of, federation, iterates

CLIP, DECAY = 3.0, 0.05
LOCAL = LocalWork(
    batch_size=8, epochs=2, weight_decay=DECAY, clip_norm=CLIP, weight_decay_mode="step", clip_mode="direction"
)
COHORTS = [Bernoulli(0.3).cohort(SEED, t, F.n).tolist() for t in range(1, 9)]
SETTINGS: dict[str, float] = {"lr": 0.2, "decay": 0.9, "wd": DECAY, "clip": CLIP, "rho": 0.3, "lamb": 0.4, "alpha": 0.3}

RULES: dict[str, tuple[Any, dict[str, float]]] = {
    "fedavg": (FedAvg(lr=0.2, server_lr=0.8), {"eta_g": 0.8}),
    "fedprox": (FedProx(lr=0.2, mu=0.4, server_lr=0.8), {"eta_g": 0.8}),
    "fedadam": (FedOpt(lr=0.2, server_lr=0.1, tau=0.01, v0=0.0), {"eta_g": 0.1}),
    "scaffold": (Scaffold(lr=0.2), {}),
    "feddyn": (FedSpeed(lr=0.2, lam=1 / 0.4, rho=0.0), {}),
    "fedcm": (FedCM(lr=0.2, alpha=0.3), {"clip": 1.5}),
    "fedsam": (FedSAM(lr=0.2, rho=0.3), {}),
    "mofedsam": (MoFedSAM(lr=0.2, rho=0.3, alpha=0.3), {"clip": 1.5}),
    "fedgamma": (FedGamma(lr=0.2, rho=0.3), {}),
    "fedspeed": (FedSpeed(lr=0.2, lam=1 / 0.4, rho=0.3), {}),
    "fedsmoo": (FedSMOO(lr=0.2, lam=1 / 0.4, rho=0.3), {}),
}


def published(method: str, eps: float = EPS, **other: float) -> tuple[np.ndarray, list[bool]]:
    """Models ``[rounds, d]`` by the rules of the code, and in which steps it clipped."""
    simulator = FLSimulator(F, batches_of(federation(F, LOCAL)), **{**SETTINGS, **other}, eps=eps)  # type: ignore[arg-type]
    return np.array(simulator.run(method, X0, COHORTS)), simulator.clips


@pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
@pytest.mark.parametrize("method", RULES)
def test_models_are_those_of_the_published_rules(method: str, backend: Any) -> None:
    """To rounding, on cohorts and minibatches of unequal sizes, where some steps are clipped and others are not."""
    algorithm, settings = RULES[method]
    theirs, clips = published(method, **settings)
    assert 0.05 < np.mean(clips) < 0.95 and len({len(S) for S in COHORTS}) > 2
    work = replace(LOCAL, clip_norm=settings.get("clip", CLIP))
    fed = federation(F, work, backend, decay=ExponentialDecay(0.9))
    ours = np.array(iterates(algorithm, fed, X0, COHORTS))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert np.abs(ours[-1] - X0).max() > 1e-2, "nothing moved"


@pytest.mark.parametrize("method", ["fedsam", "fedspeed", "fedsmoo"])
def test_the_published_epsilon_of_the_ascent_makes_no_difference_to_speak_of(method: str) -> None:
    """1e-7 there, as the ascent's norm is in float32; 1e-12 here."""
    gap = np.abs(published(method, eps=1e-7)[0] - published(method)[0]).max()
    assert 0 < gap < 1e-6


def test_where_weight_decay_and_clipping_act_makes_a_difference() -> None:
    """Without the modes of the step the same settings mean another method, but for FedAvg, which has no corrections."""
    usual = replace(LOCAL, weight_decay_mode="objective", clip_mode="gradient")
    for method, (algorithm, settings) in RULES.items():
        ours = iterates(algorithm, federation(F, usual, decay=ExponentialDecay(0.9)), X0, COHORTS)
        gap = np.abs(np.array(ours) - published(method, **settings)[0]).max()
        assert gap < 1e-12 if method in ("fedavg", "fedadam") else gap > 1e-3, method
