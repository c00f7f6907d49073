"""Byzantine clients: rules that bound what they can do (``Experiment.aggregate``), and attacks (``Experiment.attack``).

A rule is a frozen dataclass, and is called as a ``fedsim.types.Rule``. Steps such as ``NNM`` stand before any
``RobustRule``: ``NNM(TrimmedMean(f=2))``. An attack says which clients are Byzantine, and what they send.
"""

from fedsim.robust.attack import Attack as Attack
from fedsim.robust.before import ARC as ARC
from fedsim.robust.before import NNM as NNM
from fedsim.robust.before import Bucketing as Bucketing
from fedsim.robust.before import Clipping as Clipping
from fedsim.robust.before import Jointly as Jointly
from fedsim.robust.centers import CenteredClipping as CenteredClipping
from fedsim.robust.centers import GeometricMedian as GeometricMedian
from fedsim.robust.centers import Mean as Mean
from fedsim.robust.centers import NormMean as NormMean
from fedsim.robust.centers import SelfCenteredClipping as SelfCenteredClipping
from fedsim.robust.coordinates import CoordinateMedian as CoordinateMedian
from fedsim.robust.coordinates import MeaMed as MeaMed
from fedsim.robust.coordinates import Phocas as Phocas
from fedsim.robust.coordinates import TrimmedMean as TrimmedMean
from fedsim.robust.crafted import ALIE as ALIE
from fedsim.robust.crafted import IPM as IPM
from fedsim.robust.crafted import Mimic as Mimic
from fedsim.robust.crafted import MinMax as MinMax
from fedsim.robust.crafted import MinSum as MinSum
from fedsim.robust.crafted import OptimalALIE as OptimalALIE
from fedsim.robust.crafted import OptimalIPM as OptimalIPM
from fedsim.robust.faults import Drop as Drop
from fedsim.robust.faults import GaussianNoise as GaussianNoise
from fedsim.robust.faults import NonFinite as NonFinite
from fedsim.robust.faults import SignFlip as SignFlip
from fedsim.robust.faults import UniformNoise as UniformNoise
from fedsim.robust.faults import Zero as Zero
from fedsim.robust.neighbours import AKSEL as AKSEL
from fedsim.robust.neighbours import MDA as MDA
from fedsim.robust.neighbours import Bulyan as Bulyan
from fedsim.robust.neighbours import Krum as Krum
from fedsim.robust.neighbours import MoNNA as MoNNA
from fedsim.robust.neighbours import MultiKrum as MultiKrum
from fedsim.robust.poisoning import Backdoor as Backdoor
from fedsim.robust.poisoning import LabelFlip as LabelFlip
from fedsim.robust.spectral import CAF as CAF
from fedsim.robust.spectral import FlagAggregator as FlagAggregator

RULES = (
    Mean, NormMean, CoordinateMedian, TrimmedMean, MeaMed, Phocas, GeometricMedian, Krum, MultiKrum, Bulyan,
    CenteredClipping, MDA, CAF, MoNNA, AKSEL, FlagAggregator, SelfCenteredClipping, NNM, Bucketing, Clipping, ARC,
    Jointly,
)  # fmt: skip
"""Rules, then the steps before them."""
ATTACKS = (
    UniformNoise, GaussianNoise, SignFlip, LabelFlip, Zero, Mimic, IPM, ALIE, MinMax, MinSum, OptimalALIE, OptimalIPM,
    NonFinite, Drop, Backdoor,
)  # fmt: skip
