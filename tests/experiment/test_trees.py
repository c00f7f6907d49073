"""An experiment on inputs that are dicts or tuples of tensors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAvg
from fedsim import Dataset, Evaluation, Experiment, LocalWork, Split, run
from fedsim.controller.loading import data_hash
from fedsim.controller.prepare import prepare
from fedsim.errors import DataError, ModelError, PartitionError
from fedsim.models import MLP, CharLSTM, LeNet5
from fedsim.partition import IidPartitioner, PathologicalPartitioner, RotationSkew

N, T = 60, 5
DRAW = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 12, (N, T), generator=DRAW)
MASK = torch.arange(T) < torch.randint(1, T + 1, (N, 1), generator=DRAW)
Y = ((IDS * MASK).sum(1) > 16).long()


class Net(nn.Module):
    """Logits of masked tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """The shape that a module of Hugging Face has."""
        return {"logits": self.head((self.embedding(input_ids) * attention_mask.unsqueeze(-1)).sum(-2))}


def split(part: slice, **inputs: Tensor) -> Split:
    inputs = inputs or {"input_ids": IDS, "attention_mask": MASK}
    return Split({name: t[part] for name, t in inputs.items()}, Y[part])


def dataset(**settings: Any) -> Dataset:
    usual = {"train": split(slice(50)), "test": split(slice(50, None)), "classes": 2}
    return Dataset("masked", **{**usual, **settings})


def experiment(**settings: Any) -> Experiment:
    usual: dict[str, Any] = {"data": dataset(), "model": Net(), "partition": PathologicalPartitioner(4, 2), "rounds": 2}
    local, evaluation = LocalWork(8), Evaluation(every=1, clients_every=1, holdout=0.2)
    return Experiment(**{"algorithm": FedAvg(), "local": local, "evaluation": evaluation, **usual, **settings})


@pytest.mark.parametrize("backend", ["loop", "blocks"])
def test_a_run_on_token_ids_with_their_mask(backend: Literal["loop", "blocks"], tmp_path: Path) -> None:
    made = run(experiment().with_execution(backend=backend), output=tmp_path / "run", progress=False)
    rows = [json.loads(line) for line in (made.path / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    assert {row["metric"] for row in rows if row["scope"] == "server/test"} >= {"loss", "accuracy"}
    held = [row for row in rows if row["scope"] == "clients/holdout" and row["node"] is not None]
    assert {row["node"] for row in held} == {0, 1, 2, 3}


def test_every_part_of_a_tree_follows_the_partition() -> None:
    prepared = prepare(experiment(evaluation=Evaluation()), 0)
    rows, shards = prepared.partition.indices.copy(), prepared.federation.shards
    assert torch.equal(shards.x["input_ids"], IDS[rows]) and torch.equal(shards.x["attention_mask"], MASK[rows])
    assert torch.equal(shards.y, Y[rows])


def test_the_hash_depends_on_names_and_values() -> None:
    other = {"input_ids": IDS, "mask": MASK}
    changed = {"input_ids": IDS, "attention_mask": ~MASK}
    of = [dataset(train=split(slice(50), **x), test=split(slice(50, None), **x)) for x in (other, changed)]
    assert len({*map(data_hash, of), data_hash(dataset())}) == 3


def test_targets_of_several_tensors_divide_by_the_first() -> None:
    train, test = (s._replace(y=(s.y, s.y.float())) for s in (dataset().train, dataset().test))

    def loss(out: dict[str, Tensor], y: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(out["logits"], y[0], reduction="none") + 0 * y[1]

    data = Dataset("pairs", train, test, classes=0)
    shards = prepare(experiment(data=data, loss=loss, partition=PathologicalPartitioner(2, 1)), 0).federation.shards
    assert len(set(shards.rows(0).y[0].tolist())) == 1 and shards.rows(0).y[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": split(slice(50), input_ids=IDS, attention_mask=MASK[:40])}, "50/40 inputs, 50 targets"),
        ({"train": split(slice(50), input_ids=IDS.numpy())}, "x contains a ndarray; expected tensors in tuples and"),  # type: ignore[arg-type]
        ({"train": split(slice(50), input_ids=IDS)}, r"\{'input_ids': \[5\]\}, test inputs .*'attention_mask': \[5\]"),
        ({"train": split(slice(50))._replace(y=(Y[:50],))}, "targets of 2 classes are a tuple; expected one tensor"),
        ({"train": split(slice(50))._replace(x={})}, "x is a dict; expected a dict that holds tensors"),
        ({"train": split(slice(50))._replace(x=(IDS.sum(),))}, "x is a tensor without axes"),
    ],
)
def test_wrong_trees(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset(**settings)


@pytest.mark.parametrize("model", [MLP(), LeNet5(), CharLSTM()], ids=lambda m: type(m).__name__)
def test_models_of_one_tensor_refuse_several(model: Any) -> None:
    with pytest.raises(ModelError, match=re.escape("{'input_ids': (5,), 'attention_mask': (5,)}; expected")):
        prepare(experiment(model=model), 0)


def test_a_module_that_does_not_take_the_entries_is_named() -> None:
    data = dataset(train=split(slice(50), ids=IDS), test=split(slice(50, None), ids=IDS))
    with pytest.raises(ModelError, match=r"Net with its loss .*\{'ids': \[5\]\}.* takes the entries of a dict"):
        prepare(experiment(data=data), 0)


def test_a_loss_of_logits_needs_logits() -> None:
    class Nameless(Net):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            return {"scores": super().forward(input_ids, attention_mask)["logits"]}

    with pytest.raises(ModelError, match=r"cross_entropy got outputs of type dict; .* entry logits\. .* own"):
        prepare(experiment(model=Nameless()), 0)


def test_a_skew_of_one_tensor_refuses_several() -> None:
    with pytest.raises(PartitionError, match=r"distorts one tensor, and inputs are a dict of tensors"):
        prepare(experiment(skew=RotationSkew()), 0)


class Swapped:
    """A user's skew of a tree: one client reads backwards."""

    def apply(self, x: dict[str, Tensor], client: int, n: int, seed: int) -> dict[str, Tensor]:
        return {name: t.flip(1) for name, t in x.items()} if client == 0 else x


class Halved(Swapped):
    def apply(self, x: dict[str, Tensor], client: int, n: int, seed: int) -> dict[str, Tensor]:
        return {name: t[::2] for name, t in x.items()}


def test_a_users_skew_takes_trees() -> None:
    plain = prepare(experiment(), 0).federation.shards
    skewed = prepare(experiment(skew=Swapped()), 0).federation.shards
    assert torch.equal(skewed.rows(0).x["input_ids"], plain.rows(0).x["input_ids"].flip(1))
    assert torch.equal(skewed.rows(1).x["input_ids"], plain.rows(1).x["input_ids"])
    with pytest.raises(PartitionError, match=r"Halved\.apply returned \d+ inputs .*; expected as it was given"):
        prepare(experiment(skew=Halved()), 0)


def test_floats_of_a_tree_follow_the_dtype_and_other_numbers_do_not() -> None:
    float_mask = {"input_ids": IDS, "attention_mask": MASK.float()}
    data = dataset(train=split(slice(50), **float_mask), test=split(slice(50, None), **float_mask))
    x = prepare(experiment(data=data, dtype="float64", partition=IidPartitioner(3)), 0).federation.shards.x
    assert x["attention_mask"].dtype == torch.float64 and x["input_ids"].dtype == torch.int64
    assert replace(data, name="other").input_shape == {"input_ids": (T,), "attention_mask": (T,)}
