"""Dropout follows from (seed, round, node, step, layer): the same on every backend, and off in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from algorithms import FedAMD, FedAvg, FedSAM, Scaffold
from fedsim import Batch, Local
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.clients import cohort
from fedsim.data import Split
from fedsim.engine.blocks import Blocks
from fedsim.engine.examine import examine
from fedsim.engine.federation import Backend, Federation
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.engine.seeded import coins
from fedsim.errors import ModelError
from fedsim.models.losses import cross_entropy
from tests.backends.ray.shared import workers

SIZES = np.array([3, 18, 7, 11, 8, 5])
OFFSETS = np.r_[0, np.cumsum(SIZES)]
N, T, E, CLASSES = int(OFFSETS[-1]), 4, 6, 3


class Body(nn.Module):
    """Layers, and a function of them and a sequence ``[B, T, E]``."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.head, self.function = nn.ModuleDict(layers), nn.Linear(E, CLASSES), function

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(self.layers, x)
        out: Tensor = self.head(h.mean(-2) if h.dim() > 2 else h)
        return out


def dense(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(T * E, 7), nn.Tanh(), *between, nn.Linear(7, CLASSES))


def attention(mha: nn.MultiheadAttention, x: Tensor, weights: bool) -> Tensor:
    out: Tensor = mha(x, x, x, need_weights=weights)[0]
    return out


def heads() -> nn.Module:
    return nn.MultiheadAttention(E, 2, 0.3, batch_first=True)


def encoder(first: bool = True) -> nn.Module:
    return nn.TransformerEncoderLayer(E, 2, 8, 0.3, batch_first=first)


def sequence_first(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m["e"](x.transpose(0, 1)).transpose(0, 1)
    return out


KINDS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: dense(nn.Dropout(0.5)),
    "dense, two layers": lambda: dense(nn.Dropout(0.2), nn.Linear(7, 7), nn.Dropout(0.4)),
    "dense under vmap": lambda: dense(nn.Identity(), nn.Dropout(0.5)),
    "in place": lambda: dense(nn.Linear(7, 7), nn.Dropout(0.3, inplace=True), nn.Tanh()),
    "dropout1d": lambda: Body(lambda m, x: m["d"](x), d=nn.Dropout1d(0.4)),
    "dropout2d": lambda: Body(lambda m, x: m["d"](x.unsqueeze(-1)).squeeze(-1), d=nn.Dropout2d(0.4)),
    "dropout3d": lambda: Body(lambda m, x: m["d"](x[..., None, None])[..., 0, 0], d=nn.Dropout3d(0.4)),
    "alpha": lambda: Body(lambda m, x: m["d"](x), d=nn.AlphaDropout(0.3)),
    "feature alpha": lambda: Body(lambda m, x: m["d"](x), d=nn.FeatureAlphaDropout(0.3)),
    "functional": lambda: Body(lambda m, x: F.dropout(F.dropout(x, 0.2, m.training), 0.5, m.training)),
    "attention": lambda: Body(lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3 * m.training)),
    "multi-head": lambda: Body(lambda m, x: attention(m["a"], x, False), a=heads()),
    "multi-head, weights": lambda: Body(lambda m, x: attention(m["a"], x, True), a=heads()),
    "encoder": lambda: Body(lambda m, x: m["e"](x), e=encoder()),
    "encoder, sequence first": lambda: Body(sequence_first, e=encoder(False)),
    "lstm": lambda: Body(lambda m, x: m["l"](x)[0], l=nn.LSTM(E, E, 2, dropout=0.4, batch_first=True)),
    "gru": lambda: Body(lambda m, x: m["l"](x)[0], l=nn.GRU(E, E, 2, dropout=0.4, batch_first=True)),
}
METHODS: list[Any] = [FedSAM(), Scaffold(option="I"), FedAMD(large_batch=6)]


def federation(backend: Backend, kind: str, work: LocalWork | None = None, seed: int = 3) -> Federation:
    torch.manual_seed(0)
    x, y = torch.randn(N, T, E, dtype=torch.float64), torch.randint(0, CLASSES, (N,))
    model = Model(KINDS[kind](), cross_entropy, dtype=torch.float64)
    examine(model, Split(x, y))
    return Federation(model, Shards(x, y, OFFSETS), work or LocalWork(4, epochs=2), seed, backend)


def after_rounds(backend: Backend, kind: str, method: Any = None, seed: int = 3, rounds: int = 2) -> Tensor:
    fed, method = federation(backend, kind, seed=seed), method or FedAvg()
    state = method.init(fed.model.vector(), cohort(fed, 0))
    for k in range(1, rounds + 1):
        state = method.round(state, cohort(fed, k, np.array([0, 1, 2, 4, 5])))
    x: Tensor = state.x
    return x


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_agree_with_the_loop(kind: str) -> None:
    x = after_rounds(Loop(), kind)
    torch.testing.assert_close(after_rounds(Blocks(3), kind), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("kind", ["dense", "encoder", "lstm"])
def test_methods_with_several_gradients_whole_shards_and_large_batches(kind: str, method: Any) -> None:
    x = after_rounds(Loop(), kind, method)
    torch.testing.assert_close(after_rounds(Blocks(3), kind, method), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "encoder"])
@pytest.mark.parametrize("backend", [Loop(), Blocks(2)], ids=["loop", "blocks"])
def test_a_run_is_repeated_bit_for_bit_and_masks_follow_the_seed(kind: str, backend: Backend) -> None:
    first = after_rounds(backend, kind)
    assert torch.equal(first, after_rounds(backend, kind))
    assert not torch.allclose(first, after_rounds(backend, kind, seed=4), atol=1e-6)


@pytest.mark.parametrize("backend", [Loop(), Blocks(2)], ids=["loop", "blocks"])
def test_a_later_process_goes_on_bit_for_bit(backend: Backend) -> None:
    """Only the state of round 1 is taken over, as from a checkpoint."""
    before, method = federation(backend, "encoder"), FedAvg()
    one = method.round(method.init(before.model.vector(), cohort(before, 0)), cohort(before, 1))
    whole = method.round(one, cohort(before, 2)).x
    assert torch.equal(method.round(one, cohort(federation(backend, "encoder"), 2)).x, whole)


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["dense", "encoder"])
def test_actors_agree_with_blocks_bit_for_bit(kind: str) -> None:
    assert torch.equal(after_rounds(RayActors(workers(), 2), kind), after_rounds(Blocks(2), kind))


@pytest.mark.parametrize("kind", ["dense, two layers", "encoder", "functional", "in place"])
def test_layers_draw_what_operations_draw(kind: str) -> None:
    """Bit for bit: layers are not looked into where nothing else draws, and are left as they were."""
    model, watched = federation(Loop(), kind).model, federation(Loop(), kind).model
    watched._dropouts, x = [], model.vector()
    for k in range(3):
        keys = torch.full((5,), k)
        batch = Batch(torch.randn(5, T, E, dtype=torch.float64), torch.zeros(5, dtype=torch.int64), None, keys)
        assert torch.equal(model.gradient(x, batch), watched.gradient(x, batch))
    assert model._draws_elsewhere == (kind != "dense, two layers")
    assert not any("forward" in vars(layer) for layer in model.module.modules())


@pytest.mark.parametrize("kind", ["dense", "functional"])
def test_a_gradient_is_pytorchs_with_the_same_masks(kind: str) -> None:
    """The masks are read off a network of ones, and put into a copy of it by hand."""
    model = federation(Loop(), kind).model
    keys = torch.full((5,), 99)
    p = {"dense": [0.5], "functional": [0.2, 0.5]}[kind]
    shape = {"dense": (5, 7), "functional": (5, T, E)}[kind]
    masks = [coins(keys[0], call, torch.Size(shape), 1 - q) / (1 - q) for call, q in enumerate(p)]
    x, y = torch.randn(5, T, E, dtype=torch.float64), torch.randint(0, CLASSES, (5,))
    got = model.gradient(model.vector(), Batch(x, y, key=keys))
    parts: Any = model.module
    if kind == "dense":
        out = parts[4](parts[2](parts[1](x.flatten(1))) * masks[0])
    else:
        out = parts.head((x * masks[0] * masks[1]).mean(-2))
    grads = torch.autograd.grad(F.cross_entropy(out, y), model.parameters)
    torch.testing.assert_close(got, torch.cat([g.flatten() for g in grads]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", [Loop(), Blocks(6)], ids=["loop", "blocks"])
def test_two_gradients_on_one_batch_see_the_same_masks_and_two_steps_do_not(backend: Backend) -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        def step(carry: tuple[Tensor, Tensor], batch: Batch, x: Tensor) -> tuple[Tensor, Tensor]:
            g = local.grad(x, batch)
            same, other = local.grad(x, batch), local.grad(x, again(batch))
            return carry[0] + (g - same).abs().sum(), carry[1] + (g - other).abs().sum()

        return torch.stack(local.fold(step, (x.new_zeros(()), x.new_zeros(())), x))

    def again(batch: Batch) -> Batch:
        assert batch.key is not None
        return batch._replace(key=batch.key + 1)

    fed = federation(backend, "functional")
    same, other = cohort(fed, 1).each(client, fed.model.vector()).stacked.T
    assert (same == 0).all() and (other > 1e-3).all()


def test_evaluation_draws_nothing() -> None:
    model = federation(Loop(), "encoder").model
    x = torch.randn(5, T, E, dtype=torch.float64)
    assert torch.equal(model.outputs(model.vector(), x), model.outputs(model.vector(), x)) and model.module.training


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_coins_are_fair_and_independent(keep: float) -> None:
    """Frequencies within five standard deviations, of single coins and of pairs of neighbours, calls and keys."""
    n = 40_000
    a, b, c = (coins(torch.tensor(k), call, torch.Size((n,)), keep).double() for k, call in ((5, 0), (5, 1), (6, 0)))
    bound = 5 * (keep * (1 - keep) / n) ** 0.5
    for sample in (a, b, c):
        assert abs(float(sample.mean()) - keep) < bound
    for one, other in ((a[1:], a[:-1]), (a, b), (a, c), (a[4:], a[:-4])):
        assert abs(float(((one - keep) * (other - keep)).mean())) < 5 * keep * (1 - keep) / n**0.5


def test_coins_of_a_longer_batch_begin_with_those_of_a_shorter() -> None:
    keys = torch.tensor([1, 2])
    whole = coins(keys, 3, torch.Size((9, 5)), 0.4)
    assert torch.equal(whole[:, :4], coins(keys, 3, torch.Size((4, 5)), 0.4))
    assert torch.equal(whole[1], coins(keys[1], 3, torch.Size((9, 5)), 0.4))


class Redrawn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = dense(nn.Identity(), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.layer, x, use_reentrant=False)
        return out


@pytest.mark.parametrize(
    ("module", "operation"),
    [
        (lambda: Body(lambda m, x: x + torch.randn_like(x) * m.training), r"aten\.randn_like"),
        (lambda: Body(lambda m, x: x * torch.rand(x.shape) if m.training else x), r"aten\.rand"),
        (lambda: Body(lambda m, x: F.gumbel_softmax(x) if m.training else x), r"aten\.exponential_"),
        (lambda: dense(nn.RReLU()), r"aten\.rrelu_with_noise"),
        (Redrawn, r"aten\.bernoulli_"),
    ],
    ids=["normal", "uniform", "gumbel", "rrelu", "checkpoint"],
)
def test_other_draws_are_refused_by_name(module: Callable[[], nn.Module], operation: str) -> None:
    samples = Split(torch.randn(8, T, E), torch.arange(8) % CLASSES)
    with pytest.raises(ModelError, match=f"draws random numbers in training by {operation}"):
        examine(Model(module(), cross_entropy), samples)


@pytest.mark.parametrize("kind", ["dense", "encoder"])
def test_a_batch_without_a_key_is_refused_where_the_module_draws(kind: str) -> None:
    model = federation(Loop(), kind).model
    xs, x = model.vector().expand(2, -1), torch.randn(2, 5, T, E, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"this batch has no key .*batch\._replace\(x=x, y=y\)"):
        model.gradients(xs, Batch(x, torch.zeros(2, 5, dtype=torch.int64)))
