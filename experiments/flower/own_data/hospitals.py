"""Example of a user-defined model and of data that stays at each node: three hospitals with measurements as CSV files.

    python -m experiments.flower.own_data.hospitals data        # writes data/server and data/nodes/hospital-0, -1, -2
    fedsim deploy experiments/flower/own_data/hospitals.yaml --allow experiments.flower.own_data --nodes 3 \
        --own-data data/nodes --data.path data/server

Data: measurements of 569 tumours (Wolberg, Street and Mangasarian, UCI).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn


class Net(nn.Module):
    """A plain PyTorch module; ``input_shape`` and ``classes`` are set from the data."""

    def __init__(self, input_shape: tuple[int, ...], classes: int, hidden: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(input_shape[0], hidden), nn.Tanh(), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map measurements ``[B, 30]`` to logits ``[B, 2]``."""
        logits: Tensor = self.layers(torch.sign(x) * torch.log1p(x.abs()))
        return logits


def write(folder: Path, x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    """Write one hospital's table; the last column is the label."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [",".join([*map(repr, row.tolist()), str(label)]) for row, label in zip(x, y, strict=True)]
    (folder / "measurements.csv").write_text("\n".join([",".join([*names, "diagnosis"]), *rows]) + "\n")


if __name__ == "__main__":
    cells = load_breast_cancer()
    names, labels = [name.replace(" ", "_") for name in cells.feature_names], cells.target_names[cells.target]
    for k, place in enumerate(["server", *(f"nodes/hospital-{i}" for i in range(3))]):
        write(Path(sys.argv[1]) / place, cells.data[k::4], labels[k::4], names)
