"""A part of the model that travels and a part of each client's own: the same on every backend, and as papers say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAvg, FedCM, FedOpt, FedProx, FedSAM, FedSpeed, Scaffold
from fedsim import AdamW, HeavyBall
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.clients import cohort
from fedsim.compress import TopK
from fedsim.controller.keeping import Keeping, own_layers
from fedsim.data import Split
from fedsim.engine.blocks import Blocks
from fedsim.engine.examine import examine
from fedsim.engine.federation import Backend, Federation, Meter
from fedsim.engine.local_work import LocalWork, Shards, minibatches
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.engine.optimizers import keeps
from fedsim.engine.sharing import Share, Sharing
from fedsim.errors import ConfigError
from fedsim.feedback import EF14Uplink
from fedsim.feedback.compressed import Compressed
from fedsim.messages.wire import nbytes
from fedsim.models.losses import cross_entropy
from tests.backends.ray.shared import workers

SIZES = np.array([3, 9, 6, 14, 8])
OFFSETS = np.r_[0, np.cumsum(SIZES)]
COHORTS = ([0, 1, 3, 4], [1, 2, 3], [0, 1, 2, 3, 4])
FEATURES, HIDDEN, CLASSES = 6, 4, 3


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(HIDDEN)] if norm else []
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), *middle, nn.Tanh(), nn.Linear(HIDDEN, CLASSES))


def federation(share: Share, backend: Backend, work: LocalWork | None = None, norm: bool = False) -> Federation:
    torch.manual_seed(1)
    x, y = torch.randn(int(SIZES.sum()), FEATURES, dtype=torch.float64), torch.randint(0, CLASSES, (int(SIZES.sum()),))
    model = Model(network(norm), cross_entropy, dtype=torch.float64, mixes=norm)
    examine(model, Split(x, y))
    model.sharing = Sharing(share.mask(model.module, model.names), model.sizes, model.vector(), share)
    return Federation(model, Shards(x, y, OFFSETS), work or LocalWork(4, epochs=2), 3, backend)


def play(method: Any, fed: Federation, meter: Meter | None = None) -> tuple[Tensor, Tensor, Any]:
    """The shared part, all clients' models ``[n, d]``, and the state after three rounds."""
    model, optimizer = fed.model, fed.work.optimizer
    assert model.sharing is not None
    slots = optimizer.slots(model.zeros()) if keeps(optimizer) else ()
    algorithm = Keeping(method, (*slots, model.sharing.own))
    state = algorithm.init(model.shared(), cohort(fed, 0))
    for k, ids in enumerate(COHORTS, 1):
        state = algorithm.round(state, cohort(fed, k, np.array(ids), meter))
    return state.x, torch.stack([own_layers(state, model.sharing)(i) for i in range(len(SIZES))]), state


SHARES = {
    "FedPer": Share("0"),
    "LG-FedAvg": Share("all but 0"),
    "FedRep": Share("all but 2", "alternate"),
    "FedBABU": Share("0", "frozen"),
    "scattered": Share("*.weight"),
}
METHODS: dict[str, Any] = {
    "FedAvg": FedAvg(),
    "FedAvg momentum": FedAvg(momentum=0.5),
    "FedProx": FedProx(mu=0.5),
    "FedSAM": FedSAM(),
    "SCAFFOLD I": Scaffold(option="I"),
    "SCAFFOLD II": Scaffold(),
    "FedCM": FedCM(),
    "FedAdam": FedOpt(),
    "FedDyn": FedSpeed(rho=0.0),
    "EF14": Compressed(FedAvg(), EF14Uplink(TopK(0.3))),
}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("method", METHODS)
def test_blocks_agree_with_the_loop(method: str, share: str) -> None:
    meters = []
    ends = []
    for backend in (Loop(), Blocks(2)):
        fed = federation(SHARES[share], backend)
        meters.append(Meter(fed))
        ends.append(play(METHODS[method], fed, meters[-1])[:2])
    for loop, blocks in zip(*ends, strict=True):
        torch.testing.assert_close(blocks, loop, rtol=0, atol=1e-12)
    assert meters[0].ledger.totals() == meters[1].ledger.totals()


@pytest.mark.parametrize("optimizer", [AdamW(), AdamW(state="keep"), HeavyBall(state="keep")], ids=str)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "BatchNorm"])
def test_optimisers_and_statistics(optimizer: Any, norm: bool) -> None:
    work = LocalWork(3, epochs=1, optimizer=optimizer, weight_decay=0.1, clip_norm=1.0)
    share = Share("all but *Norm*, 0.bias" if norm else "0")
    ends = [play(FedAvg(lr=0.02), federation(share, backend, work, norm)) for backend in (Loop(), Blocks(3))]
    for loop, blocks in zip(ends[0][:2], ends[1][:2], strict=True):
        torch.testing.assert_close(blocks, loop, rtol=0, atol=1e-10)


@pytest.mark.ray
@pytest.mark.parametrize("share", ["FedPer", "FedRep"])
def test_actors_agree_with_blocks_bit_for_bit(share: str) -> None:
    ends = [play(FedAvg(), federation(SHARES[share], b))[:2] for b in (RayActors(workers(), 2), Blocks(2))]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def by_hand(share: str) -> tuple[Tensor, Tensor]:
    """FedAvg on one part of a dict of parameters, in PyTorch; the rest stays with the client."""
    fed = federation(SHARES[share], Loop())
    names, shared = fed.model.names, SHARES[share].mask(fed.model.module, fed.model.names)
    start = {name: p.detach().clone() for name, p in network().double().named_parameters()}
    server, own = dict(start), [dict(start) for _ in SIZES]
    for k, ids in enumerate(COHORTS, 1):
        for i, plan in zip(ids, minibatches(fed.work, fed.shards, 3, k, np.array(ids)), strict=True):
            module = network().double()
            both = {n: (server if travels else own[i])[n] for n, travels in zip(names, shared, strict=True)}
            module.load_state_dict(both)
            steps = len(plan.lengths)
            for step, (rows, length) in enumerate(zip(plan.index, plan.lengths, strict=True)):
                rows = torch.from_numpy(rows[:length].copy())
                loss = cross_entropy(module(fed.shards.x[rows]), fed.shards.y[rows]).mean()
                grads = torch.autograd.grad(loss, list(module.parameters()))
                head = share == "FedRep" and step < steps // 2
                moves = [travels != head if share == "FedRep" else travels or share != "FedBABU" for travels in shared]
                with torch.no_grad():
                    for p, g, move in zip(module.parameters(), grads, moves, strict=True):
                        p -= 0.1 * g * move
            own[i] = {n: p.detach().clone() for n, p in module.named_parameters()}
        server = {n: torch.stack([own[i][n] for i in ids]).mean(0) for n in names}

    def vector(values: dict[str, Tensor]) -> Tensor:
        return torch.cat([values[n].flatten() for n in names])

    whole = [{n: server[n] if s else mine[n] for n, s in zip(names, shared, strict=True)} for mine in own]
    x = torch.cat([server[n].flatten() for n, s in zip(names, shared, strict=True) if s])
    return x, torch.stack([vector(each) for each in whole])


@pytest.mark.parametrize("share", SHARES)
def test_shares_are_the_papers_methods(share: str) -> None:
    x, models, _ = play(FedAvg(lr=0.1), federation(SHARES[share], Loop()))
    for ours, theirs in zip((x, models), by_hand(share), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    assert len({tuple(row.tolist()) for row in models}) == (1 if share == "FedBABU" else len(SIZES))


def test_fedbn_is_the_paper_s_with_all_of_batchnorm_at_the_client() -> None:
    """Li et al. 2021, algorithm 1, with modules of PyTorch: scale, shift and running statistics are never averaged."""
    fed = federation(Share("all but *Norm*"), Loop(), LocalWork(3, epochs=2), norm=True)
    x, models, _ = play(FedAvg(lr=0.1), fed)
    clients: list[nn.Module] = [network(norm=True).double() for _ in SIZES]
    server = {name: t.clone() for name, t in clients[0].state_dict().items() if not name.startswith("1.")}
    for k, ids in enumerate(COHORTS, 1):
        for i, plan in zip(ids, minibatches(fed.work, fed.shards, 3, k, np.array(ids)), strict=True):
            clients[i].load_state_dict(server, strict=False)
            optimizer = torch.optim.SGD(clients[i].train().parameters(), lr=0.1)
            for rows, length in zip(plan.index, plan.lengths, strict=True):
                index = torch.from_numpy(rows[:length].copy())
                optimizer.zero_grad()
                nn.functional.cross_entropy(clients[i](fed.shards.x[index]), fed.shards.y[index]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        sent = [clients[i].state_dict() for i in ids]
        server = {name: torch.stack([state[name] for state in sent]).mean(0) for name in server}
    torch.testing.assert_close(x, torch.cat([server[name].flatten() for name in fed.model.shared_names]))
    for i, client in enumerate(clients):
        client.load_state_dict(server, strict=False)
        state = client.state_dict()
        whole = torch.cat([state[name].flatten() for name in fed.model.names])
        torch.testing.assert_close(models[i], whole, rtol=0, atol=1e-12)
    own = [name for name, travels in zip(fed.model.names, fed.model.sharing.shared, strict=True) if not travels]  # type: ignore[union-attr]
    assert own == ["1.weight", "1.bias", "1.running_mean", "1.running_var"]


def test_bytes_are_of_the_shared_part_alone() -> None:
    fed = federation(Share("2.bias"), Loop())
    meter = Meter(fed)
    play(FedAvg(), fed, meter)
    times = np.bincount(np.concatenate(COHORTS), minlength=len(SIZES))
    size = nbytes(torch.zeros(CLASSES, dtype=torch.float64))
    np.testing.assert_array_equal(meter.ledger.up, size * times)
    np.testing.assert_array_equal(meter.ledger.down, size * times)


def test_a_whole_is_made_of_its_parts() -> None:
    sharing = Sharing([True, False, True], [2, 3, 1], torch.arange(6.0), Share())
    x = torch.randn(4, 6)
    shared, own = sharing.split(x)
    assert shared.shape == (4, 3) and own.shape == (4, 3) and torch.equal(sharing.own, torch.tensor([2.0, 3.0, 4.0]))
    assert torch.equal(sharing.whole(shared, own), x)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("0", [1, 1, 0, 0, 0, 0, 0, 0]),
        ("all but 3", [1, 1, 1, 1, 0, 0, 1, 1]),
        ("*.bias, 1", [0, 1, 1, 1, 0, 1, 1, 1]),
        ("Linear", [1, 1, 0, 0, 1, 1, 0, 0]),
        ("all but *Norm*", [1, 1, 0, 0, 1, 1, 0, 0]),
        ("3.weight", [0, 0, 0, 0, 1, 0, 0, 0]),
    ],
)
def test_names_of_layers(layers: str, expected: list[int]) -> None:
    model = Model(network(norm=True), cross_entropy, mixes=True)
    assert model.names[6:] == ["1.running_mean", "1.running_var"]
    assert Share(layers).mask(model.module, model.names) == list(map(bool, expected))


def test_bad_settings_are_refused() -> None:
    model = Model(network(), cross_entropy)
    with pytest.raises(ConfigError, match=r"'head' is no layer of the model; expected some of 0 \(Linear\), 2 \(Lin"):
        Share("all but head").mask(model.module, model.names)
    with pytest.raises(ConfigError, match="nothing would travel"):
        Share("all but 0, 2").mask(model.module, model.names)
    for settings, message in (
        ({"layers": ""}, "share.layers is ''"),
        ({"layers": "all but "}, "share.layers is 'all but '"),
        ({"layers": "0", "train": "never"}, "share.train is 'never'; expected one of together"),
        ({"layers": "0", "first": 1.0}, "share.first is 1.0"),
        ({"train": "frozen"}, "no layers are the client's own"),
    ):
        with pytest.raises(ConfigError, match=message):
            Share(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"share\.train alternate needs plain SGD"):
        Share("0", "alternate").check_optimizer(AdamW())


def test_a_step_without_a_gradient_has_none_for_the_client_s_layers() -> None:
    def client(local: Any, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Any) -> Tensor:
            return local.descend(y, y, 0.1)

        return local.fold(step, x)

    fed = federation(Share("0"), Loop())
    with pytest.raises(ConfigError, match=r"without local\.grad\(y, batch\)"):
        cohort(fed, 1).each(client, fed.model.shared())
