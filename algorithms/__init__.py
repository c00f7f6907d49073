"""The catalogue: one algorithm a file, both its halves, opening with the citation and the update equations."""

from typing import Any

from algorithms.adpsgd import ADPSGD
from algorithms.beer import BEER
from algorithms.bvr_l_sgd import BVRLSGD
from algorithms.choco import ChocoSGD
from algorithms.co2 import CO2
from algorithms.cocod_sgd import CoCoDSGD
from algorithms.d2 import D2
from algorithms.dcgd import DCGD
from algorithms.dco2 import DCO2
from algorithms.deep_squeeze import DeepSqueeze
from algorithms.dfedavg import DFedAvg
from algorithms.dfedsam import DFedSAM
from algorithms.diana import DIANA
from algorithms.diloco import DiLoCo
from algorithms.ditto import Ditto
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
from algorithms.eva import EVA
from algorithms.exact_diffusion import ExactDiffusion
from algorithms.extra import Extra
from algorithms.fedadmm import FedADMM
from algorithms.fedamd import FedAMD
from algorithms.fedasync import FedAsync
from algorithms.fedavg import FedAvg
from algorithms.fedbuff import FedBuff
from algorithms.fedcm import FedCM
from algorithms.fedex_lora import FedExLoRA
from algorithms.fedgamma import FedGamma
from algorithms.fednova import FedNova
from algorithms.fedopt import FedOpt
from algorithms.fedpage import FedPAGE
from algorithms.fedprox import FedProx
from algorithms.fedsam import FedSAM
from algorithms.fedsmoo import FedSMOO
from algorithms.fedspeed import FedSpeed
from algorithms.flora import FLoRA
from algorithms.gradient_tracking import GradientTracking
from algorithms.hetlora import HetLoRA
from algorithms.kgt import KGT
from algorithms.lora_ga import LoRAGA
from algorithms.marina import MARINA
from algorithms.mofedsam import MoFedSAM
from algorithms.nids import NIDS
from algorithms.noloco import NoLoCo
from algorithms.overlap_sgd import OverlapSGD
from algorithms.per_fedavg import PerFedAvg
from algorithms.pfedme import PFedMe
from algorithms.qg_dsgdm import QGDSGDm
from algorithms.rolora import RoLoRA
from algorithms.scaffold import Scaffold
from algorithms.sgp import SGP
from algorithms.slowmo import SlowMo
from algorithms.streaming_diloco import StreamingDiLoCo
from algorithms.theory import Theory, theory_of, with_theory
from fedsim.errors import suggest

CENTRAL = (
    FedAvg, FedAMD, FedADMM, FedCM, FedGamma, FedNova, FedOpt, FedPAGE, FedProx, FedSAM, FedSMOO, FedSpeed, MoFedSAM,
    Scaffold, BVRLSGD,
)  # fmt: skip
COMPRESSED = (DCGD, DIANA, EF14, EF21, EF21BC, EF21PAGE, EF21SGDM, EF21W, MARINA, ECIdeal, EControl, EF21Plus)
GOSSIP = (
    BEER, D2, KGT, NIDS, SGP, ChocoSGD, DeepSqueeze, DFedAvg, DFedSAM, DPSGD, ExactDiffusion, Extra, GradientTracking,
    QGDSGDm,
)  # fmt: skip
OVERLAP = (CO2, DCO2, CoCoDSGD, DiLoCo, NoLoCo, OverlapSGD, SlowMo, StreamingDiLoCo)
PERSONAL = (Ditto, PFedMe, PerFedAvg)
LORA = (EVA, FLoRA, FedExLoRA, HetLoRA, LoRAGA, RoLoRA)
ASYNCHRONOUS = (ADPSGD, FedAsync, FedBuff)
ALGORITHMS = (*CENTRAL, *COMPRESSED, *GOSSIP, *OVERLAP, *PERSONAL, *LORA, *ASYNCHRONOUS)

__all__ = [
    "ADPSGD",
    "ALGORITHMS",
    "ASYNCHRONOUS",
    "BEER",
    "BVRLSGD",
    "CENTRAL",
    "CO2",
    "COMPRESSED",
    "D2",
    "DCGD",
    "DCO2",
    "DIANA",
    "DPSGD",
    "EF14",
    "EF21",
    "EF21BC",
    "EF21PAGE",
    "EF21SGDM",
    "EF21W",
    "EVA",
    "GOSSIP",
    "KGT",
    "L1",
    "LORA",
    "MARINA",
    "NIDS",
    "OVERLAP",
    "PERSONAL",
    "SGP",
    "ChocoSGD",
    "CoCoDSGD",
    "DFedAvg",
    "DFedSAM",
    "DeepSqueeze",
    "DiLoCo",
    "Ditto",
    "ECIdeal",
    "EControl",
    "EF21Plus",
    "ExactDiffusion",
    "Extra",
    "FLoRA",
    "FedADMM",
    "FedAMD",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedCM",
    "FedExLoRA",
    "FedGamma",
    "FedNova",
    "FedOpt",
    "FedPAGE",
    "FedProx",
    "FedSAM",
    "FedSMOO",
    "FedSpeed",
    "GradientTracking",
    "HetLoRA",
    "LoRAGA",
    "MoFedSAM",
    "NoLoCo",
    "OverlapSGD",
    "PFedMe",
    "PerFedAvg",
    "QGDSGDm",
    "RoLoRA",
    "Scaffold",
    "SlowMo",
    "StreamingDiLoCo",
    "Theory",
    "theory_of",
    "with_theory",
]


def __getattr__(name: str) -> Any:
    """Explain names that the catalogue lacks, such as those of the literature that stand for another's settings."""
    if name.startswith("_"):
        raise AttributeError(name)
    raise ImportError(
        f"algorithms has no {name}; {suggest(name, __all__)}. `fedsim list algorithms` explains others:"
        " FedAdam is FedOpt(optimizer='adam'), FedDyn is FedSpeed(rho=0.0, lam=100.0)"
    )
