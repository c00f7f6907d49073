"""Algorithms whose messages are compressed on their way, for the table of ``tests.contract.cases``."""

from __future__ import annotations

from typing import Any

from algorithms import DFedAvg, DFedSAM, FedAMD, FedAvg, FedCM, FedSpeed, Scaffold
from fedsim.compress import QSGD, LowPrecision, Natural, PowerSGD, RandK, Scaled, TopK
from fedsim.feedback import EF14, EF21, EF21P, Choco, EControl, Plain
from fedsim.feedback.compressed import Compressed

LINKED: dict[str, Any] = {
    "FedAvg, EF21 and EF21-P": Compressed(FedAvg(momentum=0.5), EF21(TopK(0.2)), EF21P(TopK(0.4))),
    "SCAFFOLD, EF14": Compressed(Scaffold(), EF14(RandK(0.3, scaled=False)), Plain(Natural())),
    "FedSpeed, EControl": Compressed(FedSpeed(), EControl(TopK(0.2, scope="layer"))),
    "FedCM, EF14": Compressed(FedCM(), EF14(TopK(0.2)), EF21P(TopK(0.4))),
    "FedAMD, EF21": Compressed(FedAMD(p=0.5), EF21(Scaled(QSGD()))),
    "FedAvg, PowerSGD": Compressed(FedAvg(), EF14(PowerSGD())),
    "DFedSAM, CHOCO": Compressed(DFedSAM(gossip_steps=2), Choco(TopK(0.2), gamma=0.3)),
    "DFedAvg, low precision": Compressed(DFedAvg(), Plain(LowPrecision("bf16"))),
}
DRAWING = ["SCAFFOLD, EF14", "FedAMD, EF21", "FedAvg, PowerSGD"]
"""Those whose compressors draw random numbers."""
EVERYBODY = ["DFedSAM, CHOCO"]
"""Those in which nodes remember what their neighbours sent."""
