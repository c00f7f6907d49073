"""Simulated seconds: the devices and links of clients, and a clock that says how long a round would take on them."""

from fedsim.clock.clocks import CLOCKS, Clock, Timing, TracedClock
from fedsim.clock.distributions import DISTRIBUTIONS, HalfNormal, LogNormal, Uniform
from fedsim.clock.windows import AVAILABILITIES, OnOff

__all__ = [
    "AVAILABILITIES",
    "CLOCKS",
    "DISTRIBUTIONS",
    "Clock",
    "HalfNormal",
    "LogNormal",
    "OnOff",
    "Timing",
    "TracedClock",
    "Uniform",
]
