"""The catalogue: one algorithm a file, both its halves, opening with the citation and the update equations."""

from algorithms.fedamd import FedAMD
from algorithms.fedavg import FedAvg
from algorithms.fedspeed import FedSpeed
from algorithms.scaffold import Scaffold

ALGORITHMS = (FedAMD, FedAvg, FedSpeed, Scaffold)

__all__ = ["ALGORITHMS", "FedAMD", "FedAvg", "FedSpeed", "Scaffold"]
