"""Launcher of a federation of real processes: certificates, printed commands, and ``local_deployment`` on this machine.
It controls Flower through its commands and its HTTP port, never through its Python API.
"""
