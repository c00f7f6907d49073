# %% [markdown]
# # Data of your own
#
# Three hospitals each have a table of patients' measurements, and want one model without showing the tables to each
# other. Here the tables are made from scikit-learn's breast cancer data, with fewer malignant cases from one hospital
# to the next.

# %%
from pathlib import Path

import numpy as np
from rich import print
from sklearn.datasets import load_breast_cancer

from algorithms import FedAvg
from fedsim import Data, Evaluation, Experiment, Logistic, NaturalIdPartitioner, compare, read_metrics, render, run

cancer = load_breast_cancer()
names = [*(name.replace(" ", "_") for name in cancer.feature_names[:10]), "diagnosis"]
draw, folder = np.random.default_rng(0), Path("hospitals")
folder.mkdir(exist_ok=True)
owner = np.where(cancer.target == 0, draw.choice(3, 569, p=[0.6, 0.3, 0.1]), draw.choice(3, 569, p=[0.1, 0.3, 0.6]))
for k in range(3):
    rows = zip(cancer.data[owner == k, :10], cancer.target[owner == k], strict=True)
    mine = [[*map(str, x), cancer.target_names[y]] for x, y in rows]
    (folder / f"hospital_{k}.csv").write_text("\n".join(",".join(row) for row in [names, *mine]) + "\n")

# %% [markdown]
# The format `csv` reads a folder of tables with the same columns. Each file is a natural client, which
# `NaturalIdPartitioner` keeps. Columns are standardized, and a part of each file is held out for testing.

# %%
data = Data("csv", options={"path": str(folder), "target": "diagnosis"})
experiment = Experiment(
    FedAvg(lr=0.1), data=data, model=Logistic(), partition=NaturalIdPartitioner(), rounds=20,
    evaluation=Evaluation(every=5, clients_every=5),
    metrics=["balanced_accuracy"],
)  # fmt: skip
made = run(experiment, progress=False)
print(render(compare([made], metric="balanced_accuracy")))

# %% [markdown]
# Means hide which clients a model serves well. Every client's own scores are kept:

# %%
rows = read_metrics(made.path / "seed-0" / "metrics.jsonl")
for client in range(3):
    accuracy = rows.series("clients/train", "accuracy", client)
    print(f"hospital_{client}: {list(accuracy.values())[-1]:.3f} after round {list(accuracy)[-1]}")

# %% [markdown]
# For tensors, PyTorch datasets, folders of images, texts and Hugging Face tables, see [Data](../data.md). To keep each
# hospital's table on its own machine, see [deployment](deployment.py).
