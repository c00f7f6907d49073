"""Gossip in the engine against the papers: the same models at every node, round by round, to 1e-12 in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from algorithms import D2, DPSGD, KGT, L1, NIDS, SGP, DFedAvg, DFedSAM, ExactDiffusion, Extra, GradientTracking, QGDSGDm
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from tests.algorithms import gossip_papers as papers
from tests.algorithms.gossip_federations import PUSH, TOPOLOGIES, gossiping, mixing, models
from tests.algorithms.quadratics import batches_of, heterogeneous
from topologies import LinkFailures, Static

F = heterogeneous(n=6, d=5)
X0 = np.random.default_rng(9).standard_normal(F.d)
T = 5
WORKS = {
    "whole shard": LocalWork(batch_size=0, steps=3),
    "epochs": LocalWork(batch_size=4, epochs=2),
    "one minibatch": LocalWork(batch_size=4, steps=1),
}


class Case(NamedTuple):
    """An algorithm of the engine and the paper's, with the settings that the paper's takes besides."""

    algorithm: Any
    paper: Callable[..., list[np.ndarray]]
    settings: dict[str, Any] = {}  # noqa: RUF012 - never written to


CASES = {
    "DFedAvg": Case(DFedAvg(lr=0.2), papers.dfedavg),
    "DFedAvgM": Case(DFedAvg(lr=0.2, momentum=0.8), papers.dfedavg, {"theta": 0.8}),
    "DFedAvg, 3 exchanges": Case(DFedAvg(lr=0.2, gossip_steps=3), papers.dfedavg, {"Q": 3}),
    "DFedAvgM, combine first": Case(
        DFedAvg(lr=0.2, momentum=0.8, gossip_steps=2, order="CTA"),
        papers.dfedavg,
        {"theta": 0.8, "Q": 2, "combine_first": True},
    ),
    "DFedSAM": Case(DFedSAM(lr=0.2, rho=0.03), papers.dfedsam, {"rho": 0.03}),
    "DFedSAM-MGS": Case(DFedSAM(lr=0.2, rho=0.03, gossip_steps=2), papers.dfedsam, {"rho": 0.03, "Q": 2}),
    "DFedSAM, combine first": Case(
        DFedSAM(lr=0.2, rho=0.03, gossip_steps=3, order="CTA"),
        papers.dfedsam,
        {"rho": 0.03, "Q": 3, "combine_first": True},
    ),
    "D-PSGD": Case(DPSGD(lr=0.2), papers.dpsgd),
    "D-PSGD, worker momentum": Case(DPSGD(lr=0.2, momentum=0.8), papers.dpsgd, {"beta": 0.8}),
    "DSGT": Case(GradientTracking(lr=0.2), papers.dsgt),
    "K-GT": Case(KGT(lr=0.2), papers.kgt),
    "K-GT, shorter exchange": Case(KGT(lr=0.2, server_lr=0.7), papers.kgt, {"eta_s": 0.7}),
    "QG-DSGDm": Case(QGDSGDm(lr=0.2, momentum=0.8), papers.qg_dsgdm, {"beta": 0.8, "mu": 0.8}),
    "QG-DSGDm-N": Case(
        QGDSGDm(lr=0.2, momentum=0.8, mu=0.5, nesterov=True),
        papers.qg_dsgdm,
        {"beta": 0.8, "mu": 0.5, "nesterov": True},
    ),
    "SGP": Case(SGP(lr=0.2), papers.sgp),
}
SYMMETRIC = {
    "EXTRA": Case(Extra(lr=0.2), papers.extra),
    "Exact Diffusion": Case(ExactDiffusion(lr=0.2), papers.exact_diffusion),
    "NIDS": Case(NIDS(lr=0.2), papers.nids),
    "NIDS, regularised": Case(NIDS(lr=0.2, theta=0.4, prox=L1(0.3)), papers.nids, {"theta": 0.4, "lam": 0.3}),
    "D2": Case(D2(lr=0.2), papers.d2),
}


def decayed(t: int) -> float:
    return 0.9**t


def compare(case: Case, topology: Any, work: str, backend: Any) -> None:
    fed = gossiping(F, WORKS[work], topology, backend, decay=decayed)

    def W(t: int) -> np.ndarray:
        return topology.matrix(t, fed.seed, F.n).toarray()  # type: ignore[no-any-return]

    theirs = case.paper(F, X0, W, batches_of(fed), lambda t: 0.2 * decayed(t), T, **case.settings)
    ours = models(case.algorithm, fed, X0, T)
    for t, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
        assert np.abs(a - b).max() <= 1e-12, f"round {t}: {np.abs(a - b).max():.1e}"
    assert np.abs(ours[-1] - X0).max() > 1e-2, "nobody moved"
    assert np.abs(ours[-1] - ours[-1][0]).max() > 1e-2, "all alike"


each_work = pytest.mark.parametrize("work", WORKS)
each_backend = pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])


@each_backend
@each_work
@pytest.mark.parametrize("case", [*CASES, *SYMMETRIC])
def test_models_are_the_papers(case: str, work: str, backend: Any) -> None:
    """On a graph whose nodes have one to four neighbours."""
    compare((CASES | SYMMETRIC)[case], TOPOLOGIES["irregular"], work, backend)


@pytest.mark.parametrize("topology", ["one peer", "directed"])
@pytest.mark.parametrize("case", CASES)
def test_over_directed_links(case: str, topology: str) -> None:
    compare(CASES[case], TOPOLOGIES[topology], "epochs", None)


@each_backend
@each_work
def test_push_sum_where_rows_do_not_sum_to_one(work: str, backend: Any) -> None:
    assert np.abs(mixing(PUSH, 1, 6).sum(1) - 1).max() > 0.2
    compare(CASES["SGP"], PUSH, work, backend)


@pytest.mark.parametrize("case", CASES)
def test_links_that_fail_at_random(case: str) -> None:
    """The seed of the run decides which, anew in every round."""
    topology = LinkFailures(Static(TOPOLOGIES["irregular"].graph), 0.4)  # type: ignore[attr-defined]
    compare(CASES[case], topology, "epochs", None)


def test_transcriptions_tell_the_rules_apart() -> None:
    """Order, exchanges, momentum and ascent, and the step size in use, all matter far above the tolerance."""
    fed = gossiping(F, WORKS["epochs"], TOPOLOGIES["ring"])
    runs = [
        case.paper(F, X0, lambda t: mixing(TOPOLOGIES["ring"], t, F.n), batches_of(fed), eta, T, **case.settings)[-1]
        for name, case in (CASES | SYMMETRIC).items()
        for eta in (lambda t: 0.2, lambda t: 0.1)
        if name != "SGP"                                   # it is DFedAvg where W is doubly stochastic
    ]
    assert min(np.abs(a - b).max() for i, a in enumerate(runs) for b in runs[:i]) > 1e-4
