"""The engine against the papers: the same models, round by round, to 1e-12 in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from algorithms import (
    BVRLSGD,
    FedADMM,
    FedAMD,
    FedAvg,
    FedCM,
    FedGamma,
    FedNova,
    FedOpt,
    FedPAGE,
    FedProx,
    FedSAM,
    FedSMOO,
    FedSpeed,
    MoFedSAM,
    Scaffold,
)
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from tests.algorithms import baseline_papers, papers
from tests.algorithms.quadratics import X0, F, batches_of, everybody, federation, iterates, some

WORKS = {
    "whole shard": LocalWork(batch_size=0, steps=6),
    "epochs": LocalWork(batch_size=8, epochs=2),
    "steps": LocalWork(batch_size=12, steps=5),
}
BACKENDS = pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
COHORTS = {"everybody": everybody(F.n, 5), "2 of 10": some(F.n, 2, 6)}


class Case(NamedTuple):
    """An algorithm of the engine and the paper's, as a function of (f, x, cohorts, batches, eta)."""

    algorithm: Any
    paper: Callable[..., list[np.ndarray]]


def with_(paper: Callable[..., list[np.ndarray]], **settings: Any) -> Callable[..., list[np.ndarray]]:
    return lambda *arguments, **more: paper(*arguments, **settings, **more)


ADAPTIVE: dict[str, dict[str, Any]] = {                    # tau small and large beside the clients' updates
    "adam": {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "yogi": {"beta1": 0.8, "beta2": 0.7, "tau": 0.3},
    "adagrad": {"beta1": 0.0, "beta2": 0.99, "tau": 0.05},
}


def fedopt(optimizer: Any, **more: Any) -> Case:
    settings = {**ADAPTIVE[optimizer], **more}
    paper = with_(papers.fedopt, optimizer=optimizer, eta_g=0.3, **settings)
    return Case(FedOpt(lr=0.2, server_lr=0.3, optimizer=optimizer, **settings), paper)


CASES = {
    "FedAvg": Case(FedAvg(lr=0.2), papers.fedavg),
    "FedAvg server step": Case(FedAvg(lr=0.2, server_lr=1.5), with_(papers.fedavg, eta_g=1.5)),
    "FedAvg momentum": Case(FedAvg(lr=0.2, momentum=0.8), with_(papers.fedavg, theta=0.8)),
    "FedProx": Case(FedProx(lr=0.2, mu=0.7), with_(papers.fedprox, mu=0.7)),
    "FedProx server step": Case(FedProx(lr=0.2, mu=0.7, server_lr=1.5), with_(papers.fedprox, mu=0.7, eta_g=1.5)),
    "FedAdam": fedopt("adam"),
    "FedAdam from 0": fedopt("adam", v0=0.0),
    "FedYogi": fedopt("yogi"),
    "FedAdagrad": fedopt("adagrad"),
    "FedCM": Case(FedCM(lr=0.2, alpha=0.3), with_(papers.fedcm, alpha=0.3)),
    "FedCM server step": Case(FedCM(lr=0.2, alpha=0.3, server_lr=0.6), with_(papers.fedcm, alpha=0.3, eta_g=0.6)),
    "FedSAM": Case(FedSAM(lr=0.2, rho=0.3), with_(papers.fedsam, rho=0.3)),
    "FedSAM server step": Case(FedSAM(lr=0.2, rho=0.3, server_lr=0.8), with_(papers.fedsam, rho=0.3, eta_g=0.8)),
    "SCAFFOLD II": Case(Scaffold(lr=0.2, server_lr=0.8), with_(papers.scaffold, eta_g=0.8)),
    "SCAFFOLD I": Case(Scaffold(lr=0.2, option="I"), with_(papers.scaffold, option="I")),
    "FedSpeed, paper": Case(
        FedSpeed(lr=0.2, lam=2.0, rho=0.3, dual_avg="active"), with_(papers.fedspeed, lam=2.0, rho=0.3)
    ),
    "FedSpeed, paper, mixed and plain": Case(
        FedSpeed(lr=0.2, lam=2.0, rho=0.3, alpha=0.4, normalize=False, dual_avg="active"),
        with_(papers.fedspeed, lam=2.0, rho=0.3, alpha=0.4, normalized=False),
    ),
    "FedSpeed, code": Case(FedSpeed(lr=0.2, lam=2.0, rho=0.3), with_(papers.fedspeed_code, lamb=0.5, rho=0.3)),
    "FedSpeed, code, mixed": Case(
        FedSpeed(lr=0.2, lam=2.0, rho=0.3, alpha=0.4), with_(papers.fedspeed_code, lamb=0.5, rho=0.3, alpha=0.4)
    ),
    "FedSpeed, code, plain": Case(
        FedSpeed(lr=0.2, lam=2.0, rho=0.3, normalize=False),
        with_(papers.fedspeed_code, lamb=0.5, rho=0.3, normalized=False),
    ),
    "FedNova": Case(FedNova(lr=0.2), baseline_papers.fednova),
    "FedNova momentum": Case(
        FedNova(lr=0.2, momentum=0.8, server_lr=0.7), with_(baseline_papers.fednova, rho=0.8, eta_g=0.7)
    ),
    "FedADMM": Case(FedADMM(lr=0.2, rho=0.6), with_(baseline_papers.fedadmm, rho=0.6)),
    "FedADMM active": Case(
        FedADMM(lr=0.2, rho=0.6, server_lr=0.9), with_(baseline_papers.fedadmm, rho=0.6, eta_g=0.9)
    ),
    "MoFedSAM": Case(
        MoFedSAM(lr=0.2, rho=0.3, alpha=0.3, server_lr=0.6),
        with_(baseline_papers.mofedsam, rho=0.3, alpha=0.3, eta_g=0.6),
    ),
    "FedGamma": Case(
        FedGamma(lr=0.2, rho=0.3, server_lr=0.8), with_(baseline_papers.fedgamma, rho=0.3, eta_g=0.8)
    ),
    "FedSMOO": Case(FedSMOO(lr=0.2, lam=2.0, rho=0.3), with_(baseline_papers.fedsmoo, lamb=0.5, rho=0.3)),
    "FedSpeed without ascent is FedDyn": Case(FedSpeed(lr=0.2, lam=2.0, rho=0.0), with_(papers.feddyn, a=0.5)),
}


def decayed(t: int) -> float:
    return 0.8**t


def assert_equal(ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float = 1e-12) -> None:
    assert len(ours) == len(theirs) > 0
    for t, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
        assert np.abs(a - b).max() <= tolerance, f"round {t}: {np.abs(a - b).max():.1e}"
    assert np.abs(ours[-1] - X0).max() > 1e-3, "nothing moved"


@pytest.mark.parametrize(
    ("work", "cohorts", "backend"),
    [*((work, cohorts, Loop()) for work in WORKS for cohorts in COHORTS), ("epochs", "2 of 10", Blocks(4))],
)
@pytest.mark.parametrize("case", CASES)
def test_models_are_the_papers(case: str, work: str, cohorts: str, backend: Any) -> None:
    """With a step size that decays: SCAFFOLD divides by the one in use, the dual methods by none."""
    algorithm, paper = CASES[case]
    fed = federation(F, WORKS[work], backend, decayed)
    theirs = paper(F, X0, COHORTS[cohorts], batches_of(fed), lambda t: 0.2 * decayed(t))
    assert_equal(iterates(algorithm, fed, X0, COHORTS[cohorts]), theirs)


@BACKENDS
@pytest.mark.parametrize("cohorts", COHORTS)
@pytest.mark.parametrize("work", WORKS)
def test_fedamd_with_coins(work: str, cohorts: str, backend: Any) -> None:
    fed = federation(F, WORKS[work], backend, decayed)
    S = COHORTS[cohorts]
    coins = [cohort(fed, t, np.array(ids)).split(0.5)[0].ids.tolist() for t, ids in enumerate(S, 1)]
    assert any(coins) and any(set(ids) - set(heads) for ids, heads in zip(S, coins, strict=True))
    theirs = papers.fedamd(F, X0, S, coins, batches_of(fed), lambda t: 0.2 * decayed(t), eta_s=0.7)
    assert_equal(iterates(FedAMD(lr=0.2, server_lr=0.7, p=0.5), fed, X0, S), theirs)


@pytest.mark.parametrize("cohorts", COHORTS)
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("period", [2, 3])
def test_fedamd_in_sequence(period: int, work: str, cohorts: str) -> None:
    """Rounds count from 1; every ``period``-th is of anchors, the others of miners."""
    fed = federation(F, WORKS[work])
    S = COHORTS[cohorts]
    anchors = [ids if t % period == 0 else [] for t, ids in enumerate(S, 1)]
    theirs = papers.fedamd(F, X0, S, anchors, batches_of(fed), lambda t: 0.2)
    assert_equal(iterates(FedAMD(lr=0.2, period=period), fed, X0, S), theirs)


@BACKENDS
@pytest.mark.parametrize("cohorts", COHORTS)
@pytest.mark.parametrize("work", WORKS)
def test_bvr_l_sgd(work: str, cohorts: str, backend: Any) -> None:
    """The picked ones differ from round to round."""
    fed = federation(F, WORKS[work], backend, decayed)
    S, eta = COHORTS[cohorts], lambda t: 0.2 * decayed(t)
    picked = [cohort(fed, t, np.array(ids)).pick().ids.item() for t, ids in enumerate(S, 1)]
    assert len(set(picked)) > 2 and all(i in ids for i, ids in zip(picked, S, strict=True))
    for pick, who in (("one", picked), ("mean", None)):
        for period in (1, 3) if cohorts == "everybody" else (1,):
            theirs = baseline_papers.bvr_l_sgd(F, X0, S, batches_of(fed), eta, who, period)
            ours = iterates(BVRLSGD(lr=0.2, pick=pick, period=period), fed, X0, S)  # type: ignore[arg-type]
            assert_equal(ours, theirs)


@BACKENDS
@pytest.mark.parametrize("cohorts", COHORTS)
@pytest.mark.parametrize("work", WORKS)
def test_fedpage(work: str, cohorts: str, backend: Any) -> None:
    """Both steps follow the schedule."""
    fed = federation(F, WORKS[work], backend, decayed)
    S = COHORTS[cohorts]
    heads = [cohort(fed, t).toss(0.3) for t in range(1, len(S) + 1)]
    assert any(heads[1:]) and not all(heads[1:])
    theirs = baseline_papers.fedpage(
        F, X0, S, batches_of(fed), lambda t: 0.2 * decayed(t), heads, lambda t: 0.7 * decayed(t)
    )
    assert_equal(iterates(FedPAGE(lr=0.2, server_lr=0.7, p=0.3), fed, X0, S), theirs)


WEIGHTED = [
    *("FedNova", "FedAvg", "FedProx", "FedAdam", "FedYogi", "FedAdagrad", "FedCM"),
    "FedSpeed without ascent is FedDyn",
]


@pytest.mark.parametrize("cohorts", COHORTS)
@pytest.mark.parametrize("case", WEIGHTED)
def test_weighted_by_size(case: str, cohorts: str) -> None:
    """Clients' numbers of steps differ as well."""
    sizes = np.array([len(b) for b in F.b])
    fed = federation(F, WORKS["epochs"], weights=sizes)
    algorithm, paper = CASES[case]
    theirs = paper(F, X0, COHORTS[cohorts], batches_of(fed), lambda t: 0.2, p=sizes / sizes.sum())
    assert_equal(iterates(algorithm, fed, X0, COHORTS[cohorts]), theirs)


def test_transcriptions_tell_the_rules_apart() -> None:
    """Partial participation, decay and the server's rule all matter at this tolerance, so a mix-up would be seen."""
    fed = federation(F, WORKS["epochs"], decay=decayed)
    B, S = batches_of(fed), COHORTS["2 of 10"]
    runs = [case.paper(F, X0, S, B, eta)[-1] for case in CASES.values() for eta in (lambda t: 0.2, lambda t: 0.1)]
    runs += [papers.fedamd(F, X0, S, [[ids[side]] for ids in S], B, lambda t: 0.2)[-1] for side in (0, 1)]
    gaps = [np.abs(a - b).max() for i, a in enumerate(runs) for b in runs[:i]]
    assert min(gaps) > 1e-4
