"""fedsim: simulate federations - central, gossip and compressed methods under one problem statement."""

from fedsim.clients import Clients
from fedsim.types import Algorithm, Batch, Kept, Local, Rule, Sent, Vector

__all__ = ["Algorithm", "Batch", "Clients", "Kept", "Local", "Rule", "Sent", "Vector"]
