"""Communication in decentralized learning: graphs, mixing matrices, and schedules that change over time."""

from topologies.errors import TopologyError
from topologies.files import FromFile, from_networkx
from topologies.graphs import (
    GRAPHS,
    Complete,
    Exponential,
    GraphBuilder,
    Grid,
    Hypercube,
    Path,
    Ring,
    Star,
    Torus,
    TwoCliques,
)
from topologies.matrix_checks import check
from topologies.mixing import (
    WEIGHTINGS,
    Weighting,
    column_stochastic,
    fastest,
    lazy,
    max_degree,
    metropolis,
    uniform,
    uniform_directed,
)
from topologies.random_graphs import BarabasiAlbert, ErdosRenyi, RandomRegular, WattsStrogatz
from topologies.schedules import (
    SCHEDULES,
    LinkFailures,
    MixingSchedule,
    OnePeerExponential,
    RandomMatching,
    RandomNeighbours,
    Static,
)
from topologies.spectrum import Spectral, spectral

__all__ = [
    "GRAPHS",
    "SCHEDULES",
    "WEIGHTINGS",
    "BarabasiAlbert",
    "Complete",
    "ErdosRenyi",
    "Exponential",
    "FromFile",
    "GraphBuilder",
    "Grid",
    "Hypercube",
    "LinkFailures",
    "MixingSchedule",
    "OnePeerExponential",
    "Path",
    "RandomMatching",
    "RandomNeighbours",
    "RandomRegular",
    "Ring",
    "Spectral",
    "Star",
    "Static",
    "TopologyError",
    "Torus",
    "TwoCliques",
    "WattsStrogatz",
    "Weighting",
    "check",
    "column_stochastic",
    "fastest",
    "from_networkx",
    "lazy",
    "max_degree",
    "metropolis",
    "spectral",
    "uniform",
    "uniform_directed",
]
