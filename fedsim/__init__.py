"""fedsim: simulate federations - central, gossip and compressed methods under one problem statement.

Names are imported when they are first used, so that the command line answers before PyTorch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.clients import Clients as Clients
    from fedsim.controller import resume as resume
    from fedsim.controller import run as run
    from fedsim.experiment import Data as Data
    from fedsim.experiment import Evaluation as Evaluation
    from fedsim.experiment import Experiment as Experiment
    from fedsim.sampling import Bernoulli as Bernoulli
    from fedsim.sampling import FixedSize as FixedSize
    from fedsim.types import Algorithm as Algorithm
    from fedsim.types import Batch as Batch
    from fedsim.types import Compressor as Compressor
    from fedsim.types import Kept as Kept
    from fedsim.types import Local as Local
    from fedsim.types import Packed as Packed
    from fedsim.types import Rule as Rule
    from fedsim.types import Sent as Sent
    from fedsim.types import Site as Site
    from fedsim.types import Vector as Vector
    from fedsim.work import LocalWork as LocalWork

_HOME = {
    "fedsim.clients": ["Clients"],
    "fedsim.controller": ["resume", "run"],
    "fedsim.experiment": ["Data", "Evaluation", "Experiment"],
    "fedsim.sampling": ["Bernoulli", "FixedSize"],
    "fedsim.types": [
        "Algorithm", "Batch", "Compressor", "Kept", "Local", "Packed", "Rule", "Sent", "Site", "Vector",
    ],
    "fedsim.work": ["LocalWork"],
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
