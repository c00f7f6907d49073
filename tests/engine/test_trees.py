"""Inputs, targets and outputs that are dicts, tuples and dataclasses: every backend computes what a plain loop does."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithms import FedAvg, FedSAM, Scaffold
from fedsim import Batch, Local
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.clients import cohort
from fedsim.controller.scoring import score
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Backend, Federation, Meter
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.models.losses import cross_entropy
from fedsim.tree import flat, joined, mapped, shaped, structure
from tests.backends.ray.shared import workers

SIZES = np.array([3, 18, 7, 11, 8, 5])                     # batches of 4 leave partial ones
OFFSETS = np.r_[0, np.cumsum(SIZES)]
N, T = int(OFFSETS[-1]), 6
METHODS = [FedAvg(momentum=0.5), FedSAM(), Scaffold(), Scaffold(option="I")]


@dataclass
class Output:
    """As a module of Hugging Face returns it, with an entry that is no tensor of samples."""

    logits: Tensor
    loss: Tensor | None = None
    states: tuple[Tensor, ...] = ()


class Masked(nn.Module):
    """Mean of the embeddings that the mask selects."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 5), nn.Linear(5, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        weight = attention_mask / attention_mask.sum(-1, keepdim=True)
        mean = (self.embedding(input_ids) * weight.unsqueeze(-1)).sum(-2)
        return Output(self.head(mean), mean.square().mean(), (mean,))


class Pair(NamedTuple):
    label: Tensor
    other: Tensor


class Twins(nn.Module):
    """Two images in, a dict of two outputs out."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.layer = nn.Conv2d(1, 2, 3), nn.Linear(8, 3)

    def forward(self, one: Tensor, more: dict[str, Tensor]) -> dict[str, Tensor]:
        a, b = (self.convolution(x).relu().flatten(-3) for x in (one, more["image"]))
        return {"class": self.layer(a * b), "distance": (a - b).square().mean(-1)}


def twins_loss(out: dict[str, Tensor], y: Pair) -> Tensor:
    return F.cross_entropy(out["class"], y.label, reduction="none") + (out["distance"] - y.other).square()


def masked() -> tuple[Model, Any, Any]:
    torch.manual_seed(1)
    mask = torch.arange(T) < torch.randint(1, T + 1, (N, 1))
    x = {"input_ids": torch.randint(0, 20, (N, T)), "attention_mask": mask.double()}
    return Model(Masked(), cross_entropy, dtype=torch.float64), x, torch.randint(0, 3, (N,))


def twins() -> tuple[Model, Any, Any]:
    torch.manual_seed(1)
    one, other = torch.randn(2, N, 1, 4, 4, dtype=torch.float64)
    y = Pair(torch.randint(0, 3, (N,)), torch.rand(N, dtype=torch.float64))
    return Model(Twins(), twins_loss, dtype=torch.float64), (one, {"image": other}), y


KINDS = {"dict to dataclass": masked, "tuple to dict": twins}


def after_rounds(backend: Backend, kind: str, method: Any, rounds: int = 2) -> tuple[Tensor, np.ndarray]:
    """Server's vector, and the ledger's evaluations."""
    torch.manual_seed(0)
    model, x, y = KINDS[kind]()
    fed = Federation(model, Shards(x, y, OFFSETS), LocalWork(4, epochs=2), 3, backend)
    meter, start = Meter(fed), model.vector()
    state = method.init(start, cohort(fed, 0, meter=meter))
    for k in range(1, rounds + 1):
        state = method.round(state, cohort(fed, k, np.array([0, 1, 2, 4, 5]), meter=meter))
    assert not torch.equal(state.x, start)
    return state.x, meter.ledger.gradient_evaluations


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_agree_with_the_loop(kind: str, method: Any) -> None:
    x, evaluations = after_rounds(Loop(), kind, method)
    for size in (1, 3, 5):
        got, charged = after_rounds(Blocks(size), kind, method)
        torch.testing.assert_close(got, x, rtol=0, atol=1e-12)
        assert (charged == evaluations).all()


@pytest.mark.ray
@pytest.mark.parametrize("kind", KINDS)
def test_actors_agree_with_blocks_bit_for_bit(kind: str) -> None:
    x, evaluations = after_rounds(Blocks(2), kind, FedAvg())
    got, charged = after_rounds(RayActors(workers(), 2), kind, FedAvg())
    assert torch.equal(got, x) and (charged == evaluations).all()


def test_the_loop_is_plain_training() -> None:
    """One client, one epoch in one batch: a step of the module's own loss."""
    model, x, y = masked()
    start, reference = model.vector(), masked()[0].module
    fed = Federation(model, Shards(x, y, np.array([0, N])), LocalWork(0), 3, Loop())
    got = FedAvg(lr=0.5).round(FedAvg().init(start, cohort(fed, 0)), cohort(fed, 1)).x
    F.cross_entropy(reference(**x).logits, y).backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([(p - 0.5 * p.grad).flatten() for p in reference.parameters() if p.grad is not None])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def test_evaluation_in_parts_is_that_of_all_at_once() -> None:
    model, x, y = masked()
    parts, whole = (model.outputs(model.vector(), x, batch_size=size) for size in (7, N))
    assert type(parts) is Output and parts.loss is None and len(parts.states) == 1
    torch.testing.assert_close((parts.logits, *parts.states), (whole.logits, *whole.states))
    scores = score(model, model.vector(), x, y, classification=True)
    expected = (whole.logits.argmax(1) == y).double().numpy()
    assert scores.accuracy is not None and (scores.accuracy == expected).all() and 0 < expected.mean() < 1
    np.testing.assert_allclose(scores.loss, cross_entropy(whole, y).numpy())


def test_outputs_without_logits_have_a_loss_alone() -> None:
    model, x, y = twins()
    scores = score(model, model.vector(), x, y, classification=True)
    np.testing.assert_allclose(scores.loss, twins_loss(model.module(*x), y).detach().numpy())
    assert scores.accuracy is None


@dataclass
class Both(OrderedDict[str, Any]):
    """A dict and a dataclass in one, as Hugging Face's outputs are."""

    logits: Any = None
    cache: Any = None

    def __post_init__(self) -> None:
        self.update({name: value for name, value in vars(self).items() if value is not None})


def test_outputs_that_are_dict_and_dataclass_stay_so() -> None:
    both = joined([Both(torch.ones(2, 3), object()), Both(torch.ones(1, 3), object())], [2, 1])
    assert type(both) is Both and both["logits"].shape == both.logits.shape == (3, 3) and list(both) == ["logits"]


def test_outputs_are_joined_by_their_rows() -> None:
    parts = [(torch.ones(k, 2), [torch.full((k,), k)], torch.tensor(3.0), "text", torch.ones(7)) for k in (2, 1)]
    rows, (ones,), *rest = joined(parts, [2, 1])
    assert rows.shape == (3, 2) and ones.tolist() == [2, 2, 1] and rest == [None, None, None]


def test_a_part_of_a_batch_keeps_its_form_and_key() -> None:
    x, y = {"a": torch.arange(6), "b": (torch.ones(6, 2),)}, Pair(torch.zeros(6), torch.ones(6))
    batch = Batch(x, y, key=torch.full((6,), 9))
    part = batch.part(slice(1, 4))
    assert part.x["a"].tolist() == [1, 2, 3] and part.x["b"][0].shape == (3, 2) and type(part.y) is Pair
    assert part.weight is None and part.key is not None and part.key.tolist() == [9, 9, 9]
    again = shaped(structure(batch), iter(flat(batch)))
    assert structure(again) == structure(batch) and torch.equal(again.x["b"][0], batch.x["b"][0])


def test_keys_are_the_steps_own_on_every_backend() -> None:
    """They differ between clients, steps and rounds, and are the same in any cohort and block."""
    seen: dict[tuple[str, int], list[tuple[int, ...]]] = {}

    def client(local: Local, x: Tensor) -> Tensor:
        def step(y: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
            assert batch.key is not None
            return y[1], batch.key[0]

        first = local.sample(4).key
        assert first is not None
        return torch.stack([*local.fold(step, (first[0], first[0])), first[0]])

    for backend in (Loop(), Blocks(2), Blocks(6)):
        for round, ids in ((1, np.arange(6)), (2, np.arange(6)), (2, np.array([1, 3]))):
            model, x, y = masked()
            fed = Federation(model, Shards(x, y, OFFSETS), LocalWork(4), 3, backend)
            sent = cohort(fed, round, ids).each(client, model.vector()).stacked
            for node, keys in zip(ids.tolist(), sent.tolist(), strict=True):
                seen.setdefault((str(round), node), []).append(tuple(keys))
    assert all(len(set(keys)) == 1 for keys in seen.values())
    every = [key for keys in seen.values() for key in dict.fromkeys(keys[0])]
    assert len(set(every)) == len(every)
    assert mapped(type, Batch(1, 2)) == Batch(int, int)    # and what is absent stays absent
