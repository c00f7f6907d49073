"""What ``fedsim partition`` makes and shows, which needs PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedsim.controller.loading import problem_and_dataset
from fedsim.data import Dataset
from fedsim.experiment.division import DIRICHLET, division
from fedsim.experiment.experiment import Data
from fedsim.partition import Partitioner, card, plot
from fedsim.partition.card import Card
from fedsim.record.figures import kind_of
from fedsim.record.places import check_file, writing


@dataclass(frozen=True)
class Division:
    """A data set divided among clients, as in an experiment.

    Args:
        data: the data set.
        partition: division of the samples among clients.
        seed: seed of the random draws.
    """

    data: Data | Dataset = field(default_factory=Data)
    partition: Partitioner = field(default_factory=lambda: DIRICHLET)
    seed: int = 0


def divide(chosen: Division, picture: str | None, file: str | None) -> Card:
    """Divide the data, and return the heterogeneity card.

    Args:
        chosen: data and partition.
        picture: file of a picture to draw.
        file: file to write the samples of each client to.
    """
    if picture is not None:
        kind_of(picture)
    if file is not None:
        check_file(file, "samples.npz")
    _, dataset = problem_and_dataset(chosen.data)
    labels = dataset.labels
    parts = division(chosen.data, chosen.partition).partition(labels, dataset.train.client, chosen.seed)
    if picture is not None:
        plot(parts, labels, dataset.classes, picture)
    if file is not None:
        with writing(Path(file)):
            parts.save(file)
    return card(parts, labels, dataset.classes)
