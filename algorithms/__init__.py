"""The catalogue: one algorithm a file, both its halves, opening with the citation and the update equations."""

from algorithms.beer import BEER
from algorithms.choco import ChocoSGD
from algorithms.dcgd import DCGD
from algorithms.deep_squeeze import DeepSqueeze
from algorithms.dfedavg import DFedAvg
from algorithms.dfedsam import DFedSAM
from algorithms.diana import DIANA
from algorithms.dpsgd import DPSGD
from algorithms.ec_ideal import ECIdeal
from algorithms.econtrol import EControl
from algorithms.ef14 import EF14
from algorithms.ef21 import EF21, L1
from algorithms.ef21_bc import EF21BC
from algorithms.ef21_page import EF21PAGE
from algorithms.ef21_plus import EF21Plus
from algorithms.ef21_sgdm import EF21SGDM
from algorithms.ef21_w import EF21W
from algorithms.exact_diffusion import ExactDiffusion
from algorithms.extra import Extra
from algorithms.fedamd import FedAMD
from algorithms.fedavg import FedAvg
from algorithms.fedcm import FedCM
from algorithms.fedopt import FedOpt
from algorithms.fedprox import FedProx
from algorithms.fedsam import FedSAM
from algorithms.fedspeed import FedSpeed
from algorithms.gradient_tracking import GradientTracking
from algorithms.marina import MARINA
from algorithms.scaffold import Scaffold
from algorithms.sgp import SGP
from algorithms.theory import Theory, theory_of, with_theory

CENTRAL = (FedAvg, FedAMD, FedCM, FedOpt, FedProx, FedSAM, FedSpeed, Scaffold)
COMPRESSED = (DCGD, DIANA, EF14, EF21, EF21BC, EF21PAGE, EF21SGDM, EF21W, MARINA, ECIdeal, EControl, EF21Plus)
GOSSIP = (
    BEER, ChocoSGD, DeepSqueeze, DFedAvg, DFedSAM, DPSGD, ExactDiffusion, Extra, GradientTracking, SGP,
)  # fmt: skip
ALGORITHMS = (*CENTRAL, *COMPRESSED, *GOSSIP)

__all__ = [
    "ALGORITHMS",
    "BEER",
    "CENTRAL",
    "COMPRESSED",
    "DCGD",
    "DIANA",
    "DPSGD",
    "EF14",
    "EF21",
    "EF21BC",
    "EF21PAGE",
    "EF21SGDM",
    "EF21W",
    "GOSSIP",
    "L1",
    "MARINA",
    "SGP",
    "ChocoSGD",
    "DFedAvg",
    "DFedSAM",
    "DeepSqueeze",
    "ECIdeal",
    "EControl",
    "EF21Plus",
    "ExactDiffusion",
    "Extra",
    "FedAMD",
    "FedAvg",
    "FedCM",
    "FedOpt",
    "FedProx",
    "FedSAM",
    "FedSpeed",
    "GradientTracking",
    "Scaffold",
    "Theory",
    "theory_of",
    "with_theory",
]
