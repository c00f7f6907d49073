"""Compression of any algorithm's messages, with error feedback: values for ``Experiment.uplink`` and ``downlink``."""

from fedsim.feedback.mechanisms import DOWNLINKS as DOWNLINKS
from fedsim.feedback.mechanisms import EF14 as EF14
from fedsim.feedback.mechanisms import EF21 as EF21
from fedsim.feedback.mechanisms import EF21P as EF21P
from fedsim.feedback.mechanisms import UPLINKS as UPLINKS
from fedsim.feedback.mechanisms import Choco as Choco
from fedsim.feedback.mechanisms import EControl as EControl
from fedsim.feedback.mechanisms import Plain as Plain
