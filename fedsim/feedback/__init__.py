"""Compression with error feedback for the messages of any algorithm: ``Experiment.uplink`` and ``downlink``."""

from fedsim.feedback.mechanisms import DOWNLINKS as DOWNLINKS
from fedsim.feedback.mechanisms import EF21P as EF21P
from fedsim.feedback.mechanisms import UPLINKS as UPLINKS
from fedsim.feedback.mechanisms import Choco as Choco
from fedsim.feedback.mechanisms import EControlUplink as EControlUplink
from fedsim.feedback.mechanisms import EF14Uplink as EF14Uplink
from fedsim.feedback.mechanisms import EF21Uplink as EF21Uplink
from fedsim.feedback.mechanisms import Plain as Plain
from fedsim.feedback.mechanisms import WorkerMomentum as WorkerMomentum
