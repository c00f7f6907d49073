"""A federation of real processes: certificates and keys, the commands that start it, and one on this machine.

Everything here speaks to Flower through its commands and its HTTP port; only ``fedsim.backends.flower`` imports it.
"""
