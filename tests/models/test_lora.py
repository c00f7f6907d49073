"""LoRA: what is frozen, what travels, when the mean of the clients' products is exact, and what is merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms import EVA, FedAvg, FLoRA, HetLoRA, LoRAGA
from fedsim import MLP, Evaluation, Execution, Experiment, FixedSize, IidPartitioner, LocalWork, read_metrics, run
from fedsim.clients import cohort
from fedsim.controller.prepare import prepare
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Backend
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError, ModelError
from fedsim.experiment.config import from_config, to_config
from fedsim.models import GPT, LoRA, merged
from fedsim.models.lora import LoRALinear

CASE = Experiment(
    FedAvg(lr=0.1),
    model=LoRA(MLP((12,)), rank=2, targets="1, 3"),
    partition=IidPartitioner(3),
    local=LocalWork(batch_size=64),
    sampling=FixedSize(1.0),
    rounds=2,
    dtype="float64",
    execution=Execution(backend="loop"),
)


def effective(module: nn.Module) -> Tensor:
    """The weights W_0 + scaling B A of all layers."""
    return torch.cat([layer.merged().weight.flatten() for layer in module.modules() if isinstance(layer, LoRALinear)])


def test_a_new_adapter_changes_nothing_and_trains_alone() -> None:
    torch.manual_seed(0)
    base = GPT(width=8, layers=1).build((5,), 9)
    model = LoRA(base, rank=2, targets="qkv, project").build((5,), 9)
    tokens = torch.randint(0, 9, (3, 5))
    assert torch.equal(model(tokens), base(tokens))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    block = "blocks.0.attention"
    assert trained == [f"{block}.{layer}.lora_{x}" for layer in ("qkv", "project") for x in "AB"]
    assert all(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("train", ["both", "B"])
def test_blocks_agree_with_the_loop_and_frozen_weights_stay(train: str) -> None:
    def after(backend: Backend) -> Tensor:
        case = replace(CASE, model=replace(CASE.model, train=train))
        fed = replace(prepare(case, 0).federation, backend=backend)
        before = [p.clone() for p in fed.model.module.parameters() if not p.requires_grad]
        x = FedAvg(lr=0.1).init(fed.model.vector(), cohort(fed, 0))
        for k in (1, 2):
            x = FedAvg(lr=0.1).round(x, cohort(fed, k))
        frozen = [p for p in fed.model.module.parameters() if not p.requires_grad]
        assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
        return x.x

    torch.testing.assert_close(after(Blocks(2)), after(Loop()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("train", "exact"), [("B", True), ("both", False)], ids=["FFA-LoRA", "FedIT"])
def test_the_mean_of_factors_is_that_of_products_only_where_one_is_common(train: str, exact: bool) -> None:
    fed = prepare(replace(CASE, model=replace(CASE.model, train=train)), 0).federation
    x, method = fed.model.vector(), FedAvg(lr=0.1)
    for k in (1, 2):                                       # in round 1 all B begin at 0
        ends = cohort(fed, k).each(method.client, x).stacked + x
        products = torch.stack([effective(fed.model.load(end)) for end in ends]).mean(0)
        x = ends.mean(0)
    gap = float((effective(fed.model.load(x)) - products).norm() / products.norm())
    assert gap < 1e-14 if exact else gap > 1e-6


def test_bytes_are_of_the_adapters_alone(tmp_path: Path) -> None:
    """r (d + k) numbers for each layer, half of it without A, where d = k."""
    made = {}
    for train in ("both", "B"):
        case = replace(CASE, model=replace(CASE.model, train=train), dtype="float32")
        rows = read_metrics(run(case, output=tmp_path / train, progress=False).path / "seed-0/metrics.jsonl")
        made[train] = rows.series("total", "bytes_up")[2] / 6
    assert made["both"] == pytest.approx(4 * 2 * (64 + 12 + 12 + 10), abs=10)
    assert made["B"] == pytest.approx(4 * 2 * (12 + 10), abs=10)


def test_fedsa_lora_leaves_b_with_the_clients(tmp_path: Path) -> None:
    case = replace(CASE, share="*lora_A*", evaluation=Evaluation(holdout=0.2))  # type: ignore[arg-type]
    rows = read_metrics(run(case, output=tmp_path / "run", progress=False).path / "seed-0/metrics.jsonl")
    assert rows.series("total", "bytes_up")[2] / 6 == pytest.approx(8 * 2 * (64 + 12), abs=10)
    assert 0 <= rows.series("personal/holdout", "accuracy_mean")[2] <= 1


def test_merged_weights_give_the_same_outputs() -> None:
    torch.manual_seed(0)
    model = LoRA(MLP((12,)), rank=3, stabilised=True).build((6,), 4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    x, plain = torch.randn(5, 6), merged(model)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-4)
    assert [type(layer) for layer in plain] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]


def test_a_new_head_trains_whole() -> None:
    model = LoRA(MLP((12,)), targets="1", trained="3").build((6,), 4)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["1.lora_A", "1.lora_B", "3.weight", "3.bias"]


def test_files_and_flags_name_it() -> None:
    assert from_config(to_config(CASE)) == CASE
    flags = {"name": "LoRA", "model": {"name": "GPT", "width": 8}, "rank": 2}
    assert from_config({"algorithm": "FedAvg", "model": flags}).model == LoRA(GPT(width=8), rank=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA("MLP"), "LoRA.model is 'MLP'; expected an nn.Module, or settings such as MLP"),  # type: ignore[arg-type]
        (lambda: LoRA(MLP), "LoRA.model is <class .*; expected an nn.Module"),  # type: ignore[arg-type]
        (lambda: LoRA(MLP(), targets=["1"]), r"LoRA.targets is \['1'\]; expected a text, with commas between"),  # type: ignore[arg-type]
        (lambda: EVA(FedAvg), r"EVA.algorithm is the class FedAvg; expected e.g. FedAvg\(lr=0.1\)"),  # type: ignore[arg-type]
        (lambda: LoRAGA("FLoRA"), "LoRAGA.algorithm is 'FLoRA'; expected e.g. FedExLoRA"),  # type: ignore[arg-type]
        (lambda: FLoRA(ranks=4), r"FLoRA.ranks is 4; expected a sequence of ranks, such as \(8, 4, 2\)"),  # type: ignore[arg-type]
        (lambda: HetLoRA(ranks=(2, 0.5)), "HetLoRA.ranks is 0.5; expected a whole number, 1 or more"),  # type: ignore[arg-type]
    ],
)
def test_settings_of_another_kind(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_settings_out_of_range() -> None:
    for settings, message in (({"rank": 0}, "LoRA.rank is 0"), ({"train": "A"}, "LoRA.train is 'A'")):
        with pytest.raises(ConfigError, match=message):
            LoRA(**settings)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="'qkv' is no Linear layer of the model; known: 1, 3"):
        LoRA(MLP((12,)), targets="qkv").build((6,), 4)
    with pytest.raises(ModelError, match="rank 5 is above the rank of layer 3; expected at most 4"):
        LoRA(MLP((12,)), rank=5).build((6,), 4)
