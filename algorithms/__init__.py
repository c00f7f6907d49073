"""The catalogue: one algorithm a file, both its halves, opening with the citation and the update equations."""

from algorithms.dfedavg import DFedAvg
from algorithms.dfedsam import DFedSAM
from algorithms.dpsgd import DPSGD
from algorithms.exact_diffusion import ExactDiffusion
from algorithms.extra import Extra
from algorithms.fedamd import FedAMD
from algorithms.fedavg import FedAvg
from algorithms.fedsam import FedSAM
from algorithms.fedspeed import FedSpeed
from algorithms.gradient_tracking import GradientTracking
from algorithms.scaffold import Scaffold
from algorithms.sgp import SGP

CENTRAL = (FedAMD, FedAvg, FedSAM, FedSpeed, Scaffold)
GOSSIP = (DFedAvg, DFedSAM, DPSGD, ExactDiffusion, Extra, GradientTracking, SGP)
ALGORITHMS = (*CENTRAL, *GOSSIP)

__all__ = [
    "ALGORITHMS",
    "CENTRAL",
    "DPSGD",
    "GOSSIP",
    "SGP",
    "DFedAvg",
    "DFedSAM",
    "ExactDiffusion",
    "Extra",
    "FedAMD",
    "FedAvg",
    "FedSAM",
    "FedSpeed",
    "GradientTracking",
    "Scaffold",
]
