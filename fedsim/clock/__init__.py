"""Simulated seconds: the devices and links of clients, and a clock that says how long a round would take on them."""

from fedsim.clock.clocks import CLOCKS, Clock, Timing, TracedClock
from fedsim.clock.distributions import DISTRIBUTIONS, HalfNormal, LogNormal, Uniform
from fedsim.clock.waiting import Waiting
from fedsim.clock.windows import AVAILABILITIES, Daily, OnOff

__all__ = [
    "AVAILABILITIES",
    "CLOCKS",
    "DISTRIBUTIONS",
    "Clock",
    "Daily",
    "HalfNormal",
    "LogNormal",
    "OnOff",
    "Timing",
    "TracedClock",
    "Uniform",
    "Waiting",
]
