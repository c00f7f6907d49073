"""RoLoRA, FLoRA, FedEx-LoRA and HetLoRA against their papers: models, exactness, and every byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms import EVA, FedAvg, FedExLoRA, FLoRA, HetLoRA, LoRAGA, RoLoRA
from algorithms.adapters import Adapters, Pair
from fedsim import MLP, LocalWork, Rebuilt
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.clients import cohort
from fedsim.data import Split
from fedsim.engine.blocks import Blocks
from fedsim.engine.examine import examine
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import Shards, minibatches
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.errors import ConfigError
from fedsim.feedback import EF14Uplink
from fedsim.feedback.compressed import Compressed
from fedsim.messages.wire import encode, nbytes
from fedsim.models import LoRA, merged
from fedsim.models.losses import cross_entropy
from tests.algorithms import lora_papers as papers
from tests.backends.ray.shared import workers
from tests.contract.cases import gap, same_bits

RANK, S, ETA = 2, 1.5, 0.2                                 # rank, alpha / r, lr
D, K = (9, 3), (16, 9)                                     # of both layers
PAIR = sum(RANK * (d + k) for d, k in zip(D, K, strict=True))
SIZES, N = (3, 17, 9, 5, 12, 8), 6
COHORTS = ([0, 1, 3, 4, 5], [1, 2, 4, 5], [0, 2, 3], [0, 1, 2, 5])
EVERYBODY = ([*range(N)],) * 4
RANKS = (2, 1, 2, 1, 2, 1)


def federation(residual: bool, backend: Any = None, weighted: bool = False, trained: str = "") -> Federation:
    """Six clients with a network whose two layers have products of rank 2, in random state."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SIZES), 16, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (len(x),), generator=generator)
    torch.manual_seed(3)
    targets = "1" if trained else "1, 3"
    settings = LoRA(MLP((9,)), rank=RANK, alpha=S * RANK, targets=targets, residual=residual, trained=trained)
    model = Model(settings.build((16,), 3), cross_entropy, dtype=torch.float64)
    examine(model, Split(x, y))
    sizes = np.array(SIZES)
    shards = Shards(x, y, np.r_[0, np.cumsum(sizes)])
    return Federation(model, shards, LocalWork(4, epochs=2), 7, backend or Loop(), weights=sizes if weighted else None)


@cache
def start(residual: bool, trained: str = "") -> Tensor:
    """The initial vector: a module has that of its last use."""
    return federation(residual, trained=trained).model.vector()


def played(algorithm: Any, fed: Federation, cohorts: Any, meter: Meter | None = None) -> list[Any]:
    """The states after initialisation and after each round."""
    names = fed.model.names
    x = start("1.lora_R" in names, "3" if "3.weight" in names else "")
    found = [algorithm.init(x, cohort(fed, 0, meter=meter))]
    for t, ids in enumerate(cohorts, 1):
        found.append(algorithm.round(found[-1], cohort(fed, t, np.array(ids), meter)))
    return found


def net_of(fed: Federation, x: Tensor) -> papers.Net:
    """The layers at ``x``, as the papers write them."""
    module = fed.model.load(x.clone())
    layers = []
    for name in ("1", "3"):
        layer = module.get_submodule(name)
        R = torch.zeros_like(layer.linear.weight) if layer.lora_R is None else layer.lora_R
        tensors = layer.linear.weight, layer.linear.bias, layer.lora_A, layer.lora_B, R
        layers.append(papers.Layer(*(t.detach().clone() for t in tensors)))
    return layers[0], layers[1]


def batches_of(fed: Federation) -> papers.Batches:
    def batches(t: int, i: int) -> list[tuple[Tensor, Tensor]]:
        (plan,) = minibatches(fed.work, fed.shards, fed.seed, t, np.array([i]))
        rows = [index[:length] for index, length in zip(plan.index, plan.lengths, strict=True)]
        return [(fed.shards.x[r], fed.shards.y[r]) for r in rows]

    return batches


METHODS: dict[str, tuple[Any, bool, Callable[..., papers.Net]]] = {
    "RoLoRA": (RoLoRA(ETA), False, papers.rolora),
    "FLoRA": (FLoRA(ETA), True, lambda *a: papers.flora(*a, ranks=(RANK,) * N)),
    "FLoRA, ranks": (FLoRA(ETA, ranks=(2, 1)), True, lambda *a: papers.flora(*a, ranks=RANKS)),
    "FedEx-LoRA": (FedExLoRA(ETA), True, lambda *a: papers.fedex(*a, exact=True)),
    "FedIT": (FedExLoRA(ETA, exact=False), True, lambda *a: papers.fedex(*a, exact=False)),
    "HetLoRA": (HetLoRA(ETA, ranks=(2, 1)), False, lambda *a: papers.hetlora(*a, ranks=RANKS, by_norm=True)),
    "padding": (HetLoRA(ETA, (2, 1), False), False, lambda *a: papers.hetlora(*a, ranks=RANKS, by_norm=False)),
}
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.mark.parametrize("weighted", [False, True])
@every_method
def test_the_method_is_the_paper_s(method: str, weighted: bool) -> None:
    algorithm, residual, paper = METHODS[method]
    fed = federation(residual, weighted=weighted)
    theirs = paper(net_of(fed, start(residual)), COHORTS, batches_of(fed), S, ETA, fed.p.tolist())
    ours = net_of(fed, played(algorithm, fed, COHORTS)[-1].x)
    for a, b in zip(ours, theirs, strict=True):
        for name in ("R",) if isinstance(algorithm, FLoRA) else ("A", "B", "R"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-12)
        torch.testing.assert_close(papers.weights(a, S), papers.weights(b, S), rtol=0, atol=1e-12)
        assert float((papers.weights(a, S) - a.W0).abs().max()) > 1e-2, "nothing moved"


@every_method
@pytest.mark.parametrize("backend", [Blocks(1), Blocks(4), pytest.param("ray", marks=pytest.mark.ray)], ids=str)
def test_backends_agree_in_model_and_ledger(method: str, backend: Any) -> None:
    algorithm, residual, _ = METHODS[method]
    fed = federation(residual)
    other = replace(fed, backend=RayActors(workers(), 2) if backend == "ray" else backend)
    meters = Meter(fed), Meter(other)
    ours, theirs = (played(algorithm, f, COHORTS, m) for f, m in zip((fed, other), meters, strict=True))
    assert all(gap(a, b) < 1e-12 for a, b in zip(ours, theirs, strict=True))
    ledgers = [meter.ledger.snapshot() for meter in meters]
    for name in ledgers[0]:
        np.testing.assert_array_equal(ledgers[0][name], ledgers[1][name], err_msg=name)


@every_method
def test_a_round_is_a_function_of_its_state(method: str) -> None:
    algorithm, residual, _ = METHODS[method]
    fed = federation(residual)
    states = played(algorithm, fed, COHORTS)
    assert all(same_bits(a, b) for a, b in zip(states, played(algorithm, fed, COHORTS), strict=True))
    third = algorithm.round(states[2], cohort(fed, 3, np.array(COHORTS[2])))
    assert same_bits(third, states[3])


def effective(fed: Federation, x: Tensor) -> Tensor:
    return torch.cat([papers.weights(layer, S).flatten() for layer in net_of(fed, x)])


def test_exact_methods_give_the_mean_of_the_clients_weights() -> None:
    """One round from a common model: FLoRA and FedEx-LoRA are the same function, FedIT is another."""
    fed = federation(True)
    x = start(True)
    net = net_of(fed, x)
    ends = [papers.trained(net, batches_of(fed)(1, i), S, ETA) for i in range(N)]
    mean = sum(torch.cat([papers.weights(layer, S).flatten() for layer in end]) for end in ends) / N
    moved, gaps = float((mean - effective(fed, x)).norm()), []
    for by in (FLoRA(ETA), FedExLoRA(ETA), FedExLoRA(ETA, exact=False)):
        gaps.append(float((effective(fed, played(by, fed, EVERYBODY[:1])[-1].x) - mean).norm()) / moved)
    assert gaps[0] < 1e-13 and gaps[1] < 1e-13 and gaps[2] > 1e-3, gaps


def test_the_error_of_the_mean_of_factors_and_that_of_the_stack() -> None:
    """Three Gaussian clients, r = 2, A [2, 5], B [4, 2], p = (.5, .3, .2): 77 % off, by a matrix of full rank."""
    rng = np.random.default_rng(1)
    pairs = list(zip(*([rng.standard_normal(shape) for _ in range(3)] for shape in ((2, 5), (4, 2))), strict=True))
    p, layout = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), Adapters((Pair(0, 10, 18, 2, 4, 5),), 38)
    rows = torch.from_numpy(np.stack([np.r_[a.ravel(), b.ravel()] for a, b in pairs]))
    exact = sum(q * b @ a for q, (a, b) in zip(p.tolist(), pairs, strict=True)).ravel()

    def total(messages: Tensor, weights: Tensor) -> Any:
        stack = layout.stacked(messages, 2, weights)
        return layout.grown(torch.zeros(38, dtype=torch.float64), layout.split(stack), [len(stack)])[18:].numpy()

    mean = p @ rows
    stacked, naive = total(rows, p), total(mean[None], torch.ones(1, dtype=torch.float64))
    difference = total(torch.cat([rows, mean[None]]), torch.cat([p, -torch.ones(1, dtype=torch.float64)]))
    size = np.linalg.norm(exact)
    assert np.linalg.norm(naive - exact) / size == pytest.approx(0.7729, abs=5e-5)
    assert np.linalg.matrix_rank(difference.reshape(4, 5)) == 4
    for found in (stacked, naive + difference):
        assert np.linalg.norm(found - exact) / size < 1e-15


def bytes_of(numbers: int) -> int:
    """A message of one vector in double precision."""
    return nbytes(torch.zeros(numbers, dtype=torch.float64))


def costs(algorithm: Any, residual: bool, cohorts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bytes down and up of each client in each round, ``[rounds, n]``."""
    fed, found = federation(residual), []
    meter = Meter(fed)
    state = algorithm.init(start(residual), cohort(fed, 0, meter=meter))
    for t, ids in enumerate(cohorts, 1):
        before = meter.ledger.down.copy(), meter.ledger.up.copy()
        state = algorithm.round(state, cohort(fed, t, np.array(ids), meter))
        found.append((meter.ledger.down - before[0], meter.ledger.up - before[1]))
    down, up = zip(*found, strict=True)
    return np.array(down), np.array(up)


def message(*shapes: Any) -> int:
    """Size of the real message with tensors of these shapes, in tuples as they are nested."""

    def made(shape: Any) -> Any:
        if isinstance(shape, tuple):
            return tuple(map(made, shape))
        return torch.zeros(shape, dtype=torch.float64)

    return len(encode(tuple(map(made, shapes))))


HALF_A, HALF_B = sum(RANK * k for k in K), sum(RANK * d for d in D)


def test_rolora_sends_half_of_the_pair_each_way() -> None:
    down, up = costs(RoLoRA(ETA), False, EVERYBODY)
    assert (down[0] == bytes_of(HALF_A)).all()             # B = 0 is known
    assert (down[1] == bytes_of(HALF_B)).all() and (down[2] == bytes_of(HALF_A)).all()
    assert (up[0] == bytes_of(HALF_B)).all() and (up[1] == bytes_of(HALF_A)).all()
    away, _ = costs(RoLoRA(ETA), False, ([0, 1], [0], [0, 1, 2]))
    assert away[2].tolist()[:3] == [bytes_of(HALF_A), bytes_of(HALF_A + HALF_B), bytes_of(HALF_A + HALF_B)]


def test_flora_sends_the_stacks_that_a_client_lacks() -> None:
    """Sum r_i / r pairs down, r_i / r up; R [d, k] itself where that is less."""

    def stack(rank: int) -> tuple[Any, ...]:
        small = [rank * (d + k) < d * k for d, k in zip(D, K, strict=True)]
        return tuple(
            ([rank, k], [d, rank]) if less else [d, k] for less, d, k in zip(small, D, K, strict=True)
        )

    first = message([0], [HALF_A])
    down, up = costs(FLoRA(ETA), True, ([0, 1], [0, 1], [0, 2], [0, 1]))
    assert (up[0][:2] == bytes_of(PAIR)).all()
    assert down[0].tolist() == [first, first, 0, 0, 0, 0]
    assert down[1].tolist()[:2] == [message([0], stack(4))] * 2
    assert down[2].tolist()[:3] == [message([0], stack(4)), 0, message([0], stack(8), [HALF_A])]
    assert down[3].tolist()[:2] == [message([0], stack(4)), message([0], stack(8))]
    assert stack(4)[0] == ([4, 16], [9, 4]) and stack(8)[0] == [9, 16] and stack(4)[1] == [3, 9]
    _, up = costs(FLoRA(ETA, ranks=(2, 1)), True, EVERYBODY[:1])
    assert up[0].tolist() == [bytes_of(PAIR), bytes_of(PAIR // 2)] * 3


def test_fedex_lora_sends_the_pair_and_the_differences() -> None:
    down, up = costs(FedExLoRA(ETA), True, ([0, 1], [0], [0, 1]))
    dense = ([9, 16], [3, 9])
    assert (up[0][:2] == bytes_of(PAIR)).all() and (down[0][:2] == message([PAIR])).all()
    assert down[1][0] == message([PAIR], dense)         # of rank (2 + 1) 2, as large as R
    assert down[2].tolist()[:2] == [message([PAIR], (([4, 16], [9, 4]), [3, 9])), message([PAIR], dense)]
    fedit, up = costs(FedExLoRA(ETA, exact=False), True, EVERYBODY[:2])
    assert (fedit == message([PAIR])).all() and (up == bytes_of(PAIR)).all()


def test_hetlora_sends_the_client_s_ranks_each_way() -> None:
    down, up = costs(HetLoRA(ETA, ranks=(2, 1)), False, EVERYBODY[:2])
    for sent in (down, up):
        assert (sent == np.array([bytes_of(PAIR), bytes_of(PAIR // 2)] * 3)).all()


def test_with_one_client_all_are_fedit() -> None:
    """And RoLoRA is one factor after the other. After one round, as FLoRA then begins with new factors."""
    ends = {name: papers.weights(net_of(fed, played(by, fed, ([1],))[-1].x)[0], S)
            for name, by, fed in (
                ("FedIT", FedAvg(ETA), federation(False)), ("FedEx", FedExLoRA(ETA), federation(True)),
                ("FLoRA", FLoRA(ETA), federation(True)), ("HetLoRA", HetLoRA(ETA), federation(False)))}  # fmt: skip
    for end in ends.values():
        torch.testing.assert_close(end, ends["FedIT"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", ["RoLoRA", "FLoRA, ranks", "FedEx-LoRA", "HetLoRA"])
def test_a_head_that_trains_as_a_whole_is_averaged(method: str) -> None:
    algorithm, residual, _ = METHODS[method]
    fed = federation(residual, trained="3")
    x, state = start(residual, "3"), played(algorithm, fed, EVERYBODY)
    head = slice(-(3 * 9 + 3), None)
    assert float((state[-1].x[head] - x[head]).abs().max()) > 1e-3
    blocks = played(algorithm, replace(fed, backend=Blocks(4)), EVERYBODY)
    assert gap(state[-1], blocks[-1]) < 1e-12
    if method == "RoLoRA":                                 # one step: the plain mean of gradients
        one = replace(fed, work=LocalWork(0, steps=1))
        mean = sum(one.model.gradient(x, batch) for batch in map(one.shards.rows, range(N))) / N
        torch.testing.assert_close(played(algorithm, one, EVERYBODY[:1])[-1].x[head], (x - ETA * mean)[head])


def test_what_is_added_to_the_weights_is_merged() -> None:
    fed = federation(True)
    module = fed.model.load(played(FedExLoRA(ETA), fed, COHORTS)[-1].x)
    x = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(merged(module)(x), module(x), rtol=0, atol=1e-12)


def test_models_that_do_not_fit_are_refused() -> None:
    fed, plain = federation(True), federation(False)
    for algorithm, of, message in (
        (FLoRA(ranks=(3,)), fed, "FLoRA.ranks has 3; expected ranks from 1 to the model's, 2"),
        (FLoRA(), plain, "FLoRA adds to the frozen weights; expected model.residual true"),
        (FedExLoRA(), plain, "FedExLoRA adds to the frozen weights; expected model.residual true"),
        (HetLoRA(), fed, "HetLoRA does not change the frozen weights; expected model.residual false"),
    ):
        with pytest.raises(ConfigError, match=message):
            algorithm.init(of.model.vector(), cohort(of, 0))  # type: ignore[attr-defined]
    dense = replace(plain, model=Model(MLP((4,)).build((16,), 3), cross_entropy, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"RoLoRA is of models with products of low rank .*model LoRA"):
        RoLoRA().init(dense.model.vector(), cohort(dense, 0))
    with pytest.raises(ConfigError, match="chooses by itself what it sends; leave uplink and downlink out"):
        played(Compressed(RoLoRA(), EF14Uplink()), plain, COHORTS[:1])
    with pytest.raises(ConfigError, match="Rebuilt has 1 messages for 6 nodes"):
        x = plain.model.vector()
        cohort(plain, 1).each(lambda local, x: x, Rebuilt(x, [x], []))


STARTS: dict[str, tuple[Any, bool, str]] = {
    "EVA": (EVA(FedAvg(ETA)), False, ""),
    "EVA, FLoRA": (EVA(FLoRA(ETA)), True, ""),
    "LoRA-GA": (LoRAGA(FedExLoRA(ETA)), True, "3"),
    "LoRA-GA, FLoRA": (LoRAGA(FLoRA(ETA)), True, "3"),
}


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("backend", [Blocks(4), pytest.param("ray", marks=pytest.mark.ray)], ids=str)
def test_initial_values_agree_on_all_backends(name: str, backend: Any) -> None:
    algorithm, residual, trained = STARTS[name]
    fed = federation(residual, trained=trained)
    other = replace(fed, backend=RayActors(workers(), 2) if backend == "ray" else backend)
    meters = Meter(fed), Meter(other)
    ours, theirs = (played(algorithm, f, COHORTS[:2], m) for f, m in zip((fed, other), meters, strict=True))
    assert all(gap(a, b) < 1e-11 for a, b in zip(ours, theirs, strict=True))
    ledgers = [meter.ledger.snapshot() for meter in meters]
    for key in ledgers[0]:
        np.testing.assert_array_equal(ledgers[0][key], ledgers[1][key], err_msg=key)


def test_eva_begins_with_the_directions_that_explain_most() -> None:
    """With as many directions as inputs of a client span, those of all samples together; r k numbers up once."""
    fed, meter = federation(False), Meter(federation(False))
    x = EVA().init(start(False), cohort(fed, 0, meter=meter)).x
    first, second = net_of(fed, x)
    inputs = [fed.shards.rows(i).x for i in range(N)]
    for layer, of in ((first, lambda h: h), (second, lambda h: torch.relu(h @ first.W0.T + first.bias))):
        truth = sum(of(h).T @ of(h) / len(h) for h in inputs) / N
        values = torch.linalg.eigvalsh(truth)
        explained = torch.trace(layer.A @ truth @ layer.A.T) / values[-RANK:].sum()
        assert 0.93 < float(explained) <= 1 + 1e-12        # each client sent its two leading directions alone
        torch.testing.assert_close(layer.A @ layer.A.T, torch.eye(RANK, dtype=torch.float64))
        gaussian = net_of(fed, start(False))[0 if layer is first else 1].A
        q = torch.linalg.qr(gaussian.T).Q
        assert float(torch.trace(q.T @ truth @ q)) < 0.8 * float(values[-RANK:].sum())
    assert not first.B.any()
    assert (meter.ledger.up == bytes_of(HALF_A)).all() and (meter.ledger.down == bytes_of(0)).all()
    one = replace(fed, shards=Shards(fed.shards.x, fed.shards.y, np.array([0, len(fed.shards.x)])), weights=None)
    alone = net_of(one, EVA().init(start(False), cohort(one, 0)).x)[0].A
    theirs = torch.linalg.svd(fed.shards.x, full_matrices=False).Vh[:RANK]
    torch.testing.assert_close((alone @ theirs.T).abs(), torch.eye(RANK, dtype=torch.float64), rtol=0, atol=1e-10)


def test_lora_ga_begins_where_it_was_and_along_the_gradient() -> None:
    """Of the first layer; the second one, narrower than 2 r, trains as a whole."""
    fed, meter, x = federation(True, trained="3"), Meter(federation(True)), start(True, "3")
    state = LoRAGA(FedExLoRA(ETA)).init(x, cohort(fed, 0, meter=meter))
    assert (meter.ledger.up == bytes_of(9 * 16)).all() and (meter.ledger.down == bytes_of(0)).all()
    assert (state.missed == RANK).all()                    # what was taken from R is told, too
    module = fed.model.load(x)
    one, two = module[1], module[3]  # type: ignore[index]
    before, g = one._base().detach() + S * (one.lora_B @ one.lora_A).detach(), torch.zeros(9, 16, dtype=torch.float64)
    for own in map(fed.shards.rows, range(N)):
        W = one.linear.weight.detach().clone().requires_grad_()
        hidden = torch.relu(own.x @ W.T + one.linear.bias)
        g += torch.autograd.grad(torch.nn.functional.cross_entropy(two(hidden), own.y), W)[0] / N
    layer = fed.model.load(state.x)[1]  # type: ignore[index]
    a, b = layer.lora_A.detach(), layer.lora_B.detach()
    torch.testing.assert_close(layer._base().detach() + S * b @ a, before, rtol=0, atol=1e-13)
    u, _, v = torch.linalg.svd(g)
    c = 9**0.25 / 16**0.5 * torch.eye(RANK, dtype=torch.float64)
    torch.testing.assert_close((a @ v[:RANK].T).abs(), c, rtol=0, atol=1e-10)
    torch.testing.assert_close((b.T @ u[:, RANK : 2 * RANK]).abs(), c, rtol=0, atol=1e-10)


def test_initial_values_that_the_model_cannot_have() -> None:
    with pytest.raises(ConfigError, match=r"LoRAGA takes 4 directions of a gradient \[3, 9\]; expected a lower rank"):
        LoRAGA().init(start(True), cohort(federation(True), 0))
    with pytest.raises(ConfigError, match=r"LoRAGA adds to the frozen weights; expected model.residual true"):
        LoRAGA().init(start(False), cohort(federation(False), 0))
    with pytest.raises(ConfigError, match="EVA is of models with products of low rank"):
        dense = replace(federation(False), model=Model(MLP((4,)).build((16,), 3), cross_entropy, dtype=torch.float64))
        EVA().init(dense.model.vector(), cohort(dense, 0))
