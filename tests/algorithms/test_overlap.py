"""Local methods that overlap communication: the papers round by round, published numbers, limits and stability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import CO2, DCO2, CoCoDSGD, DiLoCo, FedAvg, NoLoCo, OverlapSGD, SlowMo, StreamingDiLoCo
from algorithms.co2 import gap_aware
from algorithms.streaming_diloco import fragment
from fedsim.clients import cohort
from fedsim.controller.keeping import Keeping
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.engine.optimizers import AdamW
from fedsim.errors import ConfigError
from tests.algorithms import overlap_papers as papers
from tests.algorithms.gossip_federations import gossiping, mixing
from tests.algorithms.quadratics import (
    X0,
    F,
    batches_of,
    everybody,
    federation,
    half_squared_error,
    heterogeneous,
    iterates,
    states,
)
from topologies import Complete, RandomMatching, Ring, Static

T = 5
WORKS = {"whole shard": LocalWork(batch_size=0, steps=6), "epochs": LocalWork(batch_size=8, epochs=2)}
BACKENDS = pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])


def decayed(t: int) -> float:
    return 0.8**t


class Case(NamedTuple):
    algorithm: Any
    paper: Callable[..., list[np.ndarray]]
    settings: dict[str, Any]


CASES = {
    "DiLoCo": Case(DiLoCo(lr=0.2), papers.diloco, {"alpha": 0.7, "mu": 0.9, "nesterov": True}),
    "heavy ball": Case(
        DiLoCo(0.2, 0.5, 0.8, nesterov=False), papers.diloco, {"alpha": 0.5, "mu": 0.8, "nesterov": False}
    ),
    "SlowMo": Case(SlowMo(0.2, 0.9, 0.4), papers.slowmo, {"alpha": 0.9, "beta": 0.4}),
    "CO2": Case(CO2(0.2, 0.9, 0.3), papers.co2, {"alpha": 0.9, "beta": 0.3}),
    "CO2 clipped": Case(CO2(0.2, clip=0.02), papers.co2, {"alpha": 1.0, "beta": 0.2, "phi": 0.02}),
    "CO2 gap": Case(CO2(0.2, gap=gap_aware), papers.co2, {"alpha": 1.0, "beta": 0.2, "gap": True}),
    "Overlap-Local-SGD": Case(OverlapSGD(0.2), papers.overlap_sgd, {"alpha": 0.6, "beta": 0.7}),
    "CoCoD-SGD": Case(CoCoDSGD(0.2), papers.cocod_sgd, {}),
}


@BACKENDS
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("case", CASES)
def test_models_are_the_papers(case: str, work: str, backend: Any) -> None:
    algorithm, paper, settings = CASES[case]
    fed = federation(F, WORKS[work], backend, decayed)
    theirs = paper(F, X0, batches_of(fed), lambda t: 0.2 * decayed(t), T, **settings)[:T]
    ours = iterates(algorithm, fed, X0, everybody(F.n, T))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert np.abs(ours[-1] - X0).max() > 1e-2, "nothing moved"


GOSSIP = {
    "DCO2": Case(DCO2(0.2, 0.9, 0.3, gamma=0.5), papers.dco2, {"alpha": 0.9, "beta": 0.3, "gamma": 0.5}),
    "NoLoCo": Case(NoLoCo(0.2), papers.noloco, {"alpha": 0.7, "mu": 0.3}),
}


@BACKENDS
@pytest.mark.parametrize("case", GOSSIP)
@pytest.mark.parametrize("topology", [Static(Ring()), RandomMatching()], ids=["ring", "pairs"])
def test_models_of_nodes_are_the_papers(topology: Any, case: str, backend: Any) -> None:
    algorithm, paper, settings = GOSSIP[case]
    fed = gossiping(F, WORKS["epochs"], topology, backend)

    def W(t: int) -> np.ndarray:
        matrix: np.ndarray = topology.matrix(t, fed.seed, F.n).toarray()
        return matrix

    theirs = paper(F, X0, W, batches_of(fed), lambda t: 0.2, T, **settings)
    for state, x in zip(states(algorithm, fed, X0, everybody(F.n, T))[1:], theirs, strict=True):
        np.testing.assert_allclose([state.x[i].numpy() for i in range(F.n)], x, rtol=0, atol=1e-12)


@BACKENDS
@pytest.mark.parametrize(("count", "overlap"), [(1, 0.0), (3, 0.4), (3, 0.9)])
def test_fragments_are_streamed_in_turn(count: int, overlap: float, backend: Any) -> None:
    """A model of three tensors, ``x = (W, b, c)`` concatenated to the vector of the quadratic."""
    fed = federation(F, WORKS["epochs"], backend)
    fed = replace(fed, model=Model(Split(F.d), half_squared_error, dtype=torch.float64))
    shapes = tuple(fed.model.shapes)
    pieces = [fragment(shapes, k, count, torch.zeros(F.d)).numpy() for k in range(count)]
    assert sorted(np.concatenate(pieces)) == list(range(F.d)) and len(shapes) == 3
    theirs = papers.streaming_diloco(
        F, X0, batches_of(fed), lambda t: 0.2, T, pieces, 0.7, 0.9, lambda K: int(overlap * K), 0.3
    )
    algorithm = StreamingDiLoCo(0.2, fragments=count, overlap=overlap, alpha=0.3)
    np.testing.assert_allclose(iterates(algorithm, fed, X0, everybody(F.n, T)), theirs, rtol=0, atol=1e-12)


@BACKENDS
@pytest.mark.parametrize("state", ["keep", "reset"])
def test_streamed_fragments_meet_the_optimiser_between_two_of_its_steps(state: Any, backend: Any) -> None:
    """AdamW's means go on through the arrival of a fragment, and with ``keep`` from round to round."""
    work = replace(WORKS["epochs"], optimizer=AdamW(state=state))
    fed = federation(F, work, backend)
    fed = replace(fed, model=Model(Split(F.d), half_squared_error, dtype=torch.float64))
    pieces = [fragment(tuple(fed.model.shapes), k, 3, torch.zeros(F.d)).numpy() for k in range(3)]
    theirs = papers.streaming_diloco(
        F, X0, batches_of(fed), lambda t: 0.02, T, pieces, 0.7, 0.9, lambda K: int(0.4 * K), 0.3,
        papers.AdamWSteps(keep=state == "keep"),
    )  # fmt: skip
    algorithm: Any = StreamingDiLoCo(0.02, fragments=3, overlap=0.4, alpha=0.3)
    if state == "keep":
        algorithm = Keeping(algorithm, work.optimizer.slots(fed.model.zeros()))
    np.testing.assert_allclose(iterates(algorithm, fed, X0, everybody(F.n, T)), theirs, rtol=0, atol=1e-12)


class Split(nn.Module):
    """A linear function without bias, its weights in three tensors."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.zeros(1, size)) for size in (7, 4))
        self.c = nn.Parameter(torch.zeros(1, d - 11))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x @ torch.cat([self.a, self.b, self.c], 1).T
        return out


def scalars(a: list[float], steps: int, scale: list[float] | None = None) -> Federation:
    """Client i's objective is ``(s_i x - a_i)^2 / 2``."""
    x = torch.tensor([scale or [1.0] * len(a)], dtype=torch.float64).T
    model = Model(nn.Linear(1, 1, bias=False), half_squared_error, dtype=torch.float64)
    shards = Shards(x, torch.tensor(a, dtype=torch.float64), np.arange(len(a) + 1))
    return Federation(model, shards, LocalWork(batch_size=0, steps=steps), 0, Loop())


def path(algorithm: Any, fed: Federation, rounds: int, x0: float = 0.0) -> list[float]:
    """The server's scalar model after every round."""
    return [float(x[0]) for x in iterates(algorithm, fed, np.array([x0]), everybody(fed.shards.n, rounds))]


def test_published_numbers() -> None:
    pair = scalars([1.0, 3.0], 4)
    np.testing.assert_allclose(
        path(DiLoCo(lr=0.1), pair, 4), [0.914774, 1.8011248645, 2.4546817346, 2.7918297130], atol=1e-10, rtol=0
    )
    fed = replace(pair, topology=Static(Complete()))
    algorithm = NoLoCo(lr=0.1)
    s = algorithm.init(torch.zeros(1, dtype=torch.float64), cohort(fed, 0))
    s = s._replace(x=type(s.x)(2, s.x.default, {0: torch.zeros(1).double(), 1: torch.ones(1).double()}))
    for expected in [(0.711095, 1.011095), (1.3035921006, 1.1835921007), (1.6214313045, 1.4594313045)]:
        s = algorithm.round(s, cohort(fed, 1))
        np.testing.assert_allclose([float(s.x[0]), float(s.x[1])], expected, atol=1e-10, rtol=0)


def test_limits_are_fedavg_bit_for_bit() -> None:
    fed, S = federation(F, WORKS["epochs"]), everybody(F.n, T)
    local = iterates(FedAvg(lr=0.2), fed, X0, S)
    np.testing.assert_array_equal(iterates(DiLoCo(0.2, 1.0, 0.0), fed, X0, S), local)
    np.testing.assert_allclose(iterates(SlowMo(0.2, 1.0, 0.0), fed, X0, S), local, rtol=0, atol=1e-14)
    streaming = StreamingDiLoCo(0.2, fragments=1, overlap=0.0, alpha=0.0)
    np.testing.assert_allclose(
        iterates(streaming, fed, X0, S), iterates(DiLoCo(0.2), fed, X0, S), rtol=0, atol=1e-14
    )
    whole = gossiping(F, WORKS["epochs"], Static(Complete()))
    server, nodes = CO2(0.2, outer_momentum=0.3), DCO2(0.2, outer_momentum=0.3, gamma=1.0)
    for state, x in zip(states(nodes, whole, X0, S)[1:], iterates(server, fed, X0, S), strict=True):
        np.testing.assert_allclose(state.x[3].numpy(), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("algorithm", [CO2(0.2), DCO2(0.2)])
def test_finish_uses_what_is_under_way(algorithm: Any) -> None:
    """The model after ``finish`` is that of another round, whose own local work is only sent in it."""
    fed = gossiping(F, WORKS["epochs"], Static(Ring()))
    *_, before, after = states(algorithm, fed, X0, everybody(F.n, T + 1))
    ended = algorithm.finish(before, cohort(fed, T))
    for node in range(F.n) if isinstance(algorithm, DCO2) else [slice(None)]:
        assert torch.equal(ended.x[node], after.x[node]) and not torch.equal(ended.x[node], before.x[node])
    again = algorithm.finish(replace_momentum(ended), cohort(fed, T))
    assert torch.equal(again.x[0], ended.x[0])             # nothing is under way any more


def replace_momentum(s: Any) -> Any:
    """The state with its outer momentum at zero."""
    if hasattr(s, "m"):
        return s._replace(m=torch.zeros_like(s.m))
    zero = {i: row._replace(m=torch.zeros_like(row.m)) for i, row in s.held.rows.items()}
    return s._replace(held=type(s.held)(s.held.n, s.held.default, zero))


@pytest.mark.parametrize("s", [0.5, 0.99, 1.01, 1.5])
def test_co2_converges_if_and_only_if_a_round_covers_less_than_the_whole_way(s: float) -> None:
    x = path(CO2(lr=s, outer_momentum=0.0), scalars([0.0], 1), 120, 1.0)
    recursion = [1.0, 1.0]                                 # x_{t+1} = x_t - s x_{t-1}, with D = 0 first
    for _ in range(119):
        recursion.append(recursion[-1] - s * recursion[-2])
    np.testing.assert_allclose(x, recursion[1:], rtol=1e-9, atol=1e-12)
    assert (max(map(abs, x[-20:])) < max(map(abs, x[:20]))) == (s < 1)


def test_delay_moves_no_fixed_point() -> None:
    fed = scalars([1.0, -2.0, 3.0, 0.5], 4, [1.0, 0.5, 2.0, 0.3])
    same = [
        FedAvg(0.05), DiLoCo(0.05, 0.7, 0.5), SlowMo(0.05), CO2(0.05, 0.5, 0.3), CO2(0.05, 0.5, 0.3, gap=gap_aware)
    ]  # fmt: skip
    ends = [path(algorithm, fed, 120)[-1] for algorithm in same]
    np.testing.assert_allclose(ends, ends[0], rtol=0, atol=1e-9)
    best = (1 - 1 + 6 + 0.15) / (1 + 0.25 + 4 + 0.09)
    assert abs(ends[0] - best) > 1e-3                      # a bias of local steps, as the clients' curvatures differ
    apart = [path(algorithm, fed, 120)[-1] for algorithm in (OverlapSGD(0.05), CoCoDSGD(0.05))]
    assert min(abs(end - ends[0]) for end in apart) > 1e-4


def test_nodes_agree_over_any_ring_of_pairs() -> None:
    """The consensus of DCO2's default step size is stable for an eigenvalue of W close to -1."""
    f = heterogeneous(4, same=True)
    fed = gossiping(f, LocalWork(0, steps=1), Static(nx.complete_bipartite_graph(2, 2)))
    assert np.linalg.eigvalsh(mixing(fed.topology, 1, 4)).min() < -0.3   # type: ignore[arg-type]
    start = [1.0, -1.0, 2.0, 0.0]
    s = DCO2(lr=1e-9).init(torch.ones(f.d, dtype=torch.float64), cohort(fed, 0))
    s = s._replace(x=type(s.x)(4, s.x.default, {i: v * s.x.default for i, v in enumerate(start)}))
    for t in range(1, 60):
        s = DCO2(lr=1e-9).round(s, cohort(fed, t))
    rows = torch.stack([s.x[i] for i in range(4)])
    assert (rows - rows.mean(0)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DiLoCo(outer_lr=0.0), "outer_lr"),
        (lambda: CO2(clip=-1.0), "clip"),
        (lambda: CO2(outer_momentum=1.0), "outer_momentum"),
        (lambda: DCO2(gamma=1.5), "gamma"),
        (lambda: OverlapSGD(alpha=0.0), "alpha"),
        (lambda: StreamingDiLoCo(overlap=1.0), "overlap"),
        (lambda: StreamingDiLoCo(fragments=0), "fragments"),
    ],
)
def test_bad_settings(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_no_more_fragments_than_tensors() -> None:
    with pytest.raises(ConfigError, match="has 1 tensors; expected at most"):
        states(StreamingDiLoCo(fragments=2), federation(F, WORKS["epochs"]), X0, [])
