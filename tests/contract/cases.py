"""The table that every contract check runs over. A new algorithm, model, local work or backend joins with one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn

from algorithms import (
    ADPSGD,
    BEER,
    BVRLSGD,
    CO2,
    D2,
    DCGD,
    DCO2,
    DIANA,
    DPSGD,
    EF14,
    EF21,
    EF21BC,
    EF21PAGE,
    EF21SGDM,
    EF21W,
    KGT,
    L1,
    MARINA,
    NIDS,
    SGP,
    ChocoSGD,
    CoCoDSGD,
    DeepSqueeze,
    DFedAvg,
    DFedSAM,
    DiLoCo,
    Ditto,
    ECIdeal,
    EControl,
    EF21Plus,
    ExactDiffusion,
    Extra,
    FedADMM,
    FedAMD,
    FedAsync,
    FedAvg,
    FedBuff,
    FedCM,
    FedGamma,
    FedNova,
    FedOpt,
    FedPAGE,
    FedProx,
    FedSAM,
    FedSMOO,
    FedSpeed,
    GradientTracking,
    MoFedSAM,
    NoLoCo,
    OverlapSGD,
    PerFedAvg,
    PFedMe,
    QGDSGDm,
    Scaffold,
    SlowMo,
    StreamingDiLoCo,
)
from algorithms.co2 import gap_aware
from fedsim.algorithm import has_server
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.clients import cohort
from fedsim.compress import QSGD, LowPrecision, Natural, PowerSGD, RandK, Scaled, TopK
from fedsim.data import Split
from fedsim.engine.blocks import Blocks
from fedsim.engine.examine import examine
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.memory import MEMORIES
from fedsim.engine.model import Model
from fedsim.feedback import EF21P, Choco, EControlUplink, EF14Uplink, EF21Uplink, Plain
from fedsim.feedback.compressed import Compressed
from fedsim.models.losses import cross_entropy
from fedsim.robust import (
    ALIE,
    ARC,
    CenteredClipping,
    CoordinateMedian,
    Drop,
    GeometricMedian,
    MinMax,
    SelfCenteredClipping,
    SignFlip,
)
from fedsim.robust.robust import Robust
from fedsim.types import Kept
from tests.backends.ray.shared import workers
from topologies import Static

DEVICE = os.environ.get("FEDSIM_TEST_DEVICE", "cpu")
"""Where everything is computed; "cuda" runs the whole suite on a GPU."""

SIZES = (3, 17, 9, 5, 12, 8)                               # samples of each client: batches of 4 leave partial ones
COHORTS = ((0, 1, 3, 4, 5), (1, 2, 4, 5), (0, 2, 3))       # of rounds 1, 2, 3
LINKS = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (1, 4))   # who talks to whom where there is no server
CLASSES = 3


def coordinate_median(rows: Tensor, weights: Tensor) -> Tensor:
    """A ``Rule`` that is no weighted mean."""
    return rows.median(0).values


TOP = TopK(fraction=0.2)

ALGORITHMS: dict[str, Any] = {
    "FedAvg": FedAvg(),
    "FedAvg momentum": FedAvg(lr=0.05, server_lr=0.7, momentum=0.9),
    "FedAvg median": Robust(FedAvg(), coordinate_median),
    "FedProx": FedProx(mu=0.5, server_lr=0.7),
    "FedAdam": FedOpt(),
    "FedYogi": FedOpt(optimizer="yogi", server_lr=0.03, tau=0.01),
    "FedAdagrad": FedOpt(optimizer="adagrad", beta1=0.0),
    "FedCM": FedCM(server_lr=0.7),
    "FedSAM": FedSAM(server_lr=0.7),
    "SCAFFOLD II": Scaffold(),
    "SCAFFOLD I": Scaffold(server_lr=0.5, option="I"),
    "FedSpeed": FedSpeed(),
    "FedSpeed plain": FedSpeed(lam=2.0, alpha=0.5, normalize=False),
    "FedSpeed active": FedSpeed(lam=1.0, dual_avg="active"),
    "FedSpeed no ascent": FedSpeed(rho=0.0),
    "FedAMD optimal": FedAMD(),
    "FedAMD half": FedAMD(p=0.5, large_batch=6),
    "FedAMD all anchors": FedAMD(p=1.0),
    "FedAMD sequence": FedAMD(server_lr=0.5, period=2),
    "FedNova": FedNova(server_lr=0.7),
    "FedNova momentum": FedNova(lr=0.05, momentum=0.9),
    "FedADMM": FedADMM(rho=0.5),
    "FedADMM active": FedADMM(rho=0.5, server_lr=0.7),
    "MoFedSAM": MoFedSAM(server_lr=0.7),
    "FedGamma": FedGamma(rho=0.1, server_lr=0.7),
    "FedSMOO": FedSMOO(lam=2.0),
    "FedSMOO no ascent": FedSMOO(rho=0.0),
    "BVR-L-SGD": BVRLSGD(),
    "BVR-L-SGD mean": BVRLSGD(period=2, pick="mean"),
    "FedPAGE": FedPAGE(server_lr=0.2, p=0.3),
    "FedPAGE large batch": FedPAGE(server_lr=0.2, p=0.3, large_batch=6),
    "DFedAvg": DFedAvg(),
    "DFedAvg momentum": DFedAvg(lr=0.05, momentum=0.9, gossip_steps=2, order="CTA"),
    "DFedSAM": DFedSAM(),
    "DFedSAM no ascent": DFedSAM(rho=0.0, gossip_steps=2, order="CTA"),
    "D-PSGD": DPSGD(),
    "Gradient tracking": GradientTracking(),
    "EXTRA": Extra(),
    "Exact Diffusion": ExactDiffusion(),
    "NIDS": NIDS(),
    "NIDS prox": NIDS(theta=0.4, prox=L1()),
    "D2": D2(),
    "K-GT": KGT(server_lr=0.8),
    "QG-DSGDm": QGDSGDm(lr=0.05),
    "QG-DSGDm-N": QGDSGDm(lr=0.05, mu=0.5, nesterov=True),
    "SGP": SGP(),
    "DCGD": DCGD(compressor=TOP, gradient="minibatch"),
    "EF14": EF14(compressor=TOP, gradient="minibatch"),
    "EF21": EF21(compressor=TOP),
    "EF21 compressed start": EF21(compressor=TOP, start="compressed", momentum=0.5, prox=L1()),
    "EF21 zero start": EF21(compressor=TOP, start="zero", gradient="minibatch"),
    "EF21-BC": EF21BC(compressor=TOP, server_compressor=TopK(fraction=0.4)),
    "EF21-PAGE": EF21PAGE(compressor=TOP, p=0.3),
    "EF21-SGDM": EF21SGDM(compressor=TOP),
    "EF21-SGD2M": EF21SGDM(compressor=TOP, momenta=2, first_batch=6),
    "EF21-W": EF21W(compressor=TOP, gradient="minibatch"),
    "EF21+": EF21Plus(compressor=TOP, gradient="minibatch"),
    "EControl": EControl(compressor=TOP, start="compressed", gradient="minibatch"),
    "EC-Ideal": ECIdeal(compressor=TOP, gradient="minibatch"),
    "DIANA": DIANA(compressor=RandK(fraction=0.5)),
    "MARINA": MARINA(compressor=RandK(fraction=0.5)),
    "VR-MARINA": MARINA(compressor=RandK(fraction=0.5), p=0.3, gradient="minibatch"),
    "CHOCO-SGD": ChocoSGD(gamma=0.3, compressor=TOP),
    "DeepSqueeze": DeepSqueeze(gamma=0.2, compressor=TOP),
    "BEER": BEER(gamma=0.3, compressor=TOP),
    "DiLoCo": DiLoCo(),
    "DiLoCo heavy ball": DiLoCo(outer_lr=0.5, nesterov=False),
    "SlowMo": SlowMo(outer_lr=0.7),
    "CO2": CO2(),
    "CO2 gap": CO2(clip=0.01, gap=gap_aware),
    "DCO2": DCO2(clip=0.01, gap=gap_aware),
    "Overlap-Local-SGD": OverlapSGD(),
    "CoCoD-SGD": CoCoDSGD(),
    "Streaming DiLoCo": StreamingDiLoCo(fragments=2, overlap=0.4),
    "NoLoCo": NoLoCo(),
    "Ditto": Ditto(personal_lr=0.05, lam=0.5),
    "pFedMe": PFedMe(server_lr=0.7),
    "Per-FedAvg": PerFedAvg(),
    "FedBuff": FedBuff(server_lr=0.7),
    "FedAsync": FedAsync(rho=0.3),
    "AD-PSGD": ADPSGD(),
    "CO2, EF14": Compressed(CO2(), EF14Uplink(TOP)),
    "DCO2, CHOCO": Compressed(DCO2(), Choco(TOP, gamma=0.3)),
    "FedAvg, EF21 and EF21-P": Compressed(FedAvg(momentum=0.5), EF21Uplink(TOP), EF21P(TopK(0.4))),
    "SCAFFOLD, EF14": Compressed(Scaffold(), EF14Uplink(RandK(0.3, scaled=False)), Plain(Natural())),
    "FedSpeed, EControl": Compressed(FedSpeed(), EControlUplink(TopK(0.2, scope="layer"))),
    "FedCM, EF14": Compressed(FedCM(), EF14Uplink(TOP), EF21P(TopK(0.4))),
    "FedAMD, EF21": Compressed(FedAMD(p=0.5), EF21Uplink(Scaled(QSGD()))),
    "FedAvg, PowerSGD": Compressed(FedAvg(), EF14Uplink(PowerSGD())),
    "DFedSAM, CHOCO": Compressed(DFedSAM(gossip_steps=2), Choco(TOP, gamma=0.3)),
    "DFedAvg, low precision": Compressed(DFedAvg(), Plain(LowPrecision("bf16"))),
    "FedOpt, geometric median": Robust(FedOpt(), GeometricMedian(), ALIE(0.3)),
    "SCAFFOLD, clipped": Robust(Scaffold(), CenteredClipping(0.5), MinMax(ids=(1, 4))),
    "EF21, ARC": Robust(EF21(compressor=TOP), ARC(GeometricMedian(), f=1), SignFlip(ids=(2,), scale=5)),
    "FedAvg, PowerSGD, lost": Robust(Compressed(FedAvg(), EF14Uplink(PowerSGD())), None, Drop(ids=(2,), p=0.6)),
    "DFedAvg, self-centred": Robust(DFedAvg(gossip_steps=2), SelfCenteredClipping(0.5), ALIE(ids=(1,), sign=1)),
    "D-PSGD, ARC": Robust(DPSGD(momentum=0.5), ARC(CoordinateMedian(), f=0), SignFlip(ids=(3,))),
}

CERTAIN = ("FedAMD all anchors", "EF21", "EF21, ARC", "EF21 compressed start", "EF21-BC")
"""Those that draw nothing: whole shards, no coins, no random compressor."""

OWN_CHANCE = (
    "FedAMD optimal", "FedAMD half", "FedPAGE large batch", "BVR-L-SGD", "EF21-SGD2M", "DIANA", "MARINA", "VR-MARINA",
    "SCAFFOLD, EF14", "FedAMD, EF21", "FedAvg, PowerSGD",
    "FedOpt, geometric median", "SCAFFOLD, clipped", "EF21, ARC", "FedAvg, PowerSGD, lost", "DFedAvg, self-centred",
    "D-PSGD, ARC",
)  # fmt: skip
"""Those that draw something for each client by its number besides its minibatches."""

GOSSIPING = [name for name, algorithm in ALGORITHMS.items() if not has_server(algorithm)]

WORKS: dict[str, LocalWork] = {
    "epochs": LocalWork(batch_size=4, epochs=2),
    "steps": LocalWork(batch_size=4, steps=3, weight_decay=0.01, clip_norm=0.3),
    "whole shard": LocalWork(batch_size=0, steps=2),
}

BACKENDS: dict[str, Callable[[], Any]] = {
    "blocks of 1": lambda: Blocks(1),
    "blocks of 2": lambda: Blocks(2),
    "blocks of 4": lambda: Blocks(4),
    "blocks of 25": lambda: Blocks(25),
    "ray": lambda: RayActors(workers(), 2),
    **{f"loop on {n} threads": partial(Loop, n) for n in (1, 2, 3)},
    **{f"blocks of 2 on {n} threads": partial(Blocks, 2, n) for n in (1, 2, 3)},
}
"""All but the loop, which is the meaning that they are held to."""


class TiedTokens(nn.Module):
    """Somebody's own module: not a ``Sequential``, integer inputs, and one weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 4)
        self.mixing = nn.Linear(4, 4)
        self.output = nn.Linear(4, CLASSES)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, T]`` to logits ``[B, T, CLASSES]``."""
        out: Tensor = self.output(torch.tanh(self.mixing(self.embedding(tokens))))
        return out


class Mixing(nn.Module):
    """Somebody's own module: it subtracts the mean of the minibatch, so that padding would change it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(16, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 1, 4, 4]`` to logits."""
        h = torch.tanh(self.hidden(x.flatten(1)))
        out: Tensor = self.output(h - h.mean(0) if self.training else h)
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, CLASSES)),
    "convolutional": lambda: nn.Sequential(                # biases right before the norm have gradients +-g: a tie
        nn.Conv2d(1, 2, 3), nn.Tanh(), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, CLASSES)
    ),
    "tied tokens": TiedTokens,
    "mixing": Mixing,
}


class Play(NamedTuple):
    """A few rounds: the state after initialisation and after each round, and the ledger's arrays by name."""

    states: list[Any]
    ledger: dict[str, np.ndarray]


def federation(
    model: str = "dense",
    work: str | LocalWork = "epochs",
    backend: str = "loop",
    dtype: torch.dtype = torch.float64,
    weighted: bool = False,
    seed: int = 7,
    order: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    device: str = DEVICE,
    memory: str = "device",
) -> Federation:
    """The federation of these cases; ``order`` says which of the six shards each client holds."""
    generator = torch.Generator().manual_seed(0)
    shards = []
    for size in SIZES:
        if model == "tied tokens":
            shape = (size, 5)
            x, y = (torch.randint(0, CLASSES, shape, generator=generator) for _ in range(2))
        else:
            x = torch.randn(size, 1, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
            y = torch.randint(0, CLASSES, (size,), generator=generator)
        shards.append((x, y))
    xs, ys = (torch.cat([shards[i][part] for i in order]) for part in (0, 1))
    sizes = np.array(SIZES)[list(order)]
    made = Model(MODELS[model](), cross_entropy, dtype=dtype, device=device)
    samples = Split(xs.to(device), ys.to(device))
    examine(made, samples)
    return Federation(
        made,
        Shards(samples.x, samples.y, np.r_[0, np.cumsum(sizes)]),
        WORKS[work] if isinstance(work, str) else work,
        seed,
        Loop() if backend == "loop" else BACKENDS[backend](),
        weights=sizes if weighted else None,
        cohort_size=4,
        decay=lambda round: 0.9**round,
        topology=Static(nx.Graph((order.index(a), order.index(b)) for a, b in LINKS)),
        memory=MEMORIES[memory](made.device),
    )


def initial(fed: Federation) -> Tensor:
    """The same random model ``[d]`` for every federation of one kind of model."""
    generator = torch.Generator().manual_seed(1)
    x = 0.3 * torch.randn(fed.model.d, generator=generator, dtype=torch.float64)
    return x.to(fed.model.device, fed.model.dtype)


def cohorts_of(algorithm: Any) -> tuple[tuple[int, ...], ...]:
    """Cohorts of rounds 1, 2, 3: everybody where the algorithm insists on it."""
    insists = (EF21BC, Extra, ExactDiffusion, NIDS, D2, ChocoSGD, BEER)
    uplink = algorithm.uplink if isinstance(algorithm, Compressed) else None
    everybody = isinstance(algorithm, insists) or isinstance(uplink, Choco) or getattr(algorithm, "period", 0) > 1
    return (tuple(range(6)),) * 3 if everybody else COHORTS


def rounds(
    algorithm: Any, fed: Federation, cohorts: tuple[tuple[int, ...], ...] = (), state: Any = None, first: int = 1,
    meter: Meter | None = None,
) -> Iterator[Any]:  # fmt: skip
    """The states of a run, from initialisation, or from ``state`` before round ``first``."""
    cohorts, meter = cohorts or cohorts_of(algorithm), meter or Meter(fed)
    if state is None:
        state = algorithm.init(initial(fed), cohort(fed, 0, meter=meter))
        yield state
    for round, ids in enumerate(cohorts[first - 1 :], first):
        state = algorithm.round(state, cohort(fed, round, np.array(ids), meter))
        yield state


@cache
def play(algorithm: str, **settings: Any) -> Play:
    """A run of the table, by names; ``settings`` are those of ``federation``."""
    fed = federation(**settings)
    meter = Meter(fed)
    states = list(rounds(ALGORITHMS[algorithm], fed, meter=meter))
    return Play(states, {name: costs.numpy() for name, costs in meter.ledger.snapshot().items()})


def tensors(state: Any) -> list[Tensor]:
    """Everything in a state: its tensors, and those of a ``Kept`` stacked over all nodes; mappings by their values."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, Kept):
        columns = zip(*(tensors(state[node]) for node in range(state.n)), strict=True)
        return [torch.stack(column) for column in columns]
    assert isinstance(state, tuple | dict), f"{type(state).__name__} in a state"
    parts = state.values() if isinstance(state, dict) else state
    return [leaf for part in parts for leaf in tensors(part)]


def gap(a: Any, b: Any) -> float:
    """Largest difference between two states, of whatever devices."""
    return max(float((s.cpu() - t.cpu()).abs().max()) for s, t in zip(tensors(a), tensors(b), strict=True))


def same_bits(a: Any, b: Any) -> bool:
    """Test for two states that are equal bit for bit."""
    return all(torch.equal(s, t) for s, t in zip(tensors(a), tensors(b), strict=True))
