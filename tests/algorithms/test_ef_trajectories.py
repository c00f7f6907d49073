"""The compressed methods of the engine against the papers: the same models, round by round, to 1e-12 in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

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
from fedsim import seeds
from fedsim.compress import RandK, TopK
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from tests.algorithms import feedback_papers as papers
from tests.algorithms.quadratics import SEED, X0, F, batches_of, everybody, federation, iterates, some

WORK = LocalWork(batch_size=8, steps=3)
ALL, FEW = everybody(F.n, 6), some(F.n, 3, 8)
TOP, LR = TopK(k=4), 0.2
L = np.linspace(1, 9, F.n)
X_STAR = F.minimiser()


def heads(p: float) -> Callable[[int], bool]:
    """The coin that the engine tosses for all."""
    return lambda t: bool(seeds.uniform(SEED, "coin", t, 0) < p)


class At:
    """Site at which client ``i`` compresses in round ``t``."""

    shapes = (torch.Size([F.d]),)

    def __init__(self, t: int, i: int) -> None:
        self.t, self.i = t, i

    def key(self, tag: int = 0) -> torch.Tensor:
        return seeds.key(SEED, f"client {tag}", self.t, np.array([self.i]))[0]


def rand_k(t: int, i: int, v: np.ndarray) -> np.ndarray:
    """The engine's Rand-k with that client's randomness."""
    out: np.ndarray = RandK(k=5).compress(torch.from_numpy(v), At(t, i)).unpack().numpy()
    return out


def soft(x: np.ndarray, gamma: float) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - gamma * 0.1, 0)


class Case(NamedTuple):
    """An algorithm of the engine, and the paper's."""

    ours: Any
    paper: Callable[..., list[np.ndarray]]
    minibatch: bool = False


top = papers.top_k(4)
CASES = {
    "DCGD": Case(DCGD(LR, TOP), partial(papers.dcgd, C=top)),
    "DCGD minibatch": Case(DCGD(LR, TOP, "minibatch"), partial(papers.dcgd, C=top), True),
    "DCGD rand-k": Case(DCGD(LR, RandK(k=5)), partial(papers.dcgd, C=rand_k)),
    "EF14": Case(EF14(LR, TOP), partial(papers.ef14, C=top)),
    "EF14 minibatch": Case(EF14(LR, TOP, "minibatch"), partial(papers.ef14, C=top), True),
    "EF21": Case(EF21(LR, TOP), partial(papers.ef21, C=top)),
    "EF21 compressed": Case(EF21(LR, TOP, "compressed"), partial(papers.ef21, C=top, start="compressed")),
    "EF21 zero": Case(EF21(LR, TOP, "zero"), partial(papers.ef21, C=top, start="zero")),
    "EF21-SGD": Case(EF21(LR, TOP, gradient="minibatch"), partial(papers.ef21, C=top), True),
    "EF21-HB": Case(EF21(LR, TOP, momentum=0.7), partial(papers.ef21, C=top, eta=0.7)),
    "EF21-Prox": Case(EF21(LR, TOP, prox=L1(0.1)), partial(papers.ef21, C=top, prox=soft)),
    "EF21+": Case(EF21Plus(3.0, TopK(k=8)), partial(papers.ef21_plus, C=papers.top_k(8))),
    "EF21-W": Case(EF21W(LR, TOP, smoothness=tuple(L)), partial(papers.ef21_w, C=top, L=L)),
    "EF21-W-SGD": Case(EF21W(LR, TOP, "minibatch", tuple(2 * L)), partial(papers.ef21_w, C=top, L=L), True),
    "EF21-SGDM": Case(EF21SGDM(LR, TOP, eta=0.3), partial(papers.ef21_sgdm, C=top, eta=0.3), True),
    "EF21-SGD2M": Case(
        EF21SGDM(LR, TOP, eta=0.3, momenta=2), partial(papers.ef21_sgdm, C=top, eta=0.3, double=True), True
    ),
    "EF21-PAGE": Case(EF21PAGE(LR, TOP, p=0.4), partial(papers.ef21_page, C=top, heads=heads(0.4)), True),
    "EControl": Case(EControl(LR, TOP, eta=0.3), partial(papers.econtrol, C=top, eta=0.3)),
    "EControl alpha": Case(EControl(LR, TOP), partial(papers.econtrol, C=top, eta=4 / F.d)),
    "EControl compressed": Case(
        EControl(LR, TOP, 0.3, "compressed", "minibatch"),
        partial(papers.econtrol, C=top, eta=0.3, start="compressed"),
        True,
    ),
    "EControl zero": Case(EControl(LR, TOP, 0.3, "zero"), partial(papers.econtrol, C=top, eta=0.3, start="zero")),
    "EC-Ideal": Case(ECIdeal(LR, TOP, tuple(X_STAR)), partial(papers.ec_ideal, C=top, x_star=X_STAR)),
    "DIANA": Case(DIANA(LR, RandK(k=5)), partial(papers.diana, C=rand_k, alpha=0.25)),
    "DIANA minibatch": Case(
        DIANA(LR, RandK(k=5), alpha=0.1, gradient="minibatch"), partial(papers.diana, C=rand_k, alpha=0.1), True
    ),
    "MARINA": Case(MARINA(LR, RandK(k=5), p=0.4), partial(papers.marina, C=rand_k, heads=heads(0.4))),
    "VR-MARINA": Case(
        MARINA(LR, RandK(k=5), p=0.4, gradient="minibatch"), partial(papers.marina, C=rand_k, heads=heads(0.4)), True
    ),
}


def decayed(t: int) -> float:
    return 0.9**t


def assert_equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for t, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
        assert np.abs(a - b).max() <= 1e-12, f"round {t}: {np.abs(a - b).max():.1e}"
    assert np.abs(ours[-1] - X0).max() > 1e-3, "nothing moved"


@pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
@pytest.mark.parametrize("cohorts", [ALL, FEW], ids=["everybody", "3 of 10"])
@pytest.mark.parametrize("case", CASES)
def test_same_models_as_the_paper(case: str, cohorts: list[list[int]], backend: Any) -> None:
    ours, paper, minibatch = CASES[case]
    fed = federation(F, WORK, backend, decay=decayed)
    theirs = paper(F, X0, cohorts, batches_of(fed) if minibatch else None, lambda t: ours.lr * decayed(t))
    assert_equal(iterates(ours, fed, X0, cohorts), theirs)


@pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
def test_both_directions(backend: Any) -> None:
    ours = iterates(EF21BC(LR, TOP, TopK(k=6)), federation(F, WORK, backend, decay=decayed), X0, ALL)
    theirs = papers.ef21_bc(F, X0, ALL, lambda t: LR * decayed(t), top, papers.top_k(6))
    assert_equal(ours, theirs)


def test_the_coins_of_these_rounds_show_both_sides() -> None:
    assert {heads(0.4)(t) for t in range(1, len(ALL) + 1)} == {True, False}


def test_ef21_plus_sends_either_message() -> None:
    """Else its trajectory would say nothing about replacements."""
    plus = iterates(CASES["EF21+"].ours, federation(F, WORK), X0, ALL)
    plain = iterates(EF21(3.0, TopK(k=8)), federation(F, WORK), X0, ALL)
    assert np.abs(plus[-1] - plain[-1]).max() > 1e-6
