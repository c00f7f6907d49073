"""Division of a data set among clients: partitioners, feature skew, and the heterogeneity card."""

from fedsim.partition.card import Card, card, render
from fedsim.partition.dirichlet import ClientDirichletPartitioner, DirichletPartitioner, InnerDirichletPartitioner
from fedsim.partition.distribution import ContinuousPartitioner, DistributionPartitioner
from fedsim.partition.flower import FlowerPartitioner
from fedsim.partition.label import PathologicalPartitioner, ShardPartitioner
from fedsim.partition.natural import GroupedNaturalIdPartitioner, NaturalIdPartitioner
from fedsim.partition.own import OwnPartitioner
from fedsim.partition.partition import Partition, Partitioner
from fedsim.partition.picture import plot
from fedsim.partition.quantity import (
    ExponentialPartitioner,
    IdToSizeFncPartitioner,
    IidPartitioner,
    LinearPartitioner,
    SizePartitioner,
    SquarePartitioner,
)
from fedsim.partition.skew import NoiseSkew, RotationSkew, Skew

PARTITIONERS: tuple[type[Partitioner], ...] = (
    IidPartitioner,
    DirichletPartitioner,
    InnerDirichletPartitioner,
    ClientDirichletPartitioner,
    PathologicalPartitioner,
    ShardPartitioner,
    SizePartitioner,
    LinearPartitioner,
    SquarePartitioner,
    ExponentialPartitioner,
    IdToSizeFncPartitioner,
    DistributionPartitioner,
    ContinuousPartitioner,
    NaturalIdPartitioner,
    GroupedNaturalIdPartitioner,
)

SKEWS: tuple[type[Skew], ...] = (RotationSkew, NoiseSkew)

__all__ = [
    "PARTITIONERS",
    "SKEWS",
    "Card",
    "ClientDirichletPartitioner",
    "ContinuousPartitioner",
    "DirichletPartitioner",
    "DistributionPartitioner",
    "ExponentialPartitioner",
    "FlowerPartitioner",
    "GroupedNaturalIdPartitioner",
    "IdToSizeFncPartitioner",
    "IidPartitioner",
    "InnerDirichletPartitioner",
    "LinearPartitioner",
    "NaturalIdPartitioner",
    "NoiseSkew",
    "OwnPartitioner",
    "Partition",
    "Partitioner",
    "PathologicalPartitioner",
    "RotationSkew",
    "ShardPartitioner",
    "SizePartitioner",
    "Skew",
    "SquarePartitioner",
    "card",
    "plot",
    "render",
]
