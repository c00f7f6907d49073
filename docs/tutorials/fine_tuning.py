# %% [markdown]
# # Fine-tuning with low-rank adapters
#
# Clients adapt a pretrained model, and send only a few numbers. LoRA (Hu et al. 2022) freezes the weights and trains a
# low-rank product beside each. Here the network knows only even digits, and the clients have all of them.

# %%
from dataclasses import replace

import torch
from rich import print

from algorithms import FedAvg
from fedsim import (
    MLP,
    Data,
    Dataset,
    DirichletPartitioner,
    Experiment,
    FixedSize,
    LocalWork,
    Split,
    read_metrics,
    run,
    trained_model,
)
from fedsim.data import load
from fedsim.models import LoRA, merged

digits = load("digits")


def even(split: Split) -> Split:
    return Split(split.x[split.y % 2 == 0], split.y[split.y % 2 == 0])


before = Dataset("even digits", even(digits.train), even(digits.test), classes=10)
pretraining = Experiment(FedAvg(lr=0.3), data=before, model=MLP((64,)), local=LocalWork(batch_size=16), rounds=15)
pretrained = trained_model(run(pretraining, progress=False), experiment=pretraining)

# %% [markdown]
# `LoRA` wraps any module with linear layers. FedIT averages both factors; FFA-LoRA freezes A and sends B alone, which
# makes the mean of products exact. Both are settings that work with every algorithm.

# %%
skewed = DirichletPartitioner(20, alpha=0.3, min_partition_size=10)
base = Experiment(
    FedAvg(lr=0.1), data=Data("digits"), partition=skewed, model=pretrained, local=LocalWork(batch_size=16),
    sampling=FixedSize(0.5), rounds=20,
)  # fmt: skip
models = {
    "all weights": pretrained,
    "FedIT, rank 4": LoRA(pretrained, rank=4),
    "FFA-LoRA, rank 4": LoRA(pretrained, rank=4, train="B"),
}
made = {name: run(replace(base, model=model), progress=False) for name, model in models.items()}
for name, trained in made.items():
    rows = read_metrics(trained.path / "seed-0" / "metrics.jsonl")
    accuracy, sent = (rows.series(*of)[20] for of in (("server/test", "accuracy"), ("total", "bytes_up")))
    print(f"{name:<18} accuracy {accuracy:.3f} after round 20, {sent / 1e6:.2f} MB sent by all clients")

# %% [markdown]
# For use elsewhere, the adapter is added to the weights, which gives an ordinary module again.

# %%
adapted = merged(trained_model(made["FedIT, rank 4"], experiment=replace(base, model=models["FedIT, rank 4"])))
with torch.no_grad():
    accuracy = (adapted(digits.test.x).argmax(1) == digits.test.y).double().mean()
print(f"{type(adapted).__name__}, {accuracy:.3f} of the test digits")

# %% [markdown]
# [Personal models](../personal.md) is about layers that stay with the client, methods with a model for each client, and
# what newcomers get.
